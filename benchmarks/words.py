"""word2vec beside gensim: the same text, threads, dimension, window, negatives, minimal count, subsampling and epochs, in fresh processes.

REFRESHER_DATA=... python -m benchmarks.words text8-head|english-novels [threads [seed [KEY=VALUE ...]]]

python -m benchmarks.words memory text8-head|english-novels   what ours takes beside its imports

Words a second are all words of the text, kept or left out, of training alone. Scores are of the test half of the questions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from refresher_runner.cli import main as command
from refresher_runner.compose import checked, compose
from refresher_runner.data.corpus import CorpusSet
from refresher_runner.metrics.words import word_metrics
from refresher_runner.models.word2vec import build_word2vec
from refresher_runner.registry import DATASETS
from refresher_runner.spec import CorpusBatch

ROOT = Path(os.environ.get("REFRESHER_DATA", "data"))
FILES = {"text8-head": "text8-head.gz", "english-novels": "english-novels-94.tar.gz"}
LR = {"text8-head": 560, "english-novels": 200}  # of skip-gram, chosen by the validation half of the questions
CBOW = {
    "text8-head": ["model.shared_negatives=8", "optimizer.lr=1600"],
    "english-novels": ["model.shared_negatives=12", "data.batch_size=32", "optimizer.lr=1600"],
}
EPOCHS = 5


def options(name: str) -> list[str]:
    return [f"data.root={ROOT / 'word2vec' / FILES[name]}", f"data.questions={ROOT}", f"optimizer.lr={LR[name]}"]


def corpus(name: str) -> CorpusSet:
    settings = checked(*compose(["model=word2vec", "data=corpus", *options(name)]))
    data = DATASETS.builder("corpus")(**settings.data.options)
    assert isinstance(data, CorpusSet)
    data.prepare()
    return data


def scores(data: CorpusSet, vectors: torch.Tensor) -> dict[str, float]:
    """Of vectors (V, C) in the order of the corpus's words."""
    settings = checked(*compose(["model=word2vec", "data=corpus", *options("text8-head"), f"model.dim={vectors.shape[1]}"]))
    task = build_word2vec(data.spec, **settings.model.options)
    task.v.weight.data = vectors
    asked = data.questions["test"]
    batch = CorpusBatch(torch.zeros(1, 2).long(), *map(torch.from_numpy, asked))
    metrics = word_metrics(data.spec.sections)
    for metric in metrics.values():
        metric.update(task.answers(batch), batch)
    found = {name: metric.compute() for name, metric in metrics.items()}
    return {"wordsim": float(found["wordsim"]["spearman"]), "analogies": float(found["analogies"]["accuracy"])}  # type: ignore[index]


def gensim(name: str, threads: int, seed: int, sg: int, overrides: list[str]) -> str:
    from gensim.models import Word2Vec  # type: ignore[import-not-found]

    data = corpus(name)
    assert data.numbers is not None
    sentences = [[data.spec.words[n] for n in row] for row in data.numbers[data.splits["train"]]]
    model = Word2Vec(
        vector_size=100, window=5, negative=5, sg=sg, workers=threads, min_count=1, sample=1e-4, epochs=EPOCHS, seed=seed, sorted_vocab=0
    )
    model.build_vocab(sentences)
    start = time.perf_counter()
    _, words = model.train(sentences, total_examples=model.corpus_count, epochs=EPOCHS)
    seconds = time.perf_counter() - start
    vectors = np.stack([model.wv[word] if word in model.wv else np.zeros(100, np.float32) for word in data.spec.words])
    return told("gensim", words / seconds, scores(data, torch.from_numpy(vectors)))


def ours(name: str, threads: int, seed: int, sg: int, overrides: list[str]) -> str:
    with TemporaryDirectory() as folder:
        typed = [*options(name), "model=word2vec", "data=corpus", f"trainer.threads={threads}", f"seed={seed}", f"outputs={folder}"]
        typed += [] if sg else ["model.architecture=cbow", *CBOW[name]]
        typed += overrides
        typed += [
            f"trainer.duration={EPOCHS} epochs",
            f"trainer.validate_every={EPOCHS} epochs",
            "trainer.log_every=100",
            "trainer.loggers=[]",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-m", "refresher_runner", "train", *typed], check=True, capture_output=True, env=environment)
        (run,) = Path(folder).glob("*/*/*")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        speeds = [line["speed/samples_per_second"] for line in lines if "speed/samples_per_second" in line]
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))["test"]
    mean = len(speeds) / sum(1 / speed for speed in speeds)  # sentences of 1,000 words
    return told("refresher", 1000 * mean, {"wordsim": status["test/wordsim/spearman"], "analogies": status["test/analogies/accuracy"]})


def memory(name: str) -> str:
    """What an epoch and an evaluation take at most, beside what is there before the corpus is read."""
    with TemporaryDirectory() as folder:
        typed = [f"outputs={folder}", "model=word2vec", "data=corpus", "trainer=words", "trainer.loggers=[]", "trainer.test=false"]
        short = ["data=python_words", "trainer.duration=2 steps", "trainer.validate_every=2 steps"]
        assert command(["train", *typed, *short]) == 0  # imports, allocators
        before = _megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        data = corpus(name)
        assert data.numbers is not None
        ids, table = data.numbers.nbytes / 2**20, 400 * len(data.spec.words) / 2**20
        del data
        read = _megabytes("VmHWM") - before
        assert command(["train", *typed, *options(name), "trainer.duration=1 epochs"]) == 0
    peak, needed = _megabytes("VmHWM") - before, ids + 2 * table
    return f"{name}: numbers and tables {needed:.0f} MiB; at most {read:.0f} in reading, {peak:.0f} in all: {peak / needed:.2f} times"


def _megabytes(what: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def told(who: str, speed: float, found: dict[str, float]) -> str:
    return f"{who}: {speed:,.0f} words/s, WordSim-353 {found['wordsim']:.3f}, analogies {found['analogies']:.4f}"


def main() -> None:
    if sys.argv[1] == "memory":
        print(memory(sys.argv[2]))
        return
    if sys.argv[1] in ("gensim", "ours"):
        side, name, threads, seed, sg, *overrides = sys.argv[1:]
        print({"gensim": gensim, "ours": ours}[side](name, int(threads), int(seed), int(sg), overrides))
        return
    name, *rest = sys.argv[1:]
    (threads, seed), overrides = (rest + ["1", "0"][len(rest) :])[:2], rest[2:]
    for sg in ("1", "0"):
        print("skip-gram" if sg == "1" else "CBOW", name, f"{threads} threads, seed {seed}")
        for side in ("gensim", "ours"):
            subprocess.run([sys.executable, "-m", "benchmarks.words", side, name, threads, seed, sg, *overrides], check=True)


if __name__ == "__main__":
    main()
