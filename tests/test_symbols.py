"""What leaks from the native code: one symbol from each ISA object, one from the extension.

An inline function compiled with AVX-512 and kept by the linker for everybody would crash an older CPU far away from the
kernels, so an ISA object may define its kernel table and nothing else that another object could see.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NM = shutil.which("nm")

pytestmark = [
    pytest.mark.skipif(NM is None, reason="no nm on this machine"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF objects"),
]


def symbols(path: Path, *options: str) -> dict[str, str]:
    """Each defined symbol that other objects can see, and its kind (one letter, as nm prints it)."""
    command = [str(NM), "--defined-only", "--extern-only", "--portability", *options, str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: kind for name, kind, *_ in (line.split() for line in lines)}


def is_plain_build(folder: Path) -> bool:
    """Whether the folder is a build tree without sanitizers, whose objects carry symbols of their own."""
    cache = folder / "CMakeCache.txt"
    return cache.is_file() and not re.search(r"^LLMCORE_SANITIZE:\w+=.+$", cache.read_text(), re.MULTILINE)


def isa_objects() -> dict[str, list[Path]]:
    """The objects of each ISA folder in $LLMCORE_BUILD_DIR, else in the build tree under build/ that is newest."""
    isas = [path.name for path in (ROOT / "csrc" / "kernels").glob("*") if path.is_dir() and path.name != "generic"]
    chosen = os.environ.get("LLMCORE_BUILD_DIR")
    trees = [Path(chosen)] if chosen else [path for path in (ROOT / "build").glob("*") if is_plain_build(path)]
    found = {tree: {isa: sorted(tree.glob(f"csrc/kernels/**/*.dir/{isa}/*.o")) for isa in isas} for tree in trees}
    built = [tree for tree in trees if any(found[tree].values())]
    if not built:
        return {}
    newest = max(built, key=lambda tree: max(o.stat().st_mtime for objects in found[tree].values() for o in objects))
    return {isa: objects for isa, objects in found[newest].items() if objects}


def test_an_isa_object_exports_its_kernel_table_alone() -> None:
    objects = isa_objects()
    if not objects:
        pytest.skip("no build tree under build/ (pip install . leaves one)")
    for isa, paths in objects.items():
        visible = {name: kind for path in paths for name, kind in symbols(path).items()}
        assert len(visible) == 1, f"{isa} exports {visible}"
        ((name, kind),) = visible.items()
        assert kind in "BDRT", f"{isa}: {name} is of kind {kind}, not a plain definition"
        assert isa in name
        assert "table" in name.lower()


def test_the_extension_exports_its_init_function_alone() -> None:
    spec = find_spec("llmcore._core")
    assert spec is not None
    assert spec.origin is not None
    assert set(symbols(Path(spec.origin), "--dynamic")) == {"PyInit__core"}


def test_nm_sees_a_weak_symbol(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no compiler")
    source = tmp_path / "leak.cpp"
    source.write_text("inline int leak(int x) { return x + 1; }\nint table(int x) { return leak(x); }\n")
    subprocess.run([compiler, "-O0", "-c", source, "-o", tmp_path / "leak.o"], check=True)
    assert sorted(symbols(tmp_path / "leak.o").values()) == ["T", "W"]
