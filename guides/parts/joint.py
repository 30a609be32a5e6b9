"""One distribution over all latent sites of a datum, sampled site by site with its exact density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from pvae.guides.parts.placing import arrange, batch_shape, collect, free_shape, in_plates, width
from pvae.pair.sites import LatentSite
from pvae.support.refusals import ContractError

__all__ = ["sample_jointly"]


def sample_jointly(sites: Sequence[LatentSite], joint: Any, num_data: int) -> None:
    """Sample all `sites` from one distribution over their unconstrained numbers side by side, carried to the supports.

    The draw is one for all sites. Its log density, that of the bijections included, stands at the last of them, and is
    exact for any values of the sites, also for those that were given instead of drawn.

    Args:
        sites: the latent sites, in the order of the model.
        joint: of batch shape (B,) and event shape (D,), D being the sum of the sites' widths. One that gives draws and
            their density at once (`rsample_and_log_prob`) is asked for both.
        num_data: B.
    """
    with in_plates(sites, num_data) as inside:
        if len(sites) == 1 and _is_plain(sites[0]) and isinstance(joint, TorchDistributionMixin):
            pyro.sample(sites[0].name, joint)
            return
        draw = _Draw(joint, sites)
        for index, site in enumerate(sites):
            with inside(site):
                draw.values.append(pyro.sample(site.name, _Part(draw, index, torch.Size(batch_shape(site, num_data)))))


def _is_plain(site: LatentSite) -> bool:
    """Whether the site is one real vector per datum, which the joint distribution serves as it is."""
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    real = support is constraints.real or support is constraints.real_vector
    return real and len(site.event_shape) == 1 and not site.plates and site.data_plate.dim == -1


class _Draw:
    """One draw from the joint distribution, made when the first site asks for it.

    Attributes: `values`, what the sites before have by now, drawn or given.
    """

    def __init__(self, joint: Any, sites: Sequence[LatentSite]) -> None:
        self.joint, self.sites = joint, sites
        self.values: list[Tensor] = []
        self._rows: Tensor | None = None
        self._log_prob: Tensor | None = None
        self._own: dict[int, Tensor] = {}

    def part(self, index: int, num_samples: int, shape: torch.Size) -> Tensor:
        """The value of one site, (*shape, *event_shape)."""
        if self._rows is None:
            count = torch.Size([num_samples])
            # A flow knows the density of its own draw without going back through its inverse.
            if hasattr(self.joint, "rsample_and_log_prob"):
                self._rows, self._log_prob = self.joint.rsample_and_log_prob(count)
            else:
                self._rows = (self.joint.rsample if self.joint.has_rsample else self.joint.sample)(count)
        site = self.sites[index]
        part = self._rows.split([width(each) for each in self.sites], -1)[index]
        free = arrange(site, part, free_shape(site)).reshape(*shape, *free_shape(site))
        self._own[index] = site.bijection(free)
        return self._own[index]

    def log_prob(self, last: Tensor) -> Tensor:
        """The joint log density at the values of all sites, (K, B)."""
        values = [*self.values[: len(self.sites) - 1], last]
        is_own = all(self._own.get(index) is value for index, value in enumerate(values))
        rows, log_dets = [], []
        for site, value in zip(self.sites, values, strict=True):
            transform = site.bijection
            free = transform.inv(value)
            log_det = transform.log_abs_det_jacobian(free, value)
            rows.append(collect(site, free, len(free_shape(site))))
            log_dets.append(collect(site, log_det, len(free_shape(site)) - transform.domain.event_dim).sum(-1))
        if is_own and self._log_prob is not None:
            log_prob = self._log_prob
        else:
            log_prob = self.joint.log_prob(self._rows if is_own else torch.cat(rows, -1))
        return log_prob - torch.stack(log_dets).sum(0)


class _Part(dist.TorchDistribution):
    """What one site has of a joint draw; the last one carries the density of them all."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, draw: _Draw, index: int, shape: torch.Size, own: torch.Size | None = None) -> None:
        self.draw, self.index, self.site = draw, index, draw.sites[index]
        self.own = own or shape
        super().__init__(shape, self.site.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """As the joint distribution."""
        return self.draw.joint.has_rsample

    @property
    def refusal(self) -> ContractError | None:
        """As the joint distribution: why it has no density, if it has none."""
        return getattr(self.draw.joint, "refusal", None)

    @property
    def support(self) -> Any:
        """That of the site."""
        return self.site.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Part:
        """The same part of more draws."""
        return _Part(self.draw, self.index, torch.Size(batch_shape), self.own)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The site's part of the joint draw, (*sample_shape, *batch_shape, *event_shape)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.draw.part(self.index, shape.numel() // self.own.numel(), shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """As `rsample`, without history."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The joint log density at the last site, 0 at the others."""
        shape = value.shape[: value.dim() - self.event_dim]
        if self.index < len(self.draw.sites) - 1:
            return value.new_zeros(shape)
        # Shared evenly by the plates inside the data plate, which are summed up anyway.
        count = torch.Size([plate.size for plate in self.site.plates]).numel()
        log_prob = (self.draw.log_prob(value) / count)[..., None]
        return arrange(self.site, log_prob.expand(*log_prob.shape[:-1], count), ()).reshape(shape)
