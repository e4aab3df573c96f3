"""Every measurement, one after another. Peers that are not installed are left out, and said to be."""

from __future__ import annotations

import importlib.util

from benchmarks.timing import side_by_side


def main() -> None:
    print("start-up: seconds")
    side_by_side({side: ["-m", "benchmarks.startup", side] for side in ("help", "bad", "wrong_type", "step")}, "s", "help")
    print("one optimizer step of the digits CNN, batch 64: microseconds")
    sides = ["hand", "pipeline"]
    if importlib.util.find_spec("lightning"):
        sides.append("lightning")
    else:
        print("  lightning is not installed: left out (pip install lightning)")
    side_by_side({side: ["-m", "benchmarks.step", side] for side in sides}, "us/step", "hand")
    print("one epoch of Fashion-MNIST, with crops and flips: seconds")
    side_by_side({side: ["-m", "benchmarks.epoch", side] for side in ("torchvision", "pipeline")}, "s/epoch", "torchvision", repeats=3)


if __name__ == "__main__":
    main()
