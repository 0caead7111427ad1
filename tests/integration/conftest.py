"""Fixtures: real servers (every process real) on the demo model or a model of the caller's."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
signal.signal(signal.SIGHUP, signal.SIG_DFL) # children inherit it, whatever it was for who runs this

BIN = pathlib.Path(os.environ.get("PHALANX_BIN", REPO / "build/release/bin"))
DEMO = REPO / "deploy/demo-model"
SHARED = REPO.parent / "shared"
# Sanitizers slow every process down; this scales what tests wait for at most.
PATIENCE = 1.0 if os.environ.get("PHALANX_VARIANT", "release") == "release" else 4.0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def check_findings(log):
    """No process said that a sanitizer found something."""
    found = re.search(r"(Sanitizer: |runtime error: ).*", log)
    assert not found, f"{found[0]}\n{log}"


def alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def end_all(processes):
    """Each ends when it is told to, by role, so that nobody sees one go that it needs."""
    codes = []
    for role in ("gateway", "tokenizer", "scheduler", "worker"):
        group = [p for p in processes if p.args[0].endswith("phalanx-" + role)]
        for p in group:
            p.terminate()
        codes += [p.wait(10 * PATIENCE) for p in group]
    assert codes == [0] * len(processes)


class Server:
    """`phalanx serve` and what hangs on it."""

    def __init__(self, model=DEMO, tp=2, args=(), env=None, ready=True):
        self.port = free_port()
        self.dir = tempfile.TemporaryDirectory(prefix="phalanx-test-")
        self.log_path = pathlib.Path(self.dir.name) / "log"
        self.run_dir = pathlib.Path(self.dir.name) / "run"
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = open(self.log_path, "wb")
        self.process = subprocess.Popen(
            [str(BIN / "phalanx"), "serve", "--model-path", str(model), "--tp", str(tp),
             "--device", "cpu", "--port", str(self.port), "--run-dir", str(self.run_dir),
             *map(str, args)],
            stdin=subprocess.DEVNULL, stdout=self.log_file, stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})}, start_new_session=True)
        if ready:
            self.wait_ready()

    def wait_ready(self, seconds=30):
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log()}")
            try:
                with urllib.request.urlopen(self.url + "/health/ready", timeout=2) as r:
                    if r.status == 200:
                        return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"not ready:\n{self.log()}")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def post(self, path, body, headers=None, timeout=60):
        """(status, parsed JSON) of a POST; body a dict or bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data,
            {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=timeout * PATIENCE) as r:
                return r.status, json.loads(r.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10 * PATIENCE) as r:
            return r.read().decode()

    def metric(self, name, process=None):
        """Sum of a metric's samples (over processes unless one is named). A server that has just
        started has not sent its numbers yet: they are waited for."""
        deadline = time.monotonic() + 5 * PATIENCE
        while True:
            total, found = 0.0, False
            for line in self.get("/metrics").splitlines():
                m = re.match(r"phalanx:(\w+)(?:\{(.*)\})? (\S+)$", line)
                if m and m[1] == name and (process is None or f'process="{process}"' in m[2]):
                    total, found = total + float(m[3]), True
            if found:
                return total
            assert time.monotonic() < deadline, f"no metric {name}"
            time.sleep(0.05)

    def wait_idle(self, seconds=10):
        """Until no sequence runs and every page is free again."""
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            if (self.metric("num_requests_running") == 0 and self.metric("num_requests_waiting") == 0
                    and self.metric("kv_pages_free") == self.metric("kv_pages_total")):
                return
            time.sleep(0.05)
        raise AssertionError(
            f"running {self.metric('num_requests_running')} waiting "
            f"{self.metric('num_requests_waiting')} pages free {self.metric('kv_pages_free')} of "
            f"{self.metric('kv_pages_total')}\n{self.log()}")

    def pids(self):
        """All processes of this server: the launcher's session or its descendants."""
        found = []
        for p in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if str(self.run_dir).encode() in (p / "cmdline").read_bytes():
                    found.append(int(p.name))
            except OSError:
                pass
        return found

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"serve did not end on SIGTERM:\n{self.log()}")
        self.log_file.close()
        check_findings(self.log())
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.dir.cleanup()


@pytest.fixture(scope="session")
def server():
    """The demo model on two ranks, shared by the tests that only ask."""
    with Server() as s:
        yield s
