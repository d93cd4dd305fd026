"""The door: TLS, client certificates and bearer tokens, on gRPC and on HTTP, from real clients; roles, rates, reloads, audit, paths."""
import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import threading
import time

import grpc
import pytest
import requests
from conftest import BIN, Daemon


def make_authority(folder, name):
    key, pem = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-keyout", key, "-out", pem], check=True, capture_output=True)
    return key, pem


def make_certificate(folder, authority, name):
    key, request, pem, names = (folder / f"{name}.{end}" for end in ("key", "csr", "pem", "ext"))
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    subprocess.run(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                    "-keyout", key, "-out", request], check=True, capture_output=True)
    subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", authority[1], "-CAkey", authority[0], "-CAcreateserial", "-days", "2",
                    "-extfile", names, "-out", pem], check=True, capture_output=True)
    return key, pem


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    ours, other = make_authority(folder, "ours"), make_authority(folder, "other")
    (folder / "tokens").write_text("s3cret-one\ns3cret-two\n")
    (folder / "right").write_text("s3cret-two\n")
    (folder / "wrong").write_text("guess\n")
    return {"folder": folder, "ca": ours[1], "other_ca": other[1], "server": make_certificate(folder, ours, "server"),
            "client": make_certificate(folder, ours, "client"), "stranger": make_certificate(folder, other, "stranger")}


def test_tls_and_client_certificates(tmp_path, model_root, papers):
    key, pem = papers["server"]
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--tls-client-ca", str(papers["ca"])])
    client = ["--cert", str(papers["client"][1]), "--key", str(papers["client"][0])]
    assert daemon.json("llm", "engine", "list", "--ca", str(papers["ca"]), *client) is not None
    # Without a certificate, with a stranger's, with an authority that did not sign the server, and in plain text.
    stranger = ["--cert", str(papers["stranger"][1]), "--key", str(papers["stranger"][0])]
    for flags in ([f"--ca={papers['ca']}"], [f"--ca={papers['ca']}", *stranger], [f"--ca={papers['other_ca']}", *client], []):
        code, error = daemon.fails("llm", "engine", "list", "--timeout", "3", *flags)
        assert code == 3, (flags, error)
    daemon.stop()


def test_tokens_on_grpc_and_http(tmp_path, model_root, papers):
    daemon = Daemon(tmp_path, model_root, ["--token-file", str(papers["folder"] / "tokens")])
    assert daemon.json("llm", "engine", "list", "--token-file", str(papers["folder"] / "right")) is not None
    for flags in ([], ["--token-file", str(papers["folder"] / "wrong")]):
        code, error = daemon.fails("llm", "engine", "list", *flags)
        assert (code, error["code"]) == (1, "UNAUTHENTICATED"), error
    for text in ("", "s3cret-one admin name=ops\n", "# tokens\ns3cret-one\n"):  # the daemon's own list is told of here, not sent
        (tmp_path / "list").write_text(text)
        code, error = daemon.fails("llm", "engine", "list", "--token-file", str(tmp_path / "list"))
        assert (code, error["reason"]) == (2, "TOKEN_FILE") and "nothing else" in error["message"], error
    # Health stays open for probes; everything else asks.
    channel = grpc.insecure_channel(daemon.grpc)
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=5) is not None
    base = f"http://{daemon.http}"
    assert requests.get(base + "/health/live", timeout=5).status_code == 200
    for path in ("/metrics", "/v1/models", "/v1/management/engines"):
        assert requests.get(base + path, timeout=5).status_code == 401, path
        bad = requests.get(base + path, headers={"Authorization": "Bearer guess"}, timeout=5)
        assert bad.status_code == 401 and "s3cret" not in bad.text
        assert requests.get(base + path, headers={"Authorization": "Bearer s3cret-one"}, timeout=5).status_code == 200, path
    assert "s3cret" not in (tmp_path / "daemon.log").read_text()
    daemon.stop()


def test_metrics_may_be_opened(tmp_path, model_root, papers):
    daemon = Daemon(tmp_path, model_root, ["--token-file", str(papers["folder"] / "tokens"), "--open-metrics"])
    assert requests.get(f"http://{daemon.http}/metrics", timeout=5).status_code == 200
    assert requests.get(f"http://{daemon.http}/v1/models", timeout=5).status_code == 401
    daemon.stop()


def test_https(tmp_path, model_root, papers):
    key, pem = papers["server"]
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--http-tls"])
    assert requests.get(f"https://{daemon.http}/health/ready", verify=str(papers["ca"]), timeout=5).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"https://{daemon.http}/health/ready", verify=str(papers["other_ca"]), timeout=5)
    daemon.stop()


def log_of(daemon, event=None):
    lines = [json.loads(line) for line in (daemon.folder / "daemon.log").read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if event is None or line["event"] == event]


def until(condition, seconds=15):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "did not happen in time"
        time.sleep(0.1)


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, model_root):
    """One daemon with a token of each role and an audit log."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text("tok-admin admin name=ops\ntok-maker generate name=app\ntok-read read name=grafana\n"
                                   "tok-slow read name=slow rate=1 burst=2\n")
    for name in ("admin", "maker", "read", "slow"):
        (folder / name).write_text(f"tok-{name}\n")
    daemon = Daemon(folder, model_root, ["--token-file", str(folder / "tokens"), "--audit-log", str(folder / "audit.log")])
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s", "--token-file", str(folder / "admin"))
    yield daemon
    daemon.stop()


def test_roles_on_grpc(guarded):
    def token(name):
        return ["--token-file", str(guarded.folder / name)]

    generate = ["llm", "generate", "--engine", "s", "--prompt", "Once", "--max-tokens", "4"]
    calibrate = ["quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int8", "--group-size", "-1", "--output"]
    assert guarded.json("llm", "engine", "list", *token("read")) is not None
    assert guarded.json(*generate, *token("maker"))["choices"]
    assert guarded.json(*generate, *token("admin"))["choices"]
    assert guarded.json(*calibrate, "by-admin", *token("admin"))["artifact"] == "by-admin"
    for call, name in ((generate, "read"), ([*calibrate, "no"], "read"), ([*calibrate, "no"], "maker"),
                       (["llm", "engine", "stop", "s"], "maker")):
        code, error = guarded.fails(*call, *token(name))
        assert (code, error["code"], error["reason"]) == (1, "PERMISSION_DENIED", "ROLE_INSUFFICIENT"), error
        assert "tok-" not in error["message"]


def test_roles_on_http_and_metrics(guarded):
    base = f"http://{guarded.http}"
    body = {"model": "s", "prompt": "Once", "max_tokens": 2}
    assert requests.get(base + "/metrics", headers=bearer("tok-read"), timeout=5).status_code == 200
    assert requests.get(base + "/v1/models", headers=bearer("tok-read"), timeout=5).status_code == 200
    assert requests.post(base + "/v1/completions", json=body, headers=bearer("tok-maker"), timeout=30).status_code == 200
    refused = requests.post(base + "/v1/completions", json=body, headers=bearer("tok-read"), timeout=5)
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "ROLE_INSUFFICIENT", refused.text
    for token in ("tok-read", "tok-maker"):
        assert requests.delete(base + "/v1/management/engines/s", headers=bearer(token), timeout=5).status_code == 403
        start = requests.post(base + "/v1/management/engines", json={"model": "stories260K"}, headers=bearer(token), timeout=5)
        assert start.status_code == 403
    assert requests.get(base + "/v1/management/status", headers=bearer("tok-read"), timeout=5).json()["status"] == "ready"


def test_rate_limit_of_a_token(guarded):
    answers = [requests.get(f"http://{guarded.http}/v1/models", headers=bearer("tok-slow"), timeout=5) for _ in range(6)]
    codes = [answer.status_code for answer in answers]
    assert codes[:2] == [200, 200] and 429 in codes, codes
    refused = answers[codes.index(429)]
    assert int(refused.headers["Retry-After"]) >= 1 and refused.json()["error"]["code"] == "RATE_LIMITED"
    assert requests.get(f"http://{guarded.http}/v1/models", headers=bearer("tok-read"), timeout=5).status_code == 200


def test_mutations_are_audited_and_secrets_are_nowhere(guarded):
    requests.post(f"http://{guarded.http}/v1/management/engines", json={"model": "x"}, headers=bearer("tok-guessed"), timeout=5)
    lines = [json.loads(line) for line in (guarded.folder / "audit.log").read_text().splitlines()]
    assert {"ops"} == {line["caller"] for line in lines if line["code"] == "OK"}
    assert {"StartEngine", "Calibrate"} <= {line["method"] for line in lines if line["code"] == "OK"}
    assert [line for line in lines if line["code"] == "UNAUTHENTICATED" and line["reason"] == "TOKEN_INVALID" and line["peer"]]
    assert not [line for line in lines if line["method"] in ("ListEngines", "Models", "Generate", "Completions")]
    assert (guarded.folder / "audit.log").stat().st_mode & 0o777 == 0o600
    for name in ("audit.log", "daemon.log"):
        assert "tok-" not in (guarded.folder / name).read_text()
    metrics = requests.get(f"http://{guarded.http}/metrics", headers=bearer("tok-read"), timeout=5).text
    assert "tok-" not in metrics and 'sage_rejections_total{reason="TOKEN_INVALID"}' in metrics
    assert "tok-" not in open(f"/proc/{guarded.process.pid}/cmdline").read()


def test_every_service_asks_for_a_token(guarded):
    """Each method of each service of ours over reflection: without a token none answers anything but UNAUTHENTICATED."""
    from google.protobuf import descriptor_pool  # noqa: F401 - reflection's database needs it
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
    channel = grpc.insecure_channel(guarded.grpc)
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    tried = 0
    for service in database.get_services():
        if not service.startswith(("sage.", "inference.")):
            continue
        for method in pool.FindServiceByName(service).methods:
            call = channel.unary_stream(f"/{service}/{method.name}")
            if method.client_streaming:
                call = channel.stream_stream(f"/{service}/{method.name}")
            with pytest.raises(grpc.RpcError) as raised:
                list(call(iter([b""]) if method.client_streaming else b"", timeout=10))
            allowed = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
            assert raised.value.code() in allowed, (service, method.name, raised.value)
            tried += 1
    assert tried > 20


def test_tokens_are_reloaded(tmp_path, model_root):
    tokens = tmp_path / "tokens"
    tokens.write_text("tok-old admin\n")
    daemon = Daemon(tmp_path, model_root, ["--token-file", str(tokens)])

    def status(token):
        return requests.get(f"http://{daemon.http}/v1/models", headers=bearer(token), timeout=5).status_code

    assert (status("tok-old"), status("tok-new")) == (200, 401)
    (tmp_path / "next").write_text("tok-new read\n")
    (tmp_path / "next").rename(tokens)
    until(lambda: status("tok-new") == 200)
    assert status("tok-old") == 401
    tokens.write_text("tok-new nonsense\n")
    until(lambda: log_of(daemon, "reload_failed"))
    assert status("tok-new") == 200, "a bad file leaves the good tokens in force"
    daemon.stop()


def certificate_serial(address, ca):
    host, port = address.rsplit(":", 1)
    shown = subprocess.run(["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(ca), "-alpn", "h2"],
                           input=b"", capture_output=True, timeout=20).stdout
    return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown, capture_output=True).stdout


def test_a_renewed_certificate_is_taken_up_without_a_restart(tmp_path, model_root, papers):
    authority = (papers["folder"] / "ours.key", papers["ca"])
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"

    def renew(name):
        fresh = make_certificate(papers["folder"], authority, name)
        for source, target in ((fresh[0], key), (fresh[1], pem)):
            (tmp_path / "new").write_bytes(source.read_bytes())
            (tmp_path / "new").rename(target)

    renew("first")
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--http-tls"])
    before = {address: certificate_serial(address, papers["ca"]) for address in (daemon.grpc, daemon.http)}
    assert all(b"serial=" in serial for serial in before.values()), before
    renew("second")
    until(lambda: all(certificate_serial(a, papers["ca"]) != serial for a, serial in before.items()), 30)
    assert daemon.json("llm", "engine", "list", "--ca", str(papers["ca"])) is not None
    assert requests.get(f"https://{daemon.http}/health/ready", verify=str(papers["ca"]), timeout=5).status_code == 200
    ends = re.search(r"^sage_tls_certificate_end_seconds (\S+)", requests.get(
        f"https://{daemon.http}/metrics", verify=str(papers["ca"]), timeout=5).text, re.M)
    assert 86400 < float(ends[1]) - time.time() < 3 * 86400
    key.write_text("garbage")
    until(lambda: log_of(daemon, "reload_failed"))
    assert requests.get(f"https://{daemon.http}/health/ready", verify=str(papers["ca"]), timeout=5).status_code == 200
    daemon.stop()


def test_client_certificates_on_https(tmp_path, model_root, papers):
    key, pem = papers["server"]
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--tls-client-ca", str(papers["ca"]), "--http-tls"])
    url, ours = f"https://{daemon.http}", str(papers["ca"])
    client, stranger = ((str(papers[name][1]), str(papers[name][0])) for name in ("client", "stranger"))
    assert requests.get(url + "/v1/models", verify=ours, cert=client, timeout=5).status_code == 200
    assert requests.get(url + "/health/live", verify=ours, timeout=5).status_code == 200, "probes have no certificate"
    for path in ("/v1/models", "/metrics"):
        assert requests.get(url + path, verify=ours, timeout=5).status_code == 401
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url + "/v1/models", verify=ours, cert=stranger, timeout=5)
    daemon.stop()


def test_a_bad_certificate_is_refused_at_the_start(tmp_path, papers):
    for cert, key in ((papers["ca"], papers["server"][0]), (papers["server"][0], papers["server"][0])):
        run = subprocess.run([BIN / "sagequantd", "--data-dir", tmp_path / "d", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                              "--tls-cert", cert, "--tls-key", key], capture_output=True, text=True, timeout=20)
        assert run.returncode == 1 and "BAD_CERTIFICATE" in run.stderr, run.stderr


@pytest.mark.parametrize("flags", [
    ["--grpc-listen", "0.0.0.0:0"], ["--http-listen", "0.0.0.0:0"], ["--grpc-listen", "[::]:0"], ["--http-listen", "192.0.2.1:0"]])
def test_listens_wider_than_loopback_only_with_a_lock(tmp_path, papers, flags):
    command = [BIN / "sagequantd", "--data-dir", tmp_path, "--check-config"]
    run = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=20)
    assert run.returncode == 2 and "beyond loopback" in run.stderr
    run = subprocess.run([*command, *flags, "--token-file", papers["folder"] / "tokens"], capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr


def test_unix_socket(tmp_path, model_root):
    path = tmp_path / "grpc.sock"
    daemon = Daemon(tmp_path, model_root, ["--grpc-listen", f"unix:{path}"])
    assert daemon.grpc == f"unix:{path}"
    assert daemon.json("llm", "engine", "list") is not None
    assert not path.stat().st_mode & 0o002, "not everyone on the machine may call"
    daemon.stop()


def test_links_lead_nowhere_outside(tmp_path, model_root):
    roots = tmp_path / "roots"
    roots.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "text").write_text("nothing of yours")
    for name in os.listdir(model_root / "stories260K"):
        os.link(model_root / "stories260K" / name, outside / name)
    (roots / "escape").symlink_to(outside)
    (roots / "file").symlink_to("/etc/passwd")
    (roots / "deep").mkdir()
    (roots / "deep" / "up").symlink_to("../../outside")
    daemon = Daemon(tmp_path, roots)
    for model in ("escape", "deep/up", "../outside", str(outside), "deep/../../outside", "/etc", "file"):
        code, error = daemon.fails("llm", "engine", "start", model)
        assert error["reason"] in ("PATH_OUTSIDE_ROOTS", "MODEL_NOT_FOUND"), (model, error)
        code, error = daemon.fails("quant", "calibrate", "--model", model, "--weight-dtype", "int8", "--output", "x")
        assert error["reason"] in ("PATH_OUTSIDE_ROOTS", "MODEL_NOT_FOUND"), (model, error)
    (daemon.data / "artifacts" / "planted").symlink_to(outside)
    for call in (["quant", "report", "--artifact", "planted", "--dataset", "x"],
                 ["quant", "convert", "--artifact", "planted", "--format", "f32", "--output", "y"]):
        run = daemon.sage(*call, check=False)
        assert run.returncode != 0 and "nothing of yours" not in run.stdout
    for output in ("../out", "/tmp/out", "planted", "planted/out", "a/../../out", ".hidden", "a\nb"):
        code, error = daemon.fails("quant", "calibrate", "--model", "x", "--weight-dtype", "int8", "--output", output)
        assert error["reason"] in ("PATH_OUTSIDE_ROOTS", "ARTIFACT_EXISTS", "NAME_INVALID", "MODEL_NOT_FOUND"), (output, error)
    assert not (tmp_path / "out").exists() and os.listdir(outside).count("out") == 0
    daemon.stop()


def test_trace_context_and_access_log(guarded):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = requests.get(f"http://{guarded.http}/v1/models", timeout=5, headers={
        **bearer("tok-read"), "traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": "mine-7"})
    assert re.fullmatch(f"00-{trace}-[0-9a-f]{{16}}-01", answer.headers["traceparent"])
    until(lambda: [line for line in log_of(guarded, "request") if line.get("request_id") == "mine-7"])
    line = [line for line in log_of(guarded, "request") if line.get("request_id") == "mine-7"][0]
    assert line["trace_id"] == trace and line["caller"] == "grafana" and line["peer"].startswith("127.0.0.1:")
    call = grpc.insecure_channel(guarded.grpc).unary_unary("/sage.quant.v1.EngineService/ListEngines")
    _, state = call.with_call(b"", timeout=5, metadata=[
        ("authorization", "Bearer tok-read"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01")])
    assert dict(state.initial_metadata())["traceparent"].startswith(f"00-{trace}-")


def test_spans_reach_a_collector(tmp_path, model_root):
    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    daemon = Daemon(tmp_path, model_root, ["--otlp-endpoint", f"http://127.0.0.1:{server.server_port}"])
    daemon.json("llm", "engine", "list")
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "traced")
    requests.get(f"http://{daemon.http}/v1/models", timeout=5)
    requests.post(f"http://{daemon.http}/v1/completions", timeout=30,
                  json={"model": "traced", "prompt": "Once", "max_tokens": 5, "ignore_eos": True})
    until(lambda: "http Completions" in json.dumps(got))
    daemon.stop()
    server.shutdown()
    spans = [span for _, body in got for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    assert {path for path, _ in got} == {"/v1/traces"}
    assert {"grpc ListEngines", "http Models"} <= {span["name"] for span in spans}
    for span in spans:
        assert re.fullmatch("[0-9a-f]{32}", span["traceId"]) and re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert int(span["endTimeUnixNano"]) >= int(span["startTimeUnixNano"])
    call = next(span for span in spans if span["name"] == "http Completions")
    children = [span for span in spans if span.get("parentSpanId") == call["spanId"]]
    assert [span["name"] for span in children] == ["queue", "prefill", "decode"]
    assert {span["traceId"] for span in children} == {call["traceId"]} and {span["kind"] for span in children} == {1}
    attributes = {a["key"]: a["value"]["stringValue"] for span in children for a in span["attributes"]}
    assert attributes["gen_ai.usage.output_tokens"] == "5" and int(attributes["gen_ai.usage.input_tokens"]) > 0
    for before, after in zip(children, children[1:]):
        assert before["endTimeUnixNano"] == after["startTimeUnixNano"]


def test_engines_of_a_file_run_before_the_daemon_is_ready(tmp_path, model_root):
    engines = tmp_path / "engines.json"
    engines.write_text(json.dumps([{"model": "stories260K", "engine_id": "a"},
                                   {"model": "stories260K", "engine_id": "b", "kv_quant": "int8"}]))
    daemon = Daemon(tmp_path, model_root, ["--engines-file", str(engines)])
    listed = requests.get(f"http://{daemon.http}/v1/management/engines", timeout=5).json()["engines"]
    assert [engine["engine_id"] for engine in listed] == ["a", "b"]
    daemon.stop()
    engines.write_text(json.dumps([{"model": "no-such-model"}]))
    run = subprocess.run([BIN / "sagequantd", "--data-dir", tmp_path / "d", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                          "--engines-file", engines], capture_output=True, text=True, timeout=30)
    assert run.returncode == 1 and "MODEL_NOT_FOUND" in run.stderr


def test_limits_at_the_edge(guarded):
    """Too much of anything is refused, and the daemon goes on."""
    channel = grpc.insecure_channel(guarded.grpc, options=[("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)])
    call = channel.unary_unary("/sage.quant.v1.EngineService/ListEngines")
    for metadata, body in ((("x-long", "v" * (64 << 10)),), b""), ((("authorization", "Bearer tok-read"),), b"\0" * (65 << 20)):
        with pytest.raises(grpc.RpcError) as raised:
            call(body, timeout=20, metadata=metadata)
        assert raised.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    base = f"http://{guarded.http}"
    for path, headers in (("/v1/models?" + "q" * 20000, {}), ("/v1/models", {"X-Long": "v" * 20000})):
        try:
            assert requests.get(base + path, headers=headers, timeout=10).status_code in (400, 401, 414, 431)
        except requests.exceptions.ConnectionError:
            pass  # cut off is an answer too
    assert requests.get(base + "/health/ready", timeout=5).status_code == 200
    with socket.create_connection(guarded.grpc.rsplit(":", 1), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 1000)
        raw.recv(1000)
    assert guarded.json("llm", "engine", "list", "--token-file", str(guarded.folder / "read")) is not None


def test_connections_beyond_the_limit_are_closed(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root, ["--max-connections", "3"])
    host, port = daemon.grpc.rsplit(":", 1)

    def connect():
        connection = socket.create_connection((host, int(port)), timeout=5)
        connection.settimeout(5)
        return connection

    def metric(name):
        text = requests.get(f"http://{daemon.http}/metrics", timeout=5).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    held = [connect() for _ in range(3)]
    assert all(connection.recv(1) for connection in held)  # HTTP/2 settings: they are served
    beyond = connect()
    with contextlib.suppress(ConnectionResetError):
        assert beyond.recv(1) == b""
    assert metric('sage_rejections_total{reason="TOO_MANY_CONNECTIONS"}') == 1
    assert metric("sage_grpc_connections") == 3
    held.pop().close()
    until(lambda: metric("sage_grpc_connections") == 2)
    assert daemon.json("llm", "engine", "list") == []
    until(lambda: metric("sage_grpc_connections") == 2)
    for connection in held:
        connection.close()
    until(lambda: metric("sage_grpc_connections") == 0)
    daemon.stop()
