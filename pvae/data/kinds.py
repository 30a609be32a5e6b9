"""The kinds of value that a data set can hold, and the checks that its values are of that kind."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pvae.data.exact import check_exact
from pvae.support.batch import Part, as_part
from pvae.support.refusals import choice, nearest, shown

__all__ = ["Binarization", "Kind", "as_dense", "as_stored", "check_binarization", "check_finite", "check_kind"]

Kind = Literal["binary", "unit", "counts", "real", "categorical"]
Binarization = Literal["dynamic", "static", "threshold"]

_RANGES = {
    "binary": ("0s and 1s", "say kind='unit' and use pvae.data.binarized"),
    "unit": ("values in [0, 1]", "divide by the largest value or say kind='real'"),
    "counts": ("non-negative integers", "round them or say kind='real'"),
    "categorical": ("non-negative integers", "number the categories from 0"),
}


def check_kind(kind: Any) -> None:
    """Raises ValueError, naming the nearest kind, unless `kind` is a Kind."""
    choice("kind", kind, get_args(Kind))


def check_binarization(how: Any) -> None:
    """Raises ValueError, naming the nearest binarization, unless `how` is a Binarization or None."""
    choices = get_args(Binarization)
    if how is not None and not (isinstance(how, str) and how in choices):
        raise ValueError(
            f"unknown binarize {shown(how)}: {nearest(how, choices)}, or None to leave the data as they are"
        )


def check_finite(values: Tensor, where: str) -> None:
    """Raises ValueError, with how many and the first row, if `values` (N, *shape) are not all finite."""
    bad = ~torch.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{where} must be finite, got {int(bad.sum())} values NaN or infinite in {values.dtype}, "
            f"the first in row {_first_row(bad)} (counted from 0): drop those rows or fill the values in"
        )


def as_dense(values: Part, where: str) -> Tensor:
    """An array or tensor (N, *shape) as a dense tensor, by the door that batches take.

    Raises ValueError, which begins with `where`, for anything else and for what is empty.
    """
    try:
        return as_part(values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def as_stored(values: Part, kind: Kind, where: str) -> Tensor:
    """The values (N, *shape) as a data set keeps them: floats as given, integers float32, categories int64.

    Raises ValueError if they are not a non-empty tensor of finite numbers within the range of `kind`, or integers that
    float32 would round.
    """
    values = as_dense(values, where)
    if kind == "categorical" and values.is_floating_point():
        raise ValueError(f"{where} of kind 'categorical' must have an integer dtype, got {values.dtype}: use .long()")
    if kind == "categorical":
        values = values.to(torch.int64)
    elif not values.is_floating_point():
        check_exact(values.cpu().numpy(), where)
        values = values.to(torch.float32)
    check_finite(values, where)
    _check_range(values, kind, where)
    return values


def _check_range(values: Tensor, kind: Kind, where: str) -> None:
    if kind == "real":
        return
    if kind == "binary":
        bad = (values != 0) & (values != 1)
    elif kind == "unit":
        bad = (values < 0) | (values > 1)
    else:
        bad = (values < 0) | (values != values.round())
    if bad.any():
        expected, fix = _RANGES[kind]
        raise ValueError(
            f"{where} of kind {kind!r} must hold {expected}, got {int(bad.sum())} others such as "
            f"{values[bad][0].item():.9g} in row {_first_row(bad)}: {fix}"
        )


def _first_row(bad: Tensor) -> int:
    return int(bad.flatten().nonzero()[0]) // (bad.numel() // len(bad))
