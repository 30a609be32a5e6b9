"""Data sets by name, or from a path to the user's own file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pvae.data.binarize import binarized
from pvae.data.dataset import DataSet
from pvae.data.digits import load_digits
from pvae.data.files import load_binarized_mnist, load_freyfaces
from pvae.data.kinds import Binarization, check_binarization, nearest
from pvae.data.torchvision_sets import load_torchvision
from pvae.data.user import SUFFIXES, load_file

__all__ = ["load", "names"]

_Loader = Callable[[str | Path | None, bool], DataSet]

_LOADERS: dict[str, tuple[str, _Loader]] = {
    "digits": (
        "1,797 handwritten digits, 1x8x8 in [0, 1], embedded (scikit-learn)",
        lambda root, download: load_digits(),
    ),
    "mnist": (
        "70,000 handwritten digits, 1x28x28 in [0, 1], downloads (torchvision)",
        partial(load_torchvision, "mnist", "MNIST"),
    ),
    "fashion_mnist": (
        "70,000 pieces of clothing, 1x28x28 in [0, 1], downloads (torchvision)",
        partial(load_torchvision, "fashion_mnist", "FashionMNIST"),
    ),
    "kmnist": (
        "70,000 cursive Japanese characters, 1x28x28 in [0, 1], downloads (torchvision)",
        partial(load_torchvision, "kmnist", "KMNIST"),
    ),
    "binarized_mnist": (
        "Larochelle's fixed binarization of MNIST, 1x28x28 of 0s and 1s, from .amat files",
        lambda root, download: load_binarized_mnist(root),
    ),
    "freyfaces": (
        "1,965 frames of one face, 1x28x20 in [0, 1], from freyfaces.npy",
        lambda root, download: load_freyfaces(root),
    ),
}


def names() -> dict[str, str]:
    """The names that `load` knows, each with a one-line description."""
    return {name: description for name, (description, _) in _LOADERS.items()}


def load(
    name: str | Path,
    root: str | Path | None = None,
    binarize: Binarization | None = None,
    download: bool = False,
) -> DataSet:
    """The data set of that name, its files under `root`, or the user's own file at that path.

    The path is of an .npy, .npz or .csv file, and `root` is not joined to it. `binarize` is passed to
    `binarized`; `download` fetches missing files of MNIST and its kin into `root`.
    Raises ValueError for an unknown name or binarization and for files that are missing, damaged or unfit.
    """
    check_binarization(binarize)
    if str(name) in _LOADERS:
        _, loader = _LOADERS[str(name)]
        return binarized(loader(root, download), binarize)
    path = Path(name).expanduser()
    if path.suffix.lower() in SUFFIXES:
        return binarized(load_file(path), binarize)
    raise ValueError(
        f"unknown data set {str(name)!r}: {nearest(str(name), list(_LOADERS))}, "
        f"or a path to an {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
    )
