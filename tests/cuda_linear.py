#!/usr/bin/env python3
"""Compiles the CUDA linear kernels and reports registers, shared memory and occupancy of each for each target, as Markdown.

tests/cuda_linear.py [--out FILE] [--jobs N]: exits 1 when a kernel spills, keeps a stack it should not, does not fit a
multiprocessor as often as its speed needs, or lacks an instruction that makes it fast. Needs nvcc, no device.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "engine" / "backends" / "cuda" / "kernels"
TARGETS = {"80": (64, 164, 163), "86": (48, 100, 99), "89": (48, 100, 99), "90a": (64, 228, 227)}  # warps, KiB, KiB of a block
CODES = ["int4", "table16", "int8", "e4m3", "e5m2", "int4_a8", "int8_a8", "e4m3_a8"]
FOLDS = ["", "+offset", "+token scale"]
NIBBLES, BYTE_ACTIVATIONS = {0, 1, 5}, {5, 6, 7}
# Bytes of local memory that a kernel keeps on purpose (sums of a slice, touched once a part).
STACK = {"LinearTile": 256}
# Blocks that a multiprocessor of an H200 should hold for one or two token tiles.
LEAST_BLOCKS = {("LinearStream", 1): 2, ("LinearStream", 2): 2, ("LinearTile", 0): 1}


def nvcc():
    found = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.access(found, os.X_OK):
        sys.exit("no nvcc")
    return found


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=KERNELS)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stderr


def compile_file(path, folder):
    """[(symbol, target, registers, static shared, stack, spills)], and {symbol: PTX}."""
    gencode = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS]
    flags = [nvcc(), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-I", ROOT, path]
    text = run(flags + gencode + ["-Xptxas=-v", "-c", "-o", folder / (path.stem + ".o")])
    rows, row = [], None
    for line in text.split("\n"):
        if match := re.search(r"entry function '(\S+)' for 'sm_(\w+)'", line):
            row = {"symbol": match[1], "target": match[2], "stack": 0, "spills": 0}
            rows.append(row)
        elif row and (match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            row["stack"], row["spills"] = int(match[1]), int(match[2]) + int(match[3])
        elif row and (match := re.search(r"Used (\d+) registers", line)):
            row["registers"] = int(match[1])
    ptx = folder / (path.stem + ".ptx")
    run(flags + ["-arch=compute_90", "-ptx", "-o", ptx])
    bodies = {m[1]: m[0] for m in re.finditer(r"\.entry (\w+)\(.*?\n}\n", ptx.read_text(), re.S)}
    return rows, bodies


def stage_bytes(code, row_blocks, tiles, record, sums, chunks=1):
    units = 1 if code in NIBBLES else 2
    activations = 512 if code in BYTE_ACTIVATIONS else 1024
    return row_blocks * (4 * units * 512 + chunks * 64 * record) + tiles * activations + (chunks * tiles * 32 if sums else 0)


def describe(symbol):
    """Name, kind, token tiles, threads and dynamic shared bytes (groups of 64 or more inputs, f16 scales)."""
    match = re.search(r"(LinearStream|LinearTile)INS0_4CodeE(\d)E(?:Li(\d)E)?LNS0_4FoldE(\d)E", symbol.replace("ILNS0_4Code", "INS0_4Code"))
    if not match:
        return None
    kind, code, fold = match[1], int(match[2]), int(match[4])
    table = 32768 if code == 1 else 0
    record = 4 if fold == 1 else 2
    if kind == "LinearStream":
        tiles = int(match[3])
        stages = 4 if code in NIBBLES and code != 1 else 3
        ring = 4 * stages * stage_bytes(code, 1, tiles, record, fold > 0)
        return f"{CODES[code]}{FOLDS[fold]}, {tiles * 8} tokens", kind, tiles, 128, 128 + table + max(ring, 4 * tiles * 8 * 68 * 4), code
    stages = 3 if code in NIBBLES and code != 1 else 2
    shared = 128 + table + stages * stage_bytes(code, 4, 8, record, fold > 0)
    return f"{CODES[code]}{FOLDS[fold]}, tiles", kind, 0, 256, shared, code


def wanted(code, kind, body):
    """Instructions that a kernel must hold and does not."""
    mma = "m16n8k32.row.col.s32.s8" if code in (5, 6) else "m16n8k32.row.col.f32.e4m3" if code == 7 else "m16n8k16.row.col.f32.f16"
    steps = 2 if code in BYTE_ACTIVATIONS else 4
    need = {mma: 4 * steps, "cp.async.cg.shared.global.L2::cache_hint": 4, "createpolicy": 1, "cp.async.wait_group": 1}
    if code == 0:
        need["lop3.b32"] = 4 * steps * 4
    if kind == "LinearStream" or code != 1:
        need["ld.shared.v4"] = 4
    return [f"{text} ({body.count(text)} of {count})" for text, count in need.items() if body.count(text) < count]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="write the table to this file instead of standard output")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    problems, lines = [], []
    files = sorted(KERNELS.glob("linear_*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        compiled = list(pool.map(lambda path: compile_file(path, Path(folder)), files))
    table = {}
    for rows, bodies in compiled:
        for row in rows:
            about = describe(row["symbol"])
            allowed = next((bytes_ for name, bytes_ in STACK.items() if name in row["symbol"]), 0)
            if row["spills"] or row["stack"] > allowed:
                problems.append(f"{row['symbol']} sm_{row['target']}: {row['stack']} bytes of stack, {row['spills']} of spills")
            if not about:
                continue
            name, kind, tiles, threads, shared, code = about
            if code == 7 and row["target"] in ("80", "86"):
                continue  # refused there: compiled without its product
            warps, per_sm, per_block = TARGETS[row["target"]]
            by_registers = 65536 // ((row["registers"] + 7) // 8 * 8 * threads)
            blocks = min(by_registers, per_sm * 1024 // (shared + 1024), warps * 32 // threads)
            if shared > per_block * 1024:
                problems.append(f"{name} sm_{row['target']}: {shared} bytes of shared memory do not fit")
            if row["target"] == "90a":
                if blocks < LEAST_BLOCKS[(kind, tiles)]:
                    problems.append(f"{name}: {blocks} blocks a multiprocessor on sm_90a")
                problems += [f"{name}: lacks {what}" for what in wanted(code, kind, bodies.get(row["symbol"], ""))]
            entry = table.setdefault((code, name), {"kind": kind, "shared": shared})
            entry[row["target"]] = f"{row['registers']} / {blocks * threads // 32}"
    heads = " | ".join(f"sm_{t}" for t in TARGETS)
    lines.append(f"| kernel | shared KiB | {heads} |\n|---|---|{'---|' * len(TARGETS)}")
    for (_, name), entry in sorted(table.items()):
        cells = " | ".join(entry.get(t, "refused") for t in TARGETS)
        lines.append(f"| {name} | {entry['shared'] / 1024:.1f} | {cells} |")
    text = "\n".join(lines) + "\n"
    Path(args.out).write_text(text) if args.out else print(text, end="")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"linear kernels: {len(table)} in {len(files)} files, {'FAILED' if problems else 'no spills'}", file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
