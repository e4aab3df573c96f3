"""DDPM: what it learns from, what it draws, and what guidance is."""

from __future__ import annotations

import itertools

import pytest
import torch

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.models.ddpm import DDPM
from refresher_runner.nn.samplers import last
from refresher_runner.report import Curve, Images, Matrix
from refresher_runner.spec import ImageBatch, ImageSpec
from tests.models.build import COLOUR, DIGITS, batch, build

SMALL = {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [2], "samples": 12, "steps": 3, "judged": 0}


def ddpm(spec: ImageSpec = DIGITS, **changes) -> DDPM:
    """A small one whose answer is not nothing."""
    task = build("ddpm", spec, **{**SMALL, **changes})
    assert isinstance(task, DDPM)
    for parameter in task.network.parameters():
        if parameter.ndim > 1 and parameter.std() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.2)
    return task


class Oracle(torch.nn.Module):
    """Knows x_0, and says what is asked for."""

    def __init__(self, task: DDPM, x0: torch.Tensor):
        super().__init__()
        self.task, self.x0 = (task.process, task.target), x0

    def forward(self, x, t, labels=None):
        process, kind = self.task
        alpha, sigma = process.rates(t, 4)
        return process.target(kind, self.x0, (x - alpha * self.x0) / sigma, t)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_who_knows_x0_has_no_loss_and_draws_it(target):
    task, data = ddpm(target=target, conditional=False, steps=10).eval(), batch(size=8)
    x0 = task.scaled(data.images)
    task.network = Oracle(task, x0)  # type: ignore[assignment]
    assert task.step(data).loss < 1e-5
    drawn = task.sample(None, 8)
    torch.testing.assert_close(drawn, DIGITS.pixels(data.images), atol=1e-3, rtol=0)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_loss_of_who_says_nothing_is_the_size_of_the_target(target):
    """E eps^2 = 1; E x0^2; alpha^2 + sigma^2 E x0^2, averaged over t."""
    task, data = ddpm(target=target).eval(), batch(size=4096)
    for parameter in task.network.head.parameters():
        torch.nn.init.zeros_(parameter)
    power = (task.scaled(data.images) ** 2).mean()
    alpha, sigma = task.process.rates(torch.arange(task.process.num_timesteps), 1)
    expected = {"eps": torch.tensor(1.0), "x0": power, "v": (alpha**2 + sigma**2 * power).mean()}[target]
    torch.testing.assert_close(task.step(data).loss, expected, rtol=0.02, atol=0)


def test_classes_are_withheld_in_training_alone():
    task, labels = ddpm(label_dropout=0.25), torch.randint(10, (10_000,))
    told = task.told(labels)
    assert told is not None
    assert ((told == 10).double().mean() - 0.25).abs() < 0.02
    assert ((told == labels) | (told == 10)).all()
    assert task.eval().told(labels) is labels
    assert ddpm(conditional=False).told(labels) is None


def test_guidance_0_asks_for_nothing_1_for_the_class_and_2_goes_beyond():
    task, x, t, labels = ddpm(clip=False).eval(), torch.randn(6, 1, 8, 8), torch.full((6,), 300.0), torch.arange(6)
    eps = {w: task.denoiser(labels, w, clip=False)(x, t).eps for w in (0.0, 0.5, 1.0, 2.0)}
    nothing, told = task.denoiser(None, 1.0, clip=False)(x, t).eps, eps[1.0]
    said = task.process.denoised("v", task.network(x, t, labels), x, t).eps
    torch.testing.assert_close(told, said)
    torch.testing.assert_close(eps[0.0], nothing)
    assert not torch.allclose(told, nothing, atol=1e-3)
    torch.testing.assert_close(eps[0.5], (told + nothing) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(eps[2.0], 2 * told - nothing, atol=1e-4, rtol=1e-4)  # eq. 6 with w = 1


def test_a_mean_over_the_two_forward_passes_is_one_of_both():
    """guidance 1 looks once, any other twice as wide; the limits agree."""
    task, x, t, labels = ddpm().eval(), torch.randn(4, 1, 8, 8), torch.full((4,), 500.0), torch.arange(4)
    near = task.denoiser(labels, 1 + 1e-6, clip=True)(x, t)
    torch.testing.assert_close(near.x0, task.denoiser(labels, 1.0, clip=True)(x, t).x0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("sampler", "conditional", "target"),
    [*itertools.product(["ancestral", "ddim", "sde", "ode", "dpm"], [True, False], ["v"]), ("dpm", True, "eps"), ("ddim", True, "x0")],
)
def test_every_way_draws_pixels(sampler, conditional, target):
    task = ddpm(COLOUR, sampler=sampler, conditional=conditional, target=target, num_timesteps=20).eval()
    labels = torch.arange(3) if conditional else None
    drawn = task.sample(labels, 3)
    assert drawn.shape == (3, 3, 32, 32)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    torch.manual_seed(1)
    once = task.sample(labels, 3)
    torch.manual_seed(1)
    assert torch.equal(task.sample(labels, 3), once)


def test_a_path_ends_at_what_is_drawn():
    task = ddpm(steps=7).eval()
    torch.manual_seed(2)
    steps = list(task.path(torch.arange(2), 2))
    torch.manual_seed(2)
    assert torch.equal((steps[-1].clamp(-1, 1) + 1) / 2, task.sample(torch.arange(2), 2))
    assert len(steps) == 7
    assert torch.equal(last(iter(steps)), steps[-1])


@pytest.mark.parametrize("conditional", [True, False])
def test_what_is_seen(conditional):
    task = ddpm(conditional=conditional, likelihoods=2).eval()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    with torch.no_grad():
        report = task.observe(batch())
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    samples, path, schedule = report["samples"], report["path"], report["schedule"]
    assert isinstance(samples, Images) and isinstance(path, Images) and isinstance(schedule, Curve)
    assert samples.pixels.shape == (12, 1, 8, 8)
    assert samples.captions == (tuple("012345678901") if conditional else ())
    assert len(path.pixels) == len(path.captions) == 3
    alpha, sigma, _ = schedule.lines.values()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))
    assert isinstance(report["bits_per_dim"], float)


class Knowing:
    """A judge that recognises a picture by its mean brightness."""

    name = "a test"

    def __call__(self, images):
        bright = images.flatten(1).mean(1)
        return images.flatten(1)[:, :5], -(bright[:, None] - torch.linspace(-0.7, 1.5, 10)).abs()


def test_a_judge_is_heard():
    task = ddpm(judged=20).eval()
    assert "judge_frechet_distance" not in task.observe(batch())
    task.judge = Knowing()
    report = task.observe(batch())
    matrix = report["confusion_matrix"]
    assert isinstance(matrix, Matrix)
    assert (matrix.row_title, matrix.column_title) == ("asked", "recognised")
    assert matrix.values.sum(1).tolist() == [2] * 10
    assert report["recognised_as_asked"] == matrix.values.trace().item() / 20
    assert "judge" not in task.state_dict()


def test_bits_per_dim_of_noise_are_those_of_its_density():
    """A network that says v = -x0 for x0 = 0 knows nothing: data are taken for N(0, 1) as it stands at t = 0."""
    task = ddpm(conditional=False).eval()

    class White(torch.nn.Module):
        def forward(self, x, t, labels=None):
            return torch.zeros_like(x)  # v = 0: along the angle nothing moves, so p is N(0, I)

    task.network = White()  # type: ignore[assignment]
    data = batch(size=64)
    found = task.bits_per_dim(data.images, None, 10).mean()
    levels = (DIGITS.pixels(data.images) * 255).round()
    x = (levels + 0.5) / 128 - 1
    density = torch.distributions.Normal(0.0, 1.0).log_prob(x).mean() / torch.tensor(2.0).log()
    torch.testing.assert_close(found, 7 - density, atol=1e-2, rtol=0)


def test_predict_draws_what_is_named():
    task = ddpm().eval()
    told = list(task.predict(["3", "any"]))
    assert [p.input for p in told] == ["3", "any"]
    for p in told:
        shown = p.report["samples"]
        assert isinstance(shown, Images)
        assert shown.pixels.shape == (12, 1, 8, 8)
    with pytest.raises(UsageError, match="no class"):
        list(task.predict(["3", "cat"]))
    with pytest.raises(UsageError, match="any"):
        raise next(_refused(ddpm(conditional=False)))


def _refused(task: DDPM):
    try:
        list(task.predict(["3"]))
    except UsageError as error:
        yield UsageError(error.cure)


def test_losses_by_quarter_average_to_the_loss():
    task, data = ddpm().eval(), batch(size=64)
    output = task.step(data)
    metric = task.metrics()["loss_by_t"]
    metric.update(output.preds, output.targets)
    quarters = metric.compute()
    assert list(quarters) == ["quarter1", "quarter2", "quarter3", "quarter4"]  # type: ignore[call-overload]
    quarter = output.targets // 250
    for i, value in enumerate(quarters.values()):  # type: ignore[union-attr]
        torch.testing.assert_close(value.float(), output.preds[quarter == i].mean())


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_is_near(channels_last):
    task, data = ddpm().eval(), batch()
    torch.manual_seed(0)
    exact = task.step(data).loss
    if channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(data)
    assert output.preds.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact, rtol=0.02, atol=0.02)


def test_it_learns_two_pictures():
    """Of two pictures, one a class, that of the class is drawn."""
    spec = ImageSpec(1, 4, ("a", "b"), (0.0,), (1.0,))
    pictures = torch.stack([torch.eye(4), torch.ones(4, 4) - torch.eye(4)])[:, None]
    data = ImageBatch(pictures.repeat(16, 1, 1, 1), torch.arange(2).repeat(16))
    task = build("ddpm", spec, **{**SMALL, "multipliers": [1], "attention": [1], "width": 16, "steps": 10})
    assert isinstance(task, DDPM)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        task.step(data).loss.backward()
        optimizer.step()
    drawn = task.eval().sample(torch.arange(2), 2)
    assert (drawn - pictures).abs().mean() < 0.15


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="multipliers"):
        ddpm(DIGITS, multipliers=[1, 1, 1, 1, 1])
