"""Randomness that can be kept, set aside and told apart."""

from __future__ import annotations

import random

import numpy as np
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
