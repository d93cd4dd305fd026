"""SAGE's management routes over HTTP: what its gateway sends to a host of engines."""
import pytest
import requests


@pytest.fixture(scope="module")
def base(daemon):
    return f"http://{daemon.http}/v1/management"


def error(answer, status, reason, param=None):
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert body["code"] == reason and body["param"] == param and body["message"], body


def test_start_list_get_stop(base, daemon):
    # The body the gateway makes, every field of it.
    body = {"model_id": "stories260K", "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "port": None, "host": "localhost",
            "instance_type": "GENERAL", "max_concurrent_requests": 256, "required_memory_gb": 0.5, "engine_label": "from-sage",
            "extra_args": [], "metadata": {"owner": "sage"}, "engine_kind": "llm", "use_gpu": False, "finetune_dataset": None}
    started = requests.post(base + "/engines", json=body, timeout=60)
    assert started.status_code == 200, started.text
    record = started.json()
    assert record["engine_id"] == "from-sage" and record["state"] == "RUNNING" and record["backend"] == "cpu"
    assert record["model_id"] == "stories260K" and record["engine_kind"] == "llm"
    assert requests.post(base + "/engines", json=body, timeout=60).json()["engine_id"] == "from-sage"  # again: the same engine
    assert "from-sage" in [e["engine_id"] for e in requests.get(base + "/engines", timeout=10).json()["engines"]]
    assert requests.get(base + "/engines/from-sage", timeout=10).json()["state"] == "RUNNING"
    assert requests.post(base + "/engines/register", json={"engine_id": "from-sage"}, timeout=10).json()["state"] == "RUNNING"
    answer = requests.post(f"http://{daemon.http}/v1/completions", json={"model": "from-sage", "prompt": "Once", "max_tokens": 2},
                           timeout=30)
    assert answer.status_code == 200
    error(requests.delete(base + "/engines/from-sage", params={"drain": "maybe"}, timeout=10), 400, "WRONG_TYPE", "drain")
    assert requests.delete(base + "/engines/from-sage", params={"drain": "true"}, timeout=60).json()["state"] == "STOPPED"
    error(requests.delete(base + "/engines/from-sage", timeout=10), 404, "ENGINE_NOT_FOUND")


def test_the_fields_of_ours(base):
    body = {"model": "stories260K", "engine_id": "fields", "quantization": "int8", "kv_quant": "fp8", "backend": "cpu",
            "max_seqs": 3, "max_model_len": 128}
    record = requests.post(base + "/engines", json=body, timeout=60).json()
    assert record["quantization"] == "int8_w8a16" and record["max_seqs"] == 3 and record["max_model_len"] == 128
    requests.delete(base + "/engines/fields", params={"drain": "false"}, timeout=60)


@pytest.mark.parametrize("change, reason, param", [
    ({"tensor_parallel_size": 2}, "UNSUPPORTED", "tensor_parallel_size"),
    ({"pipeline_parallel_size": 2}, "UNSUPPORTED", "pipeline_parallel_size"),
    ({"port": 8001}, "UNSUPPORTED", "port"), ({"host": "0.0.0.0"}, "UNSUPPORTED", "host"), ({"host": "10.0.0.9"}, "UNSUPPORTED", "host"),
    ({"instance_type": "PREFILLING"}, "UNSUPPORTED", "instance_type"), ({"extra_args": ["--x"]}, "UNSUPPORTED", "extra_args"),
    ({"engine_kind": "embedding"}, "UNSUPPORTED", "engine_kind"), ({"finetune_epochs": 3}, "UNSUPPORTED", "finetune_epochs"),
    ({"use_gpu": "yes"}, "WRONG_TYPE", "use_gpu"), ({"use_gpu": True, "backend": "cpu"}, "CONTRADICTION", "use_gpu"),
    ({"engine_label": "../x"}, "BAD_NAME", "engine_label"), ({"no_such": 1}, "UNKNOWN_FIELD", "no_such"),
    ({"max_seqs": "many"}, "WRONG_TYPE", "max_seqs"), ({"required_memory_gb": -1}, "WRONG_TYPE", "required_memory_gb")])
def test_refusals_name_the_field(base, change, reason, param):
    error(requests.post(base + "/engines", json={"model_id": "stories260K", **change}, timeout=30), 400, reason, param)


def test_the_gateways_own_defaults_start_an_engine(base):
    """What SAGE's EngineStartRequest holds when a caller names the model alone."""
    body = {"model_id": "stories260K", "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "port": None, "host": "localhost",
            "instance_type": "GENERAL", "max_concurrent_requests": 256, "required_memory_gb": None, "engine_label": None,
            "extra_args": None, "metadata": None, "engine_kind": "llm", "use_gpu": None}
    started = requests.post(base + "/engines", json=body, timeout=60)
    assert started.status_code == 200, started.text
    assert requests.delete(f"{base}/engines/{started.json()['engine_id']}", timeout=60).status_code == 200
    for host in ("127.0.0.1", "::1"):
        started = requests.post(base + "/engines", json={**body, "host": host, "engine_label": "own"}, timeout=60)
        assert started.status_code == 200, started.text
    requests.delete(base + "/engines/own", timeout=60)


def test_errors(base):
    error(requests.post(base + "/engines", data="[", timeout=10), 400, "BAD_JSON", "body")
    error(requests.post(base + "/engines", json={"model_id": "not-there"}, timeout=10), 404, "MODEL_NOT_FOUND")
    error(requests.post(base + "/engines/register", json={"engine_id": "elsewhere", "host": "h", "port": 1}, timeout=10), 501,
          "REGISTER_UNSUPPORTED")
    error(requests.get(base + "/no-such-route", timeout=10), 404, "NO_SUCH_ROUTE")


def test_prune_forgets_what_failed(base, daemon):
    bad = requests.post(base + "/engines", json={"model_id": "stories260K", "engine_label": "bad", "quantization": "int5"}, timeout=30)
    assert bad.status_code == 400
    assert requests.get(base + "/engines/bad", timeout=10).json()["state"] == "FAILED"
    pruned = requests.post(base + "/engines/prune", timeout=10).json()
    assert pruned == {"pruned": 1, "engines": ["bad"]}
    assert requests.get(base + "/engines/bad", timeout=10).status_code == 404
    assert requests.post(base + "/engines/prune", timeout=10).json()["pruned"] == 0


def test_status_backends_gpu(base, engine):
    status = requests.get(base + "/status", timeout=10).json()
    assert status["status"] == "ready" and engine in [e["engine_id"] for e in status["engines"]]
    backends = {b["name"]: b for b in requests.get(base + "/backends", timeout=10).json()["backends"]}
    assert backends["cpu"]["available"] is True
    gpu = requests.get(base + "/gpu", timeout=10).json()
    assert gpu["available"] == bool(gpu["gpus"])
    absent = {row["name"]: row["reason"] for row in gpu["absent"]}
    assert {"tensorrt", "rocm", "ascend", "mlu", "kunlun"} <= set(absent), absent
    assert all("use backend cpu" in reason for reason in absent.values()) or "cuda" not in absent, absent


@pytest.mark.parametrize("change", [{"backend": "ascend"}, {"backend": "rocm"}, {"backend": "cuda"}, {"use_gpu": True}])
def test_an_absent_backend_says_why_and_what_to_do(base, daemon, change):
    name = change.get("backend", "cuda")
    rows = {row["name"]: row for row in requests.get(base + "/backends", timeout=10).json()["backends"]}
    if rows[name]["available"]:
        pytest.skip(f"{name} is here")
    answer = requests.post(base + "/engines", json={"model_id": "stories260K", **change}, timeout=30)
    body = answer.json()["error"]
    assert body["code"] in ("BACKEND_ABSENT", "CUDA_UNAVAILABLE") and rows[name]["reason"] in body["message"], body
    if body["code"] == "BACKEND_ABSENT":
        assert answer.status_code == 501 and body["param"] == "backend"
        assert "plug-in" in body["message"] or "cmake --preset cuda" in body["message"], body
    code, error = daemon.fails("quant", "kernel", "--weight-dtype", "int8", "--backend", name)
    assert (code, error["reason"]) == (1, body["code"]), error
