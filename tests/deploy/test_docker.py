"""Dockerfiles and the compose file, without a Docker engine: parsed, checked against the tree, their steps run where they can be."""
import json
import re
import subprocess

import pytest
import yaml
from conftest import CHART, DEPLOY, ROOT

DOCKER = ROOT / "docker"
NAMES = ["Dockerfile.cpu", "Dockerfile.cuda"]


def instructions(name):
    """[(instruction, rest)] with continuation lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def last_stage(name):
    steps = instructions(name)
    begin = max(i for i, (word, _) in enumerate(steps) if word == "FROM")
    return steps[begin:]


@pytest.mark.parametrize("name", NAMES)
def test_the_image_is_small_and_not_root(name):
    steps, last = instructions(name), last_stage(name)
    assert {word for word, _ in steps} <= {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL",
                                          "HEALTHCHECK", "ENTRYPOINT"}
    assert sum(word == "FROM" for word, _ in steps) >= 2, "what builds stays behind"
    values = dict(last)
    user = str(yaml.safe_load((CHART / "templates" / "statefulset.yaml").read_text().split("runAsUser: ")[1].split("\n")[0]))
    assert values["USER"] == f"{user}:{user}", "the same user as in the pod"
    assert json.loads(values["ENTRYPOINT"]) == ["/usr/bin/sagequantd"] and values["STOPSIGNAL"] == "SIGTERM"
    assert [rest for word, rest in last if word == "COPY"] == [f"--from=build /src/build/{'cuda' if 'cuda' in name else 'release'}"
                                                               "/sagequant_*.deb /tmp/"]
    assert "tokens" not in str([rest for word, rest in last if word == "ENV"]), "no secret in an image"
    assert "rm -rf" in str(last) and "/etc/sagequant/tokens" in str(last), "the token of the package's installation is not shipped"


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_shell_and_name_what_exists(name):
    for word, rest in instructions(name):
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            for script in re.findall(r"deploy/[\w./-]+", rest):
                assert (ROOT / script).exists(), script
        if word == "COPY" and "--from" not in rest:
            source = rest.split()[0]
            assert (ROOT / source).exists(), source
    # Both variants install and pack by the scripts that tests/run and deploy/install use.
    runs = " ".join(rest for word, rest in instructions(name) if word == "RUN")
    assert "deploy/packages.sh" in runs and "deploy/package " in runs


@pytest.mark.parametrize("name", NAMES)
def test_what_the_image_runs_by_itself_is_refused_without_a_lock(name):
    """The container's environment opens wide addresses: the daemon must ask for a token."""
    environment = {}
    for word, rest in last_stage(name):
        if word == "ENV":
            environment.update(part.split("=", 1) for part in rest.split())
    daemon = ROOT / "build" / "release" / "bin" / "sagequantd"
    run = subprocess.run([daemon, "--check-config"], env={**environment, "SAGE_MODEL_ROOT": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 2 and "beyond loopback" in run.stderr, run.stderr
    health = json.loads(dict(last_stage(name))["HEALTHCHECK"].split("CMD", 1)[1])
    assert health == ["/usr/bin/sagequantd", "--health"]


def test_docker_ignores_what_no_build_needs():
    lines = (ROOT / ".dockerignore").read_text().split()
    assert "build" in lines and ".git" in lines
    assert not any(line in ("deploy", "server", "engine", "client", "proto", "cmake", "tests") for line in lines)


def test_compose_files_meet():
    folder = DEPLOY / "compose"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (folder / source).exists(), volume
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "published on loopback only"
    daemon = compose["services"]["sagequant"]
    assert daemon["read_only"] and daemon["cap_drop"] == ["ALL"]
    drain = int(daemon["environment"]["SAGE_DRAIN_TIMEOUT"].rstrip("s"))
    assert int(daemon["stop_grace_period"].rstrip("s")) >= drain + 15
    assert (folder / daemon["build"]["context"] / daemon["build"]["dockerfile"]).exists()
    sources = yaml.safe_load((folder / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert sources[0]["type"] == "prometheus" and sources[0]["url"] == "http://prometheus:9090"
    scrape = yaml.safe_load((folder / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["sagequant:50552"]
    path = yaml.safe_load((folder / "grafana" / "dashboards.yaml").read_text())["providers"][0]["options"]["path"]
    assert any(volume.split(":")[1] == path for volume in compose["services"]["grafana"]["volumes"])
