"""What every classifier of pictures shares: the objective, the metrics, the mistakes worth seeing, and the `predict` verb.

Shapes: B pictures, C channels, H = W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.nn.pictures import picture_files
from refresher_runner.report import Embedding, Images, Prediction, Report
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Goal, Metric, Output, Task

SHOWN = 256  # pictures in TensorBoard's projector


class Classifier(Task):
    """Cross-entropy over the classes of a spec, of a network that takes images (B, C, H, W) to logits (B, K).

    `label_smoothing` in [0, 1] moves that much of the target onto all classes evenly (Szegedy et al., 2016, section 7).
    """

    goal = Goal("accuracy", "max")

    def __init__(self, spec: ImageSpec, network: nn.Module, label_smoothing: float = 0.0):
        super().__init__()
        self.spec, self.network, self.label_smoothing = spec, network, label_smoothing

    def step(self, batch: ImageBatch) -> Output:
        """- log p(label | image), where p = softmax(logits)"""
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return Output(loss) if self.training else Output(loss, preds=logits.float(), targets=batch.labels)

    def class_layers(self) -> list[nn.Module]:
        """The last of the network that has weights."""
        return [layer for layer in self.network.modules() if [*layer.parameters(recurse=False)]][-1:]

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.classification import classification_metrics  # imports torchmetrics, which takes seconds

        return classification_metrics(self.spec.classes)

    def observe(self, batch: ImageBatch) -> Report:
        """The most confident mistakes of the batch, and where the last layer, which tells the classes apart, finds its pictures."""
        seen: list[Tensor] = []
        with self.class_layers()[0].register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0])):
            p, predicted = self.network(batch.images).float().softmax(-1).max(-1)
        labels = tuple(self.spec.classes[label] for label in batch.labels[:SHOWN].tolist())
        places = Embedding(seen[0][:SHOWN].flatten(1).float(), labels, self.spec.pixels(batch.images[:SHOWN]))
        wrong = (predicted != batch.labels).nonzero().flatten()
        worst = wrong[p[wrong].argsort(descending=True)][:16]
        if len(worst) == 0:
            return {"features": places}
        rows = zip(batch.labels[worst].tolist(), predicted[worst].tolist(), p[worst].tolist(), strict=True)
        names = self.spec.classes
        captions = tuple(f"{names[label]} taken for {names[guess]}, {confidence:.2f}" for label, guess, confidence in rows)
        return {"mistakes": Images(self.spec.pixels(batch.images[worst]), captions), "features": places}

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """A row for every picture among the files and folders, with the two likeliest classes.

        Raises DataError, naming the file, for one that is absent, empty of pictures or unreadable.
        """
        device = next(self.parameters()).device
        for path in picture_files(inputs):
            image = self.spec.read(path)
            p, best = self.network(image[None].to(device)).float().softmax(-1)[0].topk(2)
            (first, second), names = best.tolist(), self.spec.classes
            values = {"class": names[first], "probability": p[0].item()}
            values |= {"runner_up": names[second], "runner_up_probability": p[1].item()}
            picture = Images(self.spec.pixels(image)[None], (f"{names[first]}, {p[0]:.2f}",))
            yield Prediction(str(path), values, {"picture": picture})


def kernels(weight: Tensor) -> Images:
    """Weights (N, C, h, w), C = 1 or 3, of units that look at pictures: mid-grey is zero, one scale for all."""
    weight = weight.detach().float()[:64]
    return Images(0.5 + weight / (2 * weight.abs().max().clamp(min=1e-12)))


def feature_maps(x: Tensor) -> Images:
    """What the channels of one layer make of one picture, (C, H, W): black is the layer's smallest value, white its largest."""
    x = x.detach().float()[:64, None]
    low, high = x.aminmax()
    return Images((x - low) / (high - low).clamp(min=1e-12))
