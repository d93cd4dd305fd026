#!/usr/bin/env python3
"""What the daemon keeps of memory it no longer needs: fresh, after calibrations, after tokenizing with several folders.

usage: resident.py --model-root DIR --model NAME --tokenizers FOLDER [FOLDER ...] [--bin DIR] [--calibrations 6] [--rest 75]

FOLDERs lie below DIR or are names in it. Prints anonymous and whole resident memory (RssAnon, VmRSS) in MB at each stage; --rest is how
many seconds pass before the last look, when nobody has asked for a tokenizer for a minute.
"""
import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def resident(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return tuple(round(int(re.search(rf"{key}:\s+(\d+)", status).group(1)) / 1024, 1) for key in ("RssAnon", "VmRSS"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-root", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizers", nargs="+", required=True)
    parser.add_argument("--bin", default=str(ROOT / "build" / "release" / "bin"))
    parser.add_argument("--calibrations", type=int, default=6)
    parser.add_argument("--rest", type=int, default=75)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder) / "ports"
        daemon = subprocess.Popen([f"{asked.bin}/sagequantd", "--data-dir", f"{folder}/data", "--model-root", asked.model_root,
                                   "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--port-file", ports],
                                  stderr=subprocess.DEVNULL)
        try:
            while not ports.exists():
                time.sleep(0.1)
            server = json.loads(ports.read_text())["grpc"]

            def sage(*arguments):
                subprocess.run([f"{asked.bin}/sage", *arguments, "--json"], env={**os.environ, "SAGE_SERVER": server}, check=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

            def show(stage):
                print(f"{stage:38} anonymous {resident(daemon.pid)[0]:8} MB, resident {resident(daemon.pid)[1]:8} MB", flush=True)

            show("fresh")
            for i in range(asked.calibrations):
                sage("quant", "calibrate", "--model", asked.model, "--weight-dtype", "int8", "--output", f"a{i}", "--seed", str(i))
            show(f"{asked.calibrations} calibrations")
            time.sleep(8)
            show("8 s later")
            for tokenizer in asked.tokenizers:
                sage("llm", "tokenize", "--model", tokenizer, "--text", "Once upon a time")
            show(f"tokenized with {len(asked.tokenizers)} folders")
            time.sleep(asked.rest)
            show(f"{asked.rest} s later")
        finally:
            daemon.terminate()
            daemon.wait(60)


if __name__ == "__main__":
    main()
