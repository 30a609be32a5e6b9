"""The Fisher autoencoder: pairs compared by the slopes of their log densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pvae.objectives.gradient import attach_draws, value_with_gradient
from pvae.objectives.objective import Objective
from pvae.pair.contexts import called_modules, seeded
from pvae.pair.pair_run import PairRun
from pvae.pair.run import trace_pair
from pvae.pair.simulate import observed_parts
from pvae.pair.sites import Batch, base_of, random_sites
from pvae.support.refusals import whole

__all__ = ["FisherAutoencoder"]


class FisherAutoencoder(Objective):
    """Minus the Fisher divergence between p_data(x) q(z | x) and p(z) p(x | z), up to a constant of the data.

    That is -J with, for z ~ q(z | x),

        J = E { 1/2 |d_z log q(z | x) - d_z log p(x, z)|^2 + 1/2 |d_x log q(z | x)|^2
                + 1/2 |d_x log p(x | z)|^2 + laplacian_x log p(x | z) }:

    the mismatch of the posterior's slope, the stability of the encoder, and the decoder's Hyvarinen score. With
    1/2 E |d_x log p_data|^2 added it is 0 for the true model with the true posterior. It is no bound on log p(x), and
    its unit is no nat. The Laplacian is Hutchinson's estimate from one vector of signs, exact for a likelihood that is
    a product over the values of x. A KL weight multiplies the two terms of log q.

    Args:
        num_samples: draws of the guide per datum.

    Raises: ValueError for fewer than 1, and for sites that do not live on the reals: a mass function has no slope.

    Elkhalil, Hasan, Ding, Farsiu and Tarokh (2021), Fisher Auto-Encoders; Hyvarinen (2005), Estimation of
    Non-Normalized Statistical Models by Score Matching.
    """

    always_split = True
    needs_history = True

    def __init__(self, num_samples: int = 1) -> None:
        # Each draw has a slope by x of its own, so that draws are copies of the data here, not particles.
        super().__init__(1)
        self.num_samples = whole("num_samples", num_samples, usual=1)
        self._parts: tuple[Any, Any, set[int]] | None = None

    def prepare(self, model: Any, guide: Any, batch: Batch) -> Batch:
        """The batch once per draw, (K B, ...), the parts that the model observes as leaves."""
        if self._parts is None or self._parts[:2] != (model, guide):
            with seeded(0, batch[0].device), called_modules():
                _require_reals(model, guide, batch)
                self._parts = model, guide, set(observed_parts(model, batch).values())
        copies = [part.repeat(self.num_samples, *(1,) * (part.dim() - 1)) for part in batch]
        return tuple(
            part.detach().requires_grad_() if index in self._parts[2] else part for index, part in enumerate(copies)
        )

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """-J per datum, (B,)."""
        parts = run.scaled_log_weights()
        log_joint = parts.log_likelihood + parts.log_prior
        latents = [run.guide[name]["value"] for name in run.drawn]
        x = [part for part in run.batch if part.requires_grad]
        mismatch = _slopes(parts.log_guide - log_joint, latents)
        of_data = _slopes(parts.log_likelihood, x)
        squares = kl_weight * _squares([*mismatch, *_slopes(parts.log_guide, x)]) + _squares(of_data)
        divergence = 0.5 * squares + _laplacian(of_data, x)
        surrogate = divergence + attach_draws(run, divergence)
        return -value_with_gradient(divergence, surrogate).unflatten(0, (self.num_samples, -1)).mean(0)


def _slopes(log_prob: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives of each datum's log_prob, of the shapes of `of`, with their history."""
    if not log_prob.requires_grad:
        return [torch.zeros_like(value) for value in of]
    return list(torch.autograd.grad(log_prob.sum(), of, create_graph=True, allow_unused=True, materialize_grads=True))


def _squares(slopes: Sequence[Tensor]) -> Tensor:
    """Squared norm per datum, (B,)."""
    return torch.stack([_per_datum(slope.square()) for slope in slopes]).sum(0)


def _per_datum(values: Tensor) -> Tensor:
    """The sum of each datum's values, (B,)."""
    return values.reshape(len(values), -1).sum(1)


def _laplacian(slopes: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """Hutchinson's estimate of the trace of the Hessian per datum, (B,)."""
    signs = [torch.randint_like(part, 2) * 2 - 1 for part in x]
    along = torch.stack([_per_datum(slope * sign) for slope, sign in zip(slopes, signs, strict=True)]).sum(0)
    terms = [_per_datum(slope * sign) for slope, sign in zip(_slopes(along, x), signs, strict=True)]
    return torch.stack(terms).sum(0)


def _require_reals(model: Any, guide: Any, batch: Batch) -> None:
    with torch.no_grad():
        _, trace = trace_pair(model, guide, batch)
    for name, site in random_sites(trace).items():
        support = site["fn"].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is not constraints.real and support is not constraints.real_vector:
            what = "continuous x" if site["is_observed"] else "real latents"
            raise ValueError(
                f"FisherAutoencoder needs {what}, site '{name}' is {type(base_of(site['fn'])).__name__}, not on the "
                "reals; use a Gaussian likelihood on dequantised data, or another objective"
            )
