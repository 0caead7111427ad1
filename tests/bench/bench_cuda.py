#!/usr/bin/env python3
"""What a server reaches on GPUs through HTTP, with made-up weights of real dimensions.

    python3 tests/bench/bench_cuda.py BIN TOKENIZER CASE...

BIN: the folder of phalanx's executables. TOKENIZER: a folder with Qwen3's tokenizer.json and
tokenizer_config.json. A case is NAME:MODEL:TP[:WORDS], prints one or more rows, and starts a server
of its own:

  offline:0.6b:1         256 requests at once, lengths uniform in 100 to 1,024, temperature 0.6
  decode:0.6b:1:1,64     that many streams that decode: tokens/s, and how long the GPU was idle
  trace:32b:4:FILE:5,10  the first 1,000 requests of a trace at those rates (requests/s)
  kill:14b:2:decode      kill -9 of rank 1 in load, capture, prefill or decode

Idle is 1 - (growth of step_compute_seconds / time): a rank's device time of a step, from events on
its stream, the slowest rank's. Needs nvidia-smi for the memory left after a kill.
"""

import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

DIMENSIONS = {  # Qwen3: hidden, layers, heads, kv heads, intermediate, tied embeddings
    "0.6b": (1024, 28, 16, 8, 3072, True),
    "14b": (5120, 40, 40, 8, 17408, False),
    "32b": (5120, 64, 64, 8, 25600, False),
}
LENGTHS = ["--random-input-len", "1024", "--random-output-len", "1024", "--random-range-ratio",
           "0.0977", "--num-prompts", "256", "--seed", "0", "--temperature", "0.6"]


def model_folder(name, tokenizer, folder):
    hidden, layers, heads, kv, intermediate, tied = DIMENSIONS[name]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": 128, "intermediate_size": intermediate, "vocab_size": 151936,
        "tie_word_embeddings": tied, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
        "max_position_embeddings": 40960, "hidden_act": "silu", "torch_dtype": "bfloat16",
        "eos_token_id": 151645}))


class Server:
    def __init__(self, binaries, tokenizer, model, tp, *options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.dir = tempfile.TemporaryDirectory(prefix="phalanx-bench-")
        self.folder = pathlib.Path(self.dir.name)
        model_folder(model, tokenizer, self.folder)
        self.log = self.folder / "log"
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [binaries / "phalanx", "serve", "--model-path", self.folder, "--served-model-name",
             model, "--device", "cuda", "--dummy-weight", "--tp", str(tp), "--port",
             str(self.port), "--run-dir", self.folder / "run", *options],
            stdin=subprocess.DEVNULL, stdout=open(self.log, "wb"), stderr=subprocess.STDOUT)

    def ready(self):
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            c.request("GET", "/health/ready")
            return c.getresponse().status == 200
        except OSError:
            return False

    def wait_ready(self, seconds=300):
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() - self.started > seconds:
                sys.exit(self.log.read_text())
            time.sleep(0.05)
        return time.monotonic() - self.started

    def metrics(self, *names):
        """Sums of metrics over the lines of /metrics."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        c.request("GET", "/metrics")
        lines = c.getresponse().read().decode().splitlines()
        return [sum(float(line.rsplit(" ", 1)[1]) for line in lines
                    if re.match(re.escape("phalanx:" + name) + r"[ {]", line)) for name in names]

    def snapshot(self):
        """Time, device time, steps and tokens at the moment when a new report of them came."""
        names = ("step_compute_seconds_sum", "steps_total", "generation_tokens_total")
        first, begin = self.metrics(*names), time.monotonic()
        while (now := self.metrics(*names)) == first:
            if time.monotonic() - begin > 10:
                sys.exit(f"no step ended in 10 s:\n{self.log.read_text()}")
            time.sleep(0.001)
        return time.monotonic(), *now

    def rank_pid(self, rank):
        for pid in pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"
                                ).read_text().split():
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"phalanx-worker") and f"--rank={rank}".encode() in words:
                return int(pid)
        return None

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.dir.cleanup()


def bench_command(server, binaries, *options):
    return [binaries / "phalanx", "bench", "--base-url", f"http://127.0.0.1:{server.port}",
            "--disable-tqdm", *options]


def bench(server, binaries, *options):
    out = server.folder / "result.json"
    subprocess.run(bench_command(server, binaries, "--output-file", out, *options), check=True,
                   stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def show(label, result):
    for run in result["runs"]:
        times = "; ".join(f"{what.upper()} mean {run[f'mean_{what}_ms']:.2f}, p50 "
                          f"{run[f'p50_{what}_ms']:.2f}, p90 {run[f'p90_{what}_ms']:.2f}, p99 "
                          f"{run[f'p99_{what}_ms']:.2f} ms" for what in ("ttft", "tpot", "itl"))
        print(f"{label}: {run['completed']} completed, {run['failed']} failed, "
              f"{run['duration']:.1f} s, {run['total_input_tokens']} tokens in, "
              f"{run['total_output_tokens']} out, {run['output_throughput']:.0f} output tokens/s, "
              f"{run['request_throughput']:.2f} requests/s; {times}", flush=True)


def case_offline(binaries, tokenizer, model, tp):
    server = Server(binaries, tokenizer, model, tp)
    up = server.wait_ready()
    print(f"offline {model} tp {tp}: ready after {up:.1f} s")
    show(f"offline {model} tp {tp}", bench(server, binaries, *LENGTHS))
    server.stop()


def case_decode(binaries, tokenizer, model, tp, counts):
    server = Server(binaries, tokenizer, model, tp)
    server.wait_ready()
    for count in counts.split(","):
        load = subprocess.Popen(
            bench_command(server, binaries, "--num-prompts", count, "--random-input-len", "128",
                          "--random-output-len", "30000", "--random-range-ratio", "1",
                          "--temperature", "0", "--seed", count), stdout=subprocess.DEVNULL)
        time.sleep(1.5)  # prompts are in
        t0, c0, s0, g0 = server.snapshot()
        time.sleep(3)
        t1, c1, s1, g1 = server.snapshot()
        load.kill()
        load.wait()
        print(f"decode {model} tp {tp}, {count} streams: {(g1 - g0) / (t1 - t0):.0f} tokens/s, "
              f"step {1e3 * (t1 - t0) / (s1 - s0):.3f} ms, on the GPU "
              f"{1e3 * (c1 - c0) / (s1 - s0):.3f} ms, idle {100 * (1 - (c1 - c0) / (t1 - t0)):.1f} %",
              flush=True)
    server.stop()


def case_trace(binaries, tokenizer, model, tp, trace, rates):
    server = Server(binaries, tokenizer, model, tp)
    print(f"trace {model} tp {tp}: ready after {server.wait_ready():.1f} s")
    bench(server, binaries, "--num-prompts", "64", "--random-input-len", "1024",
          "--random-output-len", "32", "--random-range-ratio", "0.1", "--seed", "9")
    for i, rate in enumerate(rates.split(",")):
        show(f"trace {model} tp {tp} rate {rate}",
             bench(server, binaries, "--dataset-name", "trace", "--dataset-path", trace,
                   "--num-prompts", "1000", "--request-rate", rate, "--seed", str(i + 1)))
    server.stop()


class Stream(threading.Thread):
    """One /generate stream; keeps when its tokens came."""

    def __init__(self, port, ids, count, seed):
        super().__init__(daemon=True)
        self.port, self.ids, self.count, self.seed = port, ids, count, seed
        self.times, self.tokens, self.problem = [], [], None
        self.start()

    def run(self):
        body = json.dumps({"input_ids": self.ids, "stream": True,
                           "sampling_params": {"max_new_tokens": self.count, "ignore_eos": True,
                                               "temperature": 0.6, "seed": self.seed}})
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            c.request("POST", "/generate", body, {"Content-Type": "application/json"})
            r = c.getresponse()
            if r.status != 200:
                self.problem = r.read().decode()
                return
            for line in r:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.problem = event["error"]["message"]
                        return
                    self.times.append(time.monotonic())
                    self.tokens = event.get("output_ids", self.tokens)
        except OSError as e:
            self.problem = str(e)


def gpu_memory():
    out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                         capture_output=True, text=True).stdout.split()
    return "+".join(out)


def wait_line(server, pattern, since, seconds=60):
    """Seconds since `since` when the log first had the pattern."""
    while time.monotonic() - since < seconds:
        if re.search(pattern, server.log.read_text()):
            return time.monotonic() - since
        time.sleep(0.002)
    return None


def kill_early(server, pattern):
    """Rank 1 dies in start-up, when the log shows the pattern: the node must end."""
    begin = time.monotonic()
    while server.rank_pid(1) is None or not re.search(pattern, server.log.read_text()):
        if time.monotonic() - begin > 120:
            sys.exit(f"{pattern!r} never came:\n{server.log.read_text()}")
        time.sleep(0.001)
    subprocess.run(["kill", "-9", str(server.rank_pid(1))], check=True)
    killed = time.monotonic()
    status = server.process.wait(30)
    line = [x for x in server.log.read_text().splitlines() if "worker-1" in x][-1]
    return f"ended {time.monotonic() - killed:.2f} s later with status {status}: {line}"


def kill_running(server, streams):
    before = server.log.read_text()
    killed = time.monotonic()
    subprocess.run(["kill", "-9", str(server.rank_pid(1))], check=True)
    seen = wait_line(server, r"worker-1 [^\n]*killed by signal 9", killed)
    for s in streams:
        s.join(200)
    first = [min(after) - killed for s in streams
             if (after := [t for t in s.times if t > killed + 0.05])]
    print(server.log.read_text()[len(before):])
    return (f"seen after {seen or -1:.3f} s, first token after it {min(first, default=-1):.2f} to "
            f"{max(first, default=-1):.2f} s, "
            f"{sum(len(s.tokens) == s.count for s in streams)} of {len(streams)} streams complete, "
            f"problems {sorted({s.problem for s in streams if s.problem})}")


def case_kill(binaries, tokenizer, model, tp, when):
    before = gpu_memory()
    server = Server(binaries, tokenizer, model, tp)
    if when in ("load", "capture"):
        text = kill_early(server, {"load": "tensor parallelism", "capture": "Capturing"}[when])
    else:
        server.wait_ready()
        ids = [(7919 * i) % 150000 for i in range(30000 if when == "prefill" else 1000)]
        streams = [Stream(server.port, ids[i:], 1000, i) for i in range(8)]
        while when == "decode" and any(len(s.times) < 2 and not s.problem for s in streams):
            time.sleep(0.01)
        time.sleep(1 if when == "decode" else 0.3)
        text = kill_running(server, streams)
    status = server.stop()
    time.sleep(0.5)
    print(f"kill {model} tp {tp} in {when}: {text}; status {status}; MiB on the GPUs before "
          f"{before}, after {gpu_memory()}", flush=True)


CASES = {"offline": case_offline, "decode": case_decode, "trace": case_trace, "kill": case_kill}


def main():
    if len(sys.argv) < 4 or any(c.split(":")[0] not in CASES for c in sys.argv[3:]):
        sys.exit(__doc__)
    for case in sys.argv[3:]:
        name, *words = case.split(":")
        CASES[name](pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]), *words)


main()
