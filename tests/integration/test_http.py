"""The gateway alone: a real phalanx-gateway, and behind it the scripted fake_tokenizer (see there)
instead of the tokenizer and everything after it."""

import concurrent.futures
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time

import httpx
import openai
import pytest

from conftest import BIN, PATIENCE, free_port

FAKE = pathlib.Path(os.environ.get("PHALANX_TESTS_BIN", BIN.parent / "tests")) / "fake_tokenizer"
JSON = {"Content-Type": "application/json"}
HI = [{"role": "user", "content": "hi"}]


def until(condition, seconds=10, what="condition"):
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true")


class Gateway:
    def __init__(self, *args, files=None, fake=True, max_running=16):
        self.dir = tempfile.TemporaryDirectory(prefix="phalanx-http-")
        self.root = pathlib.Path(self.dir.name)
        self.endpoint = f"ipc://{self.root}/tokenizer"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.max_running = max_running
        self.fakes = 0
        self.fake = None
        if fake:
            self.start_fake()
        limit = files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
        with open(self.root / "log", "wb") as log:
            self.process = subprocess.Popen(
                [BIN / "phalanx-gateway", "--tokenizer-endpoint", self.endpoint, "--port",
                 str(self.port), "--served-model-name", "m", *args],
                stderr=log, stdin=subprocess.DEVNULL, preexec_fn=limit)
        self.http = httpx.Client(base_url=self.url, timeout=20 * PATIENCE)
        until(self.listens, what="listening")
        if fake:
            until(lambda: "is ready to serve on" in self.log(), what="ready")

    def listens(self):
        assert self.process.poll() is None, self.log()
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def start_fake(self):
        self.fakes += 1
        self.fake_log = self.root / f"fake{self.fakes}"
        with open(self.fake_log, "wb") as log:
            self.fake = subprocess.Popen([FAKE, self.endpoint, str(self.max_running)], stdout=log)

    def log(self):
        return (self.root / "log").read_text(errors="replace")

    def seen(self, kind):
        """Lines of what the fake received: GENERATE or ABORT."""
        return [line for line in self.fake_log.read_text(errors="replace").splitlines()
                if line.startswith(kind + " ")]

    def metric(self, name):
        for line in self.http.get("/metrics").text.splitlines():
            m = re.match(r"phalanx:(\S+?)(?:\{.*\})? (\S+)$", line)
            if m and m[1] == name:
                return float(m[2])
        return 0.0

    def raw(self, data, timeout=20):
        """Sends bytes, reads until the server closes."""
        with self.connect(timeout) as s:
            try:
                s.sendall(data)
            except OSError:
                pass
            return read_all(s)

    def connect(self, timeout=20):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout * PATIENCE)

    def stop(self):
        self.http.close()
        for process in (self.process, self.fake):
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(10 * PATIENCE)
        assert self.process.returncode == 0, self.log()
        assert "ERROR: " not in self.log() and "runtime error" not in self.log(), self.log()
        self.dir.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def read_all(s):
    data = b""
    try:
        while piece := s.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def read_reply(s):
    """(status, headers, body) of one reply on a connection that stays open."""
    f = s.makefile("rb")
    status = int(f.readline().split()[1])
    headers = {}
    while line := f.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, f.read(int(headers.get("content-length", 0)))


def events(text):
    """The data of each SSE event; framing is checked."""
    assert text.endswith("\n\n")
    found = []
    for event in text[:-2].split("\n\n"):
        assert event.startswith("data: ") and "\n" not in event, event
        found.append(event[6:] if event == "data: [DONE]" else json.loads(event[6:]))
    return found


@pytest.fixture(scope="module")
def gw():
    with Gateway() as g:
        yield g


@pytest.fixture(scope="module")
def client(gw):
    return openai.OpenAI(base_url=gw.url + "/v1", api_key="none", max_retries=0,
                         timeout=20 * PATIENCE)


# ---- the openai client ----

def test_chat(client, gw):
    r = client.chat.completions.create(model="m", messages=HI, max_tokens=3)
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-") and r.model == "m"
    assert r.system_fingerprint.startswith("fp_") and abs(r.created - time.time()) < 100
    assert r.choices[0].message.content == "t0 t1 t2 "
    assert r.choices[0].message.role == "assistant"
    assert r.choices[0].finish_reason == "length" and r.choices[0].logprobs is None
    assert (r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.total_tokens) == (7, 3, 10)
    assert r.usage.prompt_tokens_details.cached_tokens == 3
    r = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": [{"type": "text", "text": "@stop=1"}]}])
    assert r.choices[0].finish_reason == "stop" and r.choices[0].message.content == "t0 "


def test_chat_stream(client):
    chunks = list(client.chat.completions.create(
        model="m", messages=HI, max_tokens=3, n=2, stream=True, logprobs=True, top_logprobs=2,
        stream_options={"include_usage": True}))
    assert {c.id for c in chunks} == {chunks[0].id}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 6
    for i in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == i]
        assert mine[0].delta.role == "assistant" and mine[0].delta.content == ""
        assert [c.delta.content for c in mine[1:-1]] == ["t0 ", "t1 ", "t2 "]
        assert mine[-1].finish_reason == "length" and mine[-1].delta.content is None
        assert all(c.finish_reason is None for c in mine[:-1])
        assert mine[1].logprobs.content[0].token == "t0 "
        assert mine[1].logprobs.content[0].logprob == -0.5
        assert [t.token for t in mine[1].logprobs.content[0].top_logprobs] == ["t0 ", "other"]


def test_completions(client):
    r = client.completions.create(model="m", prompt=["a", "b"], n=2, max_tokens=2, logprobs=1)
    assert [c.index for c in r.choices] == [0, 1, 2, 3]
    assert r.object == "text_completion" and r.id.startswith("cmpl-")
    assert r.usage.prompt_tokens == 14 and r.usage.completion_tokens == 8
    lp = r.choices[3].logprobs
    assert lp.tokens == ["t0 ", "t1 "] and lp.text_offset == [0, 3]
    assert lp.token_logprobs == [-0.5, -0.5] and lp.top_logprobs[0] == {"t0 ": -0.5}
    assert len(client.completions.create(model="m", prompt="a").choices[0].text.split()) == 16
    r = client.completions.create(model="m", prompt=[5, 6], max_tokens=1)
    assert r.choices[0].text == "t0 "
    r = client.completions.create(model="m", prompt="begin ", max_tokens=1, echo=True)
    assert r.choices[0].text == "begin t0 "
    chunks = list(client.completions.create(model="m", prompt=["a", "b"], max_tokens=2,
                                            stream=True))
    assert sorted((c.choices[0].index, c.choices[0].text) for c in chunks) == [
        (0, ""), (0, "t0 "), (0, "t1 "), (1, ""), (1, "t0 "), (1, "t1 ")]


def test_generate(gw):
    r = gw.http.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 2},
                                        "return_logprob": True, "top_logprobs_num": 2}).json()
    assert r["text"] == "t0 t1 " and r["output_ids"] == [100, 101]
    meta = r["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 2}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (7, 2, 3)
    assert meta["output_token_logprobs"] == [[-0.5, 100, "t0 "], [-0.5, 101, "t1 "]]
    assert meta["output_top_logprobs"][1] == [[-0.5, 101, "t1 "], [-1.5, 102, "other"]]
    r = gw.http.post("/generate", json={"input_ids": [[1], [2]], "sampling_params": {"n": 2}})
    assert [len(x["output_ids"]) for x in r.json()] == [128] * 4
    r = gw.http.post("/generate", json={"text": "@stop=3", "stream": True, "rid": "mine"})
    found = events(r.text)
    assert [e["text"] for e in found[:-1]] == ["t0 ", "t0 t1 ", "t0 t1 t2 "]
    assert found[2]["output_ids"] == [100, 101, 102] and found[2]["meta_info"]["id"] == "mine"
    assert found[2]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "END"}
    assert found[3] == "[DONE]"


def test_hostile_tokens_keep_the_framing(gw, client):
    text = '\n"\\\r\ndata: x\n\n\u2028'
    chunks = list(client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "@hostile"}], max_tokens=2, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text * 2
    r = gw.http.post("/generate", json={"text": "@hostile", "stream": True,
                                        "sampling_params": {"max_new_tokens": 2}})
    assert events(r.text)[1]["text"] == text * 2


def test_errors_of_the_client(client):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="other", messages=HI)
    assert e.value.code == "model_not_found" and e.value.param == "model"
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="m", messages=HI, temperature=1e9)
    assert e.value.param == "temperature" and "100" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="m", messages=HI, extra_body={"nonsense": 1})
    assert e.value.param == "nonsense"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.RateLimitError) as e:
        client.completions.create(model="m", prompt="@fail=429")
    assert e.value.response.headers["retry-after"]
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model="m", prompt="@fail=400", stream=True)
    assert e.value.code == "scripted" and e.value.param == "prompt"
    assert client.models.retrieve("m").id == "m"
    assert [m.id for m in client.models.list()] == ["m"]


def test_error_in_mid_stream(gw, client):
    r = gw.http.post("/v1/completions", json={"prompt": "@error=3", "stream": True})
    found = events(r.text)
    assert r.status_code == 200 and found[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in found and len(found) == 3
    assert gw.http.post("/v1/completions", json={"prompt": "@error=3"}).status_code == 500
    with pytest.raises(openai.APIError):
        list(client.completions.create(model="m", prompt="@error=3", stream=True))


# ---- what reaches the tokenizer ----

def test_generate_message(gw):
    gw.http.post("/v1/chat/completions", headers={"X-Request-Id": "trace-77"}, json={
        "messages": HI, "max_completion_tokens": 2, "seed": -1, "stop": ["a", "b"],
        "logit_bias": {"5": -100}, "n": 2, "chat_template_kwargs": {"k": 1}})
    line = [x for x in gw.seen("GENERATE") if "trace-77" in x][0]
    for part in ("kind=2", "n=2", f"seed={2**64 - 1}", "max_tokens=2", "add_generation_prompt=true"):
        assert part in line, line


# ---- paths, methods, headers ----

def test_paths_and_methods(gw):
    h = gw.http
    for path in ("/health", "/health/live", "/health/ready", "/health_generate", "/version",
                 "/v1/models", "/metrics", "/v1/models/m", "/v1/models/%6d", "/health?x=1"):
        assert h.get(path).status_code == 200, path
        head = h.head(path)
        assert head.status_code == 200 and head.content == b"" and "content-length" in head.headers
    for path in ("/", "/v1", "/v1/models/", "/v1/models/x", "/healthy", "/health/", "/v1/Models",
                 "/v1/completions/", "//health", "/health/%2e%2e/metrics", "/%", "/%00", "/" + "a" * 5000):
        r = h.get(path)
        assert r.status_code == 404, path
        assert set(r.json()["error"]) == {"message", "type", "param", "code"}
    r = h.get("/v1/completions")
    assert r.status_code == 405 and r.headers["allow"] == "POST, OPTIONS"
    r = h.post("/health", json={})
    assert r.status_code == 405 and r.headers["allow"] == "GET, HEAD, OPTIONS"
    assert h.request("DELETE", "/v1/models").status_code == 405
    assert gw.raw(b"GET http://h/version HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200")
    assert gw.raw(b"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 204")


def test_cors(gw):
    r = gw.http.options("/v1/chat/completions", headers={
        "Origin": "http://a", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os"})
    assert r.status_code == 204 and r.headers["access-control-allow-origin"] == "*"
    assert "POST" in r.headers["access-control-allow-methods"]
    assert r.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert gw.http.get("/version", headers={"Origin": "http://a"}).headers[
        "access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in gw.http.get("/version").headers


def test_request_id(gw):
    assert gw.http.get("/version", headers={"X-Request-Id": "a-1"}).headers["x-request-id"] == "a-1"
    r = gw.http.get("/version", headers={"X-Request-Id": "a b\"<%s" + "x" * 500})
    assert r.headers["x-request-id"] == "a_b__%s".replace("%", "_") + "x" * 121
    assert re.match(r"req-[0-9a-f]{16}$", gw.http.get("/version").headers["x-request-id"])
    # the same id twice at once does not cross the answers
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda n: len(httpx.post(
            gw.url + "/v1/completions", headers={"X-Request-Id": "same"},
            json={"prompt": "a", "max_tokens": n}).json()["choices"][0]["text"].split()),
            range(1, 9)))
    assert sizes == list(range(1, 9))


def test_content_type(gw):
    body = b'{"prompt":"a"}'
    post = lambda **h: gw.http.post("/v1/completions", content=body, headers=h).status_code
    assert post() == 200
    assert post(**{"Content-Type": "application/json; charset=utf-8"}) == 200
    assert post(**{"Content-Type": "APPLICATION/JSON"}) == 200
    assert post(**{"Content-Type": "text/plain"}) == 415
    assert post(**{"Content-Type": "application/x-www-form-urlencoded"}) == 415
    assert post(**{"Content-Encoding": "gzip"}) == 415


def test_metrics(gw):
    text = gw.http.get("/metrics").text
    assert 'phalanx:kv_pages_free{process="scheduler-0"} 42' in text
    assert 'phalanx:step_time_seconds_sum{process="scheduler-0"} 1.5' in text
    assert "no_such_metric" not in text
    before = gw.metric("time_to_first_token_seconds_count")
    gw.http.post("/v1/completions", json={"prompt": "a"})
    assert gw.metric("time_to_first_token_seconds_count") == before + 1
    until(lambda: gw.metric("requests_in_flight") == 0)


# ---- JSON ----

LONG = "x" * 100
BAD_JSON = [
    b"", b" ", b"{", b"}", b"[", b"{]", b'{"prompt"}', b'{"prompt":}', b'{"prompt":"a",}',
    b'{"prompt":"a"', b'{"prompt":"a}', b"{'prompt':'a'}", b'{prompt:"a"}', b'{"prompt":"a"}}',
    b'{"prompt":"a"} x', b'{"prompt":"a" "n":1}', b'{"prompt":"a","prompt":"b"}',
    b'{"prompt":"a","n":01}', b'{"prompt":"a","n":+1}', b'{"prompt":"a","n":.5}',
    b'{"prompt":"a","n":1.}', b'{"prompt":"a","n":0x1}', b'{"prompt":"a","n":1e}',
    b'{"prompt":"a","temperature":NaN}', b'{"prompt":"a","temperature":Infinity}',
    b'{"prompt":"a","temperature":-Infinity}', b'{"prompt":"a","temperature":1e400}',
    b'{"prompt":"a","seed":99999999999999999999}', b'{"prompt":"\\ud800"}',
    b'{"prompt":"\\udc00\\ud800"}', b'{"prompt":"\\ud800\\u0041"}', b'{"prompt":"\\x41"}',
    b'{"prompt":"\\u12"}', b'{"prompt":"\xff"}', b'{"prompt":"\xc0\x80"}',
    b'{"prompt":"\xed\xa0\x80"}', b'{"prompt":"\xf4\x90\x80\x80"}', b'{"prompt":"a\nb"}',
    b'{"prompt":"a\x00b"}', b'\xef\xbb\xbf{"prompt":"a"}', b'{"prompt":"a"}\x00',
    b'\xff\xfe{\x00', b"{" * 65, b"[" * 100000, b'{"a":' * 100000, b'[{"":' * 50000,
    b"[" * 100000 + b"]" * 100000, b"nul", b"truee", b"// x\n{}", b'{"prompt":"a"/**/}',
    b'{"a\\u0000b":1}',
]


@pytest.mark.parametrize("body", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json(gw, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/generate"):
        r = gw.http.post(path, content=body, headers=JSON)
        assert r.status_code == 400, r.text
        assert r.json()["error"]["type"] == "invalid_request_error"
        assert len(r.content) < 2000


def test_good_json(gw):
    for body in (b' \t\r\n{"prompt":"a"} \n', b'{"prompt":"\\ud83d\\ude00 \\u0000 \\/"}',
                 b'{"prompt":"\xf0\x9f\x98\x80","temperature":1e-400}',
                 b'{"prompt":"a","temperature":-0.0,"n":1.0,"max_tokens":1E1}',
                 b'{"prompt":"a","logit_bias":null}'):
        r = gw.http.post("/v1/completions", content=body, headers=JSON)
        assert r.status_code == 200, r.text


def test_large_body(gw):
    body = b'{"max_tokens":1,"prompt":"' + b"x" * 8_000_000 + b'"}'
    assert gw.http.post("/v1/completions", content=body, headers=JSON).status_code == 200
    body = b'{"prompt":"' + b"x" * 8_388_608 + b'"}'
    assert gw.http.post("/v1/completions", content=body, headers=JSON).status_code == 413
    r = gw.http.post("/v1/completions", content=iter([body[:5_000_000], body[5_000_000:]]),
                     headers=JSON)
    assert r.status_code == 413


def test_bodies_of_many_values(gw):
    """Cheap to send, dear to build: refused before a tree is built."""
    rss = gw.metric("process_resident_memory_bytes")
    for body in (b'{"prompt":[' + b"0," * 4_000_000 + b"0]}", b"[" + b"{}," * 2_700_000 + b"{}]",
                 b"[" + b"[]," * 2_700_000 + b"[]]",
                 b"{" + b",".join(b'"%d":1' % i for i in range(600_000)) + b"}"):
        r = gw.http.post("/v1/completions", content=body, headers=JSON)
        assert r.status_code == 400 and "are allowed" in r.json()["error"]["message"]
    body = json.dumps({"prompt": [5] * 1_000_000, "max_tokens": 1})
    assert gw.http.post("/v1/completions", content=body, headers=JSON).status_code == 200
    assert gw.metric("process_resident_memory_bytes") < rss + (64 if PATIENCE == 1 else 1024) * 2**20


# ---- HTTP by hand ----

BAD_HTTP = [
    (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400), (b"hello\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"
     b"\r\n\r\n0\r\n\r\n", 400),
    (b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nXYZ\r\n", 400),
    (b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
    (b"POST /generate HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nContent-Length: 2\r\n\r\n{}", 417),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 20000 + b"\r\n\r\n", 431),
    (b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 100 + b"\r\n", 431),
]


@pytest.mark.parametrize("data,status", BAD_HTTP, ids=range(len(BAD_HTTP)))
def test_bad_http(gw, data, status):
    reply = gw.raw(data)
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply
    assert b"\r\nConnection: close\r\n" in reply
    assert json.loads(reply.split(b"\r\n\r\n", 1)[1])["error"]["message"]
    assert gw.http.get("/health").status_code == 200


def post_bytes(path, body, extra=""):
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            f"{body}").encode()


def test_pipelining_keeps_the_order(gw):
    data = b""
    for i in range(1, 8):
        data += post_bytes("/v1/completions", json.dumps({"prompt": "a", "max_tokens": i}))
        data += b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    data += b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with gw.connect() as s:
        s.sendall(data)
        got = read_all(s)
    texts = re.findall(rb'"text":"([^"]*)"|(\{"version)|(\{"status)', got)
    kinds = [len(t[0].split()) or ("v" if t[1] else "s") for t in texts]
    assert kinds == [x for i in range(1, 8) for x in (i, "v")] + ["s"]


def test_many_pipelined(gw):
    one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with gw.connect() as s:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            sent = pool.submit(s.sendall, one * 20000 + last)
            got = read_all(s)
            sent.result()
    assert got.count(b"HTTP/1.1 200 OK") == 20001


def test_byte_by_byte(gw):
    with gw.connect() as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for b in post_bytes("/v1/completions", '{"prompt":"a","max_tokens":2}'):
                s.sendall(bytes([b]))
            status, _, body = read_reply(s)
            assert status == 200 and json.loads(body)["choices"][0]["text"] == "t0 t1 "


def test_chunked_request(gw):
    data = (b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'8\r\n{"text":\r\n4;x=y\r\n"a"}\r\n0\r\nTrailer: x\r\n\r\n')
    with gw.connect() as s:
        s.sendall(data * 2)
        for _ in range(2):
            assert read_reply(s)[0] == 200


def test_expect_continue(gw):
    body = b'{"prompt":"a","max_tokens":1}'
    head = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body))
    with gw.connect() as s:
        s.sendall(head)
        assert s.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(body)
        assert read_reply(s)[0] == 200
    refused = gw.raw(head.replace(b"/v1/completions", b"/nowhere"))
    assert refused.startswith(b"HTTP/1.1 404 ")


def test_http10(gw):
    body = '{"prompt":"a","max_tokens":2,"stream":true}'
    reply = gw.raw(f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
                   f"{body}".encode())
    head, _, text = reply.partition(b"\r\n\r\n")
    assert b"chunked" not in head and events(text.decode())[-1] == "[DONE]"
    assert gw.raw(b"GET /version HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


# ---- disconnects ----

def aborted(gw, data, before_close=lambda s: None):
    count = len(gw.seen("ABORT"))
    with gw.connect() as s:
        s.sendall(data)
        before_close(s)
    return lambda: len(gw.seen("ABORT")) - count


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_aborts(gw, stream):
    started = len(gw.seen("GENERATE"))
    body = json.dumps({"prompt": ["@hang", "@hang"], "n": 2, "stream": stream})
    wait = lambda s: until(lambda: len(gw.seen("GENERATE")) == started + 2)
    count = aborted(gw, post_bytes("/v1/completions", body), wait)
    until(lambda: count() == 2, what="two ABORTs")
    until(lambda: gw.metric("requests_in_flight") == 0)


def test_disconnect_in_mid_stream(gw):
    body = json.dumps({"prompt": "a", "max_tokens": 100000, "stream": True})
    count = aborted(gw, post_bytes("/v1/completions", body), lambda s: s.recv(10))
    until(lambda: count() == 1)


def test_disconnect_behind_a_pipeline(gw):
    """More bytes wait than are read ahead: the end of the connection is noticed all the same."""
    started = len(gw.seen("GENERATE"))
    data = post_bytes("/v1/completions", '{"prompt":"@hang"}') + b"GET /version HTTP/1.1\r\n" * 3500
    wait = lambda s: until(lambda: len(gw.seen("GENERATE")) == started + 1)
    count = aborted(gw, data, wait)
    until(lambda: count() == 1)


def test_cancelled_stream_of_the_client(client, gw):
    count = len(gw.seen("ABORT"))
    stream = client.completions.create(model="m", prompt="a", max_tokens=100000, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: len(gw.seen("ABORT")) == count + 1)


def test_disconnect_at_every_byte(gw):
    data = post_bytes("/v1/completions", '{"prompt":"a","max_tokens":4,"stream":true}')
    for cut in range(0, len(data) + 1, 3):
        with gw.connect() as s:
            s.sendall(data[:cut])
    until(lambda: gw.metric("requests_in_flight") == 0)
    assert gw.http.get("/health").status_code == 200


def test_finished_requests_are_not_aborted(gw):
    for stream in (False, True, False):
        gw.http.post("/v1/completions", json={"prompt": "a", "stream": stream},
                     headers={"X-Request-Id": "ends-well"})
    # in order: what was sent before the last GENERATE has been seen
    ids = [re.search(r" id=(\d+) ", x)[1] for x in gw.seen("GENERATE") if "ends-well" in x]
    assert len(ids) == 3
    assert not [x for x in gw.seen("ABORT") if re.search(r" id=(\d+) ", x)[1] in ids]


# ---- slow ones (together, as each takes long) ----

def test_slow_clients(gw):
    def slow_head():
        with gw.connect(30) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            for i in range(60):
                try:
                    s.sendall(b"A%d: b\r\n" % i)
                    s.settimeout(0.5)
                    if reply := s.recv(1000):
                        return reply
                except TimeoutError:
                    pass
        return b""

    def slow_body():
        with gw.connect(60) as s:
            s.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
            return read_all(s)

    def silent():
        with gw.connect(60) as s:
            return read_all(s)

    def sleeping_reader(prompt, tokens):
        with gw.connect(60) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.sendall(post_bytes("/v1/completions", json.dumps(
                {"prompt": prompt, "max_tokens": tokens, "stream": True}),
                f"X-Request-Id: {prompt[-6:]}\r\n"))
            until(lambda: f"id={prompt[-6:]} " in gw.log(), 60, "the end of a reader that sleeps")

    def flooded():  # passes the bound of what is gathered for it
        sleeping_reader("@burst=50 @deaf flood1", 1000000)

    def starved():  # does not, but takes nothing for 30 s
        sleeping_reader("@burst=1 @deaf starve", 7000)

    rss = gw.metric("process_resident_memory_bytes")
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        done = [pool.submit(f) for f in (slow_head, slow_body, silent, flooded, starved)]
        while not all(d.done() for d in done):
            assert gw.http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
            time.sleep(0.2)
        assert done[0].result().startswith(b"HTTP/1.1 408 ")
        assert done[1].result().startswith(b"HTTP/1.1 408 ")
        assert done[2].result() == b""
        for d in done:
            d.result()
    for name in ("flood1", "starve"):
        assert f"id={name} " in gw.log() and re.search(f"id={name} .*status=499", gw.log())
    assert gw.metric("process_resident_memory_bytes") < rss + (64 if PATIENCE == 1 else 1024) * 2**20


def test_paused_stream_loses_nothing(gw):
    """A reader that pauses, then reads on: tokens gathered meanwhile come in order."""
    with gw.connect() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        s.sendall(post_bytes("/v1/completions", json.dumps(
            {"prompt": "@burst=20 @deaf", "max_tokens": 3500, "stream": True}), "Connection: close\r\n"))
        time.sleep(1)
        reply = read_all(s)
    body, at = b"", reply.index(b"\r\n\r\n") + 4
    while size := int(reply[at:(end := reply.index(b"\r\n", at))], 16):
        body += reply[end + 2:end + 2 + size]
        at = end + 2 + size + 2
    found = events(body.decode())
    text = "".join(e["choices"][0]["text"] for e in found[:-1])
    assert [int(t) for t in text.split()] == list(range(3500))
    assert len(found) < 3500 # some were gathered, or the test shows nothing


# ---- servers of their own ----

def test_api_key():
    with Gateway("--api-key", "s3cret") as g:
        right = {"Authorization": "Bearer s3cret"}
        for path in ("/health", "/health/live", "/health/ready", "/health_generate"):
            assert g.http.get(path).status_code == 200
        for path in ("/v1/models", "/v1/models/m", "/metrics", "/version", "/nowhere", "/health/x",
                     "/healthx", "/health/%2e%2e/metrics", "/health%2f..%2fmetrics"):
            assert g.http.get(path).status_code == 401, path
        for value in ("Bearer wrong", "Bearer s3cre", "Bearer s3cretx", "s3cret", "Bearer",
                      "Basic s3cret", ""):
            r = g.http.get("/v1/models", headers={"Authorization": value})
            assert r.status_code == 401 and r.json()["error"]["code"] == "invalid_api_key"
        assert g.http.get("/v1/models", headers=right).status_code == 200
        assert g.http.get("/nowhere", headers=right).status_code == 404
        assert g.http.options("/v1/models").status_code == 204
        assert g.http.post("/v1/completions", json={"prompt": "a"}).status_code == 401
        assert g.http.post("/v1/completions", json={"prompt": "a"},
                           headers=right).status_code == 200
        assert not [x for x in g.log().splitlines() if "s3cret" in x]
        client = openai.OpenAI(base_url=g.url + "/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_not_ready_and_back():
    with Gateway(fake=False) as g:
        r = g.http.get("/health/ready")
        assert r.status_code == 503 and r.headers["retry-after"] and "loading" in r.text
        assert g.http.get("/health").status_code == 503
        assert g.http.get("/health/live").status_code == 200
        assert g.http.post("/v1/completions", json={"prompt": "a"}).status_code == 503
        assert "ready to serve" not in g.log()
        g.start_fake()
        until(lambda: f"API server is ready to serve on 127.0.0.1:{g.port}\n" in g.log())
        g.fake.send_signal(signal.SIGUSR1)
        until(lambda: g.http.get("/health").status_code == 503)
        assert "recovering" in g.http.get("/health_generate").text
        g.fake.send_signal(signal.SIGUSR1)
        until(lambda: g.http.get("/health").status_code == 200)
        assert g.http.get("/health_generate").status_code == 200
        assert g.log().count("ready to serve") == 1


def without_chance(text):
    """An answer without what differs from request to request."""
    return re.sub(r'"(id|created)":("[^"]*"|\d+)', "", text)


BODIES = [
    {"prompt": "x @die=40", "max_tokens": 100},
    {"prompt": "x @die=40", "max_tokens": 100, "stream": True, "return_token_ids": True,
     "stream_options": {"include_usage": True}},
    {"prompt": "x @die=40", "max_tokens": 100, "n": 3, "echo": True, "logprobs": 2, "stream": True},
    {"prompt": ["y @die=40", "z"], "max_tokens": 60, "n": 2, "logprobs": 0},
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_tokenizer_dies(body):
    """The answer is what it would have been. The next tokenizer does not die."""
    with Gateway() as g:
        calm = json.loads(json.dumps(body).replace("@die=40", "@low=40"))
        expected = g.http.post("/v1/completions", json=calm).text.replace("@low", "@die")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(g.http.post, "/v1/completions", json=body)
            g.fake.wait(10 * PATIENCE)
            g.start_fake()
            assert without_chance(answer.result().text) == without_chance(expected)
        assert " replays=1" in g.seen("GENERATE")[0]


def test_replays_are_bounded():
    with Gateway() as g, concurrent.futures.ThreadPoolExecutor(2) as pool:
        whole = pool.submit(g.http.post, "/v1/completions", json={"prompt": "@hang"})
        stream = pool.submit(g.http.post, "/v1/completions",
                             json={"prompt": "a", "stream": True, "max_tokens": 20000})
        for i in range(4):
            until(lambda: len(g.seen("GENERATE")) == 2)
            assert all(f" replays={i}" in line for line in g.seen("GENERATE"))
            time.sleep(0.1)
            g.fake.kill()
            g.fake.wait()
            if i < 3:
                g.start_fake()
        assert whole.result().status_code == 503 and whole.result().headers["retry-after"]
        assert whole.result().json()["error"]["code"] == "replays_exhausted"
        *found, last = events(stream.result().text)
        assert last["error"]["code"] == "replays_exhausted"
        text = "".join(e["choices"][0]["text"] for e in found)
        assert len(text.split()) > 4 and text == "".join(f"t{i} " for i in range(len(text.split())))


def test_kept_requests_are_bounded():
    """Requests are kept until they are over: 512 MiB of them at most."""
    body = json.dumps({"prompt": "@hang" + "x" * (8 * 2**20 - 1024), "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with Gateway() as g:
        clients = []
        for i in range(64):
            clients.append(g.connect())
            clients[-1].sendall(head + body)
            until(lambda: len(g.seen("GENERATE")) == i + 1)
        refused = g.http.post("/v1/completions", content=body, headers=JSON)
        assert refused.status_code == 429 and "more than 536870912 bytes" in refused.text
        for s in clients:
            s.close()
        until(lambda: g.metric("requests_in_flight") == 0)
        small = body.replace(b"@hang", b"@fine")
        assert g.http.post("/v1/completions", content=small, headers=JSON).status_code == 200


def test_recovery_queue():
    with Gateway("--recovery-queue", "2", "--request-timeout", "3") as g:
        g.fake.send_signal(signal.SIGUSR1)
        until(lambda: g.http.get("/health/ready").status_code == 503)
        body = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body), body)
        with g.connect() as first, g.connect() as second, g.connect() as third:
            for s in (first, second):
                s.sendall(request)
            until(lambda: g.metric("requests_in_flight") == 2)
            refused = g.http.post("/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert "limit is 2" in refused.text and "recovering" in refused.text
            assert g.http.get("/health_generate").status_code == 503
            second.close()  # makes room
            until(lambda: g.metric("requests_in_flight") == 1)
            third.sendall(request)
            until(lambda: g.metric("requests_in_flight") == 2)
            assert not g.seen("GENERATE")
            g.fake.send_signal(signal.SIGUSR1)
            for s in (first, third):
                status, _, answer = read_reply(s)
                assert status == 200 and json.loads(answer)["choices"][0]["text"] == "t0 t1 "
        assert len(g.seen("GENERATE")) == 2 and not g.seen("ABORT")
        g.fake.send_signal(signal.SIGUSR1)
        until(lambda: g.http.get("/health/ready").status_code == 503)
        assert g.http.post("/v1/completions", json={"prompt": "late"}).status_code == 408
        g.fake.send_signal(signal.SIGUSR1)
        until(lambda: g.http.get("/health/ready").status_code == 200)
        assert g.http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
        assert len(g.seen("GENERATE")) == 3


def test_slow_reader_pauses():
    """The tokenizer is told of a reader that stops and reads on, never of one that reads."""
    with Gateway() as g:
        fast = g.http.post("/v1/completions", json={"prompt": "a @burst=4", "max_tokens": 4000,
                                                    "stream": True})
        assert len(events(fast.text)) == 4002 and not g.seen("PAUSE")
        body = json.dumps({"prompt": "a @burst=4", "max_tokens": 3000, "stream": True}).encode()
        with g.connect() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                      b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            until(lambda: g.seen("PAUSE"), what="PAUSE")
            assert g.seen("PAUSE")[0].endswith("paused=true")
            time.sleep(0.3)
            assert len(g.seen("PAUSE")) == 1
            g.fake.kill()
            g.fake.wait()
            g.start_fake()  # hears the same again
            until(lambda: g.seen("PAUSE"), what="PAUSE again")
            assert g.seen("PAUSE")[0].endswith("paused=true")
            data = read_all(s)
        assert g.seen("PAUSE")[1].endswith("paused=false")
        assert [int(n) for n in re.findall(rb"(\d+) {990,}", data)] == list(range(3000))
        assert b"[DONE]" in data


def test_queue_bound():
    with Gateway("--max-queued-requests", "4", "--drain-timeout", "0.2", max_running=2) as g:
        post = lambda **body: g.http.post("/v1/completions", json=body, timeout=60)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            running = [pool.submit(post, prompt="@hang", n=2) for _ in range(2)]
            until(lambda: len(g.seen("GENERATE")) == 2)
            r = post(prompt="a", n=3)
            assert r.status_code == 429 and r.headers["retry-after"] and "6" in r.text
            assert r.json()["error"]["type"] == "rate_limit_error"
            assert post(prompt="a", n=2).status_code == 200
            assert post(prompt="a", n=7).status_code == 400
            g.process.send_signal(signal.SIGTERM)
            for r in running:
                assert r.result().status_code == 503


def test_request_timeout():
    with Gateway("--request-timeout", "0.5") as g:
        r = g.http.post("/v1/completions", json={"prompt": "@hang"})
        assert r.status_code == 408 and "--request-timeout" in r.text
        r = g.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1000000,
                                                 "stream": True})
        assert events(r.text)[-1]["error"]["code"] == "timeout"
        until(lambda: len(g.seen("ABORT")) == 2)


def test_end_by_signal():
    with Gateway() as g:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stream = pool.submit(g.http.post, "/v1/completions",
                                 json={"prompt": "a", "max_tokens": 1000000, "stream": True})
            with g.connect() as idle:
                until(lambda: len(g.seen("GENERATE")) == 1)
                time.sleep(0.1)
                start = time.monotonic()
                g.process.send_signal(signal.SIGINT)
                assert g.process.wait(5 * PATIENCE) == 0
                assert time.monotonic() - start < 3 * PATIENCE
                assert read_all(idle) == b""
            assert "shutting down" in stream.result().text


def test_connections_bound():
    with Gateway(files=160) as g: # 96 of them are for connections
        held = [g.connect() for _ in range(96)]
        until(lambda: any(shed(s) for s in [g.connect()]), what="503 over the bound")
        for s in held:
            s.close()
        until(lambda: g.http.get("/health").status_code == 200)


def shed(s):
    s.settimeout(2 * PATIENCE)
    try:
        return s.recv(1000).startswith(b"HTTP/1.1 503 ")
    except TimeoutError:
        return False
    finally:
        s.close()


def test_port_in_use(gw):
    for args in (["--port", str(gw.port)],):
        r = subprocess.run([BIN / "phalanx-gateway", "--tokenizer-endpoint", gw.endpoint, *args],
                           capture_output=True, timeout=20 * PATIENCE)
        assert r.returncode == 1
        assert r.stderr.decode().count("\n") == 1 and str(gw.port) in r.stderr.decode()
    r = subprocess.run([BIN / "phalanx-gateway"], capture_output=True, timeout=20 * PATIENCE)
    assert r.returncode == 1 and b"--tokenizer-endpoint" in r.stderr


def test_served_name():
    with Gateway("--served-model-name", "org/name") as g:
        assert g.http.get("/v1/models/org/name").status_code == 200
        assert g.http.get("/v1/models/org%2Fname").status_code == 200
        assert g.http.get("/v1/models/name").status_code == 404
