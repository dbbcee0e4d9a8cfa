"""What leaks from the native code: one symbol from each ISA object, one from the extension, no stray AVX.

An inline function compiled with AVX-512 and kept by the linker for everybody would crash an older CPU far away from the
kernels, so an ISA object may define its kernel table and nothing else that another object could see.
"""

from __future__ import annotations

import os
import platform
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
    """Whether the folder is a build tree for this machine, without sanitizers: their objects carry other symbols."""
    cache = folder / "CMakeCache.txt"
    other = r"^(LLMCORE_SANITIZE|CMAKE_TOOLCHAIN_FILE):\w+=.+$"
    return cache.is_file() and not re.search(other, cache.read_text(), re.MULTILINE)


def build_tree() -> Path:
    """$LLMCORE_BUILD_DIR, else the build tree under build/ whose kernels are newest."""
    chosen = os.environ.get("LLMCORE_BUILD_DIR")
    trees = [Path(chosen)] if chosen else [path for path in (ROOT / "build").glob("*") if is_plain_build(path)]
    age = {tree: [o.stat().st_mtime for o in tree.glob("csrc/kernels/**/*.o")] for tree in trees}
    built = [tree for tree in trees if age[tree]]
    if not built:
        pytest.skip("no build tree under build/ (pip install . leaves one)")
    return max(built, key=lambda tree: max(age[tree]))


def isa_objects(tree: Path) -> dict[str, list[Path]]:
    """The objects compiled from each folder of csrc/kernels that stands for an ISA."""
    isas = [path.name for path in (ROOT / "csrc" / "kernels").glob("*") if path.is_dir() and path.name != "generic"]
    found = {isa: sorted(tree.glob(f"csrc/kernels/**/*.dir/{isa}/*.o")) for isa in isas}
    return {isa: objects for isa, objects in found.items() if objects}


def test_an_isa_object_exports_its_kernel_table_alone() -> None:
    objects = isa_objects(build_tree())
    assert "scalar" in objects
    visible = {isa: [symbols(path) for path in paths] for isa, paths in objects.items()}
    names = {isa: [sorted(found) for found in per_object] for isa, per_object in visible.items()}
    assert names == {isa: [[f"llmcore_kernels_{isa}"]] for isa in objects}
    kinds = {kind for per_object in visible.values() for found in per_object for kind in found.values()}
    assert kinds <= set("BDR"), "a kernel table is data, and not weak"


def uses_avx(path: Path) -> bool:
    """Whether an instruction of the object is encoded for AVX or later."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.search(r"\tv\w+ .*%[xyz]mm", listing) is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 instructions")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump on this machine")
def test_only_avx_folders_hold_avx_instructions() -> None:
    tree = build_tree()
    wide = {path for isa, paths in isa_objects(tree).items() if isa.startswith("avx") for path in paths}
    assert all(uses_avx(path) for path in wide)
    assert [path for path in sorted(tree.glob("csrc/**/*.o")) if path not in wide and uses_avx(path)] == []


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
