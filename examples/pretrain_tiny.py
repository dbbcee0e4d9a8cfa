"""Train the built-in model from nothing: tokenizer, a small Llama, int8 weights, one Hugging Face folder.

    pip install "llmcore[torch]"
    python examples/pretrain_tiny.py --text TEXTS --out my-tiny      # TEXTS: a folder or files of plain text
    llmcore run my-tiny "The prince"

The recipe is small enough to read in one go: byte-level BPE trained on the training part alone; windows of text at
random offsets; Muon (Jordan et al., 2024) for the matrices and AdamW for the rest; a linear decay to zero; a second,
shorter phase at the full context. The last 5 % of every file is never trained on and gives the validation loss, which
is measured on the quantised weights. Seeds are fixed; another CPU may still round its matrix products differently.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name all of torch's own examples use)
from muon import Muon
from safetensors.numpy import save as serialize
from tiny_checkpoint import Shape, begin_with, configs, plot, quantize
from tiny_text import read_texts
from torch import Tensor, nn

from llmcore.tokenizer import Tokenizer

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
Curves = dict[str, list[tuple[int, float]]]


# --- data ------------------------------------------------------------------------------------------------------------


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


class Windows:
    """Endless batches of training windows: every token once an epoch, each epoch at another phase."""

    def __init__(self, tokenizer: Tokenizer, documents: list[str], seed: int) -> None:
        bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
        ids = [i for text in documents for i in [*tokenizer.encode(text, add_special_tokens=False), eos]]
        self.ids, self.bos = np.array(ids, np.int64), bos
        self.bytes_per_token = sum(len(d.encode("utf-8")) for d in documents) / len(ids)
        ends_line = np.array([tokenizer.decode_bytes([i]).endswith(b"\n") for i in range(tokenizer.vocab_size)])
        self.line_starts = np.concatenate([[0], np.flatnonzero(ends_line[self.ids] | (self.ids == eos)) + 1])
        self.random = np.random.default_rng(seed)

    def starts(self, length: int) -> Iterator[int]:
        while True:
            phase = int(self.random.integers(length))
            starts = np.arange(phase, len(self.ids) - 2 * length, length)
            snapped = self.line_starts[np.searchsorted(self.line_starts[:-1], starts)]  # a prompt begins with a line:
            starts = np.where(snapped - starts < length // 4, snapped, starts)  # most windows should too
            yield from self.random.permutation(starts).tolist()

    def batches(self, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = self.starts(length)
        while True:
            rows = np.stack([self.ids[s : s + length] for s in islice(starts, batch)])
            inputs = np.concatenate([np.full((batch, 1), self.bos), rows[:, :-1]], 1)
            yield torch.from_numpy(inputs), torch.from_numpy(rows)


# --- model -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """One Llama block: grouped-query attention with RoPE, then SwiGLU, both behind an RMSNorm."""

    def __init__(self, s: Shape, dropout: float) -> None:
        super().__init__()
        self.s, self.dropout = s, dropout
        rows = {
            "self_attn.q_proj": (s.heads * s.head_dim, s.hidden),
            "self_attn.k_proj": (s.kv_heads * s.head_dim, s.hidden),
            "self_attn.v_proj": (s.kv_heads * s.head_dim, s.hidden),
            "self_attn.o_proj": (s.hidden, s.heads * s.head_dim),
            "mlp.gate_proj": (s.mlp, s.hidden),
            "mlp.up_proj": (s.mlp, s.hidden),
            "mlp.down_proj": (s.hidden, s.mlp),
        }
        self.names = list(rows)
        self.w = nn.ParameterList(torch.randn(n, k) * k**-0.5 for n, k in rows.values())
        for i in (3, 6):  # what adds to the residual stream starts small
            self.w[i].data *= (2 * s.layers) ** -0.5
        self.norm1, self.norm2 = nn.Parameter(torch.ones(s.hidden)), nn.Parameter(torch.ones(s.hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        s, (batch, length) = self.s, x.shape[:2]
        q_w, k_w, v_w, o_w, gate_w, up_w, down_w = (w.to(dtype) for w in self.w)
        h = F.rms_norm(x, (s.hidden,), self.norm1, s.norm_eps).to(dtype)
        qkv = F.linear(h, torch.cat([q_w, k_w, v_w])).view(batch, length, -1, s.head_dim).transpose(1, 2)
        q, k, v = torch.split(qkv, [s.heads, s.kv_heads, s.kv_heads], 1)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (rope(k, cos, sin), v))
        h = F.scaled_dot_product_attention(rope(q, cos, sin), k, v, is_causal=True)
        h = F.linear(h.transpose(1, 2).reshape(batch, length, -1), o_w)
        x = x + F.dropout(h, self.dropout, self.training)
        h = F.rms_norm(x, (s.hidden,), self.norm2, s.norm_eps).to(dtype)
        gate, up = F.linear(h, torch.cat([gate_w, up_w])).chunk(2, -1)
        return x + F.dropout(F.linear(F.silu(gate) * up, down_w), self.dropout, self.training)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x: [B, heads, T, D]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Llama(nn.Module):
    """Token ids [B, T] -> logits [B, T, vocab]; the embedding is tied to the output."""

    def __init__(self, shape: Shape, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dropout, self.dtype = shape, dropout, dtype
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden) * 0.02)
        self.blocks = [Block(shape, dropout) for _ in range(shape.layers)]
        self.layers = nn.ModuleList(self.blocks)
        self.norm = nn.Parameter(torch.ones(shape.hidden))

    def forward(self, ids: Tensor) -> Tensor:
        s = self.shape
        frequency = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angle = torch.outer(torch.arange(ids.shape[1]), frequency)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        x = F.dropout(F.embedding(ids, self.embedding), self.dropout, self.training)
        for block in self.blocks:
            x = block(x, cos, sin, self.dtype)
        return F.linear(F.rms_norm(x, (s.hidden,), self.norm, s.norm_eps).to(self.dtype), self.embedding.to(self.dtype))

    def matrices(self) -> list[Tensor]:
        return [w for block in self.blocks for w in block.w]

    def tensors(self) -> dict[str, Tensor]:
        """The parameters under their Hugging Face names."""
        out = {"model.embed_tokens.weight": self.embedding.data, "model.norm.weight": self.norm.data}
        for i, block in enumerate(self.blocks):
            out |= {f"model.layers.{i}.{n}.weight": w.data for n, w in zip(block.names, block.w, strict=True)}
            out[f"model.layers.{i}.input_layernorm.weight"] = block.norm1.data
            out[f"model.layers.{i}.post_attention_layernorm.weight"] = block.norm2.data
        return out


# --- training --------------------------------------------------------------------------------------------------------


def nats_per_byte(model: Llama, tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Mean loss of the texts in windows of the full context, each begun by the begin-of-text token alone."""
    bos, step = token_id(tokenizer, BOS), model.shape.context
    total, size = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for text in texts:
            ids, size = tokenizer.encode(text, add_special_tokens=False), size + len(text.encode("utf-8"))
            for window in (torch.tensor([bos, *ids[i : i + step]]) for i in range(0, len(ids), step)):
                logits = model(window[None, :-1])[0].float()
                total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    model.train()
    return total / size


def train(model: Llama, windows: Windows, args: argparse.Namespace, validate: Callable[[], float]) -> Curves:
    """Run the recipe; returns the loss curves in nats per byte, 200 points of training, 10 of validation."""
    matrices = model.matrices()
    others = [p for p in model.parameters() if all(p is not w for w in matrices)]
    optimizers = [
        Muon(matrices, args.lr, args.weight_decay, model.dtype),
        torch.optim.AdamW(others, lr=args.lr / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    bases = [o.param_groups[0]["lr"] for o in optimizers]
    step, curves = 0, Curves({"training": [], "validation": []})
    if args.state and args.state.exists():  # the optimizers' momentum is rebuilt within some twenty steps
        saved = torch.load(args.state)
        step, curves = saved["step"], saved["curves"]
        model.load_state_dict(saved["model"])
        windows.random = np.random.default_rng([args.seed, step])
    began, first, sums, every = time.time(), step, [], max(1, args.steps // 200)
    forward = torch.compile(model) if args.compile else model
    short, full = (windows.batches(args.tokens // n, n) for n in (model.shape.context // 2, model.shape.context))
    while step < args.steps:
        scale = min(1.0, (step + 1) / args.warmup, (args.steps - step) / (args.steps * args.decay))
        for optimizer, base in zip(optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
        inputs, targets = next(short if step < 0.8 * args.steps else full)
        loss = F.cross_entropy(forward(inputs).float().flatten(0, 1), targets.flatten())
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        sums.append(loss.item() / windows.bytes_per_token)
        step += 1
        if step % every == 0:
            curves["training"].append((step, sum(sums[-every:]) / len(sums[-every:])))
            left = (time.time() - began) * (args.steps - step) / (step - first) / 60
            line = f"step {step}/{args.steps}  {curves['training'][-1][1]:.3f} nats per byte  {left:.0f} min left"
            print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
        if step % max(1, args.steps // 10) == 0:
            curves["validation"].append((step, validate()))
            if args.state:
                torch.save({"step": step, "curves": curves, "model": model.state_dict()}, args.state)
            print(f"step {step}: validation {curves['validation'][-1][1]:.4f} nats per byte" + " " * 30, flush=True)
    return curves


def save(model: Llama, tokenizer: Tokenizer, validation: dict[str, str], out: Path) -> float:
    """Quantise, measure and write the folder; returns the validation loss in nats per byte over all held-out text."""
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    stored, model.dtype = quantize(model.tensors()), torch.float32
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_bytes(serialize(stored, metadata={"format": "pt"}))
    tokenizer.save(out / "tokenizer.json")
    content = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = begin_with(BOS, bos)
    (out / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    for name, content in configs(model.shape, (BOS, bos), (EOS, eos)).items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    for name, text in validation.items():
        print(
            f"{name}: {nats_per_byte(model, tokenizer, [text]):.4f} nats per byte of {len(text.encode('utf-8'))} bytes"
        )
    return nats_per_byte(model, tokenizer, validation.values())


def keep_freed_memory() -> None:
    """glibc hands each large freed block back to the system; keeping it saves a third of the time here."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 1 << 28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            ctypes.CDLL(None).mallopt(option, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, or a folder of .txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--plot", type=Path, help="where to write the loss curve (.svg)")
    parser.add_argument("--state", type=Path, help="keeps the progress; a run that finds this file goes on from it")
    parser.add_argument("--steps", type=int, default=1200, help="4000 take three times as long and write better")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in one step")
    parser.add_argument("--lr", type=float, default=0.02, help="peak rate of Muon; AdamW's is a quarter of it")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, default=50, help="steps")
    parser.add_argument("--decay", type=float, default=1 / 3, help="share of the steps with a falling rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the training step: a fifth faster")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the matrix products")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    files = [f for path in args.text for f in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
    training, validation = read_texts(files)
    tokenizer = Tokenizer.train(training, vocab_size=Shape.vocab_size, pattern="llama3", special_tokens=[BOS, EOS])
    windows = Windows(tokenizer, training, args.seed)
    model = Llama(Shape(), args.dropout, getattr(torch, args.dtype))
    count = sum(p.numel() for p in model.parameters())
    epochs = args.steps * args.tokens / len(windows.ids)
    print(f"{len(windows.ids)} training tokens, {count} parameters, {epochs:.1f} epochs")
    part = [text[:20_000] for text in validation.values()]
    curves = train(model, windows, args, lambda: nats_per_byte(model, tokenizer, part))
    loss = save(model, tokenizer, validation, args.out)
    print(f"all: {loss:.4f} nats per byte; written to {args.out}")
    if args.plot:
        args.plot.write_text(plot(curves))


if __name__ == "__main__":
    main()
