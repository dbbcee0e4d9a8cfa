"""Text <-> token ids: `Tokenizer`, one class for every vocabulary llmcore can reproduce exactly.

    tok = llmcore.Tokenizer.load("checkpoint/")
    ids = tok.encode("Hello")
    tok.decode(ids)

Ids are equal to those of the vocabulary's own encoder (tokenizers, tiktoken, sentencepiece). What can't be reproduced
exactly is refused at load. A Tokenizer never changes and may be used by any number of threads at once.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import _core
from llmcore.arguments import one_of
from llmcore.checkpoint.files import check_path
from llmcore.decode_stream import DecodeStream
from llmcore.errors import ArgumentError, ArgumentTypeError, LimitError, TokenizerError, escape, shown
from llmcore.vocab.arguments import check_flags, id_array, integer, text_list, thread_count
from llmcore.vocab.decoders import EACH_BYTE, texts_of_bytes
from llmcore.vocab.offsets import byte_places, trimmed
from llmcore.vocab.spec import FIRST_TEXT, AddedToken, BrokenBytes, FirstSpace, Kind, VocabSpec
from llmcore.vocab.surrogates import clean
from llmcore.vocab.training import MODEL_TYPES, Source, train_characters, train_spec

_log = logging.getLogger("llmcore")

if TYPE_CHECKING:
    import numpy.typing as npt

    from llmcore.chat import ChatTemplate

_MODEL_NAMES = {1: "Unigram", 2: "WordPiece", 3: "WordLevel", 4: "BPE with marked words"}
_MAX_PADDED = 1 << 28  # ids of a padded batch, which take 16 bytes each
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>")


class Tokenizer:
    """A vocabulary with its encoder. Made by `load` or `train`."""

    def __init__(
        self,
        spec: VocabSpec,
        *,
        bos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
        core: _core.Tokenizer | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Use `load` or `train` instead; this takes a vocabulary as data, and what was built of it if that is there.

        Raises TokenizerError.
        """
        self._spec = spec
        self._core = _core.Tokenizer(spec.core_fields()) if core is None else core
        self._special = {t.content: t.id for t in spec.added if t.control}
        self._skipped = spec.skipped
        self._skipped_set = frozenset(self._skipped)
        self._bos_id = bos_id
        self._eos_ids = tuple(eos_ids)
        self._chat_template = chat_template
        self._fingerprint = fingerprint
        self._names: dict[str, int] | None = None

    # --- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str], pattern: str | None = None) -> Tokenizer:
        """The tokenizer at `path`: a checkpoint folder, or a file.

        Files: tokenizer.json, tokenizer.model, tekken.json, vocab.json beside merges.txt, .tiktoken, .gguf.
        A tokenizer.json's own `padding` and `truncation` don't count, as in transformers: see `encode_batch_padded`.

        Contents decide, not names: a tokenizer.model of base64 ranks is Llama-3's. `pattern` (gpt2, r50k, p50k,
        cl100k, llama3, qwen2, o200k, or a regular expression as tiktoken takes it) says how a file of ranks splits
        text, where its vocabulary isn't a known one.
        Raises TokenizerError when there is no tokenizer or it can't be reproduced exactly, LimitError when it is too
        large, StorageError when a file can't be read, ArgumentError when `path` is none.
        """
        from llmcore.vocab.loading import load_parts

        check_path(path)
        parts = load_parts(path, pattern)
        return cls(
            parts.spec,
            bos_id=parts.bos_id,
            eos_ids=parts.eos_ids,
            chat_template=parts.chat_template,
            core=parts.core,
            fingerprint=parts.fingerprint,
        )

    @classmethod
    def train(
        cls,
        texts_or_files: Iterable[Source] | Source,
        *,
        vocab_size: int,
        model_type: str = "byte_bpe",
        pattern: str | None = "gpt2",
        special_tokens: Sequence[str] | None = None,
        min_frequency: int = 0,
        ties: str = "ids",
        character_coverage: float = 0.9995,
        byte_fallback: bool = True,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tokenizer:
        """Trains a vocabulary of `vocab_size` ids on texts (str) or files (os.PathLike, UTF-8).

        `model_type`: "byte_bpe", byte-pair encoding of bytes as GPT-2's and Llama-3's; "bpe", of characters, and
        "unigram", the most probable tokens, both as SentencePiece makes them (Llama-2, T5).

        byte_bpe: a text is split as a whole, a file line by line. `pattern`: gpt2, cl100k, llama3, qwen2, o200k, or
        None for no splitting. Ids: `special_tokens` (none), the 256 bytes, then the merges. Among equally frequent
        pairs `ties="ids"` takes the one of the smallest ids, as Hugging Face's BpeTrainer does, "text" the one of the
        greatest bytes.
        bpe, unigram: words begin with their space; each line is a text of its own, without its ending and with a space
        before it. `character_coverage`: the share of all characters that get a token, the others being spelled by
        bytes (`byte_fallback`), or else unknown. Ids: `special_tokens` (`<unk>`, `<s>`, `</s>`), the 256 bytes if they
        are wanted, then the characters and the merges, or for unigram the tokens from the most probable on.

        A corpus in which too little repeats gives fewer ids. Pairs rarer than `min_frequency` are left. Files are read
        in blocks: they may be larger than memory. The result doesn't depend on `threads`. `progress(done, vocab_size)`
        is called now and then.
        Raises ArgumentError, TokenizerError for a file that isn't UTF-8, StorageError.
        """
        if model_type not in MODEL_TYPES:
            raise ArgumentError(f"model_type: {escape(model_type)} is none of {', '.join(MODEL_TYPES)}")
        sources = [texts_or_files] if isinstance(texts_or_files, str | os.PathLike) else texts_or_files
        by_bytes = model_type == "byte_bpe"
        if special_tokens is None:
            special_tokens = () if by_bytes else ("<unk>", "<s>", "</s>")
        size, rarest = integer(vocab_size, "vocab_size"), integer(min_frequency, "min_frequency")
        if by_bytes:
            spec = train_spec(
                sources,
                vocab_size=size,
                pattern=pattern,
                special_tokens=special_tokens,
                min_frequency=rarest,
                ties=ties,
                threads=thread_count(threads),
                progress=progress,
            )
        else:
            spec = train_characters(
                sources,
                model_type=model_type,
                vocab_size=size,
                special_tokens=special_tokens,
                min_frequency=rarest,
                character_coverage=character_coverage,
                byte_fallback=byte_fallback,
                threads=thread_count(threads),
                progress=progress,
            )
        ids = {token: at for at, token in enumerate(special_tokens)}
        return cls(spec, bos_id=ids.get("<s>"), eos_ids=[ids[t] for t in ("<|endoftext|>", "</s>") if t in ids])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a tokenizer.json that Hugging Face tokenizers reads to the same ids. Atomic.

        Raises ArgumentError, StorageError, and TokenizerError for what such a file can't say (SentencePiece's own
        normaliser).
        """
        from llmcore.checkpoint.write import write_atomically
        from llmcore.vocab.hf_writer import to_json

        check_path(path)

        write_atomically(path, [to_json(self._spec, self._core.merges.reshape(-1, 3)).encode("utf-8")])

    # --- text to ids --------------------------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        allow_special: bool = False,
        *,
        text_pair: str | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """The ids of `text`. `add_special_tokens`: with what the vocabulary puts around a text (BOS, EOS).

        text_pair: a second text, as rerankers read; `encode_pair` also gives the type ids.

        Unless `allow_special`, text never becomes a control token: "<|eot_id|>" is then encoded as the letters it is
        written with. Lone surrogates count as U+FFFD. With `dropout`, each merge is left out with that probability when
        its turn comes (BPE dropout, for training data), by the random numbers of `seed`.
        Raises ArgumentError when `text` is no str or dropout is not from 0 to 1, TokenizerError for dropout with a
        vocabulary that merges nothing.
        """
        if text_pair is not None:
            if dropout:
                raise ArgumentError("dropout doesn't go with text_pair: encode the texts one by one")
            return self.encode_pair(text, text_pair, add_special_tokens, allow_special)[0]
        if dropout:
            if not isinstance(dropout, int | float | np.floating):
                raise ArgumentTypeError(f"dropout: must be a number from 0 to 1, found {type(dropout).__name__}")
            if not 0.0 <= dropout <= 1.0:
                raise ArgumentError(f"dropout: must be from 0 to 1, found {shown(dropout)}")
            at = integer(seed, "seed") & 0xFFFFFFFFFFFFFFFF
            return self._core.encode_dropout(text, add_special_tokens, allow_special, float(dropout), at)
        try:
            return self._core.encode(text, add_special_tokens, allow_special)
        except TypeError:
            check_flags(add_special_tokens, allow_special)
            raise

    def encode_pair(
        self, text: str, text_pair: str, add_special_tokens: bool = True, allow_special: bool = False
    ) -> tuple[list[int], list[int]]:
        """The ids of two texts that belong together (a query and a document), and their type ids, as BERT's models read
        them: `[CLS] text [SEP] text_pair [SEP]` with 0 up to the first [SEP] and 1 behind it.

        What goes around them and which types they have is up to the vocabulary (a tokenizer.json's `pair` template);
        one that doesn't say has each text as `encode` does, with the types 0 and 1. Raises as `encode`.
        """
        texts = [self.encode(each, False, allow_special) for each in (text, text_pair)]
        ids: list[int] = []
        types: list[int] = []
        for id, type_id in self._spec.pair_template:
            new = texts[FIRST_TEXT - id] if id < 0 else [id] * bool(add_special_tokens)
            ids += new
            types += [type_id] * len(new)
        return ids, types

    def encode_to_numpy(
        self, text: str, add_special_tokens: bool = True, allow_special: bool = False
    ) -> npt.NDArray[np.uint32]:
        """As `encode`, as an array uint32 [T]."""
        try:
            return self._core.encode_array(text, add_special_tokens, allow_special)
        except TypeError:
            check_flags(add_special_tokens, allow_special)
            raise

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True, allow_special: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, with each id's place in `text` as (start, end) in characters.

        A token that holds a part of a character covers the character; where normalisation changes text, a token
        covers the whole changed stretch; what isn't from the text (BOS) has an empty place. A tokenizer.json may ask
        for offsets without the white space around a token (`trim_offsets`, as RoBERTa's and GPT-NeoX's does).
        """
        check_flags(add_special_tokens, allow_special)
        ids, places = self._core.encode_spans(text, add_special_tokens, allow_special)
        for keep_first in self._spec.trims:
            first = len(self._spec.prefix_ids) if add_special_tokens else 0
            places = trimmed(self, text, ids, places, keep_first, first)
        return ids, places

    def encode_batch(
        self,
        texts: Sequence[str],
        threads: int | None = None,
        *,
        add_special_tokens: bool = True,
        allow_special: bool = False,
    ) -> list[list[int]]:
        """As `encode` for each text, on `threads` threads (default: all of this process's cores).

        Where there are more threads than texts, they share the long ones. Raises ArgumentError for what is no sequence
        of str and for threads outside 1 to 1024.
        """
        check_flags(add_special_tokens, allow_special)
        return self._core.encode_batch(text_list(texts), add_special_tokens, allow_special, thread_count(threads))

    def encode_batch_to_numpy(
        self,
        texts: Sequence[str],
        threads: int | None = None,
        *,
        add_special_tokens: bool = True,
        allow_special: bool = False,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """As `encode_batch`, as arrays: all ids one after another, uint32 [T], and where each text ends, int64 [texts].

        Of at least one text, `np.split(ids, ends[:-1])` gives the ids apart. Raises as `encode_batch`.
        """
        check_flags(add_special_tokens, allow_special)
        return self._core.encode_batch_arrays(
            text_list(texts), add_special_tokens, allow_special, thread_count(threads)
        )

    def encode_batch_padded(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        padding: str = "longest",
        padding_side: str = "right",
        truncation_side: str = "right",
        pad_id: int | None = None,
        add_special_tokens: bool = True,
        threads: int | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids and attention mask (1 for tokens, 0 for padding), both int64 [texts, length].

        Texts beyond `max_length` tokens lose tokens on `truncation_side`; the tokens that go around a text stay.
        padding: "longest" to the longest of the batch, "max_length" to that. pad_id: by default that of a token named
        for it, else the end of text. Raises ArgumentError, LimitError for more than 2^28 ids with the padding, and as
        `encode_batch`.
        """
        for name, value, known in (
            ("padding", padding, ("longest", "max_length")),
            ("padding_side", padding_side, ("left", "right")),
            ("truncation_side", truncation_side, ("left", "right")),
        ):
            one_of(name, value, known)
        prefix = list(self._spec.prefix_ids) if add_special_tokens else []
        suffix = list(self._spec.suffix_ids) if add_special_tokens else []
        around = len(prefix) + len(suffix)
        if max_length is None and padding == "max_length":
            raise ArgumentError("padding to max_length needs max_length")
        if max_length is not None and integer(max_length, "max_length") < max(1, around):
            raise ArgumentError(f"max_length must be at least {max(1, around)}, got {shown(max_length)}")
        pad = self._pad_id() if pad_id is None else integer(pad_id, "pad_id")
        if not 0 <= pad < self.vocab_size:
            raise ArgumentError(f"pad_id must be below {self.vocab_size}, got {shown(pad)}")
        rows = self.encode_batch(texts, add_special_tokens=False, threads=threads)
        if max_length is not None:
            room = max_length - around
            rows = [row[:room] if truncation_side == "right" else row[max(len(row) - room, 0) :] for row in rows]
        rows = [[*prefix, *row, *suffix] for row in rows]
        width = max_length if max_length is not None and padding == "max_length" else max(map(len, rows), default=0)
        if len(rows) * width > _MAX_PADDED:
            raise LimitError(f"{len(rows)} texts padded to {width} ids are more than {_MAX_PADDED} ids")
        ids = np.full((len(rows), width), pad, np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            places = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
            ids[i, places], mask[i, places] = row, 1
        return ids, mask

    def _pad_id(self) -> int:
        named = (self.token_to_id(name) for name in _PAD_NAMES)
        found = next((id for id in named if id is not None), next(iter(self._eos_ids), None))
        if found is None:
            raise ArgumentError("this vocabulary has no token for padding: give pad_id")
        return found

    def encode_rendered(self, text: str, guarded: Sequence[tuple[int, int]], also: Sequence[int] = ()) -> list[int]:
        """The ids of a rendered chat: control tokens count, but for those that hold any of what is `guarded`:
        (begin, end) in characters, in order. `also`: further tokens that are treated as control tokens here, in order.

        This is what `apply_chat_template` encodes with; nothing is put around the text.
        """
        return self._core.encode_guarded(text, byte_places(text, guarded), also)

    def encode_rendered_with_offsets(
        self, text: str, guarded: Sequence[tuple[int, int]], also: Sequence[int] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode_rendered`, with places as `encode_with_offsets` has them."""
        return self._core.encode_guarded_spans(text, byte_places(text, guarded), also)

    # --- ids to text --------------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        """The bytes of `ids`. Raises ArgumentError for an id that isn't in the vocabulary.

        skip_special_tokens: without the tokens that the file marks as special. An ordinary added token stays even if
        it is written like one (Qwen2.5's `<|fim_prefix|>`), and so does an unknown token of a tokenizer.json that
        isn't marked.
        """
        array = id_array(ids)
        if self._spec.decoders is not None:
            return self._decode_by_parts(array, skip_special_tokens).encode("utf-8")
        return self._core.decode(array, self._skipped if skip_special_tokens else [])

    def _decode_by_parts(self, ids: npt.NDArray[np.uint32], skip: bool) -> str:
        from llmcore.vocab.decoders import decode_tokens

        self._core.decode(ids, [])  # every id is one
        names, parts = self._spec.names, self._spec.decoders or ()
        return decode_tokens(parts, [names[int(i)] for i in ids if not (skip and int(i) in self._skipped_set)])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises ArgumentError for an unknown id.

        That is one for each of them of a SentencePiece model, and of a tokenizer.json with ByteFallback one for each
        byte of a run of byte tokens that isn't UTF-8 as a whole.
        """
        array = id_array(ids)
        data = self.decode_bytes(array, skip_special_tokens)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            if self._spec.broken_bytes == BrokenBytes.RUN:
                return self._decode_runs(array, skip_special_tokens)
            return data.decode("utf-8", "replace" if self._spec.broken_bytes == BrokenBytes.TOGETHER else EACH_BYTE)

    def _decode_runs(self, ids: npt.NDArray[np.uint32], skip: bool) -> str:
        spec = self._spec
        text = ""
        shown = (int(i) for i in ids if not (skip and int(i) in self._skipped_set))
        for is_byte, run in groupby(shown, lambda id: spec.kinds[id] == Kind.BYTE):
            data = b"".join(spec.tokens[id] for id in run)
            text += "".join(texts_of_bytes(data)) if is_byte else data.decode("utf-8")
        return text.removeprefix(" ") if spec.first_space == FirstSpace.OF_TEXT else text

    def decode_stream(self, skip_special_tokens: bool = False) -> DecodeStream:
        """A decoder that takes one id at a time and gives text as soon as its characters are whole."""
        return DecodeStream(self, skip_special_tokens)

    # --- the vocabulary -----------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """What the vocabulary is, in the field's words: "byte-level BPE", "Unigram", "WordPiece" and the like."""
        if self._spec.model is not None:
            return _MODEL_NAMES[self._spec.model.kind]
        return "byte-level BPE" if self._spec.byte_level else "SentencePiece BPE"

    @property
    def vocab_size(self) -> int:
        """Number of ids: the largest id plus one. Gaps count."""
        return int(self._core.size)

    def token_to_id(self, token: str | bytes) -> int | None:
        """The id of a token, or None. A str is a token as `id_to_token` gives it, or else text; bytes are its bytes."""
        if not isinstance(token, str | bytes):
            raise ArgumentTypeError(f"token: must be str or bytes, found {type(token).__name__}")
        if isinstance(token, bytes) and self._spec.model is None:
            return self._core.find(token)
        if isinstance(token, bytes):
            token = token.decode("utf-8", "replace")
        if self._names is None:
            from llmcore.vocab.hf import show_token

            kinds = self._spec.kinds
            self._names = {show_token(self._spec, i): i for i, k in enumerate(kinds) if k != Kind.GAP}
        named = self._names.get(token)
        return named if named is not None else self._core.find(clean(token).encode("utf-8"))

    def id_to_token(self, id: int) -> str | None:
        """Token `id` as a tokenizer.json spells it (GPT-2's byte alphabet, U+2581 for spaces), None for a gap.

        Raises ArgumentError for an id outside of the vocabulary.
        """
        from llmcore.vocab.hf import show_token

        at = integer(id, "id")
        if not 0 <= at < self.vocab_size:
            raise ArgumentError(f"id: {shown(at)} is not from 0 to {self.vocab_size - 1}")
        return None if self._spec.kinds[at] == Kind.GAP else show_token(self._spec, at)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The control tokens, text -> id."""
        return dict(self._special)

    @property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """Every token that is matched as a whole, control or not."""
        return self._spec.added

    def _has(self, id: int) -> bool:
        """Whether the vocabulary, which may have gaps and be smaller than a model's, has this id."""
        return id < len(self._spec.kinds) and self._spec.kinds[id] != Kind.GAP

    def _text(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """As `decode`; what the vocabulary hasn't has no text."""
        return self.decode([id for id in ids if self._has(id)], skip_special_tokens)

    @functools.cached_property
    def _marks(self) -> list[tuple[str, int]]:
        """The ordinary added tokens that may set the parts of a chat apart, with their ids."""
        return [(t.content, t.id) for t in self._spec.added if not t.control and t.bracketed]

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if there is one."""
        return self._bos_id

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end a text."""
        return list(self._eos_ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides ids and text: equal fingerprints, equal tokenizers."""
        if self._fingerprint is None:
            self._fingerprint = self._spec.fingerprint()
        return self._fingerprint

    # --- chat ---------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template, if there is one."""
        return None if self._chat_template is None else self._chat_template.source

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        *,
        chat_format: str | None = None,
        continue_final_message: bool | str = False,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        **template_kwargs: Any,
    ) -> list[int] | str | dict[str, list[int]]:
        """The prompt for a conversation: ids, or the text when not `tokenize`.

        Control tokens come from the template alone: what messages and tools say stays text, whatever it looks like.
        chat_format: one of the built-in formats (chatml, llama-2, llama-3, alpaca, gemma, mistral, phi-3, plain)
        instead of the checkpoint's template, for models that bring none.
        continue_final_message: the prompt ends where the last message's content (or its field of this name) does, for
        the model to go on with; needs add_generation_prompt=False.
        return_dict: `input_ids` and an `attention_mask` of ones, and with return_assistant_tokens_mask
        `assistant_masks`: 1 for ids of what the template has between `{% generation %}` and `{% endgeneration %}`.
        Raises TemplateError when there is no template or it fails, LimitError when it uses too much, ArgumentError.
        """
        from llmcore.chat import conversation, render_ids, render_masked, required

        template = required(self._chat_template) if chat_format is None else self._format(chat_format)
        if return_assistant_tokens_mask and not return_dict:
            raise ArgumentError("return_assistant_tokens_mask needs return_dict=True")
        if return_dict and not tokenize:
            raise ArgumentError("return_dict needs tokenize=True")
        if not tokenize:
            return template.render(messages, tools, add_generation_prompt, continue_final_message, **template_kwargs)
        inputs = conversation(messages, tools, add_generation_prompt, template_kwargs, continue_final_message)
        if return_assistant_tokens_mask:
            if continue_final_message:
                raise ArgumentError("return_assistant_tokens_mask doesn't go with continue_final_message")
            if not re.search(r"\{%-?\s*generation\s*-?%\}", template.chosen(tools)):
                _log.warning("the chat template has no {% generation %}: nothing is marked as the assistant's")
            ids, mask = render_masked(self, template, inputs)
            return {"input_ids": ids, "attention_mask": [1] * len(ids), "assistant_masks": mask}
        ids = render_ids(self, template, inputs)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)} if return_dict else ids

    @property
    def template_variables(self) -> dict[str, str]:
        """bos_token, eos_token and what else tokenizer_config.json gives a template to read."""
        ends = {"bos_token": self._bos_id, "eos_token": next(iter(self._eos_ids), None)}
        texts = {key: self.id_to_token(id) for key, id in ends.items() if id is not None}
        own = {} if self._chat_template is None else self._chat_template.variables
        return {**{key: text for key, text in texts.items() if text is not None}, **own}

    def _format(self, name: str) -> ChatTemplate:
        from llmcore.chat import ChatTemplate
        from llmcore.chat_formats import chat_format

        return ChatTemplate(chat_format(name).source, self.template_variables)

    def __reduce__(self) -> Any:
        """For other processes, which build the encoder again."""
        return _make, (self._spec, self._bos_id, self._eos_ids, self._chat_template, self._fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, special_tokens={len(self._special)})"


def _make(
    spec: VocabSpec,
    bos_id: int | None,
    eos_ids: tuple[int, ...],
    chat_template: ChatTemplate | None,
    fingerprint: str | None,
) -> Tokenizer:
    return Tokenizer(spec, bos_id=bos_id, eos_ids=eos_ids, chat_template=chat_template, fingerprint=fingerprint)


__all__ = ["DecodeStream", "Tokenizer", "TokenizerError"]
