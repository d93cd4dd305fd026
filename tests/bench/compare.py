#!/usr/bin/env python3
"""Measures engines of SageQuant against Hugging Face transformers (f32) on the same model, interleaved in one run.

usage: compare.py --model-root DIR --model NAME [--quantizations none,int8,int4] [--rounds 5] [--tokens 64] [--prompt 512] [--json]

Each round measures every contestant once, in turn, so that a machine whose speed drifts treats all alike; printed are medians
and the ratio to transformers, round by round. transformers takes part when `torch` and `transformers` can be imported and the
model is a Hugging Face folder. Decode is one stream after a 16-token prompt; prefill is one prompt of --prompt ids.
"""
import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "release" / "bin"


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-root", required=True)
    parser.add_argument("--model", required=True, help="path under the model root")
    parser.add_argument("--quantizations", default="none,int8,int4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


class Sage:
    """One daemon with an engine for each quantization."""

    def __init__(self, args):
        self.folder = tempfile.TemporaryDirectory()
        ports = Path(self.folder.name) / "ports.json"
        self.process = subprocess.Popen(
            [BIN / "sagequantd", "--data-dir", self.folder.name + "/data", "--model-root", args.model_root, "--grpc-listen",
             "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--threads", str(args.threads), "--port-file", ports],
            stderr=subprocess.DEVNULL)
        while not (ports.exists() and ports.stat().st_size):
            time.sleep(0.05)
        self.server = json.loads(ports.read_text())["grpc"]

    def call(self, *arguments):
        out = subprocess.run([BIN / "sage", *arguments, "--json", "--server", self.server], capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f"sage {' '.join(arguments)}: {out.stdout}{out.stderr}")
        return json.loads(out.stdout)

    def start(self, model, quantization):
        return self.call("llm", "engine", "start", model, "--engine-id", "bench-" + quantization, "--quantization", quantization,
                         "--no-prefix-cache")

    def generate(self, quantization, ids, tokens):
        return self.call("llm", "generate", "--engine", "bench-" + quantization, "--prompt-ids", ",".join(map(str, ids)),
                         "--max-tokens", str(tokens), "--temperature", "0", "--ignore-eos")

    def close(self):
        self.process.terminate()
        self.process.wait()


class Transformers:
    def __init__(self, folder, threads):
        import torch
        from transformers import AutoModelForCausalLM
        self.torch = torch
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def decode(self, ids, tokens):
        prompt = self.torch.tensor([ids])
        with self.torch.no_grad():
            cache = self.model(prompt, use_cache=True)
            past, last = cache.past_key_values, cache.logits[:, -1:].argmax(-1)
            began = time.perf_counter()
            for _ in range(tokens):
                step = self.model(last, past_key_values=past, use_cache=True)
                past, last = step.past_key_values, step.logits[:, -1:].argmax(-1)
            return tokens / (time.perf_counter() - began)

    def prefill(self, ids):
        with self.torch.no_grad():
            began = time.perf_counter()
            self.model(self.torch.tensor([ids]), logits_to_keep=1)
            return len(ids) / (time.perf_counter() - began)


def main():
    args = parse_arguments()
    short = [(17 * i) % 1000 + 300 for i in range(16)]
    long = [(31 * i) % 1000 + 300 for i in range(args.prompt)]
    sage = Sage(args)
    rows, records = {}, {}
    names = args.quantizations.split(",")
    for name in names:
        records[name] = sage.start(args.model, name)
        sage.generate(name, short, 4)
    baseline = None
    try:
        baseline = Transformers(os.path.join(args.model_root, args.model), args.threads)
        baseline.decode(short, 4)
    except (ImportError, OSError, ValueError) as error:
        print(f"transformers does not take part: {error}", file=sys.stderr)
    for _ in range(args.rounds):
        for name in names:
            out = sage.generate(name, short, args.tokens)
            row = rows.setdefault(name, {"decode": [], "prefill": []})
            row["decode"].append((args.tokens - 1) / out["timings"]["decode_ms"] * 1000)
            row["hash"] = hashlib.sha256(str(out["choices"][0]["token_ids"]).encode()).hexdigest()[:12]
            out = sage.generate(name, long, 1)
            row["prefill"].append(args.prompt / out["timings"]["prefill_ms"] * 1000)
        if baseline:
            row = rows.setdefault("transformers f32", {"decode": [], "prefill": []})
            row["decode"].append(baseline.decode(short, args.tokens))
            row["prefill"].append(baseline.prefill(long))
    sage.close()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    result = {"cpu": cpu, "threads": args.threads, "model": args.model, "rounds": args.rounds, "rows": {}}
    for name, row in rows.items():
        entry = {what: statistics.median(row[what]) for what in ("decode", "prefill")}
        entry["hash"] = row.get("hash", "")
        if name in records:
            entry["quantization"] = records[name]["quantization"]
            entry["weight_mb"] = records[name]["weight_bytes"] / 1e6
        if baseline:
            peer = rows["transformers f32"]
            for what in ("decode", "prefill"):
                entry[what + "_ratio"] = statistics.median(a / b for a, b in zip(row[what], peer[what]))
        result["rows"][name] = entry
    if args.json:
        print(json.dumps(result))
        return
    print(f"{cpu}, {args.threads} threads, {args.model}, {args.rounds} rounds")
    print(f"{'engine':24} {'weights MB':>10} {'decode t/s':>10} {'ratio':>6} {'prefill t/s':>11} {'ratio':>6}  output")
    for name, e in result["rows"].items():
        print(f"{e.get('quantization', name):24} {e.get('weight_mb', 0):10.1f} {e['decode']:10.1f} {e.get('decode_ratio', 0):6.2f} "
              f"{e['prefill']:11.1f} {e.get('prefill_ratio', 0):6.2f}  {e['hash']}")


if __name__ == "__main__":
    main()
