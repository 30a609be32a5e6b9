"""A user's own data from an .npy, .npz or .csv file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from pvae.data.alike import check_alike
from pvae.data.csv_rows import read_csv
from pvae.data.dataset import DataSet
from pvae.data.exact import check_exact
from pvae.data.guess import guessed_kind
from pvae.data.images import are_images, as_images, check_layout
from pvae.data.kinds import Kind, check_finite
from pvae.data.numpy_files import Array, read_numpy
from pvae.data.split import fixed_split, tenths
from pvae.data.unzipped import unzipped

__all__ = ["SUFFIXES", "load_file", "suffix_of"]

SUFFIXES = (".npy", ".npz", ".csv")


def suffix_of(path: Path) -> str:
    """What a file is by its name, as one of SUFFIXES; .gz after it counts for nothing."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def load_file(path: Path, kind: Kind | None = None) -> DataSet:
    """The data (N, *shape) of a file, in a fixed 80/10/10 split unless an .npz names train, valid and test.

    A .csv file loses its header and its index (`pvae.data.headers`, `pvae.data.index_column`). uint8 arrays of 3 or
    more dims are images: (N, H, W) gains a channel, and 0 to 255 becomes 0 to 1, unless `kind` is "counts" or "real".
    Without a `kind` it is that of the values (`pvae.data.guess`). What was left out or changed is the set's `note`.
    Raises ValueError for a missing or damaged file, pickled objects, values not finite, whole numbers that float32
    would round, arrays below 2-D, splits of different dtypes or scales, and for what has two readings, naming both.
    """
    where = str(path)
    arrays, notes = _read(path)
    named = {key: f"{where} {key}".strip() for key in arrays}
    for key, array in arrays.items():
        _check_array(array, named[key])
        check_layout(array, named[key])
    images = are_images(arrays) and kind not in ("counts", "real")
    check_alike(arrays, where, images=images)
    if images:
        arrays, note = as_images(arrays)
        notes.append(note)
    for key, array in arrays.items():
        check_exact(array, named[key], as_written=suffix_of(path) == ".csv")
    if kind is None:
        kind, note = guessed_kind(arrays, where)
        notes.append(note)
    splits = {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}
    if "" in splits:
        parts = fixed_split(splits[""], tenths(len(splits[""]), where))
        splits = dict(zip(("train", "valid", "test"), parts, strict=True))
    note = ", ".join(filter(None, notes))
    return DataSet(path.name, splits["train"], splits.get("valid"), splits.get("test"), kind, note=note)


def _read(path: Path) -> tuple[dict[str, Array], list[str]]:
    with _opened(path) as (file, size):
        if suffix_of(path) == ".csv":
            rows, note = read_csv(file.read(), str(path))
            return {"": rows}, [note]
        return read_numpy(file, size, str(path)), []


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size, once unpacked if it is a .gz."""
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "none"
            raise ValueError(f"expected a file at {path.absolute()}, found {what}: check the path")
        with path.open("rb") as file:
            if path.suffix.lower() != ".gz":
                yield file, path.stat().st_size
                return
            content = unzipped(file, path.stat().st_size, str(path))
            yield io.BytesIO(content), len(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): check the path and its rights") from error


def _check_array(array: Array, where: str) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold real numbers, got dtype {array.dtype}: convert it before saving")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{where} must hold data (N, *shape), 2-D or more and not empty, got shape {array.shape}: "
            "save the data, not labels; one feature is (N, 1)"
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the next line reports
            check_finite(torch.from_numpy(array.astype(np.float32)), where)
