"""What the three outputs of word2vec cost as the vocabulary grows: milliseconds of forward and backward for 200 words by CBOW.

python -m benchmarks.outputs
"""

from __future__ import annotations

import statistics
import time

import torch

from refresher_runner.models.word2vec import build_word2vec
from refresher_runner.spec import CorpusBatch, CorpusSpec

SIZES = (1_000, 4_000, 16_000, 64_000)


def milliseconds(output: str, size: int) -> float:
    """The median of 15 steps, of words as frequent as Zipf's law has them."""
    counts = tuple(max(1, 10_000_000 // rank) for rank in range(1, size + 1))
    spec = CorpusSpec(tuple(map(str, range(size))), counts)
    task = build_word2vec(
        spec,
        architecture="cbow",
        output=output,
        dim=100,
        window=5,
        negatives=5,
        shared_negatives=0,
        subsample=None,  # type: ignore[arg-type]
    )
    drawn = torch.tensor(counts, dtype=torch.float64).multinomial(200, replacement=True)[None]
    nothing = torch.zeros(0, dtype=torch.long)
    batch = CorpusBatch(drawn, nothing.view(0, 2), nothing.float(), nothing.view(0, 4), nothing)
    times = []
    for _ in range(18):
        task.zero_grad()
        start = time.perf_counter()
        task.step(batch).loss.backward()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def main() -> None:
    print("words in the vocabulary", *(f"{size:>8,}" for size in SIZES))
    for output in ("full", "hierarchical", "negative"):
        print(f"{output:>23}", *(f"{milliseconds(output, size):8.2f}" for size in SIZES))


if __name__ == "__main__":
    main()
