#!/usr/bin/env python3
"""Checks the rules of the tree that a compiler does not: sizes, purpose comments, include direction, plug-in tests.

Prints one line a violation and exits 1 when there is any. Exceptions are listed here, each with its reason.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for d in ("engine", "server", "client", "tests") for p in (ROOT / d).rglob("*")
           if p.suffix in (".cc", ".h", ".cu", ".cuh", ".py") and not {"__pycache__", "_wire", "build"} & set(p.relative_to(ROOT).parts)]
MAX_FILE, MAX_FUNCTION, MAX_KERNEL = 600, 70, 150
MAX_COLUMNS = {".py": 140}  # everything else: 120

# module of engine/ -> modules it may include besides base and itself (design section 3)
MAY_USE = {
    "base": set(),
    "tensor": set(),
    "quant": {"tensor"},
    "solvers": {"quant", "tensor"},
    "tokenizer": {"tensor"},
    "api": {"quant", "solvers", "tensor", "tokenizer"},
    "decoder": {"api", "tensor"},
    "linear_strategies": {"api", "quant", "tensor"},
    "kv_strategies": {"api", "quant", "tensor"},
    "calibrators": {"api", "quant", "solvers", "tensor"},
    "checkpoint_formats": {"api", "quant", "tensor"},
    "models": {"api", "tensor", "decoder"},
    "backends": {"api", "quant", "tensor"},
    "runtime": {"api", "decoder", "quant", "solvers", "tensor", "tokenizer"},
    "report": {"api", "decoder", "runtime", "quant", "tensor", "tokenizer"},
}
# file (relative) -> why it may be larger
SIZE_EXCEPTIONS = {}

problems = []


def report(path, line, text):
    problems.append(f"{path.relative_to(ROOT)}:{line}: {text}")


def check_text(path, lines):
    first = next((l for l in lines if l.strip() and not l.startswith("#!")), "")
    if not re.match(r'\s*(//|/\*|""")\s*\S+\s+\S+', first):
        report(path, 1, "must open with a sentence that says what the file is for")
    relative = str(path.relative_to(ROOT))
    if len(lines) > MAX_FILE and relative not in SIZE_EXCEPTIONS:
        report(path, len(lines), f"file must be at most {MAX_FILE} lines, got {len(lines)}")
    for number, line in enumerate(lines, 1):
        most = MAX_COLUMNS.get(path.suffix, 120)
        if len(line) > most and "http" not in line and not line.lstrip().startswith('R"'):
            report(path, number, f"line must be at most {most} columns, got {len(line)}")
        if re.search(r"\b(TODO|FIXME|XXX)\b", line) and "tidy.py" not in relative:
            report(path, number, "no TODO without an issue; finish it or file it")
        if "\t" in line and path.suffix != ".py":
            report(path, number, "no tabs")


def check_preprocessor(path, lines):
    parts = path.relative_to(ROOT).parts
    allowed = parts[0] == "engine" and parts[1] in ("backends", "base")
    for number, line in enumerate(lines, 1):
        if re.match(r"\s*#\s*(if|ifdef|ifndef)\b", line) and not allowed:
            report(path, number, "no #if outside engine/backends and engine/base")


def check_includes(path, lines):
    parts = path.relative_to(ROOT).parts
    if parts[0] != "engine" or len(parts) < 3:
        return
    module = parts[1]
    for number, line in enumerate(lines, 1):
        match = re.match(r'#include "engine/(\w+)/', line)
        if match and match[1] not in MAY_USE.get(module, set()) | {module, "base"}:
            report(path, number, f"engine/{module} must not include engine/{match[1]}")
        if re.match(r'#include ["<](proto/|grpc|google/protobuf|server/|client/)', line):
            report(path, number, "the engine knows no wire types")
        plural = {"linear_strategies", "kv_strategies", "calibrators", "checkpoint_formats", "models"}
        if match and module in plural and match[1] == module and path.suffix == ".cc":
            report(path, number, "plug-in folders never include one another")


def check_functions(path, lines):
    limit = MAX_KERNEL if "kernels" in path.parts else MAX_FUNCTION
    start = None
    for number, line in enumerate(lines, 1):
        # Google style: a function's closing brace stands at the indentation its head began with.
        if re.match(r"^(  )?[A-Za-z_~].*\)( const| noexcept| override| final)*( ->.*)? \{$", line) or (
                start is None and re.match(r"^(  )?\S.*\) (const )?(override )?(final )?\{$", line)):
            start = (number, len(line) - len(line.lstrip()))
        elif start and re.match(r"^ *\}", line) and len(line) - len(line.lstrip()) == start[1]:
            if number - start[0] + 1 > limit:
                report(path, start[0], f"function must be at most {limit} lines, got {number - start[0] + 1}")
            start = None


def check_plugins_have_tests():
    # Linear and KV strategies need no mention: tests/conformance runs every row of their generated tables.
    for folder in ("calibrators", "checkpoint_formats", "models"):
        tests = " ".join(p.read_text() for p in (ROOT / "tests").rglob("*_test.cc"))
        for path in sorted((ROOT / "engine" / folder).glob("*.cc")):
            if f'"{path.stem}"' not in tests and path.stem not in tests:
                report(path, 1, "no test names this plug-in")


def check_no_private_names():
    # Nothing that only holds on one machine may be committed.
    pattern = re.compile(r"(/work/(main|shared)|/tmp/(smol|venv|brief))")
    for path in ROOT.rglob("*"):
        if not path.is_file() or any(p in (".git", "build", "__pycache__") for p in path.relative_to(ROOT).parts):
            continue
        if path.name == "tidy.py" or path.stat().st_size > 1 << 20:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            if pattern.search(line):
                report(path, number, "names a path of one machine")


def check_wire_reference():
    run = subprocess.run([sys.executable, str(ROOT / "proto" / "make_readme.py"), "--check"], capture_output=True, text=True)
    problems.extend(run.stdout.splitlines() or ([run.stderr] if run.returncode else []))


for source in sorted(SOURCES):
    if source.is_file():
        content = source.read_text(errors="replace").split("\n")
        check_text(source, content)
        if source.suffix != ".py":
            check_preprocessor(source, content)
            check_includes(source, content)
            check_functions(source, content)
check_plugins_have_tests()
check_no_private_names()
check_wire_reference()
for problem in problems:
    print(problem)
print(f"tidy: {len(SOURCES)} files, {len(problems)} problems")
sys.exit(1 if problems else 0)
