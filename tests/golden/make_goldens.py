#!/usr/bin/env python3
"""Makes the checkpoints and expected outputs in this folder with transformers (needs PyTorch).

    python3 make_goldens.py checkpoints OUT_DIR         random tiny models, one folder each
    python3 make_goldens.py demo MODEL_DIR OUT.json     the demo model answering chat prompts
    python3 make_goldens.py stories MODEL_DIR OUT.json  stories260K telling its stories

A checkpoint folder holds golden.json: for each prompt its ids and the 64 ids that follow greedily
(end ids do not stop it), and golden_logits.f32: for each prompt the logits of the first new token
as raw little-endian float32, one row a prompt. Everything is computed in float32, whatever the
weights are stored as.

A margin is (best logit - second best) / largest absolute logit. Prompts are drawn until the
smallest margin of all 64 steps is clear of rounding, so that exact equality is a fair demand.
"""

import json
import pathlib
import random
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 64
PROMPT_LENGTHS = (1, 5, 17, 40, 100)
MARGIN = 2e-3
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("e", "r"), ("o", "u"), ("Ġ", "the")]
SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|eot|>"]
BOS, EOS, EOT = (256 + len(MERGES) + i for i in range(3))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

BASE = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "use_cache": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
LLAMA = BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN2 = BASE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = BASE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
MISTRAL = BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# config: what config.json says, but for rope and dtype. layout: "old" writes rope_theta,
# rope_scaling and torch_dtype, "new" writes rope_parameters and dtype; both are in the wild.
# without: a change to the config under which every prompt of 17 ids and more must answer
# differently, so that a server which ignores the feature can not pass.
# zeroed: likewise, for tensors whose name contains it.
CHECKPOINTS = {
    "llama-mha": {
        "config": {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
        | {"vocab_size": 271, "tie_word_embeddings": False, "num_hidden_layers": 2},
        "layout": "old",
        "stray": True,
        "without": {"rope_theta": 100.0},
    },
    "llama-gqa-llama3": {
        "config": LLAMA
        | {"vocab_size": 331, "tie_word_embeddings": True, "num_attention_heads": 8, "head_dim": 8},
        "layout": "new",
        "theta": 500000.0,
        "rope": LLAMA3_ROPE,
        "eos": [EOS, EOT],
        "without": {"rope": DEFAULT_ROPE | {"rope_theta": 500000.0}},
    },
    "llama-mqa-linear": {
        "config": LLAMA
        | {"vocab_size": 331, "tie_word_embeddings": True, "num_key_value_heads": 1},
        "layout": "old",
        "rope": {"type": "linear", "factor": 2.0},
        "without": {"rope": DEFAULT_ROPE},
    },
    "llama-yarn-split": {
        "config": LLAMA
        | {"vocab_size": 271, "tie_word_embeddings": False, "num_hidden_layers": 3,
           "intermediate_size": 32},
        "layout": "new",
        "rope": YARN_ROPE,
        "files": 3,
        "without": {"rope": DEFAULT_ROPE},
    },
    "qwen2": {
        "config": QWEN2
        | {"vocab_size": 331, "tie_word_embeddings": True, "use_sliding_window": False,
           "sliding_window": 16, "max_window_layers": 1, "rms_norm_eps": 1e-06},
        "layout": "old",
        "theta": 1000000.0,
        "zeroed": "_proj.bias",
        "without": {"use_sliding_window": True, "max_window_layers": 0},
    },
    "qwen3": {
        "config": QWEN3
        | {"vocab_size": 331, "tie_word_embeddings": True, "head_dim": 32,
           "num_key_value_heads": 1, "attention_bias": False, "rms_norm_eps": 1e-06},
        "layout": "old",
        "theta": 1000000.0,
        "zeroed": "k_norm",
        "without": {"rope_theta": 100.0},
    },
    "qwen3-yarn": {
        "config": QWEN3
        | {"vocab_size": 331, "tie_word_embeddings": True, "head_dim": 16,
           "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-06},
        "layout": "old",
        "theta": 1000000.0,
        "rope": YARN_ROPE | {"original_max_position_embeddings": 32, "factor": 8.0},
        "without": {"rope": DEFAULT_ROPE | {"rope_theta": 1000000.0}},
    },
    "qwen3-bf16": {
        "config": QWEN3
        | {"vocab_size": 271, "tie_word_embeddings": False, "head_dim": 32,
           "rms_norm_eps": 1e-06},
        "layout": "new",
        "theta": 1000000.0,
        "dtype": "bfloat16",
        "zeroed": "q_norm",
        "without": {"rms_norm_eps": 0.1},
    },
    "mistral-window": {
        "config": MISTRAL
        | {"vocab_size": 331, "tie_word_embeddings": True, "sliding_window": 16, "head_dim": 16},
        "layout": "old",
        "without": {"sliding_window": None},
    },
    "mistral-f16": {
        "config": MISTRAL
        | {"vocab_size": 271, "tie_word_embeddings": False, "sliding_window": None,
           "head_dim": 16},
        "layout": "new",
        "theta": 1000000.0,
        "dtype": "float16",
        "without": {"sliding_window": 16},
    },
}


def json_write(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def config_make(spec, layout):
    theta = spec.get("theta", 10000.0)
    rope = spec.get("rope")
    dtype = spec.get("dtype", "float32")
    config = dict(spec["config"])
    if layout == "old":
        return config | {"rope_theta": theta, "rope_scaling": rope, "torch_dtype": dtype}
    rope = dict(rope or {"rope_type": "default"})
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    return config | {"rope_parameters": {"rope_theta": theta} | rope, "dtype": dtype}


# ---- checkpoint files ----------------------------------------------------------------------


def weights_make(spec, seed):
    """Random weights of a scale at which attention is sharp and no token feeds on itself."""
    config = AutoConfig.for_model(**config_make(spec, "new"))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, p in AutoModelForCausalLM.from_config(config).state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.3 * noise
        elif name.endswith("bias"):
            weights[name] = 0.5 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            weights[name] = 0.3 * noise
        elif "q_proj" in name or "k_proj" in name:
            weights[name] = 0.15 * noise
        else:
            weights[name] = 0.25 * noise
    dtype = getattr(torch, spec.get("dtype", "float32"))
    return {name: p.to(dtype).contiguous() for name, p in weights.items()}


def weights_write(folder, weights, files):
    if files == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    parts = [dict() for _ in range(files)]
    for i, name in enumerate(sorted(weights)):
        parts[i * files // len(weights)][name] = weights[name]
    index = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= {name: file for name in part}
    size = sum(p.numel() * p.element_size() for p in weights.values())
    json_write(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )


def tokenizer_write(folder):
    """256 bytes, a few merges and three special tokens: enough to be served whole."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(letters + [a + b for a, b in MERGES])}
    tokenizer = Tokenizer(models.BPE(vocab, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    assert tokenizer.token_to_id("<|eot|>") == EOT
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    json_write(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": BASE["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def checkpoint_write(folder, spec, seed):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    json_write(folder / "config.json", config_make(spec, spec["layout"]))
    json_write(
        folder / "generation_config.json",
        {"bos_token_id": BOS, "eos_token_id": spec.get("eos", EOS), "do_sample": False},
    )
    tokenizer_write(folder)
    weights = weights_make(spec, seed)
    if spec.get("stray"):
        # Checkpoints of the first Llamas carry these; they are not parameters.
        for i in range(spec["config"]["num_hidden_layers"]):
            name = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
            weights[name] = torch.full((8,), float("nan"))
    weights_write(folder, weights, spec.get("files", 1))
    for file in folder.iterdir():
        file.chmod(0o644)


# ---- answers -------------------------------------------------------------------------------


def model_load(folder, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


def margin_of(logits):
    best, second = logits.topk(2).values.tolist()
    return (best - second) / logits.abs().max().item()


@torch.no_grad()
def greedy(model, prompt, count, margin_least=0.0):
    """The ids that follow, the first logits and the smallest margin; None if one is too small.

    Runs the whole sequence anew for each token, so that no cache is part of the reference."""
    ids, first, margin = list(prompt), None, 1.0
    for _ in range(count):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        first = logits if first is None else first
        margin = min(margin, margin_of(logits))
        if margin < margin_least:
            return None
        ids.append(logits.argmax().item())
    return ids[len(prompt) :], first, margin


def prompt_find(model, length, vocab, rng):
    """Draws prompts until one has clear margins all the way and an answer that is not a loop."""
    for _ in range(2000):
        prompt = [rng.randrange(vocab) for _ in range(length)]
        answer = greedy(model, prompt, NEW_TOKENS, MARGIN)
        if answer and len(set(answer[0])) >= 16 and len(set(answer[0][-24:])) >= 6:
            return prompt, answer
    raise SystemExit(f"no prompt of {length} ids found")


def folder_variant(folder, config, keep=lambda name: True):
    """A temporary copy of a checkpoint with another config; tensors not kept become zeros."""
    copy = pathlib.Path(tempfile.mkdtemp())
    json_write(copy / "config.json", config)
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    weights = {k: v if keep(k) else torch.zeros_like(v) for k, v in weights.items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def layouts_check(folder, spec, prompts):
    """Both ways to write the config must mean the same."""
    a = model_load(folder)
    other = "new" if spec["layout"] == "old" else "old"
    copy = folder_variant(folder, config_make(spec, other))
    b = model_load(copy)
    for prompt in prompts:
        with torch.no_grad():
            ids = torch.tensor([prompt])
            assert torch.equal(a(ids).logits, b(ids).logits), "the two layouts differ"
    shutil.rmtree(copy)


def features_check(folder, spec, prompts):
    """A reader that ignores what this checkpoint is about must get other answers."""
    config = config_make(spec, "new")
    change = dict(spec["without"])
    if "rope" in change:
        config["rope_parameters"] = change.pop("rope")
    if "rope_theta" in change:
        config["rope_parameters"]["rope_theta"] = change.pop("rope_theta")
    variants = [folder_variant(folder, config | change)]
    if "zeroed" in spec:
        config = config_make(spec, "new")
        variants.append(folder_variant(folder, config, lambda name: spec["zeroed"] not in name))
    for copy in variants:
        model = model_load(copy)
        for prompt in prompts:
            if len(prompt["ids"]) >= 17:
                ids = greedy(model, prompt["ids"], NEW_TOKENS)[0]
                assert ids != prompt["greedy"], f"{folder.name}: {change} changes nothing"
        shutil.rmtree(copy)


def checkpoint_golden(folder, spec, seed):
    rng = random.Random(seed)
    model = model_load(folder)
    vocab = spec["config"]["vocab_size"]
    prompts, logits = [], []
    for length in PROMPT_LENGTHS:
        ids, (answer, first, margin) = prompt_find(model, length, vocab, rng)
        prompts.append({"ids": ids, "greedy": answer, "margin": round(margin, 6)})
        logits.append(first)
    logits = torch.stack(logits)

    # float32's own error, seen from float64: the tokens must not depend on it.
    exact, worst = model_load(folder, torch.float64), 0.0
    for prompt, row in zip(prompts, logits):
        answer, first, _ = greedy(exact, prompt["ids"], NEW_TOKENS)
        assert answer == prompt["greedy"], f"{folder.name}: float64 disagrees"
        worst = max(worst, ((first - row).abs().max() / row.abs().max()).item())
    layouts_check(folder, spec, [prompt["ids"] for prompt in prompts])
    features_check(folder, spec, prompts)

    (folder / "golden_logits.f32").write_bytes(logits.numpy().astype("<f4").tobytes())
    head = {"transformers": transformers.__version__, "vocab_size": vocab}
    lines = ",\n".join("    " + json.dumps(prompt) for prompt in prompts)
    (folder / "golden.json").write_text(
        json.dumps(head, indent=2)[:-2] + f',\n  "prompts": [\n{lines}\n  ]\n}}\n'
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    least = min(prompt["margin"] for prompt in prompts)
    distinct = min(len(set(prompt["greedy"])) for prompt in prompts)
    print(
        f"{folder.name}: {size // 1024} KiB, least margin {least}, at least {distinct} different"
        f" ids in an answer, float64 differs by {worst:.1e}",
        flush=True,
    )


def checkpoints_make(out):
    for seed, (name, spec) in enumerate(CHECKPOINTS.items(), 1):
        checkpoint_write(out / name, spec, seed)
        checkpoint_golden(out / name, spec, seed)


# ---- trained models ------------------------------------------------------------------------

DEMO_CHATS = [
    [("user", "Hello, who are you?")],
    [("user", "What news from the city?")],
    [("system", "You are Romeo."), ("user", "Where is Juliet?")],
    [("system", "You are King Richard II."), ("user", "The king is dead.")],
    [("system", "You are Juliet."), ("user", "Good morrow!"),
     ("assistant", "Good morrow, sir."), ("user", "Do you love me?")],
    [("user", "Naïve café, 東京, 🙂?")],
    [("system", "Speak as Petruchio."), ("user", "Will you marry Katharina?")],
    [("user", "Now is the winter of our discontent\nMade glorious summer by this sun of York.")],
    [("system", "You are Gloucester."), ("user", "what is thy name?")],
    [("user", "The people cry for bread."), ("assistant", "Let them cry."),
     ("user", "They will burn the city.")],
]


def answers_write(out, answers):
    head = json.dumps({"transformers": transformers.__version__}, indent=2)[:-2]
    lines = ",\n".join("    " + json.dumps(answer, ensure_ascii=False) for answer in answers)
    out.write_text(head + f',\n  "prompts": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def demo_make(folder, out):
    """48 ids for each chat, going on past the end ids; text is what comes before the first."""
    model, tokenizer = model_load(folder), AutoTokenizer.from_pretrained(folder)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    answers = []
    for chat in DEMO_CHATS:
        messages = [{"role": role, "content": words} for role, words in chat]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        answer = greedy(model, prompt, 48, 1e-3)
        if not answer:
            print(f"left out, margin too small: {chat}")
            continue
        ids, _, margin = answer
        stop = next((i for i, id in enumerate(ids) if id in ends), None)
        text = tokenizer.decode(ids[:stop])
        answers.append(
            {"messages": messages, "ids": prompt, "greedy": ids, "stop": stop, "text": text,
             "margin": round(margin, 6)}
        )
        print(f"margin {margin:.5f} stop {stop} {text!r}")
    answers_write(out, answers)


def stories_make(folder, out):
    model, tokenizer = model_load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = []
    for text in ("", "Tom and his dog", "The little bird was sad because"):
        # The beginning is always the BOS id, then the text's ids.
        prompt = [1] + tokenizer.encode(text, add_special_tokens=False).ids if text else [1]
        ids, _, margin = greedy(model, prompt, 200)
        whole = tokenizer.decode(prompt + ids)
        answers.append(
            {"prompt": text, "ids": prompt, "greedy": ids, "text": whole,
             "margin": round(margin, 6)}
        )
        print(f"margin {margin:.5f} {whole[:120]!r}")
    answers_write(out, answers)


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    paths = [pathlib.Path(path) for path in sys.argv[2:]]
    jobs = {
        ("checkpoints", 1): checkpoints_make,
        ("demo", 2): demo_make,
        ("stories", 2): stories_make,
    }
    job = jobs.get((sys.argv[1] if paths else "", len(paths)))
    if job is None:
        raise SystemExit(__doc__)
    job(*paths)


if __name__ == "__main__":
    main()
