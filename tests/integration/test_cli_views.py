"""What the command line shows to people: progress of a load, filters of capabilities, columns, and the live view."""
import json
import os
import pty
import re
import select
import struct
import subprocess
import fcntl
import termios
import threading

import pytest
from conftest import BIN

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def in_terminal(daemon, *arguments, columns=80, rows=24, seconds=60):
    """Runs `sage` with a terminal of that size for its output, and answers what it wrote."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen([BIN / "sage", *arguments], stdin=subprocess.DEVNULL, stdout=child, stderr=child,
                               env={**os.environ, "SAGE_SERVER": daemon.grpc})
    os.close(child)
    out = b""
    while select.select([parent], [], [], seconds)[0]:
        try:
            data = os.read(parent, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
    os.close(parent)
    return process.wait(seconds), out.decode()


def test_start_shows_progress(daemon):
    code, out = in_terminal(daemon, "llm", "engine", "start", "stories260K", "--engine-id", "bar", "--quantization", "int8")
    assert code == 0, out
    assert "loading bar" in out and "█" in out and "100%" in out and "RUNNING" in out
    run = daemon.sage("llm", "engine", "start", "stories260K", "--engine-id", "pipe")
    assert json.loads(run.stdout)["state"] == "RUNNING" and "loading pipe" in run.stderr
    again = daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "pipe")  # it runs: the same engine, no load
    assert again["engine_id"] == "pipe"
    operations = [o for o in daemon.json("operations", "list") if o["kind"] == "start_engine" and o["target"] == "pipe"]
    assert len(operations) == 1 and operations[0]["state"] == "SUCCEEDED"
    for name in ("bar", "pipe"):
        daemon.json("llm", "engine", "stop", name)


def test_start_failures_keep_their_words(daemon):
    code, error = daemon.fails("llm", "engine", "start", "stories260K", "--engine-id", "bad", "--quantization", "int5")
    assert code == 1 and error["code"] == "INVALID_ARGUMENT" and error["reason"] and error["metadata"]["operation"]
    first = daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "idem", "--request-id", "r-start")
    assert daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "idem", "--request-id", "r-start") == {
        **first, "load": daemon.json("llm", "engine", "get", "idem")["load"]}
    code, error = daemon.fails("llm", "engine", "start", "stories260K", "--engine-id", "other", "--request-id", "r-start")
    assert error["reason"] == "REQUEST_ID_REUSED"
    daemon.json("llm", "engine", "stop", "idem")


def test_capability_filters(daemon):
    everything = daemon.json("quant", "capabilities")
    assert "refused" not in everything and len(everything["linear_strategies"]) > 8
    int8 = daemon.json("quant", "capabilities", "--weight-dtype", "int8", "--backend", "cpu")
    assert {s["name"] for s in int8["linear_strategies"]} >= {"int8_w8a16", "int8_w8a8"}
    assert all(s["weight_dtype"] == "int8" and s["kernel"].startswith("linear_") for s in int8["linear_strategies"])
    assert [b["name"] for b in int8["backends"]] == ["cpu"]
    one = daemon.json("quant", "capabilities", "--weight-dtype", "int8", "--activation-dtype", "int8", "--priority", "throughput")
    assert [s["name"] for s in one["linear_strategies"]] == ["int8_w8a8"]
    composite = daemon.json("quant", "capabilities", "--weight-dtype", "w8a16")
    assert all(s["weight_bits"] == 8 and s["activation_bits"] == 16 for s in composite["linear_strategies"])
    grouped = daemon.json("quant", "capabilities", "--weight-dtype", "int4", "--group-size", "48")
    assert all("reason" in row for row in grouped["refused"])
    text = daemon.sage("quant", "capabilities", "--weight-dtype", "int8", json_out=False).stdout
    assert "int8_w8a16" in text and "nf4" not in text.split("kv_strategies")[0]
    for flags, word in ((("--weight-dtype", "int5"), "int5"), (("--backend", "abacus"), "abacus"),
                        (("--activation-dtype", "w8a7"), "w8a7")):
        code, error = daemon.fails("quant", "capabilities", *flags)
        assert code == 2 and error["reason"] == "NOTHING_FITS" and word in error["message"]


@pytest.mark.parametrize("columns", [80, 60])
def test_operations_fit_the_terminal(daemon, engine, columns):
    daemon.fails("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int4", "--group-size", "48",
                 "--output", "a-name-that-is-really-too-long-to-fit-into-the-last-column-of-a-terminal")
    code, out = in_terminal(daemon, "operations", "list", columns=columns)
    lines = [ANSI.sub("", line).rstrip("\r") for line in out.split("\n")]
    assert code == 0 and any(line.startswith("calibrate-") and line.endswith("…") for line in lines), out
    assert max(len(line) for line in lines) <= columns and any(line.startswith("start_engine-") for line in lines)
    whole = daemon.sage("operations", "list", json_out=False).stdout  # a pipe gets everything
    assert "into-the-last-column-of-a-terminal" in whole


def test_top_once(daemon, engine):
    stop = threading.Event()

    def load():
        while not stop.is_set():
            daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once", "--max-tokens", "200", "--ignore-eos")
    thread = threading.Thread(target=load)
    thread.start()
    try:
        frames = [daemon.json("top", "--once", "--interval", "1.5") for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    rows = [next(e for e in frame["engines"] if e["engine_id"] == engine) for frame in frames]
    assert max(row["tokens_per_second"] for row in rows) > 10 and all(0 <= row["kv_share"] <= 1 for row in rows)
    assert frames[0]["operations"][0]["kind"]
    text = daemon.sage("top", "--once", "--interval", "0.1", json_out=False).stdout
    assert engine in text and "ENGINE" in text and "KV CACHE" in text and "OPERATION" in text and "\x1b" not in text


def test_top_live(daemon, engine):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    process = subprocess.Popen([BIN / "sage", "top", "--interval", "0.2"], stdin=subprocess.DEVNULL, stdout=child, stderr=child,
                               env={**os.environ, "SAGE_SERVER": daemon.grpc})
    os.close(child)
    out = ""
    while out.count("\x1b[2J") < 3:
        assert select.select([parent], [], [], 30)[0], out
        out += os.read(parent, 65536).decode()
    process.send_signal(2)
    assert process.wait(10) == 130
    os.close(parent)
    frame = ANSI.sub("", out.split("\x1b[2J")[1]).replace("\r", "")
    assert max(len(line) for line in frame.split("\n")) <= 80 and len(frame.strip().split("\n")) <= 11 and engine in frame
