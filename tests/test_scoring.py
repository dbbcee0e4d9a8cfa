"""Embeddings, likelihoods and reranking: against transformers and against the model's own logits."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import ArgumentError, ContextLengthError, SamplingParams

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
TEXTS = ["The prince", "Napoleon said that he would not go to Moscow, and he went.", "a", "It was in July, 1805"]


@pytest.fixture(scope="module")
def llm() -> Iterator[llmcore.LLM]:
    with llmcore.LLM("tiny", threads=1, max_batch_size=4, progress=False) as opened:
        yield opened


def states(llm: llmcore.LLM, ids: list[int]) -> np.ndarray:
    with llm.model.capture("final_norm") as acts:
        llm.model.forward(ids)
    return np.asarray(acts["final_norm"], np.float64)


def test_embeddings_are_pooled_states(llm: llmcore.LLM) -> None:
    for pooling in ("mean", "last", "cls"):
        found = llm.embed(TEXTS, pooling=pooling, normalize=False)
        assert found.shape == (4, llm.model.spec.hidden_size)
        assert found.dtype == np.float32
        for text, row in zip(TEXTS, found, strict=True):
            rows = states(llm, llm.tokenizer.encode(text))
            expected = {"mean": rows.mean(0), "last": rows[-1], "cls": rows[0]}[pooling]
            np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6)
    unit = llm.embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


def test_embeddings_have_the_same_bits_in_any_batch(llm: llmcore.LLM) -> None:
    long = ["one two three four five six " * 12, *TEXTS, "seven " * 200] * 4
    together = llm.embed(long)
    for text, row in zip(long[:6], together, strict=False):
        assert (llm.embed(text)[0] == row).all()
    assert (llm.embed(list(reversed(long))) == together[::-1]).all()
    with llmcore.load("tiny", threads=2, progress=False) as two, llmcore.LLM(two) as other:
        assert (other.embed(long) == together).all()


def test_embeddings_take_the_kv_dtype_of_the_engine() -> None:
    with llmcore.load("tiny", progress=False) as model:
        found = {}
        for kv_dtype in ("auto", "f32", model.kv_dtype):
            with llmcore.LLM(model, kv_dtype=kv_dtype) as llm:
                found[kv_dtype] = llm.embed(TEXTS)
    assert (found["auto"] == found[model.kv_dtype]).all()
    assert (found["auto"] != found["f32"]).any()


def test_embeddings_equal_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=48, intermediate_size=72, num_hidden_layers=2, num_attention_heads=6
    )
    reference = transformers.LlamaModel(config).eval()
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    full = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    reference = full.model
    ids = [[5, 9, 200, 13], [7], list(range(100))]
    with llmcore.load(tmp_path, progress=False) as model, llmcore.LLM(model) as llm:
        found = llm.embed(ids, pooling="mean")
    for row, one in zip(found, ids, strict=True):
        with torch.no_grad():
            mean = reference(torch.tensor([one])).last_hidden_state[0].double().mean(0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_requests_go_on_after_an_embedding(llm: llmcore.LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    before = llm.generate(TEXTS[0], params)[0].token_ids
    request = llm.submit(TEXTS[0], params)
    llm.embed(TEXTS)
    assert request.result(500).token_ids == before


def test_embeddings_take_their_room_from_the_cache() -> None:
    """Nothing is allocated for them, and what runs gives its pages and comes back to the same bits."""
    with llmcore.load("tiny", progress=False) as model:
        with llmcore.LLM(model, max_model_len=128, max_batch_size=2) as llm:
            long = [list(range(1, 129)), list(range(50, 178)), [7] * 128, [1]]
            expected = llm.embed(long)
            answer = llm.generate(TEXTS[0], LONG)[0].token_ids
        with llmcore.LLM(model, max_model_len=128, max_batch_size=1) as llm:
            runs = threading.Event()

            def hold(output: list[int], row: Any) -> None:
                runs.set()
                time.sleep(0.002)

            request = llm.submit(TEXTS[0], replace(LONG, logits_processors=[hold]))
            assert runs.wait(60)
            before = llmcore._core.allocation_count()
            assert (llm.embed(long) == expected).all()
            assert llmcore._core.allocation_count() == before
            result = request.result(500)
            assert result.token_ids == answer
            assert result.metrics.preemptions > 0
            stats = llm.stats()
            assert stats["kv_pages_free"] == stats["kv_pages_total"]
            with pytest.raises(ContextLengthError, match=r"texts\[1\] has 129 tokens.*max_model_len"):
                llm.embed([[1], [1] * 129])


def test_requests_go_on_beside_embeddings_and_these_beside_cancels() -> None:
    """Whoever embeds without a pause doesn't stop requests, nor do requests that are left stop an embedding."""
    with llmcore.LLM("tiny", max_model_len=128, max_batch_size=1, progress=False) as llm:
        expected = llm.generate(TEXTS[0], LONG)[0].token_ids
        row = llm.embed([list(range(1, 129))])
        ended = threading.Event()
        wrong = []

        def embed() -> None:
            while not ended.is_set():
                if (llm.embed([list(range(1, 129))]) != row).any():
                    wrong.append(1)

        threads = [threading.Thread(target=embed) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                request = llm.submit(TEXTS[0], LONG)
                llm.submit(TEXTS[1], LONG).cancel()
                assert request.result(100).token_ids == expected
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not wrong
        stats = llm.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]


def test_embeddings_come_in_the_order_they_were_asked_for() -> None:
    """What fits doesn't pass what waits for more pages, nor do requests give theirs for pages that others have."""
    with llmcore.LLM("tiny", max_model_len=128, max_batch_size=4, progress=False) as llm:
        held, done = threading.Event(), threading.Event()
        order = []

        def hold() -> None:
            llm._loop.with_pages([128, 128, 128, 80], lambda *_: (held.set(), done.wait(60)))

        def want(length: int) -> None:
            llm._loop.with_pages([length], lambda *_: order.append(length))

        threads = [threading.Thread(target=hold), *(threading.Thread(target=want, args=(n,)) for n in (128, 20, 128))]
        threads[0].start()
        assert held.wait(60)
        runs = threading.Event()

        def slow(output: list[int], row: Any) -> None:
            runs.set()
            time.sleep(0.005)

        request = llm.submit([1, 2, 3], replace(LONG, max_tokens=40, logits_processors=[slow]))
        assert runs.wait(60)
        for waiting, thread in enumerate(threads[1:], 1):
            thread.start()
            while len(llm._loop._loans) < waiting:
                time.sleep(0.001)
        assert request.result(100).metrics.preemptions == 0
        assert not order  # pages for one of them are free
        done.set()
        for thread in threads:
            thread.join()
        assert sorted(order) == [20, 128, 128]
        stats = llm.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]


def test_pages_are_counted_when_they_are_back(llm: llmcore.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.embed(TEXTS)
    end = time.monotonic() + 60
    while (stats := llm._loop.stats(wait=False))["kv_pages_free"] < stats["kv_pages_total"]:
        assert time.monotonic() < end
    with llmcore.LLM("tiny", max_batch_size=1, progress=False) as other:

        def refuse(*_: Any) -> int:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("llmcore.engine_loop.start_new_thread", refuse)
        with pytest.raises(llmcore.LlmcoreError, match="can't be started"):
            other.embed(TEXTS)  # and it can be closed


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_likelihoods_are_those_of_the_models_logits(llm: llmcore.LLM) -> None:
    context = "Prince Andrew looked at the old count and said that the"
    pairs = [(context, text) for text in (" prince", " war was over", " x", "re is nothing")]
    pairs += [("It was ", "a"), ("", "The"), (context, " prince")]
    found = llm.loglikelihood(pairs)
    for (before, after), one in zip(pairs, found, strict=True):
        whole = llm.tokenizer.encode(before + after)
        first = len(whole) - len(one.token_ids)
        assert whole[first:] == one.token_ids
        rows = log_softmax(np.asarray(llm.model.forward(whole)))[first - 1 : -1]
        expected = [row[token] for row, token in zip(rows, one.token_ids, strict=True)]
        np.testing.assert_allclose(one.token_logprobs, expected, atol=1e-4)
        assert one.logprob == pytest.approx(sum(expected), abs=1e-3)
        assert one.is_greedy == all(token == row.argmax() for row, token in zip(rows, one.token_ids, strict=True))
    assert found[0] == found[-1]
    assert found[4].token_ids == llm.tokenizer.encode("It was a")[len(llm.tokenizer.encode("It was")) :]


def test_a_context_is_computed_once_and_the_bits_are_those_alone(llm: llmcore.LLM) -> None:
    context = "War and peace " * 20
    endings = [f" {word}" for word in ("prince", "count", "Moscow", "horse", "night")]
    with llmcore.LLM(llm.model, max_batch_size=4, progress=False) as fresh:
        together = fresh.loglikelihood([(context, ending) for ending in endings])
        context_tokens = len(fresh.tokenizer.encode(context.rstrip()))
        assert fresh.stats()["prefix_hit_tokens"] >= 4 * (context_tokens // 16 - 1) * 16
    with llmcore.LLM(llm.model, enable_prefix_caching=False, progress=False) as cold:
        assert [cold.loglikelihood([(context, ending)])[0] for ending in endings] == together


def test_the_greedy_answer_is_greedy(llm: llmcore.LLM) -> None:
    out = llm.generate(TEXTS[0], SamplingParams(temperature=0, max_tokens=10))[0]
    (one,) = llm.loglikelihood([(out.prompt_token_ids, out.token_ids)])
    assert one.is_greedy
    assert one.token_ids == out.token_ids


def test_a_likelihood_may_fill_the_context(llm: llmcore.LLM) -> None:
    ids = llm.tokenizer.encode("Prince Andrew looked at the old count and said that the war was over. " * 3)
    whole = ids[:32]
    with llmcore.LLM(llm.model, max_model_len=32) as short:
        found = short.loglikelihood([(whole[:20], whole[20:]), (whole[:-1], whole[-1:])])
        assert found == llm.loglikelihood([(whole[:20], whole[20:]), (whole[:-1], whole[-1:])])
        with pytest.raises(ContextLengthError):
            short.loglikelihood([(whole, [1])])


def test_the_end_token_has_a_likelihood_whatever_the_models_defaults(llm: llmcore.LLM, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(llmcore.__file__).parent / "assets" / "tiny", folder)
    (folder / "generation_config.json").write_text('{"min_new_tokens": 5}')
    pairs = [([5, 6], [7, *llm.tokenizer.eos_ids])]
    with llmcore.LLM(folder, threads=1, progress=False) as other:
        assert other.loglikelihood(pairs) == llm.loglikelihood(pairs)


def test_rerank_by_likelihood(llm: llmcore.LLM) -> None:
    documents = ["The horses ran over the field.", "Napoleon was in Moscow.", "zzz qqq"]
    ranked = llm.rerank("Where was Napoleon?", documents, instruction="Question:")
    assert sorted(one.index for one in ranked) == [0, 1, 2]
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert all(one.document == documents[one.index] for one in ranked)
    (expected,) = llm.loglikelihood([(f"Passage: {documents[1]}\nQuestion:\n", "Where was Napoleon?")])
    by_index = {one.index: one.score for one in ranked}
    assert by_index[1] == expected.logprob / len(expected.token_ids)
    assert llm.rerank("Where was Napoleon?", documents, instruction="Question:", top_n=1) == ranked[:1]


def test_rerank_by_yes_or_no_is_the_softmax_of_two_logits(llm: llmcore.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    # The built-in vocabulary has "no", and any other single token does for "yes".
    encode = llm.tokenizer.encode
    word = {"yes": encode("x", add_special_tokens=False), "no": encode("n", add_special_tokens=False)}
    assert [len(ids) for ids in word.values()] == [1, 1]
    monkeypatch.setattr(llm.tokenizer, "encode", lambda text, **options: word.get(text) or encode(text, **options))
    query, documents = "Who?", ["He.", "<|end_of_text|> she"]
    for one in llm.rerank(query, documents, method="yes_no", instruction="Judge."):
        (prompt, _), _ = seen_pairs(llm, query, documents[one.index])
        last = np.asarray(llm.model.forward(prompt))[-1].astype(np.float64)
        a, b = last[word["yes"][0]], last[word["no"][0]]
        assert one.score == pytest.approx(1 / (1 + np.exp(b - a)), abs=1e-4)
        assert not set(prompt[1:]) & set(llm.tokenizer.special_tokens.values())


def seen_pairs(llm: llmcore.LLM, query: str, document: str) -> Any:
    """The prompts that the reranker asks about."""
    from llmcore import scoring

    kept: list[Any] = []

    def spy(llm: llmcore.LLM, pairs: list[Any], progress: bool) -> list[Any]:
        kept.extend(pairs)
        return [llmcore.scoring.Loglikelihood(0.0, False, [1], [0.0])] * len(pairs)  # type: ignore[attr-defined]

    original, scoring.loglikelihood = scoring.loglikelihood, spy  # type: ignore[assignment]
    try:
        llm.rerank(query, [document], method="yes_no", instruction="Judge.")
    finally:
        scoring.loglikelihood = original
    return kept


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda llm: llm.embed(["x"], pooling="max"), ArgumentError),
        (lambda llm: llm.embed([[]]), ArgumentError),
        (lambda llm: llm.embed(["x " * 2000]), ContextLengthError),
        (lambda llm: llm.embed(3), TypeError),
        (lambda llm: llm.loglikelihood(["ab"]), TypeError),
        (lambda llm: llm.loglikelihood([("a", "")]), ArgumentError),
        (lambda llm: llm.loglikelihood([("a ", "")]), ArgumentError),
        (lambda llm: llm.loglikelihood([([5], [2048])]), ArgumentError),
        (lambda llm: llm.loglikelihood([("a ", "b " * 2000)]), ContextLengthError),
        (lambda llm: llm.rerank("q", "text"), TypeError),
        (lambda llm: llm.rerank("q", ["d"], method="x"), ArgumentError),
        (lambda llm: llm.rerank("q", ["d"], top_n=0), ArgumentError),
        (lambda llm: llm.rerank("q", ["d"], top_n=-(10**5000)), ArgumentError),
        (lambda llm: llm.rerank("q", ["d"], instruction=5), TypeError),
        (lambda llm: llm.rerank("q", ["d"], method=np.array(["x", "y"])), TypeError),
        (lambda llm: llm.rerank("", ["d"]), ArgumentError),
    ],
)
def test_bad_arguments(llm: llmcore.LLM, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        call(llm)
    assert isinstance(caught.value, llmcore.LlmcoreError)
    assert llm.stats()["requests_running"] == llm.stats()["requests_waiting"] == 0
