"""Throughput of the tokenizer next to the `tokenizers` package: one core, one run, same text.

    PHALANX_TESTS_BIN=build/release/tests python3 tests/bench/bench_tokenizer.py [FOLDER [TEXT]]

Prints MB of text a second (best of several rounds, alternating), load time and memory.
"""

import os
import random
import struct
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))

from tokenizer_reference import DATA, Cli, pack  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

ROUNDS = 5


def sample(path):
    if path:
        with open(path, encoding="utf-8") as f:
            return f.read()
    r = random.Random(1)
    text = []
    for name in sorted(os.listdir(os.path.join(DATA, "corpora"))):
        if name.endswith(".txt"):
            with open(os.path.join(DATA, "corpora", name), encoding="utf-8") as f:
                text.append(f.read())
    if not text:
        words = ["".join(r.choice("etaoinshrdlu") for _ in range(r.randint(1, 9))) for _ in range(5000)]
        text.append(" ".join(r.choice(words) for _ in range(200000)))
    return "\n".join(text)[: 1 << 20]


def mixed(text):
    """The text with other scripts, code and emoji in it."""
    r = random.Random(2)
    other = ["你好，世界！", "привет, как дела? ", "こんにちは ", "if (x->y != 0) {\n    return -1;\n}\n",
             "😀👍🏽 ", "café naïve ", "2024-01-02 ", "안녕하세요 ", "नमस्ते दुनिया "]  # fmt: skip
    return "".join(line + r.choice(other) for line in text.splitlines(True))


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def compare(folder, name, text):
    reference = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    cli = Cli(folder)
    size = len(text.encode())
    ids = reference.encode(text, add_special_tokens=False).ids
    assert cli.encode(text) == ids, "the ids differ"
    best = {"encode": [9e9, 9e9], "decode": [9e9, 9e9]}
    for _ in range(ROUNDS):
        for kind, op, payload, theirs in (
            ("encode", "e", text.encode(), lambda: reference.encode(text, add_special_tokens=False)),
            ("decode", "d", pack(ids), lambda: reference.decode(ids)),
        ):
            ours = struct.unpack("<QQ", cli.ask(op, 1, payload))[0] / 1e6
            best[kind] = [min(best[kind][0], ours), min(best[kind][1], seconds(theirs))]
    for kind, (ours, theirs) in best.items():
        print(
            f"{name:22} {kind}: {size / ours / 1e6:8.1f} MB/s, tokenizers {size / theirs / 1e6:6.1f}"
            f" MB/s, {theirs / ours:5.1f} times"
        )
    load, resident, peak = struct.unpack("<QQQ", cli.ask("I"))
    print(f"{name:22} load {load / 1000:.0f} ms, resident {resident / 1024:.0f} MiB, peak "
          f"{peak / 1024:.0f} MiB")  # fmt: skip
    cli.close()


def load_only(folder):
    cli = Cli(folder)
    load, resident, peak = struct.unpack("<QQQ", cli.ask("I"))
    print(f"{'after load alone':22} load {load / 1000:.0f} ms, resident {resident / 1024:.0f} MiB, "
          f"peak {peak / 1024:.0f} MiB")  # fmt: skip
    cli.close()


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(DATA, "tokenizers", "qwen3")
    text = sample(sys.argv[2] if len(sys.argv) > 2 else None)
    load_only(folder)
    compare(folder, "plain text", text)
    compare(folder, "mixed scripts", mixed(text))


if __name__ == "__main__":
    main()
