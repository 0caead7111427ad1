"""Whole models on the CPU against transformers' answers (make_goldens.py), through model_cli: any
number of ranks, any company in the batch, any cut of the prompts, and models that are wrong."""

import json
import os
import pathlib
import shutil
import struct
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
CLI = pathlib.Path(os.environ.get("PHALANX_TESTS_BIN", REPO / "build/release/tests")) / "model_cli"
CHECKPOINTS = sorted(p.parent for p in (HERE / "checkpoints").glob("*/golden.json"))
STORIES = REPO.parent / "shared/data/models/stories260K"
SLOW = os.environ.get("PHALANX_VARIANT", "release") != "release"

# How prompts meet: one after the other, all at once, all at once in chunks that fit no page and no
# prompt, one joining every few steps. Each must give the same.
WAYS = [("alone", 1024), ("together", 1024), ("together", 7), ("staggered", 16)]


def cli(tmp_path, model, prompts, tp=1, new=64, chunk=1024, mode="together", dtype=None):
    store = tmp_path / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(prompts))
    args = [CLI, model, file, tp, new, chunk, mode, store] + ([dtype] if dtype else [])
    return subprocess.run(list(map(str, args)), capture_output=True, text=True, timeout=300)


def answers(*args, **kwargs):
    done = cli(*args, **kwargs)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def difference(got, want):
    return max(abs(a - b) for a, b in zip(got, want, strict=True)) / max(map(abs, want))


def golden_logits(folder, golden):
    vocab = golden["vocab_size"]
    raw = (folder / "golden_logits.f32").read_bytes()
    return [struct.unpack_from(f"<{vocab}f", raw, i * vocab * 4)
            for i in range(len(golden["prompts"]))]


def test_there_are_checkpoints():
    assert len(CHECKPOINTS) >= 10


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda p: p.name)
def test_tokens_and_logits_equal_transformers(tmp_path, folder, tp):
    golden = json.loads((folder / "golden.json").read_text())
    prompts = [p["ids"] for p in golden["prompts"]]
    want = golden_logits(folder, golden)
    first = None
    # Four ranks take long on few cores: one checkpoint goes all the ways there.
    ways = WAYS[1:3] if SLOW or (tp == 4 and "mqa" not in folder.name) else WAYS
    for mode, chunk in ways:
        got = answers(tmp_path, folder, prompts, tp=tp, chunk=chunk, mode=mode)
        assert got["tokens"] == [p["greedy"] for p in golden["prompts"]], (mode, chunk)
        for a, b in zip(got["logits"], want, strict=True):
            assert difference(a, b) < 1e-4, (mode, chunk)
        first = first or got["logits"]
        assert got["logits"] == first, "logits depend on the company or the chunks"


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda p: p.name)
def test_ranks_read_their_shards_only(tmp_path, folder):
    whole = answers(tmp_path, folder, [[1]], new=1)["bytes_read"]
    for tp in (2, 4):
        part = answers(tmp_path, folder, [[1]], tp=tp, new=1)["bytes_read"]
        # Norms are on every rank; so are KV heads where they are fewer than ranks.
        assert whole / tp <= part * 1.05 and part < whole / tp * 1.35


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_stories(tmp_path, tp):
    if not STORIES.exists():
        pytest.skip("stories260K is not here")
    golden = json.loads((HERE / "stories260K.json").read_text())
    prompts = [p["ids"] for p in golden["prompts"]]
    got = answers(tmp_path, STORIES, prompts, tp=tp, new=len(golden["prompts"][0]["greedy"]))
    assert got["tokens"] == [p["greedy"] for p in golden["prompts"]]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_demo(tmp_path, tp):
    golden = json.loads((HERE / "demo.json").read_text())
    prompts = [p["ids"] for p in golden["prompts"]]
    got = answers(tmp_path, REPO / "deploy/demo-model", prompts, tp=tp,
                  new=len(golden["prompts"][0]["greedy"]))
    assert got["tokens"] == [p["greedy"] for p in golden["prompts"]]


def test_dtype(tmp_path):
    """Weights in 16 bits are near; a backend may hold float16 in a wider type."""
    folder = HERE / "checkpoints/llama-mha"
    full = answers(tmp_path, folder, [[1, 2, 3]], new=1)["logits"][0]
    bf16 = answers(tmp_path, folder, [[1, 2, 3]], new=1, dtype="bfloat16")["logits"][0]
    f16 = answers(tmp_path, folder, [[1, 2, 3]], new=1, dtype="float16")["logits"][0]
    assert 0 < difference(bf16, full) < 5e-2
    assert difference(f16, full) < 5e-3


def test_dummy_weights_are_one_model_on_any_ranks(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(HERE / "checkpoints/qwen3/config.json", folder)
    one = answers(tmp_path, folder, [[1, 2, 3], [7]], new=1, dtype="dummy")
    assert one["bytes_read"] == 0
    for tp in (2, 4):
        got = answers(tmp_path, folder, [[1, 2, 3], [7]], tp=tp, new=1, dtype="dummy")
        for a, b in zip(got["logits"], one["logits"], strict=True):
            assert difference(a, b) < 1e-4
    assert difference(one["logits"][0], one["logits"][1]) > 1e-2


def test_sizes_that_do_not_divide(tmp_path):
    """5 ids and an intermediate size of 5 on 4 ranks: the last holds no id and nothing of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(HERE / "checkpoints/qwen3/config.json", folder)
    config_change(folder, vocab_size=5, intermediate_size=5, bos_token_id=0, eos_token_id=1)
    one = answers(tmp_path, folder, [[1, 2, 3], [4]], new=8, dtype="dummy")
    for tp in (2, 4):
        got = answers(tmp_path, folder, [[1, 2, 3], [4]], tp=tp, new=8, dtype="dummy")
        assert got["tokens"] == one["tokens"]
        for a, b in zip(got["logits"], one["logits"], strict=True):
            assert difference(a, b) < 1e-4


# ---- models that are wrong ------------------------------------------------------------------


def header_read(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def header_write(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def config_change(folder, **change):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def tensor_rename(folder):
    header, data = header_read(folder / "model.safetensors")
    header["stranger"] = header.pop("model.layers.1.mlp.up_proj.weight")
    header_write(folder / "model.safetensors", header, data)


def tensor_reshape(folder):
    header, data = header_read(folder / "model.safetensors")
    tensor = header["model.layers.0.self_attn.k_proj.weight"]
    tensor["shape"] = tensor["shape"][::-1] if len(set(tensor["shape"])) > 1 else [1, 4096]
    header_write(folder / "model.safetensors", header, data)


def tensor_retype(folder):
    header, data = header_read(folder / "model.safetensors")
    header["model.norm.weight"]["dtype"] = "I32"
    header_write(folder / "model.safetensors", header, data)


def weights_remove(folder):
    (folder / "model.safetensors").unlink()


WRONG = {
    "truncated": (truncate, 1, "model.safetensors: truncated"),
    "no weights": (weights_remove, 1, "neither model.safetensors nor model.safetensors.index.json"),
    "missing tensor": (tensor_rename, 1,
                       "model.safetensors: no tensor model.layers.1.mlp.up_proj.weight"),
    "bad shape": (tensor_reshape, 1, "tensor model.layers.0.self_attn.k_proj.weight: shape ("),
    "bad type": (tensor_retype, 1, "tensor model.norm.weight: type I32 is not supported"),
    "unknown architecture": (lambda f: config_change(f, architectures=["GPT2LMHeadModel"]), 1,
                             "config.json: architecture GPT2LMHeadModel is not supported (Llama"),
    "no config": (lambda f: (f / "config.json").unlink(), 1, "config.json: No such file"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), 1,
                          "config.json: invalid JSON"),
    "quantized": (lambda f: config_change(f, quantization_config={"quant_method": "awq"}), 1,
                  "config.json: quantization_config"),
    "rope": (lambda f: config_change(f, rope_scaling={"rope_type": "longrope"}), 1,
             'rope_type "longrope" is not supported'),
    "other size": (lambda f: config_change(f, vocab_size=300), 1,
                   "tensor model.embed_tokens.weight: shape (271, 64), config.json makes it"),
    "tp": (lambda f: None, 3, "--tp-size 3 does not divide the model's 4 attention heads"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_model_is_one_line(tmp_path, case):
    spoil, tp, line = WRONG[case]
    folder = tmp_path / "model"
    shutil.copytree(HERE / "checkpoints/llama-mha", folder)
    spoil(folder)
    done = cli(tmp_path, folder, [[1]], tp=tp, new=1)
    assert done.returncode == 1
    assert line in done.stderr
    assert all(text.startswith("model_cli: ") for text in done.stderr.splitlines())
    assert len(set(done.stderr.splitlines())) == 1


def test_an_index_stays_in_its_folder(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(HERE / "checkpoints/llama-yarn-split", folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../model/" + index["weight_map"][name]
    file.write_text(json.dumps(index))
    done = cli(tmp_path, folder, [[1]], new=1)
    assert done.returncode == 1
    assert "outside of the folder: ../model/" in done.stderr
