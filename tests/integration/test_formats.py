"""Every written format: calibrate, verify, serve, and the same values after a conversion to f32; every pair converted."""
import json
import math

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
    ("bnb_int8", "", "", "bnb_int8_w8a16", "bitsandbytes"),
])
def test_stories(daemon, tmp_path, weight, activation, group, strategy, fmt):
    arguments = ["--weight-dtype", weight]
    if activation:
        arguments += ["--activation-dtype", activation]
    if group:
        arguments += ["--group-size", group]
    check(daemon, tmp_path, "stories260K", arguments, strategy, fmt)


@pytest.mark.parametrize("method", ["percentile", "mse", "smoothquant", "awq", "gptq", "awq+gptq", "awq+smoothquant", "autoround", "qat"])
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
    if method in ("gptq", "awq+gptq", "autoround", "qat"):
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


# What a small llama quantized in one format becomes in another: True = lossless, False = lossy with its size told, a
# reason = refused. Rows of 64 and 172 inputs: no type of 256 fits (Q6_K becomes Q8_0, which holds int8 codes), and down's rows
# are no whole blocks of 32 (floats, exactly).
SOURCES = {
    "int4": (["--weight-dtype", "int4", "--group-size", "-1", "--scale-precision", "bf16"], {
        "compressed_tensors": True, "f32": True, "bf16": False, "gptq": "refused", "awq": "refused", "bitsandbytes": "refused",
        "gguf": True, "gguf_q8_0": True, "gguf_q4_0": True, "gguf_f32": True, "gguf_f16": False, "gguf_q4_k": False,
        "ascend_v1": "refused"}),
    "int4-asym": (["--weight-dtype", "int4", "--group-size", "-1", "--asymmetric", "--scale-precision", "bf16"], {
        "compressed_tensors": True, "f32": True, "gguf": True, "gguf_q8_0": True, "gguf_q4_0": False, "bitsandbytes": "refused"}),
    "int8": (["--weight-dtype", "int8", "--group-size", "-1", "--scale-precision", "bf16"], {
        "compressed_tensors": True, "f32": True, "gguf": True, "gguf_q8_0": True, "gguf_q4_0": False, "gguf_q6_k": True,
        "gptq": "refused", "bitsandbytes": "refused", "ascend_v1": True}),
    "w8a8": (["--weight-dtype", "int8", "--activation-dtype", "int8", "--group-size", "-1"], {
        "compressed_tensors": True, "f32": True, "gguf": True, "gptq": "refused", "ascend_v1": True}),
    "fp8": (["--weight-dtype", "fp8"], {
        "compressed_tensors": True, "f32": True, "gguf": True, "gguf_q8_0": False, "gptq": "refused", "bitsandbytes": "refused",
        "ascend_v1": "refused"}),
    "nf4": (["--weight-dtype", "nf4"], {
        "bitsandbytes": True, "f32": True, "gguf": True, "gguf_q4_0": False, "compressed_tensors": "refused", "gptq": "refused"}),
    "bnb-int8": (["--weight-dtype", "int8", "--format", "bitsandbytes"], {
        "bitsandbytes": True, "f32": True, "gguf": True, "gguf_q8_0": False, "compressed_tensors": "refused", "gptq": "refused"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_pair(daemon, source):
    arguments, targets = SOURCES[source]
    name = "pair-" + source
    daemon.json("quant", "calibrate", "--model", "stories260K", "--output", name, *arguments)
    for fmt, outcome in targets.items():
        output = f"{name}-{fmt}".lower()
        command = ("quant", "convert", "--artifact", name, "--format", fmt, "--output", output)
        if outcome == "refused":
            code, error = daemon.fails(*command)
            assert error["reason"] and error["message"], (source, fmt, error)
            assert code in (1, 2), (source, fmt, error)
            assert not (daemon.data / "artifacts" / output).exists()
            continue
        made = daemon.json(*command)
        assert made["lossless"] is outcome, (source, fmt, made["max_abs_difference"], made["changed"])
        assert (made["max_abs_difference"] == 0) is outcome
        assert (made["changed"] == {}) is outcome
        assert math.isfinite(made["max_abs_difference"])
        manifest = json.loads((daemon.data / "artifacts" / output / "sage_quant.json").read_text())
        stored = {n: t for f in manifest["files"] for n, t in f["tensors"].items()}
        assert set(stored) == set(made["types"]) and all(len(t["sha256"]) == 64 for t in stored.values())
        if fmt.startswith("gguf_q") and fmt != "gguf_q4_k":
            assert made["types"]["blk.0.attn_q.weight"] == ("q8_0" if fmt == "gguf_q6_k" else fmt[5:])


@pytest.mark.parametrize("arguments,reason", [
    (["--weight-dtype", "w5a16"], "UNKNOWN_QUANTIZATION"),
    (["--weight-dtype", "w4a4"], "UNKNOWN_QUANTIZATION"),
    (["--weight-dtype", "nf4", "--scale-precision", "bf16"], "BAD_SCALE_DTYPE"),
    (["--exclude", "*.o_proj", "--override", "*.o_proj=bits:8"], "OVERRIDE_HAS_NO_EFFECT"),
    (["--weight-granularity", "tensor"], "FIELD_NOT_SUPPORTED"),
    (["--fp8-format", "e5m2"], "FIELD_NOT_SUPPORTED"),
    (["--double-quant"], "FIELD_NOT_SUPPORTED"),
    (["--gptq-f64"], "F64_NEEDS_GPTQ"),
    (["--gptq-asymmetric-correction"], "CORRECTION_NEEDS_GPTQ"),
    (["--format", "gguf_q4_k", "--clip-ratio", "0.2"], "FIELD_NOT_SUPPORTED"),
    (["--format", "fp8"], "UNSUPPORTED_OUTPUT_FORMAT"),
])
def test_words_that_cannot_act_are_refused(daemon, arguments, reason):
    code, error = daemon.fails("quant", "calibrate", "--model", "stories260K", "--group-size", "-1", "--output", "refused", *arguments)
    assert (code in (1, 2), error["reason"]) == (True, reason), error


@pytest.mark.parametrize("name,arguments", [
    ("tensor", ["--weight-dtype", "fp8", "--activation-dtype", "fp8", "--weight-granularity", "tensor", "--format", "fp8"]),
    ("block", ["--weight-dtype", "fp8", "--activation-dtype", "fp8", "--weight-granularity", "block"]),
    ("e5m2", ["--weight-dtype", "fp8", "--fp8-format", "e5m2"]),
    ("double", ["--weight-dtype", "nf4", "--double-quant"]),
    ("zeros", ["--weight-dtype", "w8a8", "--activation-asymmetric"]),
])
def test_variants_are_written_and_served(daemon, tmp_path, name, arguments):
    made = daemon.json("quant", "calibrate", "--model", "stories260K", "--output", "variant-" + name, *arguments)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([1, 40, 30, 20, 10, 50, 60, 31, 22, 13, 45, 3, 8, 19]))
    scores = []
    for target in ("stories260K", made["artifact"]):
        engine = daemon.json("llm", "engine", "start", target, "--kv-quant", "f32")["engine_id"]
        scores.append(daemon.json("llm", "score", "--engine", engine, "--ids-file", str(ids))["nll"])
        daemon.json("llm", "engine", "stop", engine)
    assert scores[0] != scores[1] and scores[0] == pytest.approx(scores[1], rel=0.1)


def test_gguf_is_served_like_its_source(daemon, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([1, 40, 30, 20, 10, 50, 60, 31, 22, 13, 45, 3, 8, 19]))
    daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int8", "--group-size", "-1", "--scale-precision",
                "bf16", "--output", "served")
    daemon.json("quant", "convert", "--artifact", "served", "--format", "gguf", "--output", "served-gguf")
    scores, texts = [], []
    for target in ("served", "served-gguf"):
        engine = daemon.json("llm", "engine", "start", target, "--kv-quant", "f32")["engine_id"]
        scores.append(daemon.json("llm", "score", "--engine", engine, "--ids-file", str(ids))["nll"])
        texts.append(daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "24",
                                 "--temperature", "0")["choices"][0]["text"])
        daemon.json("llm", "engine", "stop", engine)
    assert scores[0] == pytest.approx(scores[1], rel=2e-4)
    assert texts[0] == texts[1]


@pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden models")
@pytest.mark.parametrize("method,fmt,scheme", [("gptq", "gguf_q4_0", "q4_0"), ("minmax", "gguf_q8_0", "q8_0"), ("awq", "gguf_q4_1", "q4_1"),
                                               ("minmax", "gguf_q4_k_m", "q5_0")])
def test_calibrated_gguf(daemon, tmp_path, method, fmt, scheme):
    ids = tmp_path / "ids.jsonl"
    ids.write_text("".join(json.dumps({"ids": [(7 * i + j * j) % 97 for j in range(64)]}) + "\n" for i in range(4)))
    name = f"calibrated-{method}-{fmt}"
    arguments = ["quant", "calibrate", "--model", "golden/03-llama3-rope", "--method", method, "--format", fmt, "--output", name]
    if method != "minmax":
        arguments += ["--dataset", str(ids), "--samples", "4", "--sequence-length", "32"]
    made = daemon.json(*arguments)
    assert made["format"] == "gguf" and made["quantization"] == fmt
    manifest = json.loads((daemon.data / "artifacts" / name / "sage_quant.json").read_text())
    assert manifest["conversion"]["types"]["blk.0.ffn_up.weight"] == scheme
    assert not list((daemon.data / "artifacts").glob("*.staged"))
    if fmt in ("gguf_q4_0", "gguf_q8_0"):
        assert manifest["conversion"]["lossless"] is True and manifest["calibration_record"]["method"] == method
    engine = daemon.json("llm", "engine", "start", name)
    daemon.json("llm", "engine", "stop", engine["engine_id"])
    again = daemon.json(*arguments)  # the same request finds what it made, another one under its name is refused
    assert again["resumed"] is True and again["path"] == made["path"]
    other = ["golden/12-llama-sharded" if a == "golden/03-llama3-rope" else a for a in arguments]
    assert daemon.fails(*other)[1]["reason"] == "ARTIFACT_EXISTS"


def test_activations_that_a_step_quantizes_once_are_counted(daemon):
    daemon.json("quant", "calibrate", "--model", "stories260K", "--output", "counted", "--weight-dtype", "int8",
                "--activation-dtype", "int8")
    daemon.json("llm", "engine", "start", "counted", "--engine-id", "counted")
    daemon.json("llm", "generate", "--engine", "counted", "--prompt", "Once", "--max-tokens", "4", "--temperature", "0")
    load = daemon.json("llm", "engine", "get", "counted")["load"]
    daemon.json("llm", "engine", "stop", "counted")
    # A layer quantizes what q, k, v read, what o reads, what gate and up read and what down reads: 4 made, 3 taken again.
    assert load["activation_misses_total"] > 0
    assert load["activation_hits_total"] * 4 == load["activation_misses_total"] * 3
