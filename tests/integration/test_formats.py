"""Every written format: calibrate, verify, serve, and the same values after a conversion to f32."""
import json

import pytest
from conftest import GOLDEN


def check(daemon, tmp_path, model, arguments, strategy, fmt):
    name = f"{model}-{strategy}-{fmt}".replace("/", "-").lower()
    made = daemon.json("quant", "calibrate", "--model", model, "--output", name, *arguments)
    assert made["quantization"] == strategy
    config = json.loads((daemon.data / "artifacts" / name / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == fmt
    assert all(layer["error"] > 0 for layer in made["layers"] if layer["scheme"] == strategy)
    # What is served is what is stored: the dequantized folder predicts the same ids nearly as likely.
    plain = daemon.json("quant", "convert", "--artifact", name, "--format", "f32", "--output", name + "-f32")
    assert plain["lossless"] is True
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([1, 40, 30, 20, 10, 50, 60, 31, 22, 13, 45, 3, 8, 19]))
    scores = []
    for target in (name, name + "-f32"):
        engine = daemon.json("llm", "engine", "start", target, "--kv-quant", "f32")
        scores.append(daemon.json("llm", "score", "--engine", engine["engine_id"], "--ids-file", str(ids))["nll"])
        daemon.json("llm", "engine", "stop", engine["engine_id"])
    eight_bit_activations = strategy.endswith("a8")
    assert scores[0] == pytest.approx(scores[1], rel=2e-2 if eight_bit_activations else 2e-4)
    return name


@pytest.mark.parametrize("weight,activation,group,strategy,fmt", [
    ("int4", "", "-1", "int4_w4a16", "compressed-tensors"),
    ("int8", "", "-1", "int8_w8a16", "compressed-tensors"),
    ("int8", "int8", "-1", "int8_w8a8", "compressed-tensors"),
    ("int4", "int8", "-1", "int4_w4a8", "compressed-tensors"),
    ("fp8", "", "", "fp8_w8a16", "compressed-tensors"),
    ("fp8", "fp8", "", "fp8_w8a8", "compressed-tensors"),
    ("nf4", "", "", "nf4_w4a16", "bitsandbytes"),
])
def test_stories(daemon, tmp_path, weight, activation, group, strategy, fmt):
    arguments = ["--weight-dtype", weight]
    if activation:
        arguments += ["--activation-dtype", activation]
    if group:
        arguments += ["--group-size", group]
    check(daemon, tmp_path, "stories260K", arguments, strategy, fmt)


@pytest.mark.parametrize("method", ["percentile", "mse", "smoothquant", "awq", "gptq", "awq+gptq", "awq+smoothquant", "autoround"])
def test_methods(daemon, tmp_path, method):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. She liked to play outside in the park. " * 40)
    name = "method-" + method.replace("+", "-")
    made = daemon.json("quant", "calibrate", "--model", "stories260K", "--method", method, "--weight-dtype", "int4", "--group-size", "-1",
                       "--dataset", str(text), "--samples", "8", "--sequence-length", "64", "--output", name)
    assert made["quantization"] == "int4_w4a16"
    report = daemon.json("quant", "report", "--artifact", name, "--dataset", str(text), "--windows", "4", "--window", "128", "--no-speed")
    plain = daemon.json("quant", "calibrate", "--model", "stories260K", "--method", "rtn", "--weight-dtype", "int4", "--group-size", "-1",
                        "--output", name + "-rtn")
    rounded = daemon.json("quant", "report", "--artifact", plain["artifact"], "--dataset", str(text), "--windows", "4", "--window", "128",
                          "--no-speed")
    if method in ("gptq", "awq+gptq", "autoround"):
        assert report["kl"]["mean"] < 0.8 * rounded["kl"]["mean"]
    assert report["kl"]["mean"] < 3 * rounded["kl"]["mean"]


@pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden models")
@pytest.mark.parametrize("fmt,strategy", [("gptq", "gptq_w4a16"), ("awq", "awq_w4a16")])
def test_gptq_and_awq_folders(daemon, tmp_path, fmt, strategy):
    arguments = ["--weight-dtype", "int4", "--format", fmt, "--group-size", "32"] + (["--asymmetric"] if fmt == "awq" else [])
    name = check(daemon, tmp_path, "golden/03-llama3-rope", arguments, strategy, fmt)
    if fmt == "gptq":
        back = daemon.json("quant", "convert", "--artifact", name, "--format", "compressed_tensors", "--output", name + "-ct")
        assert back["lossless"] is True
