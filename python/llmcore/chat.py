"""Chat templates: a conversation -> the prompt a model was trained on.

A template writes control tokens (`<|im_start|>`) as text between what users wrote. When the prompt becomes ids, only
what the template itself wrote may turn into control tokens. To know which is which, the text that rendering gives keeps
track of what comes from the template (`chat_spans`), and the tokenizer is told what no control token may hold any of.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore.chat_spans import GENERATED, TRUSTED, joined, plain, spans_of, trusted
from llmcore.checkpoint.files import PlainFile, is_file
from llmcore.checkpoint.strict_json import load_json
from llmcore.errors import ArgumentError, LimitError, LlmcoreError, TemplateError, escape
from llmcore.vocab.surrogates import clean

if TYPE_CHECKING:
    import jinja2

    from llmcore.tokenizer import Tokenizer

_MAX_SOURCE_BYTES = 1 << 20
_MAX_MESSAGES = 50_000
_MAX_DEPTH = 64
TOOL_USE_FILE = "additional_chat_templates/tool_use.jinja"
_RESERVED = ("chat_template", "tokenize", "messages", "tools", "bos_token", "eos_token")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTINUE = "continue_final_message"
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # that of transformers; whether the blank stays tells of trimming
# A role of these names counts as the template's own, for templates that make `<|user|>` of it.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model", "environment"}


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the variables it may read besides the conversation (bos_token, eos_token and the like).

    `source`: jinja2 as transformers defines it; `with_tools`: another for conversations with tools, which needs no
    `source` beside it. Compiled at first use. Raises LimitError beyond 1 MiB.
    """

    source: str | None
    variables: Mapping[str, str] = field(default_factory=dict)
    with_tools: str | None = None

    def __post_init__(self) -> None:
        for source in (self.source, self.with_tools):
            if source is not None and len(source.encode("utf-8", "replace")) > _MAX_SOURCE_BYTES:
                raise LimitError(f"chat template: more than {_MAX_SOURCE_BYTES} bytes")

    def chosen(self, tools: object) -> str:
        """The source for a conversation that has these tools. Raises TemplateError when there is none."""
        source = self.source if tools is None or self.with_tools is None else self.with_tools
        if source is None:
            raise TemplateError('no template is called "default": there is only one for conversations with tools')
        return source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt as text. Raises TemplateError, LimitError, ArgumentError."""
        inputs = conversation(messages, tools, add_generation_prompt, template_kwargs, continue_final_message)
        return plain(_render(self, inputs))


def required(template: ChatTemplate | None) -> ChatTemplate:
    """`template`, or TemplateError when there is none."""
    if template is None:
        raise TemplateError("this tokenizer has no chat template: say chat_format=, or add a chat_template.jinja")
    return template


def find_template(folder: Path, config: Mapping[str, Any], variables: Mapping[str, str]) -> ChatTemplate | None:
    """The template of a checkpoint folder: its .jinja files, else `chat_template` of tokenizer_config.json.

    What processors had, chat_template.json, comes last. Of named templates "default" and "tool_use" count.
    """
    files = {"default": folder / "chat_template.jinja", "tool_use": folder / TOOL_USE_FILE}
    found = {name: _read_source(path) for name, path in files.items() if is_file(path)}
    found = found or _named(config.get("chat_template"))
    legacy = folder / "chat_template.json"
    if not found and is_file(legacy):
        values = load_json(legacy, limit_bytes=2 * _MAX_SOURCE_BYTES, error=TemplateError)
        found = _named(values.get("chat_template") if isinstance(values, dict) else None)
    if not found:
        return None
    return ChatTemplate(found.get("default"), variables, found.get("tool_use"))


def _read_source(path: Path) -> str:
    with PlainFile(path) as file:
        if file.size > _MAX_SOURCE_BYTES:
            raise LimitError(f"{path.name}: {file.size} bytes; at most {_MAX_SOURCE_BYTES} are read")
        data = bytes(file.read(file.size, 0))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path.name}: not UTF-8 at byte {error.start}") from None


def _named(value: object) -> dict[str, str]:
    """The templates that count in a `chat_template`: one text, a list of {name, template}, or a dict by name."""
    if isinstance(value, list):
        value = {str(e.get("name")): e.get("template") for e in value if isinstance(e, dict)}
    named: dict[str, Any] = value if isinstance(value, dict) else {"default": value}
    return {name: named[name] for name in ("default", "tool_use") if isinstance(named.get(name), str)}


def render_ids(tokenizer: Tokenizer, template: ChatTemplate, inputs: Mapping[str, Any]) -> list[int]:
    """The prompt as ids, control tokens from the template alone. `inputs`: of `conversation`."""
    text = _render(template, inputs)
    return tokenizer.encode_rendered(plain(text), _guarded(text), template_marks(tokenizer, template, inputs))


def render_masked(
    tokenizer: Tokenizer, template: ChatTemplate, inputs: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """As `render_ids`, and for each id 1 where it holds any of what `{% generation %}` is around, else 0."""
    text = _render(template, inputs)
    spans = spans_of(text, GENERATED)
    marks = template_marks(tokenizer, template, inputs)
    ids, places = tokenizer.encode_rendered_with_offsets(plain(text), _guarded(text), marks)
    mask = [0] * len(ids)
    at = 0
    for i, (begin, end) in enumerate(places):
        while at < len(spans) and spans[at][1] <= begin:
            at += 1
        mask[i] = int(at < len(spans) and begin < end and spans[at][0] < end)
    return ids, mask


def template_marks(tokenizer: Tokenizer, template: ChatTemplate, inputs: Mapping[str, Any]) -> list[int]:
    """The ordinary added tokens that no user text becomes in a chat, or the model would take it for another's.

    They are those that the template writes (`<role>`, `]~b]`), and what ends an answer or begins a text.
    """
    source = "\n".join([template.chosen(inputs["tools"]), *template.variables.values()])
    ends = {*tokenizer.eos_ids, *([] if tokenizer.bos_id is None else [tokenizer.bos_id])}
    return sorted(ends | {id for mark, id in tokenizer._marks if _writes(source, mark)})


def _writes(source: str, mark: str) -> bool:
    """Whether this is in a template's source, if only by the first or last of several words (`<call:{{ x }}>`)."""
    words = [word.span() for word in re.finditer(r"\w+", mark)]
    if len(words) < 2:
        return mark in source
    return mark[: words[0][1]] in source or mark[words[-1][0] :] in source


def _guarded(text: str) -> list[tuple[int, int]]:
    """The stretches that the template didn't write itself."""
    spans = spans_of(text, TRUSTED)
    begins, ends = [0, *(end for _, end in spans)], [*(begin for begin, _ in spans), len(text)]
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]


def conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    template_kwargs: Mapping[str, Any],
    continue_final_message: bool | str = False,
) -> dict[str, Any]:
    """Everything the caller says, as plain copies; reasoning under each of the names that templates read.

    continue_final_message: the prompt is to end where the last message's content does, or its field of this name.
    Keys of a message whose value is None are left out, as in transformers: templates ask whether a key is there.
    """
    for name in template_kwargs:
        if name in _RESERVED:
            raise ArgumentError(f"{name}: can't be set for a template")
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ArgumentError(f"messages: must be a list of dicts, found {type(messages).__name__}")
    if len(messages) > _MAX_MESSAGES:
        raise LimitError(f"messages: {len(messages)} of them; at most {_MAX_MESSAGES}")
    made = [_message(message, i) for i, message in enumerate(messages)]
    if tools is not None and not all(isinstance(tool, Mapping) for tool in tools):
        raise ArgumentError("tools: must be a list of JSON schemas (dicts)")
    inputs: dict[str, Any] = {
        "documents": None,
        **{name: _plain(value, name) for name, value in template_kwargs.items()},
        "messages": made,
        "tools": None if tools is None else _plain(list(tools), "tools"),
        "add_generation_prompt": bool(add_generation_prompt),
    }
    if continue_final_message:
        if add_generation_prompt:
            raise ArgumentError(f"{_CONTINUE} goes with add_generation_prompt=False: no new message begins")
        inputs[_CONTINUE] = _tag_end(made, continue_final_message)
    return inputs


def _tag_end(messages: list[dict[str, Any]], continue_final_message: bool | str) -> str:
    """Puts the tag behind the text to continue, and returns the text without it."""
    name = continue_final_message if isinstance(continue_final_message, str) else "content"
    holder, fields = messages[-1] if messages else {}, [name]
    if isinstance(holder.get(name), list):  # parts: the last text of them
        parts = [part for part in holder[name] if isinstance(part, dict) and isinstance(part.get("text"), str)]
        holder, fields = parts[-1] if parts else {}, ["text"]
    text = holder.get(fields[0])
    if not isinstance(text, str):
        raise ArgumentError(f"{_CONTINUE}: the last message has no {escape(name)} that is text")
    if name in _REASONING:  # a template reads one of the copies
        fields = [other for other in _REASONING if holder.get(other) == text]
    for name in fields:
        holder[name] = text + _CONTINUE_TAG
    return text


def _continued(rendered: str, text: str) -> str:
    """What comes before the tag, without white space at the end if the template took it off the message."""
    at = rendered.rfind(_CONTINUE_TAG.strip())
    if at < 0 or text.strip() not in rendered:
        raise TemplateError(f"{_CONTINUE}: the template doesn't write the final message as it is")
    kept = rendered[at : at + len(_CONTINUE_TAG)] == _CONTINUE_TAG
    return rendered[:at] if kept else rendered[:at].rstrip()


def _message(message: object, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise ArgumentError(f"{where}: must be a dict, found {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise ArgumentError(f"{where}: needs a role that is a str")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list | tuple):
        raise ArgumentError(f"{where}: content must be str, a list of parts, or None, found {type(content).__name__}")
    made: dict[str, Any] = _plain({key: value for key, value in message.items() if value is not None}, where)
    if made["role"] in _ROLES:
        made["role"] = trusted(made["role"])
    reasoning = next((made[key] for key in _REASONING if made.get(key) is not None), None)
    if reasoning is None:
        return made
    return {"thinking": reasoning, **made, "reasoning_content": reasoning}


def _plain(value: object, where: str, depth: int = 0) -> Any:
    """A copy of JSON-like `value` made of exact built-in types, so that nothing with other methods gets in."""
    if depth > _MAX_DEPTH:
        raise LimitError(f"{where}: nested deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean(str.__str__(value))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where, depth + 1): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1) for item in value]
    raise ArgumentError(f"{where}: {type(value).__name__} is nothing a template can be given")


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    import jinja2

    from llmcore.chat_sandbox import environment

    try:
        return environment().from_string(source)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f" at line {line}"
        raise TemplateError(f"chat template{where}: {escape(error, 400)[1:-1]}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise TemplateError(
            f"chat template: can't be compiled, it is nested too deep ({type(error).__name__})"
        ) from None


def _render(template: ChatTemplate, inputs: Mapping[str, Any]) -> str:
    import jinja2

    from llmcore.chat_sandbox import MAX_OUTPUT, Budget, environment

    variables = {**{name: trusted(text) for name, text in template.variables.items()}, **inputs}
    continued = variables.pop(_CONTINUE, None)
    compiled = _compiled(template.chosen(inputs["tools"]))
    environment().budget = Budget()
    pieces: list[str] = []
    length = 0
    try:
        context = compiled.new_context(variables)
        for piece in compiled.root_render_func(context):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise LimitError(f"chat template: more than {MAX_OUTPUT} characters of output")
            pieces.append(piece)
    except LlmcoreError:
        raise
    except jinja2.TemplateError as error:
        raise TemplateError(f"chat template: {escape(error.message or error, 700)[1:-1]}") from None
    except RecursionError:
        raise TemplateError("chat template: calls itself too deep") from None
    except (MemoryError, OverflowError) as error:
        raise LimitError(f"chat template: {type(error).__name__} while rendering") from None
    except Exception as error:  # a template can provoke any exception of the objects it handles
        raise TemplateError(f"chat template: {type(error).__name__}: {escape(error, 400)[1:-1]}") from None
    text = joined(pieces)
    return text if continued is None else _continued(text, continued)
