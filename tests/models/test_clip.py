"""CLIP against figure 3, its towers against independent computations, two ranks against one, and what its space can be asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from refresher_runner.data.captioned_shapes import build_captioned_shapes
from refresher_runner.engine.distributed import World, wrap
from refresher_runner.errors import ConfigError, DataError, UsageError
from refresher_runner.models.clip import CLIP, AttentionPool, ViTEncoder
from refresher_runner.report import Embedding, Images, Matrix
from refresher_runner.spec import CaptionBatch, CaptionSpec, Placement
from refresher_runner.vocabulary import END, PAD, SPECIAL, Vocabulary
from tests.models.build import build

WORDS = Vocabulary((*SPECIAL, *" abcdefghijklmnopqrstuvwxyz"))
SPEC = CaptionSpec(3, 16, ("cat", "none", "dog"), (0.5,) * 3, (0.25,) * 3, WORDS, 12, (("a cat", "cat"), (), ("a dog", "dog", "my dog")))
TINY: dict[str, Any] = {"width": 8, "text_width": 16, "text_depth": 1, "heads": 2, "joint_dim": 12}
TOWERS: list[dict[str, Any]] = [{"image": "resnet", "patch": 2}, {"image": "vit", "patch": 4, "width": 16}]


def made(spec: CaptionSpec = SPEC, **options: Any) -> CLIP:
    torch.manual_seed(0)
    task = build("clip", spec, **{**TINY, **options})
    assert isinstance(task, CLIP)
    return task


def batch(count: int = 10, spec: CaptionSpec = SPEC) -> CaptionBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, spec.channels, spec.size, spec.size, generator=generator)
    captions = spec.encode([f"{'abcdefghij'[i % 10]} {'cat' if i % 2 else 'dog'}" for i in range(count)])
    labels = torch.arange(count) % 3
    return CaptionBatch(images, labels, captions, torch.empty(count, 0, dtype=torch.int64), torch.arange(count))


def computed(metric: Any) -> Any:
    return metric.compute()


# -------------------------------------------------------------------- the objective


def test_figure_3():
    """Their pseudocode, in numpy: rows and columns of I_e T_e^T exp(t), each against its own number."""
    task = made()
    with torch.no_grad():
        task.t.fill_(1.5)
        data = batch()
        i_f, t_f = task.image(data.images).numpy(), task.text(data.captions).numpy()
        t_f = t_f[range(10), [row.index(END) for row in data.captions.tolist()]]
        i_e, t_e = i_f @ task.W_i.weight.numpy().T, t_f @ task.W_t.weight.numpy().T
        i_e, t_e = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (i_e, t_e))
        logits = i_e @ t_e.T * np.exp(1.5)
        losses = [-np.mean(np.diag(logits) - np.log(np.exp(logits).sum(axis))) for axis in (0, 1)]
        assert task.step(data).loss.item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_the_scale_begins_at_one_over_seven_hundredths_and_never_exceeds_100():
    task = made()
    assert task.t.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        task.t.fill_(7)
    output = task.step(batch())
    assert task.t.exp().item() == pytest.approx(100)
    assert output.parts["temperature"].item() == pytest.approx(0.01)
    output.loss.backward()
    assert task.t.grad is not None
    assert task.t.grad != 0, "so that it can fall again"


@pytest.mark.parametrize("options", TOWERS, ids=["resnet", "vit"])
def test_step_trains_every_parameter(options: dict[str, Any]):
    task = made(**options)
    loss = task.step(batch()).loss
    loss.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    with torch.autocast("cpu", torch.bfloat16):
        assert task.step(batch()).loss.item() == pytest.approx(loss.item(), rel=0.1)
    assert {group["weight_decay"] for group in task.param_groups(0.1) for p in group["params"] if p is task.t} == {0.0}


@pytest.mark.parametrize("options", TOWERS, ids=["resnet", "vit"])
def test_it_learns_pairs_by_heart(options: dict[str, Any]):
    task, data = made(**options), batch()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        task.step(data).loss.backward()
        optimizer.step()
    metrics = task.eval().metrics()
    output = task.step(data)
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    assert metrics["recall1"].compute() == 1
    assert output.loss < 0.5


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    task, data = made(image="vit", patch=4, width=16), batch()
    share = CaptionBatch(*(part.chunk(world)[rank] for part in data))
    trained = wrap(task, "ddp", World(rank, world), torch.device("cpu"))
    loss = trained(share).loss
    loss.backward()
    torch.save((loss.detach(), {name: p.grad for name, p in task.named_parameters()}), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path: Path):
    mp.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    task = made(image="vit", patch=4, width=16)
    loss = task.step(batch()).loss
    loss.backward()
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True)
    assert torch.stack(losses).mean().item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in task.named_parameters():
        for of_rank in gradients:
            torch.testing.assert_close(of_rank[name], parameter.grad, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------- the towers


def test_attention_pooling_is_torchs_own():
    """The query is the mean; keys and values are it and all places; compared with torch's function for many heads."""
    torch.manual_seed(0)
    pool, x = AttentionPool(8, 3, heads=2), torch.randn(5, 8, 3, 3)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.position[:, None]
    of: Any = pool.attention
    expected, _ = F.multi_head_attention_forward(
        *(tokens[:1], tokens, tokens, 8, 2),
        *(of.c_attn.weight, of.c_attn.bias, None, None, False, 0.0, of.c_proj.weight, of.c_proj.bias),
        need_weights=False,
    )
    torch.testing.assert_close(pool(x), expected[0])


def test_a_pooled_map_knows_where_things_are():
    torch.manual_seed(0)
    pool, x = AttentionPool(8, 3, heads=2), torch.randn(1, 8, 3, 3)
    assert not torch.allclose(pool(x), pool(x.flip(3)), atol=1e-4)


def test_vision_transformer_is_torchs_layers_on_patches():
    torch.manual_seed(0)
    tower, x = ViTEncoder(3, 8, width=8, depth=2, patch=4, heads=2, dropout=0.0), torch.randn(2, 3, 8, 8)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 4, 48)  # row by row
    y = patches @ tower.patches.weight.flatten(1).T
    y = tower.norm_1(torch.cat([tower.whole.expand(2, 1, 8), y], 1) + tower.position)
    layers: Any = tower.layers
    for ours in layers:
        theirs = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        state = {f"self_attn.in_proj_{kind}": getattr(ours.attention.c_attn, kind) for kind in ("weight", "bias")}
        for name, module in {
            "self_attn.out_proj": ours.attention.c_proj,
            "linear1": ours.mlp[0],
            "linear2": ours.mlp[2],
            "norm1": ours.norm_1,
            "norm2": ours.norm_2,
        }.items():
            state |= {f"{name}.{kind}": getattr(module, kind) for kind in ("weight", "bias")}
        theirs.load_state_dict(state)
        y = theirs(y)
    torch.testing.assert_close(tower(x), tower.norm_2(y[:, 0]))


def test_a_caption_is_known_at_its_end_whatever_follows():
    task = made().eval()
    captions = SPEC.encode(["a cat", "a dog"])
    shorter = captions[:, : int((captions != PAD).sum(1).max())]
    with torch.no_grad():
        one, two = task.encode_text(captions), task.encode_text(shorter)
    torch.testing.assert_close(one, two)
    assert one.norm(dim=1).tolist() == pytest.approx([1, 1])
    assert not torch.allclose(one[0], one[1])


# -------------------------------------------------------------------- classes


@pytest.mark.parametrize("ensemble", ["probabilities", "embeddings"])
def test_a_class_is_its_prompts(ensemble: str):
    """Of five prompts, two of cats: their mean in the joint space, or the mean of their shares of one softmax over all."""
    task = made(ensemble=ensemble).eval()
    with torch.no_grad():
        said = task.encode_text(SPEC.encode(["a cat", "cat", "a dog", "dog", "my dog"])).numpy()
        output = task.step(batch())
        scale, images = task.t.exp().item(), output.preds.images.numpy()
    if ensemble == "embeddings":
        means = np.stack([said[:2].mean(0), said[2:].mean(0)])
        expected = np.exp(scale * images @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T)
    else:
        each = np.exp(scale * images @ said.T)
        expected = np.stack([each[:, :2].mean(1), each[:, 2:].mean(1)], 1)
    np.testing.assert_allclose(output.preds.logits.softmax(1), expected / expected.sum(1, keepdims=True), rtol=1e-4)
    assert task.classes == ("cat", "dog")
    assert output.targets.labels.tolist() == [0, -1, 1, 0, -1, 1, 0, -1, 1, 0], "classes without prompts are left out"
    matrix = task.metrics()["zero_shot_confusion_matrix"]
    matrix.update(output.preds, output.targets)
    assert computed(matrix).values.sum(1).tolist() == [4, 3]


def test_without_prompts_nothing_is_classified():
    spec = CaptionSpec(3, 16, ("any",), (0.5,) * 3, (0.25,) * 3, WORDS, 12, ((),))
    task = made(spec).eval()
    output = task.step(batch(spec=spec)._replace(labels=torch.zeros(10, dtype=torch.int64)))
    metrics = task.metrics()
    assert set(metrics) == {"recall1", "image_to_text", "text_to_image", "chance"}
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    assert set(computed(metrics["image_to_text"])) == {"recall1", "recall5", "recall10", "median_rank"}


def test_a_batch_of_which_none_is_classified():
    task = made().eval()
    output, metrics = task.step(batch()._replace(labels=torch.ones(10, dtype=torch.int64))), task.metrics()
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    assert computed(metrics["zero_shot_confusion_matrix"]).values.sum() == 0
    assert math.isfinite(computed(metrics["zero_shot_accuracy"]))


# -------------------------------------------------------------------- looking


def test_what_is_shown():
    task = made().eval()
    with torch.no_grad():
        report = task.observe(batch(20))
        output = task.step(batch(20))
    similarity, given, space = report["similarity"], report["given"], report["joint_space"]
    assert isinstance(similarity, Matrix)
    torch.testing.assert_close(similarity.values, (output.preds.images @ output.preds.captions.T)[:16, :16])
    assert similarity.rows[1] == "b cat"
    assert isinstance(given, Images)
    assert len(given.captions) == 16
    assert isinstance(space, Embedding)
    assert space.vectors.shape == (40, 12)
    assert space.labels[:2] == ("picture: a dog", "picture: b cat")
    assert space.labels[20:22] == ("a dog", "b cat")
    assert isinstance(report["modality_gap"], float)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (20, 16), colour).save(folder / f"{name}.png")
    return folder


def said(task: CLIP, *inputs: object):
    with torch.no_grad():
        return list(task.eval().predict([str(text) for text in inputs]))


def test_pictures_choose_texts_and_texts_find_pictures(pictures: Path):
    task = made()
    blue, red, first, second = said(task, pictures, "a cat", "my dog")
    assert [Path(row.input).name for row in (blue, red)] == ["blue.png", "red.png"]
    assert [row.input for row in (first, second)] == ["a cat", "my dog"]
    images = torch.stack([SPEC.read(pictures / name) for name in ("blue.png", "red.png")])
    with torch.no_grad():
        cosine = task.encode_image(images) @ task.encode_text(SPEC.encode(["a cat", "my dog"])).T
    p = (cosine[0] * task.t.exp()).softmax(0)
    assert blue.values["caption"] == ["a cat", "my dog"][int(p.argmax())]
    assert blue.values["probability"] == pytest.approx(p.max().item(), rel=1e-5)
    assert blue.values["runner_up_probability"] == pytest.approx(p.min().item(), rel=1e-5)
    assert Path(str(first.values["likest"])).name == ["blue.png", "red.png"][int(cosine[:, 0].argmax())]
    assert first.values["cosine"] == pytest.approx(cosine[:, 0].max().item(), rel=1e-5)
    found = first.report["pictures"]
    assert isinstance(found, Images)
    assert found.pixels.shape == (2, 3, 16, 16)


def test_pictures_alone_are_told_by_the_classes(pictures: Path):
    [row] = said(made(), pictures / "red.png")
    assert row.values["class"] in ("cat", "dog")
    assert row.values["probability"] + row.values["runner_up_probability"] == pytest.approx(1)  # type: ignore[operator]
    [one, _] = said(made(), pictures / "red.png", "a cat")
    assert "runner_up" not in one.values


def test_what_cannot_be_predicted(pictures: Path):
    with pytest.raises(UsageError, match="there is no picture to compare it with") as caught:
        said(made(), "a cat")
    assert caught.value.cure
    with pytest.raises(DataError, match="no such file"):
        said(made(), pictures / "green.png")
    spec = CaptionSpec(3, 16, ("any",), (0.5,) * 3, (0.25,) * 3, WORDS, 12, ((),))
    with pytest.raises(UsageError, match="its data have no classes with prompts"):
        said(made(spec), pictures / "red.png")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 3}, "model.heads=3: 32 numbers of model.width=8 cannot be shared evenly among them"),
        ({"heads": 32, "text_width": 16}, "model.heads=32: 16 numbers of model.text_width=16 cannot be shared evenly among them"),
        ({"image": "vit", "patch": 3}, "model.patch=3: pictures of 16 pixels cannot be cut into patches of so many"),
    ],
)
def test_options_that_cannot_be_had(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        made(**options)
    assert str(caught.value) == said


def test_parameters_as_conf_has_them():
    data = build_captioned_shapes(
        size=32,
        train_count=300,
        val_count=4,
        test_count=4,
        single=0.25,
        val_fraction=0.1,
        test_fraction=0.1,
        split_seed=0,
        vocab_size=400,
        block_size=16,
        batch_size=8,
        eval_batch_size=8,
    )
    data.prepare()
    task = build("clip", data.spec)
    assert sum(p.numel() for p in task.parameters()) == 355_865
    output = task.step(next(iter(data.train_loader(Placement()).batches(0))))
    assert output.loss.item() == pytest.approx(math.log(8), abs=1)
    assert isinstance(output.loss, Tensor)
