"""phalanx bench: against the demo model, and against a stub whose timing and framing are known."""

import asyncio
import json
import os
import pathlib
import pty
import signal
import subprocess
import threading
import time
import xml.dom.minidom

import pytest

from conftest import BIN, PATIENCE, SHARED, free_port

LABELS = {"Successful requests": "completed", "Failed requests": "failed",
          "Output tokens": "total_output_tokens", "Input tokens": "total_input_tokens"}


class Done:
    def __init__(self, process, document):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr
        self.document = document
        self.runs = document["runs"] if document else []
        self.run = self.runs[0] if self.runs else None

    def reasons(self):
        return {e["reason"]: e["count"] for e in self.run["errors"]}


def command(*args):
    return [str(BIN / "phalanx"), "bench", *map(str, args)]


def bench(tmp_path, *args):
    """Runs it to its end; what the table says must be what the JSON says."""
    path = tmp_path / "out.json"
    process = subprocess.run(command("--output-file", path, "--output-details", *args),
                             capture_output=True, text=True, timeout=120 * PATIENCE)
    assert "Sanitizer" not in process.stderr and "runtime error" not in process.stderr, process.stderr
    text = path.read_text() if path.exists() else ""
    done = Done(process, json.loads(text) if text else None)
    for label, key in LABELS.items():
        shown = [int(line.split()[-1]) for line in done.out.splitlines() if line.strip().startswith(label + " ")]
        assert shown == [run[key] for run in done.runs], done.out
    return done


# ---- the stub ----


def event(data):
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def text_event(text, finish=None):
    return event({"id": "c", "object": "text_completion", "choices": [
        {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}]})


def usage_event(prompt, completion):
    return event({"id": "c", "choices": [], "usage": {
        "prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}})


CHUNKED = (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
           b"transfer-encoding: chunked\r\n\r\n")


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


class Stub:
    """An OpenAI-like server whose way to behave is the path's first part: /slow/v1/completions."""

    def __init__(self):
        self.port = free_port()
        self.bodies, self.connections = [], 0
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def url(self, how):
        return f"http://127.0.0.1:{self.port}/{how}"

    async def serve(self):
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.port)
        self.ready.set()
        await self.stopped.wait()
        server.close()

    def stop(self):
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(10)

    async def connection(self, reader, writer):
        self.connections += 1
        count = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
                body = json.loads(await reader.readexactly(int(length[0]))) if length else None
                how, _, path = head.split()[1].decode()[1:].partition("/")
                count += 1
                if path == "v1/models":
                    answer = json.dumps({"data": [{"id": "stub", "max_model_len": 4096, "vocab_size": 50}]})
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer.encode()))
                    continue
                self.bodies.append(body)
                if not await getattr(self, how)(writer, body, count):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def slow(self, writer, body, _, first=0.1, gap=0.05, send_usage=True):
        writer.write(CHUNKED)
        for i in range(body["max_tokens"]):
            await asyncio.sleep(gap if i else first)
            writer.write(chunk(text_event("x", "length" if i + 1 == body["max_tokens"] else None)))
            await writer.drain()
        if send_usage:
            writer.write(chunk(usage_event(len(body["prompt"]), body["max_tokens"])))
        writer.write(chunk(event(b"[DONE]")) + b"0\r\n\r\n")
        return True

    async def fast(self, writer, body, count):
        return await self.slow(writer, body, count, 0, 0)

    async def uncounted(self, writer, body, count):
        return await self.slow(writer, body, count, 0, 0, send_usage=False)

    async def bytewise(self, writer, body, _):
        """Every byte a chunk of its own, lines end in CR LF, comments between."""
        stream = b": hello\r\n\r\n" + b"".join(text_event("\u00e9") + b": ping\n\n" for _ in range(body["max_tokens"]))
        stream += text_event("", "length") + usage_event(len(body["prompt"]), body["max_tokens"]) + event(b"[DONE]")
        writer.write(CHUNKED)
        for byte in stream.replace(b"\n", b"\r\n"):
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        return True

    async def until_close(self, writer, body, _):
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b"".join(text_event("x") for _ in range(body["max_tokens"])))
        writer.write(usage_event(len(body["prompt"]), body["max_tokens"]) + b"data: [DONE]")
        return False

    async def one_request(self, writer, body, count):
        """Hangs up on the second request of a connection without having announced it."""
        return await self.fast(writer, body, count) if count == 1 else False

    async def broken(self, writer, body, _):
        writer.write(CHUNKED + chunk(text_event("x")) + chunk(text_event("y")))
        return False

    async def unfinished(self, writer, body, _):
        writer.write(CHUNKED + chunk(text_event("x")) + b"0\r\n\r\n")
        return True

    async def busy(self, writer, body, _):
        answer = b'{"error":{"message":"queue is full","type":"x","code":429}}'
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        return True

    async def hang_up(self, writer, body, _):
        return False

    async def silent(self, writer, body, _):
        await asyncio.sleep(600)

    async def garbage(self, writer, body, _):
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        await asyncio.sleep(1)
        return False

    async def failing(self, writer, body, _):
        writer.write(CHUNKED + chunk(text_event("x")) + chunk(event({"error": {"message": "rank 1 died"}})) +
                     b"0\r\n\r\n")
        return True

    async def third(self, writer, body, count):
        """Every third request is refused."""
        if len(self.bodies) % 3 == 0:
            return await self.busy(writer, body, count)
        return await self.fast(writer, body, count)


@pytest.fixture
def stub():
    s = Stub()
    yield s
    s.stop()


SMALL = ("--random-input-len", 8, "--random-output-len", 5, "--random-range-ratio", 1)


def test_times(stub, tmp_path):
    """Sleeping is never shorter than asked for: that bounds the times from below."""
    done = bench(tmp_path, "--base-url", stub.url("slow"), "--num-prompts", 6, "--random-input-len", 8,
                 "--random-output-len", 20, "--random-range-ratio", 1)
    run = done.run
    assert done.code == 0 and run["completed"] == 6 and run["failed"] == 0
    assert run["total_input_tokens"] == 48 and run["total_output_tokens"] == 120
    assert run["total_output_chunks"] == 120
    for r in run["requests"]:
        assert r["ttft_ms"] >= 99
        assert r["e2e_ms"] >= 99 + 19 * 49
    assert run["p50_ttft_ms"] < run["p50_e2e_latency_ms"] / 2
    assert 40 <= run["mean_tpot_ms"] <= run["mean_e2e_latency_ms"] / 19
    assert run["mean_itl_ms"] >= 40
    assert run["duration"] * 1e3 >= run["p50_e2e_latency_ms"]
    assert run["peak_concurrency"] == 6 and 1 < run["concurrency"] <= 6.01
    assert abs(run["output_throughput"] * run["duration"] - 120) < 0.01
    assert done.document["vocab"] == 50 and done.document["context_length"] == 4096
    assert done.document["model_id"] == "stub"
    # what was sent
    assert len(stub.bodies) == 7  # one to warm up
    for body in stub.bodies:
        assert body["model"] == "stub" and body["stream"] and body["ignore_eos"] is True
        assert body["stream_options"] == {"include_usage": True}
        assert len(body["prompt"]) == 8 and all(0 <= i < 50 for i in body["prompt"])


@pytest.mark.parametrize("how", ["fast", "bytewise", "until_close", "one_request"])
def test_framings(stub, tmp_path, how):
    done = bench(tmp_path, "--base-url", stub.url(how), "--num-prompts", 9, "--max-concurrency", 3, *SMALL)
    assert done.code == 0, done.out + done.err
    assert done.run["completed"] == 9 and done.run["peak_concurrency"] == 3
    assert done.run["total_output_tokens"] == done.run["total_output_chunks"] == 45
    assert all(r["chunks"] == 5 for r in done.run["requests"])
    assert len(done.document["runs"]) == 1


def test_connections_are_kept(stub, tmp_path):
    done = bench(tmp_path, "--base-url", stub.url("fast"), "--num-prompts", 40, "--max-concurrency", 2, *SMALL)
    assert done.run["completed"] == 40
    assert stub.connections == 4  # /v1/models, the warm-up, and two


FAILURES = {
    "broken": "the server closed the connection in the middle of its reply",
    "unfinished": "the stream ended without finish_reason and [DONE]",
    "busy": "HTTP 429: queue is full",
    "hang_up": "the server closed the connection without a reply",
    "silent": "the server was silent for too long (--stall-timeout)",
    "failing": "error event: rank 1 died",
}


@pytest.mark.parametrize("how", FAILURES)
def test_failures(stub, tmp_path, how):
    done = bench(tmp_path, "--base-url", stub.url(how), "--num-prompts", 4, "--warmup-requests", 0,
                 "--stall-timeout", 0.5, *SMALL)
    assert done.code == 1
    assert done.run["completed"] == 0 and done.run["failed"] == 4
    assert done.reasons() == {FAILURES[how]: 4}
    assert f"4  {FAILURES[how]}" in done.out
    assert done.run["mean_ttft_ms"] is None
    assert [r["error"] for r in done.run["requests"]] == [FAILURES[how]] * 4


def test_garbage(stub, tmp_path):
    done = bench(tmp_path, "--base-url", stub.url("garbage"), "--num-prompts", 2, "--warmup-requests", 0, *SMALL)
    assert done.run["failed"] == 2 and list(done.reasons())[0].startswith("malformed HTTP reply: ")


def test_some_fail(stub, tmp_path):
    done = bench(tmp_path, "--base-url", stub.url("third"), "--num-prompts", 30, "--max-concurrency", 4,
                 "--warmup-requests", 0, *SMALL)
    assert done.code == 1
    assert done.run["completed"] == 20 and done.reasons() == {"HTTP 429: queue is full": 10}
    assert done.run["total_output_tokens"] == 100


def test_without_usage(stub, tmp_path):
    done = bench(tmp_path, "--base-url", stub.url("uncounted"), "--num-prompts", 3, *SMALL)
    assert done.code == 0 and done.run["replies_without_usage"] == 3
    assert done.run["total_output_tokens"] == 15 and done.run["total_input_tokens"] == 24
    assert "3 replies without usage" in done.out


def test_warm_up_failure_ends(stub, tmp_path):
    done = bench(tmp_path, "--base-url", stub.url("busy"), "--num-prompts", 3, *SMALL)
    assert done.code == 1 and len(stub.bodies) == 1
    assert "warm-up at" in done.err and "HTTP 429: queue is full" in done.err


def test_no_server(tmp_path):
    done = bench(tmp_path, "--port", free_port(), *SMALL)
    assert done.code == 1
    assert "connecting: connection refused" in done.err


def test_rate_and_seed(stub, tmp_path):
    """Arrival times and lengths are a function of the seed; rates stretch the same arrivals."""
    def due(seed, rate):
        done = bench(tmp_path, "--base-url", stub.url("fast"), "--num-prompts", 20, "--seed", seed,
                     "--request-rate", rate, "--random-input-len", 8, "--random-output-len", 5)
        assert done.code == 0
        for r in done.run["requests"]:
            assert r["start_ms"] >= r["due_ms"]
        return [(r["due_ms"], r["input_asked"]) for r in done.run["requests"]]

    one = due(1, 200)
    assert one == due(1, 200)
    assert one != due(2, 200)
    assert [i for _, i in one] == [i for _, i in due(1, 400)]
    assert one[-1][0] / due(1, 400)[-1][0] == pytest.approx(2, rel=1e-3)


def test_sweep_and_plot(stub, tmp_path):
    plot = tmp_path / "plot.svg"
    done = bench(tmp_path, "--base-url", stub.url("fast"), "--num-prompts", 10, "--request-rate", "100,200,inf",
                 "--plot", plot, *SMALL)
    assert done.code == 0
    assert [run["request_rate"] for run in done.runs] == [100, 200, "inf"]
    assert all(run["completed"] == 10 for run in done.runs)
    picture = xml.dom.minidom.parse(str(plot))
    assert len(picture.getElementsByTagName("circle")) == 2 * 6
    # prompts of one run are not those of another
    prompts = [tuple(body["prompt"]) for body in stub.bodies]
    assert len(set(prompts)) == len(prompts) == 31


def test_extra_body_and_backends(stub, tmp_path):
    done = bench(tmp_path, "--base-url", stub.url("fast") + "/v1/", "--num-prompts", 2, "--backend", "vllm",
                 "--extra-request-body", '{"priority": 3}', "--temperature", 0.6, "--disable-ignore-eos",
                 "--model", "other", *SMALL)
    assert done.code == 0
    assert stub.bodies[-1]["priority"] == 3 and stub.bodies[-1]["temperature"] == 0.6
    assert "ignore_eos" not in stub.bodies[-1] and stub.bodies[-1]["model"] == "other"


def test_interrupt(stub, tmp_path):
    path = tmp_path / "out.json"
    process = subprocess.Popen(command("--base-url", stub.url("slow"), "--num-prompts", 500, "--max-concurrency", 2,
                                       "--output-file", path, *SMALL),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30 * PATIENCE
    while len(stub.bodies) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10 * PATIENCE)
    assert process.returncode == 1, err
    run = json.loads(path.read_text())["runs"][0]
    assert run["interrupted"] and 0 < run["completed"] < 500 and run["failed"] == 0
    assert "Interrupted: " in out


def test_key_is_hidden(stub):
    process = subprocess.Popen(command("--base-url", stub.url("slow"), "--num-prompts", 3, "--api-key", "s3cret",
                                       *SMALL), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30 * PATIENCE
    while not stub.bodies:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    line = pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert b"xxxxxx" in line and b"s3cret" not in line
    assert process.wait(30 * PATIENCE) == 0


def test_progress_bar(stub):
    """On a terminal there is a bar, unless it is not wanted."""
    for args, wanted in (((), True), (("--disable-tqdm",), False)):
        master, slave = pty.openpty()
        process = subprocess.Popen(command("--base-url", stub.url("slow"), "--num-prompts", 4, *SMALL, *args),
                                   stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        shown = b""
        try:
            while block := os.read(master, 65536):
                shown += block
        except OSError:  # the other side is closed
            pass
        os.close(master)
        assert process.wait(30 * PATIENCE) == 0
        assert (b"/4, " in shown and b"running" in shown) == wanted


@pytest.mark.parametrize("args, code, message", [
    (["--plot", "/tmp/x.svg"], 2, "--plot needs a sweep"),
    (["--request-rate", "fast"], 2, "--request-rate: 'fast' is not a number"),
    (["--dataset-name", "trace"], 2, "needs --dataset-path"),
    (["--output-file", "/nowhere/x.json"], 1, "--output-file: /nowhere/x.json"),
    (["--base-url", "https://localhost"], 1, "https is not supported"),
    (["--tp", "2"], 2, "--tp-size is an option of"),
])
def test_wrong_command_lines(args, code, message):
    done = subprocess.run(command(*args), capture_output=True, text=True, timeout=30 * PATIENCE)
    assert done.returncode == code and message in done.stderr and done.stderr.count("\n") == 1


# ---- the real server ----


def metric_after(server, name, wanted):
    """Metrics are sent once a second."""
    deadline = time.monotonic() + 10 * PATIENCE
    while server.metric(name) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return server.metric(name)


@pytest.mark.parametrize("backend", ["openai", "generate", "openai-chat"])
def test_demo(server, tmp_path, backend):
    time.sleep(1.2)
    before = server.metric("generation_tokens_total")
    done = bench(tmp_path, "--port", server.port, "--backend", backend, "--num-prompts", 24, "--max-concurrency", 8,
                 "--random-input-len", 60, "--random-output-len", 24, "--random-range-ratio", 0.25)
    run = done.run
    assert done.code == 0, done.out + done.err
    assert run["completed"] == 24 and run["replies_without_usage"] == 0
    assert run["replies_shorter"] == 0 and run["replies_more_chunks"] == 0
    asked = sum(r["output_asked"] for r in run["requests"])
    assert run["total_output_tokens"] == asked >= run["total_output_chunks"] > 0
    if backend != "openai-chat":
        assert run["total_input_tokens"] == sum(r["input_asked"] for r in run["requests"])
        assert run["replies_other_input"] == 0
        assert all(15 <= r["input_asked"] <= 60 for r in run["requests"])
    warm_up = min(32, run["requests"][0]["output_asked"])
    assert metric_after(server, "generation_tokens_total", before + asked + warm_up) == before + asked + warm_up
    assert run["peak_concurrency"] == 8
    assert done.document["vocab"] == 2048 and done.document["context_length"] == 1024


def test_too_long_for_the_server(server, tmp_path):
    done = bench(tmp_path, "--port", server.port, "--random-input-len", 1000, "--random-output-len", 100,
                 "--random-range-ratio", 1)
    assert done.code == 1
    assert "a request of 1100 tokens exceeds the server's context of 1024" in done.err


def test_trace(server, tmp_path):
    trace = tmp_path / "trace.csv"
    rows = ["2023-11-16 18:15:4%d.%07d,%d,%d" % (i, i * 100, 20 + i, 3 + i) for i in range(6)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows, "2023-11-16 18:16:00,2000,5"]))
    done = bench(tmp_path, "--port", server.port, "--dataset-name", "trace", "--dataset-path", trace,
                 "--trace-scale", "0.02")
    assert done.code == 0
    assert done.document["trace_rows_skipped"] == 1 and done.run["completed"] == 6
    assert done.run["total_input_tokens"] == sum(20 + i for i in range(6))
    assert done.run["total_output_tokens"] == sum(3 + i for i in range(6))
    assert [r["due_ms"] for r in done.run["requests"]] == pytest.approx([i * 20.0002 for i in range(6)], abs=0.002)


@pytest.mark.parametrize("name, rows", [("azure_llm_2023_conv.csv", 19366),
                                        ("mooncake_conversation_trace.jsonl", 12031)])
def test_real_traces(stub, tmp_path, name, rows):
    path = SHARED / "data/traces" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    done = bench(tmp_path, "--base-url", stub.url("fast"), "--dataset-name", "trace", "--dataset-path", path,
                 "--num-prompts", 20, "--request-rate", 200)
    assert done.code == 0 and done.run["completed"] == 20
    first = done.run["requests"][0]
    assert done.document["trace_rows_skipped"] > 0 or name.startswith("azure")
    assert 0 < first["input_tokens"] + first["output_tokens"] <= 4096
