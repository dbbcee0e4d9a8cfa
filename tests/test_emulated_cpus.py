"""The same bits on every CPU: the C++ tests' hash (tests/cpp/hash.h) by each instruction set here and on emulated CPUs.

The programs are built into build/isa-MACHINE; a rebuild without changes takes a second. What a machine lacks (CMake, a
cross compiler, qemu-user) skips its tests, with the reason.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# An emulated CPU, and the instruction set that the program must choose there. Nehalem has no AVX at all, Haswell AVX2
# without AVX-512; cortex-a53 has no dot product, "max" everything that the emulator knows.
X86_CPUS = {"Nehalem": "scalar", "Haswell": "avx2"}
ARM_CPUS = {"cortex-a53": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}
EMULATED = [("x86_64", cpu) for cpu in X86_CPUS] + [("aarch64", cpu) for cpu in ARM_CPUS]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.isa,
    pytest.mark.skipif(platform.system() != "Linux", reason="user-mode emulation is of Linux"),
]


@functools.cache
def built_program(machine: str) -> Path | str:
    """The C++ tests for `machine`, built if need be; or why they can't be."""
    cmake = shutil.which("cmake")
    if cmake is None:
        return "no cmake to build the C++ tests with"
    folder = ROOT / "build" / f"isa-{machine}"
    options = ["-DLLMCORE_BUILD_PYTHON=OFF", "-DLLMCORE_BUILD_TESTS=ON"]
    if machine != platform.machine():
        if shutil.which(f"{machine}-linux-gnu-g++") is None:
            return f"no {machine}-linux-gnu-g++"
        toolchain = ROOT / "cmake" / f"{machine}-linux-gnu.cmake"
        options += [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    elif shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler"
    if shutil.which("ninja") and not (folder / "Makefile").exists():
        options += ["-G", "Ninja"]
    if shutil.which("ccache"):
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    steps = [
        [cmake, "-S", str(ROOT), "-B", str(folder), *options],
        [cmake, "--build", str(folder), "--target", "llmcore_tests", "--parallel", jobs],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(step)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return folder / "tests" / "cpp" / "llmcore_tests"


def command(machine: str, cpu: str | None = None) -> list[str]:
    """How to run the C++ tests on `cpu` (this one, if None); skips where that is impossible."""
    prefix: list[str] = []
    if cpu is not None:
        emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
        if emulator is None:
            pytest.skip(f"no qemu-{machine}: install qemu-user-static")
        prefix = [emulator, "-cpu", cpu]
    if machine not in {platform.machine(), "aarch64"}:
        pytest.skip(f"no cross build for {machine} on this machine")
    program = built_program(machine)
    if isinstance(program, str):
        pytest.skip(program)
    return [*prefix, str(program)]


def output(arguments: list[str], **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "LLMCORE_ISA"} | variables
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    failure = f"{' '.join(arguments)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, failure
    return done.stdout


@functools.cache
def reference_hash() -> str:
    """The hash by the scalar kernels of this machine, on one thread."""
    text = output([*command(platform.machine()), "--hash", "--threads", "1"], LLMCORE_ISA="scalar").strip()
    assert re.fullmatch("[0-9a-f]{16}", text)
    return text


@functools.cache
def native_isas() -> list[str]:
    return output([*command(platform.machine()), "--isas"]).split()


@pytest.mark.parametrize("isa", ["avx2", "avx_vnni", "avx512", "neon", "neon_dotprod", "neon_i8mm"])
def test_an_instruction_set_gives_the_bits_of_the_scalar_kernels(isa: str) -> None:
    if isa not in native_isas():
        pytest.skip(f"this CPU has no {isa}")
    assert output([*command(platform.machine()), "--hash"], LLMCORE_ISA=isa).strip() == reference_hash()


@pytest.mark.parametrize(("machine", "cpu"), EMULATED)
def test_an_emulated_cpu_gives_the_same_bits(machine: str, cpu: str) -> None:
    assert output([*command(machine, cpu), "--hash"]).strip() == reference_hash()


@pytest.mark.parametrize(("machine", "cpu"), EMULATED)
def test_an_emulated_cpu_gets_the_kernels_it_can_run(machine: str, cpu: str) -> None:
    assert output([*command(machine, cpu), "--isas"]).split()[0] == (X86_CPUS | ARM_CPUS)[cpu]


@pytest.mark.parametrize(("machine", "cpu"), EMULATED)
def test_kernels_on_an_emulated_cpu_have_the_scalar_bits_between_guard_pages(machine: str, cpu: str) -> None:
    text = output([*command(machine, cpu), "--quick", "half", "quant", "matmul", "attention", "rows"])
    assert re.search(r"^\d+ tests, 0 failed", text, re.MULTILINE)


def test_an_instruction_set_that_the_cpu_lacks_is_refused() -> None:
    arguments = [*command("x86_64", "Nehalem"), "--hash"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"LLMCORE_ISA": "avx2"})
    assert done.returncode == 2
    assert "LLMCORE_ISA must be one of scalar on this CPU, got 'avx2'" in done.stderr
