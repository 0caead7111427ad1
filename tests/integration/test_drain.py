"""A gateway's polite end: what runs is finished, nobody new comes in."""

import concurrent.futures
import json
import signal
import socket
import subprocess

import pytest

from conftest import BIN, PATIENCE
from test_http import Gateway, events, read_all, read_reply, until

LONG = {"prompt": "a", "max_tokens": 1500, "stream": True}
POST = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 14\r\n\r\n{\"prompt\"")


def refuses(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0


def draining(g):
    g.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(g.port), what="a closed listener")


def test_drain():
    with Gateway() as g, concurrent.futures.ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(g.http.post, "/v1/completions", json=LONG) for _ in range(2)]
        until(lambda: len(g.seen("GENERATE")) == 2)
        with g.connect() as kept, g.connect() as ready, g.connect() as post:
            kept.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_reply(kept)[0] == 200
            ready.sendall(b"GET /health/ready HTTP/1.1\r\nHo")
            post.sendall(POST)
            draining(g)
            assert read_all(kept) == b""
            ready.sendall(b"st: x\r\n\r\n")
            status, headers, body = read_reply(ready)
            assert status == 503 and headers["connection"] == "close" and b"draining" in body
            post.sendall(b": \"a\"}")
            status, headers, body = read_reply(post)
            assert status == 503 and headers["connection"] == "close", body
            assert json.loads(body)["error"]["code"] == "shutting_down"
            assert read_all(post) == b""
        assert g.process.poll() is None
        for stream in streams:
            *tokens, done = events(stream.result().text)
            assert done == "[DONE]" and "error" not in tokens[-1]
            text = "".join(t["choices"][0]["text"] for t in tokens)
            assert text == "".join(f"t{i} " for i in range(1500))
        assert g.process.wait(10 * PATIENCE) == 0
        assert len(g.seen("GENERATE")) == 2 and not g.seen("ABORT")


def test_request_that_has_begun_is_told():
    """Nothing else runs: the drain still waits a moment for what was half read."""
    with Gateway() as g, g.connect() as post:
        post.sendall(POST)
        g.http.get("/version") # whoever answers this has read that
        draining(g)
        post.sendall(b": \"a\"}")
        assert read_all(post).startswith(b"HTTP/1.1 503 ")
        assert g.process.wait(10 * PATIENCE) == 0


@pytest.mark.parametrize("signals,args", [([], ["--drain-timeout", "0.3"]),
                                          ([signal.SIGTERM], []), ([signal.SIGINT], [])])
def test_drain_that_is_cut_short(signals, args):
    with Gateway(*args) as g, concurrent.futures.ThreadPoolExecutor(2) as pool:
        whole = pool.submit(g.http.post, "/v1/completions", json={"prompt": "@hang"})
        stream = pool.submit(g.http.post, "/v1/completions", json={**LONG, "max_tokens": 1000000})
        until(lambda: len(g.seen("GENERATE")) == 2)
        draining(g)
        for number in signals:
            g.process.send_signal(number)
        assert g.process.wait(10 * PATIENCE) == 0 # the default is 30 s
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "shutting_down"
        assert events(stream.result().text)[-1]["error"]["code"] == "shutting_down"
        until(lambda: len(g.seen("ABORT")) == 2)


def test_siblings_go_on():
    args = ["--num-gateway", "2", "--drain-timeout", "2"]
    with Gateway(*args) as g, concurrent.futures.ThreadPoolExecutor(1) as pool:
        hang = pool.submit(g.http.post, "/v1/completions", json={"prompt": "@hang"})
        until(lambda: len(g.seen("GENERATE")) == 1)
        with open(g.root / "log2", "wb") as log:
            sibling = subprocess.Popen(
                [BIN / "phalanx-gateway", "--tokenizer-endpoint", g.endpoint, "--port",
                 str(g.port), "--num-gateway", "2", "--name", "gateway-1"], stderr=log)
        try:
            until(lambda: b"is ready to serve on" in (g.root / "log2").read_bytes())
            g.process.send_signal(signal.SIGTERM)
            until(lambda: '"draining"' in g.log())
            for _ in range(100):
                with g.connect() as s:
                    s.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert read_reply(s)[0] == 200
            assert hang.result().json()["error"]["code"] == "shutting_down"
            assert g.process.wait(10 * PATIENCE) == 0
        finally:
            sibling.terminate()
            assert sibling.wait(10 * PATIENCE) == 0
