"""What the built-in model writes greedily: the same bits on every machine, so a short test of a whole installation.

`python -m llmcore.cli._known_text` writes the file anew, after a change of the model or of the arithmetic.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PROMPT = "The prince"
TOKENS = 48


@dataclass(frozen=True)
class KnownText:
    """The text after PROMPT, and the sum of its tokens' log-probabilities as a hexadecimal float, for its bits."""

    text: str
    log_probability: str


def path() -> Path:
    """The file, beside the model's own."""
    return Path(__file__).resolve().parents[1] / "assets" / "tiny" / "known_text.json"


def read() -> KnownText:
    """What should be written. Raises OSError when the file is missing."""
    return KnownText(**json.loads(path().read_text(encoding="utf-8")))


def write() -> KnownText:
    """What is written here and now. Raises LlmcoreError."""
    import llmcore

    params = llmcore.SamplingParams(temperature=0, max_tokens=TOKENS, repetition_penalty=1, ignore_eos=True, logprobs=0)
    with llmcore.LLM("tiny", max_batch_size=1, progress=False) as llm:
        answer = llm.generate(PROMPT, params)[0].outputs[0]
    return KnownText(answer.text, float(answer.cumulative_logprob or 0.0).hex())


if __name__ == "__main__":
    path().write_text(json.dumps(asdict(write()), indent=1) + "\n", encoding="utf-8")
