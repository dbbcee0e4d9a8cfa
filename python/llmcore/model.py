"""Models: a checkpoint packed into native memory, its logits and activations."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from llmcore import _core, quantization
from llmcore.arguments import integer, one_of
from llmcore.errors import ArgumentError, ArgumentTypeError, ClosedError, TokenizerError
from llmcore.models.spec import DecoderSpec
from llmcore.progress import Progress
from llmcore.quantization import FLOAT_FORMATS, MatrixFormat, QuantConfig

if TYPE_CHECKING:
    from llmcore.checkpoint.readers import Checkpoint
    from llmcore.packing import Packer, Weight
    from llmcore.tokenizer import Tokenizer

ACTIVATIONS = ("int8", "float32")
STEP_TOKENS = 256
"""Tokens of one forward step; longer prompts are prefilled in chunks of this size. No result depends on it."""
_LOGIT_ROWS = 16
EXTRA_LOGIT_ROWS = 16
"""Rows of logits that a step of an LLM has beside one for each sequence: for guessed tokens and scores of prompts."""

_log = logging.getLogger("llmcore")

Ids = Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer[Any]]


class Model:
    """Weights in native memory, with the tokenizer of their checkpoint. Made by `llmcore.load`; a context manager.

    Attributes: `spec` (DecoderSpec), `tokenizer` (None when the checkpoint has none: token ids still work),
    `generation_config` (defaults for sampling), `fingerprint` (hex; names the checkpoint, the recipe and so the bits).
    """

    def __init__(
        self,
        core: _core.Model,
        spec: DecoderSpec,
        *,
        tokenizer: Tokenizer | None,
        generation_config: Mapping[str, object],
        fingerprint: str,
        kv_dtype: str,
        threads: int,
    ) -> None:
        self._core: _core.Model | None = core
        self.spec = spec
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        self.fingerprint = fingerprint
        self.threads = threads
        self.kv_dtype = kv_dtype
        """Type of the keys and values that `auto` means for this model: f32 for f32 weights, else f16."""
        self._llms: weakref.WeakSet[Any] = weakref.WeakSet()  # that are open
        self._capture: Capture | None = None
        self._weights: dict[str, Any] = {}
        self._config: Mapping[str, Any] = {}
        self._source: Path | None = None

    @property
    def core(self) -> _core.Model:
        """The native model. Raises ClosedError."""
        if self._core is None:
            raise ClosedError("the model was closed")
        return self._core

    @property
    def source(self) -> Path | None:
        """Where the checkpoint lies that this was loaded from, if it was."""
        return self._source

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises TokenizerError when the checkpoint has none."""
        if self.tokenizer is None:
            raise TokenizerError("this checkpoint has no tokenizer files: give token ids instead of text")
        return self.tokenizer

    def memory_usage(self) -> dict[str, int]:
        """Bytes held now: `weights`, `kv_cache` (of the engines on this model), `activations`, `total`."""
        usage = {
            "weights": self.core.weight_bytes,
            "kv_cache": sum(llm._kv_bytes for llm in self._llms),
            "activations": self.core.activation_bytes,
        }
        return usage | {"total": sum(usage.values())}

    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads."""
        return self.core.bytes_per_token

    def plan(self, *, max_tokens: int, max_logit_rows: int, max_model_len: int) -> None:
        """Allocates what steps of this size need, if that is more than there is already."""
        self.core.plan(max_tokens, max_logit_rows, max_model_len)

    def forward(
        self, ids: Ids, *, chunk_size: int | None = None, kv_dtype: str = "auto"
    ) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]:
        """Logits of every position.

        ids: [T] or [B, T] integers, or a list of lists of unequal length. Returns float32 [T, vocab] or [B, T, vocab];
        for unequal lengths a list of [T_i, vocab]. `chunk_size` tokens of a sequence are computed at once (None: 256).
        The bits of a row depend on its own sequence alone: not on the batch, the threads, the chunks or the CPU.

        Raises ArgumentError (an id outside the vocabulary, no ids), ContextLengthError, ClosedError, OutOfMemoryError.
        """
        sequences, nested = _sequences(ids)
        if chunk_size is not None:
            chunk_size = integer("chunk_size", chunk_size, 1, 2**31 - 1)
        longest = max(len(sequence) for sequence in sequences)
        self.plan(max_tokens=STEP_TOKENS, max_logit_rows=_LOGIT_ROWS, max_model_len=longest)
        kv = self.kv_dtype if kv_dtype == "auto" else kv_dtype
        if self._capture is None:
            logits = self.core.forward(sequences, kv, chunk_size or 0)
        else:
            logits = []
            for sequence in sequences:  # one by one, so that rows of an activation are positions
                self._capture._begin()
                logits += self.core.forward([sequence], kv, chunk_size or 0, self._capture._see)
                self._capture._end()
        if not nested:
            return logits[0]
        return np.stack(logits) if len({len(sequence) for sequence in sequences}) == 1 else logits

    @contextmanager
    def capture(self, *patterns: str) -> Iterator[Capture]:
        """Collects activations of the `forward` calls inside, by name; `*` matches any text. Costs nothing when unused.

            with model.capture("layers.*.output") as acts:
                model.forward(ids)
            acts["layers.0.output"]      # float32 [T, hidden]; a list of them for several sequences

        Names: token_embeddings, embeddings, final_norm, logits, and in `layers.{i}.`: attention_norm, qkv, rotated_qkv
        (q scaled and, with k, normed and rotated), attention, attention_residual, mlp_norm, gate_up or up, activation,
        output. Raises ArgumentError when captures are nested.
        """
        if self._capture is not None:
            raise ArgumentError("captures can't be nested")
        self._capture = Capture(patterns or ("*",))
        try:
            yield self._capture
        finally:
            self._capture = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the packed weights, as they lie in memory, with config and tokenizer files into the new folder `path`.

        `llmcore.load(path)` then only reads: nothing is quantised or packed again, and the bits are the same. The
        folder appears whole or not at all. Raises ArgumentError (it is there already, or the model has no checkpoint,
        as random ones), StorageError, ClosedError.
        """
        from llmcore.packed import save_packed

        self.core  # noqa: B018 - raises when closed
        if self._source is None:
            raise ArgumentError("this model was not loaded from a checkpoint, so it has no config.json to save")
        # What the checkpoint turned out to be: one that says it is tied may hold a head that differs.
        config = {**self._config, "tie_word_embeddings": self.spec.tie_word_embeddings}
        has_tokenizer = self.tokenizer is not None
        save_packed(path, self._weights, config, self.generation_config, self._source, has_tokenizer=has_tokenizer)

    def close(self) -> None:
        """Gives the memory back, once no LLM uses the model any more. Any later call raises ClosedError."""
        self._core = None
        self._weights = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._core is None else f"{self._core.weight_bytes:,} bytes of weights"
        return f"<llmcore.Model {self.spec.model_type}, {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Model holds native memory and can't be pickled or copied; load it again from its path")


class Capture(dict[str, Any]):
    """Activations by name: a float32 array [T, columns] for one sequence, a list of them for several."""

    def __init__(self, patterns: Sequence[str]) -> None:
        super().__init__()
        self._patterns = patterns
        self._parts: dict[str, list[npt.NDArray[np.float32]]] = {}

    def _begin(self) -> None:
        self._parts = {}

    def _see(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns):
            self._parts.setdefault(name, []).append(rows)

    def _end(self) -> None:
        for name, parts in self._parts.items():
            whole = np.concatenate(parts)
            if name not in self:
                self[name] = whole
            elif isinstance(self[name], list):
                self[name].append(whole)
            else:
                self[name] = [self[name], whole]


def load(
    path: str | os.PathLike[str],
    quantize: str | QuantConfig | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str = "auto",
    activations: str = "int8",
    progress: bool = True,
    check_finite: bool = False,
    calibration: Sequence[str | Sequence[int]] | None = None,
) -> Model:
    """Loads a checkpoint: a Hugging Face folder, a .gguf file, a name in the local Hugging Face cache, or "tiny".

    quantize: None (as stored), a format's name or a QuantConfig (which lists them). A checkpoint that is already
        quantised keeps its exact values, and can't be quantised again.
    device: "auto" or "cpu". threads: 1 to 1024 (default: all usable cores); no result depends on it.
    dtype: type of the float weights: "auto" (as stored), "float32", "bfloat16", "float16".
    activations: what feeds quantised weights: "int8", with a scale for each token and group, or "float32", as they are:
        slow, to see what rounding the weights alone does.
    check_finite: look at every weight and raise NumericError for the tensor with a NaN or infinity; otherwise such a
        model loads, and raises NumericError for the request whose logits it breaks.

    calibration: texts, or token ids, like those the model will see, for the `rounding` and `smoothing` of a
        QuantConfig. The unquantised model is then in memory, too, until all matrices are packed; some thousand tokens
        are enough. Another machine's linear algebra may round otherwise, so `save` a model whose bits are to stay.

    Weights are read and packed a part at a time, so memory peaks at the packed size and one part; no file stays open.
    Raises CheckpointError and its subclasses, UnsupportedModelError, TokenizerError, ArgumentError, OutOfMemoryError.
    """
    from llmcore.calibration import Calibration
    from llmcore.checkpoint.readers import open_checkpoint
    from llmcore.models.binding import bind
    from llmcore.packed import PackedCheckpoint, is_packed
    from llmcore.packing import Packer

    threads = num_threads(threads)
    one_of("device", device, ("auto", "cpu"))
    one_of("activations", activations, ACTIVATIONS)
    recipe, floats = quantization.resolve(quantize), quantization.float_format(dtype)
    with open_checkpoint(path) as checkpoint:
        if is_packed(checkpoint.config):
            check_packed(recipe, floats)
            if calibration is not None:
                raise ArgumentError("calibration= is for quantising weights, and this model is packed already")
            packed = PackedCheckpoint(checkpoint)
            tokenizer = _load_tokenizer(checkpoint.tokenizer_path, packed.spec)
            weights = packed.load(progress, check_finite)
            fingerprint = checkpoint.fingerprint[:32]
            return _make(packed.spec, weights, tokenizer, checkpoint, fingerprint, threads, activations)
        binding = bind(checkpoint)
        tokenizer = _load_tokenizer(checkpoint.tokenizer_path, binding.spec)
        inputs = None
        if recipe is not None and recipe.needs_calibration():
            if calibration is None:
                raise ArgumentError('rounding="gptq" and smoothing need calibration= texts')
            plain = _pack(Packer(binding, None, floats, check_finite), progress)
            inputs = Calibration(_make(binding.spec, plain, tokenizer, None, "", threads), calibration)
        elif calibration is not None:
            raise ArgumentError('calibration= is for QuantConfig(rounding="gptq") and smoothing')
        weights = _pack(Packer(binding, recipe, floats, check_finite, inputs), progress)
        fingerprint = _fingerprint(checkpoint.fingerprint, recipe, floats)
        if inputs:
            fingerprint = _fingerprint(fingerprint, recipe, inputs.digest())
        return _make(binding.spec, weights, tokenizer, checkpoint, fingerprint, threads, activations)


def _pack(packer: Packer, progress: bool) -> dict[str, Weight]:
    from llmcore.packing import num_weights

    slots = packer.binding.slots
    weights: dict[str, Weight] = {}
    total = sum(num_weights(slot) for slot in slots.values())
    with Progress(total, "loading", "weights", enabled=progress) as bar:
        for name, slot in slots.items():
            weights[name] = packer.pack(slot)
            bar.advance(num_weights(slot))
    return weights


def check_packed(recipe: QuantConfig | None, floats: str | None) -> None:
    """Raises ArgumentError when a packed model is asked to be something else."""
    if recipe is not None or floats is not None:
        raise ArgumentError("this model is packed already and keeps its values: load it without quantize and dtype")


def num_threads(threads: int | None) -> int:
    """What `threads=` means. Raises ArgumentTypeError, ArgumentError."""
    return _core.get_num_threads() if threads is None else integer("threads", threads, 1, 1024)


def check_count(name: str, value: object) -> None:
    """Raises ArgumentTypeError for what is no integer, ArgumentError below 1."""
    if type(value) is not int:
        raise ArgumentTypeError(f"{name} must be an integer of at least 1, got {type(value).__name__}")
    if value < 1:
        raise ArgumentError(f"{name} must be an integer of at least 1")


def kv_bytes_per_page(spec: DecoderSpec, kv_dtype: str) -> int:
    """Bytes of the keys and values of 16 tokens over all layers."""
    return spec.num_layers * _core.kv_page_bytes(kv_dtype, spec.num_kv_heads, spec.head_dim)


def random_model(spec: DecoderSpec, quantize: str | QuantConfig | None = None, *, seed: int = 0) -> Model:
    """A model of the given shape with random weights (normal, deviation 0.02), for benchmarks. float16 or quantised."""
    recipe = quantization.resolve(quantize)
    pool = (np.random.default_rng(seed).standard_normal(1 << 22, np.float32) * np.float32(0.02)).astype(np.float16)
    weights: dict[str, Weight] = {}
    for name, rows, columns in _shapes(spec):
        if columns is None:
            weights[name] = np.ones(rows, np.float32)
            continue
        is_head = name in ("embedding", "lm_head")
        wanted = recipe.of([name], is_head=is_head) if recipe else None
        wanted = wanted or MatrixFormat(format="f16")
        matrix = wanted.make(rows, columns)
        step = max(1, (1 << 21) // columns)
        for row in range(0, rows, step):
            count = min(step, rows - row) * columns
            start = (row * 7919) % (len(pool) - min(count, len(pool) - 1))
            values = np.resize(pool[start:], count).reshape(-1, columns)
            matrix.set_rows(row, np.ascontiguousarray(values))
        weights[name] = matrix
    fingerprint = _fingerprint(f"random {seed} {asdict(spec)}", recipe, None)
    return _make(spec, weights, None, None, fingerprint, num_threads(None))


def _shapes(spec: DecoderSpec) -> Iterator[tuple[str, int, int | None]]:
    hidden, up = spec.hidden_size, spec.intermediate_size * (2 if spec.gated_mlp else 1)
    heads = spec.num_heads * spec.head_dim
    yield "embedding", spec.vocab_size, hidden
    if not spec.tie_word_embeddings:
        yield "lm_head", spec.vocab_size, hidden
    if spec.learned_positions:
        yield "position_embedding", spec.max_position_embeddings, hidden
    yield "final_norm", hidden, None
    for i in range(spec.num_layers):
        layer = f"layers.{i}."
        yield layer + "attention_norm", hidden, None
        if spec.post_norms:
            yield layer + "attention_post_norm", hidden, None
            yield layer + "mlp_post_norm", hidden, None
        if spec.attention_sinks:
            yield layer + "attention_sinks", spec.num_heads, None
        yield layer + "qkv", heads + 2 * spec.num_kv_heads * spec.head_dim, hidden
        if spec.qk_norm:
            yield layer + "q_norm", spec.head_dim, None
            yield layer + "k_norm", spec.head_dim, None
        yield layer + "attention_output", hidden, heads
        yield layer + "mlp_norm", hidden, None
        yield layer + ("gate_up" if spec.gated_mlp else "up"), up, hidden
        yield layer + "down", hidden, spec.intermediate_size


def _make(
    spec: DecoderSpec,
    weights: dict[str, Weight],
    tokenizer: Tokenizer | None,
    checkpoint: Checkpoint | None,
    fingerprint: str,
    threads: int,
    activations: str = "int8",
) -> Model:
    from llmcore.packing import matrices_of

    core = _core.Model(native_spec(spec), weights, threads, activations == "float32")
    _core.release_free_memory()  # of what loading needed
    if activations != "int8":
        fingerprint = _fingerprint(fingerprint, activations)
    kv_dtype = kv_dtype_of({matrix.format for weight in weights.values() for matrix in matrices_of(weight)})
    model = Model(
        core,
        spec,
        tokenizer=tokenizer,
        generation_config=checkpoint.generation_config if checkpoint else {},
        fingerprint=fingerprint,
        kv_dtype=kv_dtype,
        threads=threads,
    )
    if checkpoint is not None:
        model._weights, model._config = weights, checkpoint.config.values
        model._source = Path(os.path.realpath(checkpoint.path))  # the current folder may change
    return model


def native_spec(spec: DecoderSpec) -> dict[str, Any]:
    """`spec` as the core takes it."""
    return asdict(spec) | {
        "rope_inv_freq": list(spec.rope_inv_freq or ()),
        "attention_scale": spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
        "sliding_window": spec.sliding_window or 0,
        "layer_windows": [window or 0 for window in spec.layer_windows or ()],
        "attention_softcap": spec.attention_softcap or 0.0,
        "logit_softcap": spec.logit_softcap or 0.0,
        "alibi_slopes": list(spec.alibi_slopes or ()),
    }


def kv_dtype_of(formats: set[str]) -> str:
    """What a kv_dtype "auto" means for weights of these formats."""
    if formats == {"f32"}:
        return "f32"
    return "f16" if formats <= set(FLOAT_FORMATS) else "int8"


def _fingerprint(checkpoint: str, *made: object) -> str:
    text = repr((checkpoint, *made))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _load_tokenizer(path: Path | None, spec: DecoderSpec) -> Tokenizer | None:
    if path is None:
        return None
    from llmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > spec.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary only {spec.vocab_size}"
        )
    return tokenizer


def _sequences(ids: Ids) -> tuple[list[npt.NDArray[np.int32]], bool]:
    """The sequences in `ids`, and whether there was an outer list."""
    if isinstance(ids, np.ndarray):
        if ids.ndim not in (1, 2):
            raise ArgumentError(f"ids must be [T] or [B, T], got {ids.ndim} dimensions")
        nested = ids.ndim == 2
        rows: Sequence[Any] = list(ids) if nested else [ids]
    else:
        nested = len(ids) > 0 and not isinstance(ids[0], int | np.integer)
        rows = list(ids) if nested else [ids]
    if not rows or any(len(row) == 0 for row in rows):
        raise ArgumentError("ids must hold at least one token in each sequence")
    return [id_array(row) for row in rows], nested


def id_array(row: Any) -> npt.NDArray[np.int32]:
    """Token ids [T] as the core takes them. Raises TypeError, ArgumentError."""
    array = np.asarray(row)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError("token ids must be integers")
    if array.size and (array.min() < 0 or array.max() >= 2**31):
        raise ArgumentError(f"token ids must be within [0, 2**31), got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, np.int32)
