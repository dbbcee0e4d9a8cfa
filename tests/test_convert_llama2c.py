"""examples/convert_llama2c.py on stories260K: the text that llama2.c's run writes, byte for byte, and its loss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmcore

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "convert_llama2c.py"
if not SCRIPT.is_file():
    pytest.skip("the examples are not beside these tests", allow_module_level=True)

FILES = ("stories260K.bin", "stories260K-ak42_v1.bin", "stories260K-q8_v2.bin")
BOS = 1


def convert(data_dir: Path, checkpoint: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    tokenizer = data_dir / "models" / "stories260K" / "tok512.bin"
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(tokenizer), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folders(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("llama2c") / name for name in FILES}
    for name, folder in made.items():
        done = convert(data_dir, data_dir / "models" / "stories260K" / name, folder)
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def story_model(folders: dict[str, Path]) -> llmcore.Model:
    return llmcore.load(folders[FILES[0]], threads=1, progress=False)


def mean_loss(model: llmcore.Model, text: str) -> float:
    """Nats per token over 20 chunks of 700 characters, the first 200 tokens of each, BOS and first space included."""
    losses = []
    for start in range(0, 20 * 700, 700):
        ids = model.require_tokenizer().encode(text[start : start + 700])[:200]
        logits = np.asarray(model.forward(ids[:-1]), np.float64)
        top = logits.max(1)
        total = np.log(np.exp(logits - top[:, None]).sum(1)) + top
        losses.append(total - logits[np.arange(len(ids) - 1), ids[1:]])
    return float(np.concatenate(losses).mean())


def test_200_greedy_tokens_equal_those_of_llama2c(data_dir: Path, story_model: llmcore.Model) -> None:
    expected = (data_dir / "models" / "stories260K" / "expected_greedy_200.txt").read_bytes()
    params = llmcore.SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with llmcore.LLM(story_model, max_batch_size=1) as llm:
        (answer,) = llm.generate([BOS], params)
        streamed = "".join(chunk.text for chunk in llm.stream([BOS], params))
    assert answer.text.encode() + b"\n" == expected  # run.c ends its output with a newline
    assert streamed == answer.text


def test_mean_loss_is_the_known_one(data_dir: Path, story_model: llmcore.Model) -> None:
    text = (data_dir / "text" / "tinystories_excerpt.txt").read_text("utf-8")
    assert round(mean_loss(story_model, text), 4) == 1.6166


def test_version_1_holds_the_same_weights(folders: dict[str, Path]) -> None:
    assert (folders[FILES[0]] / "model.safetensors").read_bytes() == (
        folders[FILES[1]] / "model.safetensors"
    ).read_bytes()


def test_version_2_is_nearly_as_good(data_dir: Path, folders: dict[str, Path]) -> None:
    text = (data_dir / "text" / "tinystories_excerpt.txt").read_text("utf-8")
    with llmcore.load(folders[FILES[2]], threads=1, progress=False) as model:
        assert abs(mean_loss(model, text) - 1.6166) < 0.001


def test_tokenizer_equals_sentencepiece(data_dir: Path, folders: dict[str, Path], story_model: llmcore.Model) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folders[FILES[0]] / "tokenizer.model"))
    text = (data_dir / "text" / "tinystories_excerpt.txt").read_text("utf-8")[:20000] + " naïve 東京 \U0001f600\t x"
    for line in ["", " ", "  two  spaces ", text, *text.split("\n")[:50]]:
        assert story_model.require_tokenizer().encode(line, add_special_tokens=False) == reference.encode(line)


def test_folder_gives_transformers_the_same_logits(folders: dict[str, Path], story_model: llmcore.Model) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folders[FILES[0]], attn_implementation="eager")
    ids = story_model.require_tokenizer().encode("Once upon a time there was a little boy.")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    ours = np.asarray(story_model.forward(ids))
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_cut_file_is_refused(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "models" / "stories260K"
    (tmp_path / "cut.bin").write_bytes((source / FILES[0]).read_bytes()[:5000])
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path / "cut.bin"),
        str(source / "tok512.bin"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("the checkpoint ends at byte 5000")
    assert not (tmp_path / "out").exists()


def test_quantize_with_a_calibration_text(folders: dict[str, Path], data_dir: Path, tmp_path: Path) -> None:
    text = data_dir / "text" / "tinystories_excerpt.txt"
    empty, program = tmp_path / "empty.txt", [sys.executable, "-m", "llmcore", "quantize", str(folders[FILES[0]])]
    empty.write_text("\n")
    options = ["--format", "int4", "--smoothing", "awq", "--calibration-tokens", "2000"]
    for file, code in ((text, 0), (empty, 2), (tmp_path / "absent.txt", 2), (Path(sys.executable), 2)):
        command = [*program, "-o", str(tmp_path / "packed"), *options, "--calibrate", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == (1 if code else 0)
    losses = []
    with llmcore.load(tmp_path / "packed", progress=False) as model:
        ids = model.require_tokenizer().encode(text.read_text("utf-8")[-4000:])[:400]
        with llmcore.load(folders[FILES[0]], "int4", progress=False) as nearest:
            for each in (model, nearest):
                logits = np.asarray(each.forward(ids), np.float64)[:-1]
                largest = logits.max(1, keepdims=True)
                chosen = logits[np.arange(len(logits)), ids[1:]]
                losses.append(np.mean(np.log(np.exp(logits - largest).sum(1)) + largest[:, 0] - chosen))
    assert losses[0] < losses[1]
