"""Hard cases, each against a whole server on device null whose tokens are known: what clients, files
and stopped processes do to it, and what is left of that afterwards.

  python tests/bench/hard.py disconnect --count 100000  # connections that end at a random byte
  python tests/bench/hard.py slowloris --count 10000    # heads and bodies that hardly arrive
  python tests/bench/hard.py files                      # no descriptor is left
  python tests/bench/hard.py log                        # nobody takes what is logged
  python tests/bench/hard.py stop --seconds 20          # SIGSTOP of the scheduler, then of a rank

Good clients (tests/bench/streams.c) run meanwhile. Prints one JSON object; ends with 1 when something
did not hold, which the object's list "failures" says.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import errno
import errno
import http.client
import json
import os
import pathlib
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import chaos
from chaos import REPO, now


class Server(chaos.Server):
    """On device null; as a context."""

    def __init__(self, o, *args, **how):
        super().__init__(o.bin, ["--device", "null", *args, *o.args], **how)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.dir.cleanup()

    def pids(self):
        return {name: pid for _, name, pid in self.children()} | {"launcher": self.process.pid}

    def private_mib(self):
        found = {}
        for name, pid in self.pids().items():
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            found[name] = round(int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024, 1)
        return found

    def cpu_s(self):
        found = {}
        for name, pid in self.pids().items():
            words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            found[name] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def left(self, seconds=30):
        """What is still held when nobody asks: {} soon, if nothing leaks."""
        end = now() + seconds
        while True:
            held = {
                "connections beside this one": self.metric("http_connections") - 1,
                "in flight": self.metric("requests_in_flight"),
                "running": self.metric("num_requests_running"),
                "waiting": self.metric("num_requests_waiting"),
                "pages": self.metric("kv_pages_total") - self.metric("kv_pages_free"),
            }
            held = {what: n for what, n in held.items() if n}
            if not held or now() > end:
                return held
            time.sleep(0.2)

    def ask(self, timeout=30):
        """The status of one small request, or what went wrong."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", "/v1/completions", '{"prompt":"hi","max_tokens":4}',
                               {"Content-Type": "application/json"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException) as e:
            return type(e).__name__
        finally:
            connection.close()

    def serves(self, seconds=30):
        end = now() + seconds
        while self.process.poll() is None:
            status = self.ask()
            if status == 200 or now() > end:
                return status
            time.sleep(0.2)
        return f"ended with {self.process.returncode}"


class Good(threading.Thread):
    """Checked streams, again and again, until the end of the context."""

    def __init__(self, server, o):
        super().__init__()
        self.command = chaos.streams(server, argparse.Namespace(
            tests=o.tests, streams=o.streams, device="null"))
        self.tokens = str(o.tokens)
        self.directory = tempfile.TemporaryDirectory()
        self.ended = threading.Event()
        self.report = {"ends": collections.Counter(), "wrong_tokens": 0, "longest_gap_s": 0.0}

    def run(self):
        expect = self.directory.name + "/expect"
        subprocess.run([*self.command, "--tokens", self.tokens, "--record", expect],
                       stdout=subprocess.DEVNULL)
        while not self.ended.is_set():
            done = subprocess.run([*self.command, "--expect", expect, "--seconds", "3"],
                                  stdout=subprocess.PIPE, text=True)
            *events, last = map(json.loads, done.stdout.splitlines())
            self.report["ends"].update(last["ends"])
            self.report["wrong_tokens"] += last["wrong"]
            self.report["longest_gap_s"] = max([self.report["longest_gap_s"]] + [
                round(e["t"] - e["from"], 2) for e in events if e["event"] == "gap"])

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        self.directory.cleanup()

    def check(self, failures):
        """After the context: every stream was right to its end."""
        if self.report["wrong_tokens"] or set(self.report["ends"]) != {"ok"}:
            failures.append(["good clients", self.report])
        return self.report


def connect(server, i):
    """From one of many addresses, as one has only so many ports."""
    s = socket.socket()
    s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    s.bind((f"127.0.0.{2 + i % 200}", 0))
    s.settimeout(30)
    s.connect(("127.0.0.1", server.port))
    return s


def reset(s):
    """An end without FIN."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def request(path, body, *fields, chunked=False):
    body = json.dumps(body).encode()
    if chunked:
        body = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 7]), body[i:i + 7])
                        for i in range(0, len(body), 7)) + b"0\r\n\r\n"
        fields = (*fields, "Transfer-Encoding: chunked")
    else:
        fields = (*fields, f"Content-Length: {len(body)}")
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", *fields])
    return head.encode() + b"\r\n\r\n" + body


# ---- disconnect ----

CHAT = [{"role": "user", "content": "hi"}]
# With a seed an answer is always as long.
REQUESTS = [
    request("/v1/completions", {"prompt": "hi", "max_tokens": 40, "stream": True, "seed": 1}),
    request("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 30, "seed": 1}),
    request("/v1/chat/completions", {"messages": CHAT, "max_tokens": 40, "stream": True, "seed": 1}, chunked=True),
    request("/generate", {"text": "hi", "stream": True, "sampling_params": {"max_new_tokens": 40, "sampling_seed": 1}}),
    request("/v1/completions", {"prompt": "long " * 2000, "max_tokens": 8, "stream": True, "seed": 1},
            "Expect: 100-continue"),
    2 * request("/v1/completions", {"prompt": "two", "max_tokens": 10, "stream": True, "seed": 1}),
]


def answer_bytes(server, data):
    """How long the answer is."""
    total = 0
    with connect(server, 0) as s:
        s.sendall(data)
        s.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while got := len(s.recv(65536)):
                total += got
    return total


def disconnect_once(server, i, seed, answers):
    """One connection that ends somewhere in the request or in its answer; returns where."""
    r = random.Random(seed * 1000003 + i)
    data = r.choice(REQUESTS)
    with connect(server, i) as s:
        where = r.choice(["head", "request", "answer", "answer"])
        cut = len(data)
        if where != "answer":
            cut = r.randrange(data.index(b"\r\n\r\n") + 4 if where == "head" else len(data))
        try:
            s.sendall(data[:cut])
            left = r.randrange(answers[data] * 9 // 10) if where == "answer" else 0
            while left > 0:
                got = len(s.recv(min(left, 2048)))
                left = left - got if got else 0
            how = r.choice(["close", "reset", "half"])
            if how == "reset":
                reset(s)
            elif how == "half":
                s.shutdown(socket.SHUT_WR)
        except OSError as e:
            if e.errno not in (errno.ECONNRESET, errno.EPIPE):
                return f"failed: {errno.errorcode.get(e.errno) or type(e).__name__} {left} of {answers[data]}"
    return where


def disconnect(o, failures):
    with Server(o, "--null-step-us", 1000) as server:
        server.wait_ready()
        ends = collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(o.threads) as pool:
            answers = {data: answer_bytes(server, data) for data in REQUESTS}
            once = lambda i: disconnect_once(server, i, o.seed, answers)
            first = o.count // 5  # by then everything has its usual size
            with Good(server, o) as good:
                ends.update(pool.map(once, range(first)))
                before = server.private_mib()
                start = now()
                ends.update(pool.map(once, range(first, o.count)))
                seconds = now() - start
        left = server.left()
        after = server.private_mib()
        grown = {name: round(after[name] - mib, 1) for name, mib in before.items()
                 if after[name] - mib > o.grow_mib}
        if left or grown or server.serves() != 200:
            failures.append(["left", left, "grown by MiB", grown])
        if any(what.startswith("failed") for what in ends):
            failures.append(["connections", ends])
        failures += chaos.deaths_of_their_own(server.log(), [])
        return {"ends": ends, "a_second": round((o.count - first) / seconds), "left": left,
                "client_disconnects": server.metric("client_disconnects_total"),
                "mib_before": before, "mib_after": after, "good": good.check(failures)}


# ---- slowloris ----

SLOW = {
    "head": b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX-Slow: " + 500 * b"a",
    "body": request("/v1/completions", {"prompt": "slow " * 1000}),
    "silent": b"",
}


def slowloris(o, failures):
    """A byte a second each; the connection is read until its end."""
    ends, reading = collections.Counter(), {}
    poll = select.epoll()
    with Server(o) as server:
        server.wait_ready()
        with Good(server, o) as good:
            start = now()
            for i in range(o.count):
                kind = list(SLOW)[i % len(SLOW)]
                s = connect(server, i)
                sent = SLOW[kind].find(b"\r\n\r\n") + 4 if kind == "body" else len(SLOW[kind][:20])
                s.sendall(SLOW[kind][:sent])
                s.setblocking(False)
                poll.register(s, select.EPOLLIN)
                reading[s.fileno()] = [s, kind, sent, b""]
            opened, at_most = now() - start, server.metric("http_connections")
            mib = server.private_mib()["gateway-0"]
            tick = now() + 1
            while reading and now() - start < opened + 90:
                for fd, _ in poll.poll(max(0.0, tick - now())):
                    if (end := slow_read(reading[fd])) is not None:
                        ends[end] += 1
                        reading.pop(fd)[0].close()
                if now() > tick:
                    for row in reading.values():
                        slow_send(row)
                    tick = now() + 1
            last = now() - start
        for s, *_ in reading.values():
            s.close()
        left = server.left()
        expected = {f"{kind}: {'no word' if kind == 'silent' else 408}" for kind in SLOW}
        if left or reading or set(ends) != expected or server.serves() != 200:
            failures.append(["left", left, "never closed", len(reading), "ends", ends])
        failures += chaos.deaths_of_their_own(server.log(), [])
        return {"ends": ends, "open_at_once": at_most - 1, "opened_in_s": round(opened, 1),
                "last_closed_after_s": round(last, 1), "gateway_mib": mib, "left": left,
                "good": good.check(failures)}


def slow_read(row):
    """How the connection has ended; None: it has not."""
    s, kind, _, got = row
    try:
        piece = s.recv(4096)
    except BlockingIOError:
        return None
    except OSError as e:
        return f"{kind}: {errno.errorcode[e.errno]}"
    row[3] += piece
    if piece:
        return None
    return f"{kind}: {got[9:12].decode() or 'no word'}"


def slow_send(row):
    s, kind, sent, got = row
    try:
        if not got:
            row[2] += s.send(SLOW[kind][sent:sent + 1])
    except OSError:
        pass  # its end is read


# ---- files ----

def flood(server, count):
    """So many connections at once, each asking: how they were answered, and those still open."""
    ends, held = collections.Counter(), []
    for i in range(count):
        s = connect(server, i)
        s.settimeout(10)
        try:
            s.sendall(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n")
            got = s.recv(4096)
        except OSError as e:
            got = b"HTTP/1.1 " + (errno.errorcode.get(e.errno) or type(e).__name__).encode()
        ends[got[9:].split(b" ")[0].decode() or "closed"] += 1
        if got.startswith(b"HTTP/1.1 200"):
            held.append(s)
        else:
            s.close()
    return ends, held


def busy(server, held, seconds, failures):
    """CPU time of `seconds` in which all connections are taken and more come."""
    before, end = server.cpu_s(), now() + seconds
    while now() < end:
        with contextlib.suppress(OSError), connect(server, 0) as s:
            s.settimeout(0.5)
            s.recv(1)
        time.sleep(0.2)
    used = {name: round(s - before[name], 2) for name, s in server.cpu_s().items()}
    if max(used.values()) > seconds / 2:
        failures.append(["busy", used])
    for s in held:
        s.close()
    return used


def files(o, failures):
    """First with a low limit from the start, then with a limit that leaves no descriptor at all."""
    result = {}
    low = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with Server(o, preexec_fn=low) as server:
        server.wait_ready()
        ends, held = flood(server, 200)
        result["limit 64"] = {"ends": ends, "cpu_s": busy(server, held, 3, failures),
                              "afterwards": server.serves()}
        if not ends["503"] or not ends["200"] or result["limit 64"]["afterwards"] != 200:
            failures.append(["limit 64", result["limit 64"]])
        result["limit 64"]["left"] = server.left()
        for name, pid in server.pids().items():
            most = max(int(fd.name) for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir())
            spare = 4 if name == "gateway-0" else 0
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + 1 + spare, most + 1 + spare))
        ends, held = flood(server, 200)
        none = result["none left"] = {"ends": ends, "cpu_s": busy(server, held, 3, failures),
                                      "afterwards": server.serves()}
        none["left"] = server.left()
        if none["afterwards"] != 200 or none["left"] or result["limit 64"]["left"]:
            failures.append(["none left", none])
        failures += chaos.deaths_of_their_own(server.log(), [])
    return result


# ---- log ----

def kill_one(server, name):
    os.kill(server.pids()[name], signal.SIGKILL)


def under_load(server, o, failures):
    """Serves with debug lines, replaces a rank, serves on."""
    server.process.send_signal(signal.SIGHUP)
    with Good(server, o) as good:
        time.sleep(4)
        kill_one(server, "worker-0")
        time.sleep(4)
    result = {"good": good.check(failures), "afterwards": server.serves()}
    if result["afterwards"] != 200:
        failures.append(result)
    if server.stop() != 0:
        failures.append("the end")
    return result


def log_full(o, failures):
    """Log and run directory on a file system without room."""
    with tempfile.TemporaryDirectory() as mount:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount],
                          stderr=subprocess.DEVNULL).returncode:
            return "skipped: no right to mount"
        try:
            with open(mount + "/log", "wb") as out, \
                    Server(o, "--run-dir", mount + "/run", stdout=out, stderr=out) as server:
                server.log_path = pathlib.Path(mount + "/log")
                server.wait_ready()
                with open(mount + "/filler", "wb", 0) as filler, contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(512))
                return under_load(server, o, failures)
        finally:
            subprocess.run(["umount", mount], check=True)


def log_pipe(o, failures, gone):
    """Its reader is gone, or reads no more."""
    ours, theirs = os.pipe()
    with Server(o, stdout=theirs, stderr=theirs) as server:
        os.close(theirs)
        got = b""
        while b"curl http" not in got:
            got += os.read(ours, 4096)
        if gone:
            os.close(ours)
        result = under_load(server, o, failures)
        if not gone:
            os.close(ours)
        return result


def log_closed(o, failures):
    """Descriptors 0 to 2 are closed from the start: no other file may become one of them."""
    with Server(o, preexec_fn=lambda: os.closerange(0, 3), stdin=None, stdout=None,
                stderr=None) as server:
        while not server.ready():
            time.sleep(0.05)
        with Good(server, o) as good:
            time.sleep(3)
        std = {name: [os.readlink(f"/proc/{pid}/fd/{i}") for i in range(3)]
               for name, pid in server.pids().items()}
        if any(name != "/dev/null" for names in std.values() for name in names):
            failures.append(["standard files", std])
        if server.serves() != 200 or server.stop() != 0:
            failures.append("closed")
        return {"good": good.check(failures)}


def log(o, failures):
    return {"disk full": log_full(o, failures), "reader gone": log_pipe(o, failures, True),
            "reader stuck": log_pipe(o, failures, False), "closed": log_closed(o, failures)}


# ---- stop ----

def stop(o, failures):
    """SIGSTOP under streams; SIGCONT, should anybody still be there to get it."""
    result = {}
    with Server(o, "--tp", 2, "--null-step-us", 5000) as server:
        server.wait_ready()
        for name in ["scheduler-0", "worker-1"]:
            with Good(server, o) as good:
                time.sleep(2)
                pid = server.pids()[name]
                fd = os.pidfd_open(pid)
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                time.sleep(o.seconds)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGCONT)
                os.close(fd)
                time.sleep(2)
            result[name] = {"good": good.check(failures), "left": server.left(),
                            "replaced": server.pids().get(name) != pid}
            if result[name]["left"]:
                failures.append([name, result[name]])
    return result


CASES = {f.__name__: f for f in (disconnect, slowloris, files, log, stop)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("case", choices=CASES)
    p.add_argument("--count", type=int, default=10000, help="connections")
    p.add_argument("--threads", type=int, default=16, help="disconnect: connections at a time")
    p.add_argument("--grow-mib", type=float, default=8, help="disconnect: of any process, at most")
    p.add_argument("--seconds", type=float, default=20, help="stop: how long")
    p.add_argument("--streams", type=int, default=16, help="good ones")
    p.add_argument("--tokens", type=int, default=200)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--bin", type=pathlib.Path, default=REPO / "build/release/bin")
    p.add_argument("--tests", type=pathlib.Path, default=REPO / "build/release/tests")
    p.add_argument("args", nargs="*", help="further ones for phalanx serve, after --")
    o = p.parse_intermixed_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failures = []
    result = CASES[o.case](o, failures)
    print(json.dumps({"case": o.case, **result, "failures": failures}))
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
