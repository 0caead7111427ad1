"""phalanx serve with the real executables: what is left when processes die."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from conftest import BIN, DEMO, alive, check_findings, free_port

NAMES = ["scheduler-0", "worker-0", "worker-1", "tokenizer-0", "gateway-0"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("gave up waiting")


def command_line(pid):
    return pathlib.Path("/proc/%d/cmdline" % pid).read_bytes().decode().split("\0")


class Node:
    def __init__(self, folder, *args, model=DEMO, port=None):
        self.folder = folder
        self.port = port or free_port()
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            [BIN / "phalanx", "serve", "--model", model, "--device", "cpu", "--tp", "2", "--port",
             str(self.port), "--run-dir", folder / "run", *args],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)

    def text(self):
        return (self.folder / "log").read_text()

    def ready(self):
        wait_for(lambda: "curl http" in self.text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.text()
        return self

    def children(self):
        """Process ids by name."""
        pid = self.process.pid
        pids = pathlib.Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split()
        named = {}
        for child in map(int, pids):
            for word in command_line(child):  # none yet between fork and exec
                if word.startswith("--name="):
                    named[word.split("=")[1]] = child
        return named

    def post(self, path, body):
        request = urllib.request.Request("http://127.0.0.1:%d%s" % (self.port, path),
                                         json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture
def node(tmp_path):
    nodes = []

    def start(*args, **kwargs):
        nodes.append(Node(tmp_path, *args, **kwargs))
        return nodes[-1]

    yield start
    for n in nodes:
        if n.process.poll() is None:
            n.process.kill()
            n.process.wait()
        check_findings(n.text())


def gone(pids):
    return not [p for p in pids.values() if alive(p)]


def test_serves_and_stops(node, tmp_path):
    server = node().ready()
    pids = server.children()
    assert sorted(pids) == sorted(NAMES)
    answer = server.post("/v1/completions", {"model": "demo-model", "prompt": "Good morrow",
                                             "max_tokens": 4, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 4
    text = server.text()
    assert "API server is ready to serve on 127.0.0.1:%d" % server.port in text
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    assert gone(pids)
    assert not (tmp_path / "run").exists()
    assert "phalanx: stopped (SIGINT)" in server.text()
    assert not re.search(" (WARN|ERROR) ", server.text()[len(text):])  # they end in order


@pytest.mark.parametrize("name", NAMES)
def test_killed_child(node, tmp_path, name):
    server = node().ready()
    before = server.children()
    body = {"model": "demo-model", "prompt": "Good morrow", "max_tokens": 8, "temperature": 0}
    answer = server.post("/v1/completions", body)
    os.kill(before[name], signal.SIGKILL)
    wait_for(lambda: "phalanx: ready again after " in server.text())
    assert "phalanx: %s (pid %d) was killed by signal 9" % (name, before[name]) in server.text()
    after = server.children()
    assert sorted(after) == sorted(NAMES) and after[name] != before[name]
    again = server.post("/v1/completions", body)
    assert again["choices"][0]["text"] == answer["choices"][0]["text"]
    server.process.terminate()
    assert server.process.wait(20) == 0
    assert gone(before) and gone(after)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_child_killed_while_loading(node, tmp_path, name):
    server = node()
    pids = wait_for(lambda: len(server.children()) == len(NAMES) and server.children())
    if "curl http" not in server.text():
        os.kill(pids["worker-0"], signal.SIGSTOP)  # so that it is not ready too soon
    os.kill(pids[name], signal.SIGKILL)
    assert server.process.wait(20) == 1
    assert gone(pids)
    assert "phalanx: %s (pid %d) was killed by signal 9" % (name, pids[name]) in server.text()
    assert not (tmp_path / "run").exists()


def test_killed_launcher(node):
    server = node().ready()
    pids = server.children()
    server.process.kill()
    server.process.wait()
    wait_for(lambda: gone(pids))
    # The next one finds the leftovers and starts all the same.
    again = node().ready()
    again.process.terminate()
    assert again.process.wait(20) == 0


def test_stop_while_loading(node):
    server = node()
    wait_for(lambda: "tensor parallelism" in server.text())
    wait_for(lambda: len(server.children()) == len(NAMES))
    pids = server.children()
    server.process.terminate()
    assert server.process.wait(20) == 0
    assert gone(pids)


@pytest.mark.parametrize("name", ["scheduler-0", "worker-1"])
def test_stopped_child(node, name):
    """SIGSTOP: nobody sees it end, it only says nothing any more."""
    server = node().ready()
    before = server.children()
    os.kill(before[name], signal.SIGSTOP)
    if name == "worker-1":  # a step shows it
        answer = server.post("/v1/completions", {"model": "demo-model", "prompt": "Good morrow",
                                                 "max_tokens": 4, "ignore_eos": True})
        assert answer["usage"]["completion_tokens"] == 4
    wait_for(lambda: "phalanx: ready again after " in server.text())
    after = server.children()
    assert sorted(after) == sorted(NAMES) and after[name] != before[name]
    assert not alive(before[name])
    assert "phalanx: scheduler-0 (pid %d) hangs, killing it" % before["scheduler-0"] in \
        server.text() or name == "worker-1"


def test_status(node, tmp_path):
    def status():
        done = subprocess.run([BIN / "phalanx", "status", "--json", "--run-dir", tmp_path / "run"],
                              capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    server = node().ready()
    wait_for(lambda: status()["replicas"][0]["ready"])
    replica = status()["replicas"][0]
    assert replica["epoch"] == 1 and replica["ranks"] == [True, True]
    assert replica["pages_free"] == replica["pages_total"] > 0
    with stream(server, 900):
        replica = wait_for(lambda: [r for r in status()["replicas"] if r["running"]])[0]
        assert replica["pages_free"] < replica["pages_total"]
        os.kill(server.children()["worker-0"], signal.SIGKILL)
        wait_for(lambda: status()["replicas"][0]["epoch"] == 2)
        wait_for(lambda: status()["ready"])
    restarts = {p["name"]: p["restarts"] for p in status()["processes"]}
    assert restarts.pop("worker-0") == restarts.pop("worker-1") == 1
    assert set(restarts.values()) == {0}


def stream(server, tokens):
    """A connection on which a stream has begun."""
    body = json.dumps({"model": "demo-model", "prompt": "x", "max_tokens": tokens,
                       "ignore_eos": True, "stream": True}).encode()
    s = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert s.recv(15) == b"HTTP/1.1 200 OK"
    return s


def test_stop_drains(node):
    server = node().ready()
    pids = server.children()
    with stream(server, 300) as s:
        server.process.terminate()
        answer = b""
        while data := s.recv(65536):
            answer += data
    assert b"data: [DONE]" in answer and b'"finish_reason":"length"' in answer
    assert server.process.wait(20) == 0
    assert gone(pids)


def test_stop_without_drain(node):
    server = node("--drain-timeout", "0").ready()
    pids = server.children()
    with stream(server, 900):
        server.process.terminate()
        assert server.process.wait(20) == 0
    assert gone(pids)


def test_gateway_reports_a_port_taken_meanwhile(node):
    # The launcher's own look at the port is skipped when the gateway is started by hand.
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        done = subprocess.run([BIN / "phalanx-gateway", "--model-path", DEMO, "--port", str(port),
                               "--tokenizer-endpoint", "ipc:///tmp/phalanx-none-%d" % os.getpid()],
                              capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert str(port) in done.stderr and "in use" in done.stderr


def broken_model(tmp_path, name, change):
    folder = tmp_path / name
    shutil.copytree(DEMO, folder)
    change(folder)
    return folder


@pytest.mark.parametrize("name, change, word", [
    ("no-weights", lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    ("truncated", lambda f: os.truncate(f / "model.safetensors", 5_000_000), "safetensors"),
    ("no-tokenizer", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    ("broken-tokenizer", lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
    ("unknown", lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().replace("Qwen3ForCausalLM", "NoSuchModel")),
     "NoSuchModel"),
])
def test_broken_model(node, tmp_path, name, change, word):
    server = node(model=broken_model(tmp_path, name, change))
    assert server.process.wait(60) != 0
    assert word in server.text()
    assert "Traceback" not in server.text() and "core dumped" not in server.text()


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
@pytest.mark.parametrize("program", ["gateway", "tokenizer", "scheduler", "worker"])
def test_man_pages(program):
    page = subprocess.run([BIN / ("phalanx-" + program), "--man"], capture_output=True, text=True,
                          check=True).stdout
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-"], input=page,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "NAME" in done.stdout and "--log-level" in done.stdout


@pytest.mark.parametrize("program", ["gateway", "tokenizer", "scheduler", "worker"])
def test_wrong_option_of_a_child(program):
    done = subprocess.run([BIN / ("phalanx-" + program), "--nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("phalanx-%s: unknown option --nope" % program)
    assert len(done.stderr.splitlines()) == 1
