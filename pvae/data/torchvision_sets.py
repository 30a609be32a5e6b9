"""MNIST and its kin: the canonical files, fetched and read by torchvision."""

from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from pvae.data.dataset import DataSet

__all__ = ["load_torchvision"]

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}
_NUM_TRAIN = 58_000


def load_torchvision(name: str, class_name: str, root: str | Path | None, download: bool) -> DataSet:
    """Images (1, 28, 28) in [0, 1] with labels, 58,000/2,000/10,000 in file order, under root/class_name/raw.

    Raises ValueError if the files are missing and not downloaded, cannot be downloaded, or are damaged.
    """
    if root is None:
        raise ValueError(
            f"{name} lives in files, expected root to name their folder, got None: give root=FOLDER that "
            f"holds {class_name}/raw, or root=FOLDER with download=True (--download) to fetch them into it"
        )
    folder = Path(root).expanduser() / class_name / "raw"
    if _missing(folder) and download:
        _download(name, class_name, folder)
    if missing := _missing(folder):
        raise ValueError(
            f"{name} was looked for in {folder}, which lacks {', '.join(missing)}: fetch with download=True "
            "(--download on the command line), or put those files (not gzipped) in that folder"
        )
    images, targets = _read("train", folder)
    test_images, test_targets = _read("test", folder)
    labels = {"train": targets[:_NUM_TRAIN], "valid": targets[_NUM_TRAIN:], "test": test_targets}
    return DataSet(name, images[:_NUM_TRAIN], images[_NUM_TRAIN:], test_images, kind="unit", labels=labels)


def _missing(folder: Path) -> list[str]:
    return [file for images, labels, _ in _FILES.values() for file in (images, labels) if not (folder / file).is_file()]


def _download(name: str, class_name: str, folder: Path) -> None:
    from torchvision import datasets

    processed = folder.parent / "processed"
    if processed.exists():
        raise ValueError(
            f"{processed} holds what an old torchvision pickled, and pickles are never loaded here: "
            f"delete it and load {name} with download=True again"
        )
    try:
        getattr(datasets, class_name)(folder.parent.parent, download=True)
    except (RuntimeError, OSError, HTTPException) as error:
        raise ValueError(
            f"{name} could not be downloaded into {folder} ({' '.join(str(error).split())}): check the "
            f"network and that the folder can be written, or put {', '.join(_missing(folder))} there by hand"
        ) from error


def _read(split: str, folder: Path) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import mnist

    images_file, labels_file, num = _FILES[split]
    images = _parsed(folder / images_file, mnist.read_image_file, (num, 28, 28))
    targets = _parsed(folder / labels_file, mnist.read_label_file, (num,))
    return images.unsqueeze(1).to(torch.float32).div_(255), targets


def _parsed(path: Path, reader: Callable[[str], Tensor], shape: tuple[int, ...]) -> Tensor:
    fix = "the file is damaged or another's, delete it and load with download=True"
    expected = f"{path} must hold {'x'.join(map(str, shape))} bytes"
    try:
        values = reader(str(path))
    # torchvision's reader meets a damaged file with asserts and whatever its parsing trips over.
    except Exception as error:
        raise ValueError(f"{expected}, got a file of {path.stat().st_size} that cannot be read: {fix}") from error
    if values.shape != shape:
        raise ValueError(f"{expected}, got {'x'.join(map(str, values.shape))}: {fix}")
    return values
