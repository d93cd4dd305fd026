"""The service unit, `cmake --install` and the .deb: what is in them, that systemd accepts it, and that the daemon runs from it."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess

import pytest
from conftest import DEPLOY, ROOT

BUILD = ROOT / "build" / "release"
FILES = ("bin/sagequantd", "bin/sage", "bin/sage-dev", "lib/systemd/system/sagequantd.service", "share/sagequant/prometheus/rules.yaml",
         "share/sagequant/grafana/overview.json", "share/doc/sagequant/operations.md")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The extracted .deb, made by the script that images and machines use."""
    run = subprocess.run([DEPLOY / "package", "release"], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    package = ROOT / run.stdout.strip().splitlines()[-1]
    folder = tmp_path_factory.mktemp("deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    subprocess.run(["dpkg-deb", "-e", package, folder / "DEBIAN"], check=True)
    return folder


def test_deb_has_everything(tree):
    for file in FILES:
        assert (tree / "usr" / file).exists(), file
    assert (tree / "etc/sagequant/sagequantd.yaml").exists()
    control = (tree / "DEBIAN/control").read_text()
    assert "Package: sagequant\n" in control and re.search(r"Depends:.*libgrpc\+\+", control), control
    assert "-dev" not in re.search(r"Depends:.*", control)[0], "what runs needs no headers"
    assert "/etc/sagequant/sagequantd.yaml" in (tree / "DEBIAN/conffiles").read_text()
    for script in ("postinst", "prerm", "postrm"):
        assert os.access(tree / "DEBIAN" / script, os.X_OK)
        subprocess.run(["sh", "-n", tree / "DEBIAN" / script], check=True)
    assert not list(tree.rglob("*_test")) and not list(tree.rglob("*.a"))


def test_postinst_makes_a_token_once(tree, tmp_path):
    script = (tree / "DEBIAN/postinst").read_text().replace("/etc/sagequant", str(tmp_path)).replace("/run/systemd", str(tmp_path / "no"))
    script = script.replace("/srv/models", str(tmp_path / "models"))
    for _ in range(2):
        subprocess.run(["sh", "-c", script, "postinst", "configure"], check=True)
        tokens = (tmp_path / "tokens").read_text()
    subprocess.run(["sh", "-c", script, "postinst", "configure"], check=True)
    assert (tmp_path / "tokens").read_text() == tokens
    assert re.search(r"^[0-9a-f]{64} admin name=root$", tokens, re.M) and (tmp_path / "tokens").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o755
    assert (tree / "etc/sagequant/sagequantd.yaml").read_text().count("\nmodel_root: [/srv/models]") == 1, "the folder of the postinst"


def test_purging_leaves_no_token(tree, tmp_path):
    settings = tmp_path / "etc"
    settings.mkdir()
    script = (tree / "DEBIAN/postrm").read_text().replace("/etc/sagequant", str(settings)).replace("/run/systemd", str(tmp_path / "no"))
    (settings / "tokens").write_text("secret admin\n")
    for word in ("remove", "upgrade"):
        subprocess.run(["sh", "-c", script, "postrm", word], check=True)
        assert (settings / "tokens").exists()
    (settings / "mine").write_text("")
    subprocess.run(["sh", "-c", script, "postrm", "purge"], check=True)
    assert [file.name for file in settings.iterdir()] == ["mine"], "what others put there is theirs"


def test_without_systemd_the_same_door(tree):
    """What deploy/install says to start by hand has the flags of the unit: tokens and a data folder of its own."""
    unit = re.search(r"^ExecStart=\S+ (.*)$", (tree / "usr/lib/systemd/system/sagequantd.service").read_text(), re.M)[1]
    said = re.search(r'"  sagequantd (.*)"$', (DEPLOY / "install").read_text(), re.M)[1]
    assert unit.replace("%S", "/var/lib").replace("%d", "/etc/sagequant") == said


def first_calls(tmp_path):
    """What deploy/install tells people to copy, for a token file that lies elsewhere."""
    text = (DEPLOY / "install").read_text().split("<<'EOF'\n")[1].split("EOF\n")[0]
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == 2 and "sudo" in lines[0]
    return [line.replace("sudo ", "").replace("/etc/sagequant/tokens", str(tmp_path / "tokens")) for line in lines]


def test_the_daemon_runs_from_the_deb_and_talks_to_systemd(tree, tmp_path):
    """As the unit starts it: Type=notify over NOTIFY_SOCKET with a watchdog."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(30)
    (tmp_path / "tokens").write_text("# TOKEN ROLE name=NAME\ntok-admin admin name=root\n")
    (tmp_path / "models").mkdir()
    settings = (tree / "etc/sagequant/sagequantd.yaml").read_text().replace("/srv/models", str(tmp_path / "models"))
    (tmp_path / "sagequantd.yaml").write_text(settings)
    unit = (tree / "usr/lib/systemd/system/sagequantd.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", unit, re.M)[1]
    command = (command.replace("/usr/bin", f"{tree}/usr/bin").replace("/etc/sagequant", str(tmp_path))
               .replace("%S", str(tmp_path)).replace("%d", str(tmp_path)).split())
    environment = {"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
    ports = tmp_path / "ports.json"
    with open(tmp_path / "log", "w") as log:
        daemon = subprocess.Popen([*command, "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--port-file", ports],
                                  env=environment, stdout=log, stderr=log)
    try:
        messages = []
        while not any(m.startswith("READY=1") for m in messages):
            messages.append(listener.recv(1000).decode())
        while messages.count("WATCHDOG=1") < 3:
            messages.append(listener.recv(1000).decode())
        address = json.loads(ports.read_text())
        caller = {"PATH": f"{tree}/usr/bin:/usr/bin:/bin", "HOME": str(tmp_path), "SAGE_SERVER": address["grpc"]}
        for line in first_calls(tmp_path):
            run = subprocess.run(["bash", "-c", line], env=caller, capture_output=True, text=True, timeout=30)
            assert run.returncode == 0, line + run.stdout + run.stderr
        assert (tmp_path / ".sage-token").stat().st_mode & 0o777 == 0o600
        health = [*command[:1], "--health", "--http-listen"]
        assert subprocess.run([*health, address["http"]], env=environment, timeout=20).returncode == 0
        daemon.send_signal(signal.SIGTERM)
        while not any("STOPPING=1" in m for m in messages):
            messages.append(listener.recv(1000).decode())
        assert daemon.wait(30) == 0
        assert subprocess.run([*health, address["http"]], env=environment, timeout=20, capture_output=True).returncode == 1
    finally:
        daemon.kill()
    host = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"host"' in line][0]
    assert host["threads"] >= 1 and host["machine_bytes"] > 0 and host["group"]


def test_cmake_install_into_a_prefix(tmp_path):
    run = subprocess.run(["cmake", "--install", BUILD, "--prefix", tmp_path / "usr", "--component", "daemon"], capture_output=True,
                         text=True, env={**os.environ, "DESTDIR": str(tmp_path / "stage")})
    assert run.returncode == 0, run.stderr
    top = tmp_path / "stage" / str(tmp_path / "usr").lstrip("/")
    for file in FILES:
        assert (top / file).exists(), file
    assert subprocess.run([top / "bin/sagequantd", "--version"], capture_output=True).returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit(tree, tmp_path):
    text = (tree / "usr/lib/systemd/system/sagequantd.service").read_text()
    unit = tmp_path / "sagequantd.service"
    unit.write_text(text.replace("/usr/bin/sagequantd", f"{tree}/usr/bin/sagequantd").replace("file:///", "file:///x"))
    verify = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    complaints = [line for line in (verify.stdout + verify.stderr).splitlines() if "sagequantd" in line]
    assert verify.returncode == 0 and not complaints, verify.stderr
    security = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit],
                              capture_output=True, text=True)
    assert security.returncode == 0, security.stdout[-1500:]


def test_the_unit_waits_longer_than_the_drain(tree):
    unit = (tree / "usr/lib/systemd/system/sagequantd.service").read_text()
    drain = int(re.search(r"drain_timeout: (\d+)", (tree / "etc/sagequant/sagequantd.yaml").read_text())[1])
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) >= drain + 15
    assert "Type=notify" in unit and "WatchdogSec=" in unit and "DynamicUser=yes" in unit


def test_scripts_parse():
    for script in ("install", "package", "packages.sh", "quickstart"):
        subprocess.run(["bash", "-n", DEPLOY / script], check=True)
