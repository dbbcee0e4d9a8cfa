"""A regular expression as fancy-regex (tiktoken) takes it -> one that means the same to Oniguruma (tokenizer.json)."""

from __future__ import annotations

import re

from llmcore.errors import TokenizerError
from llmcore.vocab.fields import shown

_CLASS = r"\\[sSdDwW]|\\[pP](?:\{[A-Za-z_]+\}|[A-Z])"
_CODE = r"\\[rntfv]|\\x(?:[0-7][0-9A-Fa-f]|\{[0-9A-Fa-f]+\})|\\u[0-9A-Fa-f]{4}"
_ESCAPED = r"\\[^\w\s<>]"
_IN_SET = rf"(?:{_CODE}|{_ESCAPED}|(?!&&|~~)[^\[\]\\^-])"
_PLAIN = rf"(?:{_CODE}|{_ESCAPED}|[^\\\[\](){{}}*+?|^$.])"
# What both have, though they may write it in two ways. Left out is what they read differently, as far as is known, and
# what is rare: conditions, names, (?x) and (?m), sets within sets and their differences, \h, \Z, \b, {,n} and {n}?.
_PART = re.compile(
    rf"""(?P<open>\((?:\?(?:[:=!>]|(?P<flags>[is]+):)|(?!\?)))
    |(?P<close>\))
    |(?P<bar>\|)
    |(?P<times>[*+?]|\{{[0-9]+(?:(?P<range>,)[0-9]*)?\}})(?P<mode>[+?]?)
    |(?P<edge>[$^]|\\[Az])
    |(?P<behind>\(\?<[=!](?:{_CLASS}|{_PLAIN}|\.|\[\^?(?:{_CLASS}|{_IN_SET})+\])\))
    |(?P<one>\[\^?-?(?:{_CLASS}|{_IN_SET}(?:-{_IN_SET})?)+-?\]|{_CLASS}|{_PLAIN}|\.)""",
    re.VERBOSE,
)
_FLAGS_FIRST = re.compile(r"\(\?([is]+)\)")
# With (?i) two characters that may match one there (ss and \u00df), also across groups.
_FOLDED = re.compile(r"\(\?s*i.*(?:s[()?:>]*[st]|f[()?:>]*[fil]|[^\x00-\x7f]|\\[xu])", re.IGNORECASE | re.DOTALL)
_SPELLED = {"^": r"\A", "$": r"\z", r"\w": r"[\w\x{200C}\x{200D}]", r"\W": r"[^\w\x{200C}\x{200D}]"}
_WORD = re.compile(r"(?<!\\)((?:\\\\)*)\\([wW])")


def to_oniguruma(regex: str) -> str:
    """Raises TokenizerError for what may not mean the same."""
    if found := _FOLDED.search(regex):
        raise _refuse(regex, found[0])
    out: list[str] = []
    opened: list[int | None] = []  # where groups begin; None: those that look ahead and can't be repeated
    begin: int | None = None  # of what a count belongs to
    at = 0
    if first := _FLAGS_FIRST.match(regex):  # elsewhere Oniguruma takes what follows, with all its |, as one group
        out.append(f"(?{_flags(first[1])})")
        at = first.end()
    while at < len(regex):
        part = _PART.match(regex, at)
        if part is None or (part["times"] and begin is None):
            raise _refuse(regex, regex[at:])
        text = part[0]
        if part["open"]:
            opened.append(None if text in ("(?=", "(?!") else len(out))
            out.append(text.replace(part["flags"], _flags(part["flags"])) if part["flags"] else text)
            begin = None
        elif part["close"]:
            begin = opened.pop()
            out.append(text)
        elif part["times"]:
            assert begin is not None
            counted, lazy = part["times"][0] == "{", part["mode"] == "?"
            if counted and part["mode"] == "+":  # which repeats the repetition there
                out.insert(begin, "(?>")
                text = part["times"] + ")"
            elif counted and lazy and not part["range"]:
                raise _refuse(regex, text)
            out.append(text)
            begin = None
        else:
            begin = len(out) if part["one"] else None
            out.append(_SPELLED[text] if text in _SPELLED else _spelled(text, regex))
        at = part.end()
    return "".join(out)


def _refuse(regex: str, at: str) -> TokenizerError:
    return TokenizerError(f"a tokenizer.json can't have the expression {shown(regex)}, for {shown(at)} in it")


def _flags(flags: str) -> str:
    return flags.replace("s", "m")


def _spelled(text: str, regex: str) -> str:
    r"""\pL, whose name needs braces there, and \w, which takes joiners in Rust alone."""
    if word := _WORD.search(text):
        if word[2] == "W" or text[0] != "[":
            raise _refuse(regex, text)
        text = _WORD.sub(r"\1\\w\\x{200C}\\x{200D}", text)
    return re.sub(r"(?<!\\)((?:\\\\)*\\[pP])([A-Z])", r"\1{\2}", text)
