"""Arrays of numbers from .npy and .npz files; never a pickle, and never more memory than the file can fill."""

import math
import zipfile
import zlib
from typing import IO, Any, BinaryIO

import numpy.typing as npt
from numpy.lib import format as npy

from pvae.data.unzipped import most_bytes

__all__ = ["Array", "read_numpy"]

Array = npt.NDArray[Any]


def read_numpy(file: BinaryIO, size: int, where: str) -> dict[str, Array]:
    """The arrays of a file of `size` bytes by name: "" for the only one, else train with valid and test.

    Raises ValueError for a damaged file, pickled objects, an archive that opens to far more than its size, and other
    names.
    """
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return {"": _array(file, size, where)}
    file.seek(0)
    arrays = _members(file, size, where)
    if len(arrays) == 1 and "train" not in arrays:
        return {"": next(iter(arrays.values()))}
    if "train" not in arrays or not set(arrays) <= {"train", "valid", "test"}:
        raise ValueError(
            f"{where} must hold one array, or train with valid and test, got {', '.join(arrays) or 'none'}: "
            "save it again with those names only"
        )
    return arrays


def _members(file: BinaryIO, size: int, where: str) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise _unfit(where, "two arrays of one name")
            total = sum(info.file_size for info in members.values())
            if total > most_bytes(size):
                raise ValueError(
                    f"{where} has {size:,} bytes and would open to {total:,}: if that is what it holds, save it with "
                    "numpy.savez, uncompressed"
                )
            return {name: _member(archive, info, f"{where} {name}") for name, info in members.items()}
    # An archive can be damaged, encrypted or packed by a method unknown here, each with an error of its own.
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, KeyError, zlib.error) as error:
        raise _unfit(where, "a file that is damaged or another format") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Array:
    with archive.open(info) as file:
        return _array(file, info.file_size, where)


def _array(file: IO[bytes], size: int, where: str) -> Array:
    """The one array that the whole file holds, once its header agrees with the file's length."""
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except Exception as error:  # numpy reads a header as Python source, which can fail in any way
        raise _unfit(where, "a file that is damaged or another format") from error
    if dtype.hasobject:
        raise _unfit(where, "dtype object")
    needed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed != held:
        what = "a file that is damaged or another format" if needed > held else "more than one array"
        raise _unfit(where, f"{what} ({held:,} bytes for a {dtype} array of shape {shape})")
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def _unfit(where: str, what: str) -> ValueError:
    return ValueError(
        f"{where} must hold arrays of numbers, got {what} (pickles are never loaded): save it again with "
        "numpy.save or numpy.savez"
    )
