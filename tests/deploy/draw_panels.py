"""Draws the dashboards as they look on a daemon under a mixed load with faults, a PNG a board; run by hand to look at them.

python tests/deploy/draw_panels.py FOLDER [SECONDS] - needs prometheus and, what no test does, matplotlib.
"""
import http.server
import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import requests

matplotlib.use("Agg")
from conftest import DEPLOY, ROOT  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from scene import MODEL, Scene, filled, free_port  # noqa: E402
from test_faults import certificate, renew  # noqa: E402

TEXT = ROOT / "tests" / "data" / "quickstart.txt"
SCALES = {"bytes": ((1, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")),
          "s": ((1e-6, "us"), (1e-3, "ms"), (1, "s"), (60, "min"), (3600, "h"), (86400, "days")),
          "percentunit": ((0.01, "%"),), "reqps": ((1, "req/s"),), "short": ((1, ""),)}
CELL = (0.72, 0.36)  # inches of a grid cell of Grafana


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans for a while and then is ill."""
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if time.time() < self.server.well_until else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def start_engine(scene, name, model=MODEL, *flags):
    assert scene.sage("llm", "engine", "start", model, "--engine-id", name, *flags) == 0, (scene.folder / "daemon.log").read_text()[-2000:]


def repeat(end, pause, call):
    def body():
        while time.time() < end:
            call()
            time.sleep(pause)
    thread = threading.Thread(target=body)
    thread.start()
    return thread


def generate(scene, engine, tokens, *more):
    prompt = more or ("--prompt", "Once upon a time")
    return lambda: scene.sage("llm", "generate", "--engine", engine, "--max-tokens", str(tokens), *prompt)


def calibrations(scene, end):
    wanted = (("gptq", "--weight-dtype", "int4", "--samples", "16"), ("awq", "--weight-dtype", "int4", "--samples", "16"),
              ("minmax", "--weight-dtype", "int8"))
    number = 0
    while time.time() < end:
        for method, *flags in wanted:
            if time.time() < end:
                scene.sage("quant", "calibrate", "--model", MODEL, "--method", method, "--group-size", "-1", "--sequence-length", "128",
                           "--dataset", TEXT, "--output", f"{method}-{number}", *flags)
        scene.sage("quant", "report", "--artifact", f"minmax-{number}", "--dataset", TEXT, "--windows", "1", "--window", "256")
        scene.sage("quant", "calibrate", "--model", "no-such-model", "--output", "none")
        number += 1


def mixed_load(scene, seconds):
    """A steady load; in the middle a burst that is too much, and clients that vanish; wrong tokens, failed work, a renewed certificate."""
    end = time.time() + seconds
    start_engine(scene, "chat", MODEL, "--draft-mode", "ngram")
    start_engine(scene, "small", MODEL, "--quantization", "int8_w8a8", "--max-seqs", "6", "--kv-memory", "400kb",
                 "--max-queue-requests", "8")
    long_prompt = TEXT.read_text()[:600]
    wrong = {"Authorization": "Bearer guess"}
    papers = {"verify": str(scene.tls["ca"]), "cert": (str(scene.tls["client_cert"]), str(scene.tls["client_key"]))}
    threads = [repeat(end, 0.3, generate(scene, "chat", 64)), repeat(end, 0.5, generate(scene, "chat", 24, "--prompt", long_prompt)),
               repeat(end, 0.4, generate(scene, "small", 128, "--prompt", long_prompt[:200], "--n", "4", "--ignore-eos")),
               repeat(end, 1.5, lambda: requests.get(scene.http + "/v1/models", headers=wrong, timeout=5, **papers)),
               repeat(end, 2, lambda: scene.sage("llm", "generate", "--engine", "nowhere", "--prompt", "x")),
               threading.Thread(target=calibrations, args=(scene, end))]
    threads[-1].start()
    time.sleep(seconds * 0.4)
    burst = time.time() + seconds * 0.2
    more = [repeat(burst, 0.1, generate(scene, "small", 400, "--prompt", "Once", "--n", "2", "--ignore-eos")) for _ in range(16)]
    renew(scene, 300)
    time.sleep(seconds * 0.2)
    for _ in range(3):
        long = ("llm", "generate", "--engine", "chat", "--prompt", "Once", "--max-tokens", "400", "--n", "8", "--ignore-eos")
        clients = [scene.start_sage(*long) for _ in range(4)]
        time.sleep(1)
        for client in clients:
            client.kill()
            client.wait()
    for thread in [*threads, *more]:
        thread.join()


@dataclass
class View:
    url: str
    begin: float
    end: float


def range_of(view, query):
    reply = requests.get(view.url + "/api/v1/query_range", timeout=30, params={
        "query": filled(query, "10s"), "start": view.begin, "end": view.end, "step": 1}).json()
    assert reply["status"] == "success", (query, reply)
    return reply["data"]["result"]


def legend(text, labels):
    for key, value in labels.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def scale_of(unit, most):
    choices = SCALES[unit]
    return [choice for choice in choices if choice[0] <= most or choice is choices[0]][-1]


def numbers(text):
    return float("nan") if text in ("NaN", "+Inf", "-Inf") else float(text)


def draw_lines(axis, panel, view):
    place = panel["gridPos"]
    lines = [(legend(target.get("legendFormat", ""), one["metric"]), [(float(t), numbers(v)) for t, v in one["values"]])
             for target in panel["targets"] for one in range_of(view, target["expr"])]
    most = max((value for _, values in lines for _, value in values if value == value), default=0)
    factor, name = scale_of(panel["fieldConfig"]["defaults"].get("unit", "short"), most)
    if panel["fieldConfig"]["defaults"]["custom"].get("stacking"):
        moments = sorted({round(t) for _, values in lines for t, _ in values})
        known = [{round(t): v for t, v in values if v == v} for _, values in lines]
        axis.stackplot([t - view.begin for t in moments], *[[k.get(t, 0) / factor for t in moments] for k in known],
                       labels=[label for label, _ in lines], alpha=0.6)
    else:
        for label, values in lines:
            axis.plot([t - view.begin for t, _ in values], [v / factor for _, v in values], linewidth=1.2, label=label)
    if not lines:
        axis.text(0.5, 0.5, "No data", ha="center", va="center", transform=axis.transAxes, color="grey")
    axis.set_ylabel(name, fontsize=9)
    axis.set_xlim(0, view.end - view.begin)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    if lines:
        columns = min(4 if place["w"] > 8 else 2, len(lines))
        axis.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncol=columns, frameon=False)


def draw_value(axis, panel, view):
    axis.axis("off")
    answer = [numbers(one["values"][-1][1]) for target in panel["targets"] for one in range_of(view, target["expr"])]
    factor, name = scale_of(panel["fieldConfig"]["defaults"].get("unit", "short"), answer[0] if answer else 0)
    axis.text(0.5, 0.4, f"{answer[0] / factor:.3g} {name}" if answer else "No data", ha="center", va="center", fontsize=20)


def draw_table(axis, panel, view):
    axis.axis("off")
    rows = [{**one["metric"], "value": one["values"][-1][1]} for target in panel["targets"] for one in range_of(view, target["expr"])]
    heads = sorted(set().union(*rows) - {"__name__", "job"})
    if rows:
        table = axis.table([[row.get(head, "") for head in heads] for row in rows], colLabels=heads, loc="upper center", cellLoc="left")
        table.auto_set_font_size(False)
        table.set_fontsize(9)
        table.auto_set_column_width(range(len(heads)))


def draw_board(view, name, output):
    panels = json.loads((DEPLOY / "grafana" / f"{name}.json").read_text())["panels"]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = pyplot.figure(figsize=(24 * CELL[0], height * CELL[1]))
    for panel in panels:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, 1 - (place["y"] + place["h"]) / height
        if panel["type"] == "row":
            figure.text(0.01, bottom + 0.3 / height, panel["title"], fontsize=12, weight="bold")
            continue
        lines = panel["type"] == "timeseries"
        axis = figure.add_axes([left + 0.035, bottom + (2.1 if lines else 0.2) / height, place["w"] / 24 - 0.05,
                                (place["h"] - (3.3 if lines else 1.4)) / height])
        axis.set_title(panel["title"], fontsize=11)
        {"timeseries": draw_lines, "stat": draw_value, "table": draw_table}[panel["type"]](axis, panel, view)
    figure.savefig(output, dpi=64)
    pyplot.close(figure)


def main(folder, seconds="100"):
    seconds = float(seconds)
    Path(folder).mkdir(parents=True, exist_ok=True)
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Collector)
    collector.well_until = time.time() + 10 + seconds * 0.7
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        authority = certificate(place, "authority", 400)
        (key, pem), (client_key, client_pem) = (certificate(place, name, 30, authority) for name in ("server", "client"))
        (place / "scene").mkdir()
        scene = Scene(place / "scene", flags=["--otlp-endpoint", f"http://127.0.0.1:{collector.server_port}"], tls={
            "cert": pem, "key": key, "ca": authority[1], "client_cert": client_pem, "client_key": client_key})
        scene.authority = authority
        began = time.time()
        try:
            mixed_load(scene, seconds)
            view = View(scene.url, began, began + seconds)
            for path in sorted((DEPLOY / "grafana").glob("*.json")):
                draw_board(view, path.stem, Path(folder) / f"{path.stem}.png")
        finally:
            scene.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
