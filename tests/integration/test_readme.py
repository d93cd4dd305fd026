"""The commands of README.md, run in order against a daemon; a small trained model stands in for the one that they name."""
import os
import re
import shutil
import subprocess

import pytest
from conftest import BIN, ROOT, Daemon

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S)
DATASET = "tests/data/quickstart.txt"
# What README says of a choice -> the rows (or words) of RESULTS.md that measured it, newest last.
MEASURED = {
    "8 bit, almost no loss, no data": [r"\| int8_w8a16 g64 \| FIGURE \| FIGURE \| FIGURE \|"],
    "4 bit, best accuracy": [r"\| int4 g64 asym, awq\+gptq \([^|]*\| FIGURE \| FIGURE \| FIGURE \|"],
    "4 bit that every GPTQ or AWQ reader loads": [r"\| int4 g64 asym, awq \([^|]*\| FIGURE \| FIGURE \| FIGURE \|",
                                                   r"\| int4 g64 sym, gptq \(group-aware order\) \| FIGURE \| FIGURE \| FIGURE \|"],
    "4 bit without data": [r"\| nf4_w4a16 \| FIGURE \| FIGURE \| FIGURE \|"],
    "8-bit activations too": [r"\| int8_w8a8 dynamic, smoothquant \| FIGURE \| FIGURE \| FIGURE \|",
                              r"\| fp8_w8a8 dynamic \| FIGURE \| FIGURE \| FIGURE \|"],
    "a smaller KV cache": [r"int8 a token FIGURE", r"fp8_e4m3 KV alone: FIGURE, KL FIGURE"]}
OTHERS_FLAGS = {"--install", "--component", "--preset"}  # cmake's


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_root):
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(model_root / "stories-chat", folder / "models" / "SmolLM2-135M-Instruct")
    daemon = Daemon(folder, folder / "models")
    yield daemon
    daemon.stop()


def shell(daemon, line, may_say=None):
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "SAGE_SERVER": daemon.grpc}
    run = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 or (may_say and may_say in run.stderr), f"{line}\n{run.stdout[-1500:]}\n{run.stderr[-1500:]}"
    return run.stdout


def test_the_worked_session(place):
    session, = (block for block in BLOCKS if block.startswith("$ export SAGE_SERVER"))
    commands = re.findall(r"^\$ (sage .*)$", session, re.M)
    assert len(commands) >= 4
    for command in commands:
        answer = shell(place, command)
        # Every line that the README shows of an answer begins like one of the command's.
        shown = session.split(command + "\n")[1].split("\n\n")[0].splitlines()
        if not command.startswith("sage llm generate"):
            begins = {line.split()[0] for line in answer.splitlines() if line.strip()}
            assert {line.split()[0] for line in shown if line != "..."} <= begins, f"{command}\n{answer}"


def test_the_same_over_http(place):
    block, = (block for block in BLOCKS if block.startswith("curl"))
    for command in block.replace("\\\n", " ").strip().splitlines():
        answer = shell(place, "curl -sf" + command.removeprefix("curl").replace("127.0.0.1:50552", place.http))
        assert '"choices"' in answer or "sage_requests_total" in answer


def test_the_recommended_quantizations(place):
    table = TEXT.split("## Which quantization")[1].split("\n\n")[1]
    rows = re.findall(r"`(--(?:method|weight-dtype) [^`]*)`", table)
    assert len(rows) >= 3
    for number, flags in enumerate(rows):
        # The widths of the small model have no group size in common, and formats of others want multiples of 32.
        flags = flags.replace("--group-size 64", "").replace("--dataset TEXT", "")
        shell(place, f"sage quant calibrate --model SmolLM2-135M-Instruct --output row-{number} --group-size -1 {flags} "
                     f"--dataset {DATASET} --samples 4 --sequence-length 64", may_say="SIZE_NOT_SUPPORTED")


def test_the_accuracy_of_the_table_is_what_was_measured():
    results = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    table = TEXT.split("## Which quantization")[1].split("\n\n")[1]
    told = {cells[1].strip(): re.findall(r"\d\.\d{3,}", cells[4]) for cells in (line.split("|") for line in table.splitlines()[2:])}
    assert {name for name, figures in told.items() if figures} == set(MEASURED)
    for name, patterns in MEASURED.items():
        figures = []
        for pattern in patterns:
            found = re.findall(pattern.replace("FIGURE", r"([01]\.\d{3,})"), results)
            assert found, (name, pattern)
            figures += found[-1] if isinstance(found[-1], tuple) else [found[-1]]
        assert told[name] == figures, name


def test_every_flag_exists():
    words = ("quant calibrate", "quant convert", "quant report", "quant inspect", "llm engine start", "llm engine profile", "llm generate")
    commands = [[BIN / "sagequantd"], *([BIN / "sage", *each.split()] for each in words)]
    known = "".join(subprocess.run([*each, "--help"], capture_output=True, text=True).stdout for each in commands)
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", TEXT)) - OTHERS_FLAGS
    assert {flag for flag in flags if not re.search(re.escape(flag) + r"\b", known)} <= {"--json", "--help", "--require"}


def test_every_path_exists():
    for path in re.findall(r"`((?:deploy|tests|engine|client|proto|docker|cmake)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists(), path
