"""The cluster key: keygen, every process over tcp with it, and what those without it get."""

import contextlib
import json
import os
import pathlib
import re
import socket
import stat
import subprocess
import threading
import time
import urllib.request

import pytest

from conftest import BIN, DEMO, PATIENCE, REPO, free_port

GOLDEN = json.loads((REPO / "tests/golden/demo.json").read_text())["prompts"][0]


def keygen(path):
    return subprocess.run([str(BIN / "phalanx"), "keygen", "--cluster-key-file", str(path)],
                          capture_output=True, text=True, check=False)


class Tap:
    """Forwards connections and keeps what went through, both directions."""

    def __init__(self, target):
        self.target, self.seen = target, bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                one, _ = self.listener.accept()
                other = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                if self.listener.fileno() < 0:
                    return
                one.close()
                continue
            for pair in (one, other), (other, one):
                threading.Thread(target=self.forward, args=pair, daemon=True).start()

    def forward(self, source, sink):
        try:
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
        except OSError:
            pass
        for s in source, sink:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()


class Cluster:
    """Each process by hand, over tcp; every connection goes through a tap."""

    def __init__(self, folder, keys, env=None, bind="127.0.0.1", dist=()):
        """keys: options of each role's command line."""
        self.ports = {name: free_port() for name in "tsw"}
        self.taps = {name: Tap(port) for name, port in self.ports.items()}
        self.port = free_port()
        model = ["--model-path", str(DEMO)]

        def at(name):
            return f"tcp://{bind}:{self.ports[name]}"

        def to(name):
            return f"tcp://127.0.0.1:{self.taps[name].port}"

        commands = {
            "gateway": [*model, "--port", str(self.port), "--tokenizer-endpoint", to("t")],
            "tokenizer": [*model, "--tokenizer-endpoint", at("t"), "--scheduler-endpoint", to("s")],
            "scheduler": ["--tp", "2", "--scheduler-endpoint", at("s"), "--worker-endpoint",
                          at("w")],
        }
        for rank in range(2):
            commands[f"worker-{rank}"] = [
                *model, "--device", "cpu", "--tp", "2", "--rank", str(rank), "--worker-endpoint",
                to("w"), *dist]
        self.logs, self.processes = {}, {}
        for name, words in commands.items():
            role = name.split("-")[0]
            self.logs[name] = folder / f"{name}.log"
            with open(self.logs[name], "wb") as log:
                self.processes[name] = subprocess.Popen(
                    [str(BIN / f"phalanx-{role}"), *words, *keys.get(role, keys.get("all", []))],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})})

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready",
                                        timeout=2) as r:
                return r.status == 200
        except OSError:
            return False

    def wait_ready(self):
        deadline = time.monotonic() + 30 * PATIENCE
        while not self.ready():
            ended = [n for n, p in self.processes.items() if p.poll() is not None]
            assert not ended, self.logs[ended[0]].read_text()
            assert time.monotonic() < deadline, "not ready"
            time.sleep(0.05)

    def ask(self):
        body = {"model": DEMO.name, "messages": GOLDEN["messages"], "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30 * PATIENCE) as r:
            return json.loads(r.read())["choices"][0]["message"]["content"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes.values():
            p.terminate()
        for p in self.processes.values():
            p.wait(10 * PATIENCE)
        for t in self.taps.values():
            t.close()


def clear_words():
    """What a capture without a key shows: names, and words of the prompt."""
    words = [w for w in re.findall(r"[A-Za-z]{6,}", GOLDEN["messages"][-1]["content"])]
    return ["tokenizer-0", "scheduler-0", "worker-1", *words[:2]]


def test_keygen(tmp_path):
    path = tmp_path / "cluster.key"
    first = keygen(path)
    assert first.returncode == 0, first.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert re.fullmatch(r"phalanx-key-1:[0-9a-f]{128}\n", text)
    assert text.strip() not in first.stdout + first.stderr
    again = keygen(path)
    assert again.returncode == 1 and "exists" in again.stderr
    assert path.read_text() == text
    printed = subprocess.run([str(BIN / "phalanx"), "keygen"], capture_output=True, text=True,
                             check=True).stdout
    assert re.fullmatch(r"phalanx-key-1:[0-9a-f]{128}\n", printed) and printed != text


@pytest.mark.parametrize("by", ["file", "environment", "none"])
def test_serves_and_what_a_capture_shows(tmp_path, by):
    key = tmp_path / "cluster.key"
    assert keygen(key).returncode == 0
    options = {"all": ["--cluster-key-file", str(key)]} if by == "file" else {}
    env = {"PHALANX_CLUSTER_KEY": key.read_text()} if by == "environment" else {}
    # With a key, binding every interface is fine, and ranks may use a named one.
    bind = "127.0.0.1" if by == "none" else "*"
    dist = ["--dist-interface", "lo"] if by == "file" else []
    with Cluster(tmp_path, options, env, bind, dist) as c:
        c.wait_ready()
        assert c.ask() == GOLDEN["text"]
        for name, p in c.processes.items():
            argv = pathlib.Path(f"/proc/{p.pid}/cmdline").read_bytes()
            assert b"phalanx-key" not in argv, name
        seen = b"".join(bytes(t.seen) for t in c.taps.values())
    assert len(seen) > 2000
    for word in clear_words():
        assert (word.encode() in seen) == (by == "none"), word
    assert (b"CURVE" in seen) == (by != "none")


def test_another_key_is_kept_out(tmp_path):
    """A cluster for each stranger, at the same time: it is long until they say what is wrong."""
    ours, theirs = tmp_path / "ours.key", tmp_path / "theirs.key"
    assert keygen(ours).returncode == keygen(theirs).returncode == 0
    clusters = {}
    with contextlib.ExitStack() as stack:
        for stranger in ("gateway", "tokenizer", "worker"):
            folder = tmp_path / stranger
            folder.mkdir()
            clusters[stranger] = stack.enter_context(Cluster(
                folder, {"all": ["--cluster-key-file", str(ours)],
                         stranger: ["--cluster-key-file", str(theirs)]}))
        deadline = time.monotonic() + 20 * PATIENCE
        for stranger, c in clusters.items():
            log = c.logs["worker-0" if stranger == "worker" else stranger]
            while "another cluster key" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert not c.ready()
            assert all(p.poll() is None for p in c.processes.values())
            for text in (log.read_text() for log in c.logs.values()):
                assert ours.read_text().strip()[14:] not in text


SCHEDULER = ["phalanx-scheduler", "--worker-endpoint", "tcp://127.0.0.1:1"]


@pytest.mark.parametrize("words, says", [
    (["--scheduler-endpoint", "tcp://0.0.0.0:5555"], "cluster key"),
    (["--scheduler-endpoint", "tcp://10.1.2.3:5555"], "cluster key"),
    (["--scheduler-endpoint", "tcp://*:5555", "--insecure-bus"], "cluster key"),
    (["--scheduler-endpoint", "tcp://127.0.0.1:5555", "--cluster-key", "x"], "environment"),
    (["--scheduler-endpoint", "tcp://127.0.0.1:5555", "--cluster-key-file", "/nowhere/key"],
     "/nowhere/key"),
])
def test_refused_at_start(words, says):
    p = subprocess.run([str(BIN / SCHEDULER[0]), *SCHEDULER[1:], *words], capture_output=True,
                       text=True, timeout=20 * PATIENCE, check=False)
    assert p.returncode != 0
    assert says in p.stderr and len(p.stderr.splitlines()) == 1, p.stderr
