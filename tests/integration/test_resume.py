"""Processes are killed in mid-request, and the client gets what it would have got: tokenizer and
scheduler (with its rank) started by hand, killed by SIGKILL, started again."""

import concurrent.futures
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time

import pytest

from conftest import BIN, DEMO, PATIENCE, check_findings, free_port
from test_scale import named, null_server, settled, streams, token, until

CLOUDY = "The weather today is"


class Cluster:
    """One of each, over ipc. epoch: of the ranks, one more after each scheduler."""

    def __init__(self, device, *scheduler_args):
        self.dir = tempfile.TemporaryDirectory(prefix="phalanx-resume-")
        self.port, self.epoch, self.running = free_port(), 1, {}
        self.device, self.scheduler_args = device, scheduler_args
        self.log_file = open(self.dir.name + "/log", "wb")
        for name in ("scheduler", "worker", "tokenizer", "gateway"):
            self.start(name)
        until(self.ready, 30, "readiness")

    def start(self, name):
        where = lambda n: f"ipc://{self.dir.name}/{n}"
        model, epoch = ["--model-path", str(DEMO)], ["--epoch", str(self.epoch)]
        args = {
            "gateway": [*model, "--port", str(self.port), "--tokenizer-endpoint", where("t")],
            "tokenizer": [*model, "--tokenizer-endpoint", where("t"), "--scheduler-endpoint",
                          where("s")],
            "scheduler": ["--scheduler-endpoint", where("s"), "--worker-endpoint", where("w"),
                          "--cache-type", "naive", *epoch, *self.scheduler_args],
            "worker": [*model, "--device", self.device, "--worker-endpoint", where("w"), *epoch],
        }[name]
        if name == "worker" and self.device == "null":
            args += ["--null-step-us", "4000"]
        self.running[name] = subprocess.Popen(
            [BIN / f"phalanx-{name}", *args], stdin=subprocess.DEVNULL, stderr=self.log_file)

    def kill(self, *names):
        """At once, then they start again."""
        for name in names:
            self.running[name].kill()
        for name in names:
            self.running[name].wait()
        self.epoch += "scheduler" in names
        for name in names:
            self.start(name)

    def log(self):
        with open(self.dir.name + "/log", errors="replace") as f:
            return f.read()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60 * PATIENCE)

    def ready(self):
        try:
            c = self.connect()
            c.request("GET", "/health/ready")
            return c.getresponse().status == 200
        except OSError:
            return False

    def ask(self, path, body, disturb=None, at=20):
        """The answer; of a stream a list of events. disturb is called once, when `at` events have
        come or when the whole answer has been awaited for that many steps."""
        c = self.connect()
        c.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        if not body.get("stream"):
            if disturb:
                time.sleep(at * 0.004)
                disturb()
            r = c.getresponse()
            return r.status, json.loads(r.read())
        r, events, ended = c.getresponse(), [], False
        for line in r:
            if line.startswith(b"data: {"):
                events.append(json.loads(line[6:]))
                if disturb and len(events) == at:
                    disturb()
            ended = ended or line == b"data: [DONE]\n"
        assert ended
        return r.status, events

    def stop(self):
        for name in ("gateway", "tokenizer", "worker", "scheduler"):
            self.running[name].terminate()
            assert self.running[name].wait(10 * PATIENCE) == 0, name
        self.log_file.close()
        check_findings(self.log())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.dir.cleanup()


def same_for_all(answer):
    """By choice, since one may run ahead; without what each request has its own of."""
    status, found = answer
    if isinstance(found, dict):
        found = [found]
    by_choice = {}
    for event in found:
        assert "error" not in event, event
        event.get("meta_info", event).pop("id")
        event.pop("created", None)
        choices = event.get("choices", [event])
        key = choices[0].get("index") if len(choices) == 1 else None
        if by_choice.get(key) and "meta_info" in event:  # has all so far; when it comes varies
            assert event["text"].startswith(by_choice[key].pop()["text"])
        by_choice.setdefault(key, []).append(event)
    return status, by_choice


KILLS = {"tokenizer": [("tokenizer",)], "scheduler": [("scheduler", "worker")],
         "both": [("tokenizer", "scheduler", "worker")],
         "in turn": [("tokenizer",), ("scheduler", "worker"), ("tokenizer",)]}


@pytest.fixture(scope="module")
def null():
    with Cluster("null") as c:
        yield c


@pytest.fixture(scope="module")
def cpu():
    with Cluster("cpu") as c:
        yield c


def replayed(cluster):
    """How often a process found that it had to begin something anew."""
    return len(re.findall(r"begun anew: [1-9]|prompts=[1-9]\d* \"tokenizer is down", cluster.log()))


def killer(cluster, kills):
    """The first kill hits a request; by a later one it may have ended already."""
    def disturb():
        for i, names in enumerate(KILLS[kills]):
            before = replayed(cluster)
            cluster.kill(*names)
            if i == 0:
                until(lambda: replayed(cluster) > before, what="a request begun anew")
            until(cluster.ready, what="readiness")
    return disturb


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tokens_of_choices(null, kills, stream):
    """Each id is the one that device null makes up, no more and no less; one choice has ended."""
    body = {"model": DEMO.name, "prompt": CLOUDY, "n": 3, "seed": 11, "max_tokens": 400,
            "return_token_ids": True, "stream": stream, "stop_token_ids": [token(12, 3)]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    expected = [[token(11 + c, i) for i in range(400)] for c in range(3)]
    for c in range(3):
        if token(12, 3) in expected[c]:
            expected[c] = expected[c][:expected[c].index(token(12, 3)) + 1]
    status, found = null.ask("/v1/completions", body, killer(null, kills), 60)
    assert status == 200
    found = found if stream else [found]
    ids = [[], [], []]
    for event in found:
        for choice in event["choices"]:
            ids[choice["index"]] += choice.get("token_ids", [])
    assert ids == expected
    assert found[-1]["usage"]["completion_tokens"] == sum(map(len, expected))


def test_waiting_request(null):
    """One that comes while nobody can serve it is served by those that come."""
    for name in ("tokenizer", "scheduler", "worker"):
        null.running[name].kill()
        null.running[name].wait()
    until(lambda: not null.ready(), what="the gateway noticed")
    answers = []
    asking = threading.Thread(target=lambda: answers.append(null.ask("/generate", {
        "text": "a", "sampling_params": {"sampling_seed": 5, "max_new_tokens": 9}})))
    asking.start()
    null.epoch += 1
    for name in ("tokenizer", "scheduler", "worker"):
        null.start(name)
    asking.join(30 * PATIENCE)
    assert answers[0][0] == 200 and answers[0][1]["output_ids"] == [token(5, i) for i in range(9)]


def test_a_scheduler_that_dies_too_often(null):
    body = {"prompt": "a", "max_tokens": 3000, "seed": 1, "stream": True}
    c = null.connect()
    c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    r = c.getresponse()
    for _ in range(4):
        for _ in range(20):
            r.readline()
        killer(null, "scheduler")()
    events = [json.loads(line[6:]) for line in r if line.startswith(b"data: {")]
    assert [e for e in events if "error" in e] == events[-1:]
    assert events[-1]["error"]["code"] == "replays_exhausted"


TEXTS = {
    # Hot enough for bytes that are no UTF-8 alone, and for characters of several tokens.
    "bytes": {"prompt": CLOUDY, "temperature": 3.0, "seed": 3, "max_tokens": 300, "stream": True,
              "stream_options": {"include_usage": True}, "return_token_ids": True},
    "whole": {"prompt": CLOUDY, "temperature": 1.5, "seed": 4, "max_tokens": 300, "n": 2},
    "echo": {"prompt": CLOUDY, "temperature": 1.0, "seed": 5, "max_tokens": 250, "echo": True,
             "logprobs": 2},
    "echo stream": {"prompt": CLOUDY, "temperature": 1.0, "seed": 6, "max_tokens": 250,
                    "echo": True, "logprobs": 3, "stream": True},
    "generate": {"text": CLOUDY, "return_logprob": True, "logprob_start_len": 0,
                 "top_logprobs_num": 2, "stream": True,
                 "sampling_params": {"sampling_seed": 7, "max_new_tokens": 200, "n": 2,
                                     "temperature": 1.0}},
    "stops": {"prompt": CLOUDY, "temperature": 2.0, "seed": 8, "max_tokens": 300, "stream": True},
}


@pytest.mark.parametrize("kills", ["tokenizer", "scheduler", "in turn"])
@pytest.mark.parametrize("name", TEXTS)
def test_text(cpu, kills, name):
    body = {**TEXTS[name], **({"ignore_eos": True} if name != "generate" else {})}
    path = "/generate" if name == "generate" else "/v1/completions"
    if name == "generate":
        body["sampling_params"]["ignore_eos"] = True
    if name == "stops":  # the real one, and others that begin wherever the text is disturbed
        text = "".join(e["choices"][0]["text"] for e in cpu.ask(path, body)[1])
        assert len(text) > 200
        body["stop"] = [text[-60:-40]] + [text[i:i + 40] + "#" for i in range(30, 100, 9)]
    calm = cpu.ask(path, body)
    assert calm[0] == 200
    disturbed = cpu.ask(path, body, killer(cpu, kills))
    assert same_for_all(disturbed) == same_for_all(calm)


@pytest.mark.parametrize("name", ["tokenizer-0", "scheduler-0", "worker-0"])
def test_under_the_launcher(name):
    """Sixty streams, each token checked, while the launcher replaces what they need."""
    with null_server("--null-step-us", 5000) as s:
        settled(s)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(streams, s, 60, 600)
            until(lambda: s.metric("num_requests_running") == 60, what="all running")
            os.kill(named(s)[name], signal.SIGKILL)
            running.result()
        s.wait_idle()
