"""Kernels in C for what a sampling pass does between its matrix products; see native.c.

They are compiled by the system's C compiler when a CPU first samples in bfloat16, which takes
a second, and kept in the user cache under a name made of their source, the compiler and the
processor. Without a compiler torch does the same work in more and smaller steps.

Left out: other types, other devices, gradients, heads of other sizes than `HEAD_SIZES`. The
kernels check nothing: the functions here say what they take, and their callers keep to it.

Shape legend: T tokens, E and F sizes, H query heads, K key heads, N heads, D head size, R rows.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metier.models.hub import cache_root

__all__ = ["HEAD_SIZES", "Kernels", "NewToken", "kernels", "serving", "token_table"]

HEAD_SIZES = (64, 128)
_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),  # sums in any order
)
_SECONDS = 60.0  # for the compiler

NewToken = tuple[int, int, int, int, int]
"""Of one row: its token's place in the pass, slot, own tokens before, prefix, tokens of the prefix."""


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "key_heads", "capacity", "longest")),
        ("scale", ctypes.c_float),
    ]


class Kernels:
    """The compiled kernels, as functions of bfloat16 tensors on the CPU."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._norm, self._gate, self._rotate = loaded.metier_norm, loaded.metier_gate, loaded.metier_rotate
        self._norm.argtypes = (pointer, pointer, pointer, number, number, real)
        self._gate.argtypes = (pointer, pointer, pointer, number, number, number)
        self._rotate.argtypes = (pointer, pointer, pointer, pointer, number, number, number, number)
        self._attend = {size: getattr(loaded, f"metier_attend_{size}") for size in HEAD_SIZES}
        for function in self._attend.values():
            strided = (pointer, number)
            function.argtypes = (pointer, pointer, *strided, *strided, *strided, *(pointer,) * 5)

    def norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        """See `lean.rms_norm`. Both without gaps."""
        out, size = torch.empty_like(x_TE), x_TE.shape[-1]
        self._norm(x_TE.data_ptr(), weight_E.data_ptr(), out.data_ptr(), x_TE.numel() // size, size, eps)
        return out

    def gate(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """See `lean.silu_gate`. Rows without gaps within them, alike in both."""
        out, size = gate_TF.new_empty(gate_TF.shape), gate_TF.shape[-1]
        rows = gate_TF.numel() // size
        self._gate(gate_TF.data_ptr(), up_TF.data_ptr(), out.data_ptr(), rows, size, gate_TF.stride(-2))
        return out

    def rotate(self, x_TND: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """See `lean.rotate`. Tokens may have gaps between them; cosines and sines have none."""
        t, n, d = x_TND.shape
        out = x_TND.new_empty((t, n, d))
        cos, sin = cos_TD.data_ptr(), sin_TD.data_ptr()
        self._rotate(x_TND.data_ptr(), cos, sin, out.data_ptr(), t, n, d, x_TND.stride(0))
        return out

    def attend(
        self,
        table: ctypes.Array[ctypes.c_int64],
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        cache: tuple[Tensor, Tensor],
        ahead: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> Tensor:
        """Keep each row's new key and value in the cache (slots, K, room, D), then attend; (R, H, D), row by row.

        `table` is of `token_table`, `ahead` has the stacked prefixes (prefixes, K, P, D). Tokens may have gaps
        between them, caches have none.
        """
        r, h, (keys, values) = len(table) // 5, query_THD.shape[1], cache
        longest = 0 if ahead is None else ahead[0].shape[2]
        shape = _Shape(r, h, key_TKD.shape[1], keys.shape[2], longest, scale)
        out = query_THD.new_empty((r, *query_THD.shape[1:]))
        ahead_keys, ahead_values = (0, 0) if ahead is None else (ahead[0].data_ptr(), ahead[1].data_ptr())
        failed = self._attend[query_THD.shape[2]](
            ctypes.addressof(shape), ctypes.addressof(table),
            query_THD.data_ptr(), query_THD.stride(0), key_TKD.data_ptr(), key_TKD.stride(0),
            value_TKD.data_ptr(), value_TKD.stride(0),
            keys.data_ptr(), values.data_ptr(), ahead_keys, ahead_values, out.data_ptr(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the scores of a sampling pass")
        return out


def token_table(rows: Sequence[NewToken]) -> ctypes.Array[ctypes.c_int64]:
    """The rows as the kernel reads them; made once for all layers of a pass."""
    return (ctypes.c_int64 * (5 * len(rows)))(*(number for row in rows for number in row))


def serving(*tensors: Tensor) -> Kernels | None:
    """The kernels, where they compute with tensors like these."""
    if all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in tensors):
        return kernels()
    return None


@functools.cache
def kernels() -> Kernels | None:
    """The kernels, compiled where they are not yet; None where that cannot be done here."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    try:
        made_of = [_SOURCE.read_bytes(), *map(str.encode, (_version(compiler), _processor(), *_FLAGS))]
        folder = cache_root() / "native"
        library = folder / f"{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:20]}.so"
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                fresh = Path(scratch) / library.name
                command = [compiler, *_FLAGS, "-o", str(fresh), str(_SOURCE), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
                fresh.replace(library)
        return Kernels(library)
    except (OSError, subprocess.SubprocessError):
        return None


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS).stdout


def _processor() -> str:
    """What `-march=native` may see: a cache shared between machines holds a library for each kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
