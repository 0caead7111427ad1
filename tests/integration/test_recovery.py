"""Processes that die or hang under running streams: each stream ends once, with the right
tokens."""

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
        assert s.metric("rank_group_losses_total") == 2
        assert s.metric("sequence_replays_total") == 128
        assert not re.search(r"ERROR (?!worker-)", s.log())


def torn(log):
    """A step had reached some ranks and not others: they can not stay together."""
    return re.search("not every rank has got it|has met other ranks, or done other steps", log)


def outlive(server, sig):
    """Hurts the scheduler; returns when its ranks, which stay, have another one."""
    again = server.log().count("phalanx: ready again after")
    old = named(server)
    os.kill(old["scheduler-0"], sig)
    until(lambda: server.log().count("phalanx: ready again after") > again, 40, "readiness")
    new = named(server)
    others = {name for name in old if new.get(name) != old[name]}
    assert others == {"scheduler-0"} or torn(server.log())


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_scheduler_null(sig):
    """32 streams over the loss of two schedulers."""
    with Server(args=["--device", "null", "--null-step-us", "10000"]) as s:
        settled(s)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 32, 900)
            for _ in range(2):
                until(lambda: s.metric("num_requests_running") == 32, what="all running")
                outlive(s, sig)
            assert not running.done()
            running.result()
        s.wait_idle()
        assert s.metric("rank_group_losses_total") == 0
        assert not torn(s.log())  # device null has no steps in common
        assert s.metric("process_start_time_seconds", "scheduler-0") > \
            s.metric("process_start_time_seconds", "worker-0")
        assert not re.search(r"ERROR ", s.log())


def test_ranks_that_do_not_come():
    """One hangs when the scheduler dies: nobody else would notice."""
    with Server(args=["--device", "null", "--null-step-us", "10000"]) as s:
        settled(s)
        old = named(s)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 32, 300)
            until(lambda: s.metric("num_requests_running") == 32, what="all running")
            os.kill(old["worker-1"], signal.SIGSTOP)
            os.kill(old["scheduler-0"], signal.SIGKILL)
            running.result()
        assert "the ranks of replica 0 start again (epoch 2)" in s.log()
        new = named(s)
        assert all(new[f"worker-{r}"] != old[f"worker-{r}"] for r in range(2))
        s.wait_idle()


def replaced(server, name):
    """Stops a process; returns when there is another one."""
    until(lambda: f'{name} peer=launcher "connected"' in server.log(), what="its link")
    pid = named(server)[name]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: named(server).get(name, pid) != pid, 40, f"another {name}")
    assert f"phalanx: {name} (pid {pid}) hangs, killing it" in server.log()


def test_stopped_tokenizer():
    with Server(tp=1, args=["--device", "null", "--null-step-us", "10000"]) as s:
        settled(s)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 32, 600)
            until(lambda: s.metric("num_requests_running") == 32, what="all running")
            replaced(s, "tokenizer-0")
            running.result()
        s.wait_idle()


def test_stopped_gateway():
    """Half of the connections went to it."""
    with Server(tp=1, args=["--device", "null", "--num-gateway", "2"]) as s:
        settled(s)
        replaced(s, "gateway-1")
        until(lambda: s.log().count("gateway-1 peer=tokenizer-0 ready=true") == 2, what="it serves")
        streams(s, 64, 20)


def ask(server, i):
    status, answer = server.post("/v1/chat/completions", {
        "model": DEMO.name, "messages": GOLDEN["messages"], "seed": i, "temperature": i % 2,
        "max_tokens": 100, "ignore_eos": True})
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("hurt", [
    lambda s: lose(s, 1, signal.SIGKILL), lambda s: lose(s, 1, signal.SIGSTOP),
    lambda s: outlive(s, signal.SIGKILL)], ids=["rank-killed", "rank-stopped", "scheduler-killed"])
def test_cpu(hurt):
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
        hurt(s)
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
