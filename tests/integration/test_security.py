"""The door: TLS, client certificates and bearer tokens, on gRPC and on HTTP, from real clients."""
import subprocess

import grpc
import pytest
import requests
from conftest import Daemon


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
