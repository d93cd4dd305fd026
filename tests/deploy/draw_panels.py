"""Draws the panels of a dashboard as Prometheus answers their queries now, into a PNG; run by hand to look at them.

python tests/deploy/draw_panels.py PROMETHEUS_URL OUTPUT.png [BOARD] [SECONDS] - needs matplotlib, which no test does.
"""
import json
import sys
import time

import matplotlib
import requests

matplotlib.use("Agg")
from conftest import DEPLOY  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from test_live import filled  # noqa: E402

FACTORS = {"bytes": (1e6, "MB"), "percentunit": (0.01, "%"), "s": (1e-3, "ms")}


def series(url, query, seconds):
    now = time.time()
    reply = requests.get(url + "/api/v1/query_range", timeout=30,
                         params={"query": filled(query), "start": now - seconds, "end": now, "step": 1}).json()
    return reply["data"]["result"]


def legend(text, labels):
    for key, value in labels.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def main(url, output, board="overview", seconds="60"):
    panels = [p for p in json.loads((DEPLOY / "grafana" / f"{board}.json").read_text())["panels"] if p["type"] in ("timeseries", "stat")]
    rows = (len(panels) + 3) // 4
    figure, axes = pyplot.subplots(rows, 4, figsize=(22, 3.1 * rows), squeeze=False)
    for axis, panel in zip(axes.flat, panels):
        unit = panel["fieldConfig"]["defaults"].get("unit", "short")
        factor, name = FACTORS.get(unit, (1, "" if unit == "short" else unit))
        for target in panel["targets"]:
            for one in series(url, target["expr"], float(seconds)):
                begin = float(one["values"][-1][0])
                values = [(float(t) - begin, float(v) / factor) for t, v in one["values"] if v != "NaN"]
                if values:
                    axis.plot(*zip(*values), linewidth=1.2, label=legend(target.get("legendFormat", ""), one["metric"]))
        axis.set_title(panel["title"] + (f" [{name}]" if name else ""), fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        handles = axis.get_legend_handles_labels()[0]
        if 0 < len(handles) <= 8:
            axis.legend(fontsize=7, loc="upper left")
    for axis in list(axes.flat)[len(panels):]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(output, dpi=70)


if __name__ == "__main__":
    main(*sys.argv[1:])
