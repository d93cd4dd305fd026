"""The OpenAI Python client, unchanged, against the HTTP port."""
import json
import socket
import threading
import time

import openai
import pytest
import requests
from conftest import Daemon


@pytest.fixture(scope="module")
def client(daemon, engine):
    return openai.OpenAI(base_url=f"http://{daemon.http}/v1", api_key="unused", max_retries=0)


def test_models(client, engine, chat_engine):
    models = {m.id: m for m in client.models.list()}
    assert engine in models and models[engine].root == "stories260K" and models[engine].max_model_len > 0
    assert models[chat_engine].chat is True and models[engine].chat is False
    assert client.models.retrieve(engine).quantization == models[engine].quantization
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("not-there")


def test_completion_equals_its_stream(client, engine):
    options = dict(model=engine, prompt="Once upon a time", max_tokens=16, temperature=0)
    whole = client.completions.create(**options)
    assert whole.usage.completion_tokens == 16 and whole.choices[0].finish_reason == "length"
    pieces = list(client.completions.create(stream=True, **options))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length" and all(p.usage is None for p in pieces)
    pieces = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    assert pieces[-1].choices == [] and pieces[-1].usage == whole.usage


def test_prompts_as_lists_and_ids(client, engine, daemon):
    text = client.completions.create(model=engine, prompt="Once upon a time", max_tokens=8, temperature=0).choices[0].text
    ids = daemon.json("llm", "tokenize", "--engine", engine, "--text", "Once upon a time")["ids"]
    for prompt in (ids, [ids], ["Once upon a time"]):
        assert client.completions.create(model=engine, prompt=prompt, max_tokens=8, temperature=0).choices[0].text == text
    many = client.completions.create(model=engine, prompt=["Once upon a time", "The dog", "Once upon a time"], max_tokens=8,
                                     temperature=0, n=2)
    assert [c.index for c in many.choices] == list(range(6)) and many.choices[0].text == many.choices[4].text == text
    assert many.usage.completion_tokens == 48
    streamed = [""] * 6
    for piece in client.completions.create(model=engine, prompt=["Once upon a time", "The dog", "Once upon a time"], max_tokens=8,
                                           temperature=0, n=2, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
    assert streamed == [c.text for c in many.choices]
    for bad in ([], [[]], ["a", [1]], [1, "a"], 7, [10 ** 12]):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=engine, prompt=bad, max_tokens=1)


def test_logprobs_and_echo(client, engine):
    options = dict(model=engine, prompt="Once upon a time", max_tokens=6, temperature=0, logprobs=2)
    plain = client.completions.create(**options).choices[0]
    assert len(plain.logprobs.tokens) == 6 and all(len(t) == 2 for t in plain.logprobs.top_logprobs)
    assert plain.logprobs.text_offset[0] == 0 and plain.logprobs.text_offset == sorted(plain.logprobs.text_offset)
    assert all(p == max(t.values()) for p, t in zip(plain.logprobs.token_logprobs, plain.logprobs.top_logprobs))
    echo = client.completions.create(echo=True, **options).choices[0]
    assert echo.text == "Once upon a time" + plain.text
    prompt = len(echo.logprobs.tokens) - 6
    assert prompt >= 4 and echo.logprobs.token_logprobs[0] is None and echo.logprobs.top_logprobs[0] is None
    assert all(p < 0 for p in echo.logprobs.token_logprobs[1:])
    assert echo.logprobs.tokens[prompt:] == plain.logprobs.tokens
    assert echo.logprobs.token_logprobs[prompt:] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-4)
    # The prompt's logprobs are those of scoring: what a greedy continuation got, it gets again as a prompt.
    again = client.completions.create(model=engine, prompt=echo.text, max_tokens=1, temperature=0, logprobs=0, echo=True).choices[0]
    assert again.logprobs.token_logprobs[-2] == pytest.approx(plain.logprobs.token_logprobs[-1], abs=1e-3)
    pieces = [p.choices[0] for p in client.completions.create(echo=True, stream=True, **options)]
    assert pieces[0].text == "Once upon a time" and "".join(p.text for p in pieces) == echo.text
    offsets = [o for p in pieces for o in p.logprobs.text_offset]
    assert offsets == echo.logprobs.text_offset


def check_places(logprobs, text, skip=0):
    """Tokens join to the text, each stands where text_offset says, and no alternative hides another."""
    tokens, offsets = logprobs.tokens[skip:], logprobs.text_offset[skip:]
    assert "".join(tokens) == text
    assert offsets[0] == 0 and all(text[o:].startswith(t) for o, t in zip(offsets, tokens))


def test_token_texts_join_to_the_text(client, engine):
    options = dict(model=engine, max_tokens=24, temperature=0, logprobs=5)
    plain = client.completions.create(prompt="Once upon a time", **options).choices[0]
    assert plain.text.startswith(",") or " " in plain.text
    check_places(plain.logprobs, plain.text)
    assert all(len(t) == 5 for t in plain.logprobs.top_logprobs)
    assert all(t in top for t, top in zip(plain.logprobs.tokens, plain.logprobs.top_logprobs))
    echo = client.completions.create(prompt="Once upon a time", echo=True, **options).choices[0]
    check_places(echo.logprobs, echo.text, skip=1)  # the first is BOS, which is no part of the text
    assert echo.logprobs.text_offset[0] == 0
    assert all(len(t) == 5 and all(t) for t in echo.logprobs.top_logprobs[1:])  # alternatives have texts and none is lost
    # Letters that the vocabulary has only as bytes: offsets count characters.
    wide = client.completions.create(prompt="Ünï ↯ end", echo=True, **options).choices[0]
    end = next(i for i, t in enumerate(wide.logprobs.tokens) if t.strip().startswith("e") and i > 3)
    assert wide.text[wide.logprobs.text_offset[end]:].startswith(wide.logprobs.tokens[end])


def test_chat_token_texts_join_to_the_message(client, chat_engine):
    choice = client.chat.completions.create(model=chat_engine, messages=[{"role": "user", "content": "Tell a story"}],
                                            max_tokens=24, temperature=0, logprobs=True, top_logprobs=4).choices[0]
    content = choice.logprobs.content
    assert "".join(t.token for t in content) == choice.message.content
    assert b"".join(bytes(t.bytes) for t in content).decode() == choice.message.content
    assert all(any(top.token == t.token for top in t.top_logprobs) for t in content)


def test_seed_n_stop(client, engine):
    options = dict(model=engine, prompt="The little dog", max_tokens=16, temperature=0.9, seed=7, n=3)
    first, second = (client.completions.create(**options) for _ in range(2))
    texts = [c.text for c in first.choices]
    assert texts == [c.text for c in second.choices] and len(set(texts)) > 1
    whole = client.completions.create(model=engine, prompt="Once upon a time", max_tokens=40, temperature=0).choices[0].text
    stop = whole[10:14]
    for value in (stop, [stop], ["never-there", stop]):
        cut = client.completions.create(model=engine, prompt="Once upon a time", max_tokens=40, temperature=0, stop=value).choices[0]
        assert cut.text == whole[:whole.index(stop)] and cut.finish_reason == "stop"


def test_chat(client, chat_engine):
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Tell a story"}]
    whole = client.chat.completions.create(model=chat_engine, messages=messages, max_completion_tokens=12, temperature=0,
                                           logprobs=True, top_logprobs=3)
    assert whole.choices[0].message.role == "assistant" and whole.usage.completion_tokens == 12
    content = whole.choices[0].logprobs.content
    assert len(content) == 12 and len(content[0].top_logprobs) == 3 and bytes(content[0].bytes).decode() == content[0].token
    pieces = list(client.chat.completions.create(model=chat_engine, messages=messages, max_completion_tokens=12, temperature=0,
                                                 stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    again = pieces[-1].usage
    assert (again.prompt_tokens, again.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert again.prompt_tokens_details.cached_tokens > 0  # the first call's pages, found again
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole.choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": "Tell "}, {"type": "text", "text": "a story"}]}]
    joined = client.chat.completions.create(model=chat_engine, messages=parts, max_tokens=5, temperature=0)
    plain = client.chat.completions.create(model=chat_engine, messages=[{"role": "user", "content": "Tell a story"}], max_tokens=5,
                                           temperature=0)
    assert joined.choices[0].message.content == plain.choices[0].message.content


def test_tool_messages_reach_the_template(client, chat_engine, daemon):
    calls = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    messages = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]
    text = "<user>Rain?</user><assistant>[weather]</assistant><tool>sunny</tool><assistant>"
    answer = client.chat.completions.create(model=chat_engine, messages=messages, max_tokens=8, temperature=0)
    ids = daemon.json("llm", "tokenize", "--engine", chat_engine, "--text", text, "--no-special")["ids"]
    assert answer.usage.prompt_tokens == len(ids)


def test_errors_have_the_shape_of_openai(client, daemon, engine, chat_engine):
    def refused(kind, call, **options):
        with pytest.raises(kind) as caught:
            call(**options)
        body = caught.value.body
        assert body["message"] and body["type"] and body["code"] == caught.value.code
        return caught.value

    complete, chat = client.completions.create, client.chat.completions.create
    error = refused(openai.NotFoundError, complete, model="not-there", prompt="x")
    assert error.code == "ENGINE_NOT_FOUND" and error.type == "not_found_error"
    error = refused(openai.BadRequestError, complete, model=engine, prompt="x", temperature=-3)
    assert error.param == "temperature" and error.type == "invalid_request_error" and error.code == "OUT_OF_RANGE"
    messages = [{"role": "user", "content": "Hi"}]
    error = refused(openai.BadRequestError, chat, model=engine, messages=messages)  # the model has no chat template
    assert error.code == "NO_CHAT_TEMPLATE"
    for options, param in (({"response_format": {"type": "json_object"}}, "response_format"), ({"messages": []}, "messages"),
                           ({"functions": [{"name": "f"}]}, "functions"), ({"extra_body": {"echo": True}}, "echo"),
                           ({"n": 0}, "n"), ({"max_completion_tokens": 0}, "max_tokens"), ({"seed": "x"}, "seed"),
                           ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages")):
        error = refused(openai.BadRequestError, chat, **{"model": chat_engine, "messages": messages, **options})
        assert error.param == param, error
    assert chat(model=chat_engine, messages=messages, max_tokens=1, response_format={"type": "text"}).choices
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model=engine, input="x")
    assert caught.value.status_code == 501 and caught.value.code == "EMBEDDINGS_UNSUPPORTED"
    assert requests.post(f"http://{daemon.http}/v1/completions", data="{not json", timeout=10).status_code == 400
    for path in ("completions", "chat/completions"):
        answer = requests.get(f"http://{daemon.http}/v1/{path}", timeout=10)
        assert answer.status_code == 405 and answer.headers["Allow"] == "POST", answer.text
        assert answer.json()["error"]["code"] == "METHOD_NOT_ALLOWED"


def slow_request(daemon, engine, stream):
    """A raw connection that asks for a long generation and reads nothing."""
    host, port = daemon.http.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps({"model": engine, "prompt": "Once", "max_tokens": 450, "ignore_eos": True, "n": 4, "stream": stream,
                       "logprobs": 5})
    connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def wait_running(daemon, engine, at_least):
    for _ in range(400):
        if daemon.json("llm", "engine", "get", engine)["load"]["running"] >= at_least:
            return
        time.sleep(0.005)
    raise AssertionError("the request did not start")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels(daemon, engine, stream):
    before = requests.get(f"http://{daemon.http}/metrics", timeout=10).text
    connection = slow_request(daemon, engine, stream)
    wait_running(daemon, engine, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0" if stream else b"\0" * 8)
    connection.close()
    daemon.wait_idle(engine)
    after = requests.get(f"http://{daemon.http}/metrics", timeout=10).text

    def cancelled(metrics):
        rows = [line for line in metrics.splitlines() if line.startswith("sage_rpc_requests_total{") and "CANCELLED" in line
                and "Completions" in line]
        return sum(float(row.split()[-1]) for row in rows)
    for _ in range(100):
        if cancelled(after) > cancelled(before):
            return
        time.sleep(0.05)
        after = requests.get(f"http://{daemon.http}/metrics", timeout=10).text
    pytest.fail("the request was not cancelled")


def test_slow_readers_do_not_block_others(tmp_path, model_root):
    daemon = Daemon(tmp_path, model_root, ["--http-threads", "8"])
    daemon.json("llm", "engine", "start", "stories260K", "--engine-id", "s")
    idle = [slow_request(daemon, "s", True) for _ in range(7)]
    wait_running(daemon, "s", 4)
    url = f"http://{daemon.http}"
    began = time.time()
    assert requests.get(url + "/health/ready", timeout=5).status_code == 200
    refused = requests.post(url + "/v1/completions", json={"model": "s", "prompt": "x", "max_tokens": 2}, timeout=5)
    assert time.time() - began < 4
    if refused.status_code != 200:  # all slots are held by the slow ones: said at once, with when to come again
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "HTTP_BUSY" and refused.headers["Retry-After"]
    for connection in idle:
        connection.close()
    daemon.wait_idle("s")
    deadline = time.time() + 10
    while requests.post(url + "/v1/completions", json={"model": "s", "prompt": "x", "max_tokens": 2}, timeout=5).status_code != 200:
        assert time.time() < deadline
        time.sleep(0.05)
    daemon.stop()


def test_a_slow_grpc_reader_does_not_block_others(daemon, engine):
    import grpc
    channel = grpc.insecure_channel(daemon.grpc, options=[("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)])
    calls = [channel.unary_stream("/sage.quant.v1.GenerationService/Generate")(generate_bytes(engine)) for _ in range(8)]
    for call in calls:
        next(call)  # and no more
    began = time.time()
    out = daemon.json("llm", "generate", "--engine", engine, "--prompt", "Once", "--max-tokens", "4")
    assert out["usage"]["completion_tokens"] == 4 and time.time() - began < 20
    for call in calls:
        call.cancel()
    channel.close()
    daemon.wait_idle(engine)


def generate_bytes(engine):
    """GenerateRequest{engine_id, text "Once", options{max_tokens 450, ignore_eos, logprobs 5}} written by hand."""
    options = b"\x10\xc2\x03" + b"\x28\x01" + b"\x30\x05"
    return (b"\x12" + bytes([len(engine)]) + engine.encode() + b"\x1a\x04Once" + b"\x2a" + bytes([len(options)]) + options)


def test_best_of_is_never_ignored(daemon, engine):
    url = f"http://{daemon.http}/v1/completions"
    refused = requests.post(url, json={"model": engine, "prompt": "x", "max_tokens": 2, "best_of": 2}, timeout=10)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "best_of", refused.text


def test_many_clients_at_once(client, engine):
    texts = []
    threads = [threading.Thread(target=lambda: texts.append(client.completions.create(
        model=engine, prompt="Once upon a time", max_tokens=12, temperature=0).choices[0].text)) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 24 and len(set(texts)) == 1


def test_health_and_metrics(daemon, engine):
    base = f"http://{daemon.http}"
    for path in ("/health", "/health/live", "/health/ready"):
        assert requests.get(base + path, timeout=10).status_code == 200, path
    text = requests.get(base + "/metrics", timeout=10).text
    for name in ("sage_requests_total", "sage_time_to_first_token_seconds_bucket", "sage_generated_tokens_total",
                 "sage_kv_pages_total"):
        assert name in text, name
