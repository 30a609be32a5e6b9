"""The jackknife's correction of the bias of importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pvae.estimators.importance import GuideProposal
from pvae.estimators.weights.chunks import Chunks, StepMode, check_chunks
from pvae.estimators.weights.stream import Estimate, WeightStream
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.support.refusals import whole

__all__ = ["Jackknife", "jackknife"]

# Pairs with one of the largest weights are summed one by one, the others by a power series: beyond 16 weights no share
# exceeds 1/17, so that its terms fall like 256^-m.
_HEAD, _POWERS = 16, 8
_VALUES_AT_ONCE = 4_000_000


class Jackknife:
    """Jackknife variational inference: importance sampling with the leading terms of its bias taken out.

    With L_n the log of the mean of all n = K weights and L_{n-j} that of a subset that lacks j of them,

        order 1:  n L_n - (n - 1) mean L_{n-1}                                        bias O(n^-2)
        order 2:  n^2 / 2 L_n - (n - 1)^2 mean L_{n-1} + (n - 2)^2 / 2 mean L_{n-2}   bias O(n^-3)

    with means over all subsets. It bounds nothing, and lowers the bias only where the weights have moments, so where
    k-hat is small; it is not finite for a datum with no more than `order` weights above 0. ESS and k-hat are those of
    the weights, the Monte-Carlo error is the jackknife's: sqrt((n - 1) / n sum_i (L_{n-1}^(i) - mean)^2).

    Args:
        num_samples: K, above the order. All K weights of a batch are held at once.
        order: 1 or 2.
        chunk_size: as in `ImportanceSampling`.
        step_mode: as in `ImportanceSampling`.

    Raises: ValueError for an order besides 1 and 2, K not above it, a chunk size below 1 and an unknown mode.

    Nowozin (2018), Debiasing evidence approximations: on importance-weighted autoencoders and jackknife
    variational inference.
    """

    bound = "none"

    def __init__(
        self,
        num_samples: int = 1000,
        *,
        order: Literal[1, 2] = 1,
        chunk_size: int | None = None,
        step_mode: StepMode = "auto",
    ) -> None:
        self.num_samples = num_samples = check_chunks(num_samples, chunk_size, step_mode)
        if whole("order", order, usual="1 or 2") not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}; use ImportanceSampling for no correction")
        if num_samples <= order:
            raise ValueError(f"order {order} leaves out {order} draws, so num_samples must exceed it; try 1000")
        self.order, self.chunk_size, self.step_mode = order, chunk_size, step_mode

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another."""
        chunks = Chunks(
            GuideProposal(model, guide), self.num_samples, self.chunk_size, self.step_mode, parameters, num_batches
        )

        def estimate(batch: Batch) -> Estimate:
            rows: list[Tensor] = []
            stream = WeightStream(self.num_samples)

            def take(log_weights: Tensor) -> None:
                rows.append(log_weights)
                stream.update(log_weights)

            chunks(batch, take)
            plain = stream.estimate()
            values, errors = jackknife(torch.cat(rows), self.order)
            found = Estimate(values.cpu(), errors.cpu(), plain.ess, plain.khat)
            return chunks.conclude(found, self.num_samples)

        return estimate


def jackknife(log_weights: Tensor, order: Literal[1, 2]) -> tuple[Tensor, Tensor]:
    """The jackknife of log weights (K, B) and its standard error, each (B,) in float64.

    Where no more than `order` weights are above zero there is nothing to correct by: the value is the plain one, its
    error inf.
    """
    columns = max(1, _VALUES_AT_ONCE // (_HEAD * len(log_weights)))
    parts = [_jackknife(part.double().T, order) for part in log_weights.split(columns, dim=1)]
    plain = log_weights.double().logsumexp(0) - math.log(len(log_weights))
    is_known = (log_weights > -math.inf).sum(0) > order
    values = torch.where(is_known, torch.cat([value for value, _ in parts]), plain)
    return values, torch.cat([error for _, error in parts]).masked_fill(~is_known, math.inf)


def _jackknife(log_weights: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """The same of rows (B, K).

    Written with shares s_i = w_i / sum w, as L_{n-1}^(i) = L_n + log(n / (n - 1)) + log(1 - s_i): the large
    coefficients then multiply small differences only.
    """
    n = log_weights.shape[1]
    ordered = log_weights.sort(dim=1, descending=True).values
    largest = ordered[:, :1]
    weights = (ordered - torch.where(largest.isfinite(), largest, 0)).exp()
    total = weights.sum(1, keepdim=True)
    without = _log_without(weights, total)
    mean = without.mean(1, keepdim=True)
    error = ((n - 1) / n * (without - mean).square().sum(1)).sqrt()
    plain = (largest + (total / n).log())[:, 0]
    one_less = math.log1p(1 / (n - 1)) + mean[:, 0]
    if order == 1:
        return plain - (n - 1) * one_less, error
    pairs = 2 / (n * (n - 1)) * _over_pairs(weights, total, without)
    return plain - (2 * n - 3) * one_less + (n - 2) ** 2 / 2 * (math.log1p(1 / (n * (n - 2))) + pairs), error


def _log_without(weights: Tensor, total: Tensor) -> Tensor:
    """log(1 - s_i), (B, K), for weights that fall along a row and their total."""
    without = torch.log1p(-weights / total)
    # Where one weight is nearly all, 1 - s would round.
    without[:, 0] = (weights[:, 1:].sum(1) / total[:, 0]).log()
    return without


def _over_pairs(weights: Tensor, total: Tensor, without: Tensor) -> Tensor:
    """Sum over i < j of log(1 - s_i - s_j) - log(1 - s_i) - log(1 - s_j), (B,), in O(K).

    Each term is log(1 - r_i r_j) with odds r = s / (1 - s).
    """
    others = weights[:, 1:]
    with_largest = (_log_without(others, others.sum(1, keepdim=True)) - without[:, 1:]).sum(1)
    odds = others / (total - others)
    head, rest = odds[:, :_HEAD], odds[:, _HEAD:]
    with_head = torch.log1p(-(head[:, :, None] * odds[:, None, :]).triu(1)).sum((1, 2))
    powers = torch.arange(1, _POWERS + 1, dtype=odds.dtype, device=odds.device)
    once, twice = (torch.stack([rest.pow(m).sum(1) for m in exponents]) for exponents in (powers, 2 * powers))
    among_rest = -((once.square() - twice) / (2 * powers[:, None])).sum(0)
    return with_largest + with_head + among_rest
