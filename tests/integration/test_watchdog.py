"""What a stall leaves in the log: the scheduler's last steps, and what a rank's engine is at."""

import concurrent.futures
import os
import re
import signal

from conftest import Server
from test_http import until
from test_scale import named, settled

ASK = {"prompt": [1, 2, 3], "max_tokens": 2, "seed": 5}


def test_asked_while_a_step_takes_long():
    with Server(tp=1, args=["--device", "null", "--null-step-us", 10000000]) as s, \
            concurrent.futures.ThreadPoolExecutor(1) as pool:
        settled(s)
        asked = pool.submit(s.post, "/v1/completions", {**ASK, "max_tokens": 1})
        until(lambda: s.metric("num_requests_running") == 1)
        os.kill(named(s)["scheduler-0"], signal.SIGUSR1)
        until(lambda: "asked by SIGUSR1: the last" in s.log())
        assert re.search(r"WARN scheduler-0 epoch=1 step=\d+ rows=1 prefill_tokens=3 "
                         r"sent_s_ago=\S+ last_answer_ms=- missing=0\n", s.log())
        until(lambda: '"the engine has not answered; it is ' in s.log(), 30)
        assert re.search(r"WARN worker-0 rank=0 unanswered=\d last_step=\d+ for_s=", s.log())
        assert asked.result()[0] == 200


def test_step_past_its_deadline():
    args = ["--device", "null", "--step-timeout", 2, "--heartbeat-timeout", 60]
    with Server(tp=2, args=args) as s, concurrent.futures.ThreadPoolExecutor(1) as pool:
        settled(s)
        text = s.post("/v1/completions", ASK)[1]["choices"][0]["text"]
        assert "missing=" not in s.log()
        os.kill(named(s)["worker-1"], signal.SIGSTOP)
        asked = pool.submit(s.post, "/v1/completions", ASK)
        until(lambda: "missing=1\n" in s.log(), 30)
        assert re.search(r"step \d+ is without a result after .*; missing of rank 1: the last \d+ "
                         r"steps", s.log())
        status, body = asked.result()
        assert (status, body["choices"][0]["text"]) == (200, text)
        assert s.log().count(": the last ") == 1
