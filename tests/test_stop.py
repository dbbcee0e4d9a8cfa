"""StopMatcher: against a brute-force reading of its definition, and its bounds."""

from __future__ import annotations

import codecs
import random
import time

import pytest

from llmcore.stop import StopMatcher


def run(stops: list[str], pieces: list[str], include: bool = False) -> tuple[str, str | None]:
    """The whole text given out, and the stop string found."""
    matcher = StopMatcher(stops, include=include)
    out = "".join(matcher.push(p) for p in pieces)
    return out + matcher.finish(), matcher.matched


def brute_force(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition: the match that ends first; of those that end together, the longest."""
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def split(text: str, rng: random.Random) -> list[str]:
    pieces, i = [], 0
    while i < len(text):
        step = rng.randint(0, 4)
        pieces.append(text[i : i + step])
        i += step
    return pieces


def test_no_stop_strings_give_everything_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == "abc"
    assert matcher.finish() == ""
    assert matcher.matched is None


def test_cut_before_the_stop_string() -> None:
    assert run(["STOP"], ["one STOP two"]) == ("one ", "STOP")


def test_stop_string_kept_when_asked() -> None:
    assert run(["STOP"], ["one ST", "OP two"], include=True) == ("one STOP", "STOP")


def test_stop_string_across_pieces() -> None:
    assert run(["</s>"], ["a<", "/", "s", ">b"]) == ("a", "</s>")


def test_false_start_is_given_out() -> None:
    assert run(["</s>"], ["a</", "b>c"]) == ("a</b>c", None)


def test_end_of_text_gives_out_what_was_held() -> None:
    assert run(["</s>"], ["a</s"]) == ("a</s", None)


def test_nothing_after_a_match() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("axb") == "a"
    assert matcher.push("more") == ""
    assert matcher.finish() == ""


def test_of_two_that_end_together_the_longer() -> None:
    assert run(["c", "abc"], ["zabc"]) == ("z", "abc")


def test_the_one_that_ends_first() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == ("a", "bc")


def test_one_inside_a_failed_one() -> None:
    assert run(["abcd", "bc"], ["ab", "ce"]) == ("a", "bc")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("x", "x"), ("xa", "x"), ("xaa", "x"), ("xaab", "x"), ("xaaa", "xa"), ("xaabaa", "x"), ("xaabab", "xaabab")],
)
def test_held_back_is_the_longest_possible_beginning(text: str, shown: str) -> None:
    assert StopMatcher(["aabaac"]).push(text) == shown


def test_held_back_is_never_more_than_could_match() -> None:
    rng = random.Random(1)
    for _ in range(300):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4))]
        matcher, text, out = StopMatcher(stops), "", ""
        for piece in split("".join(rng.choices("abc", k=30)), rng):
            out += matcher.push(piece)
            text += piece
            if matcher.matched is not None:
                break
            could = max(k for k in range(len(text) + 1) if k == 0 or any(s.startswith(text[-k:]) for s in stops))
            assert out == text[: len(text) - could], (stops, text)


def test_equals_brute_force_for_any_split() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(3000):
        stops = ["".join(rng.choices("abé", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 5))]
        text = "".join(rng.choices("abé🙂", k=rng.randint(0, 25)))
        expected = brute_force(stops, text)
        assert run(stops, split(text, rng)) == expected, (stops, text)
        found += expected[1] is not None
    assert 500 < found < 2900  # both outcomes were tried


def test_stop_string_across_utf8_bytes() -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = [decoder.decode(bytes([b])) for b in "vor 終わり🙂 nach".encode()]
    assert run(["終わり🙂"], pieces) == ("vor ", "終わり🙂")


def test_a_string_that_may_not_stop_yet_is_text() -> None:
    matcher = StopMatcher(["ab"])
    assert matcher.push("ab", can_stop=False) == "ab"
    assert matcher.push("cab") == "c"
    assert matcher.matched == "ab"


def test_a_string_that_passed_may_be_part_of_a_longer_one() -> None:
    matcher = StopMatcher(["ab", "abc"])
    assert matcher.push("xab", can_stop=False) == "x"
    assert matcher.push("c") == ""
    assert matcher.matched == "abc"


def test_a_string_that_passed_may_overlap_the_next() -> None:
    matcher = StopMatcher(["aba"])
    assert matcher.push("aba", can_stop=False) == "ab"
    assert matcher.push("ba") == ""
    assert matcher.matched == "aba"


def seconds(length: int) -> float:
    matcher = StopMatcher(["a" * 1000 + "b", "aab"])
    start = time.thread_time()
    for _ in range(length // 100):
        matcher.push("c" + "a" * 99)
    return time.thread_time() - start


def test_time_is_linear_on_repeats() -> None:
    # A matcher that rescans what it holds back takes the square: 256 times the time for 16 times the text.
    seconds(1000)
    small = min(seconds(40_000) for _ in range(3))
    large = min(seconds(640_000) for _ in range(3))
    assert large < 64 * small
