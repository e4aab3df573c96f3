"""What samplers ask: a network's guess of eps, x0 or v, guided by a condition, as the x0 and eps that it sees.

Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022. https://arxiv.org/abs/2207.12598

Letters as in nn/diffusion.py; a condition is any number of tensors (B, ...) that the network takes after x and t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refresher_runner.nn.diffusion import Denoised, Process, Target
from refresher_runner.nn.samplers import Denoiser

Guess = Callable[[Tensor, Tensor], Tensor]  # x (B, ...) and t (B,) -> eps, x0 or v, as x


def guided(network: Callable[..., Tensor], told: Sequence[Tensor], untold: Sequence[Tensor], guidance: float) -> Guess:
    """What the network says without a condition + guidance x the difference that the condition makes.

    guidance is 1 + w of eq. 6: 0 asks for nothing, 1 for what was told as it was learnt, more for what is typical of it.
    """

    def said(x: Tensor, t: Tensor) -> Tensor:
        if guidance in (0, 1):
            return network(x, t, *(told if guidance else untold))
        conditions = (torch.cat(pair) for pair in zip(told, untold, strict=True))
        with_it, without = network(torch.cat([x, x]), torch.cat([t, t]), *conditions).float().chunk(2)
        return without + guidance * (with_it - without)

    return said


def denoiser(process: Process, target: Target, said: Guess, *, clip: bool = False) -> Denoiser:
    """x0 and eps in x_t, of a network that is asked for `target`; `clip` keeps x0 within [-1, 1]."""

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        found = process.denoised(target, said(x, t).float(), x, t)
        return process.clipped(found, x, t) if clip else found

    return denoise
