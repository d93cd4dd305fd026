"""The chart and the plain manifests: linted and rendered by Helm, valid against Kubernetes' schemas, hardened, and in step
with the daemon: it accepts the configuration they carry."""
import json
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import CHART, DEPLOY, ROOT, VALUES, render
from schemas import OPERATOR

DAEMON = ROOT / "build" / "release" / "bin" / "sagequantd"


def validate(document):
    if document["kind"] in OPERATOR:
        jsonschema.validate(document, OPERATOR[document["kind"]])
    else:
        kubernetes_validate.validate(document, "1.34", strict=True)


def one(documents, kind, name=None):
    found = [d for d in documents if d["kind"] == kind and (name is None or d["metadata"]["name"] == name)]
    assert len(found) == 1, (kind, name, [d["metadata"]["name"] for d in found])
    return found[0]


def pod_of(documents):
    return one(documents, "StatefulSet")["spec"]["template"]["spec"]


def daemon_config(documents):
    return one(documents, "ConfigMap", "sagequant")["data"]


@pytest.mark.parametrize("name", VALUES)
def test_lint(tools, name):
    command = [tools / "helm", "lint", "--strict", CHART]
    for values in VALUES[name]:
        command += ["-f", CHART / values]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_document_is_valid(rendered):
    for document in rendered:
        validate(document)


def test_pods_are_hardened(rendered):
    for pod in [pod_of(rendered), one(rendered, "Pod")["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert container["resources"]["limits"]["memory"] and container["resources"]["limits"]["cpu"]


def test_the_pod_outlives_its_drain(rendered):
    pod = pod_of(rendered)
    sleep = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    config = yaml.safe_load(daemon_config(rendered)["sagequantd.yaml"])
    assert pod["terminationGracePeriodSeconds"] >= sleep + config["drain_delay"] + config["drain_timeout"] + 10


def test_probes_go_to_open_paths_of_the_http_port(rendered):
    container = pod_of(rendered)["containers"][0]
    tls = yaml.safe_load(daemon_config(rendered)["sagequantd.yaml"]).get("http_tls", False)
    for probe, path in (("startupProbe", "/health/ready"), ("readinessProbe", "/health/ready"), ("livenessProbe", "/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http", "scheme": "HTTPS" if tls else "HTTP"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600, "a large model takes minutes to load"


def test_selectors_meet(rendered):
    labels = one(rendered, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [one(rendered, "StatefulSet")["spec"]["selector"]["matchLabels"]]
    selectors += [d["spec"]["selector"] for d in rendered if d["kind"] == "Service"]
    selectors += [d["spec"]["selector"]["matchLabels"] for d in rendered if d["kind"] == "PodDisruptionBudget"]
    selectors += [d["spec"]["podSelector"]["matchLabels"] for d in rendered if d["kind"] == "NetworkPolicy"]
    for selector in selectors:
        assert selector.items() <= labels.items()
    for monitor in [d for d in rendered if d["kind"] == "ServiceMonitor"]:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [d for d in rendered if d["kind"] == "Service" and wanted <= d["metadata"]["labels"].items()]
        assert len(services) == 1, "each pod is scraped once"
    used = {v["name"] for v in pod_of(rendered)["volumes"]} | {
        c["metadata"]["name"] for c in one(rendered, "StatefulSet")["spec"].get("volumeClaimTemplates", [])}
    assert {m["name"] for m in pod_of(rendered)["containers"][0]["volumeMounts"]} == used


def test_the_daemon_accepts_the_configuration(rendered, tmp_path):
    if not DAEMON.exists():
        pytest.skip("the daemon is not built")
    text = daemon_config(rendered)["sagequantd.yaml"]
    for place in ("data", "models", "etc/sagequant"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        text = text.replace(f"/{place}", str(tmp_path / place))
    for path in re.findall(r"(?:token_file|tls_\w+|engines_file): (\S+)", text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(daemon_config(rendered).get(file.name, "abc admin name=a\n"))
    config = tmp_path / "sagequantd.yaml"
    config.write_text(text)
    run = subprocess.run([DAEMON, "--config", config, "--check-config"], capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr + text


def test_the_gpu_is_asked_for_only_by_gpu_values(tools):
    for name, values in VALUES.items():
        pod = pod_of([d for d in yaml.safe_load_all(render(tools, values).stdout) if d])
        limits = pod["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == ("gpu" in name) == ("runtimeClassName" in pod)
        assert pod["containers"][0]["image"].endswith("-cuda" if "gpu" in name else "-cpu")


@pytest.mark.parametrize("setting,word", [
    ("config.threads=-1", "threads"), ("config.logLevel=loud", "logLevel"), ("replicaCont=2", "replicaCont"),
    ("tls.enabled=true", "existingSecret"), ("image.pullPolicy=Sometimes", "pullPolicy"), ("resources.limits.memory=lots", "memory"),
    ("config.otlpEndpoint=ftp://x", "otlpEndpoint"), ("engines[0].engine_id=x", "model"),
    ("monitoring.prometheusRule.runbookBaseUrl=guide", "runbookBaseUrl"), ("tls.clientCaSecret=ca", "clientCertSecret")])
def test_the_schema_refuses(tools, setting, word):
    run = render(tools, [], "--set", setting)
    assert run.returncode != 0 and word in run.stderr, run.stderr


def documents_of(tools, values, *extra):
    run = render(tools, values, *extra)
    assert run.returncode == 0, run.stderr
    return [d for d in yaml.safe_load_all(run.stdout) if d]


def test_who_must_show_a_certificate_has_one(rendered):
    """Where the daemon demands client certificates, the scraper and the pod of `helm test` have one of the same secret; else neither."""
    demanded = "tls_client_ca" in yaml.safe_load(daemon_config(rendered)["sagequantd.yaml"])
    for monitor in [d for d in rendered if d["kind"] == "ServiceMonitor"]:
        tls = monitor["spec"]["endpoints"][0]["tlsConfig"]
        assert ("cert" in tls) == ("keySecret" in tls) == demanded
        if demanded:
            assert tls["cert"]["secret"] == {"name": "sagequant-client", "key": "tls.crt"}
            assert tls["keySecret"] == {"name": "sagequant-client", "key": "tls.key"}
    pod = one(rendered, "Pod")["spec"]
    flags = dict(a.split("=", 1) for a in pod["containers"][0]["args"] if a.startswith("--"))
    assert ("--cert" in flags) == ("--key" in flags) == demanded
    if demanded:
        mounted = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"]}
        for flag, key in (("--cert", "tls.crt"), ("--key", "tls.key")):
            folder, _, name = flags[flag].rpartition("/")
            assert secrets[mounted[folder]] == "sagequant-client" and name == key
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_client_certificates_want_tls(tools):
    run = render(tools, [], "--set", "tls.clientCaSecret=ca,tls.clientCertSecret=cert")
    assert run.returncode != 0 and "enabled" in run.stderr, run.stderr


@pytest.mark.parametrize("endpoint,port", [("http://otel:14318/v1/traces", 14318), ("http://otel.monitoring", 4318), ("", None)])
def test_spans_pass_the_network_policy(tools, endpoint, port):
    policy = one(documents_of(tools, [], "--set", f"config.otlpEndpoint={endpoint}"), "NetworkPolicy")
    opened = {p["port"] for rule in policy["spec"]["egress"] for p in rule["ports"]}
    assert opened == {53, port} - {None}
    own = documents_of(tools, ["values-production.yaml"])
    assert all("to" in rule for rule in one(own, "NetworkPolicy")["spec"]["egress"][1:]), "an egress of the operator is not widened"


def test_runbooks_become_addresses(tools):
    on = "monitoring.prometheusRule.enabled=true"
    for base, key, begin in (("", "runbook", "deploy/README.md#"), ("https://guide.example/ops", "runbook_url", "https://guide.example/ops#")):
        rule = one(documents_of(tools, [], "--set", f"{on},monitoring.prometheusRule.runbookBaseUrl={base}"), "PrometheusRule")
        validate(rule)
        alerts = [r for group in rule["spec"]["groups"] for r in group["rules"] if "alert" in r]
        assert len(alerts) > 20
        for alert in alerts:
            assert set(alert["annotations"]) == {"summary", key} and alert["annotations"][key].startswith(begin), alert


def test_tokens_are_generated_unless_given(tools):
    own = [d for d in yaml.safe_load_all(render(tools, []).stdout) if d and d["kind"] == "Secret"]
    lines = [line.split() for line in own[0]["stringData"]["tokens"].splitlines()]
    assert [line[1] for line in lines] == ["admin", "generate", "read"] and len({line[0] for line in lines}) == 3
    assert all(len(line[0]) >= 32 for line in lines) and lines[2][0] == own[0]["stringData"]["metrics-token"]
    given = render(tools, [], "--set", "auth.existingSecret=mine").stdout
    assert "kind: Secret" not in given and "secretName: mine" in given


def test_autoscaling_leaves_the_replicas_alone(tools):
    documents = [d for d in yaml.safe_load_all(render(tools, ["values-production.yaml"]).stdout) if d]
    assert "replicas" not in one(documents, "StatefulSet")["spec"]
    scaled = one(documents, "HorizontalPodAutoscaler")["spec"]
    names = {m["pods"]["metric"]["name"] for m in scaled["metrics"]}
    rules = yaml.safe_load((DEPLOY / "prometheus" / "adapter-rules.yaml").read_text())["rules"]
    assert names == {rule["name"]["as"] for rule in rules}, "the adapter serves what the autoscaler asks for"


def test_plain_manifests_are_current(tools):
    """deploy/k8s is the chart's own output: `deploy/generate` writes it."""
    run = subprocess.run([sys.executable, DEPLOY / "generate", "--check", "k8s"], capture_output=True, text=True, env={
        "PATH": f"{tools}:/usr/bin:/bin", "HOME": "/tmp"})
    assert run.returncode == 0, run.stdout + run.stderr
    for path in sorted((DEPLOY / "k8s").glob("*/sagequant.yaml")):
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d]
        for document in documents:
            validate(document)
        assert {"StatefulSet", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"} <= {d["kind"] for d in documents}
        assert "Secret" not in {d["kind"] for d in documents}, "no secret in a committed file"


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_kubectl_reads_the_manifests(tools, name):
    """kubectl's own parser, without a cluster: kustomize builds the folder."""
    run = subprocess.run([tools / "kubectl", "kustomize", DEPLOY / "k8s" / name], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert len([d for d in yaml.safe_load_all(run.stdout) if d]) >= 7


def test_engines_of_the_values_are_start_requests():
    """The daemon refuses unknown fields in its engines file, so the schema must know no others."""
    message = re.search(r"message StartEngineRequest \{.*?^\}", (ROOT / "proto/sage/quant/v1/engine.proto").read_text(), re.M | re.S)[0]
    fields = set(re.findall(r"^  (?:optional )?\w+ (\w+) = \d+", message, re.M))
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["engines"]["items"]["properties"]
    assert set(schema) <= fields, set(schema) - fields


def test_engines_file_matches_the_values(tools):
    documents = [d for d in yaml.safe_load_all(render(tools, ["values-production.yaml"]).stdout) if d]
    assert json.loads(daemon_config(documents)["engines.json"])[0]["engine_id"] == "chat"
