"""Talks to a running daemon with the `openai` package, over the Unix socket given as
the only argument. Exits 0 if everything is as an OpenAI client expects it.

    python3 tests/openai_client.py /run/specserve.sock
"""

import asyncio
import sys
import typing

import openai
import pydantic

try:
    import httpx2 as httpx  # what openai builds on since its version 3
except ImportError:
    import httpx

# The host is only a name: the transport connects to the socket.
BASE_URL = "http://specserve/v1"

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
# Same seed, same text, streamed or not.
SAMPLING = dict(max_tokens=24, temperature=0.8, top_p=0.9, seed=7)


def sync_client(socket):
    transport = httpx.HTTPTransport(uds=socket)
    return openai.OpenAI(
        base_url=BASE_URL, api_key="unused", max_retries=0, http_client=httpx.Client(transport=transport)
    )


def async_client(socket):
    transport = httpx.AsyncHTTPTransport(uds=socket)
    return openai.AsyncOpenAI(
        base_url=BASE_URL, api_key="unused", max_retries=0, http_client=httpx.AsyncClient(transport=transport)
    )


def check_usage(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def counts(usage):
    # The second of two equal requests finds its prompt in the prefix cache, and says so.
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def check_models(client):
    models = client.models.list().data
    assert len(models) == 1, models
    assert client.models.retrieve(models[0].id).id == models[0].id
    return models[0].id


def check_chat(client, model):
    whole = client.chat.completions.create(model=model, messages=MESSAGES, **SAMPLING)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, whole
    assert choice.finish_reason in ("stop", "length"), whole
    check_usage(whole.usage)
    assert whole.model_extra["metrics"]["seed"] == SAMPLING["seed"], whole

    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SAMPLING
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason, chunks[-2]
    assert chunks[-1].choices == [] and counts(chunks[-1].usage) == counts(whole.usage), chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1])

    # A conversation that goes on, with the answer as the client holds it.
    messages = [*MESSAGES, choice.message.model_dump(), {"role": "user", "content": "Go on."}]
    assert client.chat.completions.create(model=model, messages=messages, max_tokens=4).choices
    return choice.message.content


def check_completions(client, model):
    prompt = "Once upon a time"
    whole = client.completions.create(model=model, prompt=prompt, **SAMPLING)
    assert whole.choices[0].text and whole.choices[0].finish_reason in ("stop", "length"), whole
    check_usage(whole.usage)
    chunks = list(client.completions.create(model=model, prompt=prompt, stream=True, **SAMPLING))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason, chunks[-1]
    assert client.completions.create(model=model, prompt=[10, 11, 12], max_tokens=2).usage.prompt_tokens == 3


def check_stop(client, model, text):
    stop = text[2:5]
    answer = client.chat.completions.create(model=model, messages=MESSAGES, stop=stop, **SAMPLING)
    expected = text[: text.index(stop)]
    assert answer.choices[0].message.content == expected, (answer, expected)
    assert answer.choices[0].finish_reason == "stop", answer


def check_extensions(client, model):
    extra = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "slo": {"ttft_ms": 60000, "tpot_ms": 10000}}
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, extra_body=extra, extra_headers={"x-slo-ttft-ms": "60000"}
    )
    metrics = answer.model_extra["metrics"]
    assert metrics["ttft_ms"] >= metrics["queue_ms"] >= 0, metrics
    speculation = metrics["speculative_decoding"]
    accepted, verified = speculation["num_accepted_draft_tokens"], speculation["num_draft_tokens"]
    assert accepted <= verified <= speculation["num_proposed_draft_tokens"], speculation
    assert sum(speculation["acceptance_histogram"]) == speculation["num_spec_steps"], speculation


class Fox(pydantic.BaseModel):
    colour: typing.Literal["red", "grey"]
    happy: bool
    friends: list[typing.Literal["owl", "bear"]] = pydantic.Field(max_length=2)


def check_structured_output(client, model):
    """The package makes a schema of a class and an object of the answer."""
    for sampling in [{"temperature": 0}, {"temperature": 1, "seed": 3}]:
        request = dict(model=model, messages=MESSAGES, response_format=Fox, max_tokens=200, **sampling)
        answer = client.chat.completions.parse(**request)
        assert isinstance(answer.choices[0].message.parsed, Fox), answer
        with client.chat.completions.stream(**request) as stream:
            streamed = stream.get_final_completion()
        assert streamed.choices[0].message.parsed == answer.choices[0].message.parsed, streamed


def check_refused(client, kind, param, **request):
    try:
        client.chat.completions.create(**{"messages": MESSAGES, **request})
    except kind as error:
        assert error.param == param, (error.param, param)
        assert error.message, error
    else:
        raise AssertionError(f"{request} was accepted")


def check_errors(client, model):
    bad = openai.BadRequestError
    check_refused(client, openai.NotFoundError, "model", model="no-such-model")
    check_refused(client, bad, "n", model=model, n=2)
    check_refused(client, bad, "max_tokens", model=model, max_tokens=-1)
    check_refused(client, bad, "temperature", model=model, temperature=9)
    check_refused(client, bad, "logprobs", model=model, logprobs=True)
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"type": "thing"}}}}}
    check_refused(client, bad, "response_format.json_schema.schema", model=model, response_format=wrong)
    check_refused(client, bad, "messages", model=model, messages=[])
    check_refused(client, bad, "typo", model=model, extra_body={"typo": 1})
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    check_refused(client, bad, "tools", model=model, tools=[tool])
    check_refused(client, bad, "messages", model=model, messages=[{"role": "user", "content": "word " * 50_000}])


def check_huge_body(client, model):
    messages = [{"role": "user", "content": "x" * (50 << 20)}]
    try:
        client.chat.completions.create(model=model, messages=messages)
    except openai.APIStatusError as error:
        assert error.status_code == 413 and error.code == "body_too_large", error
    else:
        raise AssertionError("50 MB were accepted")


def check_leaving(client, model):
    """A stream that is closed early leaves the daemon serving."""
    stream = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=64, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2).choices


async def check_async(socket, model):
    async with async_client(socket) as client:

        async def ask():
            stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **SAMPLING)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*(ask() for _ in range(4)))
        assert answers[0] and len(set(answers)) == 1, answers


def main():
    socket = sys.argv[1]
    with sync_client(socket) as client:
        model = check_models(client)
        text = check_chat(client, model)
        check_completions(client, model)
        check_stop(client, model, text)
        check_extensions(client, model)
        check_structured_output(client, model)
        check_errors(client, model)
        check_huge_body(client, model)
        check_leaving(client, model)
    asyncio.run(check_async(socket, model))
    print("ok")


if __name__ == "__main__":
    main()
