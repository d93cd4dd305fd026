"""A daemon with tokens and a Prometheus that scrapes it every second by the shipped rules, for the live tests and the drawings."""
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import requests
import yaml
from conftest import DEPLOY, ROOT

BIN = ROOT / "build" / "release" / "bin"
MODEL = "stories260K"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def filled(query, window="30s"):
    return query.replace("$__rate_interval", window).replace("$instance", ".*").replace("$engine", ".*")


def shortened(text):
    """The rules with seconds for minutes, and without the floor of free gigabytes, which no disk of a test has; shares and levels stay."""
    text = re.sub(r"for: \d+m", "for: 1s", text).replace("< 1e9", "< 1e6")
    return re.sub(r"\[(\d+)m\]", lambda m: "[5s]" if m[1] == "2" else "[10s]", text)


class Scene:
    """`command` goes before the daemon's own; `tls` names certificates: cert and key of the daemon, ca, and client_cert, client_key."""

    def __init__(self, folder, prometheus=True, flags=(), command=(), tls=None, quick=False):
        self.folder, self.processes, self.tls = folder, [], tls
        models = folder / "models"
        shutil.copytree(ROOT / "tests" / "data" / MODEL, models / MODEL)
        (folder / "tokens").write_text("tok-admin admin\ntok-read read\n")
        (folder / "metrics-token").write_text("tok-read")
        (folder / "tokens-admin").write_text("tok-admin\n")
        (folder / "data").mkdir(exist_ok=True)
        if tls:
            flags = [*flags, "--tls-cert", tls["cert"], "--tls-key", tls["key"], "--tls-client-ca", tls["ca"], "--http-tls"]
        self.spawn("daemon.log", *command, BIN / "sagequantd", "--data-dir", folder / "data", "--model-root", models, "--grpc-listen",
                   "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--port-file", folder / "ports", "--token-file", folder / "tokens", *flags)
        self.wait(lambda: (folder / "ports").exists() and (folder / "ports").read_text())
        ports = json.loads((folder / "ports").read_text())
        self.grpc, self.pid = ports["grpc"], ports["pid"]
        self.http = ("https://" if tls else "http://") + ports["http"]
        if prometheus:
            self.watch(ports["http"], quick)

    def watch(self, target, quick):
        folder, port = self.folder, free_port()
        config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        text = (DEPLOY / "prometheus" / "rules.yaml").read_text().replace("interval: 30s", "interval: 1s")
        (folder / "rules.yaml").write_text(shortened(text) if quick else text)
        config["rule_files"] = [str(folder / "rules.yaml")]
        job = config["scrape_configs"][0]
        job["authorization"]["credentials_file"] = str(folder / "metrics-token")
        job["static_configs"][0]["targets"] = [target]
        if self.tls:
            job["scheme"] = "https"
            job["tls_config"] = {"ca_file": str(self.tls["ca"]), "cert_file": str(self.tls["client_cert"]),
                                 "key_file": str(self.tls["client_key"])}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{port}"
        self.spawn("prometheus.log", "prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
                   f"--web.listen-address=127.0.0.1:{port}")
        self.wait(lambda: self.answers("up == 1"))

    def spawn(self, log, *command):
        with open(self.folder / log, "w") as out:
            self.processes.append(subprocess.Popen(list(map(str, command)), stdout=out, stderr=out))

    def wait(self, condition, seconds=60, alive=True):
        end = time.time() + seconds
        while not condition():
            assert time.time() < end, f"did not happen in time; logs: {list(self.folder.glob('*.log'))}"
            assert not alive or all(p.poll() is None for p in self.processes), list(self.folder.glob("*.log"))
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

    def panel(self, board, title):
        """What a panel shows now, over the last ten seconds: its series, as (labels, number)."""
        panels = json.loads((DEPLOY / "grafana" / f"{board}.json").read_text())["panels"]
        found, = [p for entry in panels for p in [entry, *entry.get("panels", [])] if p["title"] == title]
        return [(series["metric"], float(series["value"][1])) for target in found["targets"]
                for series in self.answers(filled(target["expr"], "10s"))]

    def firing(self):
        alerts = requests.get(self.url + "/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def client_flags(self):
        flags = ["--server", self.grpc, "--token-file", self.folder / "tokens-admin"]
        if self.tls:
            flags += ["--ca", self.tls["ca"], "--cert", self.tls["client_cert"], "--key", self.tls["client_key"]]
        return flags

    def run(self, *arguments):
        return subprocess.run([BIN / "sage", *arguments, "--json", *self.client_flags()], capture_output=True, text=True, timeout=120)

    def sage(self, *arguments):
        return self.run(*arguments).returncode

    def start_sage(self, *arguments):
        command = [BIN / "sage", *arguments, "--json", *self.client_flags()]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def load(self, seconds):
        assert self.sage("llm", "engine", "start", MODEL, "--engine-id", "s", "--max-seqs", "4") == 0
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
            assert self.sage("quant", "calibrate", "--model", MODEL, "--weight-dtype", "int8", "--group-size", "-1",
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
