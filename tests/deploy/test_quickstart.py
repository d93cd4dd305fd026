"""deploy/quickstart without network, packages or build: run twice, used as its last lines say, and stopped."""
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT

BIN = Path(os.environ.get("SAGE_BIN", ROOT / "build" / "release" / "bin"))


def quickstart(tree, *arguments):
    return subprocess.run([str(tree / "deploy" / "quickstart"), *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture
def tree(tmp_path):
    """The script in a tree of its own, where the package index does not answer."""
    for name in ("deploy", "tests", "build/release", "build/quickstart/venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "quickstart", tmp_path / "deploy")
    (tmp_path / "deploy" / "packages.sh").write_text("sage_install_packages() { :; }\nsage_build() { :; }\n")
    (tmp_path / "tests" / "data").symlink_to(ROOT / "tests" / "data")
    shutil.copy(ROOT / "tests" / "gguf_text.py", tmp_path / "tests")
    (tmp_path / "build" / "release" / "bin").symlink_to(BIN)
    pip = tmp_path / "build" / "quickstart" / "venv" / "bin" / "pip"
    pip.write_text("#!/bin/sh\necho 'ERROR: no network' >&2\nexit 1\n")
    pip.chmod(0o755)
    yield tmp_path
    quickstart(tmp_path, "stop")


def test_twice_then_as_its_last_lines_say(tree):
    port_file = tree / "build" / "quickstart" / "daemon.json"
    first = quickstart(tree)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "cannot be reached" in first.stdout and "stop it:" in first.stdout
    pid = json.loads(port_file.read_text())["pid"]
    again = quickstart(tree)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"already running (pid {pid})" in again.stdout and "perplexity" in again.stdout

    curl = re.search(r"(curl (?:.|\n)*?\}')\n", again.stdout).group(1)
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"].strip(), answer.stdout + answer.stderr
    export, chat = re.search(r"(export SAGE_SERVER=\S+)\n\s+(\S+ llm chat --engine \S+)", again.stdout).groups()
    talk = subprocess.run(["bash", "-c", f"{export}; {chat} --message 'Once upon a time' --max-tokens 8"], capture_output=True,
                          text=True, timeout=60)
    assert talk.returncode == 0 and talk.stdout.strip(), talk.stderr

    stop = quickstart(tree, "stop")
    assert stop.returncode == 0 and "stopped" in stop.stdout
    assert not port_file.exists() and not Path(f"/proc/{pid}").exists()
    assert "no daemon" in quickstart(tree, "stop").stdout


def test_stop_kills_nobody_else(tree):
    """A port file that a crash left, with a number that another process has by now."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        (tree / "build" / "quickstart" / "daemon.json").write_text(json.dumps({"pid": other.pid, "grpc": "x", "http": "y"}))
        stop = quickstart(tree, "stop")
        assert stop.returncode == 0 and "no daemon" in stop.stdout, stop.stdout + stop.stderr
        time.sleep(0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
