"""Prometheus scrapes a real daemon under a short load: every query of every dashboard and rule finds what it asks for."""
import re
import shutil
import subprocess
import time

import pytest
import requests
from scene import Scene, filled
from test_rules import catalogue, dashboard_queries, rules

# A query that has no answer on a healthy, short-lived daemon without TLS and without a collector, with the reason.
MAY_BE_EMPTY = {
    "sage_tls_certificate_end_seconds": "the daemon of this test has no certificate",
    "sage_tls_client_ca_end_seconds": "and no authority",
    "sage_spans_total": "no collector is configured",
    "sage_preemptions_total": "the load fits into the KV pages",
    "sage_prefix_cache": "the prompts of the load fill no KV page",
    "sage_draft": "no engine of the load guesses",
    "sage_activation_cache": "the model is served in floats",
}


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


def may_be_empty(query):
    return any(name in query for name in MAY_BE_EMPTY)


def test_every_panel_shows_something(scene):
    empty = [(board, panel, query) for board, panel, query in dashboard_queries()
             if not scene.answers(filled(query)) and not may_be_empty(query)]
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
