"""Latent diffusion: phases that follow one another exactly, a frozen autoencoder, and what drawing does at its ends."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refresher_runner.compose import compose
from refresher_runner.errors import CheckpointError, ConfigError, DataError, UsageError
from refresher_runner.models.latent_diffusion.task import LatentDiffusion
from refresher_runner.report import Embedding, Images, Matrix
from refresher_runner.restore import borrow
from refresher_runner.spec import CaptionBatch, CaptionSpec
from refresher_runner.vocabulary import PAD, SPECIAL, Vocabulary
from tests.inside import trained
from tests.models.build import build

SPEC = CaptionSpec(3, 16, ("a", "b"), (0.3,) * 3, (0.4,) * 3, Vocabulary((*SPECIAL, *"abcd ")), 8, aspects=(("colour", ("x", "y")),))
SMALL = {
    "autoencoder_steps": 2,
    "autoencoder_width": 8,
    "autoencoder_multipliers": [1, 1],
    "latents": 2,
    "dim": 16,
    "text_depth": 1,
    "width": 8,
    "multipliers": [1, 2],
    "attention": [1],
    "heads": 2,
    "steps": 4,
    "samples": 3,
    "judged": 6,
    "n": 3,
    "frames": 4,
}


def latent(**changes) -> LatentDiffusion:
    task = build("latent_diffusion", SPEC, **{**SMALL, **changes})
    assert isinstance(task, LatentDiffusion)
    return task


def batch(size: int = 8) -> CaptionBatch:
    captions = SPEC.encode([("a b", "c", "d d a")[i % 3] for i in range(size)])
    pixels, truth = torch.rand(size, 3, 16, 16), torch.arange(size)[:, None] % 2
    return CaptionBatch(SPEC.normalise(pixels), truth[:, 0], captions, truth, truth[:, 0])


def woken(task: LatentDiffusion) -> LatentDiffusion:
    """One that has begun with diffusion, and whose U-Net does not say nothing."""
    task.batches.fill_(task.autoencoder_steps)
    task.train().step(batch())
    for module in task.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    return task.eval()


# -------------------------------------------------------------------- phases


def training(task: LatentDiffusion, begin: int, end: int, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, torch.Tensor]]:
    """Steps begin .. end - 1, each on batches and draws of its own; what each gives as parts."""
    for step in range(begin, end):
        torch.manual_seed(step)
        output = task.train().step(batch())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        yield dict(output.parts)


def adamw(task: LatentDiffusion) -> torch.optim.Optimizer:
    return torch.optim.AdamW(task.param_groups(0.1), lr=1e-3)


def test_first_the_autoencoder_learns_then_everything_else():
    task = latent()
    optimizer, parts, moved = adamw(task), [], []
    before = copy.deepcopy(task.state_dict())
    for said in training(task, 0, 4, optimizer):
        after = copy.deepcopy(task.state_dict())
        moved.append(
            {name.partition(".")[0] for name, value in after.items() if value.is_floating_point() and not torch.equal(value, before[name])}
        )
        parts.append(set(said))
        before = after
    assert parts == [{"reconstruction", "kl"}] * 2 + [{"denoising"}] * 2
    assert moved == [{"autoencoder"}] * 2 + [{"text", "network", "scale"}, {"text", "network"}]


def test_no_gradient_reaches_the_frozen_autoencoder():
    task = latent(autoencoder_steps=0)
    task.step(batch()).loss.backward()
    assert all(parameter.grad is None for parameter in task.autoencoder.parameters())
    assert all(parameter.grad is not None for name, parameter in task.network.named_parameters())
    assert task.text.token.weight.grad is not None


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumed_run_changes_phase_where_it_would_have(at):
    """Stopped before, at and after the switch, and gone on with from its state: bit for bit what it would have been."""
    torch.manual_seed(5)
    whole = latent()
    first = copy.deepcopy(whole)
    list(training(whole, 0, 5, adamw(whole)))
    optimizer = adamw(first)
    list(training(first, 0, at, optimizer))
    second = latent()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    again = adamw(second)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    list(training(second, at, 5, again))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    assert whole.scale > 0


def test_the_learning_rate_begins_anew_with_diffusion():
    config, _ = compose(["model=latent_diffusion"])
    assert config["optimizer"]["restarts"] == [config["model"]["autoencoder_steps"]]


def test_weights_of_an_earlier_phase_bring_it_back():
    task = latent()
    early = copy.deepcopy(task.state_dict())
    list(training(task, 0, 4, adamw(task)))
    assert not task.codes()
    task.load_state_dict(early)
    assert task.codes()
    assert not task.is_measured()


def test_the_scale_makes_unit_variance_and_stays():
    task = latent(autoencoder_steps=0)
    data = batch()
    task.train().step(data)
    x = SPEC.pixels(data.images)
    assert task.latents(x).std().item() == pytest.approx(1, rel=1e-5)
    mu, _ = task.autoencoder.encode(x)
    torch.testing.assert_close(task.scale, 1 / mu.detach().std())
    measured = task.scale.clone()
    task.train().step(batch(3))
    assert torch.equal(task.scale, measured)
    torch.testing.assert_close(task.pixels(task.latents(x)), task.autoencoder.decode(mu).detach(), atol=1e-5, rtol=1e-5)


def test_a_scale_that_came_with_other_weights_is_measured_anew_after_an_autoencoder_phase():
    task = latent()
    task.scale.fill_(7.0)
    list(training(task, 0, 3, adamw(task)))
    mu, _ = task.autoencoder.encode(SPEC.pixels(batch().images))
    assert task.scale.item() == pytest.approx(1 / mu.std().item(), rel=0.2)


def test_evaluations_tell_of_both_phases_and_change_nothing():
    task, data = latent().eval(), batch()
    before = copy.deepcopy(task.state_dict())
    coding = task.step(data)
    task.batches.fill_(2)
    diffusing = task.step(data)
    task.batches.fill_(0)
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in before.items())
    for output in (coding, diffusing):
        assert set(output.parts) == {"reconstruction", "kl", "denoising"}
        torch.testing.assert_close(output.preds.mean(), output.parts["denoising"])
    torch.testing.assert_close(coding.loss, coding.parts["reconstruction"] + task.beta * coding.parts["kl"])
    torch.testing.assert_close(diffusing.loss, diffusing.parts["denoising"])
    assert coding.parts["denoising"].item() == pytest.approx(1, abs=0.3)  # of who has learnt nothing, of latents of unit variance
    assert task.goal.metric == "denoising"


def test_captions_are_withheld_in_training_alone():
    task, y = latent(caption_dropout=0.25), SPEC.encode(["a b c"]).expand(4000, -1)
    told = task.train().told(y)
    nothing = (told == SPEC.encode([""])).all(1)
    assert nothing.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(told[~nothing], y[: int((~nothing).sum())])
    assert task.eval().told(y) is y
    assert (SPEC.encode([""]) != PAD).sum() == 2


# -------------------------------------------------------------------- drawing


def drawn(task: LatentDiffusion, y: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    torch.manual_seed(3)
    return task.sample(y, *args, **kwargs)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "sde", "ode", "dpm"])
def test_strength_0_leaves_a_picture_and_strength_1_forgets_it(sampler):
    task, data = woken(latent(sampler=sampler, num_timesteps=20)), batch(2)
    z = task.latents(SPEC.pixels(data.images))
    assert torch.equal(drawn(task, data.captions, z, strength=0.0), z)
    from_noise = drawn(task, data.captions)
    assert torch.equal(drawn(task, data.captions, z, strength=1.0), from_noise)
    between = drawn(task, data.captions, z, strength=0.5)
    assert not torch.allclose(between, z, atol=1e-2)
    assert not torch.allclose(between, from_noise, atol=1e-2)
    assert between.shape == z.shape == (2, 2, 8, 8)


def test_guidance_0_hears_no_words_and_1_is_what_was_learnt():
    y, other = SPEC.encode(["a b", "c"]), SPEC.encode(["d", "a a a"])
    task = woken(latent(guidance=0.0, sampler="ddim", steps=2))
    weights = task.state_dict()
    assert torch.equal(drawn(task, y), drawn(task, other))
    nothing = drawn(task, SPEC.encode(["", ""]))
    torch.testing.assert_close(drawn(task, y), nothing)
    plain = latent(guidance=1.0, sampler="ddim", steps=2).eval()
    near = latent(guidance=1 + 1e-6, sampler="ddim", steps=2).eval()
    plain.load_state_dict(weights)
    near.load_state_dict(weights)
    assert not torch.allclose(drawn(plain, y), nothing, atol=1e-3)
    torch.testing.assert_close(drawn(plain, y), drawn(near, y), atol=1e-3, rtol=1e-3)
    assert torch.equal(drawn(plain, y), drawn(plain, y))


def test_truncated_noise_is_truncated():
    assert latent(truncation=0.5).eval().noise(200).abs().max() <= 0.5
    assert latent().eval().noise(200).abs().max() > 2


def test_what_is_seen():
    task, data = woken(latent()), batch()
    task.reader = lambda pixels, asked: asked.where(torch.arange(len(asked))[:, None] > 0, -1)
    task.judge, task.scorer = Judging(), Scoring()
    before = copy.deepcopy(task.state_dict())
    with torch.no_grad():
        report = task.observe(data)
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in before.items())
    samples, matrix = report["samples"], report["read_colour"]
    assert isinstance(samples, Images) and isinstance(matrix, Matrix)
    assert samples.captions == ("a b", "c", "d d a")
    assert samples.pixels.shape == (3, 3, 16, 16)
    assert report["as_asked/caption"] == pytest.approx(5 / 6)
    assert matrix.values.tolist() == [[2, 0, 1], [0, 3, 0]]
    assert "judge_frechet_distance" in report
    assert report["clip_score"] == report["clip_score_of_real"] == pytest.approx(2.5 * 0.6)
    assert "samples" not in latent().eval().observe(data)  # before there is anything to draw by


class Judging:
    name = "a test"

    def __call__(self, images):
        return images.flatten(1)[:, :4], images.flatten(1)[:, :2]


class Scoring:
    """Pictures and captions at an angle whose cosine is 0.6."""

    def encode_image(self, images):
        return torch.tensor([[1.0, 0.0]]).expand(len(images), -1)

    def encode_text(self, captions):
        return torch.tensor([[0.6, 0.8]]).expand(len(captions), -1)


# -------------------------------------------------------------------- predicting


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for number in range(2):
        Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(2)]


def predicted(task: LatentDiffusion, *inputs: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures and codes of each prediction."""
    found = []
    torch.manual_seed(0)
    with torch.no_grad():
        for prediction in task.predict(inputs):
            shown, codes = prediction.report["pictures"], prediction.report["codes"]
            assert isinstance(shown, Images) and isinstance(codes, Embedding)
            found.append((shown.pixels, codes.vectors))
    return found


def test_words_pictures_and_codes_are_drawn_from(pictures, tmp_path):
    task = woken(latent(strength=0.0))
    (words, codes), (rebuilt, _) = predicted(task, "a b", pictures[0])
    assert words.shape == (3, 3, 16, 16)
    assert rebuilt.shape == (4, 3, 16, 16)  # what it comes from first
    torch.testing.assert_close(rebuilt[0].expand(3, -1, -1, -1), rebuilt[1:], atol=1e-5, rtol=1e-5)
    np.save(tmp_path / "codes.npy", codes.numpy())
    again = predicted(task, str(tmp_path / "codes.npy"))
    assert len(again) == 3
    torch.testing.assert_close(torch.stack([shown[-1] for shown, _ in again]), words, atol=1e-5, rtol=1e-5)


def test_an_interpolation_begins_and_ends_at_what_would_be_drawn(pictures):
    task = woken(latent(operation="interpolate"))
    [(_, way)] = predicted(task, "a b", "c d")  # as many tokens
    torch.manual_seed(0)
    noise = task.noise(1)
    for end, text in ((0, "a b"), (-1, "c d")):
        *_, z = task.path(task.context(SPEC.encode([text])), noise)
        torch.testing.assert_close(way[end], z[0].flatten().detach(), atol=1e-4, rtol=1e-4)
    [(between, _)] = predicted(woken(latent(operation="interpolate", strength=0.0)), *pictures)
    assert len(between) == 4
    with pytest.raises(UsageError, match="two are interpolated"):
        predicted(task, "a b")


def test_modulation_multiplies_what_was_drawn():
    plain, task = woken(latent(operation="modulate", modulation=[1.0])), latent(operation="modulate", modulation=[0.0, 2.0]).eval()
    task.load_state_dict(plain.state_dict())
    (once, z), (_, changed) = predicted(plain, "a")[0], predicted(task, "a")[0]
    assert torch.equal(once[:3], once[3:])
    torch.testing.assert_close(changed, (z.view(3, 2, 64) * torch.tensor([0.0, 2.0])[:, None]).flatten(1))


def test_what_cannot_be_begun_from_is_refused(tmp_path):
    task = woken(latent())
    np.save(tmp_path / "codes.npy", np.zeros((2, 5), np.float32))
    for name in ("codes.npy", "none.npy"):
        with pytest.raises(UsageError, match="holds no codes"):
            predicted(task, str(tmp_path / name))
    with pytest.raises(DataError, match="no such file"):
        predicted(task, str(tmp_path / "none.png"))


# -------------------------------------------------------------------- the whole


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"autoencoder_width": 12}, "model.autoencoder_width"),
        ({"autoencoder_multipliers": []}, "model.autoencoder_multipliers"),
        ({"text_heads": 3}, "model.text_heads"),
        ({"multipliers": [1, 1, 1, 1, 1]}, "model.multipliers"),
        ({"modulation": [1.0, 2.0, 3.0]}, "model.modulation"),
    ],
)
def test_what_does_not_fit_is_refused(changes, key):
    with pytest.raises(ConfigError) as caught:
        latent(**changes)
    assert caught.value.key == key
    assert caught.value.cure


def test_bf16_is_near():
    task, data = latent(autoencoder_steps=0).eval(), batch()
    torch.manual_seed(0)
    exact = task.step(data)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(data)
    assert output.preds.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact.loss, rtol=0.02, atol=0.02)


def test_it_learns_to_draw_what_two_captions_say():
    """Of two flat pictures, one a caption, that of the caption is drawn."""
    grey = torch.tensor([0.1, 0.9])
    y, x = SPEC.encode(["a", "b"]), grey.view(2, 1, 1, 1).expand(2, 3, 16, 16)
    data = CaptionBatch(
        SPEC.normalise(x).repeat(8, 1, 1, 1), torch.zeros(16).long(), y.repeat(8, 1), torch.zeros(16, 1).long(), torch.zeros(16)
    )
    task = latent(autoencoder_steps=50, multipliers=[1], width=16, steps=8, guidance=1.0)
    optimizer = torch.optim.Adam(task.parameters(), lr=4e-3)
    for _ in range(150):
        optimizer.zero_grad()
        task.train().step(data).loss.backward()
        optimizer.step()
    found = task.eval().pixels(task.sample(y))
    dark, bright = found.mean((1, 2, 3)).tolist()
    assert dark < 0.45 < 0.55 < bright


@pytest.mark.usefixtures("as_it_was")
def test_it_begins_with_the_autoencoder_of_a_vae_and_keeps_the_words_of_a_clip():
    few = ["data=captioned_shapes", "data.train_count=16", "data.val_count=8", "data.test_count=8", "data.batch_size=8", "judge=null"]
    short = [*few, "trainer=smoke", "trainer.duration=1 steps", "trainer.threads=1", "trainer.loggers=[]", "trainer.test=false"]
    sizes = ["model.latents=2", "model.width=8", "model.multipliers=[1,1]"]
    vae = trained("model=vae", "model.maps=true", "model.likelihood=gaussian", *sizes, *short)
    learnt = torch.load(vae.checkpoints / "best.pt", weights_only=True)
    clip = trained("model=clip", "model.width=8", "model.text_width=16", "model.text_depth=1", "model.joint_dim=8", *short)
    words = torch.load(clip.checkpoints / "best.pt", weights_only=True)
    small = [f"model.{key}={value}".replace(" ", "") for key, value in SMALL.items()]
    named = [f"model.autoencoder={vae}", f"model.text={clip}", "model.autoencoder_steps=0", "optimizer.restarts=[]"]
    run = trained("model=latent_diffusion", *small, *named, *short)
    saved = torch.load(run.checkpoints / "last.pt", weights_only=True)["task"]
    theirs = {**learnt["task"], **(learnt.get("ema") or {})}
    assert all(torch.equal(value, saved[f"autoencoder.{name}"]) for name, value in theirs.items())
    heard = {**words["task"], **(words.get("ema") or {})}
    heard = {name: value for name, value in heard.items() if name.startswith("text.") and value.is_floating_point()}
    assert heard
    assert all(torch.equal(value, saved[name]) for name, value in heard.items())
    assert saved["scale"] > 0
    record = run.read_record()["borrowed"]["model.autoencoder"]
    assert (record["run"], record["path"]) == (learnt["run"], str((vae.checkpoints / "best.pt").resolve()))
    flat = latent(autoencoder=str(vae), latents=3)
    with pytest.raises(CheckpointError, match="in the checkpoint and"):
        borrow(flat, SPEC)
