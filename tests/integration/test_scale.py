"""Several gateways, tokenizers and replicas on device null, where each token is known beforehand."""

import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from conftest import BIN, DEMO, PATIENCE, Server, free_port

STREAMS = pathlib.Path(os.environ.get("PHALANX_TESTS_BIN", BIN.parent / "tests")) / "streams"
FAKE = STREAMS.parent / "fake_tokenizer"
VOCAB = json.loads((DEMO / "config.json").read_text())["vocab_size"]
EOS = sorted(json.loads((DEMO / "generation_config.json").read_text())["eos_token_id"])
MASK = (1 << 64) - 1


def token(seed, i):
    """As services/worker/engine_null.h says."""
    x = (seed + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    x = (x ^ (x >> 31)) % (VOCAB - len(EOS))
    for eos in EOS:
        x += eos <= x
    return x


def null_server(*args, **kwargs):
    return Server(tp=1, args=["--device", "null", *args], **kwargs)


def streams(server, count, tokens, *args, check=True):
    """The report of tests/bench/streams.c."""
    eos = [word for e in EOS for word in ("--eos", str(e))]
    done = subprocess.run(
        [STREAMS, "--port", str(server.port), "--streams", str(count), "--tokens", str(tokens),
         "--vocab", str(VOCAB), *eos, *map(str, args)], stdout=subprocess.PIPE, text=True,
        timeout=60 * PATIENCE)
    report = json.loads(done.stdout)
    if check:
        assert done.returncode == 0, report
        assert (report["wrong"], report["lost"], report["failed"]) == (0, 0, 0), report
        assert report["tokens"] == count * tokens
    return report


def until(condition, seconds=15, what="condition"):
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true")


def named(server):
    """Process ids by name."""
    found = {}
    for pid in server.pids():
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has just ended
        found.update({w.split("=", 1)[1]: pid for w in words if w.startswith("--name=")})
    return found


def settled(server):
    """The launcher, too, knows that the server is ready: from here on replicas are restarted."""
    until(lambda: "curl http" in server.log(), what="the launcher's line")


def generated(server):
    """Tokens by scheduler."""
    return {m[1]: float(m[2]) for m in re.finditer(
        r'phalanx:generation_tokens_total\{process="(.*)"\} (\S+)', server.get("/metrics"))}


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
def test_ids_through_http(path):
    """return_token_ids and output_ids: what a client can check, choice by choice."""
    with null_server() as s:
        if path == "/generate":
            status, answer = s.post(path, {"text": "hi", "sampling_params": {
                "sampling_seed": 42, "max_new_tokens": 20, "n": 2}})
            ids = [choice["output_ids"] for choice in answer]
        else:
            status, answer = s.post(path, {"model": DEMO.name, "prompt": "hi", "seed": 42, "n": 2,
                                           "max_tokens": 20, "return_token_ids": True})
            ids = [choice["token_ids"] for choice in answer["choices"]]
        assert status == 200
        assert ids == [[token(42 + c, i) for i in range(20)] for c in range(2)]


def test_chat_ids_and_step_time():
    """Each id stands in one event, and a step takes as long as it was told to."""
    with null_server("--null-step-us", 20000) as s:
        body = {"model": DEMO.name, "messages": [{"role": "user", "content": "hi"}], "seed": 7,
                "max_tokens": 25, "stream": True, "return_token_ids": True}
        start = time.monotonic()
        request = urllib.request.Request(s.url + "/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30 * PATIENCE) as r:
            events = [json.loads(line[6:]) for line in r
                      if line.startswith(b"data: ") and b"[DONE]" not in line]
        assert time.monotonic() - start >= 25 * 0.020
        ids = [i for e in events for c in e["choices"] for i in c.get("token_ids", [])]
        assert ids == [token(7, i) for i in range(25)]


def test_many_of_each():
    with null_server("--num-gateway", 2, "--num-tokenizer", 2, "--dp-size", 3) as s:
        assert set(named(s)) >= {"gateway-1", "tokenizer-1", "scheduler-2", "worker-2"}
        until(lambda: len(generated(s)) == 3, what="all replicas")
        streams(s, 300, 100)
        until(lambda: sum(generated(s).values()) == 300 * 100, what="all counted")
        assert set(generated(s)) == {"scheduler-0", "scheduler-1", "scheduler-2"}
        assert min(generated(s).values()) > 300 * 100 / 20  # none was left out
        halves = ("tokenizer-0", "tokenizer-1")
        until(lambda: sum(s.metric("tokenizer_decoded_tokens_total", h) for h in halves) ==
              300 * 100, what="both tokenizers' counts")
        for half in halves:  # the two gateways do not know of each other's requests
            assert 0.35 < s.metric("tokenizer_decoded_tokens_total", half) / (300 * 100) < 0.65
        s.wait_idle()


@pytest.mark.parametrize("policy", ["prefix_aware", "round_robin", "least_load"])
def test_dispatch(policy):
    """The same beginning goes where it was, or in turn, as asked for."""
    with null_server("--dp-size", 2, "--dispatch-policy", policy) as s:
        until(lambda: len(generated(s)) == 2, what="both replicas")
        for i in range(8):
            prompt = [*range(5, 205), 300 + i]
            assert s.post("/v1/completions", {"prompt": prompt, "max_tokens": 5})[0] == 200
        until(lambda: sum(generated(s).values()) == 40, what="all counted")
        expected = [0, 40] if policy == "prefix_aware" else [20, 20]
        assert sorted(generated(s).values()) == expected


def test_replica_dies_and_comes_back():
    """No stream notices; the replica starts again and takes its share."""
    with null_server("--dp-size", 2, "--null-step-us", 5000) as s:
        settled(s)
        until(lambda: len(generated(s)) == 2, what="both replicas")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 40, 400)
            until(lambda: s.metric("num_requests_running") == 40, what="all running")
            assert s.metric("num_requests_running", "scheduler-1") > 0
            os.kill(named(s)["worker-1"], signal.SIGKILL)
            running.result()
        until(lambda: "ranks of replica 1 start again (epoch 2)" in s.log(), what="restart")
        until(lambda: len(re.findall(r"scheduler-1 worker=worker-1 connected", s.log())) == 2,
              what="the new ranks")
        before = generated(s)
        streams(s, 40, 50)
        until(lambda: sum(generated(s).values()) >= sum(before.values()) - before["scheduler-1"] +
              2000, what="all counted")
        assert generated(s)["scheduler-1"] > 0


def test_requests_of_a_dead_scheduler_move():
    """What it had, running or not, is done by the other, and the client does not notice."""
    with null_server("--dp-size", 2, "--null-step-us", 3000, "--max-running-requests", 8) as s:
        settled(s)
        until(lambda: len(generated(s)) == 2, what="both replicas")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 100, 100)
            until(lambda: s.metric("num_requests_waiting") > 60, what="a queue")
            os.kill(named(s)["scheduler-1"], signal.SIGKILL)
            running.result()
        assert re.search(r"begun anew: [1-9]", s.log())


def test_half_scored_request_moves():
    """Log probabilities of its prompt have been passed on: each still comes once."""
    body = {"input_ids": list(range(5, 2005)) * 2, "return_logprob": True, "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 2, "sampling_seed": 1}}
    with null_server("--dp-size", 2, "--null-step-us", 50000, "--chunked-prefill-size", 128,
                     "--context-length", 8192, "--cache-type", "naive") as s:
        settled(s)
        calm = s.post("/generate", body)
        assert len(calm[1]["meta_info"]["input_token_logprobs"]) == 4000
        until(lambda: len(generated(s)) == 2, what="both replicas")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(s.post, "/generate", body)
            until(lambda: s.metric("num_requests_running") == 1, what="it runs")
            at = [i for i in range(2) if s.metric("num_requests_running", f"scheduler-{i}")]
            time.sleep(0.5)  # ten steps of some thirty
            os.kill(named(s)[f"scheduler-{at[0]}"], signal.SIGKILL)
            status, answer = asked.result()
        assert status == 200 and answer["output_ids"] == [token(1, i) for i in range(2)]
        for answered in (answer, calm[1]):
            del answered["meta_info"]["id"]
        assert answer == calm[1]
        assert "begun anew: 1" in s.log()


def test_lone_replica_ends_the_node():
    with null_server() as s:
        os.kill(named(s)["worker-0"], signal.SIGKILL)
        assert s.process.wait(10 * PATIENCE) == 1
        assert "worker-0" in s.log() and "killed by signal 9" in s.log()


def test_a_replica_that_always_dies():
    """Restarts are bounded."""
    with null_server("--dp-size", 2) as s:
        settled(s)
        for _ in range(6):
            pid = until(lambda: named(s).get("scheduler-1"), what="the scheduler")
            os.kill(pid, signal.SIGKILL)
            until(lambda: named(s).get("scheduler-1") != pid, what="its death")
        assert s.process.wait(10 * PATIENCE) == 1
        assert re.search(r"scheduler-1 .*: more than 5 times within 60 s", s.log())


def test_tokenizer_dies(tmp_path):
    """A gateway with two tokenizers: what one had goes on at the other."""
    ports = free_port()
    endpoints = [f"ipc://{tmp_path}/t{i}" for i in range(2)]
    fakes = [subprocess.Popen([FAKE, e, "16"], stdout=subprocess.DEVNULL) for e in endpoints]
    with open(tmp_path / "log", "wb") as log:
        gateway = subprocess.Popen(
            [BIN / "phalanx-gateway", "--tokenizer-endpoint", ",".join(endpoints), "--port",
             str(ports), "--served-model-name", "m"], stderr=log, stdin=subprocess.DEVNULL)

    def ask(prompt, tokens):
        body = json.dumps({"prompt": prompt, "max_tokens": tokens}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{ports}/v1/completions", body,
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30 * PATIENCE) as r:
                return r.status
        except urllib.error.HTTPError as e:
            return e.code

    def up():
        return (tmp_path / "log").read_text(errors="replace").count("ready=true") == 2

    try:
        until(up, what="both tokenizers")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            # In turn among equals: three at each.
            asked = [pool.submit(ask, "long", 3000) for _ in range(6)]
            time.sleep(0.5)
            fakes[0].kill()
            statuses = [a.result() for a in asked]
        assert statuses == [200] * 6 and "prompts=3" in (tmp_path / "log").read_text()
        assert [ask("short", 3) for _ in range(4)] == [200] * 4
        fakes[0].wait()
        fakes[0] = subprocess.Popen([FAKE, endpoints[0], "16"], stdout=subprocess.DEVNULL)
        until(lambda: (tmp_path / "log").read_text().count("ready=true") == 3, what="it is back")
        assert [ask("short", 3) for _ in range(4)] == [200] * 4
    finally:
        for p in (*fakes, gateway):
            p.terminate()
            p.wait(10 * PATIENCE)


def private_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def test_thousand_slow_readers():
    """A thousand that read nothing: their tokens pause, others do not notice."""
    with null_server("--max-running-requests", 1200, "--context-length", 8192,
                     "--null-step-us", 5000) as s:
        gateway = named(s)["gateway-0"]
        eos = [word for e in EOS for word in ("--eos", str(e))]
        before = private_mib(gateway)
        peak = 0
        slow = subprocess.Popen(
            [STREAMS, "--port", str(s.port), "--streams", "0", "--tokens", "4000", "--vocab",
             str(VOCAB), *eos, "--slow", "1000", "--slow-seconds", "60"], stdout=subprocess.DEVNULL)

        def still():
            tokens = s.metric("generation_tokens_total")
            time.sleep(2.5)  # twice as long as numbers take
            return s.metric("generation_tokens_total") == tokens

        try:
            until(lambda: s.metric("http_requests_total") > 1000 and
                  s.metric("requests_in_flight") == 1000, what="all asked")
            asked = time.monotonic()
            for _ in range(3):
                streams(s, 50, 300)
                peak = max(peak, private_mib(gateway))
            until(still, what="the pause of all")
            peak = max(peak, private_mib(gateway))
            # They wait for their readers, unless those were given up (30 s) on a slow machine.
            assert s.metric("requests_in_flight") == 1000 or time.monotonic() - asked > 25
            assert s.metric("generation_tokens_total") < 1000 * 2000
        finally:
            slow.kill()
            slow.wait()
        # Some 16 KiB each. A sanitizer keeps freed memory.
        assert peak - before < (48 if PATIENCE == 1 else 2000)
        until(lambda: s.metric("requests_in_flight") == 0, what="all gone")
        s.wait_idle()
