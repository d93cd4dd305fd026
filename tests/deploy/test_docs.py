"""The commands of deploy/README.md: blocks marked `bash run` are run in order against a daemon; of the others every line is run as far as
it goes without a cluster, root or Docker. deploy/quickstart is run whole, with the model that comes with the tests."""
import os
import re
import shutil
import subprocess

import pytest
from conftest import DEPLOY, ROOT
from scene import Scene


def blocks(mark):
    return re.findall(rf"^```{mark}\n(.*?)^```", (DEPLOY / "README.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    scene = Scene(tmp_path_factory.mktemp("guide"), prometheus=False)
    (scene.folder / "token").write_text("tok-admin\n")
    yield scene
    scene.stop()


def test_commands_of_the_guide(place, tools):
    environment = {
        "PATH": f"{ROOT / 'build' / 'release' / 'bin'}:{tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(place.folder),
        "DATA": str(place.folder / "other"), "MODELS": str(place.folder / "models"), "HTTP": place.http.removeprefix("http://"), "TOKEN": "tok-admin", "SAGE_SERVER": place.grpc,
        "SAGE_TOKEN_FILE": str(place.folder / "token")}
    found = blocks("bash run")
    assert len(found) >= 4 and shutil.which("promtool") and shutil.which("curl")
    for block in found:
        for line in block.strip().splitlines():
            extra = ["--token-file", environment["SAGE_TOKEN_FILE"]] if line.startswith("sage ") else []
            settings = {k: v for k, v in environment.items() if not (line.startswith("sagequantd") and k.startswith("SAGE_"))}
            run = subprocess.run(["bash", "-o", "pipefail", "-c", " ".join([line, *extra])], cwd=ROOT, env=settings, capture_output=True,
                                 text=True, timeout=120)
            assert run.returncode == 0, f"{line}\n{run.stdout[-1500:]}\n{run.stderr[-1500:]}"


@pytest.mark.parametrize("mark", ["bash", "bash run"])
def test_every_block_is_shell_and_names_what_exists(mark):
    for block in blocks(mark):
        subprocess.run(["bash", "-n", "-c", block], check=True)
        for path in re.findall(r"(?<![\w/-])(deploy/[\w./-]+)", block):
            parent = (ROOT / path).parent if "secrets" in path else ROOT / path
            assert parent.exists() or "secrets" in path, path


def test_settings_and_files_of_the_guide_exist():
    guide = (DEPLOY / "README.md").read_text() + (ROOT / "SECURITY.md").read_text()
    for path in re.findall(r"`((?:deploy|docker|server|tests)/[\w./-]+)`", guide):
        assert (ROOT / path).exists(), path
    help_text = subprocess.run([ROOT / "build" / "release" / "bin" / "sagequantd", "--help"], capture_output=True, text=True).stdout
    for key in ("tls_cert", "tls_key", "tls_client_ca", "http_tls", "audit_log", "open_metrics", "drain_delay", "drain_timeout", "log_level", "otlp_endpoint",
                "engines_file", "http_threads", "max_http_connections", "watchdog"):
        assert key in guide and "--" + key.replace("_", "-") in help_text, key


def elsewhere(line):
    """A line of a plain block as it can be run here, or None with nothing to run: it wants root, a cluster or Docker."""
    if line.startswith(("deploy/install", "helm test", "SAGE_MODELS=/srv/models docker compose")):
        return None
    line = line.split(" #")[0]
    if line.startswith("helm install"):
        return line.replace("helm install", "helm template")
    if " apply -k " in line:
        return f"kubectl kustomize {line.split()[-1]}"
    return line + " --dry-run=client -o yaml" if line.startswith("kubectl") else line


def test_the_other_commands_of_the_guide(tools, tmp_path):
    """In a copy of deploy/, so that the secrets they make are nobody's."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets", "models"))
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path)}
    told = {}
    for line in sum((block.strip().splitlines() for block in blocks("bash")), []):
        command = elsewhere(line)
        if command is not None:
            run = subprocess.run(["bash", "-o", "pipefail", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True,
                                 timeout=60)
            assert run.returncode == 0, f"{command}\n{run.stderr[-1500:]}"
            told[line] = run.stdout
    assert len(told) >= 9 and sum("kind: StatefulSet" in text for text in told.values()) == 3
    secret, = [text for text in told.values() if "kind: Secret" in text and "StatefulSet" not in text]
    assert "metrics-token:" in secret and "tokens:" in secret
    for folder in (tmp_path, tmp_path / "deploy/compose/secrets"):
        run = subprocess.run([ROOT / "build/release/bin/sagequantd", "--data-dir", tmp_path / "data", "--model-root", tmp_path,
                              "--token-file", folder / "tokens", "--grpc-listen", "0.0.0.0:0", "--check-config"],
                             capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        roles = [line.split()[1] for line in (folder / "tokens").read_text().splitlines()]
        assert roles == ["admin", "read"] and (folder / "metrics-token").read_text().strip() in (folder / "tokens").read_text()


def test_quickstart(tmp_path):
    """Without a package index it takes the bundled model; a second run finds the daemon; what it prints to copy works."""
    environment = {**os.environ, "SAGE_QUICKSTART_DIR": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}

    def quickstart(*arguments):
        run = subprocess.run([DEPLOY / "quickstart", *arguments], env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
        return run.stdout

    try:
        told = quickstart()
        assert [int(n) for n in re.findall(r"==> (\d)/7", told)] == [1, 2, 3, 4, 5, 6, 7]
        assert "stories260K" in told and re.search(r"^perplexity .* ratio 1\.0", told, re.M) and (tmp_path / "report.html").exists()
        call = re.search(r"(curl http.*?)\n  report:", told, re.S)[1].replace("chat/completions", "completions")
        call = re.sub(r'"messages": \[.*?\]', '"prompt": "Once", "max_tokens": 4', call).replace("curl", "curl -sf")
        run = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0 and '"choices"' in run.stdout, call + run.stdout + run.stderr
        again = quickstart()
        assert "already running" in again and "from the run before" in again and "perplexity" in again
    finally:
        assert quickstart("stop").strip() == "stopped"
