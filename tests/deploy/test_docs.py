"""The commands of deploy/README.md: blocks marked `bash run` are run in order against a daemon; the rest must at least be shell."""
import re
import shutil
import subprocess

import pytest
from conftest import DEPLOY, ROOT
from test_live import Scene


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
