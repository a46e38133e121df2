"""Talks to a daemon as its users do: the `openai` package over a Unix socket.

usage: openai_client.py SOCKET
"""

import sys

import openai

try:
    import httpx2 as httpx  # what openai 3 is built on
except ImportError:
    import httpx


def main(socket: str) -> None:
    transport = httpx.HTTPTransport(uds=socket)
    client = openai.OpenAI(
        base_url="http://localhost/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(transport=transport),
    )
    model = client.models.list().data[0].id
    question = [{"role": "user", "content": "What is a river?"}]
    greedy = {"model": model, "temperature": 0, "max_tokens": 24}

    answer = client.chat.completions.create(messages=question, **greedy)
    text = answer.choices[0].message.content
    assert text, answer
    assert answer.choices[0].finish_reason in ("stop", "length"), answer
    assert 0 < answer.usage.completion_tokens <= 24, answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer

    pieces, usage = [], None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(messages=question, stream=True, stream_options=options, **greedy):
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    assert "".join(pieces) == text, (pieces, text)
    assert usage == answer.usage, (usage, answer.usage)

    whole = client.completions.create(prompt="Once upon a time", **greedy).choices[0].text
    streamed = client.completions.create(prompt="Once upon a time", stream=True, **greedy)
    assert whole and "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == whole

    seeded = {"model": model, "temperature": 0.8, "max_tokens": 24, "seed": 7, "messages": question}
    first, second = (client.chat.completions.create(**seeded).choices[0].message.content for _ in range(2))
    assert first == second, (first, second)

    for wrong in ({"model": "absent"}, {"max_tokens": -1}):
        try:
            client.chat.completions.create(messages=question, **{**greedy, **wrong})
        except (openai.BadRequestError, openai.NotFoundError) as error:
            assert error.body and error.body["message"], error
        else:
            raise AssertionError(f"{wrong} was taken")
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
