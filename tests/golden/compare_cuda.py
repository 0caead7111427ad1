#!/usr/bin/env python3
"""Whole models on a GPU against transformers on the same GPU (needs PyTorch and transformers).

    python3 compare_cuda.py MODEL_CLI [--models NAME,...] [--tp 1,2,4] [--new 32] [--device cuda]

Makes random bf16 checkpoints of real dimensions, runs prompts through MODEL_CLI and compares:

- the logits of the first id (made by prefill) and of the last (made by decode) with those of
  transformers in float32 on the same weights: ||ours - fp32|| / ||fp32||. Beside it the same of
  transformers in bf16, which ours must not exceed.
- each id with what float32 chooses after the same ids. Where they differ, float32 must see a
  near-tie: the margin (best logit - logit of our choice) / standard deviation of the logits is at
  most NEAR_TIE times the error measured above. The largest is printed, and how many ids come
  before the first difference.

Prompts go alone in one piece, and together in pieces of 128. Exit status 1 when a bound is missed.
"""

import argparse
import copy
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LENGTHS = (1, 17, 64, 130, 333, 600)
WAYS = (("alone", 1024), ("together", 128))
NEAR_TIE = 6.0  # of two logits' errors: generous for a Gaussian, far under any wrong choice
WORSE = 1.1  # ours against transformers' bf16

MODELS = {
    "qwen3-0.6b": dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], hidden_size=1024,
        num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=3072, vocab_size=151936, tie_word_embeddings=True, rms_norm_eps=1e-6,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "llama-3.2-1b": dict(
        model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=2048,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True, rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192}),
    "mistral-small": dict(
        model_type="mistral", architectures=["MistralForCausalLM"], hidden_size=1024,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, head_dim=128,
        intermediate_size=3584, vocab_size=32768, tie_word_embeddings=False, rms_norm_eps=1e-5,
        sliding_window=256, max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen2-0.5b": dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=896,
        num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True, rms_norm_eps=1e-6,
        max_position_embeddings=32768, use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "tiny": dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], hidden_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        intermediate_size=256, vocab_size=1024, tie_word_embeddings=True, rms_norm_eps=1e-6,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}


def model_make(config, device):
    """Weights of a scale at which attention is sharp, layers add much and logits spread."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, device=device)
            if name.endswith("norm.weight"):
                p.copy_((1.5 if "q_norm" in name or "k_norm" in name else 1) + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(0.05 * noise)
            elif "q_proj" in name or "k_proj" in name:
                p.copy_(1.5 * p.shape[1] ** -0.5 * noise)
            else:
                p.copy_(p.shape[1] ** -0.5 * noise)
    return model.eval()


def model_write(model, config, folder):
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}))


def ours(cli, folder, prompts, tp, new, chunk, mode, device):
    with tempfile.TemporaryDirectory() as store:
        file = folder / "prompts.json"
        file.write_text(json.dumps(prompts))
        args = [cli, folder, file, tp, new, chunk, mode, store, "auto", device]
        done = subprocess.run(list(map(str, args)), capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"{cli}: {done.stderr}")
    return json.loads(done.stdout)


@torch.no_grad()
def logits_after(model, ids, count):
    """float32 logits that chose the last `count` ids."""
    x = torch.tensor([ids[:-1]], device=model.device)
    return model(x, logits_to_keep=count, use_cache=False).logits[0].float()


def error(a, truth):
    return ((a - truth).norm() / truth.norm()).item()


def compare(name, model, wide, prompts, got, new, label):
    device = model.device
    rows = []
    for i, prompt in enumerate(prompts):
        tokens = got["tokens"][i]
        truth = logits_after(wide, prompt + tokens, new)
        half = logits_after(model, prompt + tokens, new)
        errors = [error(torch.tensor(got[key][i], device=device), truth[at])
                  for key, at in (("logits", 0), ("last_logits", -1))]
        chosen = truth.gather(1, torch.tensor(tokens, device=device)[:, None])[:, 0]
        margins = (truth.max(1).values - chosen) / truth.std(1)
        half_margins = (truth.max(1).values -
                        truth.gather(1, half.argmax(1)[:, None])[:, 0]) / truth.std(1)
        differ = margins.nonzero().flatten().tolist()
        rows.append((len(prompt), errors, error(half, truth), error(half[:1], truth[:1]),
                     differ[0] if differ else new, len(differ), margins.max().item(),
                     (half_margins > 0).sum().item(), half_margins.max().item()))
    for r in rows:
        print(f"{name:13} {label:16} {r[0]:4}  {r[1][0]:.2e} {r[1][1]:.2e}  {r[2]:.2e} {r[3]:.2e}  "
              f"{r[4]:3}/{new} {r[5]:3} {r[6]:.4f}  {r[7]:3} {r[8]:.4f}")
    mean = sum(sum(r[1]) for r in rows) / (2 * len(rows))
    mean_half = sum(r[2] for r in rows) / len(rows)
    worst = max(r[6] for r in rows)
    good = mean <= WORSE * mean_half and worst <= NEAR_TIE * mean and mean == mean
    print(f"{name:13} {label:16} mean error {mean:.2e}, transformers bf16 {mean_half:.2e} "
          f"(x{mean / mean_half:.2f}); largest margin {worst:.4f} "
          f"({worst / mean:.1f} errors): {'ok' if good else 'FAILED'}", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cli", type=pathlib.Path)
    parser.add_argument("--models", default="qwen3-0.6b,llama-3.2-1b,mistral-small,qwen2-0.5b")
    parser.add_argument("--tp", default="1")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    good = True
    print("model         way          prompt  ours: first, last    bf16: all, first   "
          "equal   differing, margin; bf16's")
    for name in args.models.split(","):
        spec = dict(MODELS[name])
        config = AutoConfig.for_model(spec.pop("model_type"), **spec)
        generator = torch.Generator().manual_seed(1)
        prompts = [torch.randint(config.vocab_size, (n,), generator=generator).tolist()
                   for n in LENGTHS]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model = model_make(config, args.device)
            wide = copy.deepcopy(model).float()
            model_write(model, config, folder)
            for tp in map(int, args.tp.split(",")):
                for mode, chunk in WAYS:
                    got = ours(args.cli, folder, prompts, tp, args.new, chunk, mode, args.device)
                    good &= compare(name, model, wide, prompts, got, args.new,
                                    f"tp{tp} {mode}")
            del model, wide
    sys.exit(not good)


if __name__ == "__main__":
    main()
