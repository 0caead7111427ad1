"""The prefix cache and memory pressure: neither may ever change a token."""

import concurrent.futures
import re
import time

import pytest

from conftest import PATIENCE, Server

# Less than a quarter of what the requests hold at once in a pool that is large enough, and an
# estimate that lets far too many of them in.
PRESSED = ["--num-pages", "70", "--schedule-conservativeness", "0"]
STORY = ("Once upon a time there was a little scheduler who lived in a big server. Every day it "
         "put sequences into slots and pages. ")


def requests():
    """Prompts that share much, some of them the same, several choices, greedy and not."""
    for i in range(20):
        yield {"prompt": STORY * (1 + i // 8) + ("What next?" if i % 2 else f"On day {i} "),
               "max_tokens": 40 + 8 * (i % 4), "temperature": 0 if i % 3 else 1.1,
               "seed": 1000 + i // 2, "n": 3 if i % 5 == 0 else 1,
               "ignore_eos": i % 4 == 0,
               # Ends later than the scheduler is told to expect.
               "min_tokens": 40 if i % 4 in (1, 2) else 0, "logprobs": 2 if i % 7 == 0 else None}


def metric(server, name):
    found = re.findall(rf"^phalanx:{name}(?:{{[^}}]*}})? (\S+)$", server.get("/metrics"), re.M)
    return sum(float(value) for value in found)


def eventually(server, name):
    """A counter that travels with the next STATS."""
    deadline = time.monotonic() + 5 * PATIENCE
    while metric(server, name) == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return metric(server, name)


def run(server):
    """Everything twice, at once: the second time much is cached."""
    bodies = list(requests()) * 2
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        replies = list(pool.map(lambda body: server.post("/v1/completions", body), bodies))
    assert all(status == 200 for status, _ in replies), replies
    choices = [[(c["text"], c["finish_reason"], c["logprobs"]) for c in reply["choices"]]
               for _, reply in replies]
    cached = sum(reply["usage"]["prompt_tokens_details"]["cached_tokens"] for _, reply in replies)
    return choices, cached


@pytest.fixture(scope="module")
def plain():
    server = Server(tp=1, args=["--cache-type", "naive", "--page-size", "8"])
    try:
        choices, cached = run(server)
        assert cached == 0
        assert metric(server, "num_preemptions_total") == 0
    finally:
        server.stop()
    half = len(choices) // 2
    assert choices[:half] == choices[half:]
    return choices


@pytest.mark.parametrize("args, pressed", [
    ([], False),
    (["--chunked-prefill-size", "16"], False),
    (["--schedule-policy", "lpm"], False),
    ([*PRESSED], True),
    ([*PRESSED, "--disable-radix-cache"], True),
    ([*PRESSED, "--chunked-prefill-size", "12", "--schedule-policy", "lpm"], True),
], ids=["cached", "chunks", "lpm", "pressed", "pressed-naive", "pressed-lpm"])
def test_same_text(plain, args, pressed):
    server = Server(tp=1, args=["--page-size", "8", *args])
    try:
        choices, cached = run(server)
        assert choices == plain
        assert (cached > 0) == ("--disable-radix-cache" not in args)
        if cached:
            assert eventually(server, "prefix_cache_hits_total") > 0
        if pressed:
            assert eventually(server, "num_preemptions_total") > 0
    finally:
        server.stop()


def test_flush():
    def ask():
        status, reply = server.post("/v1/completions", {"prompt": STORY, "max_tokens": 1})
        assert status == 200
        return reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    with Server(tp=1) as server:
        assert ask() == 0
        assert ask() > 16
        assert server.post("/flush_cache", {}) == (200, {"status": "ok"})
        assert ask() == 0
        assert server.post("/flush_cache", b"")[0] == 200
        assert ask() == 0
        assert ask() > 16


def test_priority_is_checked(server):
    status, reply = server.post("/v1/completions", {"prompt": "a", "priority": 3})
    assert status == 400 and reply["error"]["param"] == "priority"


def test_priority_policy():
    server = Server(args=["--schedule-policy", "priority", "--max-running-requests", "1"])
    try:
        status, _ = server.post("/v1/completions", {"prompt": "a", "priority": 3, "max_tokens": 3})
        assert status == 200
        status, reply = server.post("/v1/completions", {"prompt": "a", "priority": 10 ** 7})
        assert status == 400 and "1000000" in reply["error"]["message"]
    finally:
        server.stop()
