"""A detector on photographs: ours, and ultralytics' YOLO11n from random weights, on the same BCCD pictures at 320 pixels.

python -m benchmarks.detector SIDE MEASURE ..., where `REFRESHER_DATA` holds BCCD and both sides use all cores:
    pipeline | ultralytics train              images per second of the trainer itself, loading and augmentation included, no evaluation
    pipeline infer RUN | ultralytics infer    milliseconds for one picture in memory: resizing, network, suppression; the median of the
                                              test split. RUN was trained; ultralytics' network was not, finds nothing, and is quickest
    pipeline quality MINUTES                  test mAP50 after so much training, and of ultralytics after so many epochs,
    ultralytics quality EPOCHS                both judged by our metrics on the same test split
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refresher_runner.data.detection import DetectionSet
    from refresher_runner.nn.detect import Detections

SIZE, BATCH = 320, 16
CHOICE = ["experiment=bccd_yolo", f"data.size={SIZE}", f"data.batch_size={BATCH}"]


def data_set() -> DetectionSet:
    from refresher_runner.compose import compose
    from refresher_runner.registry import DATASETS
    from refresher_runner.settings import check

    settings = check(compose([*CHOICE, "data.cache=false"])[0])
    data: Any = DATASETS.builder("voc_folder")(**settings.data.options)
    data.prepare()
    return data


def judged(data: DetectionSet, found: list[Detections]) -> float:
    """mAP50 of what was found in each picture of the test split, in pixels of the square."""
    from refresher_runner.metrics.detection import detection_metrics
    from refresher_runner.nn.detect import truths
    from refresher_runner.spec import Placement

    metric = detection_metrics(data.spec.classes)["map50"]
    seen = iter(found)
    for batch in data.test_loader(Placement()).batches(0):
        true = truths(batch)
        metric.update([next(seen) for _ in true], true)
    return float(metric.compute())  # type: ignore[arg-type]


# ---------------------------------------------------------------- ours


def trained(folder: str, *overrides: str) -> Path:
    from refresher_runner.cli import main

    code = main(["train", *CHOICE, *overrides, f"outputs={folder}"])
    assert code == 0
    return next(Path(folder).rglob("metrics.jsonl")).parent


def pipeline_train() -> float:
    """The command itself, every logger on; the median over reports of 13 steps after the first two."""
    with tempfile.TemporaryDirectory() as folder:
        run = trained(
            folder, "trainer.duration=130 steps", "trainer.validate_every=130 steps", "trainer.log_every=13", "trainer.test=false"
        )
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([line["speed/samples_per_second"] for line in lines if "train/loss" in line][2:])


def pipeline_infer(run: str) -> float:
    import torch

    from refresher_runner.compose import compose
    from refresher_runner.engine import checkpoint
    from refresher_runner.engine.device import choose_device, choose_precision
    from refresher_runner.engine.evaluate import autocast
    from refresher_runner.pictures import open_picture
    from refresher_runner.registry import MODELS
    from refresher_runner.settings import check

    data = data_set()
    settings = check(compose(CHOICE)[0])
    task: Any = MODELS.builder("yolo")(data.spec, **settings.model.options)
    task.load_state_dict(checkpoint.load(Path(run) / "checkpoints" / "best.pt")["task"])
    task = task.to(memory_format=torch.channels_last).eval()
    device = choose_device("cpu")
    times = []
    with torch.no_grad(), autocast(device, choose_precision("auto", device)):
        for scene in data.splits["test"].items:
            picture = open_picture(scene.picture, 3)  # type: ignore[union-attr, arg-type]
            started = time.perf_counter()
            image, _ = data.spec.fit(picture)
            task.detect(image[None].contiguous(memory_format=torch.channels_last))
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[5:])


def pipeline_quality(minutes: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = trained(folder, f"trainer.duration={minutes} minutes")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line["test/map50"] for line in lines if "test/map50" in line)


# ---------------------------------------------------------------- ultralytics


def ultralytics_model(folder: str, data: DetectionSet) -> tuple[Any, str]:
    """YOLO11n, untrained, and the data.yaml of the same splits as text files and links to the pictures."""
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_CONFIG_DIR"] = folder
    from PIL import Image
    from ultralytics import YOLO

    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (Path(folder) / kind / split).mkdir(parents=True)
        for scene in data.splits[split].items:
            picture: Path = scene.picture  # type: ignore[union-attr, assignment]
            (Path(folder) / "images" / split / picture.name).symlink_to(picture.resolve())
            width, height = Image.open(picture).size
            rows = [
                f"{label} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
                for label, (x1, y1, x2, y2) in zip(scene.labels.tolist(), scene.boxes.tolist(), strict=True)
            ]
            (Path(folder) / "labels" / split / f"{picture.stem}.txt").write_text("\n".join(rows))
    names = ", ".join(data.spec.classes)
    file = Path(folder) / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\ntest: images/test\nnames: [{names}]\n")
    return YOLO("yolo11n.yaml", verbose=False), str(file)


def ultralytics_trained(model: Any, file: str, folder: str, **options: Any) -> None:
    import torch

    model.add_callback("on_train_start", lambda _: torch.set_num_threads(os.cpu_count() or 1))  # it would leave a core idle
    common = {
        "imgsz": SIZE,
        "batch": BATCH,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "val": False,
        "verbose": False,
        "exist_ok": True,
    }
    model.train(data=file, project=f"{folder}/runs", **{**common, **options})


def ultralytics_train() -> float:
    with tempfile.TemporaryDirectory() as folder:
        model, file = ultralytics_model(folder, data_set())
        begun, speeds = [0.0], []
        model.add_callback("on_train_epoch_start", lambda _: begun.append(time.perf_counter()))
        model.add_callback(
            "on_train_epoch_end", lambda trainer: speeds.append(len(trainer.train_loader.dataset) / (time.perf_counter() - begun[-1]))
        )
        ultralytics_trained(model, file, folder, epochs=5, save=False)
    return statistics.median(speeds[1:])


def ultralytics_infer() -> float:
    import numpy as np

    from refresher_runner.pictures import open_picture

    data = data_set()
    with tempfile.TemporaryDirectory() as folder:
        model, _ = ultralytics_model(folder, data)
        pictures = [np.asarray(open_picture(scene.picture, 3))[:, :, ::-1] for scene in data.splits["test"].items]  # type: ignore
        times = []
        for picture in pictures:
            started = time.perf_counter()
            model.predict(picture, imgsz=SIZE, conf=0.25, device="cpu", verbose=False)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[5:])


def ultralytics_quality(epochs: str) -> float:
    from refresher_runner.nn.detect import MOST, Detections
    from refresher_runner.pictures import letterbox, open_picture

    data = data_set()
    with tempfile.TemporaryDirectory() as folder:
        model, file = ultralytics_model(folder, data)
        ultralytics_trained(model, file, folder, epochs=int(epochs))
        found = []
        for scene in data.splits["test"].items:
            how = letterbox(open_picture(scene.picture, 3), SIZE)[1]  # type: ignore[union-attr, arg-type]
            [seen] = model.predict(str(scene.picture), imgsz=SIZE, conf=0.001, iou=0.6, max_det=MOST, device="cpu", verbose=False)  # type: ignore
            boxes = seen.boxes
            found.append(Detections(how.to_square(boxes.xyxy.cpu()), boxes.conf.cpu(), boxes.cls.long().cpu()))
        return judged(data, found)


if __name__ == "__main__":
    side, what, *rest = sys.argv[1:]
    print(globals()[f"{side}_{what}"](*rest))
