"""A multilayer perceptron.

Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986. https://doi.org/10.1038/323533a0

Layers of units, each a linear sum of the layer below put through a non-linear function (their eqs. 1 and 2), learned by descending
the gradient of the error.

Differs: the activation is an option, the paper's a logistic; the error is cross-entropy, not squared; batch norm (Ioffe and Szegedy,
2015) and dropout (Srivastava et al., 2014) can be switched on; weights start as torch's layers do.

Letters: B pictures, C channels, H = W pixels, K classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from refresher_runner.nn.classify import Classifier, kernels
from refresher_runner.registry import MODELS
from refresher_runner.report import Report
from refresher_runner.schema import Fraction, Positive
from refresher_runner.spec import ImageBatch, ImageSpec

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class Layer(nn.Module):
    """y = f(W x + b): (B, inputs) -> (B, outputs)"""

    def __init__(self, inputs: int, outputs: int, *, activation: str, batch_norm: bool, dropout: float):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=not batch_norm)  # batch norm has a bias of its own
        self.norm = nn.BatchNorm1d(outputs) if batch_norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.linear(x))))


class MLP(Classifier):
    """Cross-entropy of layers over the pixels in a row, with what the first of them looks for."""

    def observe(self, batch: ImageBatch) -> Report:
        """The first layer's weights as pictures, and the worst mistakes."""
        weight = next(self.network.parameters())
        return {"weights": kernels(weight.unflatten(1, batch.images.shape[1:])), **super().observe(batch)}


@MODELS.register("mlp")
def build_mlp(
    spec: ImageSpec,
    *,
    hidden: tuple[Positive, ...],
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid"],
    batch_norm: bool,
    dropout: Fraction,
    label_smoothing: Fraction,
) -> MLP:
    """Multilayer perceptron (Rumelhart et al., 1986)."""
    widths = [spec.channels * spec.size * spec.size, *hidden]
    layers = [Layer(x, y, activation=activation, batch_norm=batch_norm, dropout=dropout) for x, y in pairwise(widths)]
    return MLP(spec, nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], spec.num_classes)), label_smoothing)
