"""Config: what each accessor takes, refuses and remembers."""

from __future__ import annotations

import pytest

from llmcore.checkpoint.config import Config
from llmcore.errors import ConfigError, LimitError, UnsupportedModelError


def config(**values: object) -> Config:
    return Config(values, file="config.json")


def test_integer_bounds_are_included() -> None:
    assert config(a=1).integer("a", minimum=1, maximum=1) == 1
    for value in (0, 2):
        with pytest.raises(ConfigError, match="from 1 to 1"):
            config(a=value).integer("a", minimum=1, maximum=1)


def test_defaults_are_for_absent_keys_alone() -> None:
    assert config().integer("a", minimum=0, maximum=9, default=5) == 5
    assert config().integer("a", minimum=0, maximum=9, default=None) is None
    with pytest.raises(ConfigError, match="found 'null'"):
        config(a=None).integer("a", minimum=0, maximum=9, default=5)


def test_optional_takes_null() -> None:
    assert config(a=None).optional_integer("a", minimum=0, maximum=9) is None
    assert config().optional_number("a") is None
    assert config(a=3).optional_integer("a", minimum=0, maximum=9) == 3
    with pytest.raises(ConfigError):
        config(a=10).optional_integer("a", minimum=0, maximum=9)


def test_number_takes_integers_and_gives_floats() -> None:
    value = config(a=3).number("a")
    assert (value, type(value)) == (3.0, float)


@pytest.mark.parametrize("value", [True, "1", None, [1], float("inf"), float("nan"), 10**400])
def test_number_refuses(value: object) -> None:
    with pytest.raises(ConfigError):
        config(a=value).number("a")


def test_number_bounds_are_open_or_closed() -> None:
    assert config(a=0.0).number("a", minimum=0.0) == 0.0
    assert config(a=1.0).number("a", maximum=1.0) == 1.0
    for bound in ({"above": 1.0}, {"below": 1.0}):
        with pytest.raises(ConfigError):
            config(a=1.0).number("a", **bound)


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_boolean_is_only_a_boolean(value: object) -> None:
    with pytest.raises(ConfigError):
        config(a=value).boolean("a")


def test_choice_maps_and_refuses_with_the_given_class() -> None:
    assert config(a="x").choice("a", {"x": 7}) == 7
    with pytest.raises(UnsupportedModelError, match="allowed: x"):
        config(a="y").choice("a", {"x": 7}, error=UnsupportedModelError)
    with pytest.raises(ConfigError, match="a string"):
        config(a=["x"]).choice("a", {"x": 7}, error=UnsupportedModelError)


def test_section_errors_have_the_whole_path() -> None:
    section = config(a={"b": {"c": "x"}}).section("a")
    assert section is not None
    inner = section.section("b")
    assert inner is not None
    with pytest.raises(ConfigError) as caught:
        inner.boolean("c")
    assert caught.value.field == "a.b.c"


def test_unread_keys() -> None:
    values = config(a=1, b={}, c="x", d=None)
    values.integer("a", minimum=0, maximum=9)
    values.section("b")
    values.optional_number("d")
    assert values.unread() == ["c"]


def test_token_ids() -> None:
    assert config(a=3).token_ids("a", below=4) == (3,)
    assert config(a=[3, 0, 3]).token_ids("a", below=4) == (3, 0)
    assert config(a=None).token_ids("a", below=4) == ()
    with pytest.raises(LimitError):
        config(a=[0] * 5000).token_ids("a", below=4)


def test_neutral_values_tell_booleans_from_numbers() -> None:
    config(a=False, b=1.0).require_neutral({"a": (False,), "b": (1,), "c": (None,)})
    with pytest.raises(UnsupportedModelError, match="'a'"):
        config(a=0).require_neutral({"a": (False,)})


def test_text_of_the_file_cannot_reach_a_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{"a\x1b[31m\u202e": "\x1b]0;x\x07"}).boolean("a\x1b[31m\u202e")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
