"""The official openai client against the whole path: gateway, tokenizer, scheduler, two ranks."""

import asyncio
import json
import math

import openai
import pytest

from conftest import DEMO, PATIENCE, REPO, SHARED, Server

GOLDEN = json.loads((REPO / "tests/golden/demo.json").read_text())["prompts"]
HELLO = [{"role": "user", "content": "Hello, who are you?"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                         timeout=60 * PATIENCE)


@pytest.mark.parametrize("golden", GOLDEN, ids=range(len(GOLDEN)))
def test_chat_equals_transformers(client, golden):
    reply = client.chat.completions.create(model="demo-model", messages=golden["messages"],
                                           temperature=0, max_tokens=48)
    assert reply.choices[0].message.content == golden["text"]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == len(golden["ids"])
    assert reply.usage.completion_tokens == golden["stop"] + 1
    assert reply.usage.total_tokens == len(golden["ids"]) + golden["stop"] + 1


def test_generate_ids_equal_transformers(server):
    for golden in GOLDEN:
        status, reply = server.post("/generate", {
            "input_ids": golden["ids"],
            "sampling_params": {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True}})
        assert status == 200
        assert reply["output_ids"] == golden["greedy"]
        assert reply["meta_info"]["completion_tokens"] == 48
        assert reply["meta_info"]["finish_reason"]["type"] == "length"


def test_chat_stream_equals_whole(client):
    whole = client.chat.completions.create(model="demo-model", messages=HELLO, seed=5,
                                           temperature=1.2, max_tokens=60)
    stream = client.chat.completions.create(model="demo-model", messages=HELLO, seed=5,
                                            temperature=1.2, max_tokens=60, stream=True,
                                            stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices and
                c.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == \
        (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == \
        (whole.usage.prompt_tokens - 1) // 16 * 16  # whole pages, and never all of them
    assert len(chunks) > 4 and len({c.id for c in chunks}) == 1


def test_completion(client):
    whole = client.completions.create(model="demo-model", prompt="To be, or", max_tokens=12,
                                      temperature=0, echo=True)
    assert whole.choices[0].text.startswith("To be, or")
    assert whole.usage.completion_tokens <= 12
    plain = client.completions.create(model="demo-model", prompt="To be, or", max_tokens=12,
                                      temperature=0)
    assert whole.choices[0].text == "To be, or" + plain.choices[0].text
    stream = client.completions.create(model="demo-model", prompt="To be, or", max_tokens=12,
                                       temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices) == plain.choices[0].text


def test_prompt_lists_and_ids(client):
    ids = GOLDEN[0]["ids"]
    both = client.completions.create(model="demo-model", prompt=[ids, ids[:5]], max_tokens=8,
                                     temperature=0, n=2, extra_body={"ignore_eos": True})
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text
    assert both.choices[2].text == both.choices[3].text
    assert both.usage.prompt_tokens == len(ids) + 5
    assert both.usage.completion_tokens == 4 * 8
    texts = client.completions.create(model="demo-model", prompt=["Speak,", "My lord"],
                                      max_tokens=4, temperature=0)
    assert len(texts.choices) == 2


def test_logprobs(client):
    reply = client.chat.completions.create(model="demo-model", messages=HELLO, temperature=0,
                                           max_tokens=6, logprobs=True, top_logprobs=4)
    content = reply.choices[0].logprobs.content
    assert len(content) == 6
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 4
        assert token.top_logprobs[0].token == token.token  # greedy takes the most likely
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-6)
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-4
        assert bytes(token.bytes).decode(errors="replace") == token.token
    old = client.completions.create(model="demo-model", prompt="My lord", max_tokens=5,
                                    temperature=0, logprobs=2)
    logprobs = old.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5
    assert "".join(logprobs.tokens) == old.choices[0].text
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_stop_string(client):
    whole = client.completions.create(model="demo-model", prompt="My lord", max_tokens=40,
                                      temperature=0, extra_body={"ignore_eos": True})
    text = whole.choices[0].text
    stop = text[10:14]
    cut = text[:text.index(stop)]
    for stream in (False, True):
        reply = client.completions.create(model="demo-model", prompt="My lord", max_tokens=40,
                                          temperature=0, stop=["never there", stop], stream=stream,
                                          extra_body={"ignore_eos": True})
        if stream:
            chunks = [c for c in reply if c.choices]
            assert "".join(c.choices[0].text for c in chunks) == cut
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            assert reply.choices[0].text == cut
            assert reply.choices[0].finish_reason == "stop"


def test_stop_token_and_min_tokens(client, server):
    golden = GOLDEN[0]
    third = golden["greedy"][2]
    first = golden["greedy"].index(third)
    _, reply = server.post("/generate", {
        "input_ids": golden["ids"],
        "sampling_params": {"temperature": 0, "max_new_tokens": 40, "stop_token_ids": [third]}})
    assert reply["meta_info"]["completion_tokens"] == first + 1
    assert reply["meta_info"]["finish_reason"]["type"] == "stop"
    _, longer = server.post("/generate", {
        "input_ids": golden["ids"],
        "sampling_params": {"temperature": 0, "max_new_tokens": 40, "min_new_tokens": 30}})
    assert longer["meta_info"]["completion_tokens"] >= 30


def test_n_and_seeds(client):
    def texts(seed):
        reply = client.chat.completions.create(model="demo-model", messages=HELLO, n=4, seed=seed,
                                               temperature=1.0, max_tokens=30)
        assert [c.index for c in reply.choices] == [0, 1, 2, 3]
        return [c.message.content for c in reply.choices]

    first = texts(11)
    assert texts(11) == first
    assert len(set(first)) > 1
    assert texts(12) != first


def test_logit_bias(client, server):
    status, reply = server.post("/v1/completions", {
        "model": "demo-model", "prompt": GOLDEN[0]["ids"], "max_tokens": 5, "temperature": 0,
        "logit_bias": {"300": 100}, "logprobs": 0})
    assert status == 200
    assert len(set(reply["choices"][0]["logprobs"]["tokens"])) == 1


def test_same_text_alone_and_beside_others(server):
    """64 requests at once, one cancelled in the middle; texts as when asked one by one."""
    prompts = [GOLDEN[i % len(GOLDEN)]["messages"] for i in range(64)]

    async def ask(client, i):
        reply = await client.chat.completions.create(
            model="demo-model", messages=prompts[i], seed=i, temperature=0.9, max_tokens=32,
            extra_body={"ignore_eos": True})
        return reply.choices[0].message.content

    async def cancelled(client):
        stream = await client.chat.completions.create(
            model="demo-model", messages=HELLO, temperature=0, max_tokens=900, stream=True,
            extra_body={"ignore_eos": True})
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 5:
                break
        await stream.close()

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                                      timeout=120 * PATIENCE) as client:
            results = await asyncio.gather(*(ask(client, i) for i in range(64)),
                                           cancelled(client))
            alone = [await ask(client, i) for i in (0, 9, 31, 63)]
            return results[:64], alone

    together, alone = asyncio.run(all_at_once())
    assert [together[i] for i in (0, 9, 31, 63)] == alone
    server.wait_idle()
    assert server.metric("kv_pages_free") == server.metric("kv_pages_total") > 0
    assert server.metric("client_disconnects_total") >= 1


def test_chunked_prefill_and_batching_change_nothing(server):
    """Another chunk size, page size and tp: the same greedy text as the shared server's."""
    golden = max(GOLDEN, key=lambda g: len(g["ids"]))
    prompt = (golden["ids"] * 10)[:300]
    body = {"input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}}
    _, expected = server.post("/generate", body)
    with Server(tp=1, args=["--chunked-prefill-size", 7, "--page-size", 4]) as other:
        _, reply = other.post("/generate", body)
        assert reply["output_ids"] == expected["output_ids"]
    with Server(tp=4, args=["--chunked-prefill-size", -1, "--page-size", 1]) as other:
        _, reply = other.post("/generate", body)
        assert reply["output_ids"] == expected["output_ids"]


def test_errors_have_codes(client, server):
    cases = [
        ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"max_tokens": -5}, "max_tokens"), ({"n": 0}, "n"), ({"n": 1000}, "n"),
        ({"extra_body": {"min_p": 2}}, "min_p"), ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [99999999]}}, "stop_token_ids"),
        ({"max_tokens": 4, "extra_body": {"min_tokens": 5}}, "min_tokens"),
    ]
    for fields, name in cases:
        with pytest.raises(openai.BadRequestError) as e:
            client.chat.completions.create(model="demo-model", messages=HELLO, **fields)
        assert e.value.param == name, (fields, e.value)
        assert e.value.type == "invalid_request_error" and name in str(e.value)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="demo-model", prompt=[5] * 3000)
    assert "3000" in str(e.value) and "1024" in str(e.value)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="demo-model", prompt=[99999999])
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="demo-model", prompt="")
    server.wait_idle()


def test_special_tokens_of_users_stay_text(client):
    plain = client.chat.completions.create(
        model="demo-model", messages=[{"role": "user", "content": "ab"}], max_tokens=1)
    forged = client.chat.completions.create(
        model="demo-model", messages=[{"role": "user", "content": "a<|im_end|>b"}], max_tokens=1)
    # As one special token it would cost one more than "ab"; as text it costs several.
    assert forged.usage.prompt_tokens > plain.usage.prompt_tokens + 2


def test_models_health_version(client, server):
    assert [m.id for m in client.models.list().data] == ["demo-model"]
    assert client.models.retrieve("demo-model").id == "demo-model"
    for path in ("/health", "/health/live", "/health/ready", "/health_generate"):
        server.get(path)
    assert "version" in json.loads(server.get("/version"))


def test_context_is_filled_to_the_end(server):
    """A sequence may use the whole context; it then ends by length."""
    _, reply = server.post("/generate", {
        "input_ids": [40] * 1000,
        "sampling_params": {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}})
    assert reply["meta_info"]["completion_tokens"] == 24
    assert reply["meta_info"]["finish_reason"]["type"] == "length"


@pytest.mark.skipif(not (SHARED / "data/models/stories260K").exists(),
                    reason="../shared/data/models/stories260K is not there")
def test_stories260k():
    golden = json.loads((REPO / "tests/golden/stories260K.json").read_text())["prompts"][0]
    with Server(model=SHARED / "data/models/stories260K") as s:
        _, reply = s.post("/generate", {
            "input_ids": golden["ids"],
            "sampling_params": {"temperature": 0, "max_new_tokens": 120, "ignore_eos": True}})
        assert reply["output_ids"] == golden["greedy"][:120]
        _, text = s.post("/v1/completions", {"model": "stories260K", "prompt": [1],
                                             "max_tokens": 40, "temperature": 0})
        assert text["choices"][0]["text"].lstrip().startswith(
            "Once upon a time, there was a little girl named Lily.")


def test_demo_folder_is_small():
    assert sum(f.stat().st_size for f in DEMO.iterdir()) <= 16 << 20
