"""Writes the seeds of checkpoint_fuzz: config and tensor table (no weights) of one layer of each checkpoint folder.

python3 tests/fuzz/make_checkpoint_seeds.py tests/fuzz/corpus/checkpoint FOLDER...
"""
import json
import pathlib
import struct
import sys

LIMIT = 1 << 18  # bytes of tensors that the target takes
MODULES = ("layers.0.self_attn.q_proj", "layers.0.mlp.down_proj")
KEYS = ("model_type", "quantization_config", "compression_config")


def tensor_table(path: pathlib.Path) -> dict:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    table, total = {}, 0
    for name, tensor in sorted(header.items()):
        if not any(module in name for module in MODULES):
            continue
        size = tensor["data_offsets"][1] - tensor["data_offsets"][0]
        if total + size <= LIMIT:
            total += size
            table[name] = [tensor["dtype"], tensor["shape"]]
    return table


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    fill = bytes((i * 37 + 11) & 127 for i in range(64))
    for folder in map(pathlib.Path, sys.argv[2:]):
        if not (folder / "model.safetensors").exists():
            continue
        config = json.loads((folder / "config.json").read_text())
        document = {"config": {key: config[key] for key in KEYS if key in config},
                    "tensors": tensor_table(folder / "model.safetensors")}
        text = json.dumps(document, separators=(",", ":"))
        (out / folder.name).write_bytes(text.encode() + b"\0" + fill)


if __name__ == "__main__":
    main()
