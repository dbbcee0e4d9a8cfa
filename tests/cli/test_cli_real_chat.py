"""inspect and chat with the built-in model, which has no chat template of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


def test_inspect_the_built_in_model(run: Run) -> None:
    report = run("inspect", "--json").json
    assert report["spec"]["model_type"] == "llama"
    assert report["tensor_count"] == len(report["tensors"])
    assert report["tensor_bytes"] == sum(tensor["bytes"] for tensor in report["tensors"])
    assert report["memory"]["total"] == sum(report["memory"][k] for k in ("weights", "kv_cache", "activations"))
    assert report["tokenizer"]["vocab_size"] == report["spec"]["vocab_size"]


def test_inspect_for_people(run: Run) -> None:
    lines = run("inspect").out.splitlines()
    facts = {line.split("  ")[0] for line in lines}
    assert facts >= {"architecture", "parameters", "stored", "in memory", "tokenizer", "chat template"}
    assert any(line.startswith("model.layers.*.") for line in lines)


def test_chat_without_a_template_says_how_to_get_one(run: Run) -> None:
    done = run("chat", stdin="Hello\n")
    assert done.code == 1
    assert "--template plain" in done.err


def test_chat_with_a_template_of_ours(run: Run) -> None:
    done = run("chat", "--template", "plain", "--max-tokens", "12", stdin="Who are you?\nAnd I?\n")
    assert done.code == 0
    assert len(done.out.splitlines()) >= 2


# Makes its standard input the controlling terminal, so that Ctrl-C there is a signal, and becomes the command.
_ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def test_chat_on_a_terminal() -> None:
    """Ctrl-C stops an answer and Ctrl-D leaves, at a real (pseudo) terminal."""
    pty = pytest.importorskip("pty", reason="needs POSIX terminals")
    terminal, inner = pty.openpty()
    chat = [sys.executable, "-m", "llmcore", "chat", "--template", "plain", "--ignore-eos"]
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_TERMINAL, *chat],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(inner)
    seen = b""

    def until(*texts: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 300
        while not any(text in seen for text in texts):
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 4096)

    try:
        until(b"> ")
        for _ in range(5):  # on a busy machine the answer may be there before it is stopped
            seen = b""
            os.write(terminal, b"Tell me a story.\n")
            until(b"story.\r\n")
            seen = b""
            until(b" ")  # the answer has begun
            os.write(terminal, b"\x03")
            until(b"(stopped)", b"leaves")
            until(b"> ")
            if b"(stopped)" in seen:
                break
        assert b"(stopped)" in seen
        os.write(terminal, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
