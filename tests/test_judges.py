"""Who judges drawn pictures: trained once, kept, told apart by its data, and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refresher_runner.compose import checked, compose
from refresher_runner.errors import CheckpointError, ConfigError
from refresher_runner.judges import judge_for, scorer_for
from refresher_runner.registry import DATASETS
from refresher_runner.spec import Placement
from tests.inside import trained as train

pytestmark = pytest.mark.usefixtures("as_it_was")
CPU = torch.device("cpu")


def judged(*typed: str):
    """The judge of a configuration, and a batch of its test pictures."""
    config, stored = compose(["model=ddpm", "data=digits", *typed])
    settings = checked(config, stored)
    data = DATASETS.builder(settings.data.name)(**settings.data.options)
    data.prepare()
    return judge_for(settings, data, CPU), next(iter(data.test_loader(Placement()).batches(0)))


def test_a_small_one_knows_its_data_and_is_trained_once():
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    judge, batch = judged()
    assert torch.equal(torch.rand(3), drawn), "who trains a judge draws from nobody's randomness"
    assert judge is not None
    features, logits = judge(batch.images)
    assert features.shape == (len(batch.labels), 64)
    assert (logits.argmax(-1) == batch.labels).double().mean() > 0.97
    (file,) = Path("outputs/judges").glob("*.pt")
    written = file.stat().st_mtime_ns
    again, _ = judged("seed=7", "data.eval_batch_size=100")
    assert again is not None
    assert torch.equal(again(batch.images)[1], logits)
    assert again.name == judge.name
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(judged()[0](batch.images)[1], logits), "a damaged one is trained anew"  # type: ignore[misc]


@pytest.mark.slow
def test_other_data_have_another_judge():
    judged()
    judged("data.pad=0")
    assert len(list(Path("outputs/judges").glob("*.pt"))) == 2


def test_none_is_none():
    assert judged("judge=null")[0] is None
    assert not Path("outputs").exists()


def test_a_run_of_a_classifier_judges():
    run = train("model=mlp", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]")
    judge, batch = judged(f"judge={run}")
    assert judge is not None
    assert str(run) in judge.name
    features, logits = judge(batch.images)
    assert features.shape == (len(batch.labels), 128)
    head = torch.load(run.checkpoints / "best.pt", weights_only=True)["task"]
    weight, bias = (next(v for k, v in reversed(head.items()) if k.endswith(end)) for end in (".weight", ".bias"))
    torch.testing.assert_close(features @ weight.T + bias, logits)


def test_a_run_of_clip_scores_pictures_and_captions():
    few = ["data=captioned_shapes", "data.train_count=16", "data.val_count=8", "data.test_count=8", "data.batch_size=8"]
    quick = ["trainer=smoke", "trainer.duration=1 steps", "trainer.threads=1", "trainer.loggers=[]", "trainer.test=false"]
    run = train("model=clip", "model.width=8", "model.text_width=16", *few, *quick)
    settings = checked(*compose(["model=latent_diffusion", *few, f"judge={run}"]))
    data = DATASETS.builder(settings.data.name)(**settings.data.options)
    data.prepare()
    batch, scorer = next(iter(data.test_loader(Placement()).batches(0))), scorer_for(settings, data, CPU)
    assert scorer is not None
    with torch.autocast("cpu", torch.bfloat16):
        image, text = scorer.encode_image(batch.images), scorer.encode_text(batch.captions)
    assert image.dtype == text.dtype == torch.float32
    torch.testing.assert_close(torch.stack([image, text]).norm(dim=-1), torch.ones(2, 8))
    settings = checked(*compose(["model=latent_diffusion", *few]))
    assert scorer_for(settings, data, CPU) is None


def test_who_cannot_judge_is_refused():
    run = train("model=mlp", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]")
    with pytest.raises(ConfigError, match="other data"):
        judged(f"judge={run}", "data.size=16")
    drawing = train("model=ddpm", "data=digits", "model.width=8", "judge=null", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]")
    with pytest.raises(ConfigError, match="no classifier"):
        judged(f"judge={drawing}")
    best = run.checkpoints / "best.pt"
    best.write_bytes(best.read_bytes()[:500])
    with pytest.raises(CheckpointError):
        judged(f"judge={run}")
