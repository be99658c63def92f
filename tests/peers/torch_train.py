#!/usr/bin/env python3
"""Training steps of a GPT-2 or Llama style decoder in plain PyTorch, timed.

The yardstick of tests/gpu/bench: the same shapes, batch and sequence as `shoal bench step`, with what
PyTorch offers for speed: bf16 autocast over fp32 weights, scaled_dot_product_attention, torch.compile of
the blocks and the loss, fused AdamW, activation checkpointing where asked for.  Prints one JSON line.
Models: Radford et al. 2019 (learned positions, LayerNorm, GELU, tied head) and Touvron et al. 2023
(rotary positions, RMSNorm, SwiGLU, grouped keys, no biases).

Where a PyTorch lacks one of these, it does without and says so in "without".
"""

import argparse
import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint
except ImportError as error:
    print(f"torch_train: {error}", file=sys.stderr)
    sys.exit(69)

without = []


def lacks(what):
    if what not in without:
        without.append(what)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return wide.to(x.dtype) * self.weight


def attention(q, k, v):
    """Causal, q [B, H, T, D], k and v [B, K, T, D]."""
    grouped = q.shape[1] != k.shape[1]
    if hasattr(F, "scaled_dot_product_attention"):
        if not grouped:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        try:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        except TypeError:
            lacks("enable_gqa")
    else:
        lacks("scaled_dot_product_attention")
    if grouped:
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    T = q.shape[2]
    scores = (q @ k.transpose(-1, -2)).float() / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(T, T, device=q.device).triu(1).bool(), float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.o, self.D = o, o.hidden // o.heads
        gpt = o.style == "gpt2"
        norm = nn.LayerNorm if gpt else RMSNorm
        self.norm1, self.norm2 = norm(o.hidden), norm(o.hidden)
        self.qkv = nn.Linear(o.hidden, (o.heads + 2 * o.kv_heads) * self.D, bias=gpt)
        self.out = nn.Linear(o.heads * self.D, o.hidden, bias=gpt)
        self.up = nn.Linear(o.hidden, o.ffn if gpt else 2 * o.ffn, bias=gpt)
        self.down = nn.Linear(o.ffn, o.hidden, bias=gpt)

    def forward(self, x, cosines, sines):
        o = self.o
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(
            [o.heads * self.D, o.kv_heads * self.D, o.kv_heads * self.D], -1)
        q = q.view(B, T, o.heads, self.D).transpose(1, 2)
        k = k.view(B, T, o.kv_heads, self.D).transpose(1, 2)
        v = v.view(B, T, o.kv_heads, self.D).transpose(1, 2)
        if o.style == "llama":
            q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        y = attention(q, k, v).transpose(1, 2).reshape(B, T, -1)
        x = x + self.out(y)
        h = self.up(self.norm2(x))
        if o.style == "llama":
            gate, up = h.chunk(2, -1)
            return x + self.down(F.silu(gate) * up)
        return x + self.down(F.gelu(h, approximate="tanh"))


def rotate(x, cosines, sines):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosines - b * sines, b * cosines + a * sines], -1).to(x.dtype)


class Decoder(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.o = o
        self.tokens = nn.Embedding(o.vocab, o.hidden)
        self.positions = nn.Embedding(o.seq, o.hidden) if o.style == "gpt2" else None
        self.blocks = nn.ModuleList(Block(o) for _ in range(o.layers))
        self.norm = (nn.LayerNorm if o.style == "gpt2" else RMSNorm)(o.hidden)
        self.head = nn.Linear(o.hidden, o.vocab, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        if o.style == "gpt2":
            self.head.weight = self.tokens.weight
        D = o.hidden // o.heads
        angles = torch.arange(o.seq)[:, None] * o.theta ** (-torch.arange(0, D, 2) / D)[None]
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())
        self.steps = list(self.blocks)
        self.loss = self.plain_loss

    def plain_loss(self, x, targets):
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))

    def forward(self, tokens, targets):
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[None, : tokens.shape[1]]
        for block in self.steps:
            if self.o.recompute:
                x = checkpoint(block, x, self.cosines, self.sines, use_reentrant=False)
            else:
                x = block(x, self.cosines, self.sines)
        return self.loss(x, targets)


def compile_parts(model, how):
    """Blocks share their code: compiled one by one, the second and later are found in the cache."""
    if how == "none":
        return model
    if not hasattr(torch, "compile"):
        lacks("torch.compile")
        return model
    if how == "model":
        return torch.compile(model)
    model.steps = [torch.compile(block) for block in model.blocks]
    model.loss = torch.compile(model.plain_loss)
    return model


def make_optimizer(model, device):
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
    words = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8}
    if device == "cuda":
        try:
            return torch.optim.AdamW(groups, fused=True, **words)
        except (TypeError, RuntimeError):
            lacks("fused AdamW")
    else:
        lacks("fused AdamW")
    return torch.optim.AdamW(groups, **words)


def one_step(model, optimizer, batches, context):
    for tokens, targets in batches:
        with context():
            loss = model(tokens, targets) / len(batches)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach() * len(batches)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--style", choices=["gpt2", "llama"], default="gpt2")
    sizes = {"layers": 2, "hidden": 64, "heads": 4, "kv-heads": 0, "ffn": 256, "vocab": 512,
             "seq": 64, "micro": 2, "accumulate": 1, "steps": 10, "warm": 3}
    for name, default in sizes.items():
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--theta", type=float, default=500000.0)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--compile", choices=["blocks", "model", "none"], default="blocks")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    o = parser.parse_args()
    o.kv_heads = o.kv_heads or o.heads
    return o


def main():
    o = parse()
    cuda = o.device.startswith("cuda")
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    if hasattr(torch, "set_default_device"):
        with torch.device(o.device):
            model = Decoder(o)
    else:
        model = Decoder(o).to(o.device)
    optimizer = make_optimizer(model, o.device)
    run = compile_parts(model, o.compile if cuda else "none")
    if not cuda:
        lacks("torch.compile")

    def context():
        return torch.autocast(o.device.split(":")[0], torch.bfloat16, enabled=o.dtype == "bf16")

    ids = torch.randint(o.vocab, (o.accumulate, o.micro, o.seq + 1), device=o.device)
    batches = [(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in ids]
    seconds, losses = [], []
    start = time.perf_counter()
    for i in range(o.warm + o.steps):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        if i == o.warm:
            first = begin
        losses.append(one_step(run, optimizer, batches, context).item())
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    timed = sorted(seconds[o.warm:])
    median = statistics.median(timed)
    print(json.dumps({
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "parameters": sum(p.numel() for p in model.parameters()),
        "median_ms": 1e3 * median, "best_ms": 1e3 * timed[0], "worst_ms": 1e3 * timed[-1],
        "steps": len(timed), "warm_seconds": first - start,
        "tokens_per_second": o.accumulate * o.micro * o.seq / median,
        "peak_gib": torch.cuda.max_memory_reserved() / 2 ** 30 if cuda else None,
        "first_loss": losses[0], "last_loss": losses[-1], "without": without}))


if __name__ == "__main__":
    main()
