"""Crashes, drains and crowds: nothing finished is lost, streams end whole, no slot leaks."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
import requests
from conftest import BIN, Daemon


def folder_hash(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def calibrate(daemon, output):
    return daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int4", "--group-size", "-1",
                       "--output", output)


def test_killed_calibration_resumes_to_the_same_bytes(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root)
    whole = calibrate(daemon, "whole")
    expected = folder_hash(daemon.data / "artifacts" / "whole")
    for delay in (0.0, 0.005, 0.02, 0.05):
        name = f"killed-{delay}"
        run = daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int4", "--group-size", "-1",
                          "--output", name, "--detach")
        time.sleep(delay)
        daemon.kill()
        daemon.start()
        identifier = run["id"] if "id" in run else run["operation"]
        for _ in range(200):
            operation = daemon.json("operations", "get", identifier)
            if operation["state"] not in ("PENDING", "RUNNING"):
                break
            time.sleep(0.05)
        assert operation["state"] == "SUCCEEDED", operation
        assert folder_hash(daemon.data / "artifacts" / name) == expected
    assert whole["quantization"] == "int4_w4a16"
    daemon.stop()


def test_sigterm_drains_streams_and_exits_0(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root)
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s")
    streams = [subprocess.Popen([BIN / "sage", "llm", "generate", "--engine", "s", "--prompt", "Once", "--max-tokens", "300",
                                 "--ignore-eos", "--seed", str(i), "--json", "--server", daemon.grpc],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(4)]
    for _ in range(200):
        if daemon.json("llm", "engine", "get", "s")["load"]["running"] >= 4:
            break
        if all(s.poll() is not None for s in streams):
            break
        time.sleep(0.01)
    daemon.process.send_signal(signal.SIGTERM)
    for stream in streams:
        out, err = stream.communicate(timeout=60)
        assert stream.returncode == 0, out + err
        assert len(json.loads(out)["choices"][0]["token_ids"]) == 300
    assert daemon.process.wait(60) == 0


def test_64_streams_a_third_cancelled(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root)
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s", "--max-seqs", "16")
    url = f"http://{daemon.http}/v1/completions"
    body = {"model": "s", "prompt": "Once upon a time", "max_tokens": 60, "temperature": 0.8}
    alone = {seed: requests.post(url, json={**body, "seed": seed}, timeout=60).json()["choices"][0]["text"] for seed in range(4)}
    failures = []

    def client(i):
        try:
            with requests.post(url, json={**body, "seed": i % 4, "stream": True}, stream=True, timeout=120) as answer:
                text = ""
                for count, line in enumerate(answer.iter_lines()):
                    if i % 3 == 0 and count > 4:
                        return  # goes away in the middle
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        text += "".join(c["text"] for c in json.loads(line[6:])["choices"])
                if text != alone[i % 4]:
                    failures.append((i, text, alone[i % 4]))
        except Exception as error:  # noqa: BLE001 - a client's failure is the test's
            failures.append((i, repr(error)))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    for _ in range(200):
        load = daemon.json("llm", "engine", "get", "s")["load"]
        if load["running"] == 0 and load["waiting"] == 0 and load["kv_pages_used"] == 0:
            break
        time.sleep(0.05)
    assert load["kv_pages_used"] == 0 and load["running"] == 0, load
    daemon.stop()


def test_ten_times_the_load_is_refused_in_words(tmp_path, model_root):
    """A short queue, a burst of connections: each is answered or told to come back, none is cut off."""
    daemon = Daemon(tmp_path, model_root)
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s", "--max-seqs", "4", "--max-queue-requests", "8")
    body = {"model": "s", "prompt": "Once upon a time", "max_tokens": 64}
    answers, broken = [], []

    def client():
        try:
            answers.append(requests.post(f"http://{daemon.http}/v1/completions", json=body, timeout=120))
        except requests.RequestException as error:
            broken.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken, broken[:3]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) + sum(answer.status_code == 200 for answer in answers) == 120
    assert refused and all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert {answer.json()["error"]["code"] for answer in refused} == {"QUEUE_FULL"}
    second = subprocess.run([BIN / "sagequantd", "--data-dir", tmp_path / "second", "--grpc-listen", "127.0.0.1:0",
                             "--http-listen", daemon.http], capture_output=True, text=True, timeout=30)
    assert second.returncode != 0 and "CANNOT_LISTEN" in second.stderr + second.stdout
    daemon.stop()


def free_kib(folder):
    state = os.statvfs(folder)
    return state.f_bavail * state.f_bsize // 1024


def test_a_full_disk_fails_clearly_and_loses_nothing(tmp_path, model_root):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    daemon = None
    try:
        (disk / "data").mkdir()
        (tmp_path / "data").symlink_to(disk / "data")
        daemon = Daemon(tmp_path, model_root)
        calibrate = ["quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int8", "--group-size", "-1", "--output"]
        first = daemon.json(*calibrate, "first")
        filler = disk / "filler"
        filler.write_bytes(bytes((free_kib(disk) - 160) * 1024))  # room for the operation, not for the weights
        _, error = daemon.fails(*calibrate, "second")
        assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "NO_SPACE"), error
        with open(filler, "ab") as file:
            file.write(bytes(max(0, free_kib(disk)) * 1024))
        _, error = daemon.fails(*calibrate, "third")  # not even the operation can be written down
        assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "NO_SPACE"), error
        daemon.json("llm", "engine", "start", "first", "--engine-id", "e")  # what was there still serves
        assert len(daemon.json("llm", "generate", "--engine", "e", "--prompt", "Once", "--max-tokens", "4")["choices"]) == 1
        filler.unlink()
        again = daemon.json(*calibrate, "second")  # goes on where it stopped, and ends with the same bytes
        assert [layer["sha256"] for layer in again["layers"]] == [layer["sha256"] for layer in first["layers"]]
        assert os.listdir(daemon.data / "work") == []
    finally:
        if daemon is not None:
            daemon.stop()
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_cut_model_file_fails_its_engine_only(tmp_path, model_root):
    """The file of a running engine shrinks: its requests fail in words, the daemon and its other engines serve on."""
    roots = tmp_path / "roots"
    for name in ("cut", "whole"):
        shutil.copytree(model_root / "stories260K", roots / name)
    daemon = Daemon(tmp_path, roots)
    for name in ("cut", "whole"):
        daemon.json("llm", "engine", "start", name, "--engine-id", name, "--no-prefix-cache")
    generate = ["--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0"]
    text = daemon.json("llm", "generate", "--engine", "cut", *generate)["choices"][0]["text"]
    source, = (roots / "cut").glob("*.gguf")
    content = source.read_bytes()
    os.truncate(source, 8192)
    code, error = daemon.fails("llm", "generate", "--engine", "cut", *generate)
    assert code == 1 and error["code"] == "DATA_LOSS" and error["reason"] == "MODEL_FILE_CHANGED"
    assert error["metadata"]["file"] == str(source)
    assert daemon.json("llm", "engine", "get", "cut")["state"] == "FAILED"
    assert daemon.json("llm", "generate", "--engine", "whole", *generate)["choices"][0]["text"] == text
    # Put back, the same start makes a new engine.
    source.write_bytes(content)
    assert daemon.json("llm", "engine", "start", "cut", "--engine-id", "cut", "--no-prefix-cache")["state"] == "RUNNING"
    assert daemon.json("llm", "generate", "--engine", "cut", *generate)["choices"][0]["text"] == text
    daemon.stop()


def test_one_daemon_to_a_data_folder(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root)
    second = subprocess.run([BIN / "sagequantd", "--data-dir", daemon.data, "--model-root", model_root, "--grpc-listen",
                             "127.0.0.1:0", "--http-listen", "127.0.0.1:0"], capture_output=True, text=True, timeout=30)
    assert second.returncode == 2 and "DATA_DIR_IN_USE" in second.stderr and str(daemon.process.pid) in second.stderr
    assert daemon.json("operations", "list") == []
    daemon.kill()  # leaves no lock behind
    daemon.start()
    daemon.stop()
    assert not daemon.port_file.exists()  # nobody is led to a process that is gone


def test_a_cancelled_calibration_leaves_nothing(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog who liked to run. " * 400)
    run = daemon.json("quant", "calibrate", "--model", "stories260K", "--weight-dtype", "int4", "--group-size", "-1", "--method",
                      "autoround", "--dataset", text, "--samples", "64", "--sequence-length", "128", "--output", "gone", "--detach")
    work = daemon.data / "work"
    deadline = time.time() + 60
    while not list(work.iterdir()) and time.time() < deadline:
        time.sleep(0.01)
    daemon.json("operations", "cancel", run["id"])
    while (state := daemon.json("operations", "get", run["id"])["state"]) in ("PENDING", "RUNNING"):
        time.sleep(0.02)
    assert state == "CANCELLED" and list(work.iterdir()) == []
    daemon.stop()


def test_tokenizer_files_that_change_are_read_again(tmp_path, model_root):
    folder = tmp_path / "roots" / "letters"
    folder.mkdir(parents=True)

    def write(vocabulary):
        (folder / "tokenizer.json").write_text(json.dumps(
            {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []}))

    write({"a": 0, "b": 1})
    daemon = Daemon(tmp_path, tmp_path / "roots")
    assert daemon.json("llm", "tokenize", "--model", "letters", "--text", "ab")["ids"] == [0, 1]
    write({"a": 1, "b": 0})
    assert daemon.json("llm", "tokenize", "--model", "letters", "--text", "ab")["ids"] == [1, 0]
    daemon.stop()


def test_check_config_and_precedence(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("threads: 1\n")
    environment = {**os.environ, "SAGE_THREADS": "2"}
    good = subprocess.run([BIN / "sagequantd", "--config", config, "--data-dir", tmp_path / "d", "--check-config"],
                          capture_output=True, text=True, env=environment)
    assert good.returncode == 0, good.stderr
    assert {"threads: 2", "log_level: info", "watchdog: 120", "open_metrics: false"} <= set(good.stdout.splitlines())
    config.write_text("no_such_key: 1\n")
    bad = subprocess.run([BIN / "sagequantd", "--config", config, "--data-dir", tmp_path / "d", "--check-config"],
                         capture_output=True, text=True)
    assert bad.returncode != 0 and "no_such_key" in bad.stderr + bad.stdout


def test_refuses_an_open_address_without_tls_or_token(tmp_path):
    run = subprocess.run([BIN / "sagequantd", "--data-dir", tmp_path, "--grpc-listen", "0.0.0.0:0"], capture_output=True,
                         text=True, timeout=20)
    assert run.returncode != 0


@pytest.mark.parametrize("body", ["{", "[]", "{}", '{"model": "s", "prompt": 7}', "\xff\xfe", '{"a":' * 3000])
def test_hostile_bodies(daemon, engine, body):
    answer = requests.post(f"http://{daemon.http}/v1/completions", data=body.encode("latin-1"), timeout=10)
    assert 400 <= answer.status_code < 500, answer.text
