"""Prometheus scrapes a real daemon under a short load: every query of every dashboard and rule finds what it asks for."""
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
import requests
import yaml
from conftest import DEPLOY, ROOT
from test_rules import catalogue, dashboard_queries, rules

BIN = ROOT / "build" / "release" / "bin"
# A query that has no answer on a healthy, short-lived daemon without TLS and without a collector, with the reason.
MAY_BE_EMPTY = {
    "sage_tls_certificate_end_seconds": "the daemon of this test has no certificate",
    "sage_spans_total": "no collector is configured",
    "sage_preemptions_total": "the load fits into the KV pages",
    "sage_prefix_cache": "the prompts of the load fill no KV page",
    "sage_draft": "no engine of the load guesses",
    "sage_activation_cache": "the model is served in floats",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Scene:
    """A daemon with tokens, and Prometheus with the shipped rules scraping it every second."""

    def __init__(self, folder, prometheus=True):
        self.folder, self.processes = folder, []
        models = folder / "models"
        shutil.copytree(ROOT / "tests" / "data" / "stories260K", models / "stories260K")
        (folder / "tokens").write_text("tok-admin admin\ntok-read read\n")
        (folder / "metrics-token").write_text("tok-read")
        self.spawn("daemon.log", BIN / "sagequantd", "--data-dir", folder / "data", "--model-root", models, "--grpc-listen", "127.0.0.1:0",
                   "--http-listen", "127.0.0.1:0", "--port-file", folder / "ports", "--token-file", folder / "tokens")
        self.wait(lambda: (folder / "ports").exists() and (folder / "ports").read_text())
        ports = json.loads((folder / "ports").read_text())
        self.grpc, self.http = ports["grpc"], "http://" + ports["http"]
        (folder / "tokens-admin").write_text("tok-admin\n")
        if not prometheus:
            return
        config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (folder / "rules.yaml").write_text((DEPLOY / "prometheus" / "rules.yaml").read_text().replace("interval: 30s", "interval: 1s"))
        config["rule_files"] = [str(folder / "rules.yaml")]
        config["scrape_configs"][0]["authorization"]["credentials_file"] = str(folder / "metrics-token")
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [ports["http"]]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.spawn("prometheus.log", "prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
                   f"--web.listen-address=127.0.0.1:{port}")
        self.wait(lambda: self.answers("up == 1"))

    def spawn(self, log, *command):
        with open(self.folder / log, "w") as out:
            self.processes.append(subprocess.Popen(list(map(str, command)), stdout=out, stderr=out))

    def wait(self, condition, seconds=60):
        end = time.time() + seconds
        while not condition():
            assert time.time() < end and all(p.poll() is None for p in self.processes), list(self.folder.glob("*.log"))
            time.sleep(0.2)

    def answers(self, query, **extra):
        try:
            answer = requests.get(self.url + "/api/v1/query", params={"query": query, **extra}, timeout=10)
        except requests.ConnectionError:
            return []
        if answer.status_code == 503:  # it is still starting
            return []
        reply = answer.json()
        assert reply["status"] == "success", (query, reply)
        return reply["data"]["result"]

    def sage(self, *arguments):
        run = subprocess.run([BIN / "sage", *arguments, "--json", "--server", self.grpc, "--token-file", self.folder / "tokens-admin"],
                             capture_output=True, text=True, timeout=120)
        return run.returncode

    def load(self, seconds):
        assert self.sage("llm", "engine", "start", "stories260K", "--engine-id", "s", "--max-seqs", "4") == 0
        end = time.time() + seconds
        headers = {"Authorization": "Bearer tok-admin"}

        def client(seed):
            while time.time() < end:
                requests.post(self.http + "/v1/completions", headers=headers, timeout=60, json={
                    "model": "s", "prompt": "Once upon a time", "max_tokens": 48, "seed": seed, "temperature": 1})

        threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for i in range(3):
            assert self.sage("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int8", "--group-size", "-1",
                             "--output", f"a{i}") == 0
        assert self.sage("llm", "engine", "start", "no-such-model") != 0
        requests.get(self.http + "/v1/models", headers={"Authorization": "Bearer guess"}, timeout=5)
        for thread in threads:
            thread.join()

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(30)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (tests/run deploy installs it)")
    instance = Scene(tmp_path_factory.mktemp("scene"))
    try:
        instance.load(12)
        yield instance
    finally:
        instance.stop()


def filled(query):
    return query.replace("$__rate_interval", "30s").replace("$instance", ".*").replace("$engine", ".*")


def may_be_empty(query):
    return any(name in query for name in MAY_BE_EMPTY)


def test_every_panel_shows_something(scene):
    empty = [(board, panel, query) for board, panel, query in dashboard_queries()
             if not scene.answers(filled(query)) and not may_be_empty(query) and "STARTING|STOPPING" not in query]
    assert not empty, empty


def test_labels_that_queries_group_by_exist(scene):
    """`by (x)` over a label that nothing has gives one nameless series: each grouping label must be there."""
    for board, panel, query in dashboard_queries():
        answer = scene.answers(filled(query))
        groups = set(re.findall(r"\w+", " ".join(re.findall(r"sum by \(([^)]*)\)", query)))) - {"le"}
        for series in answer:
            assert groups <= set(series["metric"]), (board, panel, query)


def test_every_metric_of_the_catalogue_is_exported(scene):
    text = requests.get(scene.http + "/metrics", headers={"Authorization": "Bearer tok-read"}, timeout=10).text
    exported = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"^(sage_\w+?)(?:\{| )", text, re.M)}
    assert exported - catalogue() == set(), "not in the catalogue, so without a help text"
    assert {name for name in catalogue() - exported if not may_be_empty(name)} == set(), "in the catalogue, never exported"
    assert "See the engine's metrics" not in text
    promtool = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    complaints = [line for line in promtool.stdout.splitlines() if line]
    assert not complaints, complaints


def test_rules_evaluate_and_nothing_fires_on_a_healthy_daemon(scene):
    def groups_now():
        return requests.get(scene.url + "/api/v1/rules", timeout=10).json()["data"]["groups"]

    scene.wait(lambda: all(rule["health"] != "unknown" for group in groups_now() for rule in group["rules"]))
    groups = groups_now()
    assert sum(len(group["rules"]) for group in groups) == len(rules())
    for group in groups:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
    firing = {alert["labels"]["alertname"] for alert in requests.get(scene.url + "/api/v1/alerts", timeout=10).json()["data"]["alerts"]
              if alert["state"] == "firing"}
    # The load starts an engine that does not exist, on purpose: that is what this alert is for.
    assert firing <= {"SageOperationFailed"}, firing
    for record in ("sage:generated_tokens:rate5m", "sage:queue_seconds:p99_5m", "sage:time_to_first_token_seconds:p99_5m",
                   "sage:inter_token_latency_seconds:p99_5m", "sage:rpc_errors:ratio_rate5m", "sage:rejected_for_load:ratio_rate5m"):
        assert scene.answers(record), record


def test_down_fires_when_the_daemon_is_gone(scene):
    scene.processes[0].kill()
    scene.processes[0].wait()
    deadline = time.time() + 30
    while time.time() < deadline:
        alerts = requests.get(scene.url + "/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        if any(a["labels"]["alertname"] == "SageDown" for a in alerts):
            return
        time.sleep(0.5)
    raise AssertionError("SageDown was not even pending")
