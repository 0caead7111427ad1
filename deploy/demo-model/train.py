#!/usr/bin/env python3
"""Trains the demo model: a small Qwen3-architecture chat model that answers like a character.

    python3 train.py CORPUS.txt OUT_DIR

CORPUS.txt is the "tiny Shakespeare" text: speeches, each a "NAME:" line and the words under it,
with blank lines between them. A conversation is a stretch of one scene: the user speaks one speech, the
assistant the next. OUT_DIR becomes a complete model folder in the Hugging Face layout.

Needs torch, tokenizers and safetensors; a GPU makes it a matter of a minute.
"""

import argparse
import json
import math
import pathlib
import random
import re
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from torch import nn

CONTEXT = 1024
VOCAB_SIZE = 2048
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# ---- the corpus as scenes ------------------------------------------------------------------


def speeches_read(text):
    """All speeches in order, as (name, words)."""
    speeches = []
    for block in text.split("\n\n"):
        match = re.match(r"([A-Z][^\n:]{0,40}):\n(.+)", block.strip(), re.S)
        if match:
            speeches.append((match[1].title().replace("'S", "'s"), match[2].strip()))
    return speeches


def scenes_cut(speeches, window=8):
    """The text has no scene marks: cut where nobody who just spoke speaks again soon."""
    scenes, start = [], 0
    for i in range(1, len(speeches) + 1):
        before = {name for name, _ in speeches[max(start, i - window) : i]}
        after = {name for name, _ in speeches[i : i + window]}
        if i == len(speeches) or not before & after:
            if i - start >= 2:
                scenes.append(speeches[start:i])
            start = i
    return scenes


# ---- tokenizer -----------------------------------------------------------------------------


def tokenizer_train(speeches):
    """Learns from the words alone: the names' capitals in the corpus would fill the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{name}.\n{words}" for name, words in speeches), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


# ---- conversations -------------------------------------------------------------------------


class Conversations:
    """Draws random conversations from scenes, as token ids in the chat format."""

    def __init__(self, scenes, tokenizer, seed):
        self.rng = random.Random(seed)
        self.encode = lambda text: tokenizer.encode(text).ids
        self.scenes = scenes
        self.weights = [sum(len(words) for _, words in scene) for scene in scenes]
        self.cache = {}

    def turn(self, role, words):
        key = (role, words)
        if key not in self.cache:
            self.cache[key] = self.encode(f"<|im_start|>{role}\n{words}<|im_end|>\n")
        return self.cache[key]

    def user_turn(self, words):
        """People type in one line and often without capitals, so users here do that as well."""
        dice = self.rng.random()
        if dice < 0.4:
            words = words.replace("\n", " ")
        if dice < 0.15:
            words = words.lower()
        return self.turn("user", words)

    def any_two(self, scene):
        """Whoever speaks next is the assistant."""
        start = self.rng.randrange(len(scene) - 1)
        ids = []
        for i in range(start, min(len(scene) - 1, start + 16), 2):
            ids += self.user_turn(scene[i][1]) + self.turn("assistant", scene[i + 1][1])
        return ids

    def one_character(self, scene):
        """The assistant is one person throughout, named by the system message."""
        answers = [i for i in range(1, len(scene)) if scene[i][0] != scene[i - 1][0]]
        if not answers:
            return self.any_two(scene)
        name = scene[self.rng.choice(answers)][0]
        answers = [i for i in answers if scene[i][0] == name]
        start = self.rng.randrange(len(answers))
        form = self.rng.choice(["You are {}.", "You are {}.", "Speak as {}."])
        ids = list(self.turn("system", form.format(name)))
        for i in answers[start : start + 8]:
            ids += self.user_turn(scene[i - 1][1]) + self.turn("assistant", scene[i][1])
        return ids

    def row(self, length):
        """Conversations one after another, cut off at length."""
        ids = []
        while len(ids) < length:
            scene = self.rng.choices(self.scenes, self.weights)[0]
            draw = self.one_character if self.rng.random() < 0.5 else self.any_two
            ids += draw(scene) + self.encode("<|endoftext|>")
        return ids[:length]

    def batch(self, rows, device):
        return torch.tensor([self.row(CONTEXT + 1) for _ in range(rows)], device=device)


# ---- model: Qwen3, with the parameter names of the checkpoint format ------------------------


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


def rope_apply(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c["head_dim"]
        self.q_proj = nn.Linear(c["hidden_size"], self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c["hidden_size"], bias=False)
        self.q_norm = RMSNorm(self.head_dim, c["rms_norm_eps"])
        self.k_norm = RMSNorm(self.head_dim, c["rms_norm_eps"])

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(rows, length, self.heads, -1)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(rows, length, self.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, -1).transpose(1, 2)
        q, k = rope_apply(q, cos, sin).to(v.dtype), rope_apply(k, cos, sin).to(v.dtype)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, cos, sin):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Model(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.drop = nn.Dropout(dropout)
        steps = torch.arange(0, c["head_dim"], 2) / c["head_dim"]
        angles = torch.outer(torch.arange(CONTEXT), c["rope_theta"] ** -steps)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = math.sqrt(2 * c["num_hidden_layers"]) if deep else 1
                nn.init.normal_(p, std=0.02 / scale)

    def forward(self, ids):
        x = self.drop(self.embed_tokens(ids))
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


# ---- training ------------------------------------------------------------------------------


def loss_of(model, batch):
    with torch.autocast(batch.device.type, torch.bfloat16):
        logits = model(batch[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def loss_mean(model, batches):
    model.eval()
    mean = sum(loss_of(model, batch).item() for batch in batches) / len(batches)
    model.train()
    return mean


def learning_rate(step, args):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model, average, conversations, checks, args, device):
    """Leaves in `average` the weights with the least validation loss seen; stops early."""
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
    )
    best, best_step, best_weights = math.inf, 0, None
    began = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        loss = loss_of(model, conversations.batch(args.rows, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.99, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters()):
                mean.lerp_(now, 1 - decay)
        if (step + 1) % args.check_every == 0:
            check = loss_mean(average, checks)
            print(
                f"step {step + 1} train {loss.item():.4f} validation {check:.4f}"
                f" {time.monotonic() - began:.0f} s",
                flush=True,
            )
            if check < best:
                best, best_step = check, step + 1
                best_weights = {k: v.clone() for k, v in average.state_dict().items()}
            elif step + 1 - best_step >= args.patience:
                break
    average.load_state_dict(best_weights)
    print(f"best validation {best:.4f} at step {best_step}")


# ---- the folder ----------------------------------------------------------------------------


def json_write(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def folder_write(out, model, config, tokenizer):
    out.mkdir(parents=True, exist_ok=True)
    end, start, stop = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    tokenizer.save(str(out / "tokenizer.json"))
    json_write(out / "config.json", config | {"bos_token_id": end, "eos_token_id": stop})
    json_write(
        out / "generation_config.json",
        {
            "bos_token_id": end,
            "eos_token_id": [stop, end],
            "pad_token_id": end,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 50,
        },
    )
    json_write(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(id): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for id, token in zip((end, start, stop), SPECIAL_TOKENS)
            },
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": CONTEXT,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    )
    weights = {
        "model." + name: p.detach().to(torch.bfloat16).cpu().contiguous()
        for name, p in model.named_parameters()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


@torch.no_grad()
def reply(model, tokenizer, messages, temperature=0.8, limit=150):
    text = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in messages)
    ids = tokenizer.encode(text + "<|im_start|>assistant\n").ids
    stop, start = tokenizer.token_to_id("<|im_end|>"), len(ids)
    while len(ids) - start < limit and ids[-1] != stop:
        logits = model(torch.tensor([ids], device=model.cos.device))[0, -1].float()
        ids.append(torch.multinomial((logits / temperature).softmax(-1), 1).item())
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


def arguments_parse():
    parser = argparse.ArgumentParser(description="train the demo model")
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=640)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.5, help="weight decay")
    parser.add_argument("--rows", type=int, default=16, help="rows of 1024 tokens in a batch")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--check-every", type=int, default=50)
    parser.add_argument("--patience", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def config_make(args):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": args.hidden,
        "initializer_range": 0.02,
        "intermediate_size": args.intermediate,
        "max_position_embeddings": CONTEXT,
        "model_type": "qwen3",
        "num_attention_heads": 8,
        "num_hidden_layers": args.layers,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    }


def main():
    args = arguments_parse()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = args.corpus.read_text(encoding="utf-8")
    speeches = speeches_read(text)
    scenes = scenes_cut(speeches)
    random.Random(args.seed).shuffle(scenes)
    held = max(1, len(scenes) // 12)
    tokenizer = tokenizer_train(speeches)
    tokens = sum(len(tokenizer.encode(words).ids) for _, words in speeches)
    print(f"{len(scenes)} scenes, {held} held out; {len(speeches)} speeches, {tokens} tokens")

    config = config_make(args)
    model = Model(config, args.dropout).to(device)
    average = Model(config, args.dropout).to(device)
    average.load_state_dict(model.state_dict())
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters on {device}", flush=True)
    seen = Conversations(scenes[held:], tokenizer, args.seed)
    unseen = Conversations(scenes[:held], tokenizer, args.seed)
    checks = [unseen.batch(16, device) for _ in range(4)]
    train(model, average, seen, checks, args, device)

    with torch.no_grad():
        for p in average.parameters():
            p.copy_(p.to(torch.bfloat16))
    average.eval()
    again = [seen.batch(16, device) for _ in range(4)]
    print(
        f"as stored: train {loss_mean(average, again):.4f}"
        f" validation {loss_mean(average, checks):.4f}"
    )
    average.eval()
    folder_write(args.out, average, config, tokenizer)
    for messages in (
        [("user", "Hello, who are you?")],
        [("system", "You are Romeo."), ("user", "Where is Juliet?")],
        [("system", "You are King Richard II."), ("user", "The king is dead.")],
    ):
        print(messages, "->", repr(reply(average, tokenizer, messages)), flush=True)


if __name__ == "__main__":
    main()
