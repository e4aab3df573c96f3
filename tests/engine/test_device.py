"""Randomness that can be kept, set aside and told apart."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from refresher_runner.engine.device import random_state, randomness_apart, restore_random_state, seed_everything, seed_step

CPU = torch.device("cpu")


def draws() -> tuple[float, float, float]:
    return random.gauss(0, 1), float(np.random.randn()), torch.randn(()).item()


def test_randomness_is_restored_in_the_middle_of_a_pair_of_gaussians() -> None:
    seed_everything(3)
    draws()  # numpy and Python make two at a time, and keep the second
    state = random_state(CPU)
    expected = [draws() for _ in range(3)]
    seed_everything(4)
    restore_random_state(state, CPU)
    assert [draws() for _ in range(3)] == expected


def test_what_is_drawn_apart_leaves_no_trace() -> None:
    seed_everything(3)
    draws()
    state = random_state(CPU)
    expected = [draws() for _ in range(3)]
    restore_random_state(state, CPU)
    with randomness_apart(0, CPU):
        draws()
    assert [draws() for _ in range(3)] == expected


def test_every_rank_and_step_draws_its_own_and_repeats_it() -> None:
    def drawn(*where: int) -> float:
        seed_step(*where)
        return torch.rand((), dtype=torch.float64).item()

    places = [(seed, step, rank) for seed in range(3) for step in range(12) for rank in range(12)]
    first = [drawn(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [drawn(*place) for place in places] == first


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no huge pages to ask for")
@pytest.mark.skipif(not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="a switch of glibc")
def test_what_the_heap_grows_by_is_in_huge_pages() -> None:
    """In a process of its own, whose memory is told by the system."""
    code = """
import torch
from refresher_runner.engine.device import ask_for_huge_pages, keep_freed_memory
keep_freed_memory()
ask_for_huge_pages()
held, inside = torch.ones(64, 2**20), False
middle = held.data_ptr() + held.nbytes // 2
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        begin, end = (int(address, 16) for address in line.split()[0].split("-"))
        inside = begin <= middle < end
    elif inside and line.startswith("VmFlags:"):
        print(line)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "hg" in told.split()
