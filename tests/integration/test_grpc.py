"""A grpcio client generated from proto/ alone, one that only knows reflection, and the health service."""
import base64
import json
import subprocess
import sys

import grpc
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Stubs of sage.quant.v1; google.rpc is that of googleapis-common-protos, as in other people's programs (one process can
    hold one file of a name). test_stubs.py makes a client from proto/ alone."""
    out = tmp_path_factory.mktemp("stubs")
    proto = ROOT / "proto"
    files = [str(p.relative_to(proto)) for p in (proto / "sage").rglob("*.proto")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}",
                    *files], check=True, cwd=proto)
    sys.path.insert(0, str(out))
    yield out
    sys.path.remove(str(out))


@pytest.fixture(scope="module")
def channel(daemon):
    with grpc.insecure_channel(daemon.grpc) as c:
        yield c


def test_generated_client_does_the_whole_job(stubs, channel, daemon, engine):
    from sage.quant.v1 import (engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc, operation_pb2,
                               operation_pb2_grpc, quantization_pb2, quantization_pb2_grpc, report_pb2, report_pb2_grpc)
    request = quantization_pb2.CalibrateRequest(request_id="job-1", model="stories260K", output="by-grpc",
                                                config=quantization_pb2.QuantConfig(weight_dtype="int8", group_size=-1))
    quantization = quantization_pb2_grpc.QuantizationServiceStub(channel)
    operation = quantization.Calibrate(request)
    assert quantization.Calibrate(request).id == operation.id  # idempotent
    operations = operation_pb2_grpc.OperationServiceStub(channel)
    done = list(operations.WatchOperation(operation_pb2.WatchOperationRequest(id=operation.id)))[-1]
    assert done.state == operation_pb2.OPERATION_STATE_SUCCEEDED, done
    result = quantization_pb2.CalibrateResult()
    assert done.result.Unpack(result) and result.artifact == "by-grpc" and len(result.layers) == 36
    assert json.loads(done.result_json)["quantization"] == "int8_w8a16"

    engines = engine_pb2_grpc.EngineServiceStub(channel)
    started = engines.StartEngine(engine_pb2.StartEngineRequest(model="by-grpc", engine_id="by-grpc"))
    assert started.state == engine_pb2.ENGINE_STATE_RUNNING and started.quantization == "int8_w8a16"
    generation = generation_pb2_grpc.GenerationServiceStub(channel)
    updates = list(generation.Generate(generation_pb2.GenerateRequest(
        engine_id="by-grpc", text="Once upon a time",
        options=generation_pb2.GenerationOptions(max_tokens=8, sampling=generation_pb2.SamplingOptions(temperature=0)))))
    assert updates[-1].last and updates[-1].usage.completion_tokens == 8
    assert sum(len(u.tokens) for u in updates) == 8

    reports = report_pb2_grpc.ReportServiceStub(channel)
    operation = reports.Evaluate(report_pb2.EvaluateRequest(
        artifact="by-grpc", dataset="d.txt", dataset_content=(ROOT / "tests/data/quickstart.txt").read_bytes(), windows=2, window=64))
    done = operations.WaitOperation(operation_pb2.WaitOperationRequest(id=operation.id))
    assert done.state == operation_pb2.OPERATION_STATE_SUCCEEDED, done
    report = json.loads(reports.GetReport(report_pb2.GetReportRequest(artifact="by-grpc")).json)
    assert report["perplexity"]["ratio"] > 0
    engines.StopEngine(engine_pb2.StopEngineRequest(engine_id="by-grpc"))


def test_errors_carry_details(stubs, channel):
    from google.rpc import error_details_pb2, status_pb2
    from sage.quant.v1 import engine_pb2, engine_pb2_grpc
    with pytest.raises(grpc.RpcError) as caught:
        engine_pb2_grpc.EngineServiceStub(channel).GetEngine(engine_pb2.GetEngineRequest(engine_id="nope"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    raw = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.reason == "ENGINE_NOT_FOUND" and info.domain


def test_cancel_and_deadline_free_the_slot(stubs, channel, daemon, engine):
    import time

    from sage.quant.v1 import engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc
    generation = generation_pb2_grpc.GenerationServiceStub(channel)
    options = generation_pb2.GenerationOptions(max_tokens=400, ignore_eos=True,
                                               sampling=generation_pb2.SamplingOptions(temperature=1, seed=3))
    call = generation.Generate(generation_pb2.GenerateRequest(engine_id=engine, text="Once", options=options))
    next(iter(call))
    call.cancel()
    options.n = 8
    with pytest.raises(grpc.RpcError) as caught:
        list(generation.Generate(generation_pb2.GenerateRequest(engine_id=engine, text="Once", options=options), timeout=0.02))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    engines = engine_pb2_grpc.EngineServiceStub(channel)
    for _ in range(100):
        load = engines.GetEngine(engine_pb2.GetEngineRequest(engine_id=engine)).load
        if load.running == 0 and load.kv_pages_used == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"pages are still held: {load}")


class ReflectedClient:
    """Calls any method by name with a dict: all it knows it asked the daemon."""

    def __init__(self, channel):
        from google.protobuf.descriptor_pool import DescriptorPool
        from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def call(self, service, name, stream=False, **fields):
        from google.protobuf import json_format
        from google.protobuf.message_factory import GetMessageClass
        method = self.pool.FindServiceByName("sage.quant.v1." + service).FindMethodByName(name)
        assert method.server_streaming == stream
        request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
        make = self.channel.unary_stream if stream else self.channel.unary_unary
        answer = make(f"/sage.quant.v1.{service}/{name}", request_serializer=lambda m: m.SerializeToString(),
                      response_deserializer=GetMessageClass(method.output_type).FromString)(request, timeout=120)

        def as_dict(message):
            return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=self.pool)
        return [as_dict(m) for m in answer] if stream else as_dict(answer)


def test_reflection_only_client_does_the_whole_job(daemon, channel):
    """Calibrate, start, chat and report, without one generated file."""
    client = ReflectedClient(channel)
    services = set(client.database.get_services())
    for name in ("QuantizationService", "ArtifactService", "EngineService", "GenerationService", "ReportService",
                 "OperationService"):
        assert "sage.quant.v1." + name in services
    assert "grpc.health.v1.Health" in services and "inference.GRPCInferenceService" in services

    operation = client.call("QuantizationService", "Calibrate", model="stories-chat", output="reflected",
                            config={"weight_dtype": "int8", "group_size": -1})
    operation = client.call("OperationService", "WaitOperation", id=operation["id"])
    assert operation["state"] == "OPERATION_STATE_SUCCEEDED", operation
    assert operation["result"]["quantization"] == "int8_w8a16"  # an Any, resolved by reflection too
    engine = client.call("EngineService", "StartEngine", model="stories-chat", engine_id="reflected", quantization="reflected")
    assert engine["quantization"] == "int8_w8a16"
    assert len(client.call("GenerationService", "Tokenize", engine_id="reflected", text="Once upon a time")["ids"]) >= 4
    updates = client.call("GenerationService", "Chat", stream=True, engine_id="reflected",
                          conversation={"messages": [{"role": "user", "content": "Tell a story"}]},
                          options={"max_tokens": 12, "sampling": {"temperature": 0}})
    assert updates[-1]["last"] is True and "".join(u.get("text", "") for u in updates).strip()
    operation = client.call("ReportService", "Evaluate", artifact="reflected", windows=1, window=64, dataset="story.txt",
                            dataset_content=base64.b64encode(b"Once upon a time there was a little dog. " * 20).decode())
    operation = client.call("OperationService", "WaitOperation", id=operation["id"])
    assert operation["state"] == "OPERATION_STATE_SUCCEEDED", operation
    report = json.loads(client.call("ReportService", "GetReport", operation=operation["id"])["json"])
    assert 0.9 < report["perplexity"]["ratio"] < 1.1 and report["kl"]["mean"] < 0.05
    client.call("EngineService", "StopEngine", engine_id="reflected")


def test_health(channel):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "sage.quant.v1.GenerationService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
