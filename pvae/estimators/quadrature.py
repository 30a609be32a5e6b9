"""log p(x) by numerical integration over latents of one or two dims."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvae.estimators.density.box import bounding_box
from pvae.estimators.density.cubature import NODES, integrate
from pvae.estimators.density.joint import Joint
from pvae.estimators.weights.stream import Estimate
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch, moving_support
from pvae.pair.supports import family_of, free_shape, onto, shared, support_of
from pvae.support.refusals import whole

__all__ = ["Quadrature"]

_MOST_DIMS = 2
_TOLERANCE = {torch.float64: 1e-9}


class Quadrature:
    """log p(x) = log of the integral over u of p(x | z(u)) p(z(u)) |dz / du|, for latents of at most 2 dims in all.

    u is unconstrained and z(u) the bijection to the support; an angle goes once around. Each datum has a box of its
    own, where the integrand is within 40 nats of its maximum, in cells of 15 x 15 Gauss-Kronrod points; cells whose
    error is large are halved, so kinks and thin ridges are resolved too. Needs no guide, and draws nothing.

    `mc_standard_errors` is the error of the rule: its difference from the one with half the points per dim, summed
    over cells. Cells are halved until it is below 1e-9 nats, or 1e-4 where the latents are in float32. There are no
    weights, so `khat` is -inf and `ess` the number of points.

    Args:
        points_per_dim: of the grid that every datum starts from, at most.

    Attributes: `num_samples`, how many points a datum took, all grids counted; the most over all batches, 0 before.

    Raises: ValueError for fewer than 30 points; on use, for latents that are discrete, of more than 2 dims, on a
    support that is not one for all data and draws, or on one that no bijection leads to.

    Piessens et al. (1983), QUADPACK; Genz and Malik (1980) for the halving of the worst cells.
    """

    bound = "none"

    def __init__(self, points_per_dim: int = 400) -> None:
        self.points_per_dim = whole("points_per_dim", points_per_dim, 2 * NODES, usual=400)
        self.num_samples = 0

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """log p(x) per datum, (B,), for one batch after another; the guide is not used."""
        self.num_samples = 0
        return lambda batch: self._estimate(model, batch)

    def _estimate(self, model: Any, batch: Batch) -> Estimate:
        integrand = _Integrand(Joint(model, batch))
        low, high = bounding_box(integrand, *integrand.first_box())
        integral = integrate(integrand, low, high, self.points_per_dim // (2 * NODES), integrand.tolerance)
        self.num_samples = max(self.num_samples, integral.num_points)
        return Estimate(
            values=integral.log_value.cpu(),
            mc_standard_errors=integral.error.cpu(),
            ess=torch.full_like(integral.error, integral.num_points).cpu(),
            khat=torch.full_like(integral.error, -math.inf).cpu(),
        )


class _Integrand:
    """log p(x, z(u)) + log |dz / du| of one batch at points u, (K, B, D) -> (K, B)."""

    def __init__(self, joint: Joint) -> None:
        self.joint = joint
        self.transforms: dict[str, Any] = {}
        for name, site in joint.sites.items():
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"site '{name}' is discrete, which Quadrature does not sum over; use Enumeration if every latent "
                    "is, else ImportanceSampling"
                )
            family, support = family_of(site["fn"]), shared(support_of(site["fn"]))
            if support is None:
                raise moving_support(name, family)
            self.transforms[name] = onto(name, family, support)
        self.shapes = {name: free_shape(self.transforms[name], shape) for name, shape in joint.shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        if not 0 < sum(self.sizes) <= _MOST_DIMS:
            raise ValueError(
                f"the latents have {sum(self.sizes)} dims in all, Quadrature takes at most {_MOST_DIMS}; use "
                "AnnealedImportanceSampling"
            )
        self.dtype = next(iter(joint.prior_draws.values())).dtype
        self.tolerance = _TOLERANCE.get(self.dtype, 1e-4)

    def __call__(self, points: Tensor) -> Tensor:
        return torch.cat([self._at(part) for part in points.split(self.joint.rows_at_once)])

    def _at(self, points: Tensor) -> Tensor:
        latents = {}
        log_volume = torch.zeros_like(points[..., 0])
        for (name, shape), part in zip(self.shapes.items(), points.split(self.sizes, -1), strict=True):
            free = part.to(self.dtype).reshape(*part.shape[:2], *shape)
            latents[name] = self.transforms[name](free)
            log_det = self.transforms[name].log_abs_det_jacobian(free, latents[name])
            log_volume = log_volume + log_det.double().reshape(*log_volume.shape, -1).sum(-1)
        return self.joint.log_prob(latents) + log_volume

    def first_box(self) -> tuple[Tensor, Tensor]:
        """Corners (B, D) of a box three times as wide as what the prior drew."""
        parts = [self.transforms[name].inv(value).double() for name, value in self.joint.prior_draws.items()]
        draws = torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)
        draws = draws.masked_fill(~draws.isfinite(), math.nan)  # a draw may round to the edge of its support
        low, high = draws.nanquantile(0.0, 0), draws.nanquantile(1.0, 0)
        width = (high - low).clamp(min=1e-6)
        return low - width, high + width
