"""What the control plane costs: `phalanx serve --device null` under many streams, every token
checked by tests/bench/streams.c.

  python tests/bench/bench_null.py [--streams 1,256,10000] [--tokens N] [--step-us US] [--json]
  python tests/bench/bench_null.py --streams 10000 --tokens 300 --step-us 200000   # 5 tokens/s, 60 s

CPU time is what all server processes (launcher, gateways, tokenizers, schedulers, workers) used
from the first request to the last token, by /proc/PID/task/*/schedstat, a streamed token. Memory of
a connection is the growth of the gateways' private memory (RssAnon) from before the first stream to
the middle of the run.

With --step-us the made-up device computes one step after the other, each for so long, as a GPU does;
idle is the share of time in which it had none: 1 - (growth of step_compute_seconds / time), over
the 3 s that follow the first; not told of runs that are over before.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[2]
DEMO = REPO / "deploy/demo-model"
SLOTS_MAX = 4096
KINDS = ("launcher", "gateway", "tokenizer", "scheduler", "worker")


def eos_ids(model):
    ids = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    return ids if isinstance(ids, list) else [ids]


class Server:
    def __init__(self, binaries, args):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.dir = tempfile.TemporaryDirectory(prefix="phalanx-bench-")
        self.log = open(pathlib.Path(self.dir.name) / "log", "wb")
        self.process = subprocess.Popen(
            [binaries / "phalanx", "serve", "--model-path", DEMO, "--device", "null", "--port",
             str(self.port), "--run-dir", self.dir.name + "/run", "--log-level", "warn",
             *map(str, args)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready"):
                    return
            except OSError:
                time.sleep(0.05)
        raise SystemExit((pathlib.Path(self.dir.name) / "log").read_text())

    def pids(self):
        """Process ids by kind."""
        pid = self.process.pid
        found = {kind: [] for kind in KINDS}
        found["launcher"].append(pid)
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            comm = pathlib.Path(f"/proc/{child}/comm").read_text()
            kind = next(k for k in KINDS if comm.startswith(f"phalanx-{k}"[:15]))
            found[kind].append(int(child))
        return found

    def computed(self):
        """Time, seconds of computing and steps at the moment when a new report of them came."""
        def read():
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as r:
                text = r.read().decode()
            return [sum(map(float, re.findall(rf"^phalanx:{name}(?:{{.*}})? (\S+)$", text, re.M)))
                    for name in ("step_compute_seconds_sum", "step_compute_seconds_count")]

        first, end = read(), time.monotonic() + 1
        while (now := read()) == first and time.monotonic() < end:
            time.sleep(0.001)
        return time.monotonic(), *now

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.log.close()
        self.dir.cleanup()


def cpu_us(pids):
    """CPU time of those processes; threads that have ended are not in it (there are none)."""
    total = 0
    for pid in pids:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1000


def private_bytes(pids):
    total = 0
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) * 1024
    return total


def run(binaries, streams, tokens, step_us, extra):
    replicas = max(1, -(-streams // SLOTS_MAX))
    args = ["--dp-size", replicas, "--max-running-requests", min(streams, SLOTS_MAX),
            "--context-length", 65536, "--page-size", 64, "--null-step-us", step_us, *extra]
    server = Server(binaries[0], args)
    try:
        pids = server.pids()
        # The first requests touch what a process touches once.
        client = [binaries[1] / "streams", "--port", str(server.port), "--vocab", "2048",
                  *[w for e in eos_ids(DEMO) for w in ("--eos", str(e))]]
        subprocess.run([*client, "--streams", "8", "--tokens", "8"], check=True,
                       stdout=subprocess.DEVNULL)
        before = {k: cpu_us(p) for k, p in pids.items()}
        memory = private_bytes(pids["gateway"])
        peak = [memory]
        computed = []
        ended = threading.Event()

        def watch():
            turn = 0
            while not ended.wait(0.5):
                peak[0] = max(peak[0], private_bytes(pids["gateway"]))
                turn += 1
                if step_us and turn in (2, 8) and (seen := server.computed()) and not ended.is_set():
                    computed.append(seen)

        thread = threading.Thread(target=watch)
        thread.start()
        done = subprocess.run([*client, "--streams", str(streams), "--tokens", str(tokens),
                               "--seed", "1000"], stdout=subprocess.PIPE, text=True)
        ended.set()
        thread.join()
        result = json.loads(done.stdout)
        after = {k: cpu_us(p) for k, p in pids.items()}
    finally:
        server.stop()
    used = {k: after[k] - before[k] for k in KINDS}
    result["cpu_us_a_token"] = round(sum(used.values()) / result["tokens"], 2)
    result["by_process"] = {k: round(v / result["tokens"], 2) for k, v in used.items()}
    result["tokens_a_second"] = round(result["tokens"] / result["seconds"])
    result["gateway_bytes_a_connection"] = round((peak[0] - memory) / streams)
    if len(computed) == 2:
        t, busy, steps = (b - a for a, b in zip(*computed))
        result["step_us"] = round(1e6 * t / steps * replicas, 1)
        result["idle"] = round(1 - busy / t / replicas, 4)
    result["replicas"] = replicas
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", default="1,256,10000")
    parser.add_argument("--tokens", type=int, default=0, help="a stream; default: enough for a few seconds")
    parser.add_argument("--step-us", type=int, default=None, help="of a step; default: 0")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("extra", nargs="*", help="after --: more options of serve")
    args = parser.parse_args()
    binaries = (pathlib.Path(os.environ.get("PHALANX_BIN", REPO / "build/release/bin")),
                pathlib.Path(os.environ.get("PHALANX_TESTS_BIN", REPO / "build/release/tests")))
    bad = False
    for streams in map(int, args.streams.split(",")):
        tokens = args.tokens or max(20, min(20000, 1000000 // streams))
        step_us = args.step_us if args.step_us is not None else 0
        result = run(binaries, streams, tokens, step_us, args.extra)
        bad = bad or result["wrong"] or result["failed"] or result["lost"]
        if args.json:
            print(json.dumps(result), flush=True)
            continue
        print(f"{streams} streams of {tokens} tokens, {result['replicas']} replica(s): "
              f"{result['cpu_us_a_token']} us CPU a token "
              f"({', '.join(f'{k} {v}' for k, v in result['by_process'].items())}), "
              f"{result['tokens_a_second']} tokens/s, wrong {result['wrong']}, lost {result['lost']}, "
              f"failed {result['failed']}; gap p50 {result['gap_ms_p50']:.0f} ms, p99 "
              f"{result['gap_ms_p99']:.0f} ms, most {result['gap_ms_max']:.0f} ms; "
              f"{result['gateway_bytes_a_connection']} bytes a connection at the gateways"
              + (f"; step {result['step_us']} us, device idle {100 * result['idle']:.1f} %"
                 if "idle" in result else ""), flush=True)
    sys.exit(bool(bad))


main()
