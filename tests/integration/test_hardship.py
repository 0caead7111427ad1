"""Short versions of tests/bench/hard.py, and what must not depend on the wall clock."""

import json
import os
import re
import subprocess
import sys

import pytest

from conftest import BIN, PATIENCE, REPO
from test_scale import STREAMS

LONG = bool(os.environ.get("PHALANX_LONG_TESTS"))


def hard(case, *args):
    done = subprocess.run(
        [sys.executable, REPO / "tests/bench/hard.py", case, "--bin", BIN, "--tests", STREAMS.parent,
         *map(str, args), "--", "--heartbeat-timeout", str(3 * PATIENCE)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=240 * PATIENCE)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == [] and done.returncode == 0, result
    return result


def test_disconnect_at_a_random_byte():
    # A sanitizer keeps freed memory.
    result = hard("disconnect", "--count", 2000, "--grow-mib", 8 if PATIENCE == 1 else 200)
    assert sum(result["ends"].values()) == 2000
    assert min(result["ends"][where] for where in ("head", "request", "answer")) > 200
    assert result["client_disconnects"] > 100


def test_slowloris():
    result = hard("slowloris", "--count", 999)
    assert result["ends"] == {"head: 408": 333, "body: 408": 333, "silent: no word": 333}
    assert result["open_at_once"] >= 999 and result["good"]["ends"]["ok"] > 0


def test_no_descriptors():
    result = hard("files")
    assert result["limit 64"]["ends"]["200"] <= 16 and result["none left"]["ends"]["200"] <= 5


def test_nobody_takes_the_log():
    result = hard("log")
    if isinstance(result["disk full"], str):
        pytest.skip(f"disk full: {result['disk full']}")


@pytest.mark.parametrize("seconds", [8, 20, 60] if LONG else [8])
def test_stopped_processes(seconds):
    result = hard("stop", "--seconds", seconds * PATIENCE)
    assert all(result[name]["replaced"] for name in ("scheduler-0", "worker-1"))


def test_wall_clock_measures_nothing():
    """It can be set; so only clock.c reads it, and of those who ask there nobody waits by it."""
    asks = re.compile(r"CLOCK_REALTIME|gettimeofday|pthread_(?:cond|mutex)_timed|sem_timedwait"
                      r"|pthread_timedjoin|clock_wall_us")
    found = {str(path.relative_to(REPO)) for folder in ("common", "proto", "services", "kernels")
             for path in (REPO / folder).rglob("*.[ch]") if asks.search(path.read_text())}
    assert found == {"common/clock.c", "common/clock.h",
                     "common/log.c",               # time in a line
                     "common/metrics.c",           # when a process began
                     "services/gateway/call.c",    # "created"
                     "services/gateway/gateway.c", # "created", a random seed
                     "services/launcher/nodes.c"}  # a node's number
