"""Finding stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of some stop string: the longest one that the text seen so far ends with is the matcher's state."""

    depth: int
    children: dict[str, _Node] = field(default_factory=dict)
    fail: _Node | None = None
    """The longest proper suffix of this prefix that is a prefix itself; None only at the root."""
    match: str | None = None
    """The longest stop string that ends here."""


class StopMatcher:
    """Cuts a streamed text where the first stop string is complete.

    The text can come in any pieces: what is given out and where it stops depend on the text alone. The stop string
    whose last character comes first wins; of two that end together, the longer. Held back is only the longest ending
    of the text that may still become a stop string. Linear in the text's length, whatever the stop strings.
    (Method: Aho & Corasick, "Efficient string matching", CACM 18(6), 1975.)

    `matched` is the stop string found, else None. With `include`, it stays at the end of the text.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.matched: str | None = None
        self._include = include
        self._root = _automaton(stops)
        self._state = self._root
        self._held = ""

    def push(self, text: str, *, can_stop: bool = True) -> str:
        """Takes the next piece and returns what may be shown now; after a match, always "".

        With `can_stop` False (min_tokens isn't reached), a stop string that ends inside `text` is ordinary text.
        """
        if self.matched is not None:
            return ""
        if not self._root.children:
            return text
        for i, character in enumerate(text):
            state = self._step(character)
            if state.match is not None:
                if can_stop:
                    return self._end(self._held + text[: i + 1], state.match)
                # A string that was allowed to pass can't be finished any more, only be part of a longer one.
                while not state.children and state.fail is not None:
                    state = state.fail
                self._state = state
        whole = self._held + text
        shown = len(whole) - self._state.depth
        self._held = whole[shown:]
        return whole[:shown]

    def finish(self) -> str:
        """The text held back, for it is over and no stop string can be completed; "" after a match."""
        held, self._held = self._held, ""
        self._state = self._root
        return held

    def _step(self, character: str) -> _Node:
        state = self._state
        while (after := state.children.get(character)) is None and state.fail is not None:
            state = state.fail
        self._state = after if after is not None else self._root
        return self._state

    def _end(self, text: str, match: str) -> str:
        self.matched = match
        self._held = ""
        return text if self._include else text[: len(text) - len(match)]


def _automaton(stops: Sequence[str]) -> _Node:
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.children.setdefault(character, _Node(node.depth + 1))
        if stop:
            node.match = stop
    queue = deque([root])
    while queue:  # breadth first: a node's fail is always shallower, so it is complete when the node is reached
        node = queue.popleft()
        for character, child in node.children.items():
            fail = node.fail
            while fail is not None and character not in fail.children:
                fail = fail.fail
            child.fail = root if fail is None else fail.children[character]
            if child.match is None:
                child.match = child.fail.match
            queue.append(child)
    return root
