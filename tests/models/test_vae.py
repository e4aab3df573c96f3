"""A variational autoencoder: its bounds against what can be computed otherwise, and what is done with latents."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli, Normal, kl_divergence

from refresher_runner.errors import ConfigError, DataError, UsageError
from refresher_runner.models.vae import VAE, kl_to_prior, log_normal
from refresher_runner.report import Embedding, Images, Matrix
from refresher_runner.spec import ImageSpec
from tests.models.build import COLOUR, DIGITS, batch, build

SMALL = {"width": 8, "multipliers": [1, 2], "latents": 3, "samples": 6, "judged": 0, "frames": 5}


def vae(spec: ImageSpec = DIGITS, **changes) -> VAE:
    task = build("vae", spec, **{**SMALL, **changes})
    assert isinstance(task, VAE)
    return task


class Line(torch.nn.Module):
    """A decoder x = z W + b of known answer: p(x) is a Gaussian."""

    def __init__(self, latents: int, pixels: int):
        super().__init__()
        self.w, self.b = torch.randn(latents, pixels) / 3, torch.randn(pixels) / 3

    def forward(self, z):
        return (z @ self.w + self.b).view(-1, 1, 2, 2)


class Posterior(torch.nn.Module):
    """The encoder that is right about a decoder whose latents each reach a pixel of their own."""

    def __init__(self, line: Line, places: list[int], scale: torch.Tensor, variance: torch.Tensor):
        super().__init__()
        self.line, self.places, self.scale, self.variance = line, places, scale, variance

    def forward(self, shown):
        x = (shown + 1) / 2
        share = 1 / (1 + self.scale**2 / self.variance)
        return share * self.scale / self.variance * (x.flatten(1) - self.line.b)[:, self.places], share.log().expand(len(x), -1)


class Says(torch.nn.Module):
    """An encoder that says the same of every picture."""

    def __init__(self, mu, logvar):
        super().__init__()
        self.mu, self.logvar = mu, logvar

    def forward(self, x):
        return self.mu.expand(len(x), -1), self.logvar.expand(len(x), -1)


def test_kl_is_torchs():
    mu, logvar = torch.randn(20, 6), torch.randn(20, 6)
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_prior(mu, logvar), expected)
    assert kl_to_prior(torch.zeros(1), torch.zeros(1)) == 0


def test_log_normal_is_torchs():
    x, mu, logvar = torch.randn(3, 4, 20)
    expected = Normal(mu, (logvar / 2).exp()).log_prob(x).sum(1)
    torch.testing.assert_close(log_normal(x, mu, logvar), expected)
    torch.testing.assert_close(log_normal(x, 0.0, 0.0), Normal(0.0, 1.0).log_prob(x).sum(1))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_log_p_is_torchs(likelihood):
    task, x, said = vae(likelihood=likelihood), torch.rand(5, 1, 8, 8).round(), torch.randn(5, 1, 8, 8)
    p = Bernoulli(logits=said) if task.log_sigma is None else Normal(said, task.log_sigma.detach().exp())
    torch.testing.assert_close(task.log_p(x, said).detach(), p.log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_loss_is_reconstruction_and_beta_kl(beta):
    output = vae(beta=beta).step(batch())
    torch.testing.assert_close(output.loss.detach(), output.parts["reconstruction"] + beta * output.parts["kl"])


def test_z_has_the_moments_that_the_encoder_says_and_passes_gradients():
    task, mu, logvar = vae(), torch.tensor([[0.3, -1.0, 2.0]]).requires_grad_(), torch.tensor([[0.0, -2.0, 1.0]]).requires_grad_()
    z = task.reparameterise(mu.expand(200_000, -1), logvar.expand(200_000, -1))
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0, rtol=0.02)
    z.sum().backward()
    assert mu.grad is not None and mu.grad.abs().min() > 0


def linear(k_spread: float = 1.0) -> tuple[VAE, torch.Tensor, torch.Tensor]:
    """A Gaussian decoder in 4 pixels: the task, a picture, and log p(x) in closed form; the encoder says N(0, k_spread^2)."""
    spec = ImageSpec(1, 2, ("a", "b"), (0.0,), (1.0,))
    task = vae(spec, likelihood="gaussian", latents=2, multipliers=[1])
    line, x = Line(2, 4), torch.rand(3, 1, 2, 2)
    task.decoder = line  # type: ignore[assignment]
    task.encoder = Says(torch.zeros(1, 2), torch.full((1, 2), 2 * math.log(k_spread)))  # type: ignore[assignment]
    assert task.log_sigma is not None
    covariance = line.w.T @ line.w + task.log_sigma.detach().exp() ** 2 * torch.eye(4)
    truth = torch.distributions.MultivariateNormal(line.b, covariance).log_prob(x.flatten(1))
    return task, x, truth


def test_the_importance_bound_rises_to_the_likelihood():
    task, x, truth = linear()
    bounds = [torch.stack([task.importance_bound(x, k) for _ in range(400)]).mean(0) for k in (1, 4, 16)]
    assert (bounds[0] < bounds[1]).all() and (bounds[1] < bounds[2]).all() and (bounds[2] < truth + 0.05).all()
    torch.testing.assert_close(task.importance_bound(x, 20_000), truth, atol=0.1, rtol=0)


def test_with_the_true_posterior_every_bound_is_the_likelihood():
    task, x, _ = linear()
    line = task.decoder
    assert isinstance(line, Line) and task.log_sigma is not None
    line.w = torch.tensor([[0.8, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0]])
    variance = task.log_sigma.detach().exp() ** 2
    task.encoder = Posterior(line, [0, 2], torch.tensor([0.8, 0.5]), variance)  # type: ignore[assignment]
    covariance = line.w.T @ line.w + variance * torch.eye(4)
    truth = torch.distributions.MultivariateNormal(line.b, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(task.importance_bound(x, 1), truth, atol=1e-3, rtol=0)
    mu, logvar = task.encode(x)
    elbo = torch.stack([task.log_p(x, line(task.reparameterise(mu, logvar))) for _ in range(4000)]).mean(0) - kl_to_prior(mu, logvar).sum(1)
    torch.testing.assert_close(elbo.detach(), truth, atol=0.1, rtol=0)


def test_truncated_draws_are_truncated():
    task = vae()
    seen = []
    task.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.sample(20_000, 1.5)
    task.sample(20_000)
    assert seen[0].abs().max() <= 1.5
    grid = torch.linspace(-1.4, 1.4, 9)
    normal = Normal(0.0, 1.0)
    low = normal.cdf(torch.tensor(-1.5))
    for edge in grid:
        expected = (normal.cdf(edge) - low) / (1 - 2 * low)
        assert (seen[0] < edge).double().mean().item() == pytest.approx(expected.item(), abs=0.01)
    assert seen[1].abs().max() > 3


def test_operations_on_latents():
    task = vae().eval()
    a, b = torch.randn(2, 3)
    way = task.interpolate(a, b, 5)
    torch.testing.assert_close(way[0], task.decode(a[None])[0].detach())
    torch.testing.assert_close(way[4], task.decode(b[None])[0].detach())
    torch.testing.assert_close(way[2], task.decode((a + b)[None] / 2)[0].detach())
    m = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(task.modulate(a[None], m), task.decode(a[None] * m).detach())
    torch.testing.assert_close(task.modulate(a[None], torch.ones(3)), task.decode(a[None]).detach())
    walk = task.traverse(a, 1, 7)
    torch.testing.assert_close(walk[3], task.decode(torch.stack([a[0], torch.tensor(0.0), a[2]])[None])[0].detach())


@pytest.mark.parametrize("spec", [DIGITS, COLOUR, ImageSpec(1, 7, ("a", "b"), (0.2,), (0.3,))], ids=["8x8", "3x32x32", "7x7"])
@pytest.mark.parametrize("multipliers", [[1], [1, 2], [1, 1, 2]])
def test_pictures_of_any_size_come_back(spec, multipliers):
    task = vae(spec, multipliers=multipliers)
    mu, logvar = task.encode(spec.pixels(batch(spec).images))
    assert mu.shape == logvar.shape == (16, 3)
    decoded = task.decode(mu)
    assert decoded.shape == (16, spec.channels, spec.size, spec.size)
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_who_denoises_sees_noise_and_is_asked_for_the_clean():
    task, x = vae(noise=0.5), torch.full((400, 1, 8, 8), 0.5)
    assert (task.noisy(x) - x).std().item() == pytest.approx(0.5, rel=0.05)
    assert vae().noisy(x) is x
    task.encoder = Says(torch.zeros(1, 3), torch.zeros(1, 3))  # type: ignore[assignment]
    clean = batch(size=8)
    torch.manual_seed(0)
    output = task.step(clean)
    torch.manual_seed(0)
    task.noisy(task.spec.pixels(clean.images))
    z = task.reparameterise(torch.zeros(8, 3), torch.zeros(8, 3))
    expected = -task.log_p(DIGITS.pixels(clean.images), task.decoder(z)).mean()
    torch.testing.assert_close(output.loss, expected)


class Reader:
    name = "a test"

    def __call__(self, images):
        return images.flatten(1)[:, :4], images.flatten(1)[:, :10]


def test_what_is_seen():
    task = vae(judged=20).eval()
    task.judge = Reader()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    with torch.no_grad():
        report = task.observe(batch())
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    latents, matrix = report["latents"], report["confusion_matrix"]
    assert isinstance(latents, Embedding) and isinstance(matrix, Matrix)
    assert latents.vectors.shape == (16, 3)
    assert latents.labels == tuple("0123456789012345")
    assert latents.images is not None and latents.images.shape == (16, 1, 8, 8)
    assert matrix.values.sum() == 16
    assert {"judge_frechet_distance", "recognised_as_original", "active_units"} <= report.keys()
    for tag in ("reconstructions", "samples", "traversal", "interpolation"):
        shown = report[tag]
        assert isinstance(shown, Images)
        assert 0 <= shown.pixels.min() <= shown.pixels.max() <= 1


def test_the_bound_of_an_evaluation_is_that_of_every_picture():
    task = vae(importance_samples=3).eval()
    metric = task.metrics()["importance_bound"]
    seen = []
    for size in (16, 5):
        output = task.step(batch(size=size))
        metric.update(output.preds, output.targets)
        seen.append(output.preds)
    assert metric.compute() == pytest.approx(torch.cat(seen).double().mean().item())  # type: ignore[union-attr]
    assert vae(importance_samples=0).metrics() == {}


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for number in range(3):
        Image.effect_noise((8, 8), 60).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(3)]


@pytest.mark.parametrize(("operation", "count"), [("reconstruct", 3), ("modulate", 3), ("traverse", 3), ("interpolate", 2)])
def test_predict(operation, count, pictures):
    task = vae(operation=operation, modulation=[0.5, 1.0, 2.0]).eval()
    with torch.no_grad():
        told = list(task.predict(pictures))
    assert len(told) == count
    for prediction in told:
        [shown] = prediction.report.values()
        assert isinstance(shown, Images)
        assert len(shown.pixels) == {"reconstruct": 2, "modulate": 3, "traverse": 3, "interpolate": 5}[operation]


def test_predict_draws_so_many(pictures):
    task = vae().eval()
    with torch.no_grad():
        drawn, rebuilt = task.predict(["7", pictures[0]])
    shown = drawn.report["samples"]
    assert isinstance(shown, Images)
    assert len(shown.pixels) == 7
    assert {"bound", "kl"} <= rebuilt.values.keys()
    with pytest.raises(DataError, match="no such file"):
        list(task.predict(["nothing.png"]))
    with pytest.raises(UsageError, match="one picture"):
        list(vae(operation="interpolate").eval().predict(pictures[:1]))


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"width": 12}, "model.width"), ({"multipliers": []}, "model.multipliers"), ({"modulation": [1.0, 2.0]}, "model.modulation")],
)
def test_what_does_not_fit_is_refused(changes, key):
    with pytest.raises(ConfigError) as caught:
        vae(**changes)
    assert caught.value.key == key


def test_it_learns_one_batch():
    task, data = vae(beta=0.1, latents=8), batch()
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    first = task.step(data).loss.item()
    for _ in range(120):
        optimizer.zero_grad()
        task.step(data).loss.backward()
        optimizer.step()
    assert task.step(data).loss.item() < first - 2


def test_bf16_is_near():
    task, data = vae().eval(), batch()
    torch.manual_seed(0)
    exact = task.step(data).loss
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(data)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact, rtol=0.03, atol=0)
