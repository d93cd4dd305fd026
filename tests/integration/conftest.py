"""A real daemon on free ports for each test module, the `sage` command, and the models the tests use."""
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SAGE_BIN", ROOT / "build" / "release" / "bin"))
GOLDEN = ROOT.parent / "shared" / "data" / "golden"


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


def add_gguf_text(source, target, key, value):
    """Copies a GGUF file with one more text in its metadata (layout: ggml's docs/gguf.md)."""
    data = Path(source).read_bytes()
    magic, version = struct.unpack_from("<4sI", data)
    assert magic == b"GGUF"
    size = "I" if version == 1 else "Q"  # version 1 counts with 32 bits
    wide = struct.calcsize(size)
    tensors, pairs = struct.unpack_from("<2" + size, data, 8)
    widths = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def read(kind, at):
        return struct.unpack_from("<" + kind, data, at)[0]

    def skip_text(at):
        return at + wide + read(size, at)

    def skip_value(at, kind):
        if kind == 8:
            return skip_text(at)
        if kind != 9:
            return at + widths[kind]
        inner, count = read("I", at), read(size, at + 4)
        at += 4 + wide
        for _ in range(count):
            at = skip_value(at, inner)
        return at

    at = first = 8 + 2 * wide
    for _ in range(pairs):
        at = skip_text(at)
        at = skip_value(at + 4, read("I", at))
    end = at
    for _ in range(tensors):
        end = skip_text(end)
        end += 4 + wide * read("I", end)  # as many lengths as it has dimensions
        end += 12  # type and offset
    texts = [struct.pack("<" + size, len(t)) + t for t in (key.encode(), value.encode())]
    head = struct.pack("<4sI2" + size, magic, version, tensors, pairs + 1)
    head += data[first:at] + texts[0] + struct.pack("<I", 8) + texts[1] + data[at:end]
    Path(target).write_bytes(head + bytes(-len(head) % 32) + data[end + -end % 32:])


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
