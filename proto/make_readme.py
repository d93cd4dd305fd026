#!/usr/bin/env python3
"""Writes proto/README.md: the text of README.head.md and a reference made from the comments of the .proto files.

`--check` writes nothing and exits 1 when the README is not current, or when a service, call, message, field, enum or value has
no comment (before it, or behind it on its line). Reads the plain style these files are written in; needs nothing but Python.
"""
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = [*(f"sage/quant/v1/{n}.proto" for n in ("quantization", "artifact", "engine", "generation", "report", "operation")),
         "inference/grpc_service.proto", "inference/model_config.proto", "google/rpc/status.proto",
         "google/rpc/error_details.proto", "google/rpc/code.proto"]
FIELD = re.compile(r"(?:(optional|repeated)\s+)?(map<[^>]*>|[\w.]+)\s+(\w+)\s*=\s*(\d+)\s*(?:\[.*\])?;")
RPC = re.compile(r"rpc (\w+)\((stream )?([\w.]+)\) returns \((stream )?([\w.]+)\)\s*(;|\{\s*\})")


class Node:
    def __init__(self, kind, name, comment, parent=None, **more):
        self.kind, self.name, self.comment, self.rows, self.children = kind, name, comment, [], []
        self.more = more
        self.full = f"{parent.full}.{name}" if parent and parent.kind == "message" else name


def parse(path):
    """The file's first comment and its top-level nodes."""
    lines = (HERE / path).read_text().split("\n")
    top, stack, pending, opening = [], [], [], None
    for number, line in enumerate(lines, 1):
        text, _, trailing = line.strip().partition("//")
        text, trailing = text.strip(), trailing.strip()
        if not text:
            if trailing:
                pending.append(trailing)
            elif opening is None or not pending:
                pending = [] if not line.strip() else pending
            continue
        if opening is None:
            opening, pending = " ".join(pending), []
        comment = " ".join(pending) or trailing
        if pending and trailing:
            comment += " " + trailing
        pending = []
        head = re.match(r"(message|enum|service|oneof) (\w+) \{(\})?$", text)
        rpc, field = RPC.match(text), FIELD.match(text)
        value = re.match(r"(\w+) = (\d+);$", text)
        parent = stack[-1] if stack else None
        if head:
            node = Node(head[1], head[2], comment, parent, line=number)
            (parent.children if parent and head[1] != "oneof" else top if not parent else []).append(node)
            if head[1] == "oneof":
                node.rows = parent.rows  # its fields are the message's
                node.more["note"] = comment
            if not head[3]:
                stack.append(node)
        elif text == "}":
            stack.pop()
        elif rpc and parent.kind == "service":
            parent.rows.append((rpc[1], (rpc[2] or "") + rpc[3], (rpc[4] or "") + rpc[5], comment, number))
        elif parent and parent.kind == "enum" and value:
            parent.rows.append((value[1], value[2], comment, number))
        elif field and parent and parent.kind in ("message", "oneof"):
            note = f"one of {parent.name}" if parent.kind == "oneof" else field[1] or ""
            parent.rows.append((field[3], " ".join(x for x in (note, field[2]) if x), field[4], comment, number))
        elif not re.match(r"(syntax|package|import|option|reserved)\b", text):
            sys.exit(f"{path}:{number}: cannot be read: {text}")
    return opening or "", top


def walk(nodes):
    for node in nodes:
        yield node
        yield from walk(node.children)


def cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def reference(problems):
    out = []
    for path in FILES:
        opening, top = parse(path)
        out += [f"\n## {path}\n", opening, ""]
        for node in walk(top):
            if not node.comment and node.kind != "service":
                problems.append(f"{path}:{node.more['line']}: {node.full} has no comment")
            if node.kind == "service":
                out += [f"### {node.name}\n"]
                for name, request, answer, comment, number in node.rows:
                    if not comment:
                        problems.append(f"{path}:{number}: {node.name}.{name} has no comment")
                    out += [f"**{name}**({request}) → {answer}  ", comment, ""]
                continue
            out += [f"#### {node.full}\n", node.comment, ""]
            if not node.rows:
                continue
            if node.kind == "enum":
                out += ["| value | number | |", "|---|---|---|"]
            else:
                out += ["| field | type | number | |", "|---|---|---|---|"]
            for *columns, number in node.rows:
                if not columns[-1]:
                    problems.append(f"{path}:{number}: {node.full}.{columns[0]} has no comment")
                columns[0] = f"`{columns[0]}`"
                out += ["| " + " | ".join(cell(c) if i else c for i, c in enumerate(columns)) + " |"]
            out += [""]
    return "\n".join(out).rstrip() + "\n"


def main():
    problems = []
    text = (HERE / "README.head.md").read_text() + reference(problems)
    if "--check" in sys.argv:
        readme = HERE / "README.md"
        if not readme.exists() or readme.read_text() != text:
            problems.append("proto/README.md: is not current; run proto/make_readme.py")
        print("\n".join(problems), end="\n" if problems else "")
        sys.exit(1 if problems else 0)
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
