"""Prompts and conversations nobody should send: a typed error or a documented answer, and the LLM stays usable.

The ids name the rows of the project's catalogue of bad inputs, section R; rows on sampling fields are in
test_sampling_params.py, what the tokenizer must bear in test_tokenizer_bad_inputs.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bits_hash
import llmcore
from llmcore.errors import ArgumentError, ContextLengthError, LimitError, LlmcoreError

CONTEXT = 64
BRIEF = llmcore.SamplingParams(max_tokens=2, temperature=0)
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
HELLO = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmcore.LLM]:
    """The built-in model with a chat template that shows all it is given."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(Path(llmcore.__file__).parent / "assets" / "tiny", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with llmcore.LLM(folder, max_model_len=CONTEXT, max_batch_size=2, progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def golden(llm: llmcore.LLM) -> list[int]:
    return llm.generate("The prince", BRIEF)[0].token_ids


def refused(llm: llmcore.LLM, golden: list[int], call: Callable[[], Any], error: type[Exception], says: str) -> None:
    """`call` raises `error`, in under 1 KiB, and leaves the LLM as it was."""
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, LlmcoreError)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1024
    stats = llm.stats()
    assert stats["requests_running"] == stats["requests_waiting"] == 0
    assert stats["kv_pages_free"] == stats["kv_pages_total"]
    assert llm.generate("The prince", BRIEF)[0].token_ids == golden


PROMPTS: list[tuple[str, Any, type[Exception], str]] = [
    ("R01-no-ids", [[]], ArgumentError, "empty"),
    *(
        (f"R02-{ord(c):x}", c * (1_000_000 // len(c.encode())), ContextLengthError, f"holds {CONTEXT}")
        for c in "a \n7\U0001f600\u0301\ufdfa"
    ),
    ("R03-over", [[5] * (CONTEXT + 1)], ContextLengthError, f"{CONTEXT + 1} tokens"),
    ("R03-exact", [[5] * CONTEXT], ContextLengthError, f"{CONTEXT} tokens"),
    ("R07-bytes", b"abc", ArgumentError, "bytes"),
    ("R07-int", 5, ArgumentError, "int"),
    ("R07-none", None, ArgumentError, "NoneType"),
    ("R07-mixed", ["a", 5], ArgumentError, "prompts[1]"),
    ("R07-floats", np.array([5.0, 6.0]), ArgumentError, "float64"),
    ("R07-generator", (text for text in "ab"), ArgumentError, "generator"),
    ("R07-bytes-in-list", ["a", b"b"], ArgumentError, "prompts[1]"),
    ("R08-negative", [[5, -1]], ArgumentError, "-1"),
    ("R08-vocab", [[5, 10**6]], ArgumentError, "token ids must be from 0 to 2047, got 1000000 at position 1"),
    ("R08-10**5000", [[5, 10**5000]], ArgumentError, "position 1"),
    ("R08-2**31", [[5, 2**31]], ArgumentError, "2147483648"),
    ("R08-2**63", [[5, 2**63]], ArgumentError, "9223372036854775808"),
    ("R08-true", [[5, True]], ArgumentError, "bool"),
    ("R08-float", [[5, 1.0]], ArgumentError, "float"),
    ("R08-nested", [[5, [1]]], ArgumentError, "list"),
    ("R08-many", [[5] * 10**7], ContextLengthError, "10000000"),
    ("R09", ["a"] * 10**6, LimitError, "65536"),
    ("R13-embeddings", {"prompt_embeds": np.zeros((1, 4), np.float32)}, ArgumentError, "dict"),
    ("R13-pickle", [b"\x80\x04K\x01."], ArgumentError, "bytes"),
]


@pytest.mark.parametrize(("prompt", "error", "says"), [row[1:] for row in PROMPTS], ids=[row[0] for row in PROMPTS])
def test_bad_prompts(llm: llmcore.LLM, golden: list[int], prompt: Any, error: type[Exception], says: str) -> None:
    refused(llm, golden, lambda: llm.generate(prompt, BRIEF), error, says)


@pytest.mark.parametrize("echo", [False, True])
def test_padding_of_the_vocabulary_may_stand_anywhere(tmp_path: Path, echo: bool) -> None:
    """Ids that the model has and its tokenizer doesn't: they have no text."""
    size = 2048 + 12
    bits_hash.write_model(tmp_path, vocab=size)
    for file in (Path(llmcore.__file__).parent / "assets" / "tiny").glob("token*"):
        shutil.copy(file, tmp_path)
    params = llmcore.SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, echo=echo, prompt_logprobs=1)
    with llmcore.LLM(tmp_path, threads=1, progress=False) as padded:
        for ids in ([2050, 5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 2050], [2048, size - 1]):
            (out,) = padded.generate([ids], params)
            known = [id for id in ids if id < 2048] if echo else []
            assert out.text == padded.tokenizer.decode([*known, *out.token_ids])
        (scored,) = padded.loglikelihood([([5, 2050], [2051, 6])])
        assert len(scored.token_logprobs) == 2
        with pytest.raises(ArgumentError, match="token ids must be from 0 to 2059, got 2060 at position 1"):
            padded.generate([[5, size]], params)


GOOD: list[tuple[str, Any, int]] = [
    ("R01-empty-text", "", 2),
    ("R01-special-alone", [[0]], 2),
    ("R03-one-left", [[5] * (CONTEXT - 1)], 1),
    ("R04-surrogate", "a\ud800b", 2),
    ("R05", "\0\x01\x85\ufeff\ufffe\U0001ffff\u202e\u2066\U000e0080", 2),
    ("R07-ndarray", np.array([5, 6]), 2),
    ("R18", "la la la la la la la la", 2),
]


@pytest.mark.parametrize(("prompt", "tokens"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD])
def test_odd_prompts_that_are_answered(llm: llmcore.LLM, prompt: Any, tokens: int) -> None:
    (out,) = llm.generate(prompt, llmcore.SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert len(out.token_ids) == tokens
    assert out.finish_reason == "length"


def test_no_prompts_no_answers(llm: llmcore.LLM) -> None:
    """R01: an empty list."""
    assert llm.generate([], BRIEF) == []


def test_user_text_is_never_a_control_token(llm: llmcore.LLM) -> None:
    """R06: every special token of the model and those of others, whole and with a zero-width space inside."""
    tokenizer = llm.tokenizer
    special = set(tokenizer.special_tokens.values())
    assert special
    names = [*tokenizer.special_tokens, "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]"]
    for name in names:
        for text in (name, name[:1] + "\u200b" + name[1:]):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert not special & set(ids)
            assert tokenizer.decode(ids) == text


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"properties": value}
    return value


def cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


CONVERSATIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("R10-none", [], ArgumentError, "empty"),
    ("R10-content-number", [{"role": "user", "content": 5}], ArgumentError, "messages[0]"),
    ("R10-role-number", [*HELLO, {"role": 5, "content": "x"}], ArgumentError, "messages[1]"),
    ("R10-many", HELLO * 10**5, LimitError, "100000"),
    ("R10-text-in-list", ["x"], ArgumentError, "str"),
    ("R10-text", "x", ArgumentError, "str"),
    ("R10-mapping", HELLO[0], ArgumentError, "dict"),
    ("R10-null", None, ArgumentError, "NoneType"),
    ("R10-null-in-list", [None], ArgumentError, "NoneType"),
]


@pytest.mark.parametrize(
    ("messages", "error", "says"), [row[1:] for row in CONVERSATIONS], ids=[row[0] for row in CONVERSATIONS]
)
def test_bad_conversations(
    llm: llmcore.LLM, golden: list[int], messages: Any, error: type[Exception], says: str
) -> None:
    refused(llm, golden, lambda: llm.chat(messages, BRIEF), error, says)


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"role": "alien", "content": "x"}], id="R10-role"),
        pytest.param([{"role": "user"}], id="R10-no-content"),
        pytest.param([{"role": "user", "content": None}], id="R10-content-null"),
        pytest.param([{"role": "user", "content": [{"type": "text", "text": "x"}]}], id="R10-content-parts"),
        pytest.param([{"role": "assistant", "content": "x"}], id="R10-assistant-first"),
        pytest.param([{"role": "system", "content": "x"}] * 2, id="R10-two-systems"),
    ],
)
def test_odd_conversations_are_the_templates_to_judge(llm: llmcore.LLM, messages: Any) -> None:
    (out,) = llm.chat(messages, BRIEF)
    assert out.token_ids


TOOLS: list[tuple[str, Any, type[Exception], str]] = [
    ("R11-deep", [deep(10**4)], LimitError, "deeper"),
    ("R11-cycle", [cycle()], LimitError, "deeper"),
    ("R11-10MB", [{"description": "x" * 10**7}], LimitError, "characters"),
    ("R11-number", [5], ArgumentError, "tools"),
    ("R11-text", "x", ArgumentError, "tools"),
]


@pytest.mark.parametrize(("tools", "error", "says"), [row[1:] for row in TOOLS], ids=[row[0] for row in TOOLS])
def test_bad_tools(llm: llmcore.LLM, golden: list[int], tools: Any, error: type[Exception], says: str) -> None:
    refused(llm, golden, lambda: llm.chat(HELLO, BRIEF, tools=tools), error, says)


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param({"type": "alien"}, id="R11-type"),
        pytest.param({"pattern": "("}, id="R11-pattern"),
        pytest.param({"$ref": "#"}, id="R11-ref-cycle"),
    ],
)
def test_what_a_tool_means_is_not_looked_at(llm: llmcore.LLM, tool: dict[str, Any]) -> None:
    """A schema reaches the model as text; nothing compiles or follows it."""
    (out,) = llm.chat(HELLO, BRIEF, tools=[tool])
    assert out.token_ids


def test_a_stream_never_holds_half_a_character(llm: llmcore.LLM) -> None:
    """R17: random tokens of a byte-level vocabulary, so that characters are cut everywhere."""
    params = llmcore.SamplingParams(max_tokens=40, temperature=50.0, seed=3, ignore_eos=True)
    chunks = [chunk.text for chunk in llm.stream("The", params)]
    (whole,) = llm.generate("The", params)
    assert "".join(chunks) == whole.text
    for chunk in chunks:
        chunk.encode("utf-8")  # no lone surrogate stands for half a character
