"""The one door for data: whatever is given as a batch becomes a tuple of dense, finite tensors, dim 0 being the data.

Example: an array (100, 64) of numpy's float64 becomes one tensor (100, 64) of torch's default dtype; a pair of a sparse
matrix (100, 2000) and labels (100,) becomes two dense tensors of these shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pvae.support.refusals import shown

__all__ = ["Batch", "Given", "Part", "as_batch", "as_part", "require_finite"]

Batch = tuple[Tensor, ...]
Part = Tensor | npt.NDArray[Any]
Given = Part | tuple[Part, ...]

_EXPECTED = "a tensor, an array of numpy, or a tuple of them"
# Their arithmetic is missing from torch, int64 holds them.
_WIDENED = (torch.uint16, torch.uint32, torch.uint64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_batch(data: Given, *, finite: bool = True) -> Batch:
    """A batch as the tuple of positional arguments that a pair takes, each (B, ...), on the device where it was.

    Arrays of numpy become tensors, floats of torch's default dtype; sparse layouts become dense.

    Args:
        data: a tensor, an array of numpy, or a tuple of them with equal numbers of data.
        finite: whether to look at the values, too.

    Raises: ValueError for anything else, for parts that are empty or of unequal length, complex numbers, and values
    that are nan or infinite.
    """
    parts = tuple(as_part(part) for part in (data if isinstance(data, tuple) else (data,)))
    lengths = {len(part) for part in parts}
    if len(lengths) != 1:
        got = f"{sorted(lengths)} data" if parts else "no part"
        raise ValueError(f"the parts of a batch must be of equal length, got {got}; give all the same number of data")
    if finite:
        require_finite(parts)
    return parts


def as_part(part: Any) -> Tensor:
    """One part of a batch as a dense tensor; see `as_batch`."""
    if isinstance(part, np.ndarray):
        part = _from_numpy(part)
    if not isinstance(part, Tensor):
        raise ValueError(f"data must be {_EXPECTED}, got {shown(part)}; {_remedy(part)}")
    if part.is_meta or part.is_nested:
        what = "a nested tensor" if part.is_nested else "a tensor without values (meta)"
        raise ValueError(f"data must be dense tensors, got {what}; give one tensor of values, padded if need be")
    if part.layout is not torch.strided:
        part = part.to_dense()
    if part.dtype in _WIDENED:
        part = part.to(torch.int64)
    if part.dtype not in (*_FLOATS, *_WHOLE):
        raise ValueError(f"data must be real numbers, got dtype {part.dtype}; convert them first, as by .float()")
    if part.dim() == 0 or part.numel() == 0:
        raise ValueError(f"empty data: shape {tuple(part.shape)}; expected at least one datum along dim 0")
    return part


def require_finite(batch: Batch, start: int = 0) -> None:
    """Raise ValueError, with the number of the datum counted from `start`, if a value is nan or infinite."""
    for part in batch:
        # One number that is not finite makes the sum so, too, at a tenth of the time; so may very large ones.
        if not part.is_floating_point() or torch.isfinite(part.sum()):
            continue
        if not (good := torch.isfinite(part)).all():
            row = start + int((~good).nonzero()[0, 0])
            raise ValueError(
                f"data hold {int((~good).sum())} values that are nan or inf, the first in datum {row}; drop or impute "
                "them, or give (x, observed) = pvae.data.missing(x) to a model that takes both"
            )


def _from_numpy(array: npt.NDArray[Any]) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(
            "data must not be a masked array, whose mask would be lost; give pvae.data.missing(x) of "
            "x = array.astype(float).filled(numpy.nan)"
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"data must be numbers, got an array of dtype {array.dtype}; give one with a numeric dtype")
    # Torch knows neither foreign byte orders nor negative strides, and warns of arrays that cannot be written to.
    native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if array.dtype.kind == "f" and array.dtype.itemsize != np.dtype(np.float32).itemsize:
        return torch.from_numpy(native.astype(np.float64)).to(torch.get_default_dtype())
    return torch.from_numpy(native)


def _remedy(given: Any) -> str:
    for method in ("to_numpy", "toarray"):
        if hasattr(given, method):
            return f"give its .{method}()"
    if hasattr(given, "splits"):
        return "give one of its parts, such as dataset.train"
    if isinstance(given, torch.utils.data.DataLoader):
        return "give one of its batches"
    if isinstance(given, (str, bytes)):
        return "read a file with pvae.data.load(path)"
    return "convert it with torch.as_tensor"
