"""The InfoVAE: the aggregate posterior drawn to the prior by a maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pvae.objectives.adversarial.prior_draws import as_vectors, draw_prior
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch
from pvae.support.refusals import choice, number

__all__ = ["InfoVAE", "KernelName", "squared_mmd"]

KernelName = Literal["imq", "rbf"]
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class _RunWithPrior(PairRun):
    """A run, with sets of draws from the model's prior beside it, each (B, dims)."""

    prior: tuple[Tensor, ...] = field(default=())


class InfoVAE(Objective):
    """The ELBO with part of the KL replaced by a maximum mean discrepancy (MMD).

    From one particle per datum it is

        E log p(x | z) - (1 - alpha) KL(q(z | x) || p(z)) - (alpha + lambda - 1) MMD^2(q(z), p(z)),

    where q(z) is the aggregate posterior. alpha = 1 leaves the MMD alone: the MMD-VAE, or, with a `Delta` guide, the
    Wasserstein autoencoder. alpha = 0 and lambda = 1 is the ELBO. Otherwise it is no bound on log p(x).

    MMD^2 is the unbiased U-statistic of the guide's draws for a batch and as many draws of the prior, so it may be
    below 0. With r^2 the squared distance of two draws, all sites in one vector, the kernel is
    - "imq": sum_c c s^2 / (c s^2 + r^2) over c in {0.1, 0.2, 0.5, 1, 2, 5, 10}, heavy-tailed;
    - "rbf": exp(-r^2 / (2 s^2)).
    A prior without a pathwise gradient, such as a mixture, is trained by the other terms alone.

    Args:
        information: alpha, at most 1: how much of the mutual information of x and z is forgiven.
        divergence: lambda, at least 1 - alpha.
        kernel: "imq" or "rbf".
        scale: s; by default s^2 is the mean squared distance of prior draws (others than those compared).

    Raises: ValueError for weights out of range, another kernel, a scale that is not positive, or a batch of 1.

    Zhao, Song and Ermon (2019), InfoVAE: Balancing Learning and Inference in Variational Autoencoders; Tolstikhin,
    Bousquet, Gelly and Schoelkopf (2018), Wasserstein Auto-Encoders; Gretton, Borgwardt, Rasch, Schoelkopf and Smola
    (2012), A Kernel Two-Sample Test.
    """

    def __init__(
        self,
        information: float = 1.0,
        divergence: float = 10.0,
        *,
        kernel: KernelName = "imq",
        scale: float | None = None,
    ) -> None:
        super().__init__(1)
        self.information = number("information", information, most=1, usual="1, which drops the KL")
        self.divergence = number(
            "divergence", divergence, least=1 - self.information, usual="10; 1 - information is the least"
        )
        self.kernel = choice("kernel", kernel, get_args(KernelName))
        if scale is not None:
            # Its square has to be a number, too.
            number("scale", scale, least=1e-15, most=1e15, usual="1.0, or leave it out to have it read off the prior")
        self.scale = scale

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """E log p(x | z) - kl_weight * ((1 - alpha) KL + (alpha + lambda - 1) MMD^2), (B,)."""
        parts = run.scaled_log_weights()
        bound = parts.log_likelihood.mean(0)
        if self.information != 1:
            kl = (parts.log_guide - parts.log_prior).mean(0)
            bound = bound - kl_weight * (1 - self.information) * kl
        if self.information + self.divergence != 1:
            bound = bound - kl_weight * (self.information + self.divergence - 1) * self._mmd(run)
        return bound

    def _mmd(self, run: PairRun) -> Tensor:
        assert isinstance(run, _RunWithPrior)
        prior, *others = run.prior
        square: float | Tensor
        if self.scale is None:
            # Read off draws of their own: off those that are compared, it would make the estimate biased.
            square = _mean_of_pairs(_squared_distances(others[0], others[0])).detach()
        else:
            square = self.scale**2
        kernel = partial(_imq if self.kernel == "imq" else _rbf, square=square)
        return squared_mmd(as_vectors(run.latents), prior, kernel)

    def _run(self, model: Any, guide: Any, batch: Batch) -> PairRun:
        if len(batch[0]) == 1:
            raise ValueError(
                "the MMD compares the draws of a batch, and this one holds 1 datum; choose a batch_size that leaves no "
                "batch of 1"
            )
        run = super()._run(model, guide, batch)
        if self.information + self.divergence == 1:
            return run
        sets = 2 if self.scale is None else 1
        return _RunWithPrior(**vars(run), prior=tuple(draw_prior(run, model) for _ in range(sets)))


def squared_mmd(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The unbiased estimate of MMD^2 from draws x (N, D) and y (M, D), a scalar; `kernel` takes squared distances."""
    within = _mean_of_pairs(kernel(_squared_distances(x, x))) + _mean_of_pairs(kernel(_squared_distances(y, y)))
    return within - 2 * kernel(_squared_distances(x, y)).mean()


def _imq(distances: Tensor, square: float | Tensor) -> Tensor:
    return torch.stack([c * square / (c * square + distances) for c in _SCALES]).sum(0)


def _rbf(distances: Tensor, square: float | Tensor) -> Tensor:
    return (-distances / (2 * square)).exp()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M)."""
    # About a common centre, so that draws far from 0 cancel no digits.
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def _mean_of_pairs(matrix: Tensor) -> Tensor:
    """The mean off the diagonal."""
    return (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))
