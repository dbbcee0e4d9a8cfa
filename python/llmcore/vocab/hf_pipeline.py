"""The parts of a tokenizer.json around its model: normalizer, pre_tokenizer, post_processor, decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.fields import array, flag, obj, refuse, shown, text, token_id
from llmcore.vocab.patterns import REGEXES_OF_STAGE, STAGE_OF_REGEX, Stage
from llmcore.vocab.spec import FIRST_TEXT, SECOND_TEXT, BrokenBytes, FirstSpace, PairTemplate, SpacePrefix

_MAX_DEPTH = 16
_MAX_PARTS = 64
_MARK = "\u2581"
# Stages that look at bytes may stand behind ByteLevel, where the text is spelled in the byte alphabet.
_BEHIND_BYTES = {
    Stage.DIGIT_RUNS: Stage.BYTE_DIGIT_RUNS,
    Stage.DIGITS_EACH: Stage.BYTE_DIGITS_EACH,
    Stage.THREE_DIGITS: Stage.THREE_DIGITS,
}


@dataclass(frozen=True)
class Normalizer:
    """What happens to text before anything else."""

    nfc: bool = False
    metaspace: bool = False
    space_prefix: SpacePrefix = SpacePrefix.NEVER


@dataclass(frozen=True)
class Splitter:
    """What the pre-tokenizer comes down to."""

    stages: tuple[Stage, ...] = ()
    byte_level: bool = False
    metaspace: bool = False
    space_prefix: SpacePrefix = SpacePrefix.NEVER


@dataclass(frozen=True)
class Decoder:
    """What the decoder comes down to, when it only joins tokens.

    `byte_fallback`: byte tokens decode to their bytes.
    """

    byte_level: bool = False
    first_space: FirstSpace = FirstSpace.KEPT
    byte_fallback: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """Those of a VocabSpec that it decides."""
        broken = BrokenBytes.RUN if self.byte_fallback else BrokenBytes.TOGETHER
        return {"first_space": self.first_space, "broken_bytes": broken}


@dataclass(frozen=True)
class Around:
    """What the post-processor comes down to; the fields are those of VocabSpec."""

    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    pair: PairTemplate | None = None
    trims: tuple[bool, ...] = ()


def flatten(value: object, children: str, where: str) -> list[dict[str, Any]]:
    """The parts of a possibly nested Sequence, in order."""
    parts: list[dict[str, Any]] = []
    pending: list[tuple[object, int]] = [] if value is None else [(value, 0)]
    while pending:
        item, depth = pending.pop()
        part = obj(item, where)
        if text(part.get("type"), f"{where}.type") != "Sequence":
            parts.append(part)
        elif depth == _MAX_DEPTH:
            raise LimitError(f"{where}: nested deeper than {_MAX_DEPTH}")
        else:
            inner = array(part.get(children), f"{where}.{children}")
            pending += [(child, depth + 1) for child in reversed(inner)]
        if len(parts) + len(pending) > _MAX_PARTS:
            raise LimitError(f"{where}: more than {_MAX_PARTS} parts")
    return parts


def _replaces(part: dict[str, Any], old: str, new: str) -> bool:
    """True when the Replace `part` puts `new` in the place of the string `old`."""
    return bool(part.get("content") == new and obj(part.get("pattern"), "Replace.pattern") == {"String": old})


def read_normalizer(value: object) -> Normalizer:
    """NFC, or SentencePiece's Prepend and Replace of the space mark."""
    parts = flatten(value, "normalizers", "normalizer")
    kinds = [part.get("type") for part in parts]
    if not parts:
        return Normalizer()
    if kinds == ["NFC"]:
        return Normalizer(nfc=True)
    prefix = SpacePrefix.NEVER
    if kinds[0] == "Prepend" and parts[0].get("prepend") == _MARK:
        prefix = SpacePrefix.EVERY_SEGMENT
        parts, kinds = parts[1:], kinds[1:]
    if kinds == ["Replace"] and _replaces(parts[0], " ", _MARK):
        return Normalizer(metaspace=True, space_prefix=prefix)
    raise refuse(f"normalizer {shown(value)}", "normalizer")


def read_pre_tokenizer(value: object) -> Splitter:
    """The splitting stages; every part must be one that a scanner reproduces."""
    parts = flatten(value, "pretokenizers", "pre_tokenizer")
    stages: list[Stage] = []
    byte_level = False
    metaspace = False
    prefix = SpacePrefix.NEVER
    for i, (part, several) in enumerate(_grouped(parts)):
        kind = part.get("type")
        if metaspace:
            raise refuse(f"{shown(kind)} behind Metaspace", "pre_tokenizer")
        if kind == "ByteLevel" and not byte_level:
            byte_level = True
            if flag(part.get("add_prefix_space", True), "pre_tokenizer.add_prefix_space"):
                if i > 0:
                    raise refuse("ByteLevel with add_prefix_space behind another part", "pre_tokenizer")
                prefix = SpacePrefix.EVERY_SEGMENT
            if flag(part.get("use_regex", True), "pre_tokenizer.use_regex"):
                stages.append(Stage.GPT2)
        elif kind == "Metaspace" and i == 0:
            metaspace = True
            prefix = _metaspace_prefix(part)
            if flag(part.get("split", True), "pre_tokenizer.split"):
                stages.append(Stage.SPACE_EACH)
        else:
            stage = several or _stage(part)
            if byte_level and stage not in _BEHIND_BYTES:
                raise refuse(f"{shown(kind)} behind ByteLevel", "pre_tokenizer")
            stages.append(_BEHIND_BYTES[stage] if byte_level else stage)
    return Splitter(tuple(stages), byte_level, metaspace, prefix)


def splits_at_spaces(value: object) -> bool:
    """True for Gemma's pre-tokenizer, which splits after spaces."""
    parts = flatten(value, "pretokenizers", "pre_tokenizer")
    return len(parts) == 1 and _is_split(parts[0], {"String": " "}, "MergedWithPrevious")


def _is_split(part: dict[str, Any], pattern: dict[str, str], behavior: str) -> bool:
    inverted = flag(part.get("invert", False), "pre_tokenizer.invert")
    given = (part.get("type"), part.get("pattern"), part.get("behavior"))
    return given == ("Split", pattern, behavior) and not inverted


def _metaspace_prefix(part: dict[str, Any]) -> SpacePrefix:
    if part.get("replacement", _MARK) != _MARK:
        raise refuse(f"Metaspace with {shown(part['replacement'])}", "pre_tokenizer")
    scheme = part.get("prepend_scheme")
    if scheme is None:
        scheme = "always" if part.get("add_prefix_space", True) else "never"
    schemes = {"always": SpacePrefix.EVERY_SEGMENT, "first": SpacePrefix.TEXT_START, "never": SpacePrefix.NEVER}
    if not isinstance(scheme, str) or scheme not in schemes:
        raise TokenizerError(f"pre_tokenizer.prepend_scheme: {shown(scheme)} is none of always, first, never")
    return schemes[scheme]


def _grouped(parts: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Stage | None]]:
    """The parts one by one, but for those that are equal to a stage together: of these the first, with the stage."""
    together = {stage: regexes for stage, regexes in REGEXES_OF_STAGE.items() if len(regexes) > 1}
    while parts:
        stage, count = None, 1
        for known, regexes in together.items():
            first = zip(parts, regexes, strict=False)
            if len(parts) >= len(regexes) and all(_is_split(p, {"Regex": r}, "Isolated") for p, r in first):
                stage, count = known, len(regexes)
        yield parts[0], stage
        parts = parts[count:]


def _stage(part: dict[str, Any]) -> Stage:
    kind = part.get("type")
    if kind == "Digits":
        each = flag(part.get("individual_digits", False), "pre_tokenizer.individual_digits")
        return Stage.DIGITS_EACH if each else Stage.DIGIT_RUNS
    if kind == "Punctuation" and part.get("behavior") == "Contiguous":
        return Stage.PUNCTUATION
    stage = stage_of(part) if kind == "Split" else None
    if stage is None:
        raise refuse(f"pre-tokenizer {shown(kind)}", "pre_tokenizer")
    return stage


def stage_of(part: dict[str, Any]) -> Stage | None:
    """The stage that is equal to the Split `part`, if there is one."""
    pattern = obj(part.get("pattern"), "pre_tokenizer.pattern")
    regex = pattern.get("Regex")
    stage = STAGE_OF_REGEX.get(regex) if isinstance(regex, str) else None
    inverted = flag(part.get("invert", False), "pre_tokenizer.invert")
    # All but the digit pattern match the whole text, so removing what doesn't match removes nothing.
    whole = (part.get("behavior"), inverted) in (("Isolated", False), ("Removed", True))
    return stage if whole and not (stage == Stage.THREE_DIGITS and inverted) else None


def read_decoder(value: object) -> Decoder:
    """ByteLevel, Metaspace, or the sequence that undoes SentencePiece's normalizer."""
    parts = flatten(value, "decoders", "decoder")
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return Decoder(byte_level=True)
    if kinds == ["Metaspace"]:
        drops = _metaspace_prefix(parts[0]) != SpacePrefix.NEVER
        return Decoder(first_space=FirstSpace.ALL_OF_TOKEN if drops else FirstSpace.KEPT)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and _replaces(parts[0], _MARK, " "):
        rest = [[part.get(name) for name in ("type", "content", "start", "stop")] for part in parts[3:]]
        if rest in ([], [["Strip", " ", 1, 0]]):
            return Decoder(first_space=FirstSpace.OF_TEXT if rest else FirstSpace.KEPT, byte_fallback=True)
    raise refuse(f"decoder {shown(value)}", "decoder")


def read_post_processor(value: object, size: int) -> Around:
    """What goes around a text or a pair of them, and how offsets are trimmed."""
    single: PairTemplate | None = None
    pair: PairTemplate | None = None
    trims: list[bool] = []
    for part in flatten(value, "processors", "post_processor"):
        kind = part.get("type")
        if kind in ("ByteLevel", "RobertaProcessing"):
            prefix, trim = (
                flag(part.get(name, True), "post_processor") for name in ("add_prefix_space", "trim_offsets")
            )
            trims += [prefix] * trim
            if kind == "ByteLevel":
                continue
        if any(id >= 0 for id, _ in single or ()):  # it would get the tokens of those before it as texts of their own
            raise refuse(f"{shown(kind)} behind another that adds tokens", "post_processor")
        if kind in ("BertProcessing", "RobertaProcessing"):
            first, last = _named_id(part.get("cls")), _named_id(part.get("sep"))
            single = ((first, 0), (FIRST_TEXT, 0), (last, 0))
            between, type_id = ((), 1) if kind == "BertProcessing" else (((last, 0),), 0)
            pair = (*single, *between, (SECOND_TEXT, type_id), (last, type_id))
        elif kind == "TemplateProcessing":
            single = _template(part, "single")
            pair = _template(part, "pair") if "pair" in part else None
        else:
            raise refuse(f"post-processor {shown(kind)}", "post_processor")
    ids = [FIRST_TEXT] if single is None else [id for id, _ in single]
    if ids.count(FIRST_TEXT) + ids.count(SECOND_TEXT) != 1:
        raise refuse(f"a template with the text {sum(id < 0 for id in ids)} times", "post_processor")
    for at in [*ids, *(id for id, _ in pair or ())]:
        if at >= size:
            raise TokenizerError(f"post_processor: id {at} is not in the vocabulary of {size}")
    cut = next(i for i, id in enumerate(ids) if id < 0)
    before, after = tuple(ids[:cut]), tuple(ids[cut + 1 :])
    return Around(before, after, pair, tuple(trims))


def _named_id(value: object) -> int:
    pair = array(value, "post_processor")
    if len(pair) != 2:
        raise TokenizerError(f"post_processor: must be a token and its id, found {shown(value)}")
    return token_id(pair[1], "post_processor")


def _template(part: dict[str, Any], name: str) -> PairTemplate:
    special = obj(part.get("special_tokens"), "post_processor.special_tokens")
    made: list[tuple[int, int]] = []
    for item in array(part.get(name), f"post_processor.{name}"):
        piece = obj(item, f"post_processor.{name}")
        value = obj(piece.get("Sequence", piece.get("SpecialToken")), f"post_processor.{name}")
        type_id, label = token_id(value.get("type_id", 0), "post_processor.type_id"), value.get("id")
        if "Sequence" in piece:
            made.append((SECOND_TEXT if label == "B" else FIRST_TEXT, type_id))
            continue
        if not isinstance(label, str) or label not in special:
            raise TokenizerError(f"post_processor: {shown(label)} is not among its special tokens")
        ids = array(obj(special[label], "post_processor.special_tokens").get("ids"), "post_processor.ids")
        made += ((token_id(at, "post_processor.ids"), type_id) for at in ids)
    return tuple(made)
