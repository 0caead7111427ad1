"""phalanx serve and phalanx chat, with stand-ins for the other executables.

The launcher looks for its siblings in its own folder. Here that folder holds a copy of the launcher
and scripts that do what a test wants of a child: live, ignore SIGTERM, end with a status, answer
HTTP. test_processes.py does the same with the real executables.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from conftest import BIN, alive, free_port

ROLES = ["scheduler", "tokenizer", "worker", "gateway"]

STUB = """#!{python}
import http.server, json, os, signal, sys, time

name = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--name="))
options = dict(a[2:].split("=", 1) for a in sys.argv[1:])
folder = os.environ["STUB_DIR"]
fds = sorted(map(int, os.listdir("/proc/self/fd")))
with open(os.path.join(folder, name + ".json.new"), "w") as f:
    json.dump({{"pid": os.getpid(), "argv": sys.argv, "env": dict(os.environ),
               "pgid": os.getpgid(0), "fds": fds}}, f)
os.rename(f.name, os.path.join(folder, name + ".json"))
plan = json.loads(os.environ.get("STUB_PLAN", "{{}}")).get(name, "")
if plan == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if plan == "drain":  # ends when the file "drained" is there

    def drain(number, frame):
        open(os.path.join(folder, "draining"), "w").close()
        while not os.path.exists(os.path.join(folder, "drained")):
            time.sleep(0.01)
        os._exit(0)

    signal.signal(signal.SIGTERM, drain)
if plan == "family":  # leaves a process in another session behind
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open(os.path.join(folder, "orphan"), "w") as f:
                f.write(str(os.getpid()))
            time.sleep(1000)
        os._exit(0)
    os.wait()
if plan.startswith("exit"):
    sys.exit(int(plan[4:]))
if not name.startswith("gateway"):
    while True:
        time.sleep(1000)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/models":
            return self.answer(200, {{"data": [{{"id": options["served-model-name"]}}]}})
        ready = not os.path.exists(os.path.join(folder, "not-ready"))
        self.answer(200 if ready else 503, {{}})

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(b"%x\\r\\n" % len(data) + data + b"\\r\\n")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(os.path.join(folder, "requests"), "a") as f:
            f.write(json.dumps([body, self.headers.get("Authorization")]) + "\\n")
        said = body["messages"][-1]["content"]
        if said == "fail":
            return self.answer(429, {{"error": {{"message": "queue is full"}}}})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = ["you ", "said ", said, " \\u00e9\\x1b[31m"]
        if said == "slow":
            words = ["tick "] * 1000
        for word in words:
            event = {{"choices": [{{"index": 0, "delta": {{"content": word}}}}]}}
            self.chunk("data: " + json.dumps(event) + "\\n\\n")
            if said == "slow":
                time.sleep(0.05)
        if said == "break":
            self.chunk('data: {{"error": {{"message": "rank 1 is gone"}}}}\\n\\n')
        else:
            self.chunk("data: [DONE]\\n\\n")
        self.chunk("")


http.server.ThreadingHTTPServer((options.get("host", "127.0.0.1"), int(options.get("port", 1919))),
                                Handler).serve_forever()
"""


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("gave up waiting for %s" % condition)


class Server:
    def __init__(self, place, args=(), tp=2, plan=None, env=None):
        self.place = place
        self.port = free_port()
        self.names = ["scheduler-0", "tokenizer-0", "gateway-0"]
        self.names += ["worker-%d" % r for r in range(tp)]
        self.log = open(place / "log", "w+")
        self.process = subprocess.Popen(
            [place / "phalanx", "serve", "--model", place / "tiny", "--tp", str(tp), "--device",
             "cpu", "--port", str(self.port), "--run-dir", place / "run", *args],
            stderr=self.log, stdout=self.log, stdin=subprocess.DEVNULL,
            env={**os.environ, "STUB_DIR": str(place), "STUB_PLAN": json.dumps(plan or {}),
                 **(env or {})})

    def text(self):
        return (self.place / "log").read_text()

    def child(self, name):
        path = self.place / (name + ".json")
        wait_for(path.exists)
        return json.loads(path.read_text())

    def children(self):
        return {name: self.child(name) for name in self.names}

    def ready(self):
        wait_for(lambda: "curl http" in self.text() or self.process.poll() is not None)
        assert "curl http" in self.text(), self.text()
        return self

    def end(self, seconds=20):
        return self.process.wait(seconds)


@pytest.fixture
def place(tmp_path):
    shutil.copy(BIN / "phalanx", tmp_path / "phalanx")
    for role in ROLES:
        path = tmp_path / ("phalanx-" + role)
        path.write_text(STUB.format(python=sys.executable))
        path.chmod(0o755)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    yield tmp_path
    for path in tmp_path.glob("*.json"):
        pid = json.loads(path.read_text())["pid"]
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(place):
    servers = []

    def run(*args, **kwargs):
        servers.append(Server(place, args, **kwargs))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def none_left(children):
    return not [c["pid"] for c in children.values() if alive(c["pid"])]


def run(place, *args, **kwargs):
    return subprocess.run([place / "phalanx", *args], capture_output=True, text=True, timeout=30,
                          **kwargs)


# ---- command lines ----


def test_children_get_their_options(start):
    server = start("--page-size", "32", "--host", "127.0.0.1", "--no-dummy-weight").ready()
    children = server.children()
    for rank in (0, 1):
        argv = children["worker-%d" % rank]["argv"]
        assert "--rank=%d" % rank in argv and "--tp-size=2" in argv and "--page-size=32" in argv
        assert "--dummy-weight=false" in argv and "--device=cpu" in argv
        assert not [a for a in argv if a.startswith("--port")]
    assert "--page-size=32" in children["scheduler-0"]["argv"]
    assert "--page-size=32" not in children["gateway-0"]["argv"]
    assert "--served-model-name=tiny" in children["gateway-0"]["argv"]
    by_flag = {}
    for child in children.values():
        for word in child["argv"][1:]:
            if "-endpoint=" in word:
                by_flag.setdefault(word.split("=")[0], set()).add(word)
    assert sorted(by_flag) == ["--control-endpoint", "--scheduler-endpoint",
                               "--tokenizer-endpoint", "--worker-endpoint"]
    assert all(len(words) == 1 for words in by_flag.values())


def test_children_are_alone(start):
    server = start().ready()
    for child in server.children().values():
        assert child["pgid"] == child["pid"]
        assert child["fds"] == [0, 1, 2, 3]  # 3 is the listing itself


@pytest.mark.parametrize("by", ["flag", "flag=", "environment"])
def test_key_is_not_on_command_lines(start, place, by):
    args = {"flag": ["--api-key", "sesame-7"], "flag=": ["--api-key=sesame-7"]}.get(by, [])
    env = {"PHALANX_API_KEY": "sesame-7"} if by == "environment" else {}
    server = start(*args, env=env).ready()
    children = server.children()
    for child in children.values():
        assert "sesame-7" not in " ".join(child["argv"])
    assert children["gateway-0"]["env"]["PHALANX_API_KEY"] == "sesame-7"
    assert "PHALANX_API_KEY" not in children["worker-0"]["env"]
    own = pathlib.Path("/proc/%d/cmdline" % server.process.pid).read_bytes()
    assert b"sesame-7" not in own
    assert "sesame-7" not in server.text()
    assert "Authorization: Bearer $PHALANX_API_KEY" in server.text()


@pytest.mark.parametrize("args, message", [
    (["serve"], "phalanx serve: --model-path is missing"),
    (["serve", "--model", "/nonexistent"], "phalanx serve: --model-path: there is no folder"),
    (["serve", "--model", "/etc"], "phalanx serve: --model-path: /etc has no config.json"),
    (["serve", "--model", "/etc/passwd"], "is a file, not a model folder"),
    (["serve", "--model", "org/name"], "downloading is not supported yet"),
    (["serve", "--prot", "1"], "unknown option --prot, did you mean --port?"),
    (["serve", "--tp", "0"], "--tp-size: '0' is not an integer from 1 to 64"),
    (["serve", "--rank", "0"], "--rank is an option of phalanx-worker"),
    (["serve", "--model", "tiny", "--host", "no.such.host.invalid"], "--host: "),
    (["dance"], "phalanx: unknown command 'dance'"),
    (["chat", "--tp", "2"], "--tp-size is an option of phalanx serve"),
])
def test_wrong_command_lines(place, args, message):
    done = run(place, *args, cwd=place, env={**os.environ, "HF_HUB_CACHE": str(place / "hub")})
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_broken_config(place):
    (place / "tiny" / "config.json").write_text("{")
    done = run(place, "serve", "--model", place / "tiny")
    assert done.returncode == 2
    assert "config.json: invalid JSON at line 1" in done.stderr


def test_hub_id(start, place):
    snapshot = place / "hub" / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (place / "hub" / "models--org--name" / "refs").mkdir()
    (place / "hub" / "models--org--name" / "refs" / "main").write_text("abc123\n")
    server = start("--model", "org/name", env={"HF_HUB_CACHE": str(place / "hub")}).ready()
    argv = server.child("gateway-0")["argv"]
    assert "--model-path=%s" % snapshot in argv
    assert "--served-model-name=org/name" in argv


def test_hub_ref_does_not_escape(place):
    refs = place / "hub" / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs.parent / "snapshots").mkdir()
    (refs / "main").write_text("../../../tiny")
    done = run(place, "serve", "--model", "org/name",
               env={**os.environ, "HF_HUB_CACHE": str(place / "hub")})
    assert done.returncode == 2 and "Hugging Face cache" in done.stderr


def test_missing_sibling(place):
    (place / "phalanx-worker").unlink()
    done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "run")
    assert done.returncode == 1 and "phalanx-worker: No such file" in done.stderr


def test_child_that_can_not_start(place):
    (place / "phalanx-gateway").write_text("#!/no/such/interpreter\n")
    done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "run", "--port",
               str(free_port()), env={**os.environ, "STUB_DIR": str(place)})
    assert done.returncode == 1
    assert "cannot start" in done.stderr and "phalanx-gateway: No such file" in done.stderr
    assert all(not alive(json.loads(p.read_text())["pid"]) for p in place.glob("*-0.json"))


def test_help_and_version(place):
    assert "serve" in run(place, "help").stdout
    assert "--tp-size, --tp" in run(place, "help", "serve").stdout
    assert "--tp-size, --tp" in run(place, "serve", "--help").stdout
    assert run(place, "help", "dance").returncode == 2
    assert run(place).returncode == 2
    version = pathlib.Path("VERSION").read_text().strip()
    assert run(place, "version").stdout == "phalanx %s\n" % version
    assert run(place, "serve", "--version").stdout == "phalanx serve %s\n" % version


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
@pytest.mark.parametrize("args", [[], ["serve"], ["chat"], ["bench"]])
def test_man_pages(place, args):
    page = run(place, *args, "--man").stdout
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-"], input=page, capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "NAME" in done.stdout


# ---- the run directory ----


def test_second_server_in_a_run_directory(start, place):
    server = start().ready()
    done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "run", "--port",
               str(free_port()))
    assert done.returncode == 1
    assert "in use by another server (pid %d)" % server.process.pid in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert server.process.poll() is None


def test_port_in_use(place):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "run", "--port",
                   str(port))
    assert done.returncode == 1
    assert done.stderr == ("phalanx serve: 127.0.0.1:%d is in use by another program, choose "
                           "another --port\n" % port)
    assert not (place / "run").exists()


def test_run_directory_is_private_and_goes(start, place):
    server = start().ready()
    assert stat.S_IMODE((place / "run").stat().st_mode) == 0o700
    server.process.terminate()
    assert server.end() == 0
    assert not (place / "run").exists()


def test_default_run_directory(start, place):
    (place / "xdg").mkdir()
    server = start("--run-dir=", env={"XDG_RUNTIME_DIR": str(place / "xdg")}).ready()
    wanted = place / "xdg" / ("phalanx-%d-%d" % (os.geteuid(), server.port))
    assert (wanted / "lock").read_text() == "%d\n" % server.process.pid
    server.process.terminate()
    assert server.end() == 0
    assert list((place / "xdg").iterdir()) == []


def test_run_directory_refused(place):
    def refused(message):
        done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "run")
        assert done.returncode == 1 and message in done.stderr, done.stderr

    (place / "real").mkdir(mode=0o700)
    (place / "run").symlink_to(place / "real")
    refused("run directory")
    (place / "run").unlink()
    (place / "run").mkdir()
    (place / "run").chmod(0o755)
    refused("has mode 0755")
    (place / "run").rmdir()
    (place / "run").write_text("")
    refused("Not a directory")
    done = run(place, "serve", "--model", place / "tiny", "--run-dir", "/tmp/" + "x" * 100)
    assert done.returncode == 1 and "choose another --run-dir" in done.stderr
    done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "no" / "dir")
    assert done.returncode == 1 and "cannot make the run directory" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_run_directory_of_another_user(place):
    (place / "run").mkdir(mode=0o700)
    os.chown(place / "run", 65534, 65534)
    done = run(place, "serve", "--model", place / "tiny", "--run-dir", place / "run")
    assert done.returncode == 1 and "belongs to user 65534" in done.stderr


def test_leftovers_of_a_killed_run(start, place):
    run_dir = place / "run"
    run_dir.mkdir(mode=0o700)
    (run_dir / "workers-0.ipc").write_text("old")
    (run_dir / "mine.txt").write_text("keep")
    (run_dir / "lock").write_text("99999\n")
    server = start().ready()
    assert not (run_dir / "workers-0.ipc").exists()
    server.process.terminate()
    assert server.end() == 0
    assert [p.name for p in run_dir.iterdir()] == ["mine.txt"]


# ---- life and death ----


def test_curl_line_only_when_ready(start, place):
    (place / "not-ready").write_text("")
    server = start()
    server.children()
    time.sleep(0.3)
    assert "curl http" not in server.text()
    (place / "not-ready").unlink()
    server.ready()
    line = next(t for t in server.text().splitlines() if "curl http" in t)
    assert "http://127.0.0.1:%d/v1/chat/completions" % server.port in line
    assert '"model":"tiny"' in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop(start, number):
    server = start().ready()
    children = server.children()
    server.process.send_signal(number)
    assert server.end() == 0
    assert none_left(children)
    assert server.text().endswith("phalanx: stopped (%s)\n" % number.name)


def test_gateways_drain_first(start, place):
    server = start(plan={"gateway-0": "drain"}).ready()
    children = server.children()
    server.process.terminate()
    wait_for((place / "draining").exists)
    os.kill(children["worker-0"]["pid"], signal.SIGKILL)  # what runs goes on all the same
    wait_for(lambda: server.child("worker-1")["pid"] != children["worker-1"]["pid"])
    wait_for(lambda: "phalanx: finishing what runs, at most 30 s" in server.text())
    for name in ("gateway-0", "tokenizer-0", "scheduler-0"):
        assert alive(children[name]["pid"])
    children.update({n: server.child(n) for n in ("worker-0", "worker-1")})
    (place / "drained").write_text("")
    assert server.end() == 0
    assert none_left(children)
    assert "did not stop" not in server.text() and "gateway" not in server.text()


@pytest.mark.parametrize("args, plan", [
    (["--drain-timeout", "0.2"], "stubborn"),
    (["--drain-timeout", "0"], "drain"),
])
def test_drain_has_a_bound(start, args, plan):
    server = start(*args, plan={"gateway-0": plan}).ready()
    children = server.children()
    server.process.terminate()
    assert server.end() == 0
    assert none_left(children)
    assert "gateway-0 did not stop, killing it" in server.text()


def test_second_signal_ends_the_drain(start, place):
    server = start(plan={"gateway-0": "drain", "worker-0": "stubborn"}).ready()
    children = server.children()
    server.process.send_signal(signal.SIGINT)
    wait_for((place / "draining").exists)
    time.sleep(0.4)  # a repeat that comes sooner counts as the same signal
    server.process.send_signal(signal.SIGINT)
    assert server.end(3) == 0  # SIGKILL, without the 3.5 s of grace
    assert none_left(children)


def test_stop_while_starting(start, place):
    (place / "not-ready").write_text("")
    server = start()
    children = server.children()
    server.process.terminate()
    assert server.end() == 0
    assert none_left(children)


def test_stop_of_a_stubborn_child(start):
    server = start(plan={"worker-1": "stubborn"}).ready()
    children = server.children()
    server.process.terminate()
    assert server.end() == 0
    assert none_left(children)
    assert "worker-1 did not stop, killing it" in server.text()


def test_second_signal_stops_at_once(start):
    server = start(plan={"worker-1": "stubborn"}).ready()
    children = server.children()
    server.process.send_signal(signal.SIGINT)
    wait_for(lambda: not alive(children["worker-0"]["pid"]))
    assert server.process.poll() is None
    time.sleep(0.4)  # a repeat that comes sooner counts as the same signal
    server.process.send_signal(signal.SIGINT)
    assert server.end() == 0
    assert none_left(children)


def test_stopped_child_is_killed(start):
    server = start().ready()
    children = server.children()
    os.kill(children["scheduler-0"]["pid"], signal.SIGSTOP)
    server.process.terminate()
    assert server.end() == 0
    assert none_left(children)


@pytest.mark.parametrize("name, next_ones, same", [
    ("gateway-0", ["gateway-0"], ["tokenizer-0", "scheduler-0", "worker-0", "worker-1"]),
    ("tokenizer-0", ["tokenizer-0"], ["gateway-0", "scheduler-0", "worker-0", "worker-1"]),
    ("worker-1", ["worker-0", "worker-1"], ["gateway-0", "tokenizer-0", "scheduler-0"]),
    ("scheduler-0", ["scheduler-0", "worker-0", "worker-1"], ["gateway-0", "tokenizer-0"]),
])
def test_killed_child_starts_again(start, name, next_ones, same):
    server = start().ready()
    before = server.children()
    os.kill(before[name]["pid"], signal.SIGKILL)
    wait_for(lambda: all(server.child(n)["pid"] != before[n]["pid"] for n in next_ones))
    after = server.children()
    assert {n for n in after if after[n]["pid"] == before[n]["pid"]} == set(same)
    assert none_left({n: before[n] for n in next_ones})
    for child in ("scheduler-0", "worker-0", "worker-1"):
        if child in next_ones:
            assert "--epoch=2" in after[child]["argv"]
    said = "phalanx: %s (pid %d) was killed by signal 9 (Killed); " % (name, before[name]["pid"])
    assert server.text().count(said) == 1
    server.process.terminate()
    assert server.end() == 0
    assert none_left(after)


def test_stopped_rank_is_killed_with_its_group(start):
    server = start().ready()
    before = server.children()
    os.kill(before["worker-0"]["pid"], signal.SIGSTOP)
    os.kill(before["worker-1"]["pid"], signal.SIGKILL)
    wait_for(lambda: server.child("worker-0")["pid"] != before["worker-0"]["pid"])
    assert not alive(before["worker-0"]["pid"])


@pytest.mark.parametrize("name", ["gateway-0", "worker-1"])
def test_restarts_have_a_bound(start, place, name):
    server = start().ready()
    for i in range(6):
        pid = server.child(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: i == 5 or server.child(name)["pid"] != pid)
    assert server.end() == 1
    assert none_left(server.children())
    assert "%s (pid %d) was killed by signal 9 (Killed): more than 5 times within 60 s" % (
        name, pid) in server.text()
    assert not (place / "run").exists()


@pytest.mark.parametrize("status", [0, 1, 3])
def test_child_that_exits_ends_the_node(start, place, status):
    (place / "not-ready").write_text("")  # else it may be ready before, and start the child again
    server = start(plan={"worker-1": "exit%d" % status})
    assert server.end() == 1
    assert re.search(r"phalanx: worker-1 \(pid \d+\) exited with status %d\n" % status,
                     server.text())


def test_stubborn_rest_is_killed(start, place):
    (place / "not-ready").write_text("")
    server = start(plan={"worker-0": "stubborn", "gateway-0": "stubborn"})
    children = server.children()
    os.kill(children["worker-1"]["pid"], signal.SIGSEGV)
    assert server.end() == 1
    assert none_left(children)
    assert "worker-1 (pid %d) was killed by signal 11" % children["worker-1"]["pid"] in server.text()


def test_killed_launcher_leaves_none(start):
    server = start(plan={"worker-0": "stubborn"}).ready()
    children = server.children()
    server.process.kill()
    server.end()
    wait_for(lambda: none_left(children))


def test_orphans_are_found(start, place):
    server = start(plan={"worker-0": "family"}).ready()
    wait_for((place / "orphan").exists)
    orphan = int(wait_for((place / "orphan").read_text))
    assert alive(orphan)
    server.process.terminate()
    assert server.end() == 0
    assert not alive(orphan)


def test_restart_after_kill(start, place):
    first = start().ready()
    children = first.children()
    first.process.kill()
    first.end()
    wait_for(lambda: none_left(children))
    for path in place.glob("*.json"):
        path.unlink()
    second = start().ready()
    second.process.terminate()
    assert second.end() == 0


# ---- status ----


def test_status(start, place):
    server = start().ready()
    children = server.children()
    os.kill(children["tokenizer-0"]["pid"], signal.SIGKILL)
    wait_for(lambda: server.child("tokenizer-0")["pid"] != children["tokenizer-0"]["pid"])
    done = run(place, "status", "--run-dir", place / "run")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.startswith("Phalanx ") and ": tiny, " in done.stdout
    rows = {line[0]: line for line in lines if len(line) > 4}
    for name, child in server.children().items():
        assert rows[name][1] == str(child["pid"])
        assert rows[name][3] == ("1" if name == "tokenizer-0" else "0")
        assert float(rows[name][4]) > 1 and rows[name][5] == "MiB"
    assert rows["launcher"][1] == str(server.process.pid)
    done = run(place, "status", "--run-dir", place / "run", "--json")
    status = json.loads(done.stdout)
    assert [p["name"] for p in status["processes"]] == [
        "launcher", "gateway-0", "tokenizer-0", "scheduler-0", "worker-0", "worker-1"]
    assert status["model"] == "tiny" and status["uptime_s"] > 0
    # The stand-in says nothing to the launcher.
    assert [(r["epoch"], r["ready"], r["reason"]) for r in status["replicas"]] == \
        [(1, False, "starting")]


def test_status_without_server(start, place):
    def refused(message, *args):
        done = run(place, "status", *args)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("phalanx status: " + message), done.stderr
        assert len(done.stderr.splitlines()) == 1

    refused("no server: there is no run directory /", "--port", str(free_port()))
    refused("no server: there is no run directory", "--run-dir", place / "none")
    refused("no server: there is no run directory", "--run-dir", place / "phalanx")
    refused("no server runs in", "--run-dir", place)
    server = start().ready()
    children = server.children()
    server.process.kill()
    server.end()
    wait_for(lambda: none_left(children))
    assert (place / "run" / "control-0.ipc").exists()
    refused("no server runs in", "--run-dir", place / "run")


def test_status_of_a_hung_server(start, place):
    server = start().ready()
    os.kill(server.process.pid, signal.SIGSTOP)
    done = run(place, "status", "--run-dir", place / "run")
    os.kill(server.process.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert done.stderr == "phalanx status: the server has not answered within 5 s\n"


# ---- chat ----


def chat(place, server, text, *args):
    return run(place, "chat", "--port", str(server.port), *args, input=text)


def requests(place):
    return [json.loads(line) for line in (place / "requests").read_text().splitlines()]


def test_chat(start, place):
    server = start().ready()
    done = chat(place, server, "hello\nagain", "--system", "be kind", "--temperature", "0")
    assert done.returncode == 0
    assert done.stdout == "you said hello \u00e9?[31m\nyou said again \u00e9?[31m\n"
    first, second = requests(place)
    assert first[0]["model"] == "tiny" and first[0]["temperature"] == 0 and first[0]["stream"]
    assert first[0]["messages"] == [{"role": "system", "content": "be kind"},
                                    {"role": "user", "content": "hello"}]
    assert first[1] is None
    assert [m["role"] for m in second[0]["messages"]] == ["system", "user", "assistant", "user"]


def test_chat_commands(start, place):
    server = start().ready()
    done = chat(place, server, "one\n/reset\ntwo\n/what\n/exit\nthree\n", "--api-key", "sesame-7")
    assert done.returncode == 0
    asked = requests(place)
    assert [len(body["messages"]) for body, _ in asked] == [1, 1]
    assert asked[0][1] == "Bearer sesame-7"
    assert "three" not in done.stdout


def test_chat_errors(start, place):
    server = start().ready()
    done = chat(place, server, "fail\nbreak\nok\n")
    assert done.returncode == 1
    assert done.stderr == "phalanx chat: queue is full\nphalanx chat: rank 1 is gone\n"
    assert "you said ok" in done.stdout
    # What was refused is not part of the conversation; what broke off is.
    assert [m["content"][:9] for m in requests(place)[2][0]["messages"]] == \
        ["break", "you said ", "ok"]


def test_chat_without_server(place):
    done = run(place, "chat", "--port", str(free_port()), input="hello\n")
    assert done.returncode == 1
    assert "is `phalanx serve` running?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_chat_interrupt_stops_the_reply(start, place):
    server = start().ready()
    process = subprocess.Popen([place / "phalanx", "chat", "--port", str(server.port)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdin.write("slow\n")
    process.stdin.flush()
    assert process.stdout.read(5) == "tick "
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("after\n", timeout=30)
    assert process.returncode == 0
    assert "you said after" in out
    assert err == "(stopped)\n"
    assert out.count("tick") < 1000
