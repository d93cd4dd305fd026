"""The package of client/python against a real daemon: built as a wheel, imported from it, its README executed."""
import asyncio
import dataclasses
import os
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, Daemon

PACKAGE = ROOT / "client" / "python"


@pytest.fixture(scope="module")
def sagequant(tmp_path_factory):
    """The wheel, unpacked in front of everything: what a user would import."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
                    "-w", str(folder), str(PACKAGE)], check=True, capture_output=True)
    wheel, = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    sys.path.insert(0, str(folder / "site"))
    import sagequant
    import sagequant.aio
    assert str(folder) in sagequant.__file__ and (folder / "site" / "sagequant" / "py.typed").exists()
    yield sagequant
    sys.path.remove(str(folder / "site"))


def test_a_source_archive_builds_the_same_wheel(tmp_path):
    """`python -m build` makes the archive first and the wheel from it, where no proto/ is near."""
    made = subprocess.run([sys.executable, "-c", f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"],
                          cwd=PACKAGE, check=True, capture_output=True, text=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
                    "-w", str(tmp_path), str(tmp_path / made.stdout.split()[-1])], check=True, capture_output=True)
    wheel, = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sagequant/client.py", "sagequant/py.typed", "sagequant/_wire/generation_pb2.py", "sagequant/_wire/engine_pb2.pyi"} <= names


def test_wrong_kinds_are_named(sagequant, daemon, tmp_path):
    """What protobuf would refuse without saying what is refused here, by name and value."""
    client = sagequant.UnifiedInferenceClient.create(server=daemon.grpc)
    for word, call in (("prompt", lambda: client.generate(5)), ("runtime", lambda: client.generate("x", runtime=5)),
                       ("max_tokens", lambda: client.generate("x", max_tokens="many")), ("seed", lambda: client.generate("x", seed=-1)),
                       ("stop", lambda: client.generate("x", stop=[1])), ("logit_bias", lambda: client.generate("x", logit_bias=[3])),
                       ("text", lambda: client.score(None))):
        with pytest.raises(sagequant.errors.InvalidArgumentError) as refused:
            call()
        assert refused.value.reason == "WRONG_TYPE" and refused.value.message.startswith(word + ":")
    for text in ("", "abc admin name=ops\n", "# a comment\nabc\n"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(sagequant.errors.InvalidArgumentError, match="the token and nothing else"):
            sagequant.UnifiedInferenceClient.create(server=daemon.grpc, token_file=str(tmp_path / "token")).models()


@pytest.fixture(scope="module")
def manager(sagequant, daemon):
    config = sagequant.QuantConfig(weight_dtype="int8", activation_dtype="w8a16", group_size=0, kv_cache_dtype="fp8", backend="cpu")
    with sagequant.QuantizationManager(config, server=daemon.grpc) as manager:
        yield manager


def test_calibrate_load_chat_report(sagequant, manager, daemon):
    seen = []
    manager._progress = lambda done, total, stage: seen.append((done, total))
    artifact = manager.calibrate("stories260K", output="py-int8")
    assert artifact == "py-int8" and isinstance(artifact, str) and artifact.path.endswith("py-int8")
    assert artifact.quantization == "int8_w8a16" and 8 < artifact.bits_per_weight < 10
    assert len(artifact.layers) == 36 and all(r.sha256 for r in artifact.layers if r.scheme == "int8_w8a16")
    assert "py-int8" in manager.artifacts()
    assert manager.select_kernel().startswith("linear_int8_w8a16")
    kernel = manager.explain_kernel()
    assert kernel.backend == "cpu" and kernel.strategy == "int8_w8a16"

    runtime = manager.load_quantized(artifact, engine_id="py", max_seqs=4)
    assert runtime.quantization == "int8_w8a16" and runtime.kernel == manager.kernel and runtime.kernel.startswith("linear_int8")
    assert runtime.kv_plan.dtype.startswith("fp8") and runtime.kv_plan.block_size > 0 and len(runtime.bindings) >= 35
    assert runtime.info()["state"] == "RUNNING"

    client = sagequant.UnifiedInferenceClient.create(server=daemon.grpc)
    answer = client.generate("Once upon a time", runtime=runtime, max_tokens=12, temperature=0, logprobs=2)
    assert len(answer.token_ids) == 12 and answer.usage["completion_tokens"] == 12 and str(answer) == answer.text
    assert len(answer["choices"][0]["logprobs"]["content"]) == 12
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    ids = client.tokenize("Once upon a time", runtime)
    assert client.generate(ids, runtime=runtime, max_tokens=12, temperature=0).text == answer.text
    assert client.detokenize(ids, runtime).strip() == "Once upon a time"
    streamed = list(client.stream_generate("Once upon a time", runtime=runtime, max_tokens=12, temperature=0))
    assert "".join(u.text for u in streamed) == answer.text and streamed[-1].last
    assert len(client.generate("A", runtime=runtime, max_tokens=2, n=3, seed=1)["choices"]) == 3
    assert client.score("Once upon a time there was a girl", runtime)["ppl"] > 1
    assert "py" in [m["engine_id"] for m in client.models()]
    with sagequant.QuantizationManager(dataclasses.replace(manager.config, draft_mode=True), server=daemon.grpc) as drafting:
        with drafting.load_quantized(artifact, engine_id="py-draft") as guessing:
            again = client.generate("Once upon a time", runtime=guessing, max_tokens=12, temperature=0)
    assert again.token_ids == answer.token_ids

    report = manager.evaluate(str(ROOT / "tests/data/quickstart.txt"), windows=2, window=64, speed=False)
    assert report["perplexity"]["ratio"] > 0
    metrics = manager.report()
    assert metrics["kl.mean"] >= 0 and metrics["load_ms"] > 0 and metrics["bits_per_weight"] == artifact.bits_per_weight
    assert all(isinstance(v, float) for v in metrics.values())
    runtime.stop(drain_seconds=0)
    manager.delete(artifact)
    assert "py-int8" not in manager.artifacts()


def test_the_protocol_of_sage(sagequant, manager, daemon, tmp_path):
    """What code written against SAGE's QuantizationProtocol does: a config with each call, positionally."""
    def use(protocol, config):
        assert isinstance(protocol, sagequant.QuantizationProtocol)
        made = protocol.calibrate("stories260K", str(ROOT / "tests/data/quickstart.txt"), config)
        return made, protocol.load_quantized(made, config), protocol.select_kernel(config), protocol.report()

    other = sagequant.QuantConfig(weight_dtype="int8", activation_dtype="int8", group_size=-1)
    artifact, runtime, kernel, metrics = use(manager, other)
    with runtime:
        assert runtime.quantization == artifact.quantization == "int8_w8a8" and kernel.startswith("linear_int8_w8a8")
        assert metrics["load_ms"] > 0 and manager.config.activation_dtype == "w8a16", "the manager's own config is as it was"
    manager.delete(artifact)
    assert manager.get_available_backends() == other.get_available_backends(server=daemon.grpc) == ["cpu"]
    with pytest.raises(TypeError):
        type("Half", (sagequant.QuantizationProtocol,), {"report": lambda self: {}})()


def test_chat(sagequant, daemon, chat_engine):
    with sagequant.UnifiedInferenceClient.create(daemon.grpc, chat_engine) as client:
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Tell a story"}]
        answer = client.chat(messages, max_tokens=8, temperature=0)
        assert answer["choices"][0]["message"]["role"] == "assistant" and answer.usage["completion_tokens"] == 8
        assert "".join(u.text for u in client.stream_chat(messages, max_tokens=8, temperature=0)) == answer.text


def test_leaving_a_stream_frees_it(sagequant, daemon, engine):
    with sagequant.UnifiedInferenceClient.create(daemon.grpc, engine) as client:
        for update in client.stream_generate("Once", max_tokens=400, ignore_eos=True):
            if update.text:
                break
        daemon.wait_idle(engine)


def test_errors_are_typed(sagequant, daemon, engine):
    errors = sagequant.errors
    with sagequant.UnifiedInferenceClient.create(daemon.grpc) as client:
        with pytest.raises(errors.NotFoundError) as caught:
            client.generate("x", runtime="not-there")
        assert caught.value.reason == "ENGINE_NOT_FOUND" and caught.value.metadata["engine_id"] == "not-there"
        with pytest.raises(errors.InvalidArgumentError) as caught:
            client.generate("x", runtime=engine, temperature=-1)
        assert caught.value.reason == "OUT_OF_RANGE" and "temperature" in caught.value.fields
        with pytest.raises(errors.InvalidArgumentError, match="UNKNOWN_OPTION"):
            client.generate("x", runtime=engine, no_such=1)
        with pytest.raises(errors.FailedPreconditionError) as caught:
            client.chat([{"role": "user", "content": "Hi"}], runtime=engine)
        assert caught.value.reason == "NO_CHAT_TEMPLATE"
        with pytest.raises(errors.UnsupportedError):
            client.embed("x")
    manager = sagequant.QuantizationManager(sagequant.QuantConfig(weight_dtype="int4", group_size=48), server=daemon.grpc)
    with pytest.raises(errors.InvalidArgumentError) as caught:
        manager.calibrate("stories260K", output="py-bad")
    assert caught.value.reason == "GROUP_SIZE_MUST_DIVIDE_K" and "operation" in caught.value.metadata
    with pytest.raises(errors.UnavailableError):
        sagequant.UnifiedInferenceClient.create("127.0.0.1:1", timeout=3).models()
    with pytest.raises(errors.UnsupportedError):
        sagequant.QuantConfig(group_size=-1, per_channel=False).to_wire()
    assert sagequant.QuantConfig(enable_qat=True, calibration="awq").to_wire().method == "qat"
    with pytest.raises(errors.InvalidArgumentError, match="SERVER_IS_URL"):
        sagequant.UnifiedInferenceClient.create("http://127.0.0.1:8889/v1")


def test_token_and_tls(sagequant, tmp_path, model_root, monkeypatch):
    from test_security import make_authority, make_certificate
    authority = make_authority(tmp_path, "ours")
    key, pem = make_certificate(tmp_path, authority, "server")
    (tmp_path / "token").write_text("s3cret\n")
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--token-file", str(tmp_path / "token")])
    create = sagequant.UnifiedInferenceClient.create
    ca = str(authority[1])
    assert create(daemon.grpc, ca=ca, token="s3cret").models() == []
    assert create(daemon.grpc, ca=ca, token_file=str(tmp_path / "token")).models() == []
    with pytest.raises(sagequant.errors.UnauthenticatedError) as caught:
        create(daemon.grpc, ca=ca, token="guess").models()
    assert caught.value.reason == "TOKEN_INVALID"
    with pytest.raises(sagequant.errors.UnavailableError):
        create(daemon.grpc, token="s3cret", timeout=3).models()
    with pytest.raises(sagequant.errors.UnavailableError):
        create(daemon.grpc, tls=True, token="s3cret", timeout=3).models()  # this machine trusts no such authority
    monkeypatch.setenv("SSL_CERT_FILE", ca)
    assert create(daemon.grpc, tls=True, token="s3cret").models() == []
    daemon.stop()


def test_asynchronous(sagequant, daemon, engine, chat_engine):
    from sagequant import aio

    async def work():
        async with aio.AsyncUnifiedInferenceClient.create(daemon.grpc, engine) as client:
            answers = await asyncio.gather(*(client.generate("Once", max_tokens=8, seed=i) for i in range(6)))
            again = await client.generate("Once", max_tokens=8, seed=3)
            assert answers[3].text == again.text and len({a.text for a in answers}) > 1
            texts = [u.text async for u in client.stream_generate("Once", max_tokens=8, seed=3)]
            assert "".join(texts) == again.text
            assert (await client.chat([{"role": "user", "content": "Hi"}], chat_engine, max_tokens=4)).usage["completion_tokens"] == 4
            async for update in client.stream_generate("Once", max_tokens=400, ignore_eos=True):
                break
            with pytest.raises(sagequant.errors.NotFoundError):
                await client.generate("x", "not-there")
            task = asyncio.create_task(client.generate("Once", max_tokens=400, ignore_eos=True, n=64))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with aio.AsyncQuantizationManager(sagequant.QuantConfig(weight_dtype="int8", group_size=-1),
                                                server=daemon.grpc) as manager:
            artifact = await manager.calibrate("stories260K", output="py-async")
            assert artifact.quantization == "int8_w8a16" and (await manager.select_kernel()).startswith("linear_int8")
            assert await manager.get_available_backends() == ["cpu"]
            runtime = await manager.load_quantized(artifact, engine_id="py-async")
            assert manager.report()["load_ms"] > 0 and runtime.kernel
            await runtime.stop(0)

    asyncio.run(work())
    daemon.wait_idle(engine)


def test_the_installation_of_the_readme(tmp_path):
    """`pip install client/python` as written; what it would fetch from an index is there already."""
    line, = re.findall(r"^(pip install \S+)", (PACKAGE / "README.md").read_text(), re.M)
    assert f"`{line}`" in (ROOT / "README.md").read_text()
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1",
                   "PIP_NO_BUILD_ISOLATION": "false", "PIP_TARGET": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    run = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    run = subprocess.run([sys.executable, "-c", "import sagequant, sagequant._wire.engine_pb2; print(sagequant.__file__)"], cwd=tmp_path,
                         env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 0 and str(tmp_path) in run.stdout, run.stdout + run.stderr


def test_the_readme_runs(sagequant, model_root, tmp_path):
    daemon = Daemon(tmp_path, model_root)
    blocks = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    script = tmp_path / "readme.py"
    script.write_text("".join(blocks))
    path = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=120,
                         env={**os.environ, "SAGE_SERVER": daemon.grpc, "PYTHONPATH": path})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "stories-int8 int8_w8a16" in run.stdout and "ENGINE_NOT_FOUND" in run.stdout
    daemon.stop()


def test_types(sagequant):
    pytest.importorskip("mypy", reason="mypy is not installed")
    subprocess.run([sys.executable, PACKAGE / "generate.py"], check=True)
    run = subprocess.run([sys.executable, "-m", "mypy"], cwd=PACKAGE, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_misspelt_words_are_errors_of_type(sagequant, tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    file = tmp_path / "use.py"
    file.write_text("from sagequant import QuantConfig\nQuantConfig(priority='fast')\nQuantConfig(backend='gpu')\n"
                    "QuantConfig(weight_dtype='int8_w8a8', backend='cuda', priority='memory', scale_precision='fp16')\n")
    subprocess.run([sys.executable, PACKAGE / "generate.py"], check=True)
    run = subprocess.run([sys.executable, "-m", "mypy", "--follow-imports=silent", str(file)], cwd=PACKAGE, capture_output=True, text=True)
    assert re.findall(r"use.py:(\d+): error: Argument .*\[arg-type\]", run.stdout) == ["2", "3"], run.stdout
