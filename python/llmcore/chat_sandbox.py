"""The jinja2 environment that chat templates are written for, with a limit on everything they can use.

Chat templates are programs from strangers. jinja2's sandbox keeps them from reaching objects, but not from running for
hours or asking for a gigabyte: here every block, call, filter and operator counts against a `Budget`, sizes are checked
before they are allocated, and the output is capped. What a template sees otherwise is what transformers 5 gives it
(trim_blocks, lstrip_blocks, loop controls, `{% generation %}`, tojson without HTML escapes, raise_exception,
strftime_now), less the filters no chat template needs and whose cost has no bound.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_join
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llmcore.chat_spans import Marked, generated, is_trusted, joined, safe, spans_in, trusted
from llmcore.errors import LimitError

MAX_OUTPUT = 8 << 20  # characters of output, and of any one string on the way
_MAX_STEPS = 2_000_000
_STEPS_PER_LOOK = 256
_MAX_ALLOCATED = 256 << 20  # bytes of all results together
_MAX_SECONDS = 1.0  # of this thread's processor time
_MAX_ENTRIES = 1 << 20  # in one list or dict, with everything in it
_MAX_ARGUMENT = 100_000  # an integer handed to a method of str, or to a filter that makes text
_MAX_BITS = 1 << 14
_REMOVED_FILTERS = {"pprint", "urlize", "wordwrap", "xmlattr", "random", "filesizeformat"}
_SIZED_FILTERS = {"center", "indent", "batch", "slice", "truncate", "round", "tojson", "format", "replace", "join"}
_TEXT_FILTERS = {"string", "tojson", "join", "format", "e", "escape", "forceescape", "urlencode", "upper", "lower"}
_TEXT_FILTERS |= {"title", "capitalize", "trim", "replace", "indent", "center", "truncate", "striptags", "wordcount"}
_COMPARING_FILTERS = {"unique", "sort", "dictsort", "groupby", "min", "max"}
_COMPARING_TESTS = {"==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan"}
_COMPARING_TESTS |= {"<=", "le", "in"}
_WIDE = re.compile(r"\d{5}|\*")
_WIDE_FORMAT = re.compile(r"\{[^{}]*:[^{}]*(\d{5}|\{)")
_WIDE_TIME = re.compile(r"%[-_0^#+]*\d")


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.steps = _MAX_STEPS
        self.allocated = _MAX_ALLOCATED
        self._look_at_clock = _MAX_STEPS
        self.deadline = time.thread_time() + _MAX_SECONDS

    def step(self, count: int = 1) -> None:
        """Counts `count` steps."""
        self.steps -= count
        if self.steps >= self._look_at_clock:
            return
        if self.steps < 0:
            raise LimitError(f"chat template: more than {_MAX_STEPS} steps")
        self._look_at_clock = max(self.steps - _STEPS_PER_LOOK, 0)
        if time.thread_time() > self.deadline:
            raise LimitError(f"chat template: more than {_MAX_SECONDS:g} seconds of processor time")

    def allocate(self, size: int) -> None:
        """Counts `size` bytes of a result."""
        self.allocated -= size
        if self.allocated < 0:
            raise LimitError(f"chat template: more than {_MAX_ALLOCATED} bytes of intermediate results")


def _check_length(length: int) -> None:
    if length > MAX_OUTPUT:
        raise LimitError(f"chat template: a text or list of {length} entries; at most {MAX_OUTPUT} are allowed")


def _weight(value: object) -> int:
    """Characters and entries of `value` with everything in it, counted as often as they are met."""
    pending: list[object] = [value]
    total = entries = 0
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list | tuple | set | KeysView | ValuesView | ItemsView):
            pending += item
        elif isinstance(item, Namespace):
            pending.append(item._Namespace__attrs)
        entries += 1
        if entries + len(pending) > _MAX_ENTRIES or total > MAX_OUTPUT:
            raise LimitError(f"chat template: a value of more than {_MAX_ENTRIES} entries or {MAX_OUTPUT} characters")
    return total + entries


class _Generator(CodeGenerator):
    """Compiles blocks, `~`, comparisons, slices and literals so that they count; texts of the template are trusted."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def _wrapped(self, function: str, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{function}(")
        visit(node, frame)
        self.write(")")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({super()._output_const_repr(group)})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.value, str):
            self._wrapped("literal", super().visit_Const, node, frame)
        else:
            super().visit_Const(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._wrapped("made", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._wrapped("made", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._wrapped("made", super().visit_Tuple, node, frame)
        else:  # names to assign to
            super().visit_Tuple(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(")
        self._wrapped("weighed", self.visit, node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._wrapped("weighed", self.visit, operand.expr, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join_texts((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
        self.write(")")


class _Generation(Extension):
    """`{% generation %}`: the assistant's text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        text: str = caller()
        return text if hasattr(text, "__html__") else generated(text)


class _Dict:
    """`dict` for templates: makes dicts and offers nothing else of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """`namespace` that holds no underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace holds no names that begin with an underscore")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with `budget` (one per thread) charged by everything a template does."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=_finalize,
        )
        self._local = threading.local()
        self.globals = {
            "range": self._range,
            "dict": _Dict(),
            "namespace": _TemplateNamespace,
            "cycler": self._cycler,
            "joiner": jinja2.utils.Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.filters["tojson"] = _tojson
        self.filters["join"] = _join
        self.filters["safe"] = safe
        self.filters = {
            name: self._bounded_filter(name, function)
            for name, function in self.filters.items()
            if name not in _REMOVED_FILTERS
        }
        tests: dict[str, Any] = self.tests
        for name in _COMPARING_TESTS:
            tests[name] = self._weighed_test(tests[name])

    @property
    def budget(self) -> Budget:
        """The budget of the rendering that runs in this thread."""
        budget: Budget = self._local.budget
        return budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._local.budget = budget

    # What the compiled template calls.

    literal = staticmethod(trusted)

    def step(self) -> None:
        """The beginning of a block."""
        self._local.budget.step()

    def concat(self, parts: Iterable[str]) -> str:
        """Joins the output of a block."""
        texts = list(parts)
        _check_length(sum(map(len, texts)))
        return cast("str", self._charged(joined(texts)))

    def join_texts(self, values: tuple[Any, ...]) -> str:
        """The operator `~`."""
        return self.concat([value if isinstance(value, str) else self._text(value) for value in values])

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`"""
        return self._charged(value[start:stop:step])

    def made(self, value: Any) -> Any:
        """A list, tuple or dict the template wrote down."""
        return self._charged(self.weighed(value))

    def weighed(self, value: Any) -> Any:
        """What is compared, hashed or written out as a whole: that takes as long as there is something in it."""
        if isinstance(value, str):
            self.budget.step(len(value) // 64)
        elif isinstance(value, range):
            self.budget.step(len(value) // 16)
        elif value is not None and not isinstance(value, int | float):
            self.budget.step(1 + _weight(value) // 16)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.weighed(argument) if isinstance(argument, tuple) else argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operator(operator, left, right)
        if operator == "%":
            self.weighed(right)
        result = super().call_binop(context, operator, left, right)
        return self.made(result) if isinstance(result, list | tuple) else self._charged(result)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.budget.step()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | bytes | int | float):
            args = self._check_method(owner, function.__name__, args, kwargs)
        elif isinstance(owner, list | tuple):  # count and index compare
            self.weighed((owner, args))
        elif isinstance(owner, dict | LoopContext):  # get hashes, changed compares
            self.weighed(args)
        elif isinstance(function, Macro) and (function.catch_varargs or function.catch_kwargs):
            self.made((args, kwargs))  # become varargs and kwargs
        result = super().call(context, function, *args, **kwargs)
        return self.made(result) if isinstance(result, list | tuple | dict) else self._charged(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @functools.wraps(formatted)
        def bounded(*args: Any, **kwargs: Any) -> str:
            if _WIDE_FORMAT.search(value.__self__):
                raise LimitError("chat template: a format with a width of 10000 or more")
            self.budget.step(1 + (_weight([args, kwargs]) + len(value.__self__)) // 16)
            result = formatted(*args, **kwargs)
            _check_length(len(result))
            whole = all(map(is_trusted, (value.__self__, *args, *kwargs.values())))
            return cast("str", self._charged(trusted(result) if whole else result))

        del bounded.__wrapped__
        return bounded

    # Accounting.

    def _charged(self, value: Any) -> Any:
        if isinstance(value, str):
            self.budget.allocate(len(value))
            self.budget.step(len(spans_in(value)) // 16)
        elif isinstance(value, list | tuple | dict | set):
            self.budget.allocate(8 * len(value))
        return value

    def _text(self, value: Any) -> str:
        """str(value), after a look at how long that would be."""
        self.budget.step(1 + _weight(value) // 16)
        return str(self._charged(str(value)))

    def _range(self, *args: int) -> range:
        made = range(*args)
        if len(made) > _MAX_ARGUMENT:
            raise LimitError(f"chat template: a range of {len(made)}; at most {_MAX_ARGUMENT}")
        self.budget.step(1 + len(made) // 16)
        return made

    def _cycler(self, *items: Any) -> jinja2.utils.Cycler:
        return jinja2.utils.Cycler(*self.made(items))

    def _weighed_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda value, other: function(self.weighed(value), self.weighed(other))

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        for value in (*args, *kwargs.values()):
            _check_argument(value)
        if isinstance(owner, str):
            self.budget.step(len(owner) // 64)
            if name == "join" and args:
                args = (self.weighed(list(args[0])), *args[1:])
                _check_length(sum(len(part) + len(owner) for part in args[0] if isinstance(part, str)))
            elif name == "replace" and len(args) > 1:
                _check_replace(owner, args[0], args[1])
            elif name == "expandtabs":
                _check_length(len(owner) * max([8, *(v for v in (*args, *kwargs.values()) if isinstance(v, int))]))
            elif name == "translate" and args:
                _check_length(len(owner) + len(owner) * _weight(args[0]))
        return args

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            skipped = 1 if hasattr(function, "jinja_pass_arg") else 0
            args = args[:skipped] + self._check_filter(name, args[skipped:], kwargs)
            result = function(*args, **kwargs)
            return self.made(result) if isinstance(result, list) else self._charged(result)

        return bounded

    def _check_filter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        value, options = args[0] if args else None, [*args[1:], *kwargs.values()]
        size = len(value) if isinstance(value, str | list | tuple | dict | range) else None
        self.budget.step(1 + (size or 0) // 16)
        if name in _SIZED_FILTERS:
            for option in options:
                _check_argument(option)
        if (name == "join" and isinstance(value, str)) or (
            (name == "join" or name in _COMPARING_FILTERS) and size is None and value is not None
        ):
            value = list(value)
            args = (value, *args[1:])
        if name in _COMPARING_FILTERS and value is not None:
            self.budget.step(_weight(value) // 16 * len(value).bit_length())
        if name in _TEXT_FILTERS and not isinstance(value, str):  # also refuses to join too many parts
            self.budget.step(_weight(value) // 16)
        numbers = [option for option in options if isinstance(option, int)]
        texts = [option for option in options if isinstance(option, str)]
        if name == "join" and isinstance(value, str | list | tuple):
            _check_length(_weight(value) + len(value) * sum(map(len, texts)))
        elif name == "replace" and len(texts) > 1:
            _check_replace(str(value), texts[0], texts[1])
        elif name == "indent" and isinstance(value, str):
            _check_length(len(value) + (value.count("\n") + 1) * max([4, *numbers, *map(len, texts)]))
        elif name == "format" and isinstance(value, str):
            _check_operator("%", value, self.weighed((args[1:], kwargs)))
        elif name == "tojson" and any(abs(number) > 64 for number in numbers):
            raise LimitError("chat template: tojson with an indent of more than 64")
        elif name == "round" and any(abs(number) > 300 for number in numbers):
            raise LimitError("chat template: round to more than 300 places")
        elif name == "sum" and any(isinstance(option, list | tuple) for option in options):
            raise LimitError("chat template: sum of lists")
        return args


def _check_argument(value: Any) -> None:
    if isinstance(value, int) and abs(value) > _MAX_ARGUMENT:
        raise LimitError(f"chat template: an argument beyond {_MAX_ARGUMENT}")


def _check_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _check_length(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_length(len(left) + len(right))
    elif operator == "*":
        for text, times in ((left, right), (right, left)):
            if hasattr(text, "__len__") and isinstance(times, int):
                _check_length(len(text) * times)
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
            raise LimitError("chat template: a number of too many digits")
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > _MAX_BITS:
            raise LimitError("chat template: a number of too many digits")
    elif operator == "%" and isinstance(left, str):
        if _WIDE.search(left):
            raise LimitError("chat template: a format with a width of 10000 or more")
        _weight(right)


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Called for what `{{ }}` puts out, before it becomes text. Taking the context keeps it out of compilation."""
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    return value if isinstance(value, str) else environment.weighed(value)


def _raise_exception(message: object) -> None:
    raise jinja2.exceptions.TemplateError(str(message)[:1024])


def _strftime_now(format: str) -> str:
    if len(format) > 256 or _WIDE_TIME.search(format):
        raise LimitError("chat template: a time format that is too long, or has a width")
    return datetime.now().strftime(format)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_eval_context
def _join(eval_ctx: nodes.EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    separator = Marked(d) if type(d) is str else d  # jinja2's own forgets who wrote what it joins
    return cast("str", do_join(eval_ctx, value, separator, attribute))


@functools.cache
def environment() -> BoundedEnvironment:
    """The one environment of the process."""
    return BoundedEnvironment()
