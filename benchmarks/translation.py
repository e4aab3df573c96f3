"""What a translator must beat: BLEU and chrF of doing nothing, and of looking up the most similar sentence that was learnt from.

python -m benchmarks.translation, where `REFRESHER_DATA` holds Tatoeba. The test pairs are those of `experiment=tatoeba_transformer`, of
at most data.block_size tokens as there. Similar is the cosine of TF-IDF, of words and of runs of 3 to 5 letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from refresher_runner.compose import compose
from refresher_runner.data.pairs import Pair
from refresher_runner.registry import DATASETS
from refresher_runner.settings import check

CHUNK = 256  # test sentences compared at once


def splits() -> dict[str, list[Pair]]:
    """The pairs of each split, decoded from what the model is given."""
    data: Any = DATASETS.builder("translation")(**check(compose(["experiment=tatoeba_transformer"])[0]).data.options)
    data.prepare()
    decode = data.spec.source.decode
    sides = {split: [[decode(row) for row in side.numbers.tolist()] for side in found] for split, found in data.splits.items()}
    return {split: list(zip(*both, strict=True)) for split, both in sides.items()}


def nearest(train: Sequence[str], asked: Sequence[str]) -> list[int]:
    """The training sentence that is most like each of those asked, by its number."""
    words = (
        TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2),
    )
    known = hstack([vectorizer.fit_transform(train) for vectorizer in words]).tocsr()
    wanted = hstack([vectorizer.transform(asked) for vectorizer in words]).tocsr()
    found: list[int] = []
    for begin in range(0, len(asked), CHUNK):
        similar = wanted[begin : begin + CHUNK] @ known.T
        found += np.asarray(similar.argmax(axis=1)).ravel().tolist()
    return found


def main() -> None:
    pairs = splits()
    (sources, targets), (train_sources, train_targets) = (tuple(zip(*pairs[split], strict=True)) for split in ("test", "train"))
    print(f"{len(sources)} test pairs, {len(train_sources)} training pairs")
    said = {"copy of the source": sources, "nearest neighbour": [train_targets[i] for i in nearest(train_sources, sources)]}
    for name, texts in said.items():
        bleu, chrf = BLEU(force=True), CHRF()
        scores = bleu.corpus_score(texts, [targets]).score, chrf.corpus_score(texts, [targets]).score
        exact = np.mean([a == b for a, b in zip(texts, targets, strict=True)])
        print(f"{name}: BLEU {scores[0]:.2f} ({bleu.get_signature()}), chrF {scores[1]:.2f} ({chrf.get_signature()}), exact {exact:.4f}")


if __name__ == "__main__":
    main()
