"""Alert and recording rules: valid, unit-tested, each with a runbook; dashboards: current; both ask only for metrics that exist."""
import json
import re
import subprocess
import sys

import pytest
import yaml
from conftest import CHART, DEPLOY, ROOT

RULES = DEPLOY / "prometheus" / "rules.yaml"


def catalogue():
    return set(re.findall(r'\{"(sage_\w+)",', (ROOT / "server" / "telemetry" / "metrics.cc").read_text()))


def metrics_of(expression):
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"(?<![:\w])sage_\w+", expression)}


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard_queries():
    """(dashboard, panel, expression) of every committed dashboard."""
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        for entry in json.loads(path.read_text())["panels"]:
            for panel in [entry, *entry.get("panels", [])]:
                for target in panel.get("targets", []):
                    yield path.stem, panel["title"], target["expr"]


@pytest.mark.parametrize("command", [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]])
def test_promtool(command):
    run = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_prometheus_configuration():
    run = subprocess.run(["promtool", "check", "config", "--syntax-only", DEPLOY / "compose" / "prometheus.yaml"],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_test_and_a_runbook():
    tested = {test["alertname"] for group in yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yaml").read_text())["tests"]
              for test in group.get("alert_rule_test", []) if test.get("exp_alerts")}
    alerts = [rule for rule in rules() if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == tested
    guide = (DEPLOY / "README.md").read_text()
    titles = [line.lstrip("# ").lower() for line in guide.splitlines() if line.startswith("#")]
    headings = {re.sub(r"[^a-z0-9 -]", "", title).replace(" ", "-") for title in titles}
    for rule in alerts:
        file, anchor = rule["annotations"]["runbook"].split("#")
        assert file == "deploy/README.md" and anchor in headings, rule["alert"]
        assert rule["alert"] in guide, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_rules_and_dashboards_ask_for_metrics_of_the_catalogue():
    known = catalogue()
    for rule in rules():
        assert metrics_of(rule["expr"]) <= known, rule
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert set(re.findall(r"sage:[\w:]+", rule["expr"])) <= recorded, rule
    count = 0
    for board, panel, expression in dashboard_queries():
        assert metrics_of(expression) <= known, (board, panel)
        count += 1
    assert count > 50


def label_values():
    """What the source can put into the labels that rules select by."""
    header = (ROOT / "server" / "refusals.h").read_text()
    source = "".join(path.read_text() for folder in ("server", "engine") for path in sorted((ROOT / folder).rglob("*.cc")))
    lists = [set(re.findall(r'"([A-Z_]+)"', body)) for body in re.findall(r"k(?:Load|Other)Refusals\[\] = \{(.*?)\};", header, re.S)]
    assert len(lists) == 2 and not lists[0] & lists[1]
    codes = set(re.findall(r"\babsl::StatusCode::k([A-Z]\w+)", source))
    states = set(re.findall(r'"([A-Z]{4,})"', source))
    return {"load": lists[0], "reason": lists[0] | lists[1], "state": states,
            "code": {re.sub(r"(?<!^)(?=[A-Z])", "_", code).upper() for code in codes} | {"UNKNOWN", "DATA_LOSS"},
            "result": set(re.findall(r'\{"result", "(\w+)"', source)), "source": source}


def test_rules_ask_for_label_values_that_the_source_makes():
    known = label_values()
    asked = 0
    for rule in rules():
        for label, operator, text in re.findall(r'(reason|state|code|result)(=~|=)"([^"]*)"', rule["expr"]):
            for value in text.split("|") if operator == "=~" else [text]:
                assert value in known[label], (rule.get("alert", rule.get("record")), label, value)
                asked += 1
    assert asked > 10


def test_every_refusal_for_load_is_in_the_rule_and_every_reason_is_known():
    known = label_values()
    rule = next(rule for rule in rules() if rule.get("record") == "sage:rejected_for_load:ratio_rate5m")
    assert set(re.search(r'reason=~"([^"]*)"', rule["expr"])[1].split("|")) == known["load"]
    exhausted = set(re.findall(r'kResourceExhausted,\s*"([A-Z_]+)"', known["source"]))
    assert len(exhausted) > 8 and exhausted <= known["reason"], exhausted - known["reason"]


def test_every_metric_is_shown_and_explained():
    shown = set().union(*(metrics_of(expression) for _, _, expression in dashboard_queries()))
    assert catalogue() - shown == set(), "metrics that no dashboard shows"
    guide = (DEPLOY / "README.md").read_text()
    assert [name for name in sorted(catalogue()) if f"`{name}`" not in guide] == [], "metrics that deploy/README.md does not explain"


def test_generated_files_are_current():
    run = subprocess.run([sys.executable, DEPLOY / "generate", "--check", "dashboards", "chart"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_dashboards_have_no_overlaps_and_unique_ids():
    uids = set()
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        assert board["uid"] not in uids and board["schemaVersion"] >= 36
        uids.add(board["uid"])
        cells = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert (x, y) not in cells and x < 24, (path.name, panel["title"])
                    cells.add((x, y))
    assert (CHART / "files" / "dashboards" / "overview.json").read_text() == (DEPLOY / "grafana" / "overview.json").read_text()


def test_every_method_has_a_role_on_purpose():
    """server/security/tokens.cc names the methods of the lesser roles: each exists, and what only reads is not left to admin."""
    text = (ROOT / "server" / "security" / "tokens.cc").read_text()
    sets = [set(re.findall(r'"(\w+)"', part)) for part in re.findall(r"new std::set<std::string>\{(.*?)\};", text, re.S)]
    assert len(sets) == 2 and not sets[0] & sets[1]
    wire = "".join(path.read_text() for path in [*(ROOT / "proto").rglob("*.proto"), *(ROOT / "server" / "http").glob("*.cc")])
    methods = set(re.findall(r"\brpc (\w+)", wire)) | set(re.findall(r'"http", "(\w+)"', wire))
    methods |= set(sum(re.findall(r'chat \? "(\w+)" : "(\w+)"', wire), ()))
    assert set.union(*sets) <= methods, set.union(*sets) - methods
    reading = {m for m in methods if re.match(r"(List|Get|Watch|Wait)[A-Z]|.*(Metadata|Ready|Live|Index|Statistics)$", m)}
    assert reading <= sets[0], reading - sets[0]
