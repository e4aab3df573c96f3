"""Draws by given weights in constant time."""

from __future__ import annotations

import torch
from torch import Tensor


class Alias:
    """Draws words by given weights (V,), exactly and in constant time: Walker's alias method, 1977."""

    def __init__(self, weights: Tensor):
        scaled = (weights.double() * len(weights) / weights.double().sum()).tolist()
        self.kept, self.other = torch.ones(len(weights)), torch.arange(len(weights))
        small = [i for i, w in enumerate(scaled) if w < 1]
        large = [i for i, w in enumerate(scaled) if w >= 1]
        while small and large:
            less, more = small.pop(), large.pop()
            self.kept[less], self.other[less] = scaled[less], more
            scaled[more] -= 1 - scaled[less]
            (small if scaled[more] < 1 else large).append(more)
