"""Each executable started by hand, with explicit endpoints over ipc and over tcp, in any order."""

import json
import random
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import BIN, DEMO, PATIENCE, REPO, end_all, free_port

GOLDEN = json.loads((REPO / "tests/golden/demo.json").read_text())["prompts"][0]


def commands(where, port):
    model = ["--model-path", str(DEMO)]
    workers = [
        ["phalanx-worker", *model, "--device", "cpu", "--tp", "2", "--rank", str(rank),
         "--worker-endpoint", where("w")] for rank in range(2)
    ]
    return [
        ["phalanx-gateway", *model, "--port", str(port), "--tokenizer-endpoint", where("t")],
        ["phalanx-tokenizer", *model, "--tokenizer-endpoint", where("t"),
         "--scheduler-endpoint", where("s")],
        ["phalanx-scheduler", "--tp", "2", "--scheduler-endpoint", where("s"),
         "--worker-endpoint", where("w")],
        *workers,
    ]


def ask(port):
    body = {"model": DEMO.name, "messages": GOLDEN["messages"], "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as r:
        return json.loads(r.read())["choices"][0]["message"]["content"]


def swallow(request):
    """What comes of it does not matter."""
    try:
        with urllib.request.urlopen(request, timeout=60) as r:
            r.read()
    except OSError:
        pass


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2):
            return True
    except OSError:
        return False


def wait_ready(port, processes):
    deadline = time.monotonic() + 30 * PATIENCE
    while not is_ready(port):
        assert all(p.poll() is None for p in processes)
        assert time.monotonic() < deadline, "not ready"
        time.sleep(0.05)


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("seed", [1, 2])
def test_started_by_hand(tmp_path, transport, seed):
    ports = {name: free_port() for name in "tsw"}
    where = {"ipc": lambda n: f"ipc://{tmp_path}/{n}",
             "tcp": lambda n: f"tcp://127.0.0.1:{ports[n]}"}[transport]
    port = free_port()
    order = commands(where, port)
    random.Random(seed).shuffle(order)
    processes = []
    try:
        for command in order:
            processes.append(subprocess.Popen([str(BIN / command[0]), *command[1:]],
                                              stdin=subprocess.DEVNULL))
            time.sleep(0.05)
        wait_ready(port, processes)
        assert ask(port) == GOLDEN["text"]
    finally:
        end_all(processes)


def start(command):
    return subprocess.Popen([str(BIN / command[0]), *command[1:]], stdin=subprocess.DEVNULL)


def ask_again(port):
    """The answer, once somebody gives one."""
    deadline = time.monotonic() + 60 * PATIENCE
    while True:
        try:
            return ask(port)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_ranks_outlive_the_scheduler(tmp_path):
    """Killed and started again: the same ranks, the same text."""
    port = free_port()
    gateway, tokenizer, scheduler, *workers = commands(lambda n: f"ipc://{tmp_path}/{n}", port)
    processes = [start(c) for c in (gateway, tokenizer, *workers)]
    try:
        for _ in range(4):
            p = start(scheduler)
            processes.append(p)
            assert ask_again(port) == GOLDEN["text"]
            assert ask(port) == GOLDEN["text"]
            p.kill()
            p.wait()
            processes.remove(p)
        assert all(p.poll() is None for p in processes)
    finally:
        end_all(processes)


def test_scheduler_killed_in_mid_step(tmp_path):
    """Ranks that had the same steps stay, others end; started again they find together."""
    port = free_port()
    gateway, tokenizer, scheduler, *workers = commands(lambda n: f"ipc://{tmp_path}/{n}", port)
    others = [start(c) for c in (gateway, tokenizer)]
    ranks = [start(c) for c in workers]
    p = start(scheduler)
    try:
        for pause in (0.05, 0.1, 0.15):
            assert ask_again(port) == GOLDEN["text"]
            body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions",
                                             json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            stream = threading.Thread(target=lambda r=request: swallow(r))
            stream.start()
            time.sleep(pause)
            p.kill()
            p.wait()
            p = start(scheduler)
            deadline = time.monotonic() + 60 * PATIENCE
            while stream.is_alive() or not is_ready(port):
                assert time.monotonic() < deadline
                for rank, command in enumerate(workers):
                    if ranks[rank].poll() is not None:
                        assert ranks[rank].returncode == 1
                        ranks[rank] = start(command)
                time.sleep(0.05)
        assert ask(port) == GOLDEN["text"]
        assert p.poll() is None and all(o.poll() is None for o in others)
    finally:
        end_all([p, *ranks, *others])


def test_ranks_that_do_not_belong_together(tmp_path):
    """One rank is new, the other has kept what it shared with the dead one: it is told to end."""
    port = free_port()
    gateway, tokenizer, scheduler, *workers = commands(lambda n: f"ipc://{tmp_path}/{n}", port)
    processes = [start(c) for c in (gateway, tokenizer, scheduler, *workers)]
    try:
        wait_ready(port, processes)
        for p in processes[2:4]:
            p.kill()
            p.wait()
        old = processes[4]
        processes[2:4] = [start(scheduler), start(workers[0])]
        assert old.wait(30 * PATIENCE) == 1
        assert processes[3].wait(30 * PATIENCE) == 1
        processes[3:] = [start(c) for c in workers]
        assert ask_again(port) == GOLDEN["text"]
    finally:
        end_all(processes)


def test_health_before_the_rest(tmp_path):
    """A gateway alone lives, is not ready, and says when to come back."""
    port = free_port()
    command = commands(lambda n: f"ipc://{tmp_path}/{n}", port)[0]
    p = subprocess.Popen([str(BIN / command[0]), *command[1:]], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10 * PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=2) as r:
                    assert r.status == 200
                    break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError) as e:
            ask(port)
        assert e.value.code == 503 and e.value.headers["Retry-After"]
    finally:
        p.terminate()
        assert p.wait(10 * PATIENCE) == 0
