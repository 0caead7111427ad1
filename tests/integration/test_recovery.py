"""Ranks that die or hang under running streams: each stream ends once, with the right tokens."""

import concurrent.futures
import json
import os
import re
import signal

import pytest

from conftest import DEMO, PATIENCE, REPO, Server
from test_scale import named, settled, streams, until

GOLDEN = json.loads((REPO / "tests/golden/demo.json").read_text())["prompts"][0]
CHATS = 64 if PATIENCE == 1 else 16  # that a model of real arithmetic serves


def lose(server, rank, sig):
    """Hurts a rank; returns when the scheduler has other ranks."""
    losses = server.log().count("the ranks are lost")
    old = named(server)
    os.kill(old[f"worker-{rank}"], sig)
    until(lambda: server.log().count("the ranks are lost") > losses, 40, "the loss")
    until(lambda: server.log().count("Ready again after") > losses, 40, "new ranks")
    new = named(server)
    for name in ["scheduler-0", "tokenizer-0", "gateway-0"]:
        assert new[name] == old[name]
    for r in range(2):
        assert new[f"worker-{r}"] != old[f"worker-{r}"]
        until(lambda: not os.path.exists(f"/proc/{old[f'worker-{r}']}"), what="the old rank's end")


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_null(sig):
    """64 streams over the loss of one rank, and of another one."""
    with Server(args=["--device", "null", "--null-step-us", "10000", "--num-pages", "4096"]) as s:
        settled(s)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 64, 900)
            for rank in [1, 0]:
                begun = s.metric("generation_tokens_total")
                until(lambda: s.metric("generation_tokens_total") > begun + 64 * 20,
                      what="streams under way")
                lose(s, rank, sig)
            assert not running.done()
            running.result()
        streams(s, 64, 20)
        s.wait_idle()
        assert not re.search(r"ERROR (?!worker-)", s.log())


def ask(server, i):
    status, answer = server.post("/v1/chat/completions", {
        "model": DEMO.name, "messages": GOLDEN["messages"], "seed": i, "temperature": i % 2,
        "max_tokens": 100, "ignore_eos": True})
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_cpu(sig):
    """The same text with and without a loss, greedy and sampled."""
    with Server() as s, concurrent.futures.ThreadPoolExecutor(CHATS) as pool:
        settled(s)
        seeds = range(CHATS)
        expected = list(pool.map(lambda i: ask(s, i), seeds))
        assert expected[0] == expected[2] and expected[1] != expected[3]
        begun = s.metric("generation_tokens_total")
        running = [pool.submit(ask, s, i) for i in seeds]
        until(lambda: s.metric("generation_tokens_total") > begun + CHATS * 20,
              what="streams under way")
        lose(s, 1, sig)
        assert not all(r.done() for r in running)
        for seed, r in zip(seeds, running):
            assert r.result() == expected[seed], seed


def test_replays_exhausted():
    """A request that is there each time the ranks die ends with an error, and the server goes on."""
    with Server(args=["--device", "null", "--null-step-us", "20000"]) as s:
        settled(s)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 1, 900, check=False)
            for _ in range(4):
                begun = s.metric("generation_tokens_total")
                until(lambda: s.metric("generation_tokens_total") > begun + 20,
                      what="the stream under way")
                lose(s, 1, signal.SIGKILL)
            report = running.result()
        assert report["failed"] == 1 and report["wrong"] == 0, report
        streams(s, 8, 20)
