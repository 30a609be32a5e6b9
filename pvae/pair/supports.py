"""Where a distribution lives: its support as it truly is, and the bijection from the reals to it.

A support of torch's may be larger than where the density integrates to 1: that of an angle is called real, and that of
a transformed distribution is all that its last transform could reach.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform, IndependentTransform, Transform

from pvae.support.refusals import ContractError

__all__ = [
    "Image",
    "Unreachable",
    "bijection",
    "bounds_of",
    "ends",
    "entry",
    "family_of",
    "free_shape",
    "is_carried",
    "onto",
    "same",
    "shared",
    "support_of",
    "unwrapped",
]

_WRAPPERS = (dist.Independent, torch.distributions.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
_CIRCULAR = (torch.distributions.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
_WITH_POINTS = (dist.Delta, dist.Empirical, dist.ZeroInflatedDistribution)
_TRANSFORMED = torch.distributions.TransformedDistribution
_TURN = constraints.interval(-math.pi, math.pi)
_UPWARDS = (constraints.greater_than, constraints.greater_than_eq)
_DOWNWARDS = (constraints.less_than,)
_BETWEEN = (constraints.interval, constraints.half_open_interval)
_WHOLE_UPWARDS, _WHOLE_DOWNWARDS = type(constraints.nonnegative_integer), constraints.integer_interval


class Image(constraints.Constraint):
    """What a bijection makes of a support, where its codomain is larger: {T(y): y in `base`}."""

    def __init__(self, base: constraints.Constraint, transforms: list[Transform]) -> None:
        self.base, self.transform = base, ComposeTransform(transforms)
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Dims of one event."""
        own: int = self.transform.codomain.event_dim
        return own + max(self.base.event_dim - self.transform.domain.event_dim, 0)

    def __repr__(self) -> str:
        return f"the image of {self.base} under {self.transform.parts}"


class Unreachable(constraints.Constraint):
    """One that no density of torch's covers: single points that have probability, or a support that is not told."""

    def __init__(self, what: str, event_dim: int) -> None:
        self.what, self._event_dim = what, event_dim
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Dims of one event."""
        return self._event_dim

    def __repr__(self) -> str:
        return self.what


def family_of(distribution: Any) -> str:
    """The name of the distribution inside `to_event`, masks and expansions."""
    return type(unwrapped(distribution)).__name__


def unwrapped(distribution: Any) -> Any:
    """The distribution inside `to_event`, masks and expansions."""
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    return distribution


def is_carried(distribution: Any) -> bool:
    """Whether transforms made it and its support, which says no more than where the last of them could lead."""
    return isinstance(distribution, _TRANSFORMED) and type(distribution).support is _TRANSFORMED.support


def support_of(distribution: Any, *, around: bool = False) -> constraints.Constraint:
    """The support of one event, over which the density integrates to 1.

    Of an angle it is one turn, [-pi, pi]; or the reals, on which the density is periodic, where `around` is set: an
    observed angle may be given in any turn. Of a mixture it is that of the components, to whose own torch knows no
    bijection. Bounds that are tensors keep their shape: see `shared`.
    """
    if isinstance(distribution, (dist.Independent, torch.distributions.Independent)):
        inner = support_of(distribution.base_dist, around=around)
        count = distribution.reinterpreted_batch_ndims
        return constraints.independent(inner, count) if count else inner
    if isinstance(distribution, _WRAPPERS):
        return support_of(distribution.base_dist, around=around)
    event_dim = len(distribution.event_shape)
    try:
        declared: constraints.Constraint = distribution.support
        is_discrete = declared.is_discrete
    except NotImplementedError:
        return Unreachable("it does not tell", event_dim)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        return shared(support_of(distribution.component_distribution, around=around)) or declared
    if isinstance(distribution, _CIRCULAR) and not around:
        return constraints.independent(_TURN, event_dim) if event_dim else _TURN
    if isinstance(distribution, _WITH_POINTS) and not is_discrete:
        return Unreachable("of single points", event_dim)
    if is_carried(distribution):
        inner = support_of(distribution.base_dist, around=around)
        transforms = distribution.transforms
        if transforms and not _fills(inner, transforms[0].domain):
            return Image(inner, transforms)
    if isinstance(distribution, torch.distributions.GeneralizedPareto) and (distribution.concentration >= 0).all():
        return constraints.greater_than_eq(distribution.loc)
    return declared


def _fills(support: constraints.Constraint, domain: constraints.Constraint) -> bool:
    """Whether a support is the whole domain of a transform, as far as that can be told without reading tensors."""
    inner, outer = entry(support), entry(domain)
    own, whole = ends(inner), ends(outer)
    if own is None or whole is None:
        return type(inner) is type(outer)
    if any(isinstance(end, Tensor) for end in (*own, *whole)):
        return False
    return bool(own[0] <= whole[0] and own[1] >= whole[1])


def entry(support: constraints.Constraint) -> constraints.Constraint:
    """The support of one entry of an event."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def ends(support: constraints.Constraint) -> tuple[Any, Any] | None:
    """Lower and upper end of the support of one entry, numbers or tensors; None for one that is not an interval."""
    support = entry(support)
    if support is constraints.real:
        return -math.inf, math.inf
    if support is constraints.boolean:
        return 0, 1
    if isinstance(support, (*_UPWARDS, _WHOLE_UPWARDS)):
        return support.lower_bound, math.inf
    if isinstance(support, _DOWNWARDS):
        return -math.inf, support.upper_bound
    if isinstance(support, (*_BETWEEN, _WHOLE_DOWNWARDS)):
        return support.lower_bound, support.upper_bound
    return None


def bijection(name: str, distribution: Any) -> Transform:
    """The bijection from the reals to the support of the distribution of a site, with the bounds of this run.

    Raises: ValueError, on one line, for a support that no bijection leads to.
    """
    return onto(name, family_of(distribution), support_of(distribution))


def onto(name: str, family: str, support: constraints.Constraint) -> Transform:
    """The bijection from the reals to a support of a site.

    Raises: ValueError, on one line, for a support that no bijection leads to.
    """
    try:
        return _onto(support)
    except NotImplementedError:
        raise ContractError(
            f"site '{name}' ({family}) has the support '{support}', to which no bijection from the reals is known",
            "write a guide of your own that draws there, or propose from the prior with guide=None",
        ) from None


def _onto(support: constraints.Constraint) -> Transform:
    if isinstance(support, constraints.independent):
        return IndependentTransform(_onto(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, Image):
        if not support.transform.bijective:
            raise NotImplementedError
        return ComposeTransform([_onto(support.base), *support.transform.parts])
    transform: Transform = biject_to(support)
    return transform


def free_shape(transform: Transform, event_shape: torch.Size) -> torch.Size:
    """The shape of one event before a bijection, whose bounds may be tensors of more dims."""
    count = len(event_shape) - transform.codomain.event_dim + transform.domain.event_dim
    shape: torch.Size = transform.inverse_shape(event_shape)
    return shape[len(shape) - count :]


def bounds_of(support: constraints.Constraint) -> list[Any]:
    """The numbers and tensors that say where a support begins and ends."""
    support = entry(support)
    if isinstance(support, Image):
        affine = [part for part in support.transform.parts if isinstance(part, AffineTransform)]
        return [*bounds_of(support.base), *(value for part in affine for value in (part.loc, part.scale))]
    return [value for key, value in vars(support).items() if key in ("lower_bound", "upper_bound")]


def same(support: constraints.Constraint, other: constraints.Constraint) -> bool:
    """Whether two supports of one site have the same bounds."""
    pairs = list(zip(bounds_of(support), bounds_of(other), strict=False))
    return type(entry(support)) is type(entry(other)) and all(
        torch.equal(torch.as_tensor(one), torch.as_tensor(two)) for one, two in pairs
    )


def shared(support: constraints.Constraint, event_dim: int = 0) -> constraints.Constraint | None:
    """The same support with bounds that hold for every datum and plate: numbers, or tensors over an event's entries.

    Expanded tensors of one value become that number. None if the bounds differ otherwise: from datum to datum, from
    draw to draw, or along a plate.
    """
    if isinstance(support, constraints.independent):
        count = support.reinterpreted_batch_ndims
        inner = shared(support.base_constraint, event_dim + count)
        return None if inner is None else constraints.independent(inner, count)
    if isinstance(support, Image):
        base, parts = shared(support.base, event_dim), [_shared_transform(each) for each in support.transform.parts]
        if base is None or any(part is None for part in parts):
            return None
        return Image(base, [part for part in parts if part is not None])
    bounds = {key: value for key, value in vars(support).items() if key in ("lower_bound", "upper_bound")}
    common = {key: _common(value, event_dim) for key, value in bounds.items()}
    if any(value is None for value in common.values()):
        return None
    if all(common[key] is bounds[key] for key in bounds):
        return support
    return type(support)(**common)


def _shared_transform(transform: Transform) -> Transform | None:
    if isinstance(transform, AffineTransform):
        loc, scale = (_common(value, transform.event_dim) for value in (transform.loc, transform.scale))
        return None if loc is None or scale is None else AffineTransform(loc, scale, transform.event_dim)
    holds = [value for value in vars(transform).values() if isinstance(value, Tensor) and value.numel() > 1]
    return None if holds and not isinstance(transform, nn.Module) else transform


def _common(bound: Any, event_dim: int) -> Any:
    if not isinstance(bound, Tensor):
        return bound
    if bound.numel() and bool((bound == bound.reshape(-1)[0]).all()):
        return bound.reshape(-1)[0].item()
    lead = max(bound.dim() - event_dim, 0)
    first = bound[(0,) * lead]
    return first.detach() if bool((bound == first).all()) else None
