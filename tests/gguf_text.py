"""Copies a GGUF file with one more text in its metadata, such as a chat template for a model that has none:
python3 tests/gguf_text.py SOURCE TARGET KEY VALUE"""
import os
import struct
import sys
from pathlib import Path


def add_gguf_text(source, target, key, value):
    """Copies a GGUF file with one more text in its metadata (layout: ggml's docs/gguf.md)."""
    data = Path(source).read_bytes()
    magic, version = struct.unpack_from("<4sI", data)
    assert magic == b"GGUF"
    size = "I" if version == 1 else "Q"  # version 1 counts with 32 bits
    wide = struct.calcsize(size)
    tensors, pairs = struct.unpack_from("<2" + size, data, 8)
    widths = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def read(kind, at):
        return struct.unpack_from("<" + kind, data, at)[0]

    def skip_text(at):
        return at + wide + read(size, at)

    def skip_value(at, kind):
        if kind == 8:
            return skip_text(at)
        if kind != 9:
            return at + widths[kind]
        inner, count = read("I", at), read(size, at + 4)
        at += 4 + wide
        for _ in range(count):
            at = skip_value(at, inner)
        return at

    at = first = 8 + 2 * wide
    for _ in range(pairs):
        at = skip_text(at)
        at = skip_value(at + 4, read("I", at))
    end = at
    for _ in range(tensors):
        end = skip_text(end)
        end += 4 + wide * read("I", end)  # as many lengths as it has dimensions
        end += 12  # type and offset
    texts = [struct.pack("<" + size, len(t)) + t for t in (key.encode(), value.encode())]
    head = struct.pack("<4sI2" + size, magic, version, tensors, pairs + 1)
    head += data[first:at] + texts[0] + struct.pack("<I", 8) + texts[1] + data[at:end]
    Path(target).write_bytes(head + bytes(-len(head) % 32) + data[end + -end % 32:])


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    partial = f"{sys.argv[2]}.{os.getpid()}"  # renamed into place: whoever has the old file mapped keeps it
    add_gguf_text(sys.argv[1], partial, sys.argv[3], sys.argv[4])
    os.replace(partial, sys.argv[2])
