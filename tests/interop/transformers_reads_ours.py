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
TEXT = ["--samples", "6", "--sequence-length", "64"]  # of this repository's README
GPTQ = ["--method", "gptq", "--format", "gptq", "--group-size", "64", *TEXT]
STATIC = ["--activation-scheme", "static", *TEXT]
# name, package that reads it, calibrate flags, allowed relative difference of the negative log-likelihood; None = must be refused
CASES = [
    ("int4-pack", "compressed_tensors", ["--weight-dtype", "int4", "--group-size", "64"], 1e-3),
    ("int4-g8", "compressed_tensors", ["--weight-dtype", "int4", "--group-size", "8"], 1e-3),
    ("int8-pack", "compressed_tensors", ["--weight-dtype", "int8", "--group-size", "64"], 1e-3),
    ("int8-channel", "compressed_tensors", ["--weight-dtype", "int8", "--group-size", "-1"], 1e-3),
    ("fp8", "compressed_tensors", ["--weight-dtype", "fp8"], 1e-3),
    # transformers decompresses these and may leave activations unrounded: only the weights must agree.
    ("w8a8", "compressed_tensors", ["--weight-dtype", "int8", "--activation-dtype", "int8", "--group-size", "-1"], 3e-2),
    ("fp8-a8", "compressed_tensors", ["--weight-dtype", "fp8", "--activation-dtype", "fp8"], 3e-2),
    ("int4-asym", "compressed_tensors", ["--weight-dtype", "int4", "--group-size", "64", "--asymmetric"], 1e-3),
    ("int8-asym", "compressed_tensors", ["--weight-dtype", "int8", "--group-size", "-1", "--asymmetric"], 1e-3),
    ("w4a8", "compressed_tensors", ["--weight-dtype", "int4", "--activation-dtype", "int8", "--group-size", "64"], 3e-2),
    ("w8a8-static", "compressed_tensors", ["--weight-dtype", "int8", "--activation-dtype", "int8", *STATIC], 3e-2),
    ("w8a8-static-asym", "compressed_tensors",
     ["--weight-dtype", "int8", "--activation-dtype", "int8", "--activation-asymmetric", *STATIC], 3e-2),
    ("fp8-tensor", "compressed_tensors", ["--weight-dtype", "fp8", "--weight-granularity", "tensor"], 1e-3),
    ("fp8-block", "compressed_tensors", ["--weight-dtype", "fp8", "--weight-granularity", "block"], 1e-3),
    ("fp8-a8-static", "compressed_tensors",
     ["--weight-dtype", "fp8", "--activation-dtype", "fp8", "--weight-granularity", "tensor", *STATIC], 3e-2),
    # compressed-tensors means e4m3 by 8-bit floats: taken for those, e5m2 would be other numbers.
    ("fp8-e5m2", "compressed_tensors", ["--weight-dtype", "fp8", "--fp8-format", "e5m2"], None),
    ("ct-act-order", "compressed_tensors",
     ["--method", "gptq", "--act-order", "--weight-dtype", "int4", "--group-size", "64", *TEXT], 1e-3),
    # Some layers with zero points and others without: transformers 5 takes one scheme for all when it unpacks.
    ("ct-mixed", "compressed_tensors",
     ["--weight-dtype", "int4", "--group-size", "64", "--override", "*.down_proj=bits:8,group_size:-1", "--exclude", "*.v_proj"],
     1e-3),
    ("nf4", "bitsandbytes", ["--weight-dtype", "nf4"], 1e-2),
    ("fp4", "bitsandbytes", ["--weight-dtype", "fp4"], 1e-2),
    # LLM.int8 rounds activations to 8 bits too.
    ("bnb-int8", "bitsandbytes", ["--weight-dtype", "int8", "--format", "bitsandbytes"], 3e-2),
    ("gptq", "gptqmodel", ["--weight-dtype", "int4", "--group-size", "64", "--format", "gptq"], 1e-2),
    ("gptq-asym", "gptqmodel", ["--weight-dtype", "int4", "--group-size", "64", "--format", "gptq", "--asymmetric"], 1e-2),
    ("gptq-8", "gptqmodel", ["--weight-dtype", "int8", "--group-size", "64", "--format", "gptq"], 1e-2),
    ("gptq-3", "gptqmodel", ["--weight-dtype", "int3", "--group-size", "64", "--format", "gptq"], 1e-2),
    ("gptq-2", "gptqmodel", ["--weight-dtype", "int2", "--group-size", "64", "--format", "gptq", "--asymmetric"], 1e-2),
    ("gptq-act-order", "gptqmodel", ["--weight-dtype", "int4", "--act-order", *GPTQ], 1e-2),
    ("gptq-3-act-order", "gptqmodel", ["--weight-dtype", "int3", "--act-order", *GPTQ], 1e-2),
    # transformers reads GPTQ through optimum, which does not know `dynamic` rules: GPTQModel itself loads these.
    ("gptq-mixed", "gptqmodel", ["--weight-dtype", "int4", "--override", "*.down_proj=bits:8", *GPTQ], 1e-2),
    ("gptq-exclude", "gptqmodel", ["--weight-dtype", "int4", "--exclude", "*.k_proj", *GPTQ], 1e-2),
    ("awq-exclude", "gptqmodel",
     ["--weight-dtype", "int4", "--group-size", "64", "--format", "awq", "--exclude", "*.k_proj"], 1e-2),
    ("awq", "gptqmodel", ["--weight-dtype", "int4", "--group-size", "64", "--asymmetric", "--format", "awq"], 1e-2),
]


def sage(server, *arguments):
    run = subprocess.run([BIN / "sage", *arguments, "--json", "--server", server], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(run.stdout + run.stderr)
    return json.loads(run.stdout)


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    if config.get("dynamic"):
        from gptqmodel import GPTQModel
        return GPTQModel.load(str(folder), device="cpu", dtype=torch.float16).model
    options = {}
    zeros = any(not group["weights"]["symmetric"] for group in config.get("config_groups", {}).values())
    if zeros:  # transformers 5 finds no room for packed zero points (nor those of llm-compressor's own files) unless it unpacks them
        from transformers import CompressedTensorsConfig
        options["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **options)


def theirs(folder):
    import torch
    model = load(folder)
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
                    print(f"{name:16} not run: {package} is not installed")
                    continue
                text = ["--dataset", str(ROOT / "README.md")] if "--samples" in flags else []
                sage(server, "quant", "calibrate", "--model", str(model), "--output", name, *flags, *text)
                engine = sage(server, "llm", "engine", "start", name, "--engine-id", name, "--kv-quant", "f32")["engine_id"]
                score = sage(server, "llm", "score", "--engine", engine, "--ids-file", str(ids))
                ours = score["nll"] / score["scored"]
                try:
                    other = theirs(scratch / "data" / "artifacts" / name)
                except Exception as error:  # what a package cannot load is a result, not a crash of this script
                    failed |= allowed is not None
                    verdict = "NOT LOADED" if allowed is not None else "ok, refused"
                    print(f"{name:16} {verdict}: {type(error).__name__}: {str(error)[:200]}")
                    continue
                if allowed is None:
                    print(f"{name:16} LOADED, and should have been refused")
                    failed = True
                    continue
                difference = abs(ours - other) / other
                failed |= not difference <= allowed
                verdict = "ok" if difference <= allowed else "DISAGREES"
                print(f"{name:16} ours {ours:.6f}  transformers {other:.6f}  difference {difference:.2e}  {verdict}")
        finally:
            daemon.terminate()
            daemon.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
