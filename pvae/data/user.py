"""A user's own data from an .npy, .npz or .csv file."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pvae.data.csv_rows import read_csv
from pvae.data.dataset import DataSet
from pvae.data.kinds import Kind, check_finite
from pvae.data.split import fixed_split, tenths

__all__ = ["SUFFIXES", "load_file"]

SUFFIXES = (".npy", ".npz", ".csv")

Array = npt.NDArray[Any]


def load_file(path: Path) -> DataSet:
    """The data (N, *shape) of a file, in a fixed 80/10/10 split unless an .npz names train, valid and test.

    uint8 arrays of 3 or more dims are images: (N, H, W) gains a channel, and 0 to 255 becomes 0 to 1.
    The kind is "binary" if all values are 0 or 1, "unit" if they lie in [0, 1], else "real".
    Raises ValueError for a missing or damaged file, pickled objects, values not finite, and arrays below 2-D.
    """
    if not path.is_file():
        raise ValueError(f"expected a file at {path.absolute()}, found none: check the path")
    arrays = {"": read_csv(path)} if path.suffix.lower() == ".csv" else _read_numpy(path)
    tensors = _as_images({key: _as_tensor(array, f"{path} {key}".strip()) for key, array in arrays.items()})
    if "" in tensors:
        train, valid, test = fixed_split(tensors[""], tenths(len(tensors[""]), str(path)))
        return DataSet(path.name, train, valid, test, kind=_infer_kind(tensors))
    return DataSet(path.name, tensors["train"], tensors.get("valid"), tensors.get("test"), kind=_infer_kind(tensors))


def _read_numpy(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            # asarray: what is no array in the archive comes out as bytes, which the dtype check refuses.
            arrays = {key: np.asarray(loaded[key]) for key in loaded.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        what = "dtype object" if "Object arrays" in str(error) else "a file that is damaged or another format"
        raise ValueError(
            f"{path} must hold arrays of numbers, got {what} (pickles are never loaded): save it again with "
            "numpy.save or numpy.savez"
        ) from error
    if len(arrays) == 1 and "train" not in arrays:
        return {"": next(iter(arrays.values()))}
    if "train" not in arrays or not set(arrays) <= {"train", "valid", "test"}:
        raise ValueError(
            f"{path} must hold one array, or train with valid and test, got {', '.join(arrays) or 'none'}: "
            "save it again with those names only"
        )
    return arrays


def _as_tensor(array: Array, where: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold real numbers, got dtype {array.dtype}: convert it before saving")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{where} must hold data (N, *shape), 2-D or more and not empty, got shape {array.shape}: "
            "save the data, not labels; one feature is (N, 1)"
        )
    if array.dtype == np.uint8:
        return torch.from_numpy(array)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the next line reports
        values = torch.from_numpy(array.astype(np.float32))
    check_finite(values, where)
    return values


def _as_images(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(x.dtype == torch.uint8 and x.ndim >= 3 for x in tensors.values()):
        return {key: x.to(torch.float32) for key, x in tensors.items()}
    scale = 255 if max(int(x.max()) for x in tensors.values()) > 1 else 1
    return {key: (x.unsqueeze(1) if x.ndim == 3 else x).to(torch.float32).div_(scale) for key, x in tensors.items()}


def _infer_kind(tensors: dict[str, Tensor]) -> Kind:
    if all(bool(((x == 0) | (x == 1)).all()) for x in tensors.values()):
        return "binary"
    return "unit" if all(bool(x.min() >= 0) and bool(x.max() <= 1) for x in tensors.values()) else "real"
