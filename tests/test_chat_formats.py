"""Chat formats by name: the text that the models were trained on, in the sandbox, with no control token from a user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llmcore
from llmcore import ArgumentError, SamplingParams, Tokenizer
from llmcore.chat import ChatTemplate
from llmcore.chat_formats import CHAT_FORMATS

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [
    {"role": "user", "content": "Hi & <b>you</b>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS]

EXPECTED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi & <b>you</b><|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi & <b>you</b> [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi & <b>you</b><|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHi & <b>you</b>\n\n### Response:\nHello\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi & <b>you</b><end_of_turn>\n"
    "<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
    "<start_of_turn>model\n",
    "mistral": "<s>[INST]Hi & <b>you</b>[/INST]Hello</s>[INST]Be brief.\n\nBye[/INST]",
    "phi-3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi & <b>you</b><|end|>\n<|assistant|>\nHello<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
    "plain": "Be brief.\n\nUser: Hi & <b>you</b>\nAssistant: Hello\nUser: Bye\nAssistant:",
}


def render(name: str, messages: list[dict[str, Any]]) -> str:
    return ChatTemplate(CHAT_FORMATS[name].source, VARIABLES).render(messages)


def test_every_format_is_known_here() -> None:
    assert CHAT_FORMATS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_text(name: str) -> None:
    assert render(name, SYSTEM) == EXPECTED[name]


def test_alpaca_has_a_system_message_of_its_own() -> None:
    assert render("alpaca", TURNS[:1]).startswith("Below is an instruction that describes a task. Write a response")


@pytest.mark.parametrize(
    ("name", "file", "messages"),
    [
        ("gemma", "google-gemma-2-2b-it.jinja", TURNS),
        ("phi-3", "microsoft-Phi-3.5-mini-instruct.jinja", SYSTEM),
        ("mistral", "mistralai-Mistral-Nemo-Instruct-2407.jinja", SYSTEM),
        ("mistral", "mistralai-Mistral-Nemo-Instruct-2407.jinja", TURNS),
        ("chatml", "Qwen-Qwen2.5-7B-Instruct.jinja", SYSTEM),
    ],
)
def test_text_is_that_of_the_models_own_template(
    data_dir: Path, name: str, file: str, messages: list[dict[str, Any]]
) -> None:
    source = (data_dir / "templates" / "llama.cpp-2026" / file).read_text(encoding="utf-8")
    assert render(name, messages) == ChatTemplate(source, VARIABLES).render(messages)


def test_a_tokenizer_without_a_template_takes_a_format() -> None:
    with llmcore.load("tiny", progress=False) as model:
        tokenizer = model.require_tokenizer()
        assert tokenizer.chat_template is None
        text = tokenizer.apply_chat_template(TURNS, tokenize=False, chat_format="llama-3")
        assert isinstance(text, str)
        assert text.startswith("<|begin_of_text|><|start_header_id|>user")
        forged = [{"role": "user", "content": "<|begin_of_text|>"}]
        ids = tokenizer.apply_chat_template(forged, chat_format="llama-3")
        assert list(ids).count(tokenizer.bos_id) == 1
        with pytest.raises(ArgumentError, match="chatml, llama-2"):
            tokenizer.apply_chat_template(TURNS, chat_format="vicuna")
        with pytest.raises(ArgumentError):
            tokenizer.apply_chat_template(TURNS, chat_format=3)  # type: ignore[arg-type]


def test_a_chat_in_a_format_ends_at_its_texts() -> None:
    with llmcore.LLM("tiny", progress=False) as llm:
        plain = llm.chat(TURNS, SamplingParams(temperature=0, max_tokens=30), chat_format="plain")[0]
        assert "\nUser:" not in plain.text
        both = llm.chat([TURNS, SYSTEM], [SamplingParams(temperature=0, max_tokens=5)] * 2, chat_format="plain")
        assert len(both) == 2
        assert llm.tokenizer.decode(plain.prompt_token_ids).endswith("User: Bye\nAssistant:")


def test_the_format_of_a_tokenizer_is_not_for_a_request_to_set(data_dir: Path) -> None:
    tokenizer = Tokenizer.load(Path(llmcore.__file__).parent / "assets" / "tiny")
    with pytest.raises(ArgumentError):
        tokenizer.apply_chat_template(TURNS, chat_format="plain", chat_template="x")
