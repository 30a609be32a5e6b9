"""Data sets by name, or from a path to the user's own file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pvae.data.binarize import binarized
from pvae.data.dataset import DataSet
from pvae.data.digits import load_digits
from pvae.data.files import load_binarized_mnist, load_freyfaces
from pvae.data.kinds import Binarization, Kind, check_binarization
from pvae.data.torchvision_sets import load_torchvision
from pvae.data.user import SUFFIXES, load_file, suffix_of
from pvae.support.refusals import choice, flag, instance, nearest, one_line

__all__ = ["load", "names"]

_Loader = Callable[[str | Path | None, bool], DataSet]

_FILE_KINDS = ("binary", "unit", "counts", "real")

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
    kind: Kind | None = None,
) -> DataSet:
    """The data set of that name, its files under `root`, or the user's own file at that path.

    Args:
        name: one of `names()`, or the path of an .npy, .npz or .csv file, which may be packed once more as .gz.
        root: the folder of a named set's files; it is not joined to a path.
        binarize: how intensities become binary, as in `binarized`.
        download: fetch missing files of MNIST and its kin into `root`.
        kind: what the values of a file are: "binary", "unit", "counts" or "real". By default that of the values: 0 and
            1 only are binary, [0, 1] is unit, other whole numbers of at least 0 are counts, all else is real. Two whole
            numbers other than 0 and 1, and whole numbers up to exactly 255, have two readings and are refused without
            it.

    Raises ValueError for an unknown name, kind or binarization, for files that are missing, damaged or unfit, and for
    files that can be read in two ways.
    """
    instance("name", name, (str, Path), what="the name of a data set or a path", usual="'digits'")
    instance("root", root, (str, Path, type(None)), what="a folder or None", usual="'data'")
    flag("download", download)
    check_binarization(binarize)
    if kind is not None:
        choice("kind", kind, _FILE_KINDS)
    if str(name) in _LOADERS:
        if kind is not None:
            raise ValueError(f"data set {name!r} has a kind of its own, got kind={kind!r} besides; leave kind out")
        _, loader = _LOADERS[str(name)]
        return binarized(loader(root, download), binarize)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no folder stands for the ~ of {one_line(str(name), 60)!r}: write it out") from error
    if suffix_of(path) in SUFFIXES:
        return binarized(load_file(path, kind), binarize)
    raise ValueError(
        f"unknown data set {one_line(str(name), 60)!r}: {nearest(str(name), list(_LOADERS))}, "
        f"or a path to an {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
    )
