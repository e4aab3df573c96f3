"""What is seen of a latent diffusion: by evaluations, and by who asks it for pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from refresher_runner.errors import UsageError
from refresher_runner.nn.autoencoder import between
from refresher_runner.nn.pictures import is_picture, picture_files, side_by_side
from refresher_runner.nn.samplers import last
from refresher_runner.report import Embedding, Images, Loggable, Prediction, Report
from refresher_runner.spec import CaptionBatch

if TYPE_CHECKING:
    from refresher_runner.models.latent_diffusion.task import LatentDiffusion

SHOWN = 10  # moments of a denoising path


class Prompt(NamedTuple):
    """What `predict` was given: words y (T,), and a z (c, m, m) to begin from, if it was a picture or a code."""

    name: str
    y: Tensor
    z: Tensor | None


def observe(task: LatentDiffusion, batch: CaptionBatch) -> Report:
    """Pictures and their reconstructions; pictures of captions, one on its way from noise, what a judge says of them, and what a reader
    of such pictures finds on them, once the autoencoder has learnt.
    """
    few, x = task.drawing.samples, task.spec.pixels(batch.images)
    rebuilt = task.pixels(task.latents(x)) if task.is_measured() else task.autoencoder.decode(task.autoencoder.encode(x)[0])
    pairs = [side_by_side(a, b) for a, b in zip(x[:few], rebuilt[:few], strict=True)]
    captions = tuple(task.spec.decode(batch.captions))
    report: dict[str, Loggable] = {
        "reconstructions": Images(torch.stack(pairs), captions[:few]),
        "reconstruction_error": (rebuilt - x).square().mean().sqrt().item(),
        "schedule": task.process.schedule(),
    }
    if not task.is_measured():
        return report
    count = max(few, task.drawing.judged)
    drawn = task.pixels(task.sample(batch.captions[:count]))
    report |= {"samples": Images(drawn[:few], captions[:few]), "path": _shown_path(task, batch.captions[:1])}
    drawn = drawn[: task.drawing.judged]
    if len(drawn) and task.reader is not None:
        from refresher_runner.metrics.captions import read_back

        asked = batch.truth[: len(drawn)]
        report |= read_back(task.spec.aspects, asked, task.reader(drawn, asked))
    if len(drawn) and task.judge is not None:
        from refresher_runner.metrics.generation import judged

        report |= judged(task.judge, batch.images, task.spec.normalise(drawn), None, task.spec.classes)
    if len(drawn) and task.scorer is not None:
        from refresher_runner.metrics.captions import clip_score

        y = batch.captions[: len(drawn)]
        report["clip_score"] = clip_score(task.scorer, task.spec.normalise(drawn), y)
        report["clip_score_of_real"] = clip_score(task.scorer, batch.images[: len(drawn)], y)
    return report


@torch.no_grad()
def _shown_path(task: LatentDiffusion, y: Tensor) -> Images:
    """One picture on its way, at a few moments."""
    steps = torch.cat(list(task.path(task.context(y), task.noise(1))))
    shown = torch.linspace(0, len(steps) - 1, min(SHOWN, len(steps))).round().long()
    return Images(task.pixels(steps[shown]), tuple(f"step {i + 1}" for i in shown.tolist()))


# -------------------------------------------------------------------- predicting


def predict(task: LatentDiffusion, inputs: Sequence[str]) -> Iterator[Prediction]:
    """Words are drawn; pictures, folders of them, and codes (.npy, as predict leaves them) are begun from, and `model.prompt` says what
    they are to become. Raises DataError naming a file, and UsageError.
    """
    how, prompts = task.drawing, [prompt for text in inputs for prompt in _prompts(task, text)]
    if how.operation == "interpolate":
        if len(prompts) == 1:
            raise UsageError("is one, and two are interpolated", key="input", value=prompts[0].name, cure="name another")
        for a, b in pairwise(prompts):
            yield _predicted(task, f"{a.name} to {b.name}", _interpolated(task, a, b), [])
        return
    for name, y, z in prompts:
        start = None if z is None else z.expand(how.n, -1, -1, -1)
        found = task.sample(y.expand(how.n, -1), start, how.strength)
        before = [] if z is None else [task.pixels(z[None])]
        if how.operation == "modulate":
            before.append(task.pixels(found))
            found = found * found.new_tensor(how.modulation).view(-1, 1, 1)
        yield _predicted(task, name, found, before)


def _predicted(task: LatentDiffusion, name: str, z: Tensor, before: Sequence[Tensor]) -> Prediction:
    """Pictures of z, after those that it comes from, and z itself."""
    pictures = task.pixels(z)
    report = {"pictures": Images(torch.cat([*before, pictures])), "codes": Embedding(z.flatten(1), (name,) * len(z), pictures)}
    return Prediction(name, {}, report)


def _interpolated(task: LatentDiffusion, a: Prompt, b: Prompt) -> Tensor:
    """From one to the other: words by a line between their vectors, pictures by a line between their z (Ho et al., 2020, section 4.3),
    all with the same noise.
    """
    frames = task.drawing.frames
    of_a, of_b = (task.context(prompt.y[None]) for prompt in (a, b))
    context = of_a._replace(
        vectors=between(of_a.vectors[0], of_b.vectors[0], frames), present=(of_a.present | of_b.present).expand(frames, -1)
    )
    z = None if a.z is None or b.z is None else between(a.z, b.z, frames)
    return last(task.path(context, task.noise(1).expand(frames, -1, -1, -1), z, task.drawing.strength))


def _prompts(task: LatentDiffusion, text: str) -> Iterator[Prompt]:
    device, said = task.scale.device, task.spec.encode([task.drawing.prompt])[0].to(task.scale.device)
    if text.endswith(".npy"):
        for i, code in enumerate(read_codes(text, task.autoencoder.shape)):
            yield Prompt(f"{text}, {i}", said, code.to(device))
    elif is_picture(text):
        for path in picture_files([text]):
            x = task.spec.pixels(task.spec.read(path).to(device))
            yield Prompt(str(path), said, task.latents(x[None])[0])
    else:
        yield Prompt(text, task.spec.encode([text])[0].to(device), None)


def read_codes(path: str, shape: tuple[int, ...]) -> Tensor:
    """Latents (N, c, m, m) out of a file of numpy's. Raises UsageError."""
    import numpy as np

    try:
        found = torch.from_numpy(np.atleast_2d(np.load(Path(path), allow_pickle=False))).float()
        return found.view(-1, *shape)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        problem, cure = f"holds no codes of {shape} numbers ({error})", "a file that predict left, codes.npy"
        raise UsageError(problem, key="input", value=path, cure=cure) from None
