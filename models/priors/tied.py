"""What priors share that are made of a guide's own posteriors: the tie, and the guide run inside the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.pair.contexts import called_modules, seeded
from pvae.pair.pair import Pair
from pvae.pair.sites import Site, random_sites
from pvae.support.refusals import instance, one_line, shown, whole

__all__ = ["TiedPrior", "rows_of"]


def rows_of(name: str, rows: Any, *, usual: str) -> Tensor:
    """Data as a tensor (M, *x_shape) of finite real numbers. Raises ValueError for anything else."""
    if not isinstance(rows, Tensor) or rows.dim() < 2 or not rows.numel() or rows.is_complex() or rows.is_sparse:
        raise ValueError(
            f"{name} must be a tensor of real numbers, one row per datum, got {shown(rows)}; give for example {usual}"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name} must be finite, got nan or inf among {shown(rows)}; drop or impute those values")
    return rows


class TiedPrior(nn.Module):
    """A prior that reads a guide, which can only be built after the model: build both, then `tie`.

    The guide is held beside the module tree, so that its parameters have one home; the model registers them all the
    same, for p(z) depends on them. They get gradients from the guide's run and from the prior. Until it is tied, the
    prior draws from N(0, I), for guides to read its shape, and has no density.

    A deep copy of the model alone takes a copy of the guide along; copy model and guide together to keep them tied.

    Args:
        latent_dim: dimensions of z.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self._tied: tuple[nn.Module, ...] = ()

    def tie(self, guide: nn.Module) -> None:
        """Make p(z) of this guide's posteriors from now on.

        Raises: ValueError unless the guide is a module with one latent site of `latent_dim` numbers, whose density is
            known at any z, and takes data of the prior's shape.
        """
        self._tied = ()
        instance("guide", guide, nn.Module, what="a built module", usual="pvae.guides.MeanField(model, batch)")
        example = self._example()
        try:
            with Pair(guide).inside(), torch.no_grad(), seeded(0, example.device), called_modules():
                components = self._components(_posterior(guide, example)["fn"])
                z = example.new_zeros(3, len(example), self.latent_dim)
                known = tuple(components.event_shape) == z.shape[2:] and bool(components.log_prob(z).isfinite().all())
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(self._refusal(guide, one_line(str(error), 100) or type(error).__name__)) from error
        if not known:
            raise ValueError(self._refusal(guide, "it draws other shapes, or from points"))
        self._tied = (guide,)

    def _refusal(self, guide: nn.Module, reason: str) -> str:
        return (
            f"{type(self).__name__} needs a guide with one latent site of shape ({self.latent_dim},) and a density at "
            f"any z, got {type(guide).__name__} ({reason}); use MeanField, FullCovariance or Mixture"
        )

    def _example(self) -> Tensor:
        """Some inputs to try a guide on."""
        raise NotImplementedError

    def _components(self, posteriors: dist.TorchDistribution) -> dist.TorchDistribution:
        """What p(z) is the equal mixture of, from the guide's posteriors; batch shape (M,)."""
        return posteriors

    def _components_at(self, inputs: Tensor) -> dist.TorchDistribution:
        """The components of all inputs u (M, ...); the guide's parameters are stated as the model's."""
        (guide,) = self._tied
        pyro.module("tied_guide", guide)
        return self._components(_posterior(guide, inputs)["fn"])

    def _draws(self, inputs: Tensor) -> Tensor:
        """One draw from q(z | u_n) for each of the inputs u (N, ...), (N, latent_dim)."""
        (guide,) = self._tied
        return _posterior(guide, inputs, draw=True)["value"]

    @staticmethod
    def _some(inputs: Tensor, num: int) -> Tensor:
        """Some of the inputs (M, ...), drawn with replacement, (num, ...)."""
        return inputs[torch.randint(len(inputs), (num,), device=inputs.device)]

    def _untied(self, like: Tensor) -> dist.TorchDistribution:
        return _Untied(type(self).__name__, like.new_zeros(self.latent_dim))


def _posterior(guide: nn.Module, inputs: Tensor, draw: bool = False) -> Site:
    """The one site of the guide's run on the inputs, seen by no handler around it."""
    with _plates_apart(), poutine.block(), poutine.trace() as run, nullcontext() if draw else _NoDraw(inputs.device):
        guide(inputs)
    sites = random_sites(run.trace)
    if len(sites) != 1:
        raise ValueError(f"it samples {len(sites)} sites")
    return next(iter(sites.values()))


@contextmanager
def _plates_apart() -> Iterator[None]:
    """Plates inside find every dim and name free, those of the plates around them too."""
    allocator = runtime._DIM_ALLOCATOR
    held, allocator._stack = allocator._stack, []
    try:
        yield
    finally:
        allocator._stack = held


class _NoDraw(Messenger):
    """Spend no random numbers where only distributions are asked for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def _pyro_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], _Subsample):
            msg["value"], msg["done"] = torch.zeros(msg["fn"].shape(), device=self.device), True


class _Untied(dist.TorchDistribution):
    """N(0, I) without a density."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, prior: str, zero: Tensor, batch_shape: Sequence[int] = ()) -> None:
        self.prior, self.zero = prior, zero
        super().__init__(torch.Size(batch_shape), zero.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Untied:
        """The same for more draws."""
        return _Untied(self.prior, self.zero, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, *batch_shape, latent_dim)."""
        return torch.randn_like(self.zero.expand(self.shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise ValueError: there is no guide to make a density of."""
        raise ValueError(f"{self.prior} has no density yet; call model.prior.tie(guide) once the guide is built")
