from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refresher_runner.errors import UsageError
from refresher_runner.models.bert import BERT, BERTClassifier, Encoder, Hidden, TokenHead, hide
from refresher_runner.spec import LabelledTextBatch, LabelledTextSpec, TextBatch, TextSpec
from refresher_runner.vocabulary import Vocabulary, characters
from tests.models.build import build
from tests.models.text import CHARACTERS, SUBWORDS, text_batch


def bert(spec: TextSpec = CHARACTERS, **changes) -> BERT:
    task = build("bert", spec, **{"depth": 2, "dim": 32, "mask_fraction": 0.15, **changes})
    assert isinstance(task, BERT)
    return task


def unlike(task: BERT) -> BERT:
    """With weights so large that what it says depends on all that it reads."""
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.4)
    return task.double().eval()


# -------------------------------------------------------------------- what is hidden


def test_eighty_ten_ten():
    mask, tokens = 50, torch.randint(50, (2000, 40))
    read = hide(tokens, 0.15, mask)
    n = 6  # 15 % of 40
    assert read.positions.shape == (2000, n)
    assert all(len(set(row)) == n for row in read.positions.tolist()), "no token is asked for twice"
    changed = torch.ones_like(tokens, dtype=torch.bool).scatter(1, read.positions, False)
    assert torch.equal(read.tokens[changed], tokens[changed]), "nothing else is touched"

    truth, shown = tokens.gather(1, read.positions), read.tokens.gather(1, read.positions)
    total = truth.numel()

    def share(what: Tensor) -> float:
        return what.double().mean().item()

    def near(p: float) -> object:
        return pytest.approx(p, abs=5 * (p * (1 - p) / total) ** 0.5)

    assert share(shown == mask) == near(0.8)
    assert share((shown != mask) & (shown != truth)) == near(0.1 * 49 / 50)  # a random token may be the true one
    assert share(shown == truth) == near(0.1 + 0.1 / 50)
    random = shown[(shown != mask) & (shown != truth)]
    counts = random.bincount(minlength=50)
    assert len(counts) == 50, "a random token is never [MASK]"
    assert counts.max() < 2.2 * counts.double().mean()
    places = read.positions.flatten().bincount(minlength=40) / 2000
    assert places.min().item() > 0.15 - 5 * (0.15 * 0.85 / 2000) ** 0.5, "every place is as likely"


@pytest.mark.parametrize(("t", "fraction", "n"), [(1, 0.15, 1), (3, 0.15, 1), (10, 0.15, 2), (20, 0.15, 3), (8, 0.999, 8)])
def test_at_least_one_is_asked_for(t: int, fraction: float, n: int):
    assert hide(torch.zeros(2, t, dtype=torch.int64), fraction, 5).positions.shape == (2, n)


def test_each_row_is_drawn_for_itself_and_a_seed_repeats_it():
    tokens = torch.randint(50, (64, 40))
    torch.manual_seed(1)
    one, other = hide(tokens, 0.15, 50), hide(tokens, 0.15, 50)
    torch.manual_seed(1)
    again = hide(tokens, 0.15, 50)
    assert torch.equal(one.tokens, again.tokens)
    assert torch.equal(one.positions, again.positions)
    assert not torch.equal(one.positions, other.positions)
    assert len({tuple(row) for row in one.positions.tolist()}) > 60


# -------------------------------------------------------------------- the network


def test_parameters_of_the_papers_base_model():
    """The 109,514,298 of the published one with its head, less two embeddings of segments and the bias of [MASK]."""
    spec = TextSpec(Vocabulary(tuple(map(str, range(30_521)))), 512)
    with torch.device("meta"):
        encoder = Encoder(spec, depth=12, heads=12, dim=768, dropout=0.1, norm="post", positions="learned")
        head = TokenHead(30_521, 768)
    assert sum(p.numel() for p in [*encoder.parameters(), *head.parameters()]) == 109_514_298 - 2 * 768 - 1


def test_it_looks_both_ways():
    task, tokens = unlike(bert()), text_batch().tokens
    asked = torch.full((4, 1), 7)
    logits = task.fill(Hidden(tokens, asked))
    for t in (0, 6, 8, 15):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 5) % len(CHARACTERS.vocabulary)
        moved = (task.fill(Hidden(changed, asked)) - logits).abs().amax((1, 2))
        assert (moved > 1e-6).all(), t


def test_what_is_hidden_cannot_be_seen():
    """Two texts that differ only where [MASK] stands get the same answer."""
    task, batch = unlike(bert(mask_fraction=0.3)), text_batch()
    torch.manual_seed(3)
    read = hide(batch.tokens, 0.3, task.mask)
    covered = read.tokens == task.mask
    other = torch.where(covered, (batch.tokens + 3) % task.mask, batch.tokens)
    assert not torch.equal(other, batch.tokens)
    answers = []
    for tokens in (batch.tokens, other):
        torch.manual_seed(3)
        answers.append(task.step(TextBatch(tokens, batch.targets)).preds.model)
    assert torch.equal(*answers)


def test_loss_is_of_what_was_asked_for_alone():
    task, batch = bert().eval(), text_batch()
    torch.manual_seed(3)
    output = task.step(batch)
    torch.manual_seed(3)
    read = hide(batch.tokens, 0.15, task.mask)
    log_p = task.head(task.encoder(read.tokens), task.encoder.token.weight).log_softmax(-1)  # of every token
    b, n = read.positions.shape
    asked = [(row, int(read.positions[row, i])) for row in range(b) for i in range(n)]
    expected = -sum(log_p[row, t, batch.tokens[row, t]] for row, t in asked) / (b * n)
    torch.testing.assert_close(output.loss, expected)
    assert output.preds.model.shape == (4, n, len(CHARACTERS.vocabulary))


def test_embedding_and_output_are_one_but_for_the_mask():
    task = bert()
    x = torch.randn(2, 32)
    expected = task.head.transform(x) @ task.encoder.token.weight[:-1].T + task.head.bias
    torch.testing.assert_close(task.head(x, task.encoder.token.weight), expected)
    assert task.encoder.token.num_embeddings == len(CHARACTERS.vocabulary) + 1 == task.mask + 1


def test_order_matters():
    task, tokens = unlike(bert(depth=1)), text_batch().tokens
    swapped, asked = tokens.clone(), torch.full((4, 1), 15)
    swapped[:, [2, 9]] = tokens[:, [9, 2]]
    assert not torch.allclose(task.fill(Hidden(swapped, asked)), task.fill(Hidden(tokens, asked)), atol=1e-6)


# -------------------------------------------------------------------- the baselines


def test_training_counts_what_it_sees_and_evaluation_does_not():
    task, batches = bert(), [text_batch(), TextBatch(*(part.flip(0)[:2] for part in text_batch()))]
    for batch in batches:
        task.step(batch)
    task.eval().step(batches[0])
    v = len(CHARACTERS.vocabulary)
    unigrams, bigrams = np.zeros(v, int), np.zeros((v, v), int)
    for batch in batches:
        for before, after in zip(batch.tokens.flatten().tolist(), batch.targets.flatten().tolist(), strict=True):
            unigrams[after] += 1
            bigrams[before, after] += 1
    np.testing.assert_array_equal(task.counts.unigrams, unigrams)
    np.testing.assert_array_equal(task.counts.bigrams, bigrams)


def test_baselines_are_these_counts():
    task, batch = bert(), text_batch()
    task.step(batch)
    task.eval()
    torch.manual_seed(2)
    preds = task.step(batch).preds
    torch.manual_seed(2)
    positions = hide(batch.tokens, 0.15, task.mask).positions
    u, c = task.counts.unigrams.double() + 0.1, task.counts.bigrams.double() + 0.1
    shares = u + 0.1 * (task.mask - 1)  # of which a bigram's second token is one
    text = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    for row, places in enumerate(positions.tolist()):
        for i, t in enumerate(places):
            before = u if t == 0 else c[text[row, t - 1]]
            p = before * c[:, text[row, t + 1]] / shares
            torch.testing.assert_close(preds.bigram[row, i].double().softmax(-1), p / p.sum(), atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(preds.unigram[row, i].double().softmax(-1), u / u.sum(), atol=1e-6, rtol=1e-4)


def test_the_bigram_is_right_about_a_text_that_is_a_chain():
    """a b c a b c ...: it is always right, the unigram once in three."""
    spec = TextSpec(characters("abc"), 9)
    text = torch.arange(200 * 9 + 1) % 3
    windows = torch.stack([text[i * 9 : i * 9 + 10] for i in range(200)])
    windows[::2] = (windows[::2] + 1) % 3
    task, batch = bert(spec, mask_fraction=0.3), TextBatch(windows[:, :-1], windows[:, 1:])
    task.step(batch)
    output = task.eval().step(batch)
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    found = {name: metric.compute() for name, metric in metrics.items() if name.startswith("accuracy")}
    assert list(found) == ["accuracy", "accuracy_unigram", "accuracy_bigram"]
    assert found["accuracy_bigram"] == 1
    assert found["accuracy_unigram"].item() == pytest.approx(1 / 3, abs=0.05)


def test_a_large_vocabulary_has_no_table_of_pairs():
    spec = TextSpec(Vocabulary(tuple(map(chr, range(1000, 6000)))), 8)
    task, batch = bert(spec), TextBatch(torch.randint(5000, (2, 8)), torch.randint(5000, (2, 8)))
    task.step(batch)
    assert task.counts.unigrams.sum() == 16
    output = task.eval().step(batch)
    assert output.preds.bigram is None
    assert "accuracy_bigram" not in task.metrics()
    for metric in task.metrics().values():
        metric.update(output.preds, output.targets)
        metric.compute()


def test_counts_travel_with_the_weights():
    one, two = bert(), bert()
    one.step(text_batch())
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.counts.bigrams, one.counts.bigrams)
    assert two.counts.unigrams.sum() == 64


# -------------------------------------------------------------------- the verb


def taught(spec: TextSpec) -> BERT:
    task, data = bert(spec, mask_fraction=0.2, norm="post", positions="learned"), text_batch(spec, 6)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        task.step(data).loss.backward()
        optimizer.step()
    return task.eval()


def test_predict_fills_every_mask():
    task = taught(CHARACTERS)
    whole, other = task.predict(["She s[MASK]lls sea [MASK]h", "She sells se[MASK] sh"])
    assert whole.values["filled"] == "She sells sea sh"
    assert other.values["filled"] == "She sells sea sh"
    assert list(whole.values) == ["filled", "mask_1", "mask_2"]
    first = whole.values["mask_1"]
    assert isinstance(first, str)
    named = [candidate.split(" ") for candidate in first.split(", ")]
    assert named[0][0] == "e"
    chances = [float(chance) for _, chance in named]
    assert len(chances) == 5
    assert chances == sorted(chances, reverse=True)
    assert 0.5 < sum(chances) <= 1.01


def test_of_subwords_the_space_belongs_to_the_mask():
    task = bert(SUBWORDS)
    read = task._read("She [MASK] sea")
    numbers = SUBWORDS.vocabulary.encode("She sells sea")
    before, after = SUBWORDS.vocabulary.encode("She"), SUBWORDS.vocabulary.encode(" sea")
    assert numbers == [*before, *SUBWORDS.vocabulary.encode(" sells"), *after], "words are encoded with the space before them"
    assert read.tokens.tolist() == [[*before, task.mask, *after]]
    assert read.positions.tolist() == [[len(before)]]


@pytest.mark.parametrize(
    ("text", "words"),
    [("She sells", r"holds no \[MASK\]"), ("[MASK]" * 17, "17 tokens long"), ("[MASK] ✓", "'✓'")],
)
def test_texts_that_cannot_be_filled(text: str, words: str):
    with pytest.raises(UsageError, match=words) as caught:
        list(bert().predict([text]))
    assert caught.value.cure


def test_a_sample_shows_what_was_read_filled_and_true():
    task, data = bert(mask_fraction=0.3).eval(), text_batch()
    torch.manual_seed(4)
    lines = task.observe(data)["samples"].markdown.splitlines()
    assert [line[:12].strip() for line in lines] == ["read", "filled", "true"]
    read, filled, true = (line[12:] for line in lines)
    assert true == "She␣sells␣sea␣sh"
    assert len(read) == len(filled) == 16
    assert "□" in read
    assert "□" not in filled


# -------------------------------------------------------------------- fine-tuning

SHELLS = LabelledTextSpec(CHARACTERS.vocabulary, 16, ("sea", "shore", "neither"))


def classifier(**changes) -> BERTClassifier:
    task = build("bert", SHELLS, **{"depth": 2, "dim": 32, "mask_fraction": 0.15, **changes})
    assert isinstance(task, BERTClassifier)
    return task


def labelled(*texts: str, width: int = 0) -> LabelledTextBatch:
    """Texts, labelled by what they speak of, padded to a width with what would confuse whoever read it."""
    numbers = [SHELLS.vocabulary.encode(text) for text in texts]
    width = max(width, *map(len, numbers))
    tokens = torch.tensor([[*row, *[len(SHELLS.vocabulary) - 1] * (width - len(row))] for row in numbers])
    labels = [0 if "sea" in text else 1 if "shore" in text else 2 for text in texts]
    return LabelledTextBatch(tokens, torch.tensor([len(row) for row in numbers]), torch.tensor(labels))


LINES = "She sells sea", "the sea", "shore", "by the shore", "I'm sure", "She"


def test_the_data_say_what_is_learnt():
    assert isinstance(build("bert", CHARACTERS), BERT)
    assert isinstance(build("bert", SHELLS), BERTClassifier)


def test_a_classifier_trains_every_parameter_and_begins_undecided():
    task = classifier(dropout=0.1)
    loss = task.step(labelled(*LINES)).loss
    loss.backward()
    assert loss.item() == pytest.approx(np.log(3), rel=0.1)
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_no_class(norm: str, positions: str):
    task = unlike(classifier(norm=norm, positions=positions))
    narrow, wide = labelled(*LINES), labelled(*LINES, width=16)
    together = task.logits(wide.tokens, wide.lengths)
    torch.testing.assert_close(together, task.logits(narrow.tokens, narrow.lengths))
    alone = [task.logits(wide.tokens[i : i + 1, :n], wide.lengths[i : i + 1]) for i, n in enumerate(wide.lengths.tolist())]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(together[0], together[1])


def test_a_class_is_read_from_the_mean_of_the_vectors():
    task, batch = unlike(classifier()), labelled("She", "sea")
    x = task.encoder(batch.tokens)  # no padding here
    torch.testing.assert_close(task.logits(batch.tokens, batch.lengths), x.mean(1) @ task.classes.weight.T + task.classes.bias)


def instructed() -> BERTClassifier:
    task, batch = classifier(), labelled(*LINES)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        task.step(batch).loss.backward()
        optimizer.step()
    return task.eval()


def test_a_classifier_learns_and_says_what_a_text_is():
    task = instructed()
    assert task.step(labelled(*LINES)).loss < 0.1
    found = list(task.predict([*LINES, "She sells sea" * 3]))
    assert [p.values["class"] for p in found[:6]] == ["sea", "sea", "shore", "shore", "neither", "neither"]
    (cut,) = task.predict([("She sells sea" * 3)[:16]])
    assert found[6].values == cut.values, "read as far as the block goes"
    first = found[0].values
    assert list(first) == ["class", "probability", "runner_up", "runner_up_probability"]
    assert 0.5 < first["probability"] <= 1
    assert first["probability"] + first["runner_up_probability"] <= 1 + 1e-6


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("✓", "'✓'")])
def test_texts_that_cannot_be_classified(text: str, words: str):
    with pytest.raises(UsageError, match=words) as caught:
        list(classifier().predict([text]))
    assert caught.value.cure


def test_mistakes_are_shown_the_most_confident_first():
    task = instructed()
    tokens, lengths, labels = labelled(*LINES)
    assert task.observe(LabelledTextBatch(tokens, lengths, labels)) == {}
    lines = task.observe(LabelledTextBatch(tokens, lengths, torch.tensor([1, 0, 1, 1, 2, 0])))["mistakes"].markdown.splitlines()
    assert lines[:2] == ["| text | true | taken for |", "|---|---|---|"]
    told = {tuple(cell.strip() for cell in line.strip("|").split("|")[:2]) for line in lines[2:]}
    assert told == {("She sells sea", "shore"), ("She", "sea")}
    chances = [float(line.rpartition(", ")[2].strip(" |")) for line in lines[2:]]
    assert chances == sorted(chances, reverse=True)


def test_names_that_would_break_a_table_are_escaped():
    spec = dataclasses.replace(SHELLS, classes=("a|b", "c\\d", "e\nf"))
    task = build("bert", spec, depth=1, dim=32, mask_fraction=0.15).eval()
    tokens, lengths, _ = labelled(*LINES)
    rows = []
    for label in range(3):
        rows += task.observe(LabelledTextBatch(tokens, lengths, torch.full((6,), label)))["mistakes"].markdown.splitlines()[2:]
    assert rows
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 4, "three cells"
    assert {name for row in rows for name in ("a\\|b", "c\\\\d", "e f") if f"| {name} |" in row} == {"a\\|b", "c\\\\d", "e f"}


def test_metrics_of_a_classifier_hold_its_goal():
    task = classifier().eval()
    output, metrics = task.step(labelled(*LINES)), task.metrics()
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    assert metrics[task.goal.metric].compute() == (output.preds.argmax(-1) == output.targets).float().mean()
