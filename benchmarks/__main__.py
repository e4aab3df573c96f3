"""Every measurement, one after another. Peers that are not installed are left out, and said to be."""

from __future__ import annotations

import importlib.util

from benchmarks.timing import side_by_side


def main() -> None:
    print("start-up: seconds")
    side_by_side({side: ["-m", "benchmarks.startup", side] for side in ("help", "bad", "wrong_type", "step")}, "s", "help")
    sides = ["hand", "pipeline", "kernels"]
    if importlib.util.find_spec("lightning"):
        sides.append("lightning")
    else:
        print("  lightning is not installed: left out (pip install lightning)")
    for model in ("cnn", "mlp"):
        print(f"one optimizer step of {model} on digits, batch 64: microseconds")
        side_by_side({side: ["-m", "benchmarks.step", side, model] for side in sides}, "us/step", "hand")
    print("one epoch of Fashion-MNIST, with crops and flips: seconds")
    side_by_side({side: ["-m", "benchmarks.epoch", side] for side in ("torchvision", "pipeline")}, "s/epoch", "torchvision", repeats=3)


if __name__ == "__main__":
    main()
