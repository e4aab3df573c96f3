"""Where a run computes and in which precision, and how its randomness is kept apart from anyone looking."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from refresher_runner.engine.options import TrainerOptions
from refresher_runner.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is a GPU or the CPU; mps, less exact and less tested, must be named. Raises ConfigError for a device that is absent."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if cuda else 0)), *(["mps"] if mps else [])]
    chosen = f"cuda:{local_rank}" if name == "cuda" else name
    if chosen not in known:
        raise ConfigError("this machine has no such device", key="trainer.device", value=name, cure=f"one of auto, {', '.join(known)}")
    return torch.device(chosen)


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32. Raises ConfigError."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
        return "bf16" if device.type in ("cuda", "cpu") and native else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU", key="trainer.precision", value=name, cure="use bf16")
    return name


def prepare_torch(options: TrainerOptions, device: torch.device) -> None:
    """Process-wide switches of torch and of memory, before the first tensor of a run."""
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if options.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler: seconds
        torch.use_deterministic_algorithms(options.deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not options.deterministic


def keep_freed_memory() -> None:
    """What a step frees stays with the process for the next step, which would else fault every page of it in anew.

    A switch of glibc, whose way is to give large blocks back to the system at once; other C libraries are left as they are.
    """
    if libc := _glibc():
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_trim_threshold, -1)  # never trim the heap
        libc.mallopt(m_mmap_max, 0)  # no block outside it


def compiled(model: nn.Module, device: torch.device) -> Callable[[Any], Any]:
    """By torch's compiler; on a CPU what calls its kernels is compiled too, and asserts nothing of them: some percent of a small step."""
    if device.type == "cpu":
        ask_for_huge_pages()
    return torch.compile(model, options={"cpp_wrapper": True, "size_asserts": False} if device.type == "cpu" else None)


def ask_for_huge_pages() -> None:
    """What the heap grows by from now on, up to half of the machine's memory, is in pages of 2 MiB, where the system gives them to who
    asks: of fewer pages the processor knows the place by heart.
    """
    libc = _glibc()
    if libc is None:
        return
    libc.malloc.restype = ctypes.c_void_p
    page = os.sysconf("SC_PAGE_SIZE")
    size = os.sysconf("SC_PHYS_PAGES") // 2 * page
    if block := libc.malloc(ctypes.c_size_t(size)):  # addresses alone, no memory yet
        begin, madv_hugepage = -(-block // page) * page, 14  # mman.h
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size - page), madv_hugepage)
        libc.free(ctypes.c_void_p(block))


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global randomness."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Torch's randomness for one step of one of several ranks: they draw apart, and a resumed run repeats them."""
    torch.manual_seed(int.from_bytes(hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest(), "little"))


@contextmanager
def randomness_apart(seed: int, device: torch.device) -> Iterator[None]:
    """Draws inside start from `seed` and leave no trace outside: looking never changes training."""
    before = random_state(device)
    seed_everything(seed)
    try:
        yield
    finally:
        restore_random_state(before, device)


def random_state(device: torch.device) -> dict[str, object]:
    """The global randomness that training draws from, in plain containers."""
    numpy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "gauss": (int(numpy["has_gauss"]), float(numpy["gauss"])),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def restore_random_state(state: dict[str, object], device: torch.device) -> None:
    """The inverse of `random_state`."""
    version, internal, gauss = state["python"]  # type: ignore[misc]
    random.setstate((version, tuple(internal), gauss))
    numpy: dict[str, object] = state["numpy"]  # type: ignore[assignment]
    np.random.set_state(("MT19937", numpy["key"].numpy().astype(np.uint32), numpy["pos"], *numpy["gauss"]))  # type: ignore[union-attr]
    torch.set_rng_state(state["torch"])  # type: ignore[arg-type]
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)  # type: ignore[arg-type]
    if device.type == "mps" and state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])  # type: ignore[arg-type]


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; emulated, it is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
