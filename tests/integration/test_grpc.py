"""A grpcio client generated from proto/ alone, one that only knows reflection, and the health service."""
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


def test_reflection_only_client(daemon, channel, engine):
    from google.protobuf import json_format
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    for name in ("QuantizationService", "ArtifactService", "EngineService", "GenerationService", "ReportService",
                 "OperationService"):
        assert "sage.quant.v1." + name in services
    assert "grpc.health.v1.Health" in services and "inference.GRPCInferenceService" in services
    pool = DescriptorPool(database)
    method = pool.FindServiceByName("sage.quant.v1.GenerationService").FindMethodByName("Tokenize")
    request = GetMessageClass(method.input_type)()
    json_format.ParseDict({"engine_id": engine, "text": "Once upon a time"}, request)
    call = channel.unary_unary("/sage.quant.v1.GenerationService/Tokenize",
                               request_serializer=lambda m: m.SerializeToString(),
                               response_deserializer=GetMessageClass(method.output_type).FromString)
    assert len(call(request).ids) >= 4


def test_health(channel):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "sage.quant.v1.GenerationService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
