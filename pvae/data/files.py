"""Published data sets that are read from files the user has: binarized MNIST and the Frey faces."""

from pathlib import Path

import numpy as np
import torch

from pvae.data.amat import read_amat
from pvae.data.dataset import DataSet
from pvae.data.numpy_files import read_numpy
from pvae.data.split import fixed_split

__all__ = ["load_binarized_mnist", "load_freyfaces"]

_AMAT_LINES = {"train": 50_000, "valid": 10_000, "test": 10_000}
_FREY_SHAPE = (1965, 28, 20)


def load_binarized_mnist(root: str | Path | None) -> DataSet:
    """Larochelle's binarized MNIST, (1, 28, 28) of 0s and 1s, split 50,000/10,000/10,000 as published.

    Published at http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/.
    Raises ValueError if a file is missing or is not what was published.
    """
    files = {f"binarized_mnist_{split}.amat": num for split, num in _AMAT_LINES.items()}
    # All three are found before the first is read: a missing file should not cost the wait.
    paths = [(_find("binarized_mnist", root, [file, f"{file}.gz"]), num) for file, num in files.items()]
    train, valid, test = (read_amat(path, num, width=784).reshape(num, 1, 28, 28) for path, num in paths)
    return DataSet("binarized_mnist", train, valid, test, kind="binary")


def load_freyfaces(root: str | Path | None) -> DataSet:
    """1,965 frames of a face, (1, 28, 20) in [0, 1], in a fixed 1565/200/200 split.

    Raises ValueError if the file is missing or holds anything else.
    """
    path = _find("freyfaces", root, ["freyfaces.npy"])
    try:
        with path.open("rb") as file:
            frames = next(iter(read_numpy(file, path.stat().st_size, str(path)).values()))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy file of numbers: get it again") from error
    if frames.shape != _FREY_SHAPE or frames.dtype != np.uint8:
        got = f"{frames.shape} of {frames.dtype}"
        raise ValueError(f"{path} must hold {_FREY_SHAPE} of uint8, got {got}: save the frames in that shape")
    images = torch.from_numpy(frames).unsqueeze(1).to(torch.float32).div_(255)
    return DataSet("freyfaces", *fixed_split(images, (1565, 200, 200)), kind="unit")


def _find(name: str, root: str | Path | None, files: list[str]) -> Path:
    wanted = " or ".join(files)
    if root is None:
        raise ValueError(
            f"{name} lives in files that pvae cannot download, expected root to name their folder, got None: "
            f"give root=FOLDER that holds {wanted}"
        )
    base = Path(root).expanduser()
    for folder in (base, base / name):
        for file in files:
            if (folder / file).is_file():
                return folder / file
    raise ValueError(
        f"{name} was looked for in {base} and {base / name}, and neither holds {wanted}: "
        "pvae cannot download it, so put the file in one of them or give another root"
    )
