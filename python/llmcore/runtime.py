"""What the native core runs on: instruction set, threads, memory bandwidth."""

from __future__ import annotations

from llmcore import _core
from llmcore.arguments import integer
from llmcore.quantization import FLOAT_FORMATS, KEPT_FORMATS, KV_DTYPES


def isa() -> str:
    """The instruction set whose kernels are in use: "scalar", "avx2", "avx_vnni", "avx512", "neon", "neon_dotprod" or
    "neon_i8mm".

    The best one the CPU has, or the one LLMCORE_ISA names. Raises ArgumentError when that can't run here.
    """
    return _core.isa()


def features() -> dict[str, object]:
    """What this build and machine offer: `isa`, `available_isas` (best first), `formats`, `kv_dtypes`, `backends`,
    `compiler`, `cores` (usable by this process)."""
    return {
        "isa": isa(),
        "available_isas": _core.available_isas(),
        "formats": [*FLOAT_FORMATS, *KEPT_FORMATS],
        "kv_dtypes": list(KV_DTYPES),
        "backends": ["cpu"],
        "compiler": _core.compiler,
        "cores": _core.usable_cores(),
    }


def get_num_threads() -> int:
    """Threads that models made from now on use by default."""
    return _core.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Sets the default number of threads (1 to 1024) of models made from now on, and of llmcore.ops.

    Results never depend on it. Raises ArgumentError.
    """
    _core.set_num_threads(integer("threads", threads, 1, 1024))


def measure_read_bandwidth(threads: int | None = None, seconds: float = 0.5) -> float:
    """Bytes per second that `threads` (default: all usable) read from memory: the median over `seconds`."""
    return _core.measure_read_bandwidth(threads or 0, seconds)
