from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.models.gpt import GPT, Decoder, truncate
from refresher_runner.nn.attention import Cache, RotaryAttention, rotate
from refresher_runner.spec import TextBatch, TextSpec
from refresher_runner.vocabulary import Vocabulary
from tests.models.build import build
from tests.models.text import CHARACTERS, SUBWORDS, TEXT, text_batch

BOTH = pytest.mark.parametrize("positions", ["learned", "rotary"])


def gpt(spec: TextSpec = CHARACTERS, **changes) -> GPT:
    task = build("gpt", spec, **{"depth": 2, "dim": 32, **changes})
    assert isinstance(task, GPT)
    return task


def unlike(task: GPT) -> GPT:
    """With weights so large that what it says depends on all that it reads."""
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.4)
    return task.double().eval()


# -------------------------------------------------------------------- the network


def test_parameters_of_gpt2():
    """124 million, as published: 12 blocks, 768 numbers a token, 1,024 tokens, 50,257 in the vocabulary."""
    spec = TextSpec(Vocabulary(tuple(map(str, range(50_257)))), 1024)
    with torch.device("meta"):
        decoder = Decoder(spec, depth=12, heads=12, dim=768, positions="learned", dropout=0.1, bias=True)
    assert sum(p.numel() for p in decoder.parameters()) == 124_439_808


def test_names_are_those_of_the_published_weights():
    names = {name for name, _ in gpt(bias=True, positions="learned", depth=1).named_parameters()}
    parts = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    expected = {f"transformer.h.0.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert names == expected | {f"transformer.{name}" for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}


def test_weights_begin_as_in_gpt2():
    task = gpt(depth=8, dim=128, bias=True, positions="learned")
    for name, parameter in task.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


@BOTH
def test_the_future_does_not_leak(positions: str):
    task, tokens = unlike(gpt(positions=positions)), text_batch().tokens
    logits = task.transformer(tokens)
    for t in (1, 7, 15):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 5) % len(CHARACTERS.vocabulary)
        other = task.transformer(changed)
        assert torch.equal(other[:, :t], logits[:, :t])
        assert (other[:, t] != logits[:, t]).any()


@BOTH
def test_the_past_matters_all_the_way(positions: str):
    task, tokens = unlike(gpt(positions=positions)), text_batch().tokens
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 5) % len(CHARACTERS.vocabulary)
    moved = (task.transformer(changed) - task.transformer(tokens)).abs().amax(-1)
    assert (moved > 1e-9).all()


@BOTH
def test_order_matters(positions: str):
    """Without positions a causal model with one block could not tell which of the tokens before came first."""
    task, tokens = unlike(gpt(positions=positions, depth=1)), text_batch().tokens
    swapped = tokens.clone()
    swapped[:, [2, 9]] = tokens[:, [9, 2]]
    assert not torch.allclose(task.transformer(swapped)[:, -1], task.transformer(tokens)[:, -1], atol=1e-6)


def test_embedding_and_output_are_one():
    task = gpt()
    hidden = torch.randn(1, 1, 32)
    seen = []
    handle = task.transformer.ln_f.register_forward_hook(lambda *_: seen.append(True) or hidden)
    logits = task.transformer(torch.tensor([[0]]))
    torch.testing.assert_close(logits, hidden @ task.transformer.wte.weight.T)
    assert seen == [True]
    handle.remove()
    answered = torch.full((1, 3), 2)
    task.step(TextBatch(torch.tensor([[0, 1, 0]]), answered)).loss.backward()
    assert task.transformer.wte.weight.grad[5:].any(), "what is not read is learned from as an answer that was wrong"


def test_loss_is_of_the_next_token():
    task, data = gpt().eval(), text_batch()
    output = task.step(data)
    log_p = output.preds.log_softmax(-1)
    expected = -sum(log_p[b, t, data.tokens[b, t + 1]] for b in range(4) for t in range(15))
    expected -= sum(log_p[b, 15, data.targets[b, 15]] for b in range(4))
    torch.testing.assert_close(output.loss, expected / 64)


# -------------------------------------------------------------------- rotary positions


def test_rotation_is_a_product_of_complex_numbers():
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    z = torch.complex(x[..., :4], x[..., 4:])
    theta = torch.tensor([10000 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
    turned = z * torch.exp(1j * torch.arange(5, 11)[:, None] * theta)
    torch.testing.assert_close(rotate(x, 5), torch.cat([turned.real, turned.imag], -1), atol=1e-5, rtol=1e-5)


def test_rotation_keeps_lengths_and_begins_with_nothing():
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(rotate(x, 100).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, 0)[:, 0], x[:, 0])
    assert rotate(x.bfloat16(), 3).dtype == torch.bfloat16


def test_products_depend_on_distance_alone():
    """(R_m q) (R_n k) = (R_{m - n} q) k"""
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    for m, n in [(0, 0), (5, 2), (40, 37), (2, 5), (100, 103)]:
        product = rotate(q[None], m)[0] @ rotate(k[None], n)[0]
        torch.testing.assert_close(product, rotate(q[None], m - n)[0] @ k, atol=1e-4, rtol=1e-4)


def test_attention_does_not_know_where_it_is():
    """Keys and queries that are seen later in a longer past, whose other tokens are hidden, weigh the same."""
    attention = RotaryAttention(16, 2).double()
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    mask = torch.arange(9) >= 4
    shifted = attention.weights(torch.cat([torch.randn(1, 4, 16, dtype=torch.float64), x], 1), mask=mask, causal=True)
    torch.testing.assert_close(shifted[:, :, 4:, 4:], attention.weights(x, causal=True), atol=1e-5, rtol=1e-5)


def test_pairs_are_needed_to_turn():
    with pytest.raises(ConfigError, match="turns pairs") as caught:
        gpt(dim=20, heads=4, positions="rotary")
    assert caught.value.key == "model.positions"
    gpt(dim=20, heads=4, positions="learned")


# -------------------------------------------------------------------- generation


@BOTH
@pytest.mark.parametrize("steps", [[1] * 16, [5, 1, 10], [15, 1]], ids=str)
def test_a_cache_changes_nothing(positions: str, steps: list[int]):
    task, tokens = unlike(gpt(positions=positions)), text_batch().tokens
    caches = [Cache() for _ in task.transformer.h]
    parts = [task.transformer(part, caches) for part in tokens.split(steps, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), task.transformer(tokens), atol=1e-5, rtol=1e-5)


def by_reading_anew(task: GPT, prompt: Tensor, count: int) -> Tensor:
    """The likeliest continuation with no cache: the whole window through the network for every token."""
    tokens, block, window = prompt, task.spec.block_size, prompt.shape[1]
    window = min(window, block)
    for _ in range(count):
        if window > block:
            window = 3 * block // 4
        tokens = torch.cat([tokens, task.transformer(tokens[:, -window:])[:, -1:].argmax(-1)], 1)
        window += 1
    return tokens


@BOTH
@pytest.mark.parametrize("length", [1, 10, 16, 40])
def test_generation_is_reading_anew(positions: str, length: int):
    """Within the block, at its limit, and beyond it many times."""
    task = unlike(gpt(positions=positions))
    prompt = torch.tensor([CHARACTERS.vocabulary.encode(TEXT[i : i + length]) for i in (0, 50)])
    written = task.generate(prompt, 60, temperature=0)
    assert torch.equal(written[:, :length], prompt)
    assert torch.equal(written, by_reading_anew(task, prompt, 60))
    assert len(written.unique()) > 3, "it says more than one thing"


def test_a_block_of_one_token():
    task = unlike(gpt(TextSpec(CHARACTERS.vocabulary, 1)))
    assert task.generate(torch.tensor([[1, 2]]), 5, temperature=1.0).shape == (1, 7)


def test_draws_follow_the_model():
    """As often as softmax(logits / temperature) says, within five deviations."""
    task, n = unlike(gpt()), 4000
    prompt = text_batch().tokens[:1, :6]
    p = (task.transformer(prompt)[0, -1] / 3).softmax(-1)
    drawn = task.generate(prompt.expand(n, -1), 1, temperature=3.0)[:, -1].bincount(minlength=len(p)) / n
    assert ((drawn - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-12).all()
    assert (drawn > 0).sum() > 3


def test_no_heat_and_one_candidate_are_the_likeliest():
    task, prompt = unlike(gpt()), text_batch().tokens[:, :6]
    likeliest = task.generate(prompt, 20, temperature=0)
    assert torch.equal(task.generate(prompt, 20, temperature=5.0, top_k=1), likeliest)
    assert torch.equal(task.generate(prompt, 20, temperature=5.0, top_p=0.0), likeliest)


P = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]])


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, 1.0, [0, 1, 2, 3, 4]),
        (1, 1.0, [1]),
        (3, 1.0, [1, 3, 4]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (None, 0.0, [1]),
        (None, 0.35, [1]),
        (None, 0.45, [1, 3]),
        (None, 0.69, [1, 3]),
        (None, 0.75, [1, 3, 4]),
        (None, 0.96, [0, 1, 2, 3, 4]),
        (2, 0.5, [1]),  # of two that remain, 0.4 and 0.3, the first has 0.57
        (2, 0.6, [1, 3]),
        (3, 0.8, [1, 3]),  # 0.7 of 0.85
    ],
)
def test_truncation_of_a_distribution(top_k: int | None, top_p: float, kept: list[int]):
    logits = truncate(P.log() + 7, top_k, top_p)
    assert logits.isfinite()[0].nonzero().flatten().tolist() == kept
    torch.testing.assert_close(logits[0, kept], (P.log() + 7)[0, kept])


def test_truncation_is_row_by_row_and_ties_are_kept_in_order():
    rows = torch.stack([P[0], P[0].flip(0)])
    assert torch.equal(
        truncate(rows.log(), 2, 1.0).isfinite(), torch.stack([torch.tensor([0, 1, 0, 1, 0]), torch.tensor([0, 1, 0, 1, 0])]).bool()
    )
    assert truncate(torch.zeros(1, 5), 2, 1.0).isfinite()[0].tolist() == [True, True, False, False, False]


def test_nothing_is_cut_by_default():
    """Not even the rarest, whose share rounding hides in a sum that is nearly one."""
    logits = torch.linspace(0, -40, 200)[None]
    assert truncate(logits, None, 1.0).isfinite().all()


# -------------------------------------------------------------------- the verb


@pytest.mark.parametrize("spec", [CHARACTERS, SUBWORDS], ids=["characters", "subwords"])
def test_predict_continues(spec: TextSpec):
    task = gpt(spec, max_tokens=30, temperature=0.0).eval()
    optimizer, data = torch.optim.Adam(task.parameters(), lr=3e-3), text_batch(spec, 6)
    for _ in range(150):
        optimizer.zero_grad()
        task.step(data).loss.backward()
        optimizer.step()
    (prediction,) = task.predict(["She sells"])
    assert prediction.input == "She sells"
    written = prediction.values["continuation"]
    assert isinstance(written, str)
    assert written.startswith(" sea")
    assert prediction.report["text"].markdown.startswith("    She sells▌ sea")


def test_every_line_of_a_sample_is_code():
    """Markdown would swallow line ends and stars."""
    task = gpt(max_tokens=50).eval()
    (prediction,) = task.predict([TEXT[20:60]])
    assert all(line.startswith("    ") or not line.strip() for line in prediction.report["text"].markdown.splitlines())


@pytest.mark.parametrize(("prompt", "words"), [("", "empty"), ("She ✓", "'✓'")])
def test_prompts_that_cannot_be_read(prompt: str, words: str):
    with pytest.raises(UsageError, match=words) as caught:
        list(gpt().predict([prompt]))
    assert caught.value.cure


def test_one_seed_one_sample():
    task, prompt = gpt().eval(), text_batch().tokens[:1, :4]
    torch.manual_seed(1)
    one, other = (task.generate(prompt, 30, temperature=1.0) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(task.generate(prompt, 30, temperature=1.0), one)
    assert not torch.equal(one, other)


def test_loss_matches_torch_in_a_block_of_subwords():
    task, data = gpt(SUBWORDS).eval(), text_batch(SUBWORDS)
    output = task.step(data)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.preds.mT, data.targets))
