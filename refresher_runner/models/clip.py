"""Pictures and captions in one space: which caption goes with which picture?

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. https://arxiv.org/abs/2103.00020

Their figure 3, as it is here:

    I_f = image_encoder(I)                                  (B, d_i)     a residual network, or a vision transformer
    T_f = text_encoder(T)                                   (B, d_t)     a transformer's vector of the end of the caption
    I_e, T_e = l2_normalize(I_f W_i), l2_normalize(T_f W_t) (B, D)       the joint space
    logits = I_e T_e^T exp(t)                               (B, B)       t is learnt; exp(t) never exceeds 100 (section 2.5)
    loss = (cross entropy of rows + of columns) / 2                      the diagonal is right

Of several ranks, each compares its own pictures and captions with those of all.

Differs: captions are read both ways rather than from the left (section 2.4 keeps that for language modelling, which is not done here); the
residual network is CIFAR's, without the changes of section 2.4 but for its attention pooling.

Letters: B pairs, C channels, S pixels of a side, T tokens, D = joint_dim numbers of the joint space, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.nn.attention import MultiHeadAttention
from refresher_runner.nn.pictures import is_picture, picture_files
from refresher_runner.nn.ranks import gathered, rank_and_size
from refresher_runner.nn.resnet import conv3x3, group, he_normal_
from refresher_runner.nn.transformer import Layer, TextEncoder, initialise
from refresher_runner.registry import MODELS
from refresher_runner.report import Embedding, Images, Matrix, Prediction, Report
from refresher_runner.schema import Fraction, Positive
from refresher_runner.spec import CaptionBatch, CaptionSpec
from refresher_runner.task import Goal, Metric, Output, Task
from refresher_runner.vocabulary import END

Ensemble = Literal["probabilities", "embeddings"]
HOTTEST = 100.0  # of exp(t)
COOLEST = 0.07  # temperature at first (section 2.5)
LEGIBLE = 16  # pairs in the picture of similarities
SHOWN = 10  # pictures that a text finds
CHUNK = 256  # pictures that are looked at at once


# -------------------------------------------------------------------- image_encoder


class AttentionPool(nn.Module):
    """One attention whose query is the mean (section 2.4): a map (B, C, H, W) -> (B, C)"""

    def __init__(self, channels: int, side: int, heads: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1 + side * side, channels) / math.sqrt(channels))
        self.attention = MultiHeadAttention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.position
        return self.attention(x[:, :1], x)[:, 0]


class ResNetEncoder(nn.Module):
    """Images (B, C, S, S) -> (B, 4 width): three groups of blocks, each after the first at half the resolution."""

    def __init__(self, channels: int, size: int, *, width: int, depth: int, stride: int, heads: int):
        super().__init__()
        self.conv, self.norm = conv3x3(channels, width, stride), nn.BatchNorm2d(width)
        self.groups = nn.Sequential(
            group(depth, width, width, stride=1, shortcut="B"),
            group(depth, width, 2 * width, stride=2, shortcut="B"),
            group(depth, 2 * width, 4 * width, stride=2, shortcut="B"),
        )
        he_normal_(self)
        self.pool = AttentionPool(4 * width, math.ceil(size / (4 * stride)), heads)
        self.dim = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.groups(F.relu(self.norm(self.conv(x)), inplace=True)))


class ViTEncoder(nn.Module):
    """Images (B, C, S, S) -> (B, width): what a token of the class makes of the patches.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.1, with one more norm before the layers, as in section 2.4 of CLIP.
    https://arxiv.org/abs/2010.11929
    """

    def __init__(self, channels: int, size: int, *, width: int, depth: int, patch: int, heads: int, dropout: float):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        self.whole, self.position = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.empty(1 + (size // patch) ** 2, width))
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(width, MultiHeadAttention(width, heads, dropout), dropout, "pre") for _ in range(depth)))
        self.apply(initialise)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.dim = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT  # (B, patches, width)
        x = torch.cat([self.whole.expand(len(x), 1, -1), x], 1) + self.position
        return self.norm_2(self.layers(self.norm_1(x))[:, 0])


# -------------------------------------------------------------------- the objective


class Embedded(NamedTuple):
    """What is judged of a batch: images and captions (B, D), and logits (B, K) of the classes that have prompts."""

    images: Tensor
    captions: Tensor
    logits: Tensor


class Known(NamedTuple):
    """Meanings (B,) of the captions, and labels (B,) of the pictures among the classes that have prompts, -1 where theirs has none."""

    meanings: Tensor
    labels: Tensor


class CLIP(Task):
    """Of B pictures and B captions say which belong together; then any words are classes to tell pictures by."""

    goal = Goal("recall1", "max")
    place: Tensor  # (classes,), of each among those that have prompts, -1 if it has none

    def __init__(self, spec: CaptionSpec, image: ResNetEncoder | ViTEncoder, text: TextEncoder, *, joint_dim: int, ensemble: Ensemble):
        super().__init__()
        self.spec, self.image, self.text = spec, image, text
        self.ensemble = ensemble
        d_i, d_t = image.dim, text.token.embedding_dim
        self.W_i, self.W_t = nn.Linear(d_i, joint_dim, bias=False), nn.Linear(d_t, joint_dim, bias=False)
        for projection in (self.W_i, self.W_t):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.t = nn.Parameter(torch.tensor([math.log(1 / COOLEST)]))  # (1,): fsdp cannot shard a scalar
        self.classes = tuple(name for name, prompts in zip(spec.classes, spec.prompts, strict=False) if prompts)
        place = {name: i for i, name in enumerate(self.classes)}
        self.register_buffer("place", torch.tensor([place.get(name, -1) for name in spec.classes]), persistent=False)

    def step(self, batch: CaptionBatch) -> Output:
        """The mean of - log p(caption | picture) and - log p(picture | caption), each among the batch, in training of all ranks."""
        with torch.no_grad():
            self.t.clamp_(max=math.log(HOTTEST))
        I_e, T_e = self.encode_image(batch.images), self.encode_text(batch.captions)
        loss = self.contrast(I_e, T_e)
        parts = {"temperature": (-self.t.detach()[0]).exp()}
        if self.training:
            return Output(loss, parts)
        logits = self.classify(I_e) if self.classes else I_e[:, :0]
        return Output(loss, parts, Embedded(I_e, T_e, logits), Known(batch.meanings, self.place[batch.labels]))

    def contrast(self, I_e: Tensor, T_e: Tensor) -> Tensor:
        """Figure 3's loss: of this rank's pictures and captions among all ranks', whose mean over the ranks is that of the whole batch.

        In evaluation among those of this rank alone: ranks may have batches of different lengths, and none at all.
        """
        every_I, every_T = (gathered(I_e), gathered(T_e)) if self.training else (I_e, T_e)
        first = rank_and_size()[0] * len(I_e) if self.training else 0
        labels = torch.arange(first, first + len(I_e), device=I_e.device)
        with torch.autocast(I_e.device.type, enabled=False):
            loss_i = F.cross_entropy(self.t.exp() * I_e @ every_T.T, labels)
            loss_t = F.cross_entropy(self.t.exp() * T_e @ every_I.T, labels)
        return (loss_i + loss_t) / 2

    def encode_image(self, images: Tensor) -> Tensor:
        """I_e: (B, C, S, S) -> (B, D), of length 1"""
        return F.normalize(self.W_i(self.image(images)).float(), dim=-1)

    def encode_text(self, captions: Tensor) -> Tensor:
        """T_e: (B, T) -> (B, D), of length 1: what is known at the end of each caption."""
        end = (captions == END).int().argmax(1)
        return F.normalize(self.W_t(self.text(captions)[torch.arange(len(end), device=end.device), end]).float(), dim=-1)

    def classify(self, I_e: Tensor) -> Tensor:
        """(B, D) -> logits (B, K) of the classes that have prompts, ensembled as section 3.1.4 has it.

        Either over probabilities, the mean of those of a class's prompts, which may say different things; or over embeddings, whose mean,
        scaled to length 1, is what the class is, as in the paper.
        """
        prompts = [prompts for prompts in self.spec.prompts if prompts]
        T_e = self.encode_text(self.spec.encode([caption for of_class in prompts for caption in of_class]).to(I_e.device))
        counts = [len(of_class) for of_class in prompts]
        with torch.autocast(I_e.device.type, enabled=False):
            if self.ensemble == "embeddings":
                classes = F.normalize(torch.stack([of_class.mean(0) for of_class in T_e.split(counts)]), dim=-1)
                return self.t.exp() * I_e @ classes.T
            logits = (self.t.exp() * I_e @ T_e.T).split(counts, 1)
            return torch.stack([of_class.logsumexp(1) - math.log(of_class.shape[1]) for of_class in logits], 1)

    # ---------------------------------------------------------------- looking

    def metrics(self) -> dict[str, Metric]:
        """Of retrieval, among all of the split; of zero-shot classification, where classes have prompts."""
        from refresher_runner.metrics.classification import classification_metrics  # imports torchmetrics, which takes seconds
        from refresher_runner.metrics.retrieval import Retrieval
        from refresher_runner.metrics.wrappers import Part, Through

        retrieval = Retrieval()
        found: dict[str, Metric] = {
            name: Part(retrieval, itemgetter(name)) for name in ("recall1", "image_to_text", "text_to_image", "chance")
        }
        for name, metric in classification_metrics(self.classes, ignore_index=-1).items() if self.classes else ():
            found[f"zero_shot_{name}"] = Through(metric, prepare=attrgetter("logits"), truth=attrgetter("labels"))
        return found

    def observe(self, batch: CaptionBatch) -> Report:
        """How like pictures and captions are, which caption of the batch each picture is given, and where all lie in the joint space."""
        I_e, T_e = self.encode_image(batch.images), self.encode_text(batch.captions)
        said, pixels = tuple(self.spec.decode(batch.captions)), self.spec.pixels(batch.images)
        few, best = said[:LEGIBLE], (I_e[:LEGIBLE] @ T_e.T).argmax(1).tolist()
        right = (batch.meanings[best] == batch.meanings[:LEGIBLE]).tolist()
        given = tuple(said[i] if ok else f"{said[i]} (not: {true})" for i, ok, true in zip(best, right, few, strict=True))
        cards = torch.ones_like(pixels)  # captions are white in the projector
        return {
            "similarity": Matrix((I_e[:LEGIBLE] @ T_e[:LEGIBLE].T).cpu(), few, few, "picture", "caption"),
            "given": Images(pixels[:LEGIBLE], given),
            "joint_space": Embedding(torch.cat([I_e, T_e]), (*(f"picture: {text}" for text in said), *said), torch.cat([pixels, cards])),
            "modality_gap": (I_e.mean(0) - T_e.mean(0)).norm().item(),  # Liang et al., "Mind the Gap", 2022, section 4
        }

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """Pictures, by path, are told by the texts beside them, and texts find the pictures that fit best; pictures alone are told by the
        prompts of the classes. Raises UsageError where there is nothing to compare with, and DataError naming a file.
        """
        files, texts = picture_files([name for name in inputs if is_picture(name)]), [name for name in inputs if not is_picture(name)]
        if not files:
            raise UsageError("there is no picture to compare it with", key="input", value=texts[0], cure="add paths of pictures or folders")
        if not texts and not self.classes:
            cure = "add captions to choose from, in quotes"
            raise UsageError("its data have no classes with prompts", key="input", value=inputs[0], cure=cure)
        images = torch.stack([self.spec.read(file) for file in files]).to(self.t.device)
        I_e = torch.cat([self.encode_image(some) for some in images.split(CHUNK)])
        T_e = self.encode_text(self.spec.encode(texts).to(self.t.device)) if texts else I_e[:0]
        p = (self.t.exp() * I_e @ T_e.T if texts else self.classify(I_e)).softmax(-1)
        names, pixels = texts or self.classes, self.spec.pixels(images)
        for file, chances, picture in zip(files, p, pixels, strict=True):
            first, *others = chances.topk(min(2, len(names))).indices.tolist()
            values = {"caption" if texts else "class": names[first], "probability": chances[first].item()}
            if others:
                values |= {"runner_up": names[others[0]], "runner_up_probability": chances[others[0]].item()}
            yield Prediction(str(file), values, {"picture": Images(picture[None], (f"{names[first]}, {chances[first]:.2f}",))})
        for text, cosines in zip(texts, T_e @ I_e.T, strict=False):
            found = cosines.topk(min(SHOWN, len(files)))
            captions = tuple(f"{files[i].name}, {cosine:.2f}" for cosine, i in zip(*map(Tensor.tolist, found), strict=True))
            values = {"likest": str(files[found.indices[0]]), "cosine": found.values[0].item()}
            yield Prediction(text, values, {"pictures": Images(pixels[found.indices], captions)})


@MODELS.register("clip")
def build_clip(
    spec: CaptionSpec,
    *,
    image: Literal["resnet", "vit"],
    width: Positive,
    depth: Positive,
    patch: Positive,
    text_width: Positive,
    text_depth: Positive,
    heads: Positive,
    dropout: Fraction,
    joint_dim: Positive,
    ensemble: Literal["probabilities", "embeddings"],
) -> CLIP:
    """Pictures and captions in one space (Radford et al., 2021).

    Raises ConfigError where pictures or numbers cannot be divided as asked.
    """
    d_i = 4 * width if image == "resnet" else width
    for numbers, what in ((d_i, f"model.width={width}"), (text_width, f"model.text_width={text_width}")):
        if numbers % heads:
            problem = f"{numbers} numbers of {what} cannot be shared evenly among them"
            raise ConfigError(problem, key="model.heads", value=heads, cure="a divisor of both towers' numbers")
    if image == "vit" and spec.size % patch:
        problem = f"pictures of {spec.size} pixels cannot be cut into patches of so many"
        raise ConfigError(problem, key="model.patch", value=patch, cure="a divisor of data.size")
    if image == "resnet":
        tower = ResNetEncoder(spec.channels, spec.size, width=width, depth=depth, stride=patch, heads=heads)
    else:
        tower = ViTEncoder(spec.channels, spec.size, width=width, depth=depth, patch=patch, heads=heads, dropout=dropout)
    text = TextEncoder(len(spec.vocabulary), spec.block_size, dim=text_width, depth=text_depth, heads=heads, dropout=dropout)
    return CLIP(spec, tower, text, joint_dim=joint_dim, ensemble=ensemble)
