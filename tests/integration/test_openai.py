"""The OpenAI Python client, unchanged, against the HTTP port."""
import pytest
import requests

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(daemon, engine):
    return openai.OpenAI(base_url=f"http://{daemon.http}/v1", api_key="unused", max_retries=0)


def test_models(client, engine):
    assert engine in [m.id for m in client.models.list()]


def test_completion_equals_its_stream(client, engine):
    options = dict(model=engine, prompt="Once upon a time", max_tokens=16, temperature=0)
    whole = client.completions.create(**options)
    assert whole.usage.completion_tokens == 16 and whole.choices[0].finish_reason == "length"
    pieces = list(client.completions.create(stream=True, **options))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert pieces[-1].choices == [] or pieces[-1].choices[0].finish_reason == "length"


def test_errors(client, daemon, engine):
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="not-there", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=engine, prompt="x", temperature=-3)
    with pytest.raises(openai.BadRequestError):  # the model has no chat template
        client.chat.completions.create(model=engine, messages=[{"role": "user", "content": "Hi"}])
    assert requests.post(f"http://{daemon.http}/v1/completions", data="{not json", timeout=10).status_code == 400


def test_health_metrics_management(daemon, engine):
    base = f"http://{daemon.http}"
    for path in ("/health", "/health/live", "/health/ready"):
        assert requests.get(base + path, timeout=10).status_code == 200, path
    text = requests.get(base + "/metrics", timeout=10).text
    for name in ("sage_requests_total", "sage_time_to_first_token_seconds_bucket", "sage_generated_tokens_total",
                 "sage_kv_pages_total"):
        assert name in text, name
    engines = requests.get(base + "/v1/management/engines", timeout=10).json()
    assert engine in str(engines)
