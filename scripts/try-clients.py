#!/usr/bin/env python3
"""Runs real clients, unmodified, against a daemon that listens on TCP.

    scripts/try-clients.py http://127.0.0.1:8000 --tokenizer MODEL_DIR [CLIENT ...]

Clients are Python packages of this interpreter and programs beside it. Those that are not
installed are reported and left out; several of them exclude each other, so use an environment
for each (docs/clients.md). Exits 0 if all that ran are fine, 1 if one is not, 2 if none ran.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
LONG = [{"role": "user", "content": "word " * 200_000}]

# Longest time that a program may take, in seconds.
PROGRAM_TIMEOUT_S = 300


def program(name):
    """A program installed beside the interpreter."""
    return str(pathlib.Path(sys.executable).parent / name)


def run(*arguments, **environment):
    """Runs a program; its output."""
    done = subprocess.run(
        arguments,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
    )
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout[-2000:]}"
    return done.stdout


def post(url, path, body):
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def try_openai(url, model, _):
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=16, seed=7)
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0, whole.usage
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=16,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]
    assert client.completions.create(model=model, prompt="Once", max_tokens=4).choices[0].text


def try_litellm(url, model, _):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network
    import litellm

    litellm.suppress_debug_info = True
    for provider in ("openai", "hosted_vllm"):
        access = dict(model=f"{provider}/{model}", api_base=f"{url}/v1", api_key="unused")
        assert litellm.completion(messages=MESSAGES, max_tokens=8, **access).choices[0].message.content
        chunks = litellm.completion(messages=MESSAGES, max_tokens=8, stream=True, **access)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        try:
            litellm.completion(messages=LONG, **access)
        except litellm.ContextWindowExceededError:
            pass
        else:
            raise AssertionError("an endless prompt was served")


def try_langchain(url, model, _):
    import pydantic
    from langchain_core.exceptions import ContextOverflowError
    from langchain_openai import ChatOpenAI, OpenAI

    access = dict(model=model, base_url=f"{url}/v1", api_key="unused", max_retries=0)
    chat = ChatOpenAI(max_tokens=8, **access)
    answer = chat.invoke("Tell me a story.")
    assert answer.content and answer.usage_metadata["output_tokens"] > 0, answer
    assert "".join(chunk.content for chunk in chat.stream("Tell me a story."))
    assert OpenAI(max_tokens=8, **access).invoke("Once upon a time")

    class Animal(pydantic.BaseModel):
        tame: bool

    chat_of_schemas = ChatOpenAI(max_tokens=100, **access).with_structured_output(Animal)
    assert isinstance(chat_of_schemas.invoke("Tell me of a fox."), Animal)
    try:
        chat.invoke(LONG)
    except ContextOverflowError:
        pass
    else:
        raise AssertionError("an endless prompt was served")


def try_autogen(url, model, _):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    abilities = dict(
        vision=False, function_calling=False, json_output=False, structured_output=False, family="unknown"
    )

    async def talk():
        client = OpenAIChatCompletionClient(
            model=model,
            base_url=f"{url}/v1",
            api_key="unused",
            max_tokens=16,
            model_info=abilities,
            include_name_in_message=True,
        )
        team = RoundRobinGroupChat(
            [AssistantAgent("alice", client), AssistantAgent("bob", client, model_client_stream=True)],
            termination_condition=MaxMessageTermination(3),
        )
        result = await team.run(task="Talk about foxes.")
        await client.close()
        return [message.content for message in result.messages]

    said = asyncio.run(talk())
    assert len(said) == 3 and all(said), said


def try_instructor(url, model, _):
    """Structured output by a schema, and as JSON in the text. Of the latter a small model may write
    none, so this checks only that the requests are served."""
    import instructor
    import openai
    import pydantic
    from instructor.core.exceptions import InstructorError

    class Animal(pydantic.BaseModel):
        tame: bool

    answers = []
    access = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    client = instructor.from_openai(access, mode=instructor.Mode.JSON_SCHEMA)
    request = dict(model=model, messages=MESSAGES, response_model=Animal, max_retries=0)
    assert isinstance(client.chat.completions.create(max_tokens=100, **request), Animal)
    client = instructor.from_openai(access, mode=instructor.Mode.MD_JSON)
    client.on("completion:response", answers.append)
    with contextlib.suppress(InstructorError):
        client.chat.completions.create(max_tokens=16, **request)
    assert answers, "no answer"


def try_pydantic_ai(url, model, _):
    import pydantic
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Animal(pydantic.BaseModel):
        tame: bool

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="unused")
    agent = Agent(OpenAIChatModel(model, provider=provider), output_type=NativeOutput(Animal))
    assert isinstance(agent.run_sync("Tell me of a fox.", model_settings={"max_tokens": 100}).output, Animal)


def try_guidellm(url, model, tokenizer):
    with tempfile.TemporaryDirectory() as directory:
        report = pathlib.Path(directory) / "report.json"
        run(
            program("guidellm"),
            "run",
            *("--backend", f"kind=openai_http,target={url},model={model}"),
            *("--profile", "kind=concurrent,streams=2"),
            *("--constraint", "kind=max_requests,count=8"),
            *("--tokenizer", f"kind=hf_auto,model={tokenizer}"),
            *("--data", "kind=synthetic_text,prompt_tokens=40,output_tokens=16"),
            "--disable-console-interactive",
            *("--output", f"kind=json,path={report}"),
        )
        totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == 8 and totals["errored"] == 0, totals


def try_aiperf(url, model, tokenizer):
    with tempfile.TemporaryDirectory() as directory:
        run(
            *(program("aiperf"), "profile", "-m", model, "--url", url, "--endpoint-type", "chat"),
            *("--streaming", "--tokenizer", tokenizer, "--ui", "none"),
            *("--synthetic-input-tokens-mean", "40", "--output-tokens-mean", "16"),
            *("--request-count", "8", "--concurrency", "2", "--extra-inputs", "ignore_eos:true"),
            *("--output-artifact-dir", directory),
        )
        report = json.loads((pathlib.Path(directory) / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == 8, report["request_count"]
    text = json.dumps(report)
    assert "acceptance" in text, "no acceptance in the report"


TASK = """
task: specserve_stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{beginning}}}}"
doc_to_target: "{{{{ending}}}}"
generation_kwargs:
  until: ["\\n\\n", "\\nclass", "\\ndef", "\\n#", "\\nif", "\\nprint"]
  max_gen_toks: 16
  do_sample: false
metric_list: [{{metric: exact_match}}]
"""


def try_lm_eval(url, model, _):
    """Generation over both routes, tokenized by the server."""
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        data = directory / "stories.jsonl"
        data.write_text("".join(json.dumps({"beginning": f"Fox {n} was", "ending": ""}) + "\n" for n in range(3)))
        (directory / "stories.yaml").write_text(TASK.format(data=data))
        for kind, path, extra in (
            ("local-completions", "completions", []),
            ("local-chat-completions", "chat/completions", ["--apply_chat_template"]),
        ):
            arguments = f"model={model},base_url={url}/v1/{path},tokenizer_backend=remote,max_retries=1"
            output = run(
                *(program("lm_eval"), "--model", kind, "--model_args", arguments),
                *("--tasks", "specserve_stories", "--include_path", str(directory), *extra),
                HF_HUB_OFFLINE="1",
            )
            assert "exact_match" in output, output[-2000:]


@contextlib.contextmanager
def router(*command):
    """A router in front of the daemon on a port of its own; its address."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", ports[0], "--prometheus-port", ports[1]],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"http://127.0.0.1:{ports[0]}"
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-3000:])
            raise
        finally:
            process.terminate()
            process.wait(30)


def try_router(model, *command):
    with router(*command) as url:
        body = {"model": model, "messages": MESSAGES, "max_tokens": 8}
        for attempt in range(60):
            try:
                answer = json.loads(post(url, "/v1/chat/completions", body))
                break
            except (urllib.error.URLError, ConnectionError):
                assert attempt < 59, "the router serves nothing after a minute"
                time.sleep(1)
        assert answer["choices"][0]["message"]["content"], answer
        assert "data: [DONE]" in post(url, "/v1/chat/completions", {**body, "stream": True})
        completion = json.loads(post(url, "/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 4}))
        assert completion["choices"][0]["text"], completion


def try_sglang_router(url, model, _):
    try_router(model, sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", url)


def try_vllm_router(url, model, _):
    try_router(model, program("vllm-router"), "--worker-urls", url)


# By name: the package whose version counts, and the check.
CLIENTS = {
    "openai": ("openai", try_openai),
    "litellm": ("litellm", try_litellm),
    "langchain": ("langchain-openai", try_langchain),
    "autogen": ("autogen-ext", try_autogen),
    "instructor": ("instructor", try_instructor),
    "pydantic-ai": ("pydantic-ai-slim", try_pydantic_ai),
    "guidellm": ("guidellm", try_guidellm),
    "aiperf": ("aiperf", try_aiperf),
    "lm-eval": ("lm-eval", try_lm_eval),
    "sglang-router": ("sglang-router", try_sglang_router),
    "vllm-router": ("vllm-router", try_vllm_router),
}
NEED_TOKENIZER = {"guidellm", "aiperf"}


def served_model(url):
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        return json.load(response)["data"][0]["id"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the daemon, such as http://127.0.0.1:8000")
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; default: all")
    parser.add_argument("--tokenizer", help="directory of the served model, for benchmarks that tokenize")
    arguments = parser.parse_args()
    unknown = set(arguments.clients) - set(CLIENTS)
    if unknown:
        parser.error(f"unknown clients: {', '.join(sorted(unknown))}")
    url = arguments.url.rstrip("/")
    model = served_model(url)
    ran, failed = 0, 0
    for name in arguments.clients or CLIENTS:
        package, check = CLIENTS[name]
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed here", flush=True)
            continue
        if name in NEED_TOKENIZER and not arguments.tokenizer:
            print(f"{name} {version}: needs --tokenizer", flush=True)
            continue
        ran += 1
        try:
            check(url, model, arguments.tokenizer)
            print(f"{name} {version}: ok", flush=True)
        except Exception as error:  # reported, and the others still run
            failed += 1
            print(f"{name} {version}: FAILED: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0 if ran else 2


if __name__ == "__main__":
    sys.exit(main())
