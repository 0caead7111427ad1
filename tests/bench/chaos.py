"""What fails while everything fails: a random process is killed every few seconds under streams whose
every token and text is checked (tests/bench/streams.c).

  python tests/bench/chaos.py --minutes 20                     # device null: tokens known by function
  python tests/bench/chaos.py --minutes 5 --device cpu --tokens 40
  python tests/bench/chaos.py --minutes 0.4 --every 3 --stops 0.3 --seed 7 --json

Texts and tokens have to be those that the same requests gave before the first kill. A request counts
as lost when its connection ends before its answer does, unless it was open to the gateway that was
killed in that moment; as an error when its answer says so. "refused" is a 503 instead of any answer.

Time to ready is from a kill to the last answer of /health/ready (asked every 20 ms) before the next
kill that was not 200. Gaps are those of 100 ms and more between a stream's tokens.

No process is killed more than four times a minute: at the sixth time the launcher ends the node, as
it promises. A death that was not ours, and what a sanitizer says, is a failure.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
DEMO = REPO / "deploy/demo-model"
KINDS = ("gateway", "tokenizer", "scheduler", "worker")
KILLS_A_MINUTE = 4 # of one process, or of all ranks together
CONFIG = json.loads((DEMO / "config.json").read_text())
EOS = json.loads((DEMO / "generation_config.json").read_text())["eos_token_id"]


def now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Server:
    def __init__(self, binaries, args, **how):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.dir = tempfile.TemporaryDirectory(prefix="phalanx-chaos-")
        self.log_path = pathlib.Path(self.dir.name) / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [binaries / "phalanx", "serve", "--model-path", DEMO, "--port", str(self.port),
                 "--run-dir", self.dir.name + "/run", *map(str, args)],
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **how})

    def log(self):
        return self.log_path.read_text(errors="replace")

    def ready(self, timeout=1.0):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self, seconds=60):
        end, row = now() + seconds, 0
        while row < 40: # one gateway may be before the other
            row = row + 1 if self.ready() else 0
            if now() > end or self.process.poll() is not None:
                raise SystemExit(f"the server is not ready\n{self.log()}")
            time.sleep(0.01)
        while "curl http" not in self.log(): # from there on the launcher starts what dies again
            time.sleep(0.05)

    def children(self):
        """[(kind, name, pid)] of what runs now."""
        found = []
        pid = self.process.pid
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            kind = os.path.basename(words[0].decode()).removeprefix("phalanx-")
            name = next((w[7:].decode() for w in words if w.startswith(b"--name=")), None)
            if kind in KINDS and name:
                found.append((kind, name, int(child)))
        return found

    def metric(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines
                   if line.startswith((f"phalanx:{name} ", f"phalanx:{name}{{")))

    def idle(self, seconds=20):
        """Nothing runs, nothing waits, every page is free."""
        end = now() + seconds
        while now() < end:
            if (self.metric("kv_pages_total") and not self.metric("num_requests_running") and
                    not self.metric("num_requests_waiting") and
                    self.metric("kv_pages_free") == self.metric("kv_pages_total")):
                return True
            time.sleep(0.1)
        return False

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Health(threading.Thread):
    """Asks /health/ready all the time; `failures`: when an answer came that was none or not 200."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.failures, self.ended = server, [], threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            if not self.server.ready():
                self.failures.append(now())


def clients_of(pid, port):
    """Ports of the clients whose connections that process holds."""
    inodes = set()
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = os.readlink(fd)
        except OSError:
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    found = set()
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        word = line.split()
        if word[9] in inodes and int(word[1].split(":")[1], 16) == port:
            found.add(int(word[2].split(":")[1], 16))
    return found


def stopped(pid):
    """SIGSTOP works in its own time."""
    end = now() + 1
    while now() < end:
        if pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt":
            return
        time.sleep(0.001)


class Chaos:
    def __init__(self, server, o):
        self.server, self.o = server, o
        self.random = random.Random(o.seed)
        self.kills = [] # {"t", "kind", "name", "how", "ports"}
        self.bag = []   # kinds to come, so that each has its turn

    def victim(self):
        """A kind in turn, then one of it, that may still die in this minute."""
        recent = collections.Counter(k["unit"] for k in self.kills if now() - k["t"] < 61)
        unit = lambda kind, name: kind if kind == "worker" else name
        able = [(kind, name, pid) for kind, name, pid in self.server.children()
                if recent[unit(kind, name)] < KILLS_A_MINUTE]
        kinds = {kind for kind, _, _ in able}
        if not kinds & set(self.bag):
            self.bag = self.random.sample(KINDS, len(KINDS))
        kind = next((k for k in self.bag if k in kinds), None)
        if not kind:
            return None
        self.bag.remove(kind)
        _, name, pid = self.random.choice(sorted(a for a in able if a[0] == kind))
        return kind, name, pid, unit(kind, name)

    def strike(self):
        found = self.victim()
        if not found:
            return
        kind, name, pid, unit = found
        kill = {"kind": kind, "name": name, "unit": unit, "how": "kill", "ports": set()}
        stop_s = 0.0
        if kind != "gateway" and self.random.random() < self.o.stops:
            stop_s = self.random.uniform(0.1, self.o.every)
            kill["how"] = "stop"
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if kind == "gateway" or stop_s:
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                stopped(pid)
            if kind == "gateway":
                kill["ports"] = clients_of(pid, self.server.port)
            kill["t"] = now()
            if stop_s:
                time.sleep(stop_s)
            signal.pidfd_send_signal(fd, signal.SIGCONT if stop_s else signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            pass # what was stopped has been killed meanwhile
        finally:
            os.close(fd)
        if "t" in kill:
            self.kills.append(kill)
            print(f"{kill['t']:.3f} {kill['how']} {name} (pid {pid})"
                  f"{f' for {stop_s:.1f} s' if stop_s else ''}", file=sys.stderr)

    def run(self, until):
        at = now() + 1
        while now() < until and self.server.process.poll() is None:
            time.sleep(max(0.0, at - now()))
            self.strike()
            at = max(at + self.o.every, now() + 0.5)


def streams(server, o, *args):
    command = [o.tests / "streams", "--port", server.port, "--streams", o.streams, *args]
    if o.device == "null":
        ids = EOS if isinstance(EOS, list) else [EOS]
        command += ["--vocab", CONFIG["vocab_size"], *(w for e in sorted(ids) for w in ("--eos", e))]
    return [str(word) for word in command]


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def excused(end, kills):
    """The request was the killed gateway's: open to it, or not yet taken by it."""
    return any(k["kind"] == "gateway" and -0.1 < end["t"] - k["t"] < 3 and
               (end["port"] in k["ports"] or end["what"] == "unanswered") for k in kills)


def evaluate(kills, failures, events, report):
    """What each kill has cost; requests by how they ended."""
    ends = collections.Counter(report["ends"])
    bad = [e for e in events if e["event"] == "end"]
    lost = [e for e in bad if e["what"] in ("dropped", "unanswered", "hung")]
    excuses = [e for e in lost if excused(e, kills)]
    for i, kill in enumerate(kills):
        after = kills[i + 1]["t"] if i + 1 < len(kills) else float("inf")
        kill["ready"] = max([t - kill["t"] for t in failures if kill["t"] <= t < after], default=0.0)
        kill["gap"] = max([e["t"] - e["from"] for e in events if e["event"] == "gap" and
                           kill["t"] <= e["t"] and e["from"] < kill["t"] + 0.1], default=0.0)
    by_kind = {}
    for key in sorted({(k["kind"], k["how"]) for k in kills}):
        some = [k for k in kills if (k["kind"], k["how"]) == key]
        ready, gap = [k["ready"] for k in some], [k["gap"] for k in some]
        by_kind[" ".join(key)] = {
            "times": len(some),
            "ready_s": [round(f, 2) for f in (statistics.median(ready), quantile(ready, 0.99), max(ready))],
            "gap_s": [round(f, 2) for f in (statistics.median(gap), quantile(gap, 0.99), max(gap))]}
    ready = [k["ready"] for k in kills]
    return {
        "kills": by_kind,
        "ready_s": [round(quantile(ready, q), 2) for q in (0.5, 0.99, 1)],
        "ok": ends["ok"], "refused": ends["refused"], "unreachable": ends["unreachable"],
        "with_gateway": len(excuses), "lost": len(lost) - len(excuses), "wrong": ends["wrong"],
        "wrong_tokens": report["wrong"],
        "errors": {k: n for k, n in ends.items() if k.startswith("error")},
        "bad": [e for e in bad if e not in excuses][:20],
    }


def deaths_of_their_own(log, kills):
    """Lines about processes that nobody killed, and what sanitizers say."""
    found = re.findall(r".*(?:Sanitizer: |runtime error: |Assertion ).*", log)
    found += [line for line in re.findall(r"phalanx: .* was killed by signal .*", log)
              if "signal 9 " not in line]
    killed = [k["name"] for k in kills if k["how"] == "kill"]
    for name, n in collections.Counter(re.findall(r"phalanx: (\S+) \(pid \d+\) was killed by signal 9 ",
                                                  log)).items():
        if n > killed.count(name) and not any(k["how"] == "stop" for k in kills):
            found.append(f"{name} was killed {n} times, {killed.count(name)} of them by us")
    return found


def measure(server, o, directory):
    expect = directory / "expect"
    subprocess.run(streams(server, o, "--tokens", o.tokens, "--record", expect), check=True,
                   stdout=subprocess.DEVNULL)
    with open(directory / "events", "wb") as out:
        client = subprocess.Popen(streams(server, o, "--expect", expect, "--seconds", o.minutes * 60),
                                  stdout=out)
    health, chaos = Health(server), Chaos(server, o)
    health.start()
    chaos.run(now() + o.minutes * 60 - o.every)
    client.wait(o.minutes * 60 + 180)
    health.ended.set()
    health.join()
    lines = [json.loads(line) for line in (directory / "events").read_text().splitlines()]
    result = evaluate(chaos.kills, health.failures, lines[:-1], lines[-1])
    result["alive"] = server.process.poll() is None
    result["idle"] = result["alive"] and server.idle()
    result["unclean"] = deaths_of_their_own(server.log(), chaos.kills)
    return result


def table(o, r):
    print(f"device {o.device}, {o.streams} streams of {o.tokens} tokens, {o.minutes:g} min, "
          f"one every {o.every:g} s, seed {o.seed}\n")
    print("| what | times | ready after, s: p50 / p99 / max | longest gap, s: p50 / p99 / max |")
    print("|---|---|---|---|")
    for kind, k in r["kills"].items():
        print(f"| {kind} | {k['times']} | {' / '.join(map(str, k['ready_s']))} | "
              f"{' / '.join(map(str, k['gap_s']))} |")
    print(f"| all | {sum(k['times'] for k in r['kills'].values())} | "
          f"{' / '.join(map(str, r['ready_s']))} | |")
    print(f"\nrequests: {r['ok']} right, {r['refused']} refused with 503, {r['with_gateway']} gone "
          f"with their gateway, {r['lost']} lost, {r['wrong']} wrong, {sum(r['errors'].values())} "
          f"errors {r['errors'] or ''}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--minutes", type=float, default=20)
    p.add_argument("--every", type=float, default=5, help="seconds between two kills")
    p.add_argument("--stops", type=float, default=0, help="share of SIGSTOP and SIGCONT instead")
    p.add_argument("--streams", type=int, default=64)
    p.add_argument("--tokens", type=int, default=200)
    p.add_argument("--device", choices=["null", "cpu"], default="null")
    p.add_argument("--step-us", type=int, default=20000, help="device null: of one step")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--bin", type=pathlib.Path, default=REPO / "build/release/bin")
    p.add_argument("--tests", type=pathlib.Path, default=REPO / "build/release/tests")
    p.add_argument("--log", type=pathlib.Path, help="keep the server's log there")
    p.add_argument("--json", action="store_true")
    p.add_argument("args", nargs="*", help="further ones for phalanx serve, after --")
    o = p.parse_args()
    server = Server(o.bin, ["--device", o.device, "--tp", 2, "--num-gateway", 2, "--num-tokenizer", 2,
                            "--null-step-us", o.step_us, *o.args])
    try:
        server.wait_ready()
        with tempfile.TemporaryDirectory() as directory:
            result = measure(server, o, pathlib.Path(directory))
    finally:
        result_code = server.stop()
        if o.log:
            o.log.write_bytes(server.log_path.read_bytes())
    result["exit"] = result_code
    if o.json:
        print(json.dumps(result))
    else:
        table(o, result)
    good = not (result["lost"] or result["wrong"] or result["wrong_tokens"] or result["errors"])
    good = good and result["alive"] and result["idle"] and result["exit"] == 0
    good = good and not result["unclean"]
    for event in [] if good else result["bad"] + result["unclean"]:
        print(event, file=sys.stderr)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
