"""Faults of a running daemon: overload, cut clients, a drain, a full disk, a certificate that ends. Each time the right alert fires,
the panel that its runbook names shows it, and nothing fires that is not for it. The rules run with seconds for minutes."""
import os
import shutil
import subprocess
import threading
import time

import pytest
from scene import MODEL, Scene

GENERATE = ("llm", "generate", "--engine", "s", "--prompt", "Once upon a time", "--ignore-eos", "--max-tokens", "400")


@pytest.fixture(scope="module", autouse=True)
def tools_are_there():
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (tests/run deploy installs it)")


def private_disk(folder, size):
    """A command prefix that gives the daemon a small file system of its own below `folder`."""
    become = [] if os.geteuid() == 0 else ["-r"]
    command = ["unshare", *become, "-m", "sh", "-c", f'mount -t tmpfs -o size={size} none "{folder}" && exec "$@"', "sh"]
    folder.mkdir()
    allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if allowed else None


def certificate(folder, name, days, authority=None):
    key, pem, names = folder / f"{name}.key", folder / f"{name}.pem", folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    make = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout", key]
    if authority is None:
        subprocess.run([*make, "-x509", "-days", str(days), "-out", pem], check=True, capture_output=True)
        return key, pem
    subprocess.run([*make, "-out", folder / "request"], check=True, capture_output=True)
    subprocess.run(["openssl", "x509", "-req", "-in", folder / "request", "-CA", authority[1], "-CAkey", authority[0], "-CAcreateserial",
                    "-days", str(days), "-extfile", names, "-out", pem], check=True, capture_output=True)
    return key, pem


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """One sequence at a time and a short queue, so that a few clients are many."""
    scene = Scene(tmp_path_factory.mktemp("busy"), flags=["--drain-timeout", "6"], quick=True)
    try:
        assert scene.sage("llm", "engine", "start", MODEL, "--engine-id", "s", "--max-seqs", "1", "--max-queue-requests", "16") == 0
        yield scene
    finally:
        scene.stop()


class Clients:
    """gRPC clients, each a process that asks, and asks again when it has its answer."""

    def __init__(self, scene, count):
        self.stopped = False
        self.threads = [threading.Thread(target=self.ask, args=(scene,)) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def ask(self, scene):
        while not self.stopped:
            scene.start_sage(*GENERATE).wait()

    def stop(self):
        self.stopped = True
        for thread in self.threads:
            thread.join()


def test_overload(busy):
    few = Clients(busy, 2)
    busy.wait(lambda: busy.panel("overview", "Requests a second") and busy.panel("overview", "Requests a second")[0][1] > 0)
    time.sleep(3)
    assert busy.firing() == set(), "two clients are no overload"
    many = Clients(busy, 20)
    try:
        busy.wait(lambda: {"SageQueueLong", "SageOverloaded"} <= busy.firing())
        assert busy.firing() <= {"SageQueueLong", "SageOverloaded", "SageQueueSlow"}, busy.firing()
        refused = {labels["reason"]: rate for labels, rate in busy.panel("errors", "Refused by reason")}
        assert refused["QUEUE_FULL"] > 0
        assert {labels["code"] for labels, rate in busy.panel("errors", "Calls by code") if rate > 0} == {"OK", "RESOURCE_EXHAUSTED"}
        waiting = {labels["__name__"]: number for labels, number in busy.panel("overview", "Running and waiting")}
        assert waiting["sage_requests_waiting"] > 10 and waiting["sage_sequences_running"] == 1
    finally:
        many.stop()
        few.stop()
    busy.wait(lambda: "SageQueueLong" not in busy.firing())


def test_cut_clients(busy):
    """Clients that vanish are no error of the service: what they asked for is cancelled, and nothing fires."""
    for _ in range(2):  # a series that is new has no rate yet: the second time is seen
        busy.wait(lambda: busy.answers("sum(sage_sequences_running) == 0"))
        clients = [busy.start_sage(*GENERATE, "--n", "8") for _ in range(4)]
        busy.wait(lambda: busy.answers("sum(sage_sequences_running) > 0"))
        for client in clients:
            client.kill()
            client.wait()
        busy.wait(lambda: busy.answers('sage_rpc_requests_total{code="CANCELLED"}'))
    busy.wait(lambda: any(labels["code"] == "CANCELLED" and rate > 0 for labels, rate in busy.panel("errors", "Calls by code")))
    busy.wait(lambda: any(labels["finish_reason"] == "cancelled" and rate > 0
                          for labels, rate in busy.panel("overview", "Requests that ended")))
    busy.wait(lambda: all(number == 0 for _, number in busy.panel("overview", "Running and waiting")))
    assert all(used == 0 for _, used in busy.panel("memory", "KV pages in use"))
    assert busy.panel("overview", "Failed calls")[0][1] == 0
    busy.wait(lambda: not busy.firing())


def test_drain_and_the_end(busy):
    clients = [busy.start_sage(*GENERATE, "--n", "8") for _ in range(12)]  # more work than the drain waits for
    busy.wait(lambda: busy.answers("sum(sage_requests_waiting) > 4"))
    daemon = busy.processes[0]
    daemon.terminate()
    busy.wait(lambda: "SageNotReady" in busy.firing(), alive=False)
    assert busy.panel("overview", "Replicas ready")[0][1] == 0 and daemon.poll() is None and "SageDown" not in busy.firing()
    assert daemon.wait(40) == 0
    assert all(client.wait(10) in (0, 1) for client in clients), "each had a last answer"
    busy.wait(lambda: {"SageDown", "SageAbsent"} <= busy.firing(), alive=False)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """TLS with client certificates for all, Prometheus too, and the data on a disk of 64 MB."""
    folder = tmp_path_factory.mktemp("sealed")
    authority = certificate(folder, "authority", 30)
    key, pem = certificate(folder, "server", 20, authority)
    client_key, client_pem = certificate(folder, "client", 20, authority)
    place = folder / "place"
    place.mkdir()
    disk = private_disk(place / "data", "64m")
    scene = Scene(place, quick=True, command=disk or (),
                  tls={"cert": pem, "key": key, "ca": authority[1], "client_cert": client_pem, "client_key": client_key})
    scene.authority, scene.own_disk = authority, disk is not None
    try:
        yield scene
    finally:
        scene.stop()


def calibrate(scene, output):
    return scene.run("quant", "calibrate", "--model", MODEL, "--weight-dtype", "int8", "--group-size", "-1", "--output", output)


def test_full_disk(sealed):
    if not sealed.own_disk:
        pytest.skip("this machine allows no private mounts")
    assert calibrate(sealed, "before").returncode == 0
    sealed.wait(lambda: sealed.firing() == set())  # until the first scrape nobody is there
    with open(f"/proc/{sealed.pid}/root{sealed.folder}/data/filler", "wb") as filler:  # through the daemon's own view of its disk
        with pytest.raises(OSError):
            while True:
                filler.write(bytes(1 << 20))
                filler.flush()
    sealed.wait(lambda: "SageDiskLow" in sealed.firing())
    free = {labels["__name__"]: number for labels, number in sealed.panel("memory", "Disk of the data folder")}
    assert free["sage_data_free_bytes"] < 1 << 20 < free["sage_data_size_bytes"] == 64 << 20
    run = calibrate(sealed, "full")
    assert run.returncode == 1 and "NO_SPACE" in run.stdout, run.stdout + run.stderr
    os.unlink(f"/proc/{sealed.pid}/root{sealed.folder}/data/filler")
    sealed.wait(lambda: "SageDiskLow" not in sealed.firing())
    assert calibrate(sealed, "after").returncode == 0, "the daemon goes on when there is room again"


def renew(sealed, days):
    key, pem = certificate(sealed.folder, "renewed", days, sealed.authority)
    shutil.copy(pem, sealed.tls["cert"])
    shutil.copy(key, sealed.tls["key"])


def time_left(sealed):
    return [seconds for _, seconds in sealed.panel("errors", "Certificates: time left")][0]


def test_certificate_that_ends(sealed):
    sealed.wait(lambda: time_left(sealed) > 19 * 86400)
    assert "SageCertificateEnds" not in sealed.firing()
    renew(sealed, 2)
    sealed.wait(lambda: "SageCertificateEnds" in sealed.firing())
    assert 86400 < time_left(sealed) < 2 * 86400
    renew(sealed, -1)  # one that has ended is not taken up: the one before goes on
    sealed.wait(lambda: "SageReloadFailed" in sealed.firing())
    assert 86400 < time_left(sealed) < 2 * 86400 and sealed.sage("llm", "engine", "list", "--timeout", "3") == 0
    renew(sealed, 20)
    sealed.wait(lambda: not {"SageCertificateEnds", "SageReloadFailed"} & sealed.firing() and time_left(sealed) > 19 * 86400)
    sealed.wait(lambda: sealed.sage("llm", "engine", "list", "--timeout", "3") == 0)
