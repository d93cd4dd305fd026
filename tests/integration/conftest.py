"""A real daemon on free ports for each test module, the `sage` command, and the models the tests use."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SAGE_BIN", ROOT / "build" / "release" / "bin"))
GOLDEN = ROOT.parent / "shared" / "data" / "golden"
sys.path.insert(0, str(ROOT / "tests"))

from gguf_text import add_gguf_text  # noqa: E402: beside this folder


class Daemon:
    def __init__(self, folder, model_root, extra=()):
        self.folder = Path(folder)
        self.model_root = Path(model_root)
        self.port_file = self.folder / "ports.json"
        self.data = self.folder / "data"
        self.extra = list(extra)
        self.process = None
        self.start()

    def start(self):
        self.port_file.unlink(missing_ok=True)
        self.log = open(self.folder / "daemon.log", "ab")
        self.process = subprocess.Popen(
            [str(BIN / "sagequantd"), "--data-dir", str(self.data), "--model-root", str(self.model_root),
             "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--port-file", str(self.port_file), *self.extra],
            stdout=self.log, stderr=self.log)
        deadline = time.time() + 30
        while not (self.port_file.exists() and self.port_file.stat().st_size):
            assert self.process.poll() is None, (self.folder / "daemon.log").read_text()[-3000:]
            assert time.time() < deadline, "the daemon did not write its port file"
            time.sleep(0.02)
        ports = json.loads(self.port_file.read_text())
        self.grpc, self.http = ports["grpc"], ports["http"]
        assert ports["pid"] == self.process.pid

    def sage(self, *arguments, check=True, json_out=True, stdin=None, timeout=300):
        command = [str(BIN / "sage"), *arguments] + (["--json"] if json_out else [])
        run = subprocess.run(command, env={**os.environ, "SAGE_SERVER": self.grpc}, capture_output=True, text=True,
                             timeout=timeout, input=stdin)
        if check:
            assert run.returncode == 0, f"{command}: exit {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run

    def json(self, *arguments, **options):
        return json.loads(self.sage(*arguments, **options).stdout)

    def fails(self, *arguments, **options):
        run = self.sage(*arguments, check=False, **options)
        assert run.returncode != 0, run.stdout
        return run.returncode, json.loads(run.stdout)["error"]

    def wait_idle(self, engine):
        """Until the engine holds no request and no KV page."""
        for _ in range(200):
            load = self.json("llm", "engine", "get", engine)["load"]
            if load["running"] == 0 and load["waiting"] == 0 and load["kv_pages_used"] == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"{engine} still holds something: {load}")

    def stop(self, expect=0):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(60)
            assert code == expect, (self.folder / "daemon.log").read_text()[-3000:]
        self.log.close()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


CHAT_TEMPLATE = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}"
                 "{% for c in m.tool_calls %}[{{ c.function.name }}]{% endfor %}{% endif %}</{{ m.role }}>{% endfor %}"
                 "{% if add_generation_prompt %}<assistant>{% endif %}")


@pytest.fixture(scope="session")
def model_root(tmp_path_factory):
    """A folder with the small trained model and, where the shared data is, the golden models."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "tests" / "data" / "stories260K", root / "stories260K")
    chat = root / "stories-chat"
    chat.mkdir()
    source, = (root / "stories260K").glob("*.gguf")
    add_gguf_text(source, chat / "model.gguf", "tokenizer.chat_template", CHAT_TEMPLATE)
    if GOLDEN.exists():
        shutil.copytree(GOLDEN / "models", root / "golden")
    return root


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, model_root):
    instance = Daemon(tmp_path_factory.mktemp("daemon"), model_root)
    yield instance
    instance.stop()


@pytest.fixture(scope="module")
def engine(daemon):
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "stories", "--engine-kind", "llm", "--backend", "cpu")
    return "stories"


@pytest.fixture(scope="module")
def chat_engine(daemon):
    """The same model with a chat template."""
    daemon.json("llm", "engine", "start", "stories-chat", "--engine-id", "chat", "--backend", "cpu")
    return "chat"
