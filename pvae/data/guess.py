"""What kind of values a file holds, where nothing but the values says so."""

import numpy as np

from pvae.data.kinds import Kind
from pvae.data.numpy_files import Array

__all__ = ["guessed_kind"]


def guessed_kind(splits: dict[str, Array], where: str) -> tuple[Kind, str]:
    """The kind of the values of all splits, each (N, *shape) and not rounded yet, and a note for a person.

    "binary" if all are 0 or 1, "unit" if they lie in [0, 1], "counts" if they are whole numbers of at least 0, however
    few or many different ones and whatever their dtype; "real" for all others, such as whole numbers of which some are
    negative.
    Raises ValueError for values that have two readings: two whole numbers only, which can be a code of binary data, and
    whole numbers of which the largest is 255, which can be intensities of 8 bits.
    """
    # As they will be stored: 1 + 1e-12 is 1.
    low = float(np.float32(min(x.min() for x in splits.values())))
    high = float(np.float32(max(x.max() for x in splits.values())))
    whole = all(bool(_is_whole(x).all()) for x in splits.values())
    if whole and low >= 0 and high <= 1:
        return "binary", ""
    if low >= 0 and high <= 1:
        return "unit", ""
    if not whole:
        return "real", _whole_columns(splits)
    if low < high and all(bool(((x == low) | (x == high)).all()) for x in splits.values()):
        raise ValueError(
            f"{where} holds {low:g} and {high:g} only: binary data so coded, or numbers? Save binary data as 0 and 1, "
            "or say what they are with kind='counts' or 'real' (--kind on the command line)"
        )
    if low >= 0 and high == 255:
        raise ValueError(
            f"{where} holds whole numbers from {low:g} to 255: intensities of 8 bits, or counts? Divide intensities by "
            "255 before saving, or say kind='counts' (--kind counts on the command line)"
        )
    return ("counts", "") if low >= 0 else ("real", "whole numbers, some negative")


def _is_whole(x: Array) -> Array:
    return x == np.round(x) if x.dtype.kind == "f" else np.ones(x.shape, bool)


def _whole_columns(splits: dict[str, Array]) -> str:
    """A note of columns of whole numbers among others, which a likelihood of real values treats as real, too."""
    if next(iter(splits.values())).ndim != 2:
        return ""
    num = int(np.all([_is_whole(x).all(0) for x in splits.values()], axis=0).sum())
    return f"{num} column{'s' * (num > 1)} of whole numbers" if num else ""
