"""SIGHUP: log levels while processes run, and the end of a terminal."""

import os
import pty
import signal
import subprocess

from conftest import BIN, DEMO, PATIENCE, Server, free_port
from test_http import until


def start(tmp_path, **how):
    log = open(tmp_path / "log", "wb")
    process = subprocess.Popen(
        [BIN / "phalanx-gateway", "--tokenizer-endpoint", f"ipc://{tmp_path}/t", "--port",
         str(free_port()), "--log-level", "warn"], stderr=log, **how)
    # /dev/tty is looked at before SIGHUP is followed: the handler is there when it is caught.
    caught = lambda: int(next(line for line in open(f"/proc/{process.pid}/status")
                              if line.startswith("SigCgt")).split()[1], 16)
    until(lambda: caught() & 1 << signal.SIGHUP - 1, what="a handler of SIGHUP")
    return process


def test_steps(tmp_path):
    process = start(tmp_path, start_new_session=True)
    text = lambda: (tmp_path / "log").read_text()
    for level in ["debug", "warn", "debug"]:
        before = len(text())
        process.send_signal(signal.SIGHUP)
        until(lambda: text()[before:].startswith(f"gateway-0: log level {level}\n"))
    process.terminate()
    assert process.wait(10 * PATIENCE) == 0


def test_a_terminal_that_hangs_up_ends_the_process(tmp_path):
    ours, theirs = pty.openpty()

    def in_terminal():
        os.setsid()
        os.close(os.open(os.ttyname(theirs), os.O_RDWR)) # the first one opened becomes it

    process = start(tmp_path, preexec_fn=in_terminal)
    process.send_signal(signal.SIGHUP)
    until(lambda: "log level debug" in (tmp_path / "log").read_text())
    os.close(theirs)
    os.close(ours)
    assert process.wait(10 * PATIENCE) == -signal.SIGHUP


def test_the_whole_node():
    """Through the launcher; and who starts later has the level of the others."""
    with Server() as s:
        until(lambda: "curl http" in s.log(), what="the launcher's own look")
        names = {"gateway-0", "tokenizer-0", "scheduler-0", "worker-0", "worker-1"}
        heard = lambda level: {n for n in names if f"\n{n}: log level {level}\n" in s.log()}
        s.process.send_signal(signal.SIGHUP)
        until(lambda: heard("debug") == names)
        assert "\nphalanx: log level debug\n" in s.log()
        pid = next(p for p in s.pids()
                   if b"--name=tokenizer-0" in open(f"/proc/{p}/cmdline", "rb").read())
        os.kill(pid, signal.SIGKILL)
        until(lambda: s.log().count('"tokenizer loaded"') == 2)
        again = next(p for p in s.pids()
                     if b"--name=tokenizer-0" in open(f"/proc/{p}/cmdline", "rb").read())
        assert again != pid and b"--log-level=debug" in open(f"/proc/{again}/cmdline", "rb").read()
        s.process.send_signal(signal.SIGHUP)
        until(lambda: heard("info") == names)
        assert s.stop() == 0


def test_a_node_that_does_not_serve(tmp_path):
    """Two nodes on one host: the second one's launcher passes it on as well."""
    where = f"127.0.0.1:{free_port()}"
    nodes, logs = [], [tmp_path / "log0", tmp_path / "log1"]
    try:
        for rank in range(2):
            with open(logs[rank], "wb") as log:
                nodes.append(subprocess.Popen(
                    [BIN / "phalanx", "serve", "--model-path", DEMO, "--device", "cpu", "--tp", "2",
                     "--nnodes", "2", "--node-rank", str(rank), "--dist-init-addr", where, "--port",
                     str(free_port()), "--run-dir", tmp_path / f"run{rank}"],
                    stdout=log, stderr=log))
        until(lambda: "curl http" in logs[0].read_text(), 30, "ready")
        nodes[1].send_signal(signal.SIGHUP)
        until(lambda: "\nworker-1: log level debug\n" in logs[1].read_text())
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(20 * PATIENCE)
    assert "\nphalanx: log level debug\n" in logs[1].read_text()
