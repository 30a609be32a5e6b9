"""Whole numbers that float32, in which data are kept, would round."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_exact"]

# Beyond it every float64 is a whole number, so that being one says nothing.
_EVERY_FLOAT = 2**53


def check_exact(values: npt.NDArray[Any], where: str, *, as_written: bool = False) -> None:
    """Raises ValueError if rounding to float32 changes an entry of `values` (N, *shape) that holds whole numbers only.

    Float32 holds every whole number up to 2**24 = 16,777,216. Real numbers are rounded in their last digits without
    harm, whole numbers (times, identifiers) become others. `as_written` says that `values` come from digits in a text,
    of which float64 may have lost some.
    """
    floats = values.dtype.kind == "f"
    if values.dtype.kind == "b" or values.dtype.itemsize <= (4 if floats else 2):
        return
    most = _EVERY_FLOAT - as_written  # digits of 2**53 + 1 are read as 2**53
    beyond = (values > most) | (values < -most)
    changed = beyond | (values.astype(np.float32).astype(np.float64) != values)
    if not changed.any():
        return
    if floats:
        whole = (values == np.floor(values)).all(0)
        changed &= whole if as_written else whole & ~beyond.any(0)
    if changed.any():
        row = int(changed.reshape(len(values), -1).any(1).argmax())
        value = values[row][changed[row]][0]
        raise ValueError(
            f"{where} must hold whole numbers up to 2**24, which float32 keeps, got {int(value)} in row {row} (counted "
            "from 0): subtract an offset or divide, drop that column, or give pvae.data.DataSet a float64 tensor"
        )
