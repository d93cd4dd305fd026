"""Writes the small seeds of the containers, vocabularies, templates and datasets: valid files of every shape that the
targets' parsers tell apart. They are made here, so nothing in them is anybody's.

python3 tests/fuzz/make_seeds.py tests/fuzz/corpus
"""
import json
import struct
import sys
from pathlib import Path

# GGUF value types and ggml tensor types: (number, struct code) and (number, elements a block, bytes a block).
VALUES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"),
          "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
BLOCKS = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
          "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
          "Q6_K": (14, 256, 210), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136), "BF16": (30, 1, 2)}


def gguf_text(text, wide):
    raw = text.encode()
    return struct.pack("<" + wide, len(raw)) + raw


def gguf_value(kind, value, wide):
    if kind == "text":
        return struct.pack("<I", 8) + gguf_text(value, wide)
    if kind.startswith("list of "):
        inner = kind.removeprefix("list of ")
        body = b"".join(gguf_value(inner, v, wide)[4:] for v in value)
        number = 8 if inner == "text" else 9 if inner.startswith("list of ") else VALUES[inner][0]
        return struct.pack("<II" + wide, 9, number, len(value)) + body
    number, code = VALUES[kind]
    return struct.pack("<I" + code, number, value)


def gguf(version, pairs, tensors, alignment=32):
    wide = "I" if version == 1 else "Q"
    head = struct.pack("<4sI2" + wide, b"GGUF", version, len(tensors), len(pairs))
    for key, kind, value in pairs:
        head += gguf_text(key, wide) + gguf_value(kind, value, wide)
    data = b""
    for name, kind, shape in tensors:
        number, elements, size = BLOCKS[kind]
        count = 1
        for length in shape:
            count *= length
        head += gguf_text(name, wide) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<" + wide, n) for n in shape)
        head += struct.pack("<IQ", number, len(data))
        bytes_ = count // elements * size
        data += bytes(i * 7 % 256 for i in range(bytes_))
        data += bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def gguf_seeds():
    words = [("tokenizer.ggml.model", "text", "gpt2"), ("tokenizer.ggml.tokens", "list of text", ["a", "b", "ab", "Ġc", "<|end|>"]),
             ("tokenizer.ggml.token_type", "list of i32", [1, 1, 1, 1, 3]), ("tokenizer.ggml.merges", "list of text", ["a b"])]
    every = [(f"test.{kind}", kind, 1) for kind in VALUES]
    out = {f"version{v}": gguf(v, every + [("general.name", "text", "ä")], [("output_norm.weight", "F32", [8])]) for v in (1, 2, 3)}
    out["vocabulary"] = gguf(3, words + [("tokenizer.chat_template", "text", "{{ messages }}")], [])
    out["alignment"] = gguf(3, [("general.alignment", "u32", 64)], [("a", "F16", [3, 5]), ("b", "BF16", [2, 2, 2])], 64)
    out["nested"] = gguf(3, [("l", "list of list of u8", [[1, 2], [], [3]]), ("empty", "list of text", [])], [])
    out["blocks"] = gguf(3, [("general.architecture", "text", "llama"), ("general.quantization_version", "u32", 2)],
                         [(f"blk.{i}.attn_q.weight", kind, [256, 1]) for i, kind in enumerate(BLOCKS)])
    return out


def safetensors(table, metadata=None, pad=0):
    """name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, size) in table.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(at))


def safetensors_seeds():
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
    out = {"dtypes": safetensors({name.lower(): (name, [2, 3], 6 * size) for name, size in sizes.items()})}
    out["metadata"] = safetensors({"w": ("F32", [1], 4)}, {"format": "pt", "ä": "\U0001f600"}, pad=5)
    out["shapes"] = safetensors({"scalar": ("F32", [], 4), "empty": ("F32", [0, 7], 0), "deep": ("U8", [1, 1, 2, 1, 2], 4)})
    out["nothing"] = safetensors({})
    layer = {f"model.layers.0.mlp.{n}_proj.{part}": (dtype, shape, size) for n in ("gate", "up") for part, dtype, shape, size in
             (("weight_packed", "I32", [2, 4], 32), ("weight_scale", "BF16", [2, 1], 4), ("weight_shape", "I64", [2], 16))}
    out["packed"] = safetensors(layer)
    return out


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece(kind, pieces, normalizer=b"", trainer=b""):
    """ModelProto of sentencepiece_model.proto: pieces (1), trainer_spec (2), normalizer_spec (3)."""
    out = b"".join(field(1, field(1, text.encode()) + field(2, float(score)) + (field(3, sort) if sort != 1 else b""))
                   for text, score, sort in pieces)
    return out + field(2, field(3, kind) + trainer) + field(3, normalizer)


def sentencepiece_seeds():
    control = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
    bytes_ = [(f"<0x{b:02X}>", 0, 6) for b in range(256)]
    letters = [(c, -i, 1) for i, c in enumerate("▁Helowrd")]
    merged = [("▁He", -1, 1), ("ll", -2, 1), ("llo", -3, 1), ("▁w", -4, 1)]
    llama2c = struct.pack("<I", 6) + b"".join(struct.pack("<fI", -i, len(t)) + t for i, t in enumerate(
        [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256)), b"He", b"l", b"o", "ä".encode()]))
    return {"unigram": sentencepiece(1, control + letters + merged),
            "bytes": sentencepiece(2, control + bytes_ + letters + merged, trainer=field(35, 1)),
            "user": sentencepiece(2, control + letters + [("<tool>", 0, 4), ("unused", 0, 5)], field(3, 0) + field(4, 0)),
            "identity": sentencepiece(1, control + letters, field(1, b"identity") + field(3, 1) + field(5, 1)),
            "word": sentencepiece(3, control + letters), "char": sentencepiece(4, control + letters),
            "llama2c": llama2c}


TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "alternate": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
                 "{{ raise_exception('roles must alternate') }}{% endif %}[INST] {{ m.content }} [/INST]{% endfor %}",
    "tools": "{%- if tools is defined and tools %}{%- for t in tools %}{{ t.function | tojson(indent=2) }}{% endfor %}{% endif %}"
             "{%- set ns = namespace(last=-1) %}{%- for m in messages[::-1] %}{% if m.role == 'user' and ns.last < 0 %}"
             "{% set ns.last = (messages | length - 1) - loop.index0 %}{% endif %}{% endfor %}{{ ns.last }}",
    "macro": "{% macro show(x, sep=', ') -%}{{ x | join(sep) }}{%- endmacro %}{{ show(messages | map(attribute='role') | list) }}"
             "{{ show([1, 2.5, none, true], sep='-') | upper }}{% call(y) show([1]) %}{{ y }}{% endcall %}",
    "filters": "{{ 'Ab c' | lower | replace('b', 'x') | capitalize }}{{ [3, 1, 2] | sort | first }}{{ {'a': 1}.items() | list }}"
               "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ '%s-%d' | format('a', 3) }}{{ 7 // 2 ** 2 % 3 }}",
    "control": "{% for i in range(5) if i %}{% if loop.first %}{% continue %}{% elif loop.last %}{% break %}{% else %}{{ i }}{% endif %}"
               "{% else %}none{% endfor %}{# note #}{% raw %}{{ raw }}{% endraw %}{% set a, b = 1, 2 %}{{ a if b is odd else ~ b }}",
    "slices": "{{ messages[0]['content'][1:-1:2] }}{{ 'abc'[-1] }}{{ (1, 2)[0] }}{{ 'a' in 'abc' and not 'b' not in 'b' }}"
              "{{ 'x'.split(',') }}{{ '  y '.strip() }}{{ 'z' ~ 1 ~ none }}{{ messages is iterable }}{{ q is defined }}",
    "time": "{{ strftime_now('%d %b %Y') }}{% generation %}{{ messages[-1].content }}{% endgeneration %}",
}
CONTEXTS = [{"messages": [{"role": "user", "content": "Hi ä"}], "add_generation_prompt": True},
            {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Rain?"},
                          {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1]}}}]}],
             "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "bos_token": "<s>"}]


def template_seeds():
    return {f"{name}-{i}": text.encode() + b"\0" + json.dumps(context).encode()
            for name, text in TEMPLATES.items() for i, context in enumerate(CONTEXTS)}


def dataset_seeds():
    """The first byte chooses the name and the field (see dataset_fuzz.cc): even = .jsonl, a multiple of 3 = field "body"."""
    chat = {"messages": CONTEXTS[1]["messages"], "tools": []}

    def lines(*rows):
        return "\n".join(json.dumps(r) for r in rows).encode()
    return {"text": b"\x01One line.\n\nAnother \xc3\xa4.\r\n", "jsonl": b"\x02" + lines({"text": "a"}, {"text": "b", "id": 1}),
            "body": b"\x00" + lines({"body": "a", "text": "b"}), "ids": b"\x04" + lines({"ids": [1, 2, 3]}, {"ids": []}),
            "messages": b"\x02" + lines(chat, {"text": ""}), "strings": b"\x02" + lines("a", "b"),
            "blank": b"\x02\n\n" + lines({"text": "a"}) + b"\n\n", "broken": b"\x02" + lines({"text": "a"}) + b"\n{\"text\": ",
            "mark": b"\x01\xef\xbb\xbftext", "wrong": b"\x02" + lines({"text": 7}, {"other": "x"}, [1])}


def main():
    out = Path(sys.argv[1])
    for folder, seeds in {"gguf": gguf_seeds(), "safetensors": safetensors_seeds(), "sentencepiece": sentencepiece_seeds(),
                          "chat_template": template_seeds(), "dataset": dataset_seeds()}.items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (out / folder / f"made-{name}").write_bytes(content)


if __name__ == "__main__":
    main()
