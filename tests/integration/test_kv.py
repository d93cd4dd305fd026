"""The KV cache over the product: plans written by a calibration and served, layers and sinks, every pair of strategies."""
import json

import pytest

STORY = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big red ball in "
         "a tree. She wanted the ball, so she asked her mom for help. Her mom smiled and said, yes. ")

KV = ["f32", "bf16", "fp8_e4m3", "fp8_e5m2", "int8_per_token", "int8_per_channel"]


def score(daemon, story, *arguments):
    engine = daemon.json("llm", "engine", "start", *arguments)
    out = daemon.json("llm", "score", "--engine", engine["engine_id"], "--text-file", str(story))
    daemon.json("llm", "engine", "stop", engine["engine_id"])
    return out["nll"] / out["scored"], engine


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path


@pytest.mark.parametrize("linear", ["none", "int8_w8a16", "int4_w4a16", "int8_w8a8", "fp8_w8a8", "nf4_w4a16"])
def test_any_kv_strategy_with_any_linear_strategy(daemon, story, linear):
    exact, _ = score(daemon, story, "stories260K", "--quantization", linear, "--kv-quant", "f32")
    for kv in KV:
        nll, engine = score(daemon, story, "stories260K", "--quantization", linear, "--kv-quant", kv, "--kv-sink-tokens", "2")
        assert engine["kv_quant"] == kv
        assert nll == pytest.approx(exact, abs=0.15 if kv == "fp8_e5m2" else 0.05)


def test_layers_and_sinks(daemon, story):
    _, engine = score(daemon, story, "stories260K", "--kv-quant", "int8", "--kv-exclude", "layers.0,layers.4", "--kv-sink-tokens", "4")
    assert engine["kv_quant"] == "bf16+int8_per_token"
    assert engine["kv_plan"]["layers_16bit"] == [0, 4] and engine["kv_plan"]["sink_tokens"] == 16
    code, error = daemon.fails("llm", "engine", "start", "stories260K", "--kv-quant", "int8", "--kv-exclude", "layers.9")
    assert code == 1 and error["reason"] == "PATTERN_MATCHES_NOTHING"


@pytest.mark.parametrize("kv,extra", [("fp8", []), ("int8", ["--kv-exclude", "layers.1"]), ("int8_per_channel", ["--kv-asymmetric"])])
@pytest.mark.parametrize("weight", ["none", "int8"])
def test_calibrated_plans_are_served(daemon, tmp_path, story, kv, extra, weight):
    text = tmp_path / "text.txt"
    text.write_text(STORY * 20)
    name = f"kv-{kv}-{weight}"
    arguments = [] if weight == "none" else ["--group-size", "-1"]
    daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", weight, "--kv-quant", kv, "--dataset", str(text),
                "--samples", "8", "--sequence-length", "64", "--kv-sink-tokens", "1", "--output", name, *arguments, *extra)
    plan = json.loads((daemon.data / "artifacts" / name / "sage_quant.json").read_text())["kv_quant_plan"]
    assert plan["scales"] == "calibrated" and len(plan["layers"]) == 5
    exact, _ = score(daemon, story, name, "--kv-quant", "f32")
    nll, engine = score(daemon, story, name)
    assert engine["kv_plan"]["scales"] == "calibrated" and engine["kv_plan"]["dtype"].startswith(plan["strategy"])
    assert nll == pytest.approx(exact, abs=0.05)
    # A report takes the artifact's own plan.
    report = daemon.json("quant", "report", "--artifact", name, "--dataset", str(text), "--windows", "2", "--window", "128", "--no-speed")
    assert report["memory"]["quantized"]["kv_scales"] == "calibrated"
    assert daemon.json("quant", "report", "--artifact", name, "--dataset", str(text), "--windows", "2", "--window", "128", "--no-speed",
                       "--kv-quant", "bf16")["memory"]["quantized"]["kv_quant"] == "bf16"


@pytest.mark.parametrize("weight,method,extra", [("int8", "kl", ["--activation-asymmetric"]), ("fp8", "minmax", [])])
def test_static_activations(daemon, tmp_path, story, weight, method, extra):
    text = tmp_path / "text.txt"
    text.write_text(STORY * 20)
    made = daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", weight, "--activation-dtype", weight, "--method",
                       method, "--activation-scheme", "static", "--dataset", str(text), "--samples", "8", "--sequence-length", "64",
                       "--group-size", "-1", "--output", f"static-{weight}", *extra)
    config = json.loads((daemon.data / "artifacts" / made["artifact"] / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["dynamic"] is False
    nll, engine = score(daemon, story, made["artifact"])
    exact, _ = score(daemon, story, "stories260K", "--kv-quant", "f32")
    assert nll == pytest.approx(exact, abs=0.25)
