"""What kind of values a file holds, where nothing but the values says so."""

from torch import Tensor

from pvae.data.kinds import Kind

__all__ = ["guessed_kind"]


def guessed_kind(splits: dict[str, Tensor], where: str) -> tuple[Kind, str]:
    """The kind of the values of all splits, each (N, *shape), and a note of what a person may want to know.

    "binary" if all are 0 or 1, "unit" if they lie in [0, 1], "counts" if they are whole numbers of at least 0, however
    few or many different ones and whatever their dtype; "real" for all others, such as whole numbers of which some are
    negative.
    Raises ValueError for values that have two readings: two whole numbers only, which can be a code of binary data, and
    whole numbers of which the largest is 255, which can be intensities of 8 bits.
    """
    low, high = (float(reduced) for reduced in _extremes(splits))
    whole = all(bool((x == x.round()).all()) for x in splits.values())
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


def _extremes(splits: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return min(x.min() for x in splits.values()), max(x.max() for x in splits.values())


def _whole_columns(splits: dict[str, Tensor]) -> str:
    """A note of columns of whole numbers among others, which a likelihood of real values treats as real, too."""
    if next(iter(splits.values())).dim() != 2:
        return ""
    columns = [(x == x.round()).all(0) for x in splits.values()]
    num_whole = int(sum(columns[1:], start=columns[0].long()).eq(len(columns)).sum())
    return f"{num_whole} of them whole numbers only" if num_whole else ""
