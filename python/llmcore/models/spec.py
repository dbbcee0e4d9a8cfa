"""What the native decoder executes: a model is data (a DecoderSpec and the tensors that fill its slots).

An architecture is one file beside this one, named after config.json's `model_type`. It offers

    def spec(config: Config) -> DecoderSpec       # the numbers, every one checked
    def slots(spec: DecoderSpec) -> list[Slot]    # which checkpoint tensors fill which slot of the decoder

and needs no C++ as long as its blocks are made of the parts below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Norm = Literal["rms_norm", "layer_norm"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A pre-norm transformer decoder. Lengths in elements, `max_position_embeddings` in tokens."""

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm: Norm = "rms_norm"
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    gated_mlp: bool = True
    """down(act(gate(x)) * up(x)) rather than down(act(up(x)))."""
    qk_norm: bool = False
    """RMSNorm over each head of q and k before RoPE (Qwen3)."""
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    """Biases of all the MLP's matrices."""
    rope_inv_freq: tuple[float, ...] | None = None
    """float32 values, one per rotated pair (the first 2 * len elements of a head are rotated); None: no RoPE.
    Element i is rotated with element i + len (the half-split kind). Scaling is already applied."""
    rope_attention_factor: float = 1.0
    """cos and sin are multiplied by this (YaRN, LongRoPE)."""
    rope_interleaved: bool = False
    """Element 2 i is rotated with 2 i + 1 instead (GPT-J, Cohere)."""
    embedding_scale: float = 1.0
    """Token embeddings are multiplied by this (Gemma)."""
    post_norms: bool = False
    """What attention and MLP give is normed before it is added: attention_post_norm, mlp_post_norm (Gemma 2)."""
    logit_softcap: float | None = None
    """logit = softcap * tanh(logit / softcap) (Gemma 2)."""
    learned_positions: bool = False
    """Adds row `position` of the position embedding (GPT-2)."""
    attention_scale: float | None = None
    """None: 1 / sqrt(head_dim)."""
    sliding_window: int | None = None
    """A query sees this many newest keys, its own included, in every layer (Mistral); None: all."""
    layer_windows: tuple[int | None, ...] | None = None
    """The window of each layer, where they differ (Gemma 2, GPT-OSS); sliding_window is None then."""
    kept_tokens: int = 0
    """The first tokens, which no window hides (StreamingLLM's attention sinks)."""
    attention_softcap: float | None = None
    """score = softcap * tanh(score / softcap) (Gemma 2)."""
    alibi_slopes: tuple[float, ...] | None = None
    """One a head: score -= slope * distance (ALiBi: Bloom, MPT)."""
    attention_sinks: bool = False
    """A learned score of each head, without a value, that takes its share of the softmax (GPT-OSS)."""
    tie_word_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def is_matrix(self, slot: str) -> bool:
        """Whether `slot` is a weight matrix, which may be quantised, rather than a vector."""
        return slot.rsplit(".", 1)[-1] in MATRICES


MATRICES = frozenset({"embedding", "position_embedding", "qkv", "attention_output", "gate_up", "up", "down", "lm_head"})
"""Matrix slots. Global: embedding, position_embedding, lm_head. In `layers.{i}.`: qkv, attention_output, gate_up or up,
down.

Vector slots. Global: final_norm, final_norm_bias, lm_head_bias. In `layers.{i}.`: attention_norm, attention_norm_bias,
mlp_norm, mlp_norm_bias, attention_post_norm, mlp_post_norm, q_norm, k_norm, attention_sinks, and `<matrix>_bias` for
each matrix of the layer."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The checkpoint tensors that fill one slot of the decoder.

    `tensors` are stacked along the first axis (q, k, v; gate, up). Each has `shape`, in the checkpoint's own
    orientation; with `transpose` it is stored [in, out] (GPT-2's Conv1D) and turned while it is packed.
    `modules` are the checkpoint's module names, which quantisation recipes (`skip`, overrides) match.
    """

    name: str
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    transpose: bool = False
    optional: bool = False
    """Absent from some checkpoints (a bias): all tensors are there, or none."""
    offset: float = 0.0
    """Added to a vector's elements, in float32 (Gemma's norms multiply by 1 + weight)."""
    modules: tuple[str, ...] = field(default=())
