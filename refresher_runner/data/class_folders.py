"""Files in a folder for each class: `root/<class>/*`, or `root/{train,val,test}/<class>/*`. Free of torch.

A split without a folder is cut from the training files, by a seed that is not the run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refresher_runner.data.images import stratified
from refresher_runner.errors import ConfigError, DataError

Files = list[tuple[Path, int]]  # each file with its label


@dataclass(frozen=True)
class ClassFolders:
    """What lies below `root`: `things`, in files that end in one of `suffixes`."""

    root: Path
    things: str
    suffixes: frozenset[str]

    def classes(self) -> tuple[str, ...]:
        """Names of the folders that training has. Raises ConfigError where there are fewer than two."""
        folder = self._training
        names = self._names(folder) if folder.is_dir() else []
        if len(names) < 2:
            problem = f"holds {'but one' if names else 'no'} folder of {self.things}" if folder.is_dir() else "no such folder"
            cure = f"one folder of {self.things} for each of two classes or more"
            raise ConfigError(problem, key="data.root", value=folder, cure=cure)
        return tuple(names)

    def splits(self, fractions: Mapping[str, float], seed: int) -> dict[str, Files]:
        """Training, and a split for each of `fractions`: its own folder, or, one after another, such a share of the training files.

        Raises DataError naming a folder.
        """
        splits, rest = {}, self._list(self._training)
        for split, fraction in fractions.items():
            if (self.root / split).is_dir():
                splits[split] = self._list(self.root / split)
            else:
                kept, taken = stratified([label for _, label in rest], fraction, seed)
                splits[split], rest = [rest[i] for i in taken], [rest[i] for i in kept]
        splits["train"] = rest
        for split, files in splits.items():
            if not files:
                raise DataError(
                    f"has too few {self.things} for a {split} split",
                    key=str(self.root),
                    cure="three or more of each class, or a folder of its own",
                )
        return splits

    @property
    def _training(self) -> Path:
        return self.root / "train" if (self.root / "train").is_dir() else self.root

    def _names(self, folder: Path) -> list[str]:
        """Folders of classes, sorted; beside the classes there may be other splits."""
        splits = ("val", "test") if folder == self.root else ()
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "." and entry.name not in splits)

    def _list(self, folder: Path) -> Files:
        """The files below a split's folder, by class and name."""
        classes = self.classes()
        for name in self._names(folder):
            if name not in classes:
                cure = f"{self.things} of it to train on, or take the folder away"
                raise DataError(f"is no class of the training {self.things}", key=str(folder / name), cure=cure)
        files: Files = []
        for label, name in enumerate(classes):
            found = [file for file in sorted((folder / name).rglob("*")) if file.suffix.lower() in self.suffixes and file.is_file()]
            if not found and folder == self._training:
                cure = f"{self.things} end in {' '.join(sorted(self.suffixes))}"
                raise DataError(f"holds no {self.things}", key=str(folder / name), cure=cure)
            files += [(file, label) for file in found]
        return files
