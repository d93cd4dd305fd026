"""The Open Inference Protocol v2 as tritonclient.grpc calls it, unchanged, against a real daemon."""
import json
import queue

import numpy as np
import pytest

grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed (see requirements.txt)")
from tritonclient.utils import InferenceServerException  # noqa: E402


@pytest.fixture(scope="module")
def client(daemon):
    with grpcclient.InferenceServerClient(daemon.grpc) as client:
        yield client


def text(value, streaming=None):
    inputs = [grpcclient.InferInput("text_input", [1], "BYTES")]
    inputs[0].set_data_from_numpy(np.array([value.encode()], dtype=object))
    if streaming is not None:
        inputs.append(grpcclient.InferInput("streaming", [1], "BOOL"))
        inputs[1].set_data_from_numpy(np.array([streaming]))
    return inputs


def output(result, name="text_output"):
    return result.as_numpy(name)[0].decode()


def test_live_ready_metadata_config(client, engine):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(engine)
    server = client.get_server_metadata()
    assert server.name == "sagequant" and "statistics" in server.extensions
    model = client.get_model_metadata(engine, as_json=True)
    assert [i["name"] for i in model["inputs"]] == ["text_input", "input_ids", "streaming"]
    assert [o["name"] for o in model["outputs"]] == ["text_output", "finish_reason", "output_ids"]
    config = client.get_model_config(engine).config
    assert config.model_transaction_policy.decoupled and config.parameters["model"].string_value == "stories260K"
    assert config.input[0].data_type == 13 and config.max_batch_size == 0
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.is_model_ready("not-there")
        client.get_model_config("not-there")


def test_infer(client, engine, daemon):
    result = client.infer(engine, text("Once upon a time"), request_id="r-1",
                          parameters={"max_tokens": 12, "temperature": 0.0})
    whole = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "12",
                        "--temperature", "0")["choices"][0]
    assert output(result) == whole["text"] and output(result, "finish_reason") == "length"
    response = result.get_response()
    assert response.id == "r-1" and response.parameters["triton_final_response"].bool_param
    # Ids in, ids out, and only what was asked for.
    ids = np.array(daemon.json("llm", "tokenize", "--engine", engine, "--text", "Once upon a time")["ids"], dtype=np.int32)
    tensor = grpcclient.InferInput("input_ids", [len(ids)], "INT32")
    tensor.set_data_from_numpy(ids)
    result = client.infer(engine, [tensor], outputs=[grpcclient.InferRequestedOutput("output_ids")],
                          parameters={"max_tokens": 12, "temperature": 0.0})
    assert result.as_numpy("output_ids").tolist() == whole["token_ids"] and result.as_numpy("text_output") is None
    stop = whole["text"][10:14]
    result = client.infer(engine, text("Once upon a time"), parameters={"max_tokens": 40, "temperature": 0.0, "stop": stop})
    assert output(result, "finish_reason") == "stop" and stop not in output(result)


@pytest.mark.parametrize("parameters, message", [
    ({"max_tokens": -1}, "max_tokens"), ({"no_such": 1}, "no_such"), ({"temperature": "hot"}, "temperature"),
    ({"stop": 3}, "stop")])
def test_bad_parameters(client, engine, parameters, message):
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(engine, text("x"), parameters=parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_bad_tensors(client, engine):
    two = grpcclient.InferInput("text_input", [2], "BYTES")
    two.set_data_from_numpy(np.array([b"a", b"b"], dtype=object))
    wrong = grpcclient.InferInput("text_input", [1], "INT32")
    wrong.set_data_from_numpy(np.array([1], dtype=np.int32))
    unknown = grpcclient.InferInput("image", [1], "INT32")
    unknown.set_data_from_numpy(np.array([1], dtype=np.int32))
    empty = grpcclient.InferInput("input_ids", [0], "INT32")
    empty.set_data_from_numpy(np.array([], dtype=np.int32))
    for inputs in ([two], [wrong], [unknown], [empty], text("a") + text("b"), text("a", streaming=True)):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(engine, inputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    for ask in (client.is_model_ready, client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        ask(engine, model_version="1")
        with pytest.raises(InferenceServerException, match="must be 1, got 2"):
            ask(engine, model_version="2")
    with pytest.raises(InferenceServerException, match="must be 1, got 2"):
        client.infer(engine, text("a"), model_version="2")
    with pytest.raises(InferenceServerException, match="text_output, output_ids"):
        client.infer(engine, text("a"), outputs=[grpcclient.InferRequestedOutput("logits")])


class Stream:
    def __init__(self, client, **options):
        self.answers = queue.Queue()
        self.client = client
        client.start_stream(lambda result, error: self.answers.put((result, error)), **options)

    def next(self):
        return self.answers.get(timeout=30)

    def until_final(self):
        results = []
        while True:
            result, error = self.next()
            assert error is None, error
            results.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                return results


def test_stream_infer_is_decoupled(daemon, engine, client):
    whole = client.infer(engine, text("Once upon a time"), parameters={"max_tokens": 16, "temperature": 0.0})
    with grpcclient.InferenceServerClient(daemon.grpc) as own:
        stream = Stream(own)
        own.async_stream_infer(engine, text("Once upon a time"), request_id="a", enable_empty_final_response=True,
                               parameters={"max_tokens": 16, "temperature": 0.0})
        results = stream.until_final()
        assert len(results) > 4 and "".join(output(r) for r in results) == output(whole)
        assert output(results[-1], "finish_reason") == "length" and all(r.get_response().id == "a" for r in results)
        own.async_stream_infer(engine, text("Once upon a time", streaming=False), parameters={"max_tokens": 16, "temperature": 0.0})
        result, = stream.until_final()
        assert output(result) == output(whole)
        own.stop_stream()


def test_requests_of_one_stream_run_side_by_side_and_errors_do_not_end_it(daemon, engine):
    with grpcclient.InferenceServerClient(daemon.grpc) as own:
        stream = Stream(own)
        for i in range(100):  # more than run at once
            own.async_stream_infer("not-there" if i % 10 == 9 else engine, text("Once"), request_id=str(i),
                                   parameters={"max_tokens": 6, "temperature": 0.0, "ignore_eos": True})
        texts, failed = {}, 0
        while len(texts) + failed < 100 or any(not done for _, done in texts.values()):
            result, error = stream.next()
            if error is not None:
                assert "ENGINE_NOT_FOUND" in error.message()
                failed += 1
                continue
            response = result.get_response()
            so_far, _ = texts.get(response.id, ("", False))
            texts[response.id] = (so_far + output(result), response.parameters["triton_final_response"].bool_param)
        assert failed == 10 and len({t for t, _ in texts.values()}) == 1
        own.stop_stream()
    daemon.wait_idle(engine)


def test_errors_as_status_when_asked_for(daemon, engine):
    with grpcclient.InferenceServerClient(daemon.grpc) as own:
        stream = Stream(own, headers={"triton_grpc_error": "true"})
        own.async_stream_infer("not-there", text("Once"))
        result, error = stream.next()
        assert result is None and error.status() == "StatusCode.NOT_FOUND"


def test_a_stream_cut_in_the_middle_frees_everything(daemon, engine):
    with grpcclient.InferenceServerClient(daemon.grpc) as own:
        stream = Stream(own)
        for _ in range(5):
            own.async_stream_infer(engine, text("Once"), parameters={"max_tokens": 400, "ignore_eos": True})
        stream.next()
        own.stop_stream(cancel_requests=True)
    daemon.wait_idle(engine)


def test_client_timeout_cancels(client, daemon, engine):
    with pytest.raises(InferenceServerException, match="(?i)deadline"):
        client.infer(engine, text("Once"), parameters={"max_tokens": 400, "ignore_eos": True}, client_timeout=0.02)
    daemon.wait_idle(engine)


def test_statistics(client, engine):
    before = client.get_inference_statistics(engine).model_stats[0]
    client.infer(engine, text("Once"), parameters={"max_tokens": 4})
    row = client.get_inference_statistics(engine).model_stats[0]
    assert row.name == engine and row.inference_count == before.inference_count + 1 and row.execution_count >= 4
    stats = row.inference_stats
    assert stats.success.count == row.inference_count and stats.success.ns >= stats.compute_infer.ns > 0
    assert row.memory_usage[0].type == "CPU" and row.memory_usage[0].byte_size > 100_000 and row.last_inference > 1e12
    assert engine in [r.name for r in client.get_inference_statistics().model_stats]


def test_repository(client, daemon):
    index = {m.name: m for m in client.get_model_repository_index().models}
    assert index["stories260K"].state == "UNAVAILABLE" and index["stories260K"].reason == "not loaded"
    client.load_model("stories260K")
    assert client.is_model_ready("stories260K")
    config = {"model": "stories260K", "quantization": "int8", "kv_quant": "fp8", "max_seqs": 2}
    client.load_model("repo-int8", config=json.dumps(config))
    record = daemon.json("llm", "engine", "get", "repo-int8")
    assert record["quantization"] == "int8_w8a16" and record["kv_quant"].startswith("fp8") and record["max_seqs"] == 2
    index = {m.name: m.state for m in client.get_model_repository_index().models}
    assert index["stories260K"] == "READY" and index["repo-int8"] == "READY"
    with pytest.raises(InferenceServerException, match="not-a-model"):
        client.load_model("not-a-model")
    with pytest.raises(InferenceServerException, match="own folders"):
        client.load_model("x", config="{}", files={"file:1/model.bin": b"x"})
    with pytest.raises(InferenceServerException, match="no_such"):
        client.load_model("x", config=json.dumps({"no_such": 1}))
    for name in ("stories260K", "repo-int8"):
        client.unload_model(name)
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("repo-int8")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
