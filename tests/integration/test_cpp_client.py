"""The C++ client as another project finds it: installed, found by CMake, built and run; the commands of client/README.md."""
import re
import subprocess

import pytest
from conftest import BIN, ROOT


def test_installed_package(daemon, engine, tmp_path):
    if not (ROOT / "build/release/client/cpp/libsagequant_client.a").exists():
        pytest.skip("the release build has no client library")
    block, = re.findall(r"## The C\+\+ client\n\n```\n(.*?)```", (ROOT / "client" / "README.md").read_text(), re.S)
    block = block.replace("PREFIX", str(tmp_path / "prefix")).replace("CMAKE_" + str(tmp_path / "prefix") + "_PATH", "CMAKE_PREFIX_PATH")
    block = block.replace("EXAMPLE", str(tmp_path / "example")).replace("127.0.0.1:50551 ENGINE", f"{daemon.grpc} {engine}")
    done = subprocess.run(["bash", "-ec", block], cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    want = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once upon a time", "--max-tokens", "16",
                       "--temperature", "0")["choices"][0]["text"]
    assert done.stdout.rstrip("\n").endswith(want.rstrip("\n"))
    example = tmp_path / "example" / "sagequant_example"
    bad = subprocess.run([example, daemon.grpc, "not-there", "x"], capture_output=True, text=True, timeout=60)
    assert bad.returncode == 1 and "NOT_FOUND ENGINE_NOT_FOUND" in bad.stderr
    away = subprocess.run([example, "127.0.0.1:1", "x", "x"], capture_output=True, text=True, timeout=60)
    assert away.returncode == 1 and "SERVER_UNREACHABLE" in away.stderr
    headers = tmp_path / "prefix" / "include"
    assert (headers / "sagequant" / "client.h").exists() and (headers / "sage/quant/v1/engine.grpc.pb.h").exists()
    assert BIN.exists()
