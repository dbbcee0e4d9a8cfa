"""Structured output: always valid, in batches, with n answers, drafts and preemption; what is no grammar is refused."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bits_hash
import llmcore
from llmcore import ArgumentError, LimitError, SamplingParams, StructuredOutputsParams
from llmcore.model import kv_bytes_per_page

pytest.importorskip("llguidance", reason="the extra [structured] is not installed")
PROMPT = "The prince"


@pytest.fixture(scope="module")
def llm() -> Iterator[llmcore.LLM]:
    with llmcore.LLM("tiny", threads=1, max_batch_size=8, progress=False) as opened:
        yield opened


def params(seed: int = 0, max_tokens: int = 60, **kind: Any) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=max_tokens, structured_outputs=StructuredOutputsParams(**kind))


def test_a_regular_expression_matches_the_whole_answer(llm: llmcore.LLM) -> None:
    pattern = r"(mon|tues|fri)day, [1-9][0-9]? (May|June) 18[0-9]{2}"
    outs = llm.generate([PROMPT] * 6, [params(seed, regex=pattern) for seed in range(6)])
    assert all(re.fullmatch(pattern, out.text) and out.finish_reason == "stop" for out in outs)
    assert len({out.text for out in outs}) > 1


def test_a_model_may_have_more_ids_than_its_tokenizer(llm: llmcore.LLM, tmp_path: Path) -> None:
    for size in (llm.model.spec.vocab_size + 12, llm.model.spec.vocab_size + 900):
        folder = tmp_path / str(size)
        folder.mkdir()
        bits_hash.write_model(folder, vocab=size)
        for file in (Path(llmcore.__file__).parent / "assets" / "tiny").glob("token*"):
            shutil.copy(file, folder)
        with llmcore.LLM(folder, threads=1, progress=False) as padded:
            out = padded.generate(PROMPT, params(1, regex="[a-z]{5}"))[0]
            assert re.fullmatch("[a-z]{5}", out.text)
            beams = padded.beam_search(PROMPT, llmcore.BeamSearchParams(beam_width=8, max_tokens=3))[0].sequences
            assert all(id < padded.tokenizer.vocab_size for beam in beams for id in beam.token_ids)


def test_threads_that_read_grammars_leave_the_stack_size(llm: llmcore.LLM) -> None:
    before = threading.stack_size()
    threads = [
        threading.Thread(target=llm.generate, args=(PROMPT, params(1, 4, regex=f"[a-z]{{{n}}}"))) for n in range(3, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threading.stack_size() == before


def test_one_of_some_texts(llm: llmcore.LLM) -> None:
    texts = ["Yes, sir", "no", "naïve 日本"]
    outs = llm.generate([PROMPT] * 12, [params(seed, choice=texts) for seed in range(12)])
    assert {out.text for out in outs} <= set(texts)
    many = [*texts, *(f"{i:b} " + "é.*\\n"[i % 5 :] for i in range(4000))]
    assert llm.generate(PROMPT, params(choice=many))[0].text in many
    only = llm.generate(PROMPT, params(choice=texts[2:]))[0]
    assert (only.text, only.finish_reason) == (texts[2], "stop")


def test_a_grammar(llm: llmcore.LLM) -> None:
    grammar = 'root ::= sum "=" digit\nsum ::= digit | "(" sum "+" sum ")"\ndigit ::= [0-9]'
    for seed in range(4):
        (out,) = llm.generate(PROMPT, params(seed, 200, grammar=grammar))
        if out.finish_reason == "stop":
            left, digit = out.text.split("=")
            assert digit.isdigit()
            assert isinstance(eval(left, {"__builtins__": {}}), int)
            assert re.fullmatch(r"[0-9()+]+", left)
            break
    else:
        pytest.fail("no answer was complete")


def test_any_object(llm: llmcore.LLM) -> None:
    out = llm.generate(PROMPT, params(3, 400, json_object=True, disable_any_whitespace=True))[0]
    if out.finish_reason == "stop":
        assert isinstance(json.loads(out.text), dict)
    assert out.text.startswith("{")


# --- schemas of many shapes -------------------------------------------------------------------------------------------


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Bounded, so that each answer ends: objects, arrays, enums, patterns, numbers in ranges, references, choices."""
    kinds = ["string", "enum", "integer", "number", "boolean", "null", "const", "pattern", "format"]
    if depth < 3:
        kinds += ["object", "object", "array", "anyOf"] * (2 if depth == 0 else 1)
    kind = "object" if depth == 0 and rng.random() < 0.6 else rng.choice(kinds)
    if kind == "object":
        names = rng.sample(["name", "age", "note", "a b", 'q"t', "items", "längd", "x"], rng.randrange(1, 4))
        required = [name for name in names if rng.random() < 0.7]
        properties = {name: random_schema(rng, depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = rng.randrange(0, 2)
        items = random_schema(rng, depth + 2)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randrange(0, 3)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 2) for _ in range(2)]}
    low = rng.randrange(-50, 50)
    simple: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": rng.randrange(0, 2), "maxLength": rng.randrange(2, 9)},
        "enum": {"enum": rng.sample(["red", "green", 3, None, True, "blå", [1, "a"], {"k": 2}], 3)},
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randrange(0, 300)},
        "number": {"type": "number", "minimum": low, "exclusiveMaximum": low + rng.randrange(1, 30), "multipleOf": 0.5},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "const": {"const": rng.choice(["fixed", 7, [True, None]])},
        "pattern": {"type": "string", "pattern": rng.choice(["^[A-Z][a-z]{1,6}$", "^\\d{3}-\\d{2}$", "^(ab|c){1,3}$"])},
        "format": {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])},
    }
    return simple[kind]


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def test_answers_to_200_schemas_are_valid(llm: llmcore.LLM) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    rng = random.Random(7)
    schemas = [TREE] * 3 + [random_schema(rng) for _ in range(197)]
    work = [
        params(i, 450, json=schema, disable_any_whitespace=i % 2 == 0, whitespace_pattern=r" ?" if i % 2 else None)
        for i, schema in enumerate(schemas)
    ]
    finished = 0
    for schema, out in zip(schemas, llm.generate([PROMPT] * len(work), work), strict=True):
        if out.finish_reason == "length":  # a text that was cut is no JSON: only a recursion may go on for so long
            assert schema is TREE
            continue
        finished += 1
        errors = list(validator(schema).iter_errors(json.loads(out.text)))
        assert not errors, (schema, out.text, errors[0].message)
    assert finished >= 198


# --- beside other requests --------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "maxLength": 12},
        "years": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["who", "years"],
    "additionalProperties": False,
}


def test_bits_do_not_depend_on_neighbours_drafts_or_preemption(llm: llmcore.LLM) -> None:
    work = [params(i, 60, json=SCHEMA) for i in range(3)] + [params(9, 40, regex="[a-z ]{20,30}")]
    work += [SamplingParams(seed=5, max_tokens=40), SamplingParams(temperature=0, max_tokens=60)]
    alone = [llm.generate(PROMPT, one)[0] for one in work]
    assert alone[4].token_ids != alone[0].token_ids
    page = kv_bytes_per_page(llm.model.spec, llm.kv_dtype)
    for options in ({"kv_cache_bytes": 12 * page}, {"speculative": 4}, {}):
        with llmcore.LLM(llm.model, max_batch_size=6, progress=False, **options) as other:
            together = other.generate([PROMPT] * len(work), work)
            assert other.stats()["preemptions"] > 0 or "kv_cache_bytes" not in options
        assert [(o.token_ids, o.finish_reason) for o in together] == [(o.token_ids, o.finish_reason) for o in alone]


def test_each_of_n_answers_has_its_own_way(llm: llmcore.LLM) -> None:
    one = SamplingParams(
        n=4, seed=3, max_tokens=80, structured_outputs=StructuredOutputsParams(regex="[a-z]{2,9}[0-9]")
    )
    (out,) = llm.generate(PROMPT, one)
    assert all(re.fullmatch("[a-z]{2,9}[0-9]", each.text) for each in out.outputs)
    assert len({each.text for each in out.outputs}) > 1


def test_a_stream(llm: llmcore.LLM) -> None:
    chunks = list(llm.stream(PROMPT, params(1, choice=["one two three"])))
    assert "".join(chunk.text for chunk in chunks) == "one two three"
    assert chunks[-1].finish_reason == "stop"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ({}, ArgumentError),
        ({"regex": "a", "choice": ["b"]}, ArgumentError),
        ({"regex": 3}, TypeError),
        ({"json": 3}, TypeError),
        ({"json": "{"}, ArgumentError),
        ({"json": {"a": float("nan")}}, ArgumentError),
        ({"json": {"a": {1, 2}}}, ArgumentError),
        ({"choice": "yes"}, TypeError),
        ({"choice": []}, ArgumentError),
        ({"choice": ["a", 3]}, TypeError),
        ({"choice": ["a"] * 5000}, ArgumentError),
        ({"regex": "a" * 300_000}, LimitError),
        ({"json": json.dumps([]) * 1}, TypeError),
    ],
)
def test_wrong_parameters(kind: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        StructuredOutputsParams(**kind)
    assert isinstance(caught.value, llmcore.LlmcoreError)


@pytest.mark.parametrize(
    "kind",
    [
        {"regex": "(("},
        {"json": {"type": "foo"}},
        {"json": {"$ref": "#/nowhere"}},
        {"json": {"type": "string", "pattern": "("}},
        {"grammar": "root ::= ("},
        {"grammar": "root ::= missing"},
        {"grammar": "root ::= root root"},
    ],
)
def test_r12_what_is_no_grammar_is_refused(llm: llmcore.LLM, kind: dict[str, Any]) -> None:
    with pytest.raises((ArgumentError, LimitError), match="structured outputs: "):
        llm.generate(PROMPT, params(**kind))
    assert llm.stats()["requests_running"] == 0


def test_r12_a_catastrophic_expression_is_an_ordinary_one(llm: llmcore.LLM) -> None:
    (out,) = llm.generate(PROMPT, params(2, 60, regex="(a+)+b"))
    assert out.finish_reason == "length" or re.fullmatch("a+b", out.text)
    alternatives = [f'"{i}"' for i in range(100_000)]
    assert llm.generate(PROMPT, params(1, grammar=f"root ::= {' | '.join(alternatives[:1000])}"))[0].text.isdigit()
    with pytest.raises(LimitError):
        llm.generate(PROMPT, params(1, grammar=f"root ::= {' | '.join(alternatives[:20_000])}"))
    with pytest.raises(LimitError):
        params(grammar=f"root ::= {' | '.join(alternatives)}")


def test_only_its_own_class_is_taken() -> None:
    with pytest.raises(TypeError):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_deep_chains_of_rules(llm: llmcore.LLM) -> None:
    """Which llguidance goes down by recursion: an ordinary stack holds a thousand."""
    depth = 3000
    rules = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(depth)}
    schema = {"$defs": rules | {f"d{depth}": {"type": "integer"}}, "$ref": "#/$defs/d0"}
    assert llm.generate(PROMPT, params(4, json=schema))[0].text.startswith("[")
    lark = "start: r0\n" + "".join(f'r{i}: "x" r{i + 1}\n' for i in range(depth)) + f'r{depth}: "y"\n'
    assert set(llm.generate(PROMPT, params(4, grammar=lark))[0].text) == {"x"}


def test_an_end_token_that_is_ordinary_text_is_text(llm: llmcore.LLM, tmp_path: Path) -> None:
    shutil.copytree(Path(llmcore.__file__).parent / "assets" / "tiny", tmp_path / "model")
    (letter,) = llm.tokenizer.encode("l", add_special_tokens=False)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((tmp_path / "model" / name).read_text())
        (tmp_path / "model" / name).write_text(json.dumps({**config, "eos_token_id": [1, letter]}))
    with llmcore.LLM(tmp_path / "model", threads=1, progress=False) as other:
        kinds: list[dict[str, Any]] = [{"choice": ["l"]}, {"regex": "xl"}, {"json": {"enum": ["l"]}}]
        outs = [other.generate(PROMPT, params(9, **kind))[0] for kind in kinds]
        assert [(out.text, out.finish_reason) for out in outs] == [("l", "stop"), ("xl", "stop"), ('"l"', "stop")]
        plain = other.generate(PROMPT, SamplingParams(max_tokens=9, allowed_token_ids=[letter]))[0]
        assert (plain.text, plain.finish_reason) == ("", "stop")


def test_wrong_types_of_flags() -> None:
    for wrong in (
        {"json_object": "yes"},
        {"regex": "a", "disable_any_whitespace": "false"},
        {"choice": np.array(["a", "b"])},
    ):
        with pytest.raises(TypeError) as caught:
            StructuredOutputsParams(**wrong)  # type: ignore[arg-type]
        assert isinstance(caught.value, ArgumentError)
