"""Clients of other languages from proto/ alone: the commands of proto/README.md, run, and what they made used."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

GOCODE = Path("/usr/share/gocode")  # where Debian keeps Go's libraries
GO_NEEDS = [GOCODE / "src/google.golang.org" / p for p in ("grpc", "protobuf", "genproto")]
JARS = [Path("/usr/share/java") / f"{name}.jar" for name in ("protobuf", "grpc-api", "grpc-stub", "grpc-protobuf", "guava")]


def need(there, package):
    """Skips where what a test needs is missing; in CI that is a failure if the distribution has the package (`tests/run` installs it)."""
    if there:
        return
    known = subprocess.run(["apt-cache", "show", package], capture_output=True).returncode == 0 if shutil.which("apt-cache") else False
    if os.environ.get("CI") and known:
        pytest.fail(f"{package} is not installed, though this distribution has it")
    pytest.skip(f"{package} is not installed here")


def command(word, out):
    """The line of the README that holds `word`, with the folder of the result."""
    line, = [m for block in re.findall(r"```\n(.*?)```", (ROOT / "proto" / "README.md").read_text(), re.S)
             for m in block.splitlines() if word in m]
    return line.replace("python3", sys.executable, 1).replace("OUT", str(out))


def run(line, **options):
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=580, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_from_proto_alone(daemon, engine, tmp_path):
    """In a process of its own, whose google.rpc is the generated one."""
    run(command("grpc_tools.protoc", tmp_path))
    (tmp_path / "google" / "rpc" / "__init__.py").write_text("")  # a package goes before the installed one
    script = tmp_path / "client.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import grpc
from google.rpc import error_details_pb2, status_pb2
from sage.quant.v1 import engine_pb2, engine_pb2_grpc
assert {str(tmp_path)!r} in status_pb2.__file__
stub = engine_pb2_grpc.EngineServiceStub(grpc.insecure_channel({daemon.grpc!r}))
print(stub.GetEngine(engine_pb2.GetEngineRequest(engine_id={engine!r})).quantization)
try:
    stub.GetEngine(engine_pb2.GetEngineRequest(engine_id="nope"))
except grpc.RpcError as error:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.reason == "ENGINE_NOT_FOUND" and info.domain == "sagequant"
else:
    sys.exit("no error")
""")
    run(f"{sys.executable} {script}")


def test_go(tmp_path):
    need(shutil.which("protoc-gen-go"), "protoc-gen-go-1-5")
    need(shutil.which("protoc-gen-go-grpc"), "protoc-gen-go-grpc")
    out = tmp_path / "src"
    out.mkdir()
    run(command("--go_out", out))
    made = sorted(p.name for p in (out / "sagequant" / "gen" / "sage" / "quant" / "v1").iterdir())
    assert "engine.pb.go" in made and "engine_grpc.pb.go" in made
    assert (out / "sagequant" / "gen" / "inference" / "grpc_service_grpc.pb.go").exists()
    client = (out / "sagequant" / "gen" / "sage" / "quant" / "v1" / "engine_grpc.pb.go").read_text()
    for method in re.findall(r"rpc (\w+)", (ROOT / "proto" / "sage" / "quant" / "v1" / "engine.proto").read_text()):
        assert f"func (c *engineServiceClient) {method}(" in client
    if shutil.which("gofmt"):
        listed = subprocess.run(["gofmt", "-e", "-l", str(out)], capture_output=True, text=True)
        assert listed.returncode == 0, listed.stderr  # it parses


@pytest.mark.skipif(not os.environ.get("SAGE_TEST_GO_BUILD"), reason="set SAGE_TEST_GO_BUILD=1 to compile (minutes)")
@pytest.mark.skipif(not (shutil.which("go") and all(p.exists() for p in GO_NEEDS)),
                    reason="no Go with golang-google-{grpc,protobuf,genproto}-dev here")
def test_go_compiles(tmp_path):
    out = tmp_path / "src"
    out.mkdir()
    run(command("--go_out", out))
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": f"{tmp_path}:{GOCODE}", "GOCACHE": str(tmp_path / "cache"),
                   "GOFLAGS": "-p=2"}
    run("go build sagequant/gen/sage/quant/v1", env=environment)


def test_java(tmp_path):
    need(shutil.which("javac"), "openjdk-17-jdk-headless")
    need(shutil.which("grpc_java_plugin"), "protobuf-compiler-grpc-java-plugin")
    need(all(jar.exists() for jar in JARS), "libgrpc-java")
    run(command("--java_out", tmp_path))
    package = tmp_path / "sage" / "quant" / "v1"
    assert (package / "StartEngineRequest.java").exists() and (package / "EngineServiceGrpc.java").exists()
    classes = tmp_path / "classes"
    annotation = tmp_path / "javax" / "annotation"  # what newer Java no longer has, and generated stubs name
    annotation.mkdir(parents=True)
    (annotation / "Generated.java").write_text("package javax.annotation; public @interface Generated "
                                               "{ String[] value(); String date() default \"\"; String comments() default \"\"; }")
    path = ":".join(str(j) for j in JARS)
    run(f"javac -nowarn -d {classes} -cp {path} $(find {tmp_path} -name '*.java')")
    assert (classes / "sage" / "quant" / "v1" / "EngineServiceGrpc.class").exists()


def test_java_messages_without_the_grpc_plugin(tmp_path):
    run(f"protoc -I proto --java_out={tmp_path} proto/sage/quant/v1/*.proto proto/inference/*.proto proto/google/rpc/*.proto")
    assert (tmp_path / "com" / "google" / "rpc" / "Status.java").exists() and (tmp_path / "inference" / "ModelConfig.java").exists()
