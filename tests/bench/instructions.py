"""Instructions of each server process for a streamed token, counted by valgrind's callgrind.

  python tests/bench/instructions.py [--streams 1,256] [--tokens 40] [--step-us US]

Starts gateway, tokenizer, scheduler and one null worker under callgrind, twice for each number of
streams: what `tokens` more tokens a stream cost is the difference, so that start and end are not in
it. A step is slow enough that valgrind (some 50 times slower than the processor) keeps its pace:
every token is a chunk, an event and a write of its own, as for a reader at its leisure.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[2]
DEMO = REPO / "deploy/demo-model"
BIN = pathlib.Path(os.environ.get("PHALANX_BIN", REPO / "build/release/bin"))
TESTS = pathlib.Path(os.environ.get("PHALANX_TESTS_BIN", REPO / "build/release/tests"))
END_IDS = ("2045", "2047")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder, port, step_us):
    def where(name):
        return f"ipc://{folder}/{name}.sock"

    model = ["--model-path", DEMO]
    commands = {
        "gateway": [*model, "--port", port, "--tokenizer-endpoint", where("t")],
        "tokenizer": [*model, "--tokenizer-endpoint", where("t"), "--scheduler-endpoint",
                      where("s")],
        "scheduler": ["--scheduler-endpoint", where("s"), "--worker-endpoint", where("w")],
        "worker": [*model, "--device", "null", "--null-step-us", step_us, "--rank", 0,
                   "--worker-endpoint", where("w")],
    }
    return {
        name: subprocess.Popen(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/{name}.out",
             BIN / f"phalanx-{name}", *map(str, words), "--heartbeat-timeout", "60"],
            stdin=subprocess.DEVNULL, stdout=open(f"{folder}/{name}.log", "wb"),
            stderr=subprocess.STDOUT)
        for name, words in commands.items()}


def wait_ready(port, processes):
    while True:
        for name, p in processes.items():
            if p.poll() is not None:
                sys.exit(f"{name} ended")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.5)


def count(streams, tokens, step_us):
    """Instructions by process from start to end, with that many tokens a stream."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = start(folder, port, step_us)
        try:
            wait_ready(port, processes)
            subprocess.run([TESTS / "streams", "--port", str(port), "--vocab", "2048",
                            *[w for e in END_IDS for w in ("--eos", e)], "--streams",
                            str(streams), "--tokens", str(tokens), "--seed", "1"],
                           check=True, stdout=subprocess.DEVNULL)
        finally:
            for p in processes.values():
                p.send_signal(signal.SIGTERM)
            for p in processes.values():
                p.wait(60)
        return {name: int(re.search(r"^(?:totals|summary): (\d+)",
                                    pathlib.Path(f"{folder}/{name}.out").read_text(), re.M)[1])
                for name in processes}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", default="1,256")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--step-us", type=int, default=None, help="default: 20000, 400000 from 64 streams on")
    args = parser.parse_args()
    for streams in map(int, args.streams.split(",")):
        step_us = args.step_us or (20000 if streams < 64 else 400000)
        few, many = (count(streams, n, step_us) for n in (10, 10 + args.tokens))
        each = {name: (many[name] - few[name]) / (streams * args.tokens) for name in few}
        print(f"{streams} streams: {sum(each.values()):.0f} instructions a token "
              f"({', '.join(f'{k} {v:.0f}' for k, v in each.items())})", flush=True)


main()
