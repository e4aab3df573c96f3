"""Two towers beside what one would write by hand, and the best of a catalogue beside FAISS.

REFRESHER_DATA=... python -m benchmarks.towers training [threads]   examples a second beside a plain PyTorch two-tower with a DataLoader
python -m benchmarks.towers catalogue [threads]                     the best 50 of 100,000 items for 1,000 users, beside faiss's flat index
python -m benchmarks.towers quality NAME=CHOICE ... [seed=N]        hr and ndcg at ten: the epoch that validates best, and its test
python -m benchmarks.towers memory                                  what 1,000,000 items of 64 numbers take in half precision

Both towers of `training` are a vector for each user and each item of ml-latest-small, 64 numbers, with a softmax over a batch of 1,024 and
AdamW. Turns alternate, and the best of each is taken; one of training is an epoch.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from refresher_runner.compose import checked, compose
from refresher_runner.data.events import InteractionSet
from refresher_runner.data.interactions import CHOSEN, Law
from refresher_runner.engine.optim import lr_factor
from refresher_runner.features import Table
from refresher_runner.metrics.ranking import per_user
from refresher_runner.models.two_tower.task import TwoTower
from refresher_runner.nn.retrieval import top_k
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.spec import Loader, Placement

BATCH, DIM, TURNS = 1024, 64, 5
PLAIN = ["model.history=none", "model.user_ids=true", "model.objective=sampled_softmax", f"model.dim={DIM}", "model.dropout=0.0"]
ROWS = ["data.block_size=0", "data.stride=1", f"data.batch_size={BATCH}"]


class Plain(nn.Module):
    """As a tutorial has it: two embeddings, their products over the batch, cross-entropy."""

    def __init__(self, users: int, items: int):
        super().__init__()
        self.users, self.items, self.bias = nn.Embedding(users, DIM), nn.Embedding(items, DIM), nn.Embedding(items, 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores = self.users(users) @ self.items(items).T + self.bias(items).T
        return F.cross_entropy(scores, torch.arange(len(users)))


def training(threads: int) -> None:
    torch.set_num_threads(threads)
    settings = checked(*compose(["model=two_tower", "data=movielens", *PLAIN, *ROWS]))
    data = DATASETS.builder("movielens")(**settings.data.options)
    assert isinstance(data, InteractionSet)
    data.prepare()
    spec = replace(data.spec, users=Table(data.spec.users.names), items=Table(data.spec.items.names))
    task = MODELS.builder("two_tower")(spec, **settings.model.options)
    optimizer = OPTIMIZERS.builder(settings.optimizer.name)(task, **settings.optimizer.options)
    loader = data.train_loader(Placement())
    examples = len(loader) * BATCH

    def ours(epoch: int) -> None:
        for batch in loader.batches(epoch):
            optimizer.zero_grad()
            task.step(batch).loss.backward()
            optimizer.step()

    rows = loader.rows
    plain = Plain(len(spec.users), len(spec.items))
    adamw = torch.optim.AdamW(plain.parameters(), lr=settings.optimizer.options["lr"])
    batches = DataLoader(TensorDataset(rows.users, rows.items[rows.first]), BATCH, shuffle=True, drop_last=True)

    def theirs(epoch: int) -> None:
        for users, items in batches:
            adamw.zero_grad()
            plain(users, items).backward()
            adamw.step()

    a, b = alternated(ours, theirs)
    print(
        f"examples/s, {threads} threads: ours {examples / a:,.0f}, plain PyTorch with a DataLoader {examples / b:,.0f}, ratio {b / a:.2f}"
    )


def quality(typed: list[str]) -> None:
    """What `refresher train` does, without its logs, checkpoints and baselines."""
    begin = time.process_time()
    settings = checked(*compose(["model=two_tower", *typed]))
    torch.set_num_threads(1)
    torch.manual_seed(settings.run.seed)
    data = DATASETS.builder(settings.data.name)(**settings.data.options)
    data.prepare()
    task = MODELS.builder("two_tower")(data.spec, **settings.model.options)
    optimizer = OPTIMIZERS.builder(settings.optimizer.name)(task, **settings.optimizer.options)
    loader = data.train_loader(Placement(seed=settings.run.seed))
    total, step, best = settings.trainer.duration.steps(len(loader)), 0, (-1.0, "")
    lrs = [group["lr"] for group in optimizer.param_groups]
    assert total is not None
    while step < total:
        for batch in loader.batches(step // len(loader)):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * lr_factor(settings.schedule, step, total)
            optimizer.zero_grad()
            task.step(batch).loss.backward()
            optimizer.step()
            step += 1
        val, test = (judged(task, split(Placement())) for split in (data.val_loader, data.test_loader))
        best = max(best, (val["ndcg10"], f"validation {told(val)}; test {told(test)}; epoch {step // len(loader)}"))
    of_best = ""
    if data.spec.best_recall:
        law = Law(*(settings.data.options[name] for name in ("users", "items", "draw_seed")))
        of_best = f"; of the best possible, by the law itself, {share_of_best(task, data, law):.4f} in the end"
    print(f"seed {settings.run.seed}: {best[1]}; {time.process_time() - begin:.0f} s of CPU{of_best}")


@torch.no_grad()
def share_of_best(task: TwoTower, data: InteractionSet, law: Law) -> float:
    """What the law expects of the ten items that stand first for every user of the test, as a share of what it expects of its own ten: the
    mean of `recall10_of_best` over all users who could have been drawn.
    """
    chosen = data.spec.log.items.view(len(law.group), -1).numpy()[:, :-1]
    known = np.zeros((len(chosen), len(law.genre)), bool)
    np.put_along_axis(known, chosen, True, 1)
    p = torch.from_numpy(law.probabilities(known, chosen[:, -1]))
    task.eval()
    v, expected = task.item(task.every()), 0.0
    for batch in data.test_loader(Placement()).batches(0):
        scores = task.score(task.seen(batch, task.joint).u, v) + task.bias
        of_rows = p[batch.users[batch.wanted[:, 0]]]
        expected += float(of_rows.gather(1, scores.masked_fill(of_rows == 0, -torch.inf).topk(CHOSEN, 1).indices).sum())
    return expected / float(p.topk(CHOSEN, 1).values.sum())


@torch.no_grad()
def judged(task: nn.Module, loader: Loader) -> dict[str, float]:
    task.eval()
    sums, users = dict.fromkeys(("hr10", "ndcg10"), 0.0), 0
    for batch in loader.batches(0):
        values = per_user(task.ranked(batch).ranks, batch.wanted[:, 0], len(batch.users))
        sums, users = {name: total + float(values[name].sum()) for name, total in sums.items()}, users + len(batch.users)
    task.train()
    return {name: total / users for name, total in sums.items()}


def told(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def catalogue(threads: int, queries: int = 1000, items: int = 100_000, k: int = 50) -> None:
    import faiss  # type: ignore[import-not-found]

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(queries, DIM, generator=generator), torch.randn(items, DIM, generator=generator)
    index = faiss.IndexFlatIP(DIM)
    index.add(v.numpy())
    a, b = alternated(lambda _: top_k(u, v, k), lambda _: index.search(u.numpy(), k))
    mine, (values, places) = top_k(u, v, k), index.search(u.numpy(), k)
    same = float((mine[1] == torch.from_numpy(places)).double().mean())
    apart = float((mine[0] - torch.from_numpy(values)).abs().max())
    print(f"users/s, {threads} threads: ours {queries / a:,.0f}, faiss flat {queries / b:,.0f}, ratio {b / a:.2f}")
    print(f"the same items at the same places: {same:.6f}; values apart by at most {apart:.1e}")


def memory(items: int = 1_000_000, queries: int = 64, k: int = 50) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(queries, DIM, generator=generator)
    top_k(u, torch.randn(1000, DIM), k)  # allocators
    before = peak()
    v = torch.empty(items, DIM, dtype=torch.float16)
    for some in v.split(10_000):
        some.copy_(torch.randn(some.shape, generator=generator))
    held = peak()
    begin = time.perf_counter()
    top_k(u, v, k)
    took = time.perf_counter() - begin
    print(f"{items:,} items in half precision: {v.numel() * 2 / 2**20:.0f} MiB by count")
    print(f"peak of the process: {held - before:.0f} MiB more once they are made, {peak() - before:.0f} once {queries} users have asked")
    print(f"{queries / took:,.0f} users/s, 1 thread")


def peak() -> float:
    """MiB"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alternated(ours: Callable[[int], object], theirs: Callable[[int], object]) -> tuple[float, float]:
    """The best seconds of each, after one turn that is not counted."""
    best = [float("inf")] * 2
    for turn in range(TURNS + 1):
        for place, work in enumerate((ours, theirs)):
            begin = time.perf_counter()
            work(turn)
            if turn:
                best[place] = min(best[place], time.perf_counter() - begin)
    return best[0], best[1]


if __name__ == "__main__":
    what, *threads = sys.argv[1:] or ["?"]
    if what == "memory":
        memory()
    elif what == "quality":
        quality(threads)
    elif what in ("training", "catalogue"):
        (training if what == "training" else catalogue)(int(threads[0]) if threads else torch.get_num_threads())
    else:
        sys.exit(__doc__)
