"""The include direction of csrc, held to the one place that declares it: CMake.

The order of add_subdirectory in csrc/CMakeLists.txt is the order of the layers, and a module's LINKS are the modules it
may use. A header may include its own module and what its module links, directly or through another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCE_SUFFIXES = {".h", ".cpp"}

# What a file compiled for an instruction set may include. Anything with inline functions (the C++ library) would be
# compiled with that set's instructions and could be the copy that the linker keeps for every CPU.
LEAF_SYSTEM_HEADERS = {"immintrin.h", "arm_neon.h", "stdint.h", "stddef.h"}


def module_order(csrc: Path) -> list[str]:
    """The modules from the bottom up."""
    text = re.sub(r"#.*", "", (csrc / "CMakeLists.txt").read_text())
    return re.findall(r"add_subdirectory\((\w+)\)", text)


def module_links(csrc: Path, module: str) -> set[str]:
    """The modules that `module`'s CMake targets link, `module` itself left out."""
    text = re.sub(r"#.*", "", (csrc / module / "CMakeLists.txt").read_text())
    known = set(module_order(csrc))
    found: set[str] = set()
    for call in re.findall(r"(?:llmcore_module|target_link_libraries)\(([^)]*)\)", text):
        words = call.split()
        linked = words[words.index("LINKS") + 1 :] if "LINKS" in words else words[1:]
        found |= {word.removeprefix("llmcore_") for word in linked if word.startswith("llmcore_")}
    return (found & known) - {module}


def allowed_modules(csrc: Path, module: str) -> set[str]:
    """`module` and everything that it links, directly or through another."""
    seen: set[str] = set()
    queue = [module]
    while queue:
        current = queue.pop()
        if current not in seen:
            seen.add(current)
            queue += module_links(csrc, current)
    return seen


def includes(path: Path) -> Iterator[tuple[str, bool]]:
    """Each #include of the file: its name and whether it stands in quotes."""
    for opening, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE):
        yield name, opening == '"'


def sources(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in SOURCE_SUFFIXES)


def resolve(csrc: Path, including: Path, name: str) -> Path | None:
    """The file that a quoted include names: beside the including file, or from csrc."""
    for base in (including.parent, csrc):
        if (base / name).is_file():
            return (base / name).resolve()
    return None


def direction_faults(csrc: Path) -> list[str]:
    """Each include that points at a module which the including one doesn't link."""
    faults = []
    for module in module_order(csrc):
        allowed = allowed_modules(csrc, module)
        for path in sources(csrc / module):
            for name, quoted in includes(path):
                target = resolve(csrc, path, name) if quoted else None
                where = f"{path.relative_to(csrc)} includes {name}"
                if quoted and target is None:
                    faults.append(f"{where}: no such file")
                elif target is not None and target.relative_to(csrc.resolve()).parts[0] not in allowed:
                    faults.append(f"{where}: {module} doesn't link it")
                elif not quoted and name.split("/")[0] in module_order(csrc):
                    faults.append(f"{where}: own headers go in quotes")
    return faults


def isa_folders(csrc: Path) -> list[Path]:
    """The folders of kernels that are compiled for one instruction set."""
    return [path for path in sorted((csrc / "kernels").iterdir()) if path.is_dir() and path.name != "generic"]


def leaf_faults(csrc: Path, isa: Path) -> list[str]:
    """What the files of an ISA folder include, directly or through another, beyond what a leaf may."""
    faults = []
    seen: set[Path] = set()
    queue = [path.resolve() for path in sources(isa)]
    root = csrc.resolve()
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        parts = path.relative_to(root).parts
        # A variant of an ISA (neon_dotprod) may be compiled from the lanes of another: its vec.h.
        own = parts[0] == "kernels" and (len(parts) == 2 or parts[1] in ("generic", isa.name) or path.name == "vec.h")
        if not own and parts[0] != "quant":
            faults.append(f"{'/'.join(parts)} is no layout, generic kernel or file of {isa.name}")
        for name, quoted in includes(path):
            target = resolve(csrc, path, name) if quoted else None
            if target is not None:
                queue.append(target)
            elif name not in LEAF_SYSTEM_HEADERS:
                faults.append(f"{'/'.join(parts)} includes {name}")
    return faults


def test_every_module_folder_is_declared() -> None:
    folders = {path.name for path in CSRC.iterdir() if (path / "CMakeLists.txt").is_file()}
    assert folders == set(module_order(CSRC))


@pytest.mark.parametrize("module", module_order(CSRC))
def test_a_module_links_only_what_is_declared_above_it(module: str) -> None:
    order = module_order(CSRC)
    above = set(order[: order.index(module)])
    assert module_links(CSRC, module) - above == set()


def test_includes_follow_the_links() -> None:
    assert direction_faults(CSRC) == []


def test_tokenizer_depends_on_base_and_kernels_alone() -> None:
    assert allowed_modules(CSRC, "tokenizer") == {"tokenizer", "base", "kernels"}


@pytest.mark.skipif(not (CSRC / "kernels").is_dir(), reason="no kernels in this tree")
def test_isa_leaves_include_only_intrinsics_and_layouts() -> None:
    faults = {isa.name: leaf_faults(CSRC, isa) for isa in isa_folders(CSRC)}
    assert faults == {isa.name: [] for isa in isa_folders(CSRC)}


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A csrc of three sound modules, for the tests that break it."""
    files = {
        "CMakeLists.txt": "add_subdirectory(base)\nadd_subdirectory(kernels)\nadd_subdirectory(ops)\n",
        "base/CMakeLists.txt": "llmcore_module(base SOURCES error.cpp)\n",
        "base/error.h": "#include <string>\n",
        "kernels/CMakeLists.txt": "llmcore_module(kernels SOURCES select.cpp LINKS llmcore_base)\n",
        "kernels/table.h": "#include <stdint.h>\n",
        "kernels/avx2/kernels.cpp": '#include <immintrin.h>\n#include "kernels/table.h"\n',
        "ops/CMakeLists.txt": "llmcore_module(ops SOURCES norm.cpp LINKS llmcore_kernels)\n",
        "ops/norm.h": '#include "base/error.h"\n#include "kernels/table.h"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_check_passes_a_sound_tree(small_tree: Path) -> None:
    assert direction_faults(small_tree) == []
    assert leaf_faults(small_tree, small_tree / "kernels" / "avx2") == []


def test_the_check_finds_an_include_that_points_up(small_tree: Path) -> None:
    (small_tree / "base" / "error.h").write_text('#include "ops/norm.h"\n')
    assert direction_faults(small_tree) == ["base/error.h includes ops/norm.h: base doesn't link it"]


def test_the_check_finds_a_missing_header(small_tree: Path) -> None:
    (small_tree / "ops" / "norm.h").write_text('#include "base/gone.h"\n')
    assert direction_faults(small_tree) == ["ops/norm.h includes base/gone.h: no such file"]


@pytest.mark.parametrize("header", ["<vector>", '"base/error.h"'])
def test_the_check_finds_the_library_in_a_leaf(small_tree: Path, header: str) -> None:
    (small_tree / "kernels" / "table.h").write_text(f"#include {header}\n")
    assert leaf_faults(small_tree, small_tree / "kernels" / "avx2") != []
