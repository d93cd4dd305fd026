"""Writes a small model in every format we write, lets transformers load each folder, and compares its likelihood of a fixed text with ours.

  python tests/interop/transformers_reads_ours.py --model MODEL_FOLDER

MODEL_FOLDER: a small Hugging Face folder whose widths are multiples of 64. Needs a Python with torch, transformers and, for the
formats named, compressed-tensors, bitsandbytes or gptqmodel; a format whose package is absent is listed as not run. The release
build must be there.
Exit code 1 when a folder that could be loaded disagrees.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "release" / "bin"
IDS = [1, 40, 30, 20, 10, 50, 60, 31, 22, 13, 45, 3, 8, 19, 77, 5, 61, 2, 90, 14]
# name, package that reads it, calibrate flags, allowed relative difference of the negative log-likelihood
CASES = [
    ("int4-pack", "compressed_tensors", ["--weight-dtype", "int4", "--group-size", "64"], 1e-3),
    ("int8-pack", "compressed_tensors", ["--weight-dtype", "int8", "--group-size", "64"], 1e-3),
    ("int8-channel", "compressed_tensors", ["--weight-dtype", "int8", "--group-size", "-1"], 1e-3),
    ("fp8", "compressed_tensors", ["--weight-dtype", "fp8"], 1e-3),
    # transformers decompresses these and may leave activations unrounded: only the weights must agree.
    ("w8a8", "compressed_tensors", ["--weight-dtype", "int8", "--activation-dtype", "int8", "--group-size", "-1"], 3e-2),
    ("fp8-a8", "compressed_tensors", ["--weight-dtype", "fp8", "--activation-dtype", "fp8"], 3e-2),
    ("nf4", "bitsandbytes", ["--weight-dtype", "nf4"], 1e-2),
    ("fp4", "bitsandbytes", ["--weight-dtype", "fp4"], 1e-2),
    # LLM.int8 rounds activations to 8 bits too.
    ("bnb-int8", "bitsandbytes", ["--weight-dtype", "int8", "--format", "bitsandbytes"], 3e-2),
    ("gptq", "gptqmodel", ["--weight-dtype", "int4", "--group-size", "64", "--format", "gptq"], 1e-2),
    ("awq", "gptqmodel", ["--weight-dtype", "int4", "--group-size", "64", "--asymmetric", "--format", "awq"], 1e-2),
]


def sage(server, *arguments):
    run = subprocess.run([BIN / "sage", *arguments, "--json", "--server", server], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(run.stdout + run.stderr)
    return json.loads(run.stdout)


def theirs(folder):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].float()
    logprobs = torch.log_softmax(logits, -1)
    return -sum(logprobs[i, IDS[i + 1]].item() for i in range(len(IDS) - 1)) / (len(IDS) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    arguments = parser.parse_args()
    model = pathlib.Path(arguments.model).resolve()
    wanted = [case for case in CASES if not arguments.only or case[0] in arguments.only.split(",")]
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        ports = scratch / "ports.json"
        daemon = subprocess.Popen(
            [BIN / "sagequantd", "--data-dir", scratch / "data", "--model-root", model.parent, "--grpc-listen", "127.0.0.1:0",
             "--http-listen", "127.0.0.1:0", "--port-file", ports], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ports.exists():
                time.sleep(0.05)
            server = json.loads(ports.read_text())["grpc"]
            ids = scratch / "ids.json"
            ids.write_text(json.dumps(IDS))
            for name, package, flags, allowed in wanted:
                if importlib.util.find_spec(package) is None:
                    print(f"{name:14} not run: {package} is not installed")
                    continue
                sage(server, "quant", "calibrate", "--model", str(model), "--output", name, *flags)
                engine = sage(server, "llm", "engine", "start", name, "--engine-id", name, "--kv-quant", "f32")["engine_id"]
                score = sage(server, "llm", "score", "--engine", engine, "--ids-file", str(ids))
                ours = score["nll"] / score["scored"]
                try:
                    other = theirs(scratch / "data" / "artifacts" / name)
                except Exception as error:  # what a package cannot load is a result, not a crash of this script
                    print(f"{name:14} NOT LOADED: {type(error).__name__}: {str(error)[:200]}")
                    failed = True
                    continue
                difference = abs(ours - other) / other
                failed |= not difference <= allowed
                verdict = "ok" if difference <= allowed else "DISAGREES"
                print(f"{name:14} ours {ours:.6f}  transformers {other:.6f}  difference {difference:.2e}  {verdict}")
        finally:
            daemon.terminate()
            daemon.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
