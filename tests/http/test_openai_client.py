"""The openai client, where it is installed."""
import pytest

openai = pytest.importorskip("openai", reason="SKIP: the openai client is not installed")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % server.port, api_key="EMPTY",
                       max_retries=0) as c:
        yield c


ASK = {"model": "internlm2-demo", "messages": [{"role": "user", "content": "What is turbod?"}],
       "temperature": 0, "max_tokens": 40}


def test_chat(client):
    r = client.chat.completions.create(**ASK)
    assert "turbod" in r.choices[0].message.content and r.choices[0].finish_reason == "stop"
    assert r.usage.prompt_tokens_details.cached_tokens <= 1  # bos is everybody's
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True},
                                                 **ASK))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == r.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == r.usage.completion_tokens
    lp = client.chat.completions.create(logprobs=True, top_logprobs=2, **ASK).choices[0].logprobs
    assert len(lp.content[0].top_logprobs) >= 2


def test_completions_and_models(client):
    r = client.completions.create(model="internlm2-demo", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert len(r.choices) == 2 and len(r.choices[0].logprobs.tokens) <= 3
    assert client.models.list().data[0].id == "internlm2-demo"
    assert client.models.retrieve("internlm2-demo").id == "internlm2-demo"


def test_errors(client):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(**{**ASK, "model": "gpt-4"})
    assert e.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(**{**ASK, "temperature": 3})
    assert e.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(**{**ASK, "messages": [
            {"role": "user", "content": "x y " * 2000}]})
    assert e.value.code == "context_length_exceeded"


def test_leave_a_stream(client, server):
    s = client.chat.completions.create(stream=True, **{**ASK, "max_tokens": 900})
    next(iter(s))
    s.close()
