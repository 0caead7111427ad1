"""phalanx-worker alone: options, bad models and signals, without a scheduler."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(os.environ.get("PHALANX_BIN", REPO / "build/release/bin")) / "phalanx-worker"
CHECKPOINT = REPO / "tests/golden/checkpoints/llama-mha"


def start(tmp_path, *args):
    return subprocess.Popen(
        [str(WORKER), f"--worker-endpoint=ipc://{tmp_path}/s", *map(str, args)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process, seconds=30):
    try:
        return process.wait(seconds), process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("args, line", [
    (["--model-path", CHECKPOINT, "--rank", 2, "--tp", 2], "--rank 2, --tp-size is 2"),
    (["--device", "cpu"], "--model-path is missing"),
    (["--worker-endpoint=", "--device", "null"], "--worker-endpoint is missing"),
])
def test_options_that_can_not_be(tmp_path, args, line):
    status, text = finish(start(tmp_path, *args))
    assert status == 2
    assert line in text and len(text.splitlines()) == 1


def test_a_truncated_file_ends_the_rank(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    status, text = finish(start(tmp_path, "--model-path", model, "--device", "cpu"))
    assert status == 1
    assert "rank=0" in text and "model.safetensors: truncated" in text
    assert len(text.splitlines()) == 1


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_no_such_device(tmp_path):
    """Without a GPU --device cuda ends in one line, whether the backend was built or not."""
    status, text = finish(start(tmp_path, "--model-path", CHECKPOINT, "--device", "cuda"))
    assert status == 1
    assert "no libphalanx-cuda.so" in text or "cuda: no GPU can be used" in text
    assert len(text.splitlines()) == 1


def scheduler(tmp_path, *args):
    return subprocess.Popen(
        [str(WORKER.with_name("phalanx-scheduler")), "--tp", "2",
         f"--worker-endpoint=ipc://{tmp_path}/s",
         f"--scheduler-endpoint=ipc://{tmp_path}/t", *args],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_rank_that_waits_for_the_others(tmp_path, number):
    """Rank 1 never comes: rank 0 has ten minutes to go, and the scheduler says whom it waits for."""
    there = scheduler(tmp_path)
    process = start(tmp_path, "--model-path", CHECKPOINT, "--device", "cpu", "--tp", 2)
    try:
        line = ""
        while "waiting_for_rank" not in line:
            line = there.stderr.readline()
            assert line and process.poll() is None
        assert 'waiting_for_rank="1"' in line
        process.send_signal(number)
        status, text = finish(process)
        assert status == 0, text
    finally:
        there.kill()
        there.wait()


@pytest.mark.parametrize("args, env", [(["--dist-timeout", "1"], {}), ([], {"NCCL_TIMEOUT": "1"})])
def test_ranks_that_do_not_come_in_time(tmp_path, monkeypatch, args, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    there = scheduler(tmp_path, *args)
    process = start(tmp_path, "--model-path", CHECKPOINT, "--device", "cpu", "--tp", 2, "--rank", 1)
    try:
        line = ""
        while "ranks have waited 1 s (--dist-timeout) to meet rank 0" not in line:
            line = there.stderr.readline()
            assert line
        status, text = finish(process)
        assert status == 1 and "its rank group is over" in text
    finally:
        for p in (there, process):
            p.kill()
            p.wait()


def test_a_signal_ends_a_rank_that_waits_for_a_scheduler(tmp_path):
    process = start(tmp_path, "--model-path", CHECKPOINT, "--device", "cpu")
    lines = [process.stderr.readline() for _ in range(2)]
    assert lines[0].startswith("Loading weights: ")
    assert lines[1].startswith("Rank 0: loaded in ")
    process.terminate()
    status, text = finish(process)
    assert status == 0 and text == ""
