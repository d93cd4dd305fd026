"""Who did what to what: the audit log over HTTP and with client certificates; certificates that are not valid; who is told."""
import json
import re
import subprocess
import time

import grpc
import pytest
import requests
from conftest import BIN, Daemon
from test_security import bearer, log_of, make_authority, make_certificate, until


def audited(daemon, method):
    """The newest line of the method."""
    def lines():
        path = daemon.folder / "audit.log"
        text = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, text) if line["method"] == method]
    until(lines)
    line = lines()[-1]
    (daemon.folder / "audit.log").write_text("")
    return line


@pytest.fixture(scope="module")
def watched(tmp_path_factory, model_root):
    folder = tmp_path_factory.mktemp("watched")
    (folder / "tokens").write_text("tok-admin admin name=ops\ntok-read read name=grafana\n")
    daemon = Daemon(folder, model_root, ["--token-file", str(folder / "tokens"), "--audit-log", str(folder / "audit.log")])
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("token, code", [("tok-admin", "OK"), ("tok-read", "PERMISSION_DENIED"), ("tok-none", "UNAUTHENTICATED")])
def test_http_mutations_say_what_they_were_about(watched, token, code):
    base, headers = f"http://{watched.http}/v1/management/engines", bearer(token)
    body = {"model_id": "stories260K", "engine_label": "mine", "quantization": "int8"}
    requests.post(base, json=body, headers=headers, timeout=60)
    line = audited(watched, "StartEngine")
    assert (line["engine"], line["model"], line["quantization"], line["code"]) == ("mine", "stories260K", "int8", code), line
    assert ("operation" in line) == (code == "OK") and line["interface"] == "http" and line["peer"]
    assert line.get("caller") == {"tok-admin": "ops", "tok-read": "grafana", "tok-none": None}[token], line
    requests.post(base + "/register", json={"engine_id": "mine"}, headers=headers, timeout=20)
    assert audited(watched, "RegisterEngine")["engine"] == "mine"
    requests.delete(base + "/mine", headers=headers, timeout=60)
    line = audited(watched, "StopEngine")
    assert (line["engine"], line["code"]) == ("mine", code), line
    requests.post(base, json={**body, "quantization": "int5"}, headers=headers, timeout=60)
    audited(watched, "StartEngine")
    requests.post(base + "/prune", headers=headers, timeout=20)
    line = audited(watched, "PruneEngines")
    assert line["code"] == code and (code != "OK" or json.loads(line["engines"]) == ["mine"]), line


def test_a_typo_alarms_nobody(watched):
    headers = bearer("tok-admin")
    base = f"http://{watched.http}/v1/management/engines"
    body = {"model_id": "stories260K", "engine_label": "typo", "quantization": "int5"}
    refused = requests.post(base, json=body, headers=headers, timeout=60)
    assert refused.status_code == 400
    text = requests.get(f"http://{watched.http}/metrics", headers=headers, timeout=20).text
    assert 'engine="typo"' not in text
    record = requests.get(base + "/typo", headers=headers, timeout=20).json()
    assert record["state"] == "FAILED" and "int5" in json.dumps(record), "whoever asked can still read why"


def test_refused_scrapes_are_counted_and_logged(watched):
    before = len([line for line in log_of(watched, "request") if line["method"] == "Metrics"])
    for token in ("tok-wrong", None):
        assert requests.get(f"http://{watched.http}/metrics", headers=bearer(token) if token else {}, timeout=20).status_code == 401
    until(lambda: len([line for line in log_of(watched, "request") if line["method"] == "Metrics"]) == before + 2)
    lines = [line for line in log_of(watched, "request") if line["method"] == "Metrics"][-2:]
    assert {line["reason"] for line in lines} == {"TOKEN_INVALID", "TOKEN_MISSING"} and all(line["peer"] for line in lines)
    text = requests.get(f"http://{watched.http}/metrics", headers=bearer("tok-read"), timeout=20).text
    assert re.search(r'sage_rpc_requests_total\{code="UNAUTHENTICATED",interface="http",method="Metrics"\} 2\b', text)


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    authority = make_authority(folder, "ours")
    return {"folder": folder, "authority": authority, "server": make_certificate(folder, authority, "server"),
            "client": make_certificate(folder, authority, "alice")}


def test_the_callers_certificate_is_in_the_audit_log(tmp_path, model_root, papers):
    key, pem = papers["server"]
    ours = papers["authority"][1]
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--tls-client-ca", str(ours), "--http-tls",
                                           "--audit-log", str(tmp_path / "audit.log")])
    flags = ["--ca", str(ours), "--cert", str(papers["client"][1]), "--key", str(papers["client"][0])]
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "a", *flags)
    assert audited(daemon, "StartEngine")["caller"] == "alice"
    client = (str(papers["client"][1]), str(papers["client"][0]))
    stopped = requests.delete(f"https://{daemon.http}/v1/management/engines/a", verify=str(ours), cert=client, timeout=60)
    assert stopped.status_code == 200, stopped.text
    line = audited(daemon, "StopEngine")
    assert (line["caller"], line["engine"], line["interface"]) == ("alice", "a", "http"), line
    metrics = requests.get(f"https://{daemon.http}/metrics", verify=str(ours), cert=client, timeout=20).text
    ends = re.search(r"^sage_tls_client_ca_end_seconds (\S+)", metrics, re.M)
    assert 86400 < float(ends[1]) - time.time() < 3 * 86400
    bare = requests.get(f"https://{daemon.http}/v1/models", verify=str(ours), timeout=20)
    assert bare.status_code == 401
    until(lambda: [line for line in log_of(daemon, "request") if line.get("reason") == "CERTIFICATE_MISSING"])
    daemon.stop()


def sign(folder, authority, pair, days):
    """The key of `pair` with a certificate of other times."""
    request, pem = folder / "again.csr", folder / "again.pem"
    subprocess.run(["openssl", "req", "-new", "-key", pair[0], "-subj", "/CN=server", "-out", request], check=True, capture_output=True)
    (folder / "again.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", authority[1], "-CAkey", authority[0], "-CAcreateserial",
                    "-days", str(days), "-extfile", folder / "again.ext", "-out", pem], check=True, capture_output=True)
    return pem.read_bytes()


def test_an_expired_renewal_is_refused_and_told_until_it_is_good(tmp_path, model_root, papers):
    key, source = papers["server"]
    pem = tmp_path / "cert.pem"
    pem.write_bytes(source.read_bytes())
    verify = str(papers["authority"][1])
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(key), "--http-tls"])

    def metric(name):
        text = requests.get(f"https://{daemon.http}/metrics", verify=verify, timeout=20).text
        return float(re.search(rf"^{re.escape(name)} (\S+)", text, re.M)[1])

    assert metric('sage_reload_failing{what="certificate"}') == 0
    end = metric("sage_tls_certificate_end_seconds")
    pem.write_bytes(sign(papers["folder"], papers["authority"], papers["server"], -1))
    until(lambda: log_of(daemon, "reload_failed"))
    assert "ended" in log_of(daemon, "reload_failed")[0]["message"]
    assert metric('sage_reload_failing{what="certificate"}') == 1 and metric("sage_tls_certificate_end_seconds") == end
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(grpc.insecure_channel(daemon.grpc)).result(timeout=1)
    pem.write_bytes(sign(papers["folder"], papers["authority"], papers["server"], 3))
    until(lambda: metric('sage_reload_failing{what="certificate"}') == 0)
    assert metric("sage_tls_certificate_end_seconds") > end
    daemon.stop()


def test_starting_with_an_expired_certificate_is_a_warning(tmp_path, model_root, papers):
    pem = tmp_path / "cert.pem"
    pem.write_bytes(sign(papers["folder"], papers["authority"], papers["server"], -1))
    daemon = Daemon(tmp_path, model_root, ["--tls-cert", str(pem), "--tls-key", str(papers["server"][0]), "--http-tls"])
    line, = log_of(daemon, "certificate_invalid")
    assert line["level"] in ("warn", "warning") and line["reason"] == "CERTIFICATE_EXPIRED", line
    daemon.stop()


def test_a_port_open_to_everyone_is_told_loudly(tmp_path, papers):
    key, pem = papers["server"]
    command = [BIN / "sagequantd", "--data-dir", tmp_path, "--check-config", "--http-listen", "0.0.0.0:0", "--tls-cert", pem, "--tls-key", key,
               "--http-tls"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert run.returncode == 0 and "warning: http-listen: whoever reaches 0.0.0.0:0 may do everything" in run.stdout, run.stdout
    (tmp_path / "tokens").write_text("tok-admin admin\n")
    run = subprocess.run([*command, "--token-file", tmp_path / "tokens"], capture_output=True, text=True, timeout=20)
    assert run.returncode == 0 and "warning:" not in run.stdout, run.stdout
