"""Words as vectors, learnt from which words stand near which.

Mikolov, Chen, Corrado and Dean, "Efficient Estimation of Word Representations in Vector Space", 2013a.
https://arxiv.org/abs/1301.3781
Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed Representations of Words and Phrases and their Compositionality", 2013b.
https://arxiv.org/abs/1310.4546

A word is known by the company it keeps. Every word has a vector v as the one that is looked from and a vector u as the one that is
looked for; their product says how likely the two are neighbours.

    skip-gram: the word in the middle says each of its neighbours             1/T sum_t sum_j log p(w_{t+j} | w_t)   2013b, eq. 1
    CBOW:      the mean of the neighbours says the word in the middle         1/T sum_t log p(w_t | w_{t-c} ... w_{t+c})

and log p is one of

    full          log softmax over all words                                  2013b, eq. 2
    hierarchical  a walk down a Huffman tree, log V decisions                 2013b, eq. 3
    negative      log sigma(u_O v_I) + sum_k log sigma(-u_k v_I), not quite a log p: true neighbours are told from k words that were
                  drawn by their frequency to the power of 3/4                2013b, eq. 4

Differs: what eq. 4 draws for each pair, `shared_negatives` words are drawn for a block of successive words together, each with a smaller
weight, so that the expected loss is the same and vector products become matrix products (Ji, Satish, Li and Dubey, "Parallelizing
Word2Vec in Shared and Distributed Memory", 2016. https://arxiv.org/abs/1604.04661). Who sees whom is a band of a matrix.

Letters: B sentences of L words, T words that are kept of them, c = window, N = 2c neighbours, V words in the vocabulary, C = dim numbers
a word, K negatives of a pair, M of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.nn.alias import Alias
from refresher_runner.nn.huffman import huffman
from refresher_runner.nn.word_blocks import Blocks, cbow_loss, skip_gram_loss
from refresher_runner.nn.word_vectors import write_vectors
from refresher_runner.registry import MODELS
from refresher_runner.report import Embedding, Matrix, Prediction, Report, Text
from refresher_runner.schema import NonNegative, Positive, PositiveFloat
from refresher_runner.spec import CorpusBatch, CorpusSpec
from refresher_runner.task import Metric, Output, Task

NEAREST = 10  # words that are told of each
SHOWN = 2000  # words in the projector
CHUNK = 64  # directions that are compared with all words at once
ASKED = 16  # words whose neighbours are told at every evaluation


# -------------------------------------------------------------------- what is learnt from


class Windows(NamedTuple):
    """words (T,); left (T,), right (T,): how many words on either side each looks at, at most c, and none beyond its sentence."""

    words: Tensor
    left: Tensor
    right: Tensor

    def neighbours(self, window: int) -> tuple[Tensor, Tensor]:
        """Of every word those around it (T, N), and which of these it looks at (T, N): near enough, and of its sentence."""
        offset = torch.cat([torch.arange(-window, 0), torch.arange(1, window + 1)]).to(self.words.device)
        place = torch.arange(len(self.words), device=self.words.device)[:, None] + offset
        seen = (offset >= -self.left[:, None]) & (offset <= self.right[:, None])
        return self.words[place.clamp(0, len(self.words) - 1)], seen


def keep_probability(counts: Tensor, subsample: float) -> Tensor:
    """With which probability a word is kept (V,), from how often each comes: sqrt(t / f) + t / f, at most 1.

    Differs: 2013b, eq. 5, has sqrt(t / f); this is what the authors' program does.
    """
    ratio = subsample / (counts / counts.sum())
    return (ratio.sqrt() + ratio).clamp(max=1)


# -------------------------------------------------------------------- log p, three ways


class FullSoftmax(nn.Module):
    """log p(word | h) = log softmax(U h), eq. 2"""

    def __init__(self, counts: Sequence[int], dim: int):
        super().__init__()
        self.u = nn.Embedding(len(counts), dim)
        nn.init.zeros_(self.u.weight)

    def forward(self, h: Tensor, words: Tensor) -> Tensor:
        """Of h (T, C), and for each the words (T, N): (T, N)"""
        return F.log_softmax(h @ self.u.weight.T, -1).gather(1, words)


class HierarchicalSoftmax(nn.Module):
    """log p(word | h) = sum over the walk to it of log sigma(turn * u_node h), eq. 3"""

    nodes: Tensor
    turns: Tensor

    def __init__(self, counts: Sequence[int], dim: int):
        super().__init__()
        self.u = nn.Embedding(len(counts) - 1, dim, sparse=True)
        nn.init.zeros_(self.u.weight)
        walks = huffman(counts)
        depth = max(map(len, walks))
        padded = torch.tensor([walk + [(0, 0)] * (depth - len(walk)) for walk in walks])  # (V, depth, 2); a turn of 0 is none
        self.register_buffer("nodes", padded[..., 0].int(), persistent=False)
        self.register_buffer("turns", padded[..., 1].to(torch.int8), persistent=False)

    def forward(self, h: Tensor, words: Tensor) -> Tensor:
        """Of h (T, C), and for each the words (T, N): (T, N)"""
        nodes, turns = self.nodes[words], self.turns[words]  # (T, N, depth)
        score = torch.einsum("tndc,tc->tnd", self.u(nodes), h)
        return (F.logsigmoid(turns * score) * (turns != 0)).sum(-1)


class NegativeSampling(nn.Module):
    """log sigma(u_word h) + sum_k log sigma(-u_k h), eq. 4, where the k are drawn by frequency^(3/4)"""

    kept: Tensor
    other: Tensor

    def __init__(self, counts: Sequence[int], dim: int, negatives: int):
        super().__init__()
        self.u, self.negatives = nn.Embedding(len(counts), dim, sparse=True), negatives
        nn.init.zeros_(self.u.weight)
        alias = Alias(torch.tensor(counts, dtype=torch.float64) ** 0.75)
        self.register_buffer("kept", alias.kept, persistent=False)
        self.register_buffer("other", alias.other, persistent=False)

    def draw(self, *shape: int) -> Tensor:
        """Words, int64, of a shape."""
        drawn = torch.randint(len(self.kept), shape, device=self.kept.device)
        return torch.where(torch.rand(shape, device=self.kept.device) < self.kept.take(drawn), drawn, self.other.take(drawn))

    def forward(self, h: Tensor, words: Tensor) -> Tensor:
        """Of h (T, C), and for each the words (T, N): (T, N)"""
        true = torch.einsum("tnc,tc->tn", self.u(words), h)
        noise = torch.einsum("tnkc,tc->tnk", self.u(self.draw(*words.shape, self.negatives)), h)
        return F.logsigmoid(true) + F.logsigmoid(-noise).sum(-1)


# -------------------------------------------------------------------- the task


class Answers(NamedTuple):
    """What vectors say to the questions of a batch: likeness (P,), the cosine of each pair; words (Q,), the fourth of each analogy.
    What has a word that is not known is not answered: nan, and -1.
    """

    likeness: Tensor
    words: Tensor


class Word2Vec(Task):
    """Tell the neighbours of a word, or a word by its neighbours."""

    keep: Tensor

    def __init__(
        self,
        spec: CorpusSpec,
        output: FullSoftmax | HierarchicalSoftmax | NegativeSampling,
        *,
        architecture: str,
        dim: int,
        window: int,
        subsample: float | None,
        shared_negatives: int,
    ):
        super().__init__()
        self.spec, self.architecture, self.window, self.shared_negatives = spec, architecture, window, shared_negatives
        self.v = nn.Embedding(len(spec.words), dim, sparse=True)
        nn.init.uniform_(self.v.weight, -0.5 / dim, 0.5 / dim)
        self.output = output
        counts = torch.tensor(spec.counts, dtype=torch.float64)
        keep = keep_probability(counts, subsample) if subsample else torch.ones_like(counts)
        self.register_buffer("keep", keep.float(), persistent=False)

    def step(self, batch: CorpusBatch) -> Output:
        """- 1/T sum log p, by the definition or in blocks"""
        windows = self.windows(batch.words)
        with torch.autocast(batch.words.device.type, enabled=False):
            blocks = self.training and self.shared_negatives > 0
            loss = self.loss_in_blocks(windows) if blocks else self.loss(windows)
        return Output(loss) if self.training else Output(loss, preds=self.answers(batch), targets=batch)

    def windows(self, sentences: Tensor) -> Windows:
        """What is kept of sentences (B, L): frequent words are left out at random, so that the others see further."""
        kept = torch.rand(sentences.shape, device=sentences.device) < self.keep.take(sentences)
        kept[0, :2] = True  # something to learn from, however few there are
        words = sentences.flatten().index_select(0, kept.flatten().nonzero().squeeze(1))
        number = kept.sum(1)
        end = number.cumsum(0)
        begin_of, end_of = (x.repeat_interleave(number, output_size=len(words)) for x in (end - number, end))
        place, reach = torch.arange(len(words), device=words.device), torch.randint(1, self.window + 1, words.shape, device=words.device)
        return Windows(words, torch.minimum(reach, place - begin_of), torch.minimum(reach, end_of - 1 - place))

    def loss(self, windows: Windows) -> Tensor:
        """The definition: every pair by itself, gradients by autograd."""
        neighbours, seen = windows.neighbours(self.window)
        if self.architecture == "skip_gram":
            log_p = self.output(self.v(windows.words), neighbours) * seen
        else:
            number = seen.sum(1, keepdim=True)
            h = (self.v(neighbours) * seen[..., None]).sum(1) / number.clamp(min=1)
            log_p = self.output(h, windows.words[:, None]) * (number > 0)
        return -log_p.sum() / len(windows.words)

    def loss_in_blocks(self, windows: Windows) -> Tensor:
        """The same for negative sampling, with negatives that a block of words shares."""
        assert isinstance(self.output, NegativeSampling)
        blocks = Blocks.of(*windows, window=self.window, mean=self.architecture == "cbow")
        noise = self.output.draw(len(blocks.number), self.shared_negatives)
        loss = skip_gram_loss if self.architecture == "skip_gram" else cbow_loss
        return loss(self.v.weight, self.output.u.weight, blocks, noise, self.output.negatives / self.shared_negatives)

    # ---------------------------------------------------------------- what vectors know

    def unit(self, words: Tensor) -> Tensor:
        """The vectors v of words (any), of length 1: (any, C)"""
        return F.normalize(self.v.weight.detach()[words], dim=-1)

    def nearest(self, directions: Tensor, but: Tensor, number: int = NEAREST) -> tuple[Tensor, Tensor]:
        """The words nearest to directions (Q, C), except for those of `but` (Q, any): cosines (Q, number), words (Q, number)."""
        v, number = self.v.weight.detach(), min(number, len(self.spec.words) - but.shape[1])
        length = torch.linalg.vector_norm(v, dim=1).clamp(min=1e-12)  # instead of a second table
        found = [
            (F.normalize(some, dim=1) @ v.T).div_(length).scatter_(1, left_out, -math.inf).topk(number)
            for some, left_out in zip(directions.split(CHUNK), but.split(CHUNK), strict=True)
        ]
        cosines, words = zip(*found, strict=True)
        return torch.cat(cosines), torch.cat(words)

    def answers(self, batch: CorpusBatch) -> Answers:
        """Cosines of pairs; of analogies the word nearest to b - a + c, none of the three (3CosAdd: Levy and Goldberg, 2014, eq. 1)."""
        known = (batch.pairs >= 0).all(1)
        likeness = self.unit(batch.pairs.clamp(min=0)).prod(1).sum(1).masked_fill(~known, math.nan)
        words = torch.full((len(batch.analogies),), -1, device=likeness.device)
        answered = (batch.analogies >= 0).all(1)
        asked = batch.analogies[answered, :3]
        a, b, c = self.unit(asked).unbind(1)
        words[answered] = self.nearest(b - a + c, asked, 1)[1].squeeze(1)
        return Answers(likeness, words)

    def metrics(self) -> dict[str, Metric]:
        if not self.spec.sections:
            return {}
        from refresher_runner.metrics.words import word_metrics  # imports torchmetrics, which takes seconds

        return word_metrics(self.spec.sections)

    def observe(self, batch: CorpusBatch) -> Report:
        """The neighbours of some words, neither the most frequent nor the rarest, how like these are, and the vectors of frequent ones."""
        some = torch.linspace(min(100, len(self.spec.words) // 4), len(self.spec.words) // 2, ASKED).long().to(self.v.weight.device)
        cosines, words = self.nearest(self.v.weight[some], some[:, None])
        rows = [
            f"| {self.spec.words[asked]} | {self._listed(near, likeness)} |"
            for asked, near, likeness in zip(some.tolist(), words.tolist(), cosines.tolist(), strict=True)
        ]
        vectors = self.v.weight[:SHOWN].float().cpu()
        table = "\n".join(["| word | nearest |", "|---|---|", *rows])
        unit, names = self.unit(some), tuple(self.spec.words[word] for word in some.tolist())
        return {
            "neighbours": Text(table),
            "likeness": Matrix((unit @ unit.T).float(), names, names, "word", "cosine with"),
            "words": Embedding(vectors, self.spec.words[: len(vectors)]),
        }

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """The words nearest to each word, or to each sum: `king - man + woman`. Raises UsageError for a word that is not known."""
        for asked in inputs:
            signs, numbers = (part.to(self.v.weight.device) for part in self._parse(asked))
            cosines, words = self.nearest(signs[None] @ self.unit(numbers), numbers[None])
            named = [self.spec.words[n] for n in words[0].tolist()]
            rows = "\n".join(f"| {word} | {cosine:.3f} |" for word, cosine in zip(named, cosines[0].tolist(), strict=True))
            values = {"nearest": named[0], "cosine": float(cosines[0, 0]), "then": ", ".join(named[1:])}
            yield Prediction(asked, values, {"neighbours": Text(f"| word | cosine |\n|---|---|\n{rows}")})

    def export(self, file: Path) -> None:
        """The vectors v in the format of the authors' program: as text, or, to a file that ends in .bin, in binary."""
        write_vectors(file, self.spec.words, self.v.weight.detach().float().cpu())

    def _parse(self, asked: str) -> tuple[Tensor, Tensor]:
        """Signs, +1 or -1, and numbers of the words of a sum."""
        signs, numbers, sign = [], [], 1.0
        for part in asked.replace("+", " + ").replace(" -", " - ").lower().split():
            if part in ("+", "-"):
                sign = 1.0 if part == "+" else -1.0
            elif (number := self.spec.numbers.get(part)) is None:
                cure = "a word of the corpus: lower case, letters only, not rarer than data.min_count"
                raise UsageError("is not known", key="input", value=part, cure=cure)
            else:
                signs, numbers, sign = [*signs, sign], [*numbers, number], 1.0
        if not numbers:
            raise UsageError("holds no word", key="input", value=asked, cure="a word, or a sum of words: king - man + woman")
        return torch.tensor(signs), torch.tensor(numbers)

    def _listed(self, words: list[int], cosines: list[float]) -> str:
        return ", ".join(f"{self.spec.words[word]} {cosine:.2f}" for word, cosine in zip(words, cosines, strict=True))


@MODELS.register("word2vec")
def build_word2vec(
    spec: CorpusSpec,
    *,
    architecture: Literal["skip_gram", "cbow"],
    output: Literal["negative", "hierarchical", "full"],
    dim: Positive,
    window: Positive,
    negatives: Positive,
    shared_negatives: NonNegative,
    subsample: PositiveFloat | None,
) -> Word2Vec:
    """Word vectors by skip-gram or CBOW (Mikolov et al., 2013). Raises ConfigError where negatives are shared that are not drawn."""
    if shared_negatives and output != "negative":
        problem = f"model.output={output} draws no negatives that could be shared"
        raise ConfigError(problem, key="model.shared_negatives", value=shared_negatives, cure="model.shared_negatives=0")
    outputs = {
        "full": lambda: FullSoftmax(spec.counts, dim),
        "hierarchical": lambda: HierarchicalSoftmax(spec.counts, dim),
        "negative": lambda: NegativeSampling(spec.counts, dim, negatives),
    }
    return Word2Vec(
        spec,
        outputs[output](),
        architecture=architecture,
        dim=dim,
        window=window,
        subsample=subsample,
        shared_negatives=shared_negatives,
    )
