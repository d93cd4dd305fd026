"""The HTTP port under more clients than it has threads, slow ones, and too many: everyone gets an answer, probes always."""
import contextlib
import json
import re
import socket
import threading
import time

import pytest
import requests
from conftest import Daemon


def metric(daemon, name):
    text = requests.get(f"http://{daemon.http}/metrics", timeout=20).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def connect(daemon, sent=b""):
    host, port = daemon.http.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(sent)
    return connection


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, model_root):
    """Eight request threads, sixteen connections more than those may wait."""
    daemon = Daemon(tmp_path_factory.mktemp("narrow"), model_root, ["--http-threads", "8", "--max-http-connections", "200"])
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s")
    yield daemon
    daemon.stop()


def test_three_times_as_many_clients_as_threads(narrow):
    """Closed-loop clients that keep their connections: each is answered again and again, refusals are told and counted."""
    before = metric(narrow, 'sage_rejections_total{reason="HTTP_BUSY"}')
    enough, seen, wrong, done = 3, [[] for _ in range(24)], [], threading.Event()

    def client(codes):
        session = requests.Session()
        body = {"model": "s", "prompt": "Once upon a time", "max_tokens": 48, "temperature": 0, "ignore_eos": True}
        with contextlib.suppress(requests.exceptions.RequestException):
            while not done.is_set():
                answer = session.post(f"http://{narrow.http}/v1/completions", json=body, timeout=120)
                if answer.status_code == 429 and not (answer.headers.get("Retry-After") and answer.json()["error"]["code"] == "HTTP_BUSY"):
                    wrong.append(answer.text)
                codes.append(answer.status_code)
                if answer.status_code == 429:
                    time.sleep(0.02)
            return
        wrong.append("a connection broke")

    threads = [threading.Thread(target=client, args=(codes,)) for codes in seen]
    for thread in threads:
        thread.start()
    probes = 0
    end = time.time() + 240
    while not all(codes.count(200) >= enough for codes in seen):
        assert time.time() < end, [(codes.count(200), codes.count(429)) for codes in seen]
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert requests.get(f"http://{narrow.http}{path}", timeout=20).status_code == 200, path
            probes += 1
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and {code for codes in seen for code in codes} <= {200, 429}
    refused = sum(codes.count(429) for codes in seen)
    assert refused > 0, "24 clients on 7 places"
    assert metric(narrow, 'sage_rejections_total{reason="HTTP_BUSY"}') - before == refused


def test_slow_senders_hold_nothing(narrow):
    slow = [connect(narrow, b"POST /v1/completions HT") for _ in range(16)]
    slow += [connect(narrow, b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{") for _ in range(16)]
    assert metric(narrow, "sage_http_connections") >= 32
    for _ in range(3):
        for connection in slow:
            connection.sendall(b"T")
        for path in ("/health/live", "/metrics", "/v1/models"):
            assert requests.get(f"http://{narrow.http}{path}", timeout=20).status_code == 200, path
        answer = requests.post(f"http://{narrow.http}/v1/completions", json={"model": "s", "prompt": "x", "max_tokens": 2}, timeout=60)
        assert answer.status_code == 200, answer.text
    for connection in slow:
        connection.close()


def test_a_header_has_an_end_in_time(narrow):
    before = metric(narrow, 'sage_rejections_total{reason="REQUEST_TIMEOUT"}')
    slow = connect(narrow, b"GET /v1/models HTTP/1.1\r\n")
    got = b""
    slow.settimeout(1)
    for _ in range(90):  # a byte a second for as long as it is taken: never a pause that a read's timeout would see
        with contextlib.suppress(TimeoutError, ConnectionError):
            slow.sendall(b"x")
            got = slow.recv(4096)
            break
    assert got.startswith(b"HTTP/1.1 408 "), got
    error = json.loads(got.split(b"\r\n\r\n", 1)[1])["error"]
    assert error["code"] == "REQUEST_TIMEOUT", error
    assert metric(narrow, 'sage_rejections_total{reason="REQUEST_TIMEOUT"}') == before + 1


def test_a_full_port_answers_probes(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root, ["--http-threads", "4", "--max-http-connections", "16"])
    held = [connect(daemon, b"GET /v1/mod") for _ in range(40)]
    for _ in range(3):
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert requests.get(f"http://{daemon.http}{path}", timeout=20).status_code == 200, path
    assert metric(daemon, "sage_http_connections") <= 16
    assert metric(daemon, 'sage_rejections_total{reason="TOO_MANY_CONNECTIONS"}') >= 40 - 16
    for connection in held:
        connection.close()
    daemon.stop()


def test_unknown_routes_and_bad_requests_are_calls_too(narrow):
    before = metric(narrow, 'sage_rpc_requests_total{code="NOT_FOUND",interface="http",method="Unrouted"}')
    assert requests.get(f"http://{narrow.http}/nothing/here", timeout=20).json()["error"]["code"] == "NO_SUCH_ROUTE"
    name = 'sage_rpc_requests_total{code="NOT_FOUND",interface="http",method="Unrouted"}'
    end = time.time() + 20
    while metric(narrow, name) != before + 1:
        assert time.time() < end
        time.sleep(0.05)
    wrong = requests.get(f"http://{narrow.http}/v1/completions", timeout=20)
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST" and wrong.json()["error"]["code"] == "METHOD_NOT_ALLOWED"
    assert metric(narrow, 'sage_rpc_requests_total{code="INVALID_ARGUMENT",interface="http",method="Unrouted"}') >= 1
    smuggled = connect(narrow, b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert smuggled.recv(100).startswith(b"HTTP/1.1 400 ")
    packed = requests.post(f"http://{narrow.http}/v1/completions", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}, timeout=20)
    assert packed.status_code == 415 and packed.json()["error"]["code"] == "BAD_HTTP_REQUEST", packed.text
    log = (narrow.folder / "daemon.log").read_text()
    assert re.search(r'"reason":"NO_SUCH_ROUTE"', log) and re.search(r'"message":"GET /nothing/here', log)


def test_large_bodies_and_kept_connections(narrow):
    session = requests.Session()
    for size in (10, 1 << 20, 3 << 20):
        answer = session.post(f"http://{narrow.http}/v1/completions", json={"model": "nobody", "prompt": "x" * size}, timeout=60)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "ENGINE_NOT_FOUND", answer.text
    chunks = session.post(f"http://{narrow.http}/v1/completions", timeout=60,
                          data=iter([b'{"model": "s", "prompt"', b': "Once", "max_tokens": 2}']))
    assert chunks.status_code == 200, chunks.text
    too_much = session.post(f"http://{narrow.http}/v1/completions", data=b"x" * ((64 << 20) + 1), timeout=60)
    assert too_much.status_code == 413, too_much.text
