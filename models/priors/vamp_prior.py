"""The VampPrior: the guide's posteriors of inputs that are learned."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.models.priors.equal_mixture import EqualMixture
from pvae.models.priors.tied import TiedPrior, rows_of
from pvae.support.arguments import check_seed
from pvae.support.refusals import number, shown, whole

__all__ = ["VampPrior", "pseudo_inputs_near"]


class VampPrior(TiedPrior):
    """The guide's mean posterior at learned inputs, p(z) = 1/M sum_m q(z | u_m) with u = clamp(free, *bounds).

    With all data for u it is the aggregate posterior, the best prior that there is for the ELBO, and it overfits. The
    guide is part of the model: build it, call `model.prior.tie(guide)`, and estimate log p(x) with the same guide, or
    with others as proposals. The guide alone cannot be trained (`fit(train="guide")`, `Aggressive`): the prior would
    move, too. Warm the KL up (`kl_schedule`), or the components may never part.

    An input whose value lies outside of the bounds has no gradient, so a start that many values leave at once, such
    as one around 0 within (0, 1), stays where it is. `pseudo_inputs_near` makes one that does not.

    Args:
        latent_dim: dimensions of z.
        pseudo_inputs: where u starts, (M, *x_shape); M = 500 is usual.
        bounds: least and largest value of u; None to leave u free.

    Attributes: `free`, (M, *x_shape).

    Raises: ValueError for pseudo-inputs that are not (M, *x_shape) numbers, or bounds in the wrong order; at `tie` for
        a guide that does not serve; ValueError for the density of a prior that is not tied.

    Tomczak and Welling (2018), VAE with a VampPrior.
    """

    def __init__(
        self, latent_dim: int, pseudo_inputs: Tensor, *, bounds: tuple[float, float] | None = (0.0, 1.0)
    ) -> None:
        super().__init__(latent_dim)
        pseudo_inputs = rows_of("pseudo_inputs", pseudo_inputs, usual="pseudo_inputs_near(data.train, 500)")
        bounds = _checked(bounds)
        like = pseudo_inputs if pseudo_inputs.is_floating_point() else pseudo_inputs.to(torch.get_default_dtype())
        self.free, self.bounds = nn.Parameter(like.detach().clone()), bounds

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, (M, *x_shape)."""
        return self.free if self.bounds is None else self.free.clamp(*self.bounds)

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        if not self._tied:
            return self._untied(self.free)
        inputs = self.pseudo_inputs
        return EqualMixture(self._components_at(inputs), lambda num: self._draws(self._some(inputs, num)))

    def _example(self) -> Tensor:
        return self.pseudo_inputs[:2]


def pseudo_inputs_near(
    data: Tensor, num: int, *, bounds: tuple[float, float] | None = (0.0, 1.0), seed: int = 0
) -> Tensor:
    """Random data, a little inside the bounds and with a little noise: a start for `VampPrior`, (num, *x_shape).

    They are drawn in by 0.05 of the range at each end, noise has a standard deviation of 0.01 of it; without bounds,
    0.01 of each value's own.

    Args:
        data: (N, *x_shape).
        num: M; data are taken more than once where there are fewer.
        bounds: as those of the prior.
        seed: of the choice and the noise.

    Raises: ValueError for fewer than 1.
    """
    data, num, bounds = rows_of("data", data, usual="data.train"), whole("num", num, usual=500), _checked(bounds)
    generator = torch.Generator().manual_seed(check_seed(seed))
    order = torch.randperm(len(data), generator=generator)[torch.arange(num) % len(data)]
    chosen = data[order.to(data.device)].to(torch.get_default_dtype())
    noise = 0.01 * torch.randn(chosen.shape, generator=generator).to(chosen)
    if bounds is None:
        return chosen + noise * data.to(chosen).std(0)
    low, high = bounds
    return low + 0.05 * (high - low) + 0.9 * (chosen - low) + noise * (high - low)


def _checked(bounds: Any) -> tuple[float, float] | None:
    if bounds is None:
        return None
    is_pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
    if not is_pair or not number("each of bounds", bounds[0], usual=0.0) < number(
        "each of bounds", bounds[1], usual=1.0
    ):
        raise ValueError(f"bounds must be a least and a larger number, got {shown(bounds)}; images have (0.0, 1.0)")
    return float(bounds[0]), float(bounds[1])
