"""The fixed interface: every command's JSON fields and exit codes, on a real daemon."""
import json
import os

import pytest
from conftest import GOLDEN, ROOT


def test_engine_record_and_lifecycle(daemon):
    record = daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "life", "--quantization", "int8",
                         "--kv-quant", "f32", "--max-seqs", "4", "--max-model-len", "256")
    for field in ("engine_id", "state", "model", "quantization", "kv_quant", "backend", "weight_bytes", "kv_bytes", "load_ms"):
        assert field in record, field
    assert record["engine_id"] == "life" and record["state"] == "RUNNING"
    assert record["quantization"] == "int8_w8a16" and record["kv_quant"] == "f32" and record["backend"] == "cpu"
    assert record["weight_bytes"] > 0 and record["kv_bytes"] > 0
    listed = daemon.json("llm", "engine", "list")
    listed = listed if isinstance(listed, list) else listed["engines"]
    assert "life" in [e["engine_id"] for e in listed]
    assert daemon.json("llm", "engine", "get", "life")["state"] == "RUNNING"
    assert daemon.json("llm", "engine", "stop", "life", "--drain-timeout", "5")["state"] in ("STOPPED", "STOPPING")
    code, error = daemon.fails("llm", "engine", "get", "life-not-there")
    assert code == 1 and error["code"] == "NOT_FOUND"


def test_generate_fields(daemon, engine):
    out = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "12",
                      "--temperature", "0", "--logprobs", "2")
    choice = out["choices"][0]
    assert len(choice["token_ids"]) == 12 and choice["finish_reason"] == "length" and choice["text"]
    assert len(choice["logprobs"]) == 12 or len(choice["logprobs"]["content"]) == 12
    assert out["usage"]["completion_tokens"] == 12 and out["usage"]["prompt_tokens"] >= 4
    assert set(out["timings"]) >= {"queue_ms", "prefill_ms", "decode_ms"}


def test_prompt_ids_equal_prompt_text(daemon, engine):
    ids = daemon.json("llm", "tokenize", "--engine", engine, "--text", "Once upon a time")["ids"]
    by_text = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "8",
                          "--temperature", "0")
    by_ids = daemon.json("llm", "generate", "--engine", engine, "--prompt-ids", ",".join(map(str, ids)), "--max-tokens", "8",
                         "--temperature", "0")
    assert by_text["choices"][0]["token_ids"] == by_ids["choices"][0]["token_ids"]
    text = daemon.json("llm", "detokenize", "--engine", engine, "--ids", ",".join(map(str, ids)), "--no-special")["text"]
    assert text.strip() == "Once upon a time"


def test_seed_gives_the_same_text_and_n_gives_choices(daemon, engine):
    arguments = ("llm", "generate", "--engine", engine, "--prompt", "The little dog", "--max-tokens", "16", "--seed", "7",
                 "--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--n", "3")
    first, second = daemon.json(*arguments), daemon.json(*arguments)
    texts = [c["text"] for c in first["choices"]]
    assert texts == [c["text"] for c in second["choices"]]
    assert len(set(texts)) > 1


def test_how_tokens_come_changes_nothing(daemon, engine):
    """With --json an answer comes as one message unless asked otherwise."""
    arguments = ("llm", "generate", "--engine", engine, "--prompt", "The little dog", "--max-tokens", "17", "--seed", "7",
                 "--temperature", "0.9", "--n", "2", "--logprobs", "1")
    whole = daemon.json(*arguments)
    for interval in ("1", "5"):
        other = daemon.json(*arguments, "--stream-interval", interval)
        assert other["choices"] == whole["choices"] and other["usage"] == whole["usage"]
    code, error = daemon.fails(*arguments, "--stream-interval", "0")
    assert code == 1 and error["reason"] == "OUT_OF_RANGE"


def test_layers_by_pattern(daemon):
    start = ("llm", "engine", "start", "stories260K", "--engine-id", "by-pattern", "--quantization", "int8")
    daemon.json(*start, "--layer-quantization", "*.self_attn.*=int4", "--layer-quantization", "*.k_proj=none")
    bindings = daemon.json("llm", "engine", "get", "by-pattern")["kernel_bindings"]
    bound = {b["layer"].rsplit(".", 1)[-1]: b["strategy"] for b in bindings}
    assert bound["q_proj"] == "int4_w4a16" and bound["down_proj"] == "int8_w8a16" and bound["k_proj"] not in ("int4_w4a16", "int8_w8a16")
    daemon.json("llm", "engine", "stop", "by-pattern")
    code, error = daemon.fails(*start, "--layer-quantization", "*.nothing=int4")
    assert code == 1 and error["reason"] == "PATTERN_MATCHES_NOTHING"
    assert daemon.fails(*start, "--layer-quantization", "int4")[0] == 2


def test_stop_string_is_cut(daemon, engine):
    whole = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "40",
                        "--temperature", "0")["choices"][0]["text"]
    stop = whole[10:14]
    cut = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "40",
                      "--temperature", "0", "--stop", stop)["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole[:whole.index(stop)]


def test_score(daemon, engine, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl named Lily. She loved to play outside. " * 8)
    out = daemon.json("llm", "score", "--engine", engine, "--text-file", str(text), "--window", "64", "--windows", "2")
    assert out["windows"] == 2 and out["window"] == 64 and out["scored"] == 126 and out["ppl"] < 60
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([1, 403, 407, 261, 378]))
    out = daemon.json("llm", "score", "--engine", engine, "--ids-file", str(ids), "--top", "3")
    assert len(out["positions"]) == 4
    assert out["positions"][0]["id"] == 403 and len(out["positions"][0]["top"]) == 3
    assert out["positions"][0]["top"][0]["logprob"] >= out["positions"][0]["top"][1]["logprob"]


def test_calibrate_report_convert(daemon, tmp_path):
    out = daemon.json("quant", "calibrate", "--model", "stories260K", "--method", "minmax", "--weight-dtype", "int8",
                      "--group-size", "auto", "--output", "stories-int8")
    for field in ("operation", "artifact", "path", "quantization", "weight_bytes", "bits_per_weight", "layers", "seconds"):
        assert field in out, field
    assert out["quantization"] == "int8_w8a16" and len(out["layers"]) == 36  # 35 quantized, and the head as it was
    assert 8 < out["bits_per_weight"] < 10
    assert all(0 < layer["error"] < 0.01 for layer in out["layers"] if layer["scheme"] == "int8_w8a16")
    operation = daemon.json("operations", "get", out["operation"])
    assert operation["state"] in ("SUCCEEDED", "DONE") and operation["progress"]["done"] == operation["progress"]["total"]

    report = daemon.json("quant", "report", "--artifact", "stories-int8", "--dataset", str(ROOT / "tests/data/quickstart.txt"),
                         "--windows", "3", "--window", "128", "--html", str(tmp_path / "r.html"))
    perplexity = report["perplexity"]
    assert set(perplexity) >= {"quantized", "reference", "ratio", "interval"}
    assert 0.98 < perplexity["ratio"] < 1.02 and 0 <= report["kl"]["mean"] < 0.01
    assert report["top1_agreement"] > 0.95
    assert "<svg" in (tmp_path / "r.html").read_text()
    run = daemon.sage("quant", "report", "--artifact", "stories-int8", "--dataset",
                      str(ROOT / "tests/data/quickstart.txt"), "--windows", "2", "--window", "128",
                      "--require", "kl.mean<0.000000001", check=False)
    assert run.returncode == 4

    converted = daemon.json("quant", "convert", "--artifact", "stories-int8", "--format", "f32", "--output",
                            str(daemon.folder / "data" / "stories-f32"))
    assert converted["lossless"] is True and converted["tensors"] > 40 and converted["max_abs_difference"] == 0


def test_group_size_that_does_not_divide_names_those_that_do(daemon):
    code, error = daemon.fails("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int4", "--group-size", "48",
                               "--output", "bad")
    assert code == 1 and error["code"] == "INVALID_ARGUMENT" and error["reason"] == "GROUP_SIZE_MUST_DIVIDE_K"
    assert "64" in error["message"]


def test_capabilities_and_kernel(daemon):
    capabilities = daemon.json("quant", "capabilities")
    text = json.dumps(capabilities)
    for name in ("int4_w4a16", "int8_w8a16", "bf16", "minmax", "safetensors", "gguf", "llama", "qwen3", "cpu"):
        assert name in text, name
    kernel = daemon.json("quant", "kernel", "--weight-dtype", "int4", "--activation-dtype", "w4a16", "--group-size", "64")
    assert kernel["kernel"].startswith("linear_int4_w4a16") and isinstance(kernel["refused"], list)


@pytest.mark.parametrize("arguments, exit_code, code", [
    (("llm", "engine", "start", "../../etc"), 1, None),
    (("llm", "engine", "start", "not-there"), 1, "NOT_FOUND"),
    (("llm", "generate", "--engine", "nope", "--prompt", "x"), 1, "NOT_FOUND"),
    (("llm", "generate", "--engine", "stories", "--prompt", "x", "--temperature", "-1"), 1, "INVALID_ARGUMENT"),
    (("llm", "generate", "--engine", "stories", "--prompt-ids", "99999999"), 1, "INVALID_ARGUMENT"),
    (("llm", "engine", "start", "stories260K", "--quantization", "int5"), 1, "INVALID_ARGUMENT"),
    (("operations", "get", "nope"), 1, "NOT_FOUND"),
])
def test_errors(daemon, engine, arguments, exit_code, code):
    got, error = daemon.fails(*arguments)
    assert got == exit_code and error["message"] and error["reason"]
    if code:
        assert error["code"] == code


def test_usage_error_and_unreachable(daemon):
    assert daemon.sage("llm", "generate", "--no-such-flag", check=False).returncode == 2
    wrong = daemon.sage("--timeout", "5", "llm", "bogus", check=False)
    assert wrong.returncode == 2 and "no command 'bogus', one of engine" in wrong.stdout + wrong.stderr
    assert "sage llm engine: a command is needed, one of start" in daemon.sage("llm", "engine", check=False, json_out=False).stderr
    run = daemon.sage("llm", "engine", "list", "--server", "127.0.0.1:1", "--timeout", "3", check=False)
    assert run.returncode == 3 and json.loads(run.stdout)["error"]["code"] == "UNAVAILABLE"
    code, error = daemon.fails("llm", "engine", "list", "--timeout", "0.000001")  # the daemon is there, the time is not
    assert code == 1 and error["reason"] == "TIMEOUT"


def test_what_no_daemon_needs_to_see(daemon, engine, tmp_path):
    code, error = daemon.fails("llm", "generate", "--engine", engine, "--prompt-ids", "")
    assert code == 2 and error["reason"] == "PROMPT_EMPTY"
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"Once \xff upon")
    for arguments in (("generate", "--engine", engine, "--prompt-file"), ("tokenize", "--engine", engine, "--text-file"),
                      ("score", "--engine", engine, "--text-file")):
        code, error = daemon.fails("llm", *arguments, broken)
        assert code == 2 and error["reason"] == "TEXT_INVALID_UTF8" and "at 5" in error["message"], (arguments, error)
    code, error = daemon.fails("llm", "chat", "--engine", engine, "--message", os.fsdecode(b"a\xc3"))
    assert code == 2 and error["reason"] == "TEXT_INVALID_UTF8"
    code, error = daemon.fails("operations", "list", "--kind", "bogus")
    assert code == 1 and error["code"] == "INVALID_ARGUMENT" and "calibrate" in error["message"]
    code, error = daemon.fails("quant", "kernel", "--weight-dtype", "int4", "--inputs", "4097", "--group-size", "128")
    assert code == 1 and error["reason"] == "GROUP_SIZE_MUST_DIVIDE_K"


def test_score_names_its_alternatives(daemon, engine, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a dog.")
    out = daemon.json("llm", "score", "--engine", engine, "--text-file", text, "--top", "3")
    assert all(len(p["top"]) == 3 and all(t["token"] for t in p["top"]) for p in out["positions"])


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_convert_writes_a_folder_of_this_machine(daemon, tmp_path):
    daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int8", "--group-size", "-1", "--output", "source")
    artifacts = daemon.data / "artifacts"
    before = sorted(p.name for p in artifacts.iterdir())
    folder = tmp_path / "deep" / "out"
    out = daemon.json("quant", "convert", "--artifact", "source", "--format", "f32", "--output", f"{folder}/")
    assert out["path"] == str(folder) and out["lossless"] is True
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "sage_quant.json", "tokenizer.json"} <= names and any(n.endswith(".safetensors") for n in names)
    assert sorted(p.name for p in artifacts.iterdir()) == before  # what it was made from there is gone
    assert [p.name for p in folder.parent.iterdir()] == ["out"]
    # What came is what the daemon would have kept; a name that is taken there changes nothing.
    daemon.json("quant", "convert", "--artifact", "source", "--format", "f32", "--output", "out/")
    assert files_of(folder) == files_of(artifacts / "out")
    daemon.json("quant", "convert", "--artifact", "source", "--format", "f32", "--output", str(tmp_path / "more" / "out"))
    assert files_of(tmp_path / "more" / "out") == files_of(folder)
    code, error = daemon.fails("quant", "convert", "--artifact", "source", "--format", "f32", "--output", str(folder))
    assert code == 1 and error["reason"] == "OUTPUT_EXISTS"
    # A GGUF is called as its folder is.
    gguf = tmp_path / "small"
    daemon.json("quant", "convert", "--artifact", "source", "--format", "gguf_q8_0", "--output", str(gguf))
    assert (gguf / "small.gguf").exists()
    below = daemon.data / "below"  # the daemon's own folder is written by it
    assert daemon.json("quant", "convert", "--artifact", "source", "--format", "f32", "--output", str(below))["path"] == str(below)
    for output in ("../x", "a/../../x", f"{tmp_path}/../x"):
        code, error = daemon.fails("quant", "convert", "--artifact", "source", "--format", "f32", "--output", output)
        assert error["reason"] == "PATH_OUTSIDE_ROOTS", (output, error)
    code, error = daemon.fails("quant", "convert", "--artifact", "source", "--format", "f32", "--output", str(tmp_path / "d"), "--detach")
    assert code == 2 and error["reason"] == "BAD_FLAG"
    assert not (tmp_path.parent / "x").exists() and not (daemon.data / "x").exists()


def test_calibrate_twice(daemon):
    arguments = ["quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int8", "--group-size", "-1", "--output", "twice"]
    first, again = daemon.json(*arguments), daemon.json(*arguments)
    assert again["path"] == first["path"] and again["weight_bytes"] == first["weight_bytes"] and again["resumed"] is True
    code, error = daemon.fails(*arguments, "--seed", "1", "--asymmetric")
    assert code == 1 and error["reason"] == "ARTIFACT_EXISTS"
    code, error = daemon.fails(*arguments[:-1], "../twice")
    assert code == 1 and error["reason"] == "PATH_OUTSIDE_ROOTS"


@pytest.mark.skipif(not GOLDEN.exists(), reason="shared golden data is absent")
@pytest.mark.parametrize("name", ["01-llama2-mha", "07-mistral-swa", "08-qwen2-tied", "09-qwen3-qk-norm", "12-llama-sharded"])
def test_golden_models_through_the_daemon(daemon, name):
    np = pytest.importorskip("numpy")
    from safetensors.numpy import load_file
    want = load_file(GOLDEN / "expected" / f"{name}.safetensors")
    engine_id = "golden-" + name
    daemon.json("llm", "engine", "start", f"golden/{name}", "--engine-id", engine_id)
    ids = ",".join(map(str, want["long.ids"].tolist()))
    out = daemon.json("llm", "generate", "--engine", engine_id, "--prompt-ids", ids, "--max-tokens", "32", "--temperature", "0",
                      "--ignore-eos")
    assert out["choices"][0]["token_ids"] == np.asarray(want["long.greedy_ids"]).tolist()
    code, error = daemon.fails("llm", "generate", "--engine", engine_id, "--prompt", "text")
    assert code == 1 and "tokenizer" in error["message"].lower()
    daemon.json("llm", "engine", "stop", engine_id)
