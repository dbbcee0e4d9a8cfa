"""The runtimes that are compared, one class each, and the process that serves one of them.

Each model lives in a process of its own, so that no thread pool of one runtime stands in another's way. The process
loads once and then answers calls over a pipe, a JSON object a line: {"call": "prefill", "arguments": [512, 0]}.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

CONTEXT = 1024
"""Tokens of context that every runtime is opened with."""
MOST_SEQUENCES = 16
"""Sequences at once."""


class Runtime(Protocol):
    """A loaded model. `prefill` and `decode` are timed from the caller's side of the runtime's own API."""

    def facts(self) -> dict[str, Any]:
        """`version`, and what else should be kept with the figures."""

    def prefill(self, tokens: int, seed: int) -> float:
        """Seconds from `tokens` token ids to the choice of the next token."""

    def decode(self, tokens: int, seed: int, batch: int) -> float:
        """Seconds for `tokens` greedy steps of `batch` sequences, each from a prompt of one token."""


def prompt_ids(tokens: int, seed: int) -> list[int]:
    """Token ids that differ from round to round, so that no cache of prefixes answers."""
    import random

    return random.Random(seed).choices(range(256, 32000), k=tokens)


class Llmcore:
    """llmcore through LLM.generate, with random weights of a named shape, or with those of a file."""

    def __init__(
        self,
        threads: int,
        shape: str = "",
        quantize: dict[str, Any] | None = None,
        path: str | None = None,
        kv_dtype: str = "auto",
    ) -> None:
        import llmcore
        from llmcore.checkpoint.config import Config
        from llmcore.cli._shapes import SHAPES
        from llmcore.model import random_model
        from llmcore.models.registry import resolve

        llmcore.set_num_threads(threads)
        if path is None:
            config = Config(SHAPES[shape], file=shape)
            self.model = random_model(resolve(config).spec(config), quantize=self.recipe(quantize or {}))
        else:
            self.model = llmcore.load(path, progress=False)
        self.llm = llmcore.LLM(self.model, max_model_len=CONTEXT, max_batch_size=MOST_SEQUENCES, kv_dtype=kv_dtype)

    @staticmethod
    def recipe(quantize: dict[str, Any]) -> Any:
        """QuantConfig of {"format", "group_size", "pure"}; pure: the head in the same format and groups as the rest."""
        from llmcore.quantization import QuantConfig

        fields = {key: value for key, value in quantize.items() if key != "pure"}
        same = QuantConfig(**fields)
        return QuantConfig(**fields, overrides={"embedding": same}) if quantize.get("pure") else same

    def facts(self) -> dict[str, Any]:
        import llmcore

        memory = self.model.memory_usage()
        return {
            "version": llmcore.__version__,
            "isa": llmcore.isa(),
            "bytes_per_token": self.model.bytes_per_token(),
            "weight_bytes": memory["weights"],
        }

    def prefill(self, tokens: int, seed: int) -> float:
        return self._generate([prompt_ids(tokens, seed)], 1)

    def decode(self, tokens: int, seed: int, batch: int) -> float:
        return self._generate([[id] for id in prompt_ids(batch, seed)], tokens)

    def _generate(self, prompts: list[list[int]], answer: int) -> float:
        import llmcore

        params = llmcore.SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params, progress=False)
        seconds = time.perf_counter() - start
        if any(len(out.token_ids) != answer for out in outputs):
            raise RuntimeError(f"not every answer has {answer} tokens")
        return seconds


class LlamaCpp:
    """llama.cpp through llama-cpp-python's C functions: what llama-bench times, and the greedy choice."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp
        import numpy as np

        self.api, self.np = llama_cpp, np
        # The log would be thousands of lines; errors come back as null pointers and codes.
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.path = path
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 512, 512
        params.n_seq_max, params.kv_unified = MOST_SEQUENCES, True
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp can't make a context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def facts(self) -> dict[str, Any]:
        return {
            "version": f"llama-cpp-python {self.api.__version__}",
            "system": self.api.llama_print_system_info().decode(),
            # The embedding is tied to the head: a token reads all of the weights.
            "bytes_per_token": self.api.llama_model_size(self.model),
            "weight_bytes": self.api.llama_model_size(self.model),
        }

    def prefill(self, tokens: int, seed: int) -> float:
        ids = prompt_ids(tokens, seed)
        self.api.llama_memory_clear(self.memory, False)
        start = time.perf_counter()
        for at in range(0, tokens, 512):
            self._forward(ids[at : at + 512])
        self._choose()
        return time.perf_counter() - start

    def decode(self, tokens: int, seed: int, batch: int) -> float:
        chosen = prompt_ids(batch, seed)
        self.api.llama_memory_clear(self.memory, False)
        step = self.api.llama_batch_init(batch, 0, 1)
        start = time.perf_counter()
        step.n_tokens = batch
        for position in range(tokens):
            for i, token in enumerate(chosen):
                step.token[i], step.pos[i], step.logits[i] = token, position, True
                step.n_seq_id[i], step.seq_id[i][0] = 1, i
            if self.api.llama_decode(self.context, step) != 0:
                raise RuntimeError("llama_decode failed")
            chosen = [self._choose(i) for i in range(batch)]
        seconds = time.perf_counter() - start
        self.api.llama_batch_free(step)
        return seconds

    def _forward(self, ids: list[int]) -> None:
        tokens = (self.api.llama_token * len(ids))(*ids)  # the batch only points to them
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")

    def _choose(self, row: int = -1) -> int:
        logits = self.api.llama_get_logits_ith(self.context, row)
        return int(self.np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


class LlamaBench:
    """A fork of llama.cpp by its own program llama-bench, which loads the file, warms up and times one run a call."""

    def __init__(self, program: str, path: str, threads: int) -> None:
        self.command = [program, "--model", path, "--threads", str(threads), "--repetitions", "1", "--output", "json"]
        self.size = os.path.getsize(path)

    def facts(self) -> dict[str, Any]:
        return {"version": self._run(8, 0)["build_commit"], "bytes_per_token": self.size, "weight_bytes": self.size}

    def prefill(self, tokens: int, seed: int) -> float:
        return float(self._run(tokens, 0)["avg_ns"]) / 1e9

    def decode(self, tokens: int, seed: int, batch: int) -> float:
        if batch != 1:
            raise RuntimeError("llama-bench decodes single sequences only")
        return float(self._run(0, tokens)["avg_ns"]) / 1e9

    def _run(self, prompt: int, answer: int) -> Any:
        command = [*self.command, "--n-prompt", str(prompt), "--n-gen", str(answer)]
        (figures,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return figures


class OpenVino:
    """OpenVINO GenAI's LLMPipeline over a folder that optimum-intel has exported."""

    def __init__(self, folder: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self.openvino, self.genai = openvino, openvino_genai
        self.weights = os.path.getsize(os.path.join(folder, "openvino_model.bin"))
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)

    def facts(self) -> dict[str, Any]:
        version = self.genai.get_version()
        return {"version": version, "bytes_per_token": self.weights, "weight_bytes": self.weights}

    def prefill(self, tokens: int, seed: int) -> float:
        return self._generate([prompt_ids(tokens, seed)], 1)

    def decode(self, tokens: int, seed: int, batch: int) -> float:
        return self._generate([[id] for id in prompt_ids(batch, seed)], tokens)

    def _generate(self, prompts: list[list[int]], answer: int) -> float:
        import numpy as np

        ids = np.array(prompts, np.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(np.ones_like(ids)))
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = answer, True, False
        start = time.perf_counter()
        result = self.pipeline.generate(inputs, config)
        seconds = time.perf_counter() - start
        if any(len(tokens) != answer for tokens in result.tokens):
            raise RuntimeError(f"not every answer has {answer} tokens")
        return seconds


class Probe:
    """The machine itself: bytes per second that this many threads read."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def facts(self) -> dict[str, Any]:
        return {}

    def bandwidth(self, seconds: float) -> float:
        """Bytes per second, the median over `seconds`."""
        from llmcore.runtime import measure_read_bandwidth

        return measure_read_bandwidth(threads=self.threads, seconds=seconds)


RUNTIMES: dict[str, Callable[..., Any]] = {
    "llmcore": Llmcore,
    "llama.cpp": LlamaCpp,
    "llama-bench": LlamaBench,
    "openvino": OpenVino,
    "probe": Probe,
}


def serve(name: str, arguments: dict[str, Any]) -> None:
    """Opens a runtime and answers calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not be taken for an answer
    runtime = RUNTIMES[name](**arguments)
    print(json.dumps(runtime.facts()), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(runtime, request["call"])(*request["arguments"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
