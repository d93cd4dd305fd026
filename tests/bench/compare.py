#!/usr/bin/env python3
"""Measures engines of SageQuant, llama.cpp, vLLM's CPU build and transformers on one model, interleaved in one run.

usage: compare.py --model-root DIR --model NAME [--quantizations none,int8,int4] [--gguf FILE ...] [--llama-bench PATH]
                  [--head-quantization int8] [--rounds 5] [--tokens 64] [--prompt 512] [--depth 0] [--streams 16]
                  [--alone] [--load] [--cpu-clock] [--json]

NAME is a Hugging Face folder under DIR (tests/bench/random_model writes such folders and GGUF files of larger shapes); each of
--quantizations is an engine of ours on it, with lm_head in --head-quantization. Each --gguf (a path under DIR) is served by us as it lies
and by llama.cpp: PyPI xllamacpp in this interpreter, which needs a vocabulary in the file, or its own llama-bench, with llama-batched-bench
beside it for streams. transformers (f32) and vLLM take part when this interpreter can import them. Every round measures each contestant
once, in turn, so that a machine whose speed drifts treats all alike; printed are medians and the ratio to the baseline (llama.cpp on the
first GGUF, else transformers), taken round by round.

decode: one stream behind a 16-id prompt. prefill: one prompt of --prompt ids. depth: one stream behind --depth ids. streams: --streams
requests at once, all of their tokens over the wall time. first: time to the first token of a 16-id prompt, in decode steps (ours). --alone
adds the decode steps of our engine without the service (`sage llm engine profile`) as `alone`. --load starts each engine of ours in a
daemon of its own first: seconds until it serves, and its peak resident memory over its weights. Prefix caches are off.

--cpu-clock counts CPU seconds of the processes of ours and of llama-bench instead of time, as the difference to the same run of one token:
with --threads 1 that is the speed on a machine where other programs run beside. Exit 2 for a wrong call.
"""
import argparse
import atexit
import concurrent.futures
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "release" / "bin"
FIGURES = ("decode", "alone", "prefill", "depth", "streams")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-root", required=True)
    parser.add_argument("--model", default="", help="Hugging Face folder under the model root")
    parser.add_argument("--quantizations", default="none,int8,int4")
    parser.add_argument("--gguf", action="append", default=[], help="GGUF file under the model root; may be repeated")
    parser.add_argument("--llama-bench", default="", help="path of llama.cpp's own llama-bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512, help="0 leaves prefill out")
    parser.add_argument("--depth", type=int, default=0, help="0 leaves depth out")
    parser.add_argument("--streams", type=int, default=0, help="0 leaves streams out")
    parser.add_argument("--kv-quant", default="auto")
    parser.add_argument("--head-quantization", default="none", help="lm_head of our engines on --model")
    parser.add_argument("--alone", action="store_true", help="also our engine without the service")
    parser.add_argument("--load", action="store_true", help="also start time and peak memory of our engines")
    parser.add_argument("--cpu-clock", action="store_true", help="tokens a CPU second; for --threads 1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--skip", default="", help="contestants to leave out: transformers,vllm,llama")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model and not args.gguf:
        parser.error("--model or --gguf is needed")
    return args


def ids_of(count, salt):
    return [(31 * i + 7 * salt) % 1000 + 300 for i in range(count)]


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def all_at_once(count, call):
    """Runs call(i) for every i at once; their results and the wall time."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        began = time.perf_counter()
        results = list(pool.map(call, range(count)))
        return results, time.perf_counter() - began


class Daemon:
    """One daemon of ours with an engine for each contestant."""

    def __init__(self, args):
        self.folder = tempfile.TemporaryDirectory()
        ports = Path(self.folder.name) / "ports.json"
        self.process = subprocess.Popen(
            [BIN / "sagequantd", "--data-dir", self.folder.name + "/data", "--model-root", args.model_root, "--grpc-listen",
             "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--threads", str(args.threads), "--port-file", ports],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.process.kill)  # of a run that fails
        while not (ports.exists() and ports.stat().st_size):
            time.sleep(0.05)
        addresses = json.loads(ports.read_text())
        self.server, self.http = addresses["grpc"], "http://" + addresses["http"]

    def call(self, *arguments):
        out = subprocess.run([BIN / "sage", *arguments, "--json", "--server", self.server], capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f"sage {' '.join(arguments)}: {out.stdout}{out.stderr}")
        return json.loads(out.stdout)

    def close(self):
        self.process.terminate()
        self.process.wait()


def load_figures(args, start):
    """Seconds to start and peak memory over weights, in a daemon that does nothing else."""
    daemon = Daemon(args)
    began = time.perf_counter()
    record = daemon.call(*start)
    seconds = time.perf_counter() - began
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    daemon.close()
    return {"start_s": round(seconds, 3), "peak_mb": round(peak / 1e6, 1), "peak_over_weights": round(peak / record["weight_bytes"], 3)}


class Sage:
    def __init__(self, daemon, args, model, quantization):
        self.id = f"{Path(model).stem}-{quantization}"
        self.start = ["llm", "engine", "start", model, "--engine-id", self.id, "--quantization", quantization, "--kv-quant", args.kv_quant,
                      "--no-prefix-cache"]
        if args.model and model == args.model:
            self.start += ["--head-quantization", args.head_quantization]
        self.load = load_figures(args, self.start) if args.load else {}
        self.daemon, self.wants_alone = daemon, args.alone
        self.record = daemon.call(*self.start)
        self.name = f"sage {self.record['quantization']} kv {self.record['kv_quant']}"
        self.megabytes = self.record["weight_bytes"] / 1e6
        self.hash, self.first_steps = "", 0.0

    def generate(self, ids, tokens):
        return self.daemon.call("llm", "generate", "--engine", self.id, "--prompt-ids", ",".join(map(str, ids)), "--max-tokens",
                                str(tokens), "--temperature", "0", "--ignore-eos")

    def cpu_spent(self):
        tasks = Path(f"/proc/{self.daemon.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def cpu_of(self, call):
        began = self.cpu_spent()
        call()
        return self.cpu_spent() - began

    def cpu_figures(self, prompts, prompt, depth, tokens):
        def behind(ids):
            return (tokens - 1) / (self.cpu_of(lambda: self.generate(ids, tokens)) - self.cpu_of(lambda: self.generate(ids, 1)))
        out = {"decode": behind(prompts[0])}
        if prompt:
            out["prefill"] = len(prompt) / self.cpu_of(lambda: self.generate(prompt, 1))
        if depth:
            out["depth"] = behind(depth)
        if len(prompts) > 1:
            seconds = self.cpu_of(lambda: self.streams(prompts, tokens)) - self.cpu_of(lambda: self.streams(prompts, 1))
            out["streams"] = len(prompts) * (tokens - 1) / seconds
        return out

    def decode(self, ids, tokens):
        out = self.generate(ids, tokens)
        self.hash = hashlib.sha256(str(out["choices"][0]["token_ids"]).encode()).hexdigest()[:12]
        step_ms = out["timings"]["decode_ms"] / (tokens - 1)
        self.first_steps = out["timings"]["prefill_ms"] / step_ms
        return 1000 / step_ms

    def alone(self, ids, tokens):
        out = self.daemon.call("llm", "engine", "profile", self.id, "--prompt", str(len(ids)), "--steps", str(tokens))
        return out["decode"]["tokens"] / out["decode"]["seconds"]

    def prefill(self, ids):
        return len(ids) / self.generate(ids, 1)["timings"]["prefill_ms"] * 1000

    def streams(self, prompts, tokens):
        body = {"model": self.id, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        url = self.daemon.http + "/v1/completions"
        results, wall = all_at_once(len(prompts), lambda i: post(url, body | {"prompt": prompts[i]}))
        return sum(r["usage"]["completion_tokens"] for r in results) / wall


class LlamaCpp:
    """llama.cpp's server, in this process."""

    def __init__(self, args, file):
        import xllamacpp
        params = xllamacpp.CommonParams()
        params.model.path = file
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
        params.n_parallel = max(1, args.streams)
        params.n_ctx = max(4096, params.n_parallel * 256)
        params.cache_prompt = False
        params.kv_unified = True
        params.verbosity = -1
        self.server = xllamacpp.Server(params)
        self.url = self.server.listening_address
        self.name, self.megabytes, self.hash = "llama.cpp " + Path(file).stem, os.path.getsize(file) / 1e6, ""

    def generate(self, ids, tokens):
        return post(self.url + "/completion",
                    {"prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False})

    def decode(self, ids, tokens):
        return self.generate(ids, tokens)["timings"]["predicted_per_second"]

    def prefill(self, ids):
        return self.generate(ids, 1)["timings"]["prompt_per_second"]

    def streams(self, prompts, tokens):
        results, wall = all_at_once(len(prompts), lambda i: self.generate(prompts[i], tokens))
        return sum(r["tokens_predicted"] for r in results) / wall


class LlamaBench:
    """llama.cpp's own benchmarks: llama-bench, and llama-batched-bench beside it for many streams."""

    def __init__(self, args, file):
        self.command = [args.llama_bench, "-m", file, "-t", str(args.threads), "-r", "1", "-fa", "1", "-o", "json"]
        self.batched = [Path(args.llama_bench).with_name("llama-batched-bench"), "-m", file, "-t", str(args.threads), "-fa", "on",
                        "--output-format", "jsonl"]
        self.name, self.megabytes, self.hash = "llama-bench " + Path(file).stem, os.path.getsize(file) / 1e6, ""

    def cpu_seconds(self, command, *arguments):
        process = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{command[0]}: exit code {process.returncode}")
        return usage.ru_utime + usage.ru_stime

    def cpu_figures(self, prompts, prompt, depth, tokens):
        def single(p, n, d):
            return self.cpu_seconds([*self.command, "--no-warmup"], "-p", p, "-n", n, "-d", d)
        def batched(n):
            count, length = len(prompts), len(prompts[0])
            return self.cpu_seconds(self.batched, "-c", count * (length + tokens), "-npp", length, "-ntg", n, "-npl", count)
        out = {"decode": (tokens - 1) / (single(0, tokens, 16) - single(0, 1, 16))}
        if prompt:
            out["prefill"] = (len(prompt) - 1) / (single(len(prompt), 0, 0) - single(1, 0, 0))
        if depth:
            out["depth"] = (tokens - 1) / (single(0, tokens, len(depth)) - single(0, 1, len(depth)))
        if len(prompts) > 1:
            out["streams"] = len(prompts) * (tokens - 1) / (batched(tokens) - batched(1))
        return out

    def run(self, *arguments):
        return json.loads(subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=True).stdout)[-1]["avg_ts"]

    def decode(self, ids, tokens):
        return self.run("-p", "0", "-n", str(tokens), "-d", str(len(ids)))

    def prefill(self, ids):
        return self.run("-p", str(len(ids)), "-n", "0")

    def streams(self, prompts, tokens):
        count, length = len(prompts), len(prompts[0])
        asked = {"-c": count * (length + tokens), "-npp": length, "-ntg": tokens, "-npl": count}
        out = subprocess.run([*self.batched, *(str(x) for pair in asked.items() for x in pair)], capture_output=True, text=True,
                             check=True).stdout
        figures = next(json.loads(line) for line in out.splitlines() if line.startswith("{"))
        return count * tokens / figures["t"]  # with the prompts, as ours


class Transformers:
    def __init__(self, folder, threads):
        import torch
        from transformers import AutoModelForCausalLM
        self.torch, self.name, self.hash = torch, "transformers f32", ""
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.megabytes = sum(p.numel() for p in self.model.parameters()) * 4 / 1e6

    def step(self, rows, tokens):
        with self.torch.no_grad():
            cache = self.model(self.torch.tensor(rows), use_cache=True)
            past, last = cache.past_key_values, cache.logits[:, -1:].argmax(-1)
            began = time.perf_counter()
            for _ in range(tokens):
                step = self.model(last, past_key_values=past, use_cache=True)
                past, last = step.past_key_values, step.logits[:, -1:].argmax(-1)
            return len(rows) * tokens / (time.perf_counter() - began)

    def decode(self, ids, tokens):
        return self.step([ids], tokens)

    def streams(self, prompts, tokens):
        return self.step(prompts, tokens)

    def prefill(self, ids):
        with self.torch.no_grad():
            began = time.perf_counter()
            self.model(self.torch.tensor([ids]), logits_to_keep=1)
            return len(ids) / (time.perf_counter() - began)


class Vllm:
    def __init__(self, folder, threads):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
        import vllm
        self.vllm, self.name, self.hash = vllm, "vllm bf16", ""
        # Ids go in and out: models of random weights have no tokenizer.
        self.llm = vllm.LLM(folder, dtype="bfloat16", enable_prefix_caching=False, max_model_len=4096, skip_tokenizer_init=True)
        self.megabytes = 0

    def run(self, prompts, tokens):
        options = self.vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": p} for p in prompts], options, use_tqdm=False)
        return time.perf_counter() - began

    def decode(self, ids, tokens):
        return (tokens - 1) / (self.run([ids], tokens) - self.run([ids], 1))

    def prefill(self, ids):
        return len(ids) / self.run([ids], 1)

    def streams(self, prompts, tokens):
        return len(prompts) * tokens / self.run(prompts, tokens)


def contestants(args, daemon):
    """Peers first, so that the baseline is there; each that cannot take part is named with its reason."""
    skip = set(filter(None, args.skip.split(",")))
    folder = os.path.join(args.model_root, args.model)
    makers = []
    for file in args.gguf:
        path = os.path.join(args.model_root, file)
        if "llama" not in skip:
            makers.append(("xllamacpp", lambda path=path: LlamaCpp(args, path)))
        if args.llama_bench:
            makers.append(("llama-bench", lambda path=path: LlamaBench(args, path)))
    if args.model and "transformers" not in skip:
        makers.append(("transformers", lambda: Transformers(folder, args.threads)))
    if args.model and "vllm" not in skip:
        makers.append(("vllm", lambda: Vllm(folder, args.threads)))
    out = []
    for name, make in makers:
        try:
            out.append(make())
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            print(f"{name} does not take part: {error}", file=sys.stderr)
    out += [Sage(daemon, args, file, "none") for file in args.gguf]
    if args.model:
        out += [Sage(daemon, args, args.model, quantization) for quantization in args.quantizations.split(",")]
    return out


def measure(contestant, args, round_number):
    prompts = [ids_of(16, 16 * round_number + i) for i in range(max(1, args.streams))]
    if args.cpu_clock:
        return contestant.cpu_figures(prompts, ids_of(args.prompt, round_number), ids_of(args.depth, round_number), args.tokens)
    out = {"decode": contestant.decode(prompts[0], args.tokens)}
    if args.prompt:
        out["prefill"] = contestant.prefill(ids_of(args.prompt, round_number))
    if args.depth:
        out["depth"] = contestant.decode(ids_of(args.depth, round_number), args.tokens)
    if getattr(contestant, "wants_alone", False):
        out["alone"] = contestant.alone(prompts[0], args.tokens)
    if hasattr(contestant, "first_steps"):
        out["first"] = contestant.first_steps
    if args.streams and hasattr(contestant, "streams"):
        out["streams"] = contestant.streams(prompts, args.tokens)
    return out


def print_own(rows):
    """What has no counterpart among the peers."""
    for e in rows:
        own = {"first token, decode steps": e.get("first"), "of the engine alone": e.get("decode_over_alone"), "start s": e.get("start_s"),
               "peak memory over weights": e.get("peak_over_weights")}
        text = ", ".join(f"{what} {value:.3g}" for what, value in own.items() if value is not None)
        if text:
            print(f"{e['name']:34.34} {text}")


def main():
    args = parse_arguments()
    daemon = Daemon(args)
    everyone = contestants(args, daemon)
    if args.cpu_clock:
        everyone = [contestant for contestant in everyone if hasattr(contestant, "cpu_figures")]
    rows = [[] for _ in everyone]
    for contestant in everyone:
        contestant.decode(ids_of(16, 999), 4)
    for round_number in range(args.rounds):
        for contestant, row in zip(everyone, rows):
            row.append(measure(contestant, args, round_number))
    daemon.close()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    result = {"cpu": cpu, "threads": args.threads, "model": args.model, "gguf": args.gguf, "rounds": args.rounds,
              "baseline": everyone[0].name, "rows": []}
    for contestant, row in zip(everyone, rows):
        entry = {"name": contestant.name, "megabytes": contestant.megabytes, "hash": contestant.hash, **getattr(contestant, "load", {})}
        for what in FIGURES:
            if what in row[0]:
                entry[what] = statistics.median(r[what] for r in row)
            if what in row[0] and what in rows[0][0]:
                entry[what + "_ratio"] = statistics.median(r[what] / b[what] for r, b in zip(row, rows[0]))
        if "first" in row[0]:
            entry["first"] = statistics.median(r["first"] for r in row)
        if "alone" in row[0]:
            entry["decode_over_alone"] = statistics.median(r["decode"] / r["alone"] for r in row)
        result["rows"].append(entry)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{cpu}, {args.threads} threads, {args.model} {' '.join(args.gguf)}, {args.rounds} rounds, ratios to {everyone[0].name}")
    unit = " t/cpus" if args.cpu_clock else " t/s"
    print(f"{'':34} {'MB':>7}" + "".join(f" {what + unit:>12} {'ratio':>6}" for what in FIGURES if what in rows[0][0]))
    for e in result["rows"]:
        figures = "".join(f" {e.get(what, 0):12.1f} {e.get(what + '_ratio', 0):6.2f}" for what in FIGURES if what in rows[0][0])
        print(f"{e['name']:34.34} {e['megabytes']:7.1f}{figures}  {e['hash']}")
    print_own(result["rows"])
    sys.stdout.flush()
    os._exit(0)  # peers leave threads behind that do not end


if __name__ == "__main__":
    main()
