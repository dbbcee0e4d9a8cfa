"""Opening a checkpoint touches its own folder and nothing else: watched through the interpreter's audit events."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tiny_model

PROGRAM = """
import sys
from llmcore.checkpoint.readers import open_checkpoint
from llmcore.models import binding, gpt2, llama, registry
registry.supported()
import decimal, numpy.random
events = []
def watch(event, arguments):
    if event in ("open", "import", "os.listdir", "os.scandir", "exec", "compile") or event.startswith(
        ("socket.", "subprocess.", "os.exec", "os.system", "pickle.", "ctypes.", "mmap.", "urllib.", "shutil.")
    ):
        events.append((event, str(arguments[0]) if arguments else ""))
sys.addaudithook(watch)
with open_checkpoint(sys.argv[1]) as checkpoint:
    bound = binding.bind(checkpoint)
    for slot in bound.slots.values():
        for part in slot.parts:
            part.read()
for event, argument in events:
    print(event, argument)
"""


def test_only_the_folder_is_opened(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "other/repo--evil.Model"}
    folder = tiny_model.save(tmp_path / "m", config={"auto_map": auto_map, "_name_or_path": "https://example.org/x"})
    (folder / "evil.py").write_text("raise SystemExit")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    events = [line.partition(" ")[::2] for line in run.stdout.splitlines()]
    # Files of the folder are opened by name in its descriptor, or by their whole path.
    opened = {argument for event, argument in events if event == "open"}
    assert opened == {str(folder), "config.json", "model.safetensors"}
    assert {event for event, _ in events} <= {"open", "os.listdir", "os.scandir"}
