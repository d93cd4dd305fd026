"""The strategy that engine/ADDING_A_STRATEGY.md writes: its file and its test are compiled as the tree is, put into the generated table,
and linked with what is built into the unit test, conformance and a daemon that serves it. Nothing else is compiled or touched."""
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Daemon

GUIDE = (ROOT / "engine" / "ADDING_A_STRATEGY.md").read_text()
BUILD = Path(os.environ.get("SAGE_BUILD", ROOT / "build" / "release"))
TABLE = "engine/CMakeFiles/sage_tables.dir/./generated/linear_strategies_table.cc.o"


def shell(line, cwd=BUILD):
    run = subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"{line[:400]}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout


def compile_like(sibling, source, output):
    """With the flags of a file that lies in the same folder of the build."""
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    command, = [each["command"] for each in commands if each["file"].endswith("/" + sibling)]
    shell(f"{re.sub(r' -o .*', '', command)} -o {output} -c {source}")
    return output


def link_like(program, output, replaced, more):
    line = shell(f"ninja -t commands bin/{program}").splitlines()[-1]
    for old, new in replaced.items():
        assert len(re.findall(old, line)) >= 1, (program, old)
        line = re.sub(old, str(new), line)
    line, count = re.subn(rf" -o bin/{program} ", f" {more} -o {output} ", line)
    assert count == 1, line[:300]
    shell(line.split(" && ")[1])
    return output


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The objects: the strategy, its test, and the table that CMake generates from the folder with one file more."""
    folder = tmp_path_factory.mktemp("plugin")
    code = dict(zip(re.findall(r"^## .*: `(.*\.cc)`$", GUIDE, re.M), re.findall(r"^```cpp\n(.*?)^```", GUIDE, re.M | re.S)))
    assert list(code) == ["engine/linear_strategies/sketch_w8a16.cc", "tests/unit/linear_strategies/sketch_w8a16_test.cc"]
    for name, text in code.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    for path in (ROOT / "engine" / "linear_strategies").glob("*.cc"):
        (folder / "engine/linear_strategies" / path.name).symlink_to(path)
    script = folder / "table.cmake"
    script.write_text(f"""include({ROOT}/cmake/SagePlugins.cmake)
file(GLOB files "{folder}/engine/linear_strategies/*.cc")
sage_plugin_table(TABLE {folder}/table.cc HEADER engine/api/linear_strategy.h RECORD LinearStrategyDef NAMESPACE linear_strategies
  ACCESSOR LinearStrategies FILES ${{files}})
""")
    shell(f"cmake -P {script}")
    source, test = (folder / name for name in code)
    return {"folder": folder, "strategy": compile_like("engine/linear_strategies/int8_affine.cc", source, folder / "strategy.o"),
            "table": compile_like("generated/linear_strategies_table.cc", folder / "table.cc", folder / "table.o"),
            "test": compile_like("tests/unit/linear_strategies/packed_linear_test.cc", test, folder / "test.o")}


def test_its_own_test_and_conformance(parts):
    others = r"tests/CMakeFiles/linear_strategies_test\.dir/\S+\.o "
    unit = link_like("linear_strategies_test", parts["folder"] / "unit", {others: "", re.escape(TABLE): parts["table"]},
                     f"{parts['test']} {parts['strategy']}")
    assert "[  PASSED  ] 2 tests" in shell(f"{unit} --gtest_color=no")
    conformance = link_like("conformance_test", parts["folder"] / "conformance", {re.escape(TABLE): parts["table"]}, parts["strategy"])
    assert "[  PASSED  ] 3 tests" in shell(f"{conformance} --gtest_color=no --gtest_filter='LinearConformance.*'")  # all rows of the table


def test_a_daemon_lists_and_serves_it(parts, tmp_path, model_root, monkeypatch):
    (tmp_path / "bin").mkdir()
    link_like("sagequantd", tmp_path / "bin" / "sagequantd", {re.escape(TABLE): parts["table"]}, parts["strategy"])
    (tmp_path / "bin" / "sage").symlink_to(BUILD / "bin" / "sage")
    monkeypatch.setattr("conftest.BIN", tmp_path / "bin")
    daemon = Daemon(tmp_path, model_root)
    try:
        engine = daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s", "--quantization", "sketch_w8a16")
        assert engine["quantization"] == "sketch_w8a16"
        text = daemon.json("llm", "generate", "--engine", "s", "--prompt", "Once upon a time", "--max-tokens", "24", "--temperature", "0")
        assert "there was a" in text["choices"][0]["text"], text
        _, error = daemon.fails("llm", "engine", "start", "stories260K", "--quantization", "no_such")
        assert "sketch_w8a16" in error["message"], error
        _, error = daemon.fails("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "sketch_w8a16", "--group-size", "-1",
                                "--output", "a")
        assert error["reason"] == "UNSUPPORTED_OUTPUT_FORMAT" and error["reason"] in GUIDE, error
    finally:
        daemon.stop()
