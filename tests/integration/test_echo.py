"""Log probabilities of prompt tokens: echo with logprobs, and /generate's logprob_start_len."""

import json
import urllib.request

import openai
import pytest

from conftest import PATIENCE, REPO, Server

GOLDEN = json.loads((REPO / "tests/golden/demo.json").read_text())["prompts"]
IDS = GOLDEN[0]["ids"] + GOLDEN[0]["greedy"]  # some 50 tokens of what the model knows


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                         timeout=60 * PATIENCE)


def score(server, ids, top=3, **more):
    """(log probabilities, alternatives) of a prompt, nothing generated."""
    status, reply = server.post("/generate", {
        "input_ids": ids, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": top,
        "sampling_params": {"max_new_tokens": 0}, **more})
    assert status == 200, reply
    meta = reply["meta_info"]
    assert reply["output_ids"] == [] and reply["text"] == "" and meta["completion_tokens"] == 0
    assert meta["output_token_logprobs"] == [] and meta["finish_reason"]["type"] == "length"
    assert [t[1] for t in meta["input_token_logprobs"]] == ids
    assert meta["input_token_logprobs"][0][0] is None and meta["input_top_logprobs"][0] is None
    return [t[0] for t in meta["input_token_logprobs"]], meta["input_top_logprobs"]


def test_scores_equal_those_of_generation(server):
    """What greedy decoding said of its tokens, the scores of the same tokens say as a prompt."""
    prompt = GOLDEN[0]["ids"]
    status, reply = server.post("/generate", {
        "input_ids": prompt, "return_logprob": True, "top_logprobs_num": 3,
        "sampling_params": {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}})
    assert status == 200
    values, tops = score(server, prompt + reply["output_ids"])
    meta = reply["meta_info"]
    for i, (value, token, _) in enumerate(meta["output_token_logprobs"]):
        assert values[len(prompt) + i] == pytest.approx(value, abs=1e-4)
        alternatives = tops[len(prompt) + i]
        assert [a[1] for a in alternatives] == [a[1] for a in meta["output_top_logprobs"][i]]
        assert alternatives[0][1] == token  # greedy
        assert alternatives[0][0] == pytest.approx(value, abs=1e-4)
    assert len(values) == len(tops) == len(prompt) + 40


def test_scores_equal_first_logprobs(server):
    """Token i + 1 among the alternatives of the first token generated after tokens 0 .. i."""
    values, tops = score(server, IDS, top=20)
    for i in range(1, 30):
        status, reply = server.post("/generate", {
            "input_ids": IDS[:i], "return_logprob": True, "top_logprobs_num": 20,
            "sampling_params": {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}})
        assert status == 200
        first = reply["meta_info"]["output_top_logprobs"][0]
        assert len(first) == len(tops[i]) == 20
        for (a, _, _), (b, _, _) in zip(first, tops[i]):
            assert a == pytest.approx(b, abs=1e-4)
        found = [a[0] for a in first if a[1] == IDS[i]]
        if found:
            assert values[i] == pytest.approx(found[0], abs=1e-4)
        else:
            assert values[i] <= first[-1][0]


def test_chunks_cache_and_ranks(server):
    """The same bits in chunks and whole, cached or not; two ranks as one but for rounding."""
    want = score(server, IDS)
    assert score(server, IDS) == want  # by now all its pages are cached
    with Server(tp=1, args=["--chunked-prefill-size", 7]) as chunked:
        a = score(chunked, IDS)
    with Server(tp=1, args=["--chunked-prefill-size", -1, "--disable-radix-cache"]) as whole:
        b = score(whole, IDS)
    assert a == b
    assert a[0][1:] == pytest.approx(want[0][1:], abs=1e-4)
    assert [[t[1] for t in top] for top in a[1][1:]] == [[t[1] for t in top] for top in want[1][1:]]


def test_openai_client(client):
    text = "To be, or not to be"
    only = client.completions.create(model="demo-model", prompt=text, max_tokens=0, echo=True,
                                     logprobs=2, temperature=0)
    lp = only.choices[0].logprobs
    n = only.usage.prompt_tokens
    assert only.choices[0].text == text and only.choices[0].finish_reason == "length"
    assert only.usage.completion_tokens == 0
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == \
        len(lp.text_offset) == n
    assert "".join(lp.tokens) == text
    assert lp.text_offset == [len("".join(lp.tokens[:i])) for i in range(n)]
    assert lp.token_logprobs[0] is None and lp.top_logprobs[0] is None
    for i in range(1, n):
        assert lp.token_logprobs[i] <= 0 and 2 <= len(lp.top_logprobs[i]) <= 3
        assert lp.top_logprobs[i][lp.tokens[i]] == lp.token_logprobs[i]
    both = client.completions.create(model="demo-model", prompt=text, max_tokens=5, echo=True,
                                     logprobs=2, temperature=0, n=2)
    alone = client.completions.create(model="demo-model", prompt=text, max_tokens=5, logprobs=2,
                                      temperature=0)
    for choice in both.choices:
        assert choice.text == text + alone.choices[0].text
        assert choice.logprobs.token_logprobs[:n] == lp.token_logprobs
        assert choice.logprobs.token_logprobs[n:] == \
            pytest.approx(alone.choices[0].logprobs.token_logprobs, abs=1e-4)
        assert choice.logprobs.top_logprobs[:n] == lp.top_logprobs
    many = client.completions.create(model="demo-model", prompt=[IDS, IDS[:1]], max_tokens=0,
                                     echo=True, logprobs=0)
    assert [len(c.logprobs.tokens) for c in many.choices] == [len(IDS), 1]
    assert None not in many.choices[0].logprobs.token_logprobs[1:]
    assert many.choices[1].logprobs.token_logprobs == [None]


@pytest.mark.parametrize("most", [0, 4])
def test_stream(client, most):
    whole = client.completions.create(model="demo-model", prompt=IDS, max_tokens=most, echo=True,
                                      logprobs=1, temperature=0)
    stream = [c.choices[0] for c in client.completions.create(
        model="demo-model", prompt=IDS, max_tokens=most, echo=True, logprobs=1, temperature=0,
        stream=True) if c.choices]
    assert len(stream[0].logprobs.tokens) == len(IDS) + (1 if most else 0)
    assert stream[0].logprobs.token_logprobs[0] is None
    values, tokens = [], []
    for choice in stream:
        if choice.logprobs:
            values += choice.logprobs.token_logprobs
            tokens += choice.logprobs.tokens
    assert values == whole.choices[0].logprobs.token_logprobs
    assert tokens == whole.choices[0].logprobs.tokens
    assert "".join(c.text for c in stream) == whole.choices[0].text
    assert stream[-1].finish_reason == whole.choices[0].finish_reason


def test_generate_stream(server):
    body = {"input_ids": IDS, "return_logprob": True, "logprob_start_len": 0, "stream": True,
            "sampling_params": {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}}
    request = urllib.request.Request(server.url + "/generate", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60 * PATIENCE) as r:
        events = [json.loads(line[6:]) for line in r.read().decode().splitlines()
                  if line.startswith("data: {")]
    counts = [len(e["meta_info"]["input_token_logprobs"]) for e in events]
    assert counts[0] == len(IDS) and not any(counts[1:])
    assert len(events[-1]["meta_info"]["output_token_logprobs"]) == 4


def test_echo_without_logprobs(client):
    reply = client.completions.create(model="demo-model", prompt="My lord", max_tokens=0, echo=True)
    assert reply.choices[0].text == "My lord" and reply.choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model="demo-model", prompt="My lord", max_tokens=0)


def test_long_prompts(tmp_path):
    """More than one message's worth on the null device, whose scores are their positions; and more
    than is allowed."""
    with Server(args=["--device", "null", "--context-length", 8192]) as s:
        status, reply = s.post("/generate", {
            "input_ids": [5] * 6000, "return_logprob": True, "logprob_start_len": 0,
            "top_logprobs_num": 20, "sampling_params": {"max_new_tokens": 2}})
        assert status == 200, reply
        rows = reply["meta_info"]["input_token_logprobs"]
        vocab = 1 + max(r[1] for r in rows)
        assert len(rows) == 6000 and rows[0][0] is None
        assert [r[1] for r in rows[1:]] == [i % vocab for i in range(5999)]
        assert all(len(t) == 20 for t in reply["meta_info"]["input_top_logprobs"][1:])
        status, reply = s.post("/generate", {
            "input_ids": [5] * 6000, "return_logprob": True, "logprob_start_len": 0,
            "top_logprobs_num": 20, "sampling_params": {"max_new_tokens": 2, "n": 5}})
        assert status == 400 and "at most 524288" in reply["error"]["message"]
        s.wait_idle()
