"""Specs survive a checkpoint, and undo what they do to pixels."""

from __future__ import annotations

import torch

from refresher_runner.spec import ImageSpec, Spec

SPEC = ImageSpec(3, 4, ("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))


def test_a_spec_survives_a_checkpoint() -> None:
    assert Spec.from_dict(SPEC.to_dict()) == SPEC


def test_pixels_are_the_inverse_of_normalise() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.allclose(SPEC.pixels(SPEC.normalise(pixels)), pixels, atol=1e-6)
