#!/usr/bin/env python3
"""llama.cpp loads the GGUF files that we write, tokenizes alike and continues texts alike.

Needs the packages xllamacpp (llama.cpp built in) and gguf, and a Hugging Face folder with a tokenizer:

    python3 -m venv venv && venv/bin/pip install xllamacpp gguf numpy
    venv/bin/python tests/interop/llamacpp_reads_ours.py --model path/to/SmolLM2-135M [--formats gguf_q8_0,gguf_q4_k_m]

For every format: `gguf` dequantizes each tensor and the values must be those that our own reader gives (the f32 folder
made from the same GGUF), the prompt's ids must be ours, and the greedy text must agree with ours for most of its length:
llama.cpp rounds activations to 8 bits, we do not, so a near tie may fall the other way late in a text.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "release" / "bin"
PROMPTS = ["The capital of France is", "Once upon a time there was", "Water boils at a temperature of"]
TOKENS = 16


def sage(server, *arguments):
    run = subprocess.run([BIN / "sage", *arguments, "--json", "--server", server], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(run.stdout + run.stderr)
    return json.loads(run.stdout)


def read_safetensors(folder):
    import numpy
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                out[name] = numpy.frombuffer(data[8 + size + begin:8 + size + end], dtype="<f4").reshape(entry["shape"])
    return out


def values_agree(gguf_file, folder, heads, kv_heads):
    """Largest difference between the gguf package's values and our reader's, rotary rows put back."""
    import gguf
    import numpy
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}
    ours, worst, count = read_safetensors(folder), 0.0, 0
    for tensor in gguf.GGUFReader(gguf_file).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[parts[0]] + ".weight"
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(ours[name].shape)
        if len(parts) > 2 and parts[2] in ("attn_q", "attn_k"):
            n = heads if parts[2] == "attn_q" else kv_heads
            values = values.reshape(n, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        worst = max(worst, float(numpy.abs(values - ours[name]).max()))
        count += 1
    return worst, count


def llamacpp(path):
    """For every prompt: ids and greedy text of llama.cpp."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    # One thread: llama.cpp's threads wait for each other by spinning, which a busy machine turns into minutes.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    out = []
    for prompt in PROMPTS:
        answer = server.handle_completions({"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "top_k": 1, "seed": 1,
                                            "return_tokens": True, "ignore_eos": True})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if "error" in answer:
            raise RuntimeError(answer)
        out.append((answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--formats", default="gguf,gguf_q8_0,gguf_q4_0,gguf_q4_1,gguf_q4_k,gguf_q6_k,gguf_q4_k_m")
    arguments = parser.parse_args()
    model = pathlib.Path(arguments.model).resolve()
    config = json.loads((model / "config.json").read_text())
    failed = False
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        port_file = work / "ports.json"
        daemon = subprocess.Popen([BIN / "sagequantd", "--data-dir", work / "data", "--model-root", model.parent, "--grpc-listen",
                                   "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--port-file", port_file],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
        try:
            while not (port_file.exists() and port_file.stat().st_size):
                time.sleep(0.05)
            server = json.loads(port_file.read_text())["grpc"]
            for fmt in arguments.formats.split(","):
                made = sage(server, "quant", "convert", "--artifact", model.name, "--format", fmt, "--output", fmt)
                sage(server, "quant", "convert", "--artifact", fmt, "--format", "f32", "--output", fmt + "-f32")
                folder = work / "data" / "artifacts"
                file = folder / fmt / (fmt + ".gguf")
                worst, count = values_agree(file, folder / (fmt + "-f32"), config["num_attention_heads"],
                                            config.get("num_key_value_heads", config["num_attention_heads"]))
                engine = sage(server, "llm", "engine", "start", fmt)["engine_id"]
                shared, ids_agree = [], True
                for prompt, (text, prompt_tokens) in zip(PROMPTS, llamacpp(file)):
                    ours = sage(server, "llm", "generate", "--engine", engine, "--prompt", prompt, "--max-tokens", str(TOKENS),
                                "--temperature", "0")
                    ids_agree = ids_agree and ours["usage"]["prompt_tokens"] == prompt_tokens
                    mine = ours["choices"][0]["text"]
                    shared.append(len(os.path.commonprefix([mine, text])) / max(1, min(len(text), len(mine))))
                sage(server, "llm", "engine", "stop", engine)
                good = worst == 0 and ids_agree and sum(shared) / len(shared) > 0.5
                failed = failed or not good
                loss = "lossless" if made["lossless"] else f"max difference {made['max_abs_difference']:g}"
                print(f"{'ok  ' if good else 'FAIL'} {fmt:12} {loss}, {count} tensors, largest difference to gguf {worst:g}, "
                      f"prompt ids {'equal' if ids_agree else 'DIFFER'}, greedy text agrees for "
                      f"{100 * sum(shared) / len(shared):.0f}%", flush=True)
        finally:
            daemon.terminate()
            daemon.wait()
    sys.exit(failed)


if __name__ == "__main__":
    main()
