#!/usr/bin/env python3
"""Compiles the CUDA kernels of a configured build with ptxas -v and reports registers, shared memory, spills and occupancy.

tests/cuda_resources.py build/cuda-check [--table FILE]: every .cu of compile_commands.json, each kernel for each target. Exits 1
when a kernel spills, except those listed below with a reason; local arrays that a kernel keeps on purpose are only
shown. The commands are those of the build
(which must have been configured with -DCMAKE_CUDA_FLAGS=-Xptxas=-v), so ccache answers what the build compiled already.
"""
import argparse
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# part of a demangled name -> why it may spill
MAY_SPILL = {}
# part of a demangled name -> bytes of stack that it keeps on purpose, and why
MAY_STACK = {"LinearTile": (256, "the sums of a slice, touched once a part; the registers belong to the product")}
REGISTERS = 65536  # of a multiprocessor
SHARED = {"sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90a": 228}  # KiB of a multiprocessor
WARPS = {"sm_80": 64, "sm_86": 48, "sm_89": 48, "sm_90a": 64}


def compile_one(entry):
    command = entry.get("arguments") or shlex.split(entry["command"])
    run = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True)
    return entry["file"], run.returncode, run.stdout + run.stderr


def parse(text):
    """[{kernel, target, registers, shared, stack, stores, loads}] of ptxas -v."""
    found, current = [], None
    for line in text.split("\n"):
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            current = {"kernel": match[1], "target": match[2], "registers": 0, "shared": 0, "stack": 0, "stores": 0, "loads": 0}
            found.append(current)
        elif current is None:
            continue
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Of a function called by the kernel, or of the kernel itself.
            for key, value in zip(("stack", "stores", "loads"), match.groups()):
                current[key] = max(current[key], int(value))
        elif match := re.search(r"Used (\d+) registers", line):
            current["registers"] = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            current["shared"] = int(shared[1]) if shared else 0
            current = None
    return found


def demangle(names):
    run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = []
    for name in run.stdout.strip().split("\n"):
        name = re.sub(r"^void ", "", name).replace("sage::cuda::", "")
        short.append(re.sub(r"\(\w+\)(?=\d)", "", name[: name.rfind("(")] if "(" in name else name))
    return dict(zip(names, short))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build")
    parser.add_argument("--table", help="write the table as Markdown to this file")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    entries = [e for e in json.loads((Path(args.build) / "compile_commands.json").read_text()) if e["file"].endswith(".cu")]
    if not entries:
        sys.exit(f"{args.build}: no .cu among the compile commands; configure with the cuda preset")
    kernels, failed = [], False
    with ThreadPoolExecutor(args.jobs) as pool:
        for file, code, text in pool.map(compile_one, entries):
            if code != 0:
                print(f"{file}: does not compile\n{text}")
                failed = True
                continue
            rows = parse(text)
            if not rows:
                print(f"{file}: no resource report; configure with -DCMAKE_CUDA_FLAGS=-Xptxas=-v")
                failed = True
            kernels += [dict(row, file=Path(file).name) for row in rows]
    names = demangle(sorted({k["kernel"] for k in kernels})) if kernels else {}
    lines = ["| kernel | target | registers | static shared bytes | warps by registers | local bytes | spills |",
             "|---|---|---|---|---|---|---|"]
    for k in sorted(kernels, key=lambda k: (k["file"], names[k["kernel"]], k["target"])):
        name = names[k["kernel"]]
        warps = min(WARPS.get(k["target"], 64), REGISTERS // (32 * max(8, (k["registers"] + 7) // 8 * 8)))
        cells = [f"`{name}`", k["target"], k["registers"], k["shared"], warps, k["stack"], k["stores"] + k["loads"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        reason = next((r for part, r in MAY_SPILL.items() if part in name), None)
        if (k["stores"] or k["loads"]) and reason is None:
            print(f"{k['file']}: {name} for {k['target']}: {k['stores']} bytes of spill stores, {k['loads']} of loads")
            failed = True
    if args.table:
        Path(args.table).write_text("\n".join(lines) + "\n")
    targets = sorted({k["target"] for k in kernels})
    print(f"cuda: {len(entries)} files, {len(names)} kernels for {', '.join(targets)}: {'FAILED' if failed else 'no spills'}")
    sys.exit(1 if failed else 0)


main()
