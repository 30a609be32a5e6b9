"""Integrals of exp(log f) over one or two dims, each datum's in a box and cells of its own.

Points are (K, B, D) and log f is (K, B), for K points, B data and D dims.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.estimators.density.box import LogIntegrand, product

__all__ = ["NODES", "Integral", "integrate"]

NODES = 15
_MOST_ROUNDS = 32
_POINTS_AT_ONCE = 250_000

# Gauss's 7 nodes are every second one of Kronrod's 15 (Piessens et al. 1983, QUADPACK).
_HALF_NODES = [0.991455371120812639206854697526329, 0.949107912342758524526189684047851]
_HALF_NODES += [0.864864423359769072789712788640926, 0.741531185599394439863864773280788]
_HALF_NODES += [0.586087235467691130294144691693819, 0.405845151377397166906606412076961]
_HALF_NODES += [0.207784955007898467600689403773245]
_HALF_KRONROD = [0.022935322010529224963732008058970, 0.063092092629978553290700663189204]
_HALF_KRONROD += [0.104790010322250183839876322541518, 0.140653259715525918745189590510238]
_HALF_KRONROD += [0.169004726639267902826583426598550, 0.190350578064785409913256402421014]
_HALF_KRONROD += [0.204432940075298892414161999234649]
_HALF_GAUSS = [0.0, 0.129484966168869693270611432679082, 0.0, 0.279705391489276667901467771423780, 0.0]
_HALF_GAUSS += [0.381830050505118944950369775488975, 0.0]
_MIDDLE_KRONROD, _MIDDLE_GAUSS = 0.209482141084727828012999174891714, 0.417959183673469387755102040816327


class Integral(NamedTuple):
    """The log of an integral and its error in nats, (B,) each, and how many points per datum it took."""

    log_value: Tensor
    error: Tensor
    num_points: int


def integrate(log_f: LogIntegrand, low: Tensor, high: Tensor, cells_per_dim: int, tolerance: float) -> Integral:
    """log of the integral of exp(log f) over a box per datum, corners (B, D).

    A cell has 15 Kronrod nodes per dim. All cells are halved along each dim once, and then the worst, until the errors
    of a datum add up to less than `tolerance` nats, or rounds run out. The error of a cell is the difference from the
    7 Gauss nodes among its own, or its share of what halving its parent changed, if that is more: at a kink the one
    may vanish by chance, hardly both. Neighbours of a halved cell follow, so widths change by degrees.

    Raises: ValueError if log f is nan or +inf at more than a few points.
    """
    num_dims = low.shape[-1]
    corners = product(torch.arange(cells_per_dim, dtype=low.dtype, device=low.device), num_dims)
    widths = ((high - low) / cells_per_dim).expand(len(corners), -1, -1)
    lows = low + corners[:, None] * widths
    parts = _halved(log_f, _Cells(lows, widths, *_rule(log_f, lows, widths)))
    cells = _Cells(*(torch.cat([*part]) for part in parts))
    num_points = (len(lows) + len(cells.lows)) * NODES**num_dims
    most = 8 * cells_per_dim ** (num_dims - 1) + 8
    for _ in range(_MOST_ROUNDS):
        shares = cells.shares()
        if bool((shares.sum(0) <= tolerance).all()):
            break
        worst = _to_halve(cells, shares, tolerance, most)
        rows = worst[..., None].expand(-1, -1, num_dims)
        parents = _Cells(
            cells.lows.gather(0, rows), cells.widths.gather(0, rows), cells.logs.gather(0, worst), worst.double()
        )
        children = _halved(log_f, parents)
        num_points += 2**num_dims * len(worst) * NODES**num_dims
        # The first child takes its parent's place, the others come at the end.
        cells = _Cells(
            *(
                torch.cat([old.scatter(0, rows if old.dim() == 3 else worst, new[0]), *new[1:]])
                for old, new in zip(cells, children, strict=True)
            )
        )
    return Integral(cells.logs.logsumexp(0), cells.shares().sum(0), num_points)


class _Cells(NamedTuple):
    """Lower corners and widths, (C, B, D) each; log of the integral over each and of its error, (C, B) each."""

    lows: Tensor
    widths: Tensor
    logs: Tensor
    errors: Tensor

    def shares(self) -> Tensor:
        """Each cell's error as a share of the whole integral, which is nats where it is small: (C, B)."""
        return torch.nan_to_num((self.errors - self.logs.logsumexp(0)).exp(), nan=0.0)


def _to_halve(cells: _Cells, shares: Tensor, tolerance: float, most: int) -> Tensor:
    """Which cells to halve, (R, B): the worst, and the wider ones that touch them.

    What ends a little beyond the edge of a cell is not seen by the wide cell next to it.
    """
    wanted = shares > tolerance / len(shares)
    count = min(max(int(wanted.sum(0).max()), 1), most)
    worst = shares.topk(count, 0).indices
    touches = wanted.gather(0, worst)[None].expand(len(shares), -1, -1)
    highs = cells.lows + cells.widths
    for dim in range(cells.lows.shape[-1]):
        low, high, width = (part[..., dim] for part in (cells.lows, highs, cells.widths))
        near = width.gather(0, worst) / 2
        touches = (
            touches & (low[:, None] < high.gather(0, worst) + near) & (high[:, None] > low.gather(0, worst) - near)
        )
        touches = touches & (width[:, None] > 1.5 * width.gather(0, worst))
    due = touches.any(1)
    count = min(max(int((due | wanted).sum(0).max()), 1), count + int(due.sum(0).max()))
    return shares.masked_fill(due, math.inf).topk(count, 0).indices


def _halved(log_f: LogIntegrand, parents: _Cells) -> _Cells:
    """The children of each cell, one more dim (2^D, ...) in front."""
    num_dims = parents.lows.shape[-1]
    offsets = product(torch.arange(2, dtype=parents.lows.dtype, device=parents.lows.device), num_dims)
    widths = (parents.widths / 2).expand(len(offsets), *parents.widths.shape)
    lows = parents.lows + offsets[:, None, None] * widths
    flat = _rule(log_f, lows.flatten(0, 1), widths.flatten(0, 1))
    logs, errors = (part.unflatten(0, lows.shape[:2]) for part in flat)
    largest = torch.maximum(parents.logs, logs.amax(0))
    largest = torch.where(largest.isfinite(), largest, 0)
    change = ((parents.logs - largest).exp() - (logs - largest).exp().sum(0)).abs()
    inherited = largest + (change / len(offsets)).log()
    return _Cells(lows, widths, logs, torch.maximum(errors, inherited))


def _rule(log_f: LogIntegrand, lows: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """log of each cell's integral and of its error, (C, B) each."""
    num_dims = lows.shape[-1]
    nodes, kronrod, gauss = (
        product(torch.tensor(line, dtype=lows.dtype, device=lows.device), num_dims) for line in _lines()
    )
    kronrod, gauss = kronrod.prod(-1)[:, None, None], gauss.prod(-1)[:, None, None]
    cells, errors, num_bad = [], [], 0
    at_once = max(1, _POINTS_AT_ONCE // (len(nodes) * lows.shape[1]))
    for low, width in zip(lows.split(at_once), widths.split(at_once), strict=True):
        points = low + nodes[:, None, None] * width
        values = log_f(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        bad = values.isnan() | values.isposinf()
        num_bad += int(bad.sum())
        values = values.masked_fill(bad, -math.inf)
        largest = values.amax(0)
        largest = torch.where(largest.isfinite(), largest, 0)
        heights = (values - largest).exp()
        volume = largest + width.log().sum(-1)
        cells.append(volume + (kronrod * heights).sum(0).log())
        errors.append(volume + ((kronrod - gauss) * heights).sum(0).abs().log())
    if num_bad > 1e-3 * len(nodes) * lows[..., 0].numel() + 1:
        raise ValueError(
            f"log p(x, z) is nan or infinite at {num_bad} grid points; look at the model with pvae.check, and keep "
            "scales away from 0"
        )
    return torch.cat(cells), torch.cat(errors)


def _lines() -> tuple[list[float], list[float], list[float]]:
    """Nodes on (0, 1) with their Kronrod and Gauss weights."""
    nodes = [(1 - node) / 2 for node in _HALF_NODES]
    nodes = [*nodes, 0.5, *(1 - node for node in reversed(nodes))]
    kronrod = [*_HALF_KRONROD, _MIDDLE_KRONROD, *reversed(_HALF_KRONROD)]
    gauss = [*_HALF_GAUSS, _MIDDLE_GAUSS, *reversed(_HALF_GAUSS)]
    return nodes, [weight / 2 for weight in kronrod], [weight / 2 for weight in gauss]
