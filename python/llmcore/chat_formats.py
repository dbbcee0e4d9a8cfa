"""Chat formats by name, for models that bring no template, as the models they are named after were trained on.

Each is a template in the same language and sandbox as a checkpoint's own. Sources: the model cards and published
templates of the models; Alpaca: its repository's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmcore.errors import ArgumentError, escape

_TURNS = "{% for m in messages %}"
_GENERATION = "{% if add_generation_prompt %}"
# A system message goes before the first user's, for formats that have no place of its own for it.
_SYSTEM_FIRST = (
    "{% set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else none %}"
    "{% set turns = messages[1:] if system is not none else messages %}"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)


@dataclass(frozen=True)
class ChatFormat:
    """`source`: a jinja2 template. `stops`: texts at which an answer ends, where the model has no token for it."""

    source: str
    stops: tuple[str, ...]


CHAT_FORMATS: dict[str, ChatFormat] = {
    "chatml": ChatFormat(
        f"{_TURNS}<|im_start|>{{{{ m['role'] }}}}\n{{{{ m['content'] }}}}<|im_end|>\n{{% endfor %}}"
        f"{_GENERATION}<|im_start|>assistant\n{{% endif %}}",
        ("<|im_end|>", "<|im_start|>"),
    ),
    "llama-2": ChatFormat(
        _SYSTEM_FIRST + "{% for m in turns %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
        "{% if loop.first and system is not none %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
        "{{ m['content'] | trim }} [/INST]{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}",
        ("[INST]",),
    ),
    "llama-3": ChatFormat(
        f"{{{{ bos_token }}}}{_TURNS}<|start_header_id|>{{{{ m['role'] }}}}<|end_header_id|>\n\n"
        f"{{{{ m['content'] | trim }}}}<|eot_id|>{{% endfor %}}"
        f"{_GENERATION}<|start_header_id|>assistant<|end_header_id|>\n\n{{% endif %}}",
        ("<|eot_id|>",),
    ),
    "alpaca": ChatFormat(
        _SYSTEM_FIRST
        + f"{{{{ system ~ '\n\n' if system is not none else '{_ALPACA}' }}}}"
        + "{% for m in turns %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
        "{% else %}### Response:\n{{ m['content'] }}\n\n{% endif %}{% endfor %}"
        f"{_GENERATION}### Response:\n{{% endif %}}",
        ("### Instruction:",),
    ),
    "gemma": ChatFormat(
        _SYSTEM_FIRST
        + "{{ bos_token }}{% for m in turns %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{% if loop.first and system is not none %}{{ system | trim }}\n\n{% endif %}{{ m['content'] | trim }}"
        f"<end_of_turn>\n{{% endfor %}}{_GENERATION}<start_of_turn>model\n{{% endif %}}",
        ("<end_of_turn>",),
    ),
    "mistral": ChatFormat(
        _SYSTEM_FIRST + "{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}[INST]"
        "{% if loop.last and system is not none %}{{ system }}\n\n{% endif %}{{ m['content'] }}[/INST]"
        "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        ("[INST]",),
    ),
    "phi-3": ChatFormat(
        f"{_TURNS}<|{{{{ m['role'] }}}}|>\n{{{{ m['content'] }}}}<|end|>\n{{% endfor %}}"
        f"{_GENERATION}<|assistant|>\n{{% endif %}}",
        ("<|end|>",),
    ),
    "plain": ChatFormat(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n\n{% elif m['role'] == 'user' %}"
        "User: {{ m['content'] }}\n{% else %}Assistant: {{ m['content'] }}\n{% endif %}{% endfor %}"
        f"{_GENERATION}Assistant:{{% endif %}}",
        ("\nUser:", "\nAssistant:"),
    ),
}


def chat_format(name: str) -> ChatFormat:
    """The format of this name. Raises ArgumentError, which lists the names there are."""
    found = CHAT_FORMATS.get(name) if isinstance(name, str) else None
    if found is None:
        raise ArgumentError(f"chat_format must be one of {', '.join(CHAT_FORMATS)}, got {escape(name)}")
    return found
