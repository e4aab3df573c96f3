"""The transformer: what the paper's equations say, against torch's own, closed forms, and searches that leave nothing out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.models.transformer import LEGIBLE, SHOWN, LayerCache, Memory, Network, Transformer, build_transformer, positions
from refresher_runner.nn.attention import MultiHeadAttention
from refresher_runner.registry import MODELS
from refresher_runner.report import Matrix, Text
from refresher_runner.schema import check_options
from refresher_runner.spec import PairBatch, PairSpec
from refresher_runner.vocabulary import BEGIN, END, PAD, SPECIAL, Vocabulary, characters

CONF = Path(__file__).parents[2] / "conf" / "model" / "transformer.yaml"
LETTERS = characters("abcdefgh", SPECIAL)
SPEC = PairSpec(LETTERS, LETTERS, 16)
SMALL = {"dim": 16, "heads": 2, "hidden": 32, "dropout": 0.0}

norms = pytest.mark.parametrize("norm", ["post", "pre"])


def build(spec: PairSpec = SPEC, **changes: Any) -> Transformer:
    values = yaml.safe_load(CONF.read_text(encoding="utf-8"))["model"]
    options = {key: value for key, value in values.items() if key != "name"} | SMALL | changes
    return build_transformer(spec, **check_options(options, MODELS.signature("transformer").options, "model"))


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def pairs(count: int = 12, longest: int = 12, seed: int = 0) -> PairBatch:
    """Random letters; the target is the source read backwards."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=g).tolist()
    words = [torch.randint(len(SPECIAL), len(LETTERS), (n,), generator=g).tolist() for n in lengths]
    return PairBatch(padded([[*word, END] for word in words]), padded([[BEGIN, *word[::-1], END] for word in words]))


def sharpened(task: Transformer) -> Transformer:
    """An untrained network that is sure of what it says, which differs from one sentence to the next, in length as well."""
    for parameter in task.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5)
    return task.eval()


# -------------------------------------------------------------------- the network


def test_positions_in_closed_form():
    table = positions(50, 12)
    for pos, i in itertools.product(range(50), range(6)):
        angle = pos / 10000 ** (2 * i / 12)
        assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_step_is_the_same_turn_everywhere():
    """Section 3.5: PE(pos + k) is a linear function of PE(pos), whatever pos."""
    points = torch.view_as_complex(positions(40, 8).flip(0).unflatten(1, (4, 2)).contiguous())
    turn = points[5] / points[0]
    torch.testing.assert_close(points[5:], points[:-5] * turn, atol=1e-5, rtol=0)


def torchs(task: Transformer, depth: int, norm: str) -> tuple[nn.TransformerEncoder, nn.TransformerDecoder]:
    """torch's layers with this task's weights."""
    dim, heads, hidden = SMALL["dim"], SMALL["heads"], SMALL["hidden"]
    shape = {"dim_feedforward": hidden, "dropout": 0.0, "batch_first": True, "norm_first": norm == "pre"}
    ends = [nn.LayerNorm(dim) if norm == "pre" else None for _ in range(2)]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(dim, heads, **shape), depth, ends[0], enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(dim, heads, **shape), depth, ends[1])

    def copy(attention: nn.MultiheadAttention, ours: MultiHeadAttention) -> None:
        attention.load_state_dict(
            {
                "in_proj_weight": ours.c_attn.weight,
                "in_proj_bias": torch.zeros(3 * dim),
                "out_proj.weight": ours.c_proj.weight,
                "out_proj.bias": torch.zeros(dim),
            }
        )

    for layers, own in ((encoder.layers, task.network.encoder.layers), (decoder.layers, task.network.decoder.layers)):
        for layer, mine in zip(layers, own, strict=True):
            copy(layer.self_attn, mine.attention)
            if hasattr(layer, "multihead_attn"):
                copy(layer.multihead_attn, mine.cross_attention)
            layer.linear1.load_state_dict(mine.feed_forward[0].state_dict())
            layer.linear2.load_state_dict(mine.feed_forward[2].state_dict())
            for number, residual in enumerate(mine.residuals, 1):
                getattr(layer, f"norm{number}").load_state_dict(residual.norm.state_dict())
    for end, mine in zip(ends, (task.network.encoder.norm, task.network.decoder.norm), strict=True):
        if end is not None:
            end.load_state_dict(mine.state_dict())
    return encoder, decoder


@norms
@pytest.mark.parametrize("depth", [1, 3])
def test_against_torchs_transformer(norm: str, depth: int):
    task, batch = build(norm=norm, depth=depth).eval(), pairs()
    for parameter in task.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    source, target = (F.embedding(side, task.network.target.weight) * 4 + positions(side.shape[1], 16) for side in batch)  # 4 = sqrt(16)
    encoder, decoder = torchs(task, depth, norm)
    causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)  # True: may not look
    pad = batch.source == PAD
    memory = encoder(source, src_key_padding_mask=pad)
    expected = decoder(target, memory, tgt_mask=causal, memory_key_padding_mask=pad)
    found = task.network(*batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(task.network.logits(found), expected @ task.network.target.weight.T, atol=2e-4, rtol=1e-4)


def test_the_papers_base_model():
    """Table 3 says 65 million. Counted here: 37,000 x 512 shared embeddings; no bias in attention (section 3.2.2 has none), biases in
    the feed-forward layers (eq. 2); a gain and a bias of each LayerNorm. Positions are no parameters.
    """
    vocabulary = Vocabulary((*SPECIAL, *(f"word{n}" for n in range(37_000 - len(SPECIAL)))))
    with torch.device("meta"):
        task = build(PairSpec(vocabulary, vocabulary, 64), dim=512, heads=8, depth=6, hidden=2048)
    attention, norm, feed_forward = 4 * 512 * 512, 2 * 512, 512 * 2048 + 2048 + 2048 * 512 + 512
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    count = sum(p.numel() for p in task.parameters())
    assert count == 37_000 * 512 + 6 * (encoder + decoder) == 63_045_632


def test_parameters_as_conf_has_them():
    task = build(PairSpec(LETTERS, LETTERS, 64), dim=128, heads=4, depth=2, hidden=512)
    assert sum(p.numel() for p in task.parameters()) == 12 * 128 + 2 * (3 * 4 * 128 * 128 + 2 * (2 * 128 * 512 + 640) + 5 * 256)


def test_one_vocabulary_is_embedded_once():
    task = build()
    assert task.network.source is task.network.target
    assert [name for name, p in task.named_parameters() if p.shape == (12, 16)] == ["network.target.weight"]
    batch = pairs()
    task.step(batch).loss.backward()
    everywhere = task.network.target.weight.grad
    assert everywhere is not None
    assert everywhere.any(1).all()  # of PAD and BEGIN as well, which are read out, if never shown or true


def test_two_vocabularies_are_embedded_apart():
    other = characters("vwxyz", SPECIAL)
    task = build(PairSpec(other, LETTERS, 16))
    assert task.network.source.weight.shape == (9, 16)
    assert task.network.target.weight.shape == (12, 16)
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(task.network.logits(hidden), hidden @ task.network.target.weight.T)


@norms
def test_nothing_leaks_from_the_future(norm: str):
    task, batch = build(norm=norm).eval(), pairs()
    before = task.network(*batch)
    for t in range(1, batch.target.shape[1]):
        target = batch.target.clone()
        target[:, t:] = torch.randint(len(SPECIAL), 12, target[:, t:].shape)
        after = task.network(batch.source, target)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=0)
        assert not torch.allclose(after[:, t:], before[:, t:])
    source = batch.source.clone()
    source[:, 0] = 4 + (source[:, 0] - 3) % 8  # another letter
    assert (task.network(source, batch.target) - before).abs().amax(-1).amin() > 1e-4  # every token of the target has seen it


@norms
def test_more_padding_changes_nothing(norm: str):
    task, batch = build(norm=norm).eval(), pairs(longest=8)
    wider = PairBatch(*(F.pad(side, (0, 5), value=PAD) for side in batch))
    one, other = task.step(batch), task.step(wider)
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(other.preds[0], one.preds[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(other.preds[1], one.preds[1])
    torch.testing.assert_close(task.network.encode(wider.source).states[:, :9], task.network.encode(batch.source).states, atol=1e-5, rtol=0)


def test_a_sentence_is_read_alone_as_in_a_batch():
    task, batch = build().eval(), pairs()
    together = task.network(*batch)
    for source, target, hidden in zip(*batch, together, strict=True):
        alone = task.network(source[source != PAD][None], target[target != PAD][None])
        torch.testing.assert_close(alone[0], hidden[: alone.shape[1]], atol=1e-5, rtol=0)


@norms
def test_with_a_cache_as_without(norm: str):
    task, batch = build(norm=norm).eval(), pairs()
    memory, caches = task.network.encode(batch.source), task.network.caches()
    whole = task.network.logits(task.network.decode(batch.target, memory))
    whole[..., [PAD, BEGIN]] = -torch.inf
    nowhere = Memory(torch.full_like(memory.states, torch.nan), memory.mask)
    for t in range(batch.target.shape[1]):
        step = task.network.next(batch.target[:, t], memory if t == 0 else nowhere, caches)  # its keys are computed once
        torch.testing.assert_close(step, whole[:, t].log_softmax(-1), atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------- the objective


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.6])
def test_loss_is_torchs_with_label_smoothing(eps: float):
    task, batch = build(label_smoothing=eps), pairs()
    logits = task.network.logits(task.network(batch.source, batch.target[:, :-1]))
    total = F.cross_entropy(logits.flatten(0, 1), batch.target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=eps, reduction="sum")
    plain = F.cross_entropy(logits.flatten(0, 1), batch.target[:, 1:].flatten(), ignore_index=PAD)
    output = task.step(batch)
    torch.testing.assert_close(output.loss, total / (12 * 16))
    torch.testing.assert_close(output.parts["cross_entropy"], plain)


def test_half_batches_average_to_the_whole():
    """However many tokens each half has."""
    task, batch = build(), pairs()
    order = (batch.target != PAD).sum(1).argsort()
    halves = [PairBatch(*(side[half] for side in batch)) for half in order.split(6)]
    losses = [task.step(half).loss for half in halves]
    assert abs(losses[1] - losses[0]) > 0.1
    torch.testing.assert_close(sum(losses) / 2, task.step(batch).loss)


def test_preds_are_made_for_metrics_alone():
    task, batch = build(), pairs()
    assert task.step(batch).preds is None
    output = task.eval().step(batch)
    (log_p, written), (labels, true) = output.preds, output.targets
    assert output.parts == {}
    assert log_p.shape == (len(labels), 12)
    assert torch.equal(labels, batch.target[:, 1:][batch.target[:, 1:] != PAD])
    assert torch.equal(true, batch.target[:, 1:])
    assert len(written) == 12
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    values = {name: metric.compute() for name, metric in metrics.items()}
    assert task.goal.metric in values
    assert 0 <= values["accuracy"] <= 1
    torch.testing.assert_close(values["perplexity"].log(), F.nll_loss(log_p, labels))


@norms
def test_bf16_trains_every_parameter(norm: str):
    task, batch = build(norm=norm, dropout=0.1), pairs()
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    task.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        again = task.step(batch)
        assert set(task.observe(batch))
    torch.testing.assert_close(again.loss, task.step(batch).loss, atol=0.03, rtol=0.03)


def test_dropout_is_of_training_alone():
    task, batch = build(dropout=0.5), pairs()
    assert task.step(batch).loss != task.step(batch).loss
    assert task.eval().step(batch).loss == task.step(batch).loss
    torch.testing.assert_close(task.train().network.encode(batch.source).mask, (batch.source != PAD)[:, None, None])


# -------------------------------------------------------------------- searches


class Table(Network):
    """What comes next depends on the last token alone: log p (V, V), a row for each."""

    def __init__(self, table: Tensor, block_size: int):
        letters = characters("abcdefgh"[: len(table) - len(SPECIAL)], SPECIAL)
        super().__init__(PairSpec(letters, letters, block_size), dim=2, heads=1, depth=1, hidden=1, dropout=0.0, norm="post")
        self.spec = PairSpec(letters, letters, block_size)
        self.table = table

    def next(self, tokens: Tensor, memory: Memory, caches: Sequence[LayerCache]) -> Tensor:
        return self.table[tokens]


def searcher(p: dict[int, dict[int, float]], block_size: int = 8, *, beam: int, length_penalty: float = 0.0) -> Transformer:
    """Of the chances p[last token][next token]."""
    size = max(5, 1 + max(p), *(1 + n for row in p.values() for n in row))
    table = torch.zeros(size, size)
    for last, row in p.items():
        table[last, list(row)] = torch.tensor(list(row.values()))
    network = Table(table.log(), block_size)
    return Transformer(network.spec, network, label_smoothing=0.0, beam=beam, length_penalty=length_penalty)


def nothing(count: int = 1) -> Memory:
    return Memory(torch.zeros(count, 1, 2), torch.ones(count, 1, 1, 1, dtype=torch.bool))


def sentence(row: Tensor) -> list[int]:
    """Up to and with END."""
    tokens = row.tolist()
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def log_p(task: Transformer, source: Tensor, written: list[int]) -> float:
    """Of a sentence, with its END if it has one, as the whole network has it."""
    logits = task.network.logits(task.network(source[None], torch.tensor([[BEGIN, *written[:-1]]])))[0]
    logits[:, [PAD, BEGIN]] = -torch.inf
    return logits.log_softmax(-1)[range(len(written)), written].sum().item()


A, B, C = 4, 5, 6


def test_greed_is_a_trap():
    """a is likelier than b, but what follows it is not: p(a END) = 0.6 * 0.3, p(b END) = 0.4 * 0.9."""
    p = {BEGIN: {A: 0.6, B: 0.4}, A: {END: 0.3, A: 0.25, B: 0.25, C: 0.2}, B: {END: 0.9, A: 0.1}, C: {END: 1.0}}
    one, two = searcher(p, beam=1), searcher(p, beam=2)
    assert sentence(one.write(nothing())[0]) == [A, END]
    for task, written, expected in ((one, [A, END], 0.6 * 0.3), (two, [B, END], 0.4 * 0.9)):
        found, score = task.search(nothing())
        assert found.tolist() == [written]
        assert score.item() == pytest.approx(math.log(expected), rel=1e-5)


@pytest.mark.parametrize(("penalty", "written"), [(0.0, [A, END]), (1.0, [B, C, END])])
def test_the_length_penalty_is_wus(penalty: float, written: list[int]):
    p = {BEGIN: {A: 0.5, B: 0.5}, A: {END: 0.8, C: 0.2}, B: {C: 1.0}, C: {END: 0.75, B: 0.25}}
    found, score = searcher(p, beam=3, length_penalty=penalty).search(nothing())
    assert sentence(found[0]) == written
    probability = 0.5 * {2: 0.8, 3: 0.75}[len(written)]
    assert score.item() == pytest.approx(math.log(probability) / ((5 + len(written)) / 6) ** penalty, rel=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_is_wide_enough_finds_the_best(seed: int, length_penalty: float):
    """Of all sentences that end in time."""
    letters, block_size = [3, 4, 5, 6], 5
    g = torch.Generator().manual_seed(seed)
    rows = {last: torch.randn(5, generator=g).mul(2).softmax(0).tolist() for last in (BEGIN, *letters)}
    p = {last: dict(zip([END, *letters], row, strict=True)) for last, row in rows.items()}

    def score(written: tuple[int, ...]) -> float:
        chances = [p[last][token] for last, token in itertools.pairwise((BEGIN, *written))]
        return sum(map(math.log, chances)) / ((5 + len(written)) / 6) ** length_penalty

    every = [(*word, END) for n in range(block_size - 1) for word in itertools.product(letters, repeat=n)]
    best = max(every, key=score)
    found, reached = searcher(p, block_size, beam=len(every), length_penalty=length_penalty).search(nothing(2))
    for row in range(2):
        assert tuple(sentence(found[row])) == best
        assert reached[row].item() == pytest.approx(score(best), rel=1e-4)


@norms
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_of_one_is_greedy(norm: str, length_penalty: float):
    task, batch = sharpened(build(norm=norm, beam=1, length_penalty=length_penalty)), pairs(40)
    memory = task.network.encode(batch.source)
    written, (found, score) = task.write(memory), task.search(memory)
    assert torch.equal(found, written)
    assert len({tuple(row) for row in written.tolist()}) > 10
    assert len({len(sentence(row)) for row in written}) > 1
    for row, source, one in zip(written, batch.source, score.tolist(), strict=True):
        tokens = sentence(row)
        assert one == pytest.approx(log_p(task, source, tokens) / ((5 + len(tokens)) / 6) ** length_penalty, rel=1e-3, abs=1e-3)


def slow_search(task: Transformer, source: Tensor) -> tuple[list[int], float]:
    """The same search of one sentence, hypothesis by hypothesis, without caches."""
    alive, ended, longest = [([], 0.0)], [], task.spec.block_size - 1

    def scored(tokens: list[int], total: float) -> float:
        return total / ((5 + len(tokens)) / 6) ** task.length_penalty

    for _ in range(longest):
        candidates = []
        for tokens, total in alive:
            logits = task.network.logits(task.network(source[None], torch.tensor([[BEGIN, *tokens]])))[0, -1]
            logits[[PAD, BEGIN]] = -torch.inf
            for token, value in enumerate(logits.log_softmax(-1).tolist()):
                if token not in (PAD, BEGIN):
                    candidates.append(([*tokens, token], total + value))
        candidates.sort(key=lambda c: -c[1])
        ended += [c for c in candidates[: task.beam] if c[0][-1] == END]
        if len(ended) >= task.beam:
            break
        alive = [c for c in candidates if c[0][-1] != END][: task.beam]
    best = max(ended or alive[:1], key=lambda c: scored(*c))
    return best[0], scored(*best)


@norms
@pytest.mark.parametrize("beam", [2, 5])
def test_search_against_one_hypothesis_at_a_time(norm: str, beam: int):
    task, batch = sharpened(build(norm=norm, beam=beam, depth=1)), pairs(12)
    found, score = task.search(task.network.encode(batch.source))
    for source, row, one in zip(batch.source, found, score.tolist(), strict=True):
        tokens, expected = slow_search(task, source)
        assert one == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert sentence(row[row != PAD]) == tokens


def test_what_is_written_ends_once_and_is_padded():
    task, batch = sharpened(build(beam=3)), pairs(40)
    memory = task.network.encode(batch.source)
    for written in (task.write(memory), task.search(memory)[0]):
        assert written.shape[1] <= SPEC.block_size - 1
        assert not (written == BEGIN).any()
        for row in written:
            end = sentence(row)
            assert (row[len(end) :] == PAD).all()
            assert PAD not in end


# -------------------------------------------------------------------- learning


@norms
def test_learns_to_read_backwards(norm: str):
    """Sentences that it has not seen."""
    torch.manual_seed(1)
    task = build(dim=32, hidden=64, norm=norm, depth=1, label_smoothing=0.0)
    steps = 400
    optimizer = torch.optim.Adam(task.parameters(), lr=4e-3, betas=(0.9, 0.98), eps=1e-9)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min((step + 1) / 40, 2 * (1 - step / steps))
        optimizer.zero_grad()
        task.step(pairs(64, longest=6, seed=step)).loss.backward()
        optimizer.step()
    task.eval()
    unseen = pairs(200, longest=6, seed=10_000)
    memory = task.network.encode(unseen.source)
    for written in (task.write(memory), task.search(memory)[0]):
        exact = [sentence(row) == sentence(true[1:]) for row, true in zip(written, unseen.target, strict=True)]
        assert sum(exact) / len(exact) > 0.9
    [said] = task.predict(["abcd"])
    assert said.values["output"] == "dcba"
    assert -1 < said.values["score"] < 0  # type: ignore[operator]


# -------------------------------------------------------------------- looking


def test_maps_are_of_one_pair_and_named_by_its_tokens():
    task, batch = build(heads=4).eval(), pairs()
    with torch.no_grad():
        report = task.observe(batch)
    lengths = (batch.target != PAD).sum(1)
    at = int(lengths.argmax())
    source, target = batch.source[at, : lengths[at] - 1], batch.target[at, : lengths[at]]
    read, shown = (tuple(LETTERS.tokens[n] for n in side.tolist()) for side in (source, target[:-1]))
    sides = {"encoder": (read, read), "decoder": (shown, shown), "cross": (shown, read)}
    assert set(report) == {f"{name}_attention/head{h}" for name in sides for h in (1, 2, 3, 4)} | {"sentences"}
    assert read[-1] == "[END]"
    assert shown[0] == "[BEGIN]"
    for name, (rows, columns) in sides.items():
        for head in (1, 2, 3, 4):
            matrix = report[f"{name}_attention/head{head}"]
            assert isinstance(matrix, Matrix)
            assert (matrix.rows, matrix.columns) == (rows, columns)
            assert matrix.values.shape == (len(rows), len(columns))
            torch.testing.assert_close(matrix.values.sum(-1), torch.ones(len(rows)))
            assert name != "decoder" or not matrix.values.triu(1).any()


def test_the_maps_are_those_that_are_used():
    """The last layer's cross-attention, computed anew from its own weights."""
    task, batch = build(norm="pre", depth=1).eval(), pairs(1)
    layer, source, target = task.network.decoder.layers[0], batch.source, batch.target[:, :-1]
    x = 4 * F.embedding(target, task.network.target.weight) + positions(target.shape[1], 16)
    y = layer.residuals[0].norm(x)
    x = layer.residuals[1].norm(x + layer.attention(y, causal=True))
    memory = task.network.encode(source).states
    w_q, w_k, _ = layer.cross_attention.c_attn.weight.chunk(3)
    q, k = ((side @ w.T).unflatten(-1, (2, 8)).transpose(1, 2) for side, w in ((x, w_q), (memory, w_k)))
    expected = (q @ k.mT / math.sqrt(8)).softmax(-1)[0]
    for head in (0, 1):
        shown = task.observe(batch)[f"cross_attention/head{head + 1}"]
        assert isinstance(shown, Matrix)
        torch.testing.assert_close(shown.values, expected[head])


def test_the_pair_that_is_shown_can_be_read():
    """Of those of so many tokens, the longest; if there is none, the shortest."""
    long, longer, short = ([4] * n for n in (LEGIBLE + 3, LEGIBLE + 9, 5))
    spec = PairSpec(LETTERS, LETTERS, 40)
    for words, expected in (([long, short, [4]], 6), ([longer, long], LEGIBLE + 4)):
        batch = PairBatch(padded([[*word, END] for word in words]), padded([[BEGIN, *word, END] for word in words]))
        shown = build(spec).eval().observe(batch)["encoder_attention/head1"]
        assert isinstance(shown, Matrix)
        assert len(shown.rows) == expected


def test_sentences_and_what_became_of_them():
    task, batch = sharpened(build()), pairs(SHOWN + 4)
    shown = task.observe(batch)["sentences"]
    assert isinstance(shown, Text)
    written = task.write(task.network.encode(batch.source))
    lines = shown.markdown.splitlines()
    assert len(lines) == 2 + SHOWN
    for line, *texts in zip(lines[2:], batch.source, batch.target, written, strict=False):
        assert [cell.strip() for cell in line.strip("|").split("|")] == [LETTERS.decode(row.tolist()) for row in texts]


def test_a_table_is_not_broken_by_what_is_in_it():
    odd = characters("|\\\na", SPECIAL)
    task = build(PairSpec(odd, odd, 16)).eval()
    numbers = odd.encode("a|\\\n")
    shown = task.observe(PairBatch(torch.tensor([[*numbers, END]]), torch.tensor([[BEGIN, *numbers, END]])))["sentences"]
    assert isinstance(shown, Text)
    assert shown.markdown.splitlines()[2].startswith("| a\\|\\\\  | a\\|\\\\  |")


def test_predict_shows_where_it_looked():
    task = sharpened(build())
    [said] = task.predict(["hello"[:1] + "ead"])
    written = LETTERS.encode(str(said.values["output"]))
    looked = said.report["attention"]
    assert isinstance(looked, Matrix)
    assert looked.columns == (*"head", "[END]")
    assert looked.rows[: len(written)] == tuple(str(said.values["output"]))
    torch.testing.assert_close(looked.values.sum(-1), torch.ones(len(looked.rows)))


def test_predict_takes_what_the_block_holds():
    task = sharpened(build())
    list(task.predict(["", "abc", "a" * 15, "xyz"]))  # what is not known is [UNKNOWN]
    with pytest.raises(UsageError, match="17 tokens long with its end, and the model reads 16") as refused:
        list(task.predict(["a" * 16]))
    assert "block_size" in refused.value.cure


@pytest.mark.parametrize(("changes", "key"), [({"dim": 15, "heads": 3}, "model.dim"), ({"heads": 3}, "model.heads")])
def test_numbers_that_cannot_be_shared_are_refused(changes: dict[str, int], key: str):
    with pytest.raises(ConfigError) as refused:
        build(**changes)
    assert refused.value.key == key
    assert refused.value.cure
