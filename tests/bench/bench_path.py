"""What the path costs: start to ready, memory of each process, latency added to the ranks' own time.

    make test-deps all && build/venv/bin/python tests/bench/bench_path.py [--requests 300]

The added latency is measured on streamed requests of one token, one at
a time: the client's time to the first content chunk minus the ranks' own time for that step (metric
step_compute_seconds). What is left is HTTP, tokenizing, two hops each way, scheduling and SSE.
"""

import argparse
import http.client
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from conftest import DEMO, SHARED, Server  # noqa: E402


def sample(server, name, process="scheduler-0"):
    """(sum, count) of a histogram of one process."""
    page = server.get("/metrics").splitlines()
    values = {}
    for line in page:
        for part in ("sum", "count"):
            if line.startswith(f"phalanx:{name}_{part}") and f'process="{process}"' in line:
                values[part] = float(line.split()[-1])
    return values.get("sum", 0.0), values.get("count", 0.0)


def first_token(port, body):
    """Seconds from sending the request to the first chunk with content."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    line = response.readline()
    seconds = time.perf_counter() - start
    assert line.startswith(b"data: {"), line
    while response.readline():
        pass
    connection.close()
    return seconds


def added_latency(server, requests):
    body = json.dumps({"model": "demo-model", "prompt": "My lord, what news from Rome?",
                       "max_tokens": 1, "temperature": 0, "stream": True})
    for _ in range(20):
        first_token(server.port, body)
    time.sleep(1.5)  # metrics are sent once a second
    before = sample(server, "step_compute_seconds")
    times = [first_token(server.port, body) for _ in range(requests)]
    time.sleep(1.5)
    after = sample(server, "step_compute_seconds")
    step = (after[0] - before[0]) / (after[1] - before[1])
    assert after[1] - before[1] == requests, "one step a request was expected"
    return times, step


def resident(server):
    rows = []
    for pid in server.pids() + [server.process.pid]:
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        name = pathlib.Path(words[0].decode()).name
        name = next((w[7:].decode() for w in words if w.startswith(b"--name=")), name)
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        rows.append((name, int(rss.split()[1]) / 1024))
    return sorted(set(rows))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    starts = []
    for _ in range(arguments.starts):
        begin = time.perf_counter()
        with Server() as server:
            starts.append(time.perf_counter() - begin)
    print(f"start to ready, demo model, tp 2: median {statistics.median(starts):.3f} s, "
          f"max {max(starts):.3f} s of {len(starts)}")
    for tp in (1, 2):
        with Server(tp=tp) as server:
            times, step = added_latency(server, arguments.requests)
            mean = statistics.mean(times)
            print(f"tp {tp}: time to first token mean {mean * 1e3:.3f} ms (median "
                  f"{statistics.median(times) * 1e3:.3f}), ranks' own step mean {step * 1e3:.3f} ms, "
                  f"added {(mean - step) * 1e3:.3f} ms")
            if tp == 2:
                for name, mib in resident(server):
                    print(f"resident {name}: {mib:.1f} MiB")
    qwen = SHARED / "data/tokenizers/qwen3"
    if qwen.exists():
        import shutil
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            for f in ("config.json", "generation_config.json", "model.safetensors"):
                shutil.copy(DEMO / f, folder)
            for f in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(qwen / f, folder)
            with Server(model=folder) as server:
                for name, mib in resident(server):
                    if name.startswith("tokenizer"):
                        print(f"resident {name} with Qwen3's vocabulary: {mib:.1f} MiB")


if __name__ == "__main__":
    main()
