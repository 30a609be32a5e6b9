"""The guide that starts at what an encoder gives and goes up the bound from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform

from pvae.guides.mean_field import MeanField
from pvae.guides.parts.amortized import AmortizedGuide, as_amortized, read
from pvae.pair.contexts import running
from pvae.pair.layout import Place
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.sites import Batch, as_batch
from pvae.pair.store import private_store
from pvae.support.refusals import flag, function, number, whole

__all__ = ["SemiAmortized"]

# Numbers of a family are of the order of 1: a longer step leads to where a density is rounding error.
_LONGEST = 1.0


class SemiAmortized(AmortizedGuide):
    """An encoder's numbers, refined for each datum: lambda_0 = encoder(x), lambda_t+1 = lambda_t + lr_t dELBO/dlambda.

    The ELBO of a datum with the model as it is, at train and at test. A step that does not raise it on the noise it was
    made from is not taken, and quarters the datum's rate; none moves a number by more than 1. The gradient of training
    passes to the encoder as if the steps were a constant, lambda_n = lambda_0 + c, or if `differentiable` through the
    steps, which takes second derivatives and trains encoder and model for what the steps will do.

    The steps are taken once per datum, whatever the number of particles. Their noise is shared by the data of a batch
    where the family is Gaussian, so that what a datum gets does not depend on its neighbours.

    Args:
        model: any model within the contract; it runs inside the guide, `num_steps` times `num_samples` per datum.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        family: what is refined: a class of `pvae.guides`, or a function of the same arguments to an amortized
            guide.
        num_steps: n; with 0 it is the family itself.
        lr: the first rate.
        num_samples: draws per step.
        differentiable: whether the gradient goes through the steps.

    Raises: ValueError for discrete sites, a family without an encoder, or numbers out of range.

    Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-Amortized Variational Autoencoders; Marino, Yue and Mandt (2018).
    """

    name = "semi_amortized"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        family: Callable[..., Any] = MeanField,
        num_steps: int = 5,
        lr: float = 0.05,
        num_samples: int = 4,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.num_steps = whole("num_steps", num_steps, 0, usual=5)
        self.num_samples = whole("num_samples", num_samples, usual=4)
        self.lr = number("lr", lr, above=0, usual=0.05)
        self.differentiable = flag("differentiable", differentiable)
        function("family", family, usual="pvae.guides.MeanField")
        read(model, example_batch)
        with running("family", as_batch(example_batch)):
            guide = family(model, example_batch, hidden=hidden, encoder=encoder)
        self.guide = as_amortized(guide)
        # Not as a submodule: its parameters are the model's own.
        self.model = (model,)
        with private_store(model, look=True):
            # Draws are taken on copies of the batch, for the particles' dim may be in use by the caller.
            self.layout = replace(read_layout(model, None, as_batch(example_batch), 1), vectorizes=False)

    def numbers(self, *batch: Tensor) -> Tensor:
        """The refined numbers of each datum, (B, n)."""
        return self._refined(self.guide.numbers(*batch), batch)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, n)."""
        self.guide.draw(numbers)

    def _refined(self, start: Tensor, batch: Batch) -> Tensor:
        through = self.differentiable and torch.is_grad_enabled()
        # The steps are no part of the caller's run: no handler of theirs, particles included, sees them. Where one
        # leads out of a distribution's domain the bound is not a number, and it is not taken.
        with torch.enable_grad(), poutine.block(), pyro.validation_enabled(False):
            numbers = start if through else start.detach().requires_grad_()
            rate = start.new_full((len(start), 1), self.lr)
            for _ in range(self.num_steps):
                noise = _Noise(self.layout.places, self.num_samples)
                bound = self._bound(numbers, batch, noise)
                (slope,) = torch.autograd.grad(bound.sum(), numbers, create_graph=through)
                ahead = numbers + (rate * slope.nan_to_num()).clamp(-_LONGEST, _LONGEST)
                with torch.no_grad():
                    there = self._bound(ahead, batch, noise)
                    is_better = ((there >= bound) & there.isfinite())[:, None]
                    rate = torch.where(is_better, rate, rate / 4)
                numbers = torch.where(is_better, ahead, numbers)
                if not through:
                    numbers = numbers.detach().requires_grad_()
        return numbers if through else start + (numbers - start).detach()

    def _bound(self, numbers: Tensor, batch: Batch, noise: _Noise) -> Tensor:
        """The ELBO of each datum under the numbers, (B,)."""
        rows = numbers.repeat(self.num_samples, 1)
        with noise:
            run = run_pair(self.model[0], lambda *_: self.guide.draw(rows), batch, self.num_samples, self.layout)
        return run.log_weights().values.mean(0)


class _Noise(Messenger):
    """Draw a family's sites, all data from the same noise where the site is Gaussian, and all runs from the same."""

    def __init__(self, places: Mapping[str, Place], num_samples: int) -> None:
        super().__init__()
        self.places, self.num_samples = places, num_samples
        self.noise: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.places:
            return
        draw = self._draw(msg["name"], msg["fn"])
        if draw is not None:
            msg["value"], msg["done"] = draw, True

    def _draw(self, name: str, fn: Any) -> Tensor | None:
        """A value of the site, None where its distribution is not made from a Gaussian."""
        at = len(fn.batch_shape) + self.places[name].data_dim
        transforms: list[Transform] = []
        while hasattr(fn, "base_dist"):
            transforms = [*getattr(fn, "transforms", []), *transforms]
            fn = fn.base_dist
        is_joint = isinstance(fn, dist.MultivariateNormal)
        if not (is_joint or isinstance(fn, dist.Normal)):
            return None
        noise = self._shared(name, fn.batch_shape + fn.event_shape, at, fn.loc)
        value = fn.loc + (fn.scale_tril @ noise[..., None])[..., 0] if is_joint else fn.loc + fn.scale * noise
        for transform in transforms:
            value = transform(value)
        return value

    def _shared(self, name: str, shape: torch.Size, at: int, like: Tensor) -> Tensor:
        """Standard normal noise of that shape, dim `at` being num_samples copies of the data."""
        if name not in self.noise:
            self.noise[name] = like.new_empty([*shape[:at], self.num_samples, *shape[at + 1 :]]).normal_()
        return self.noise[name].repeat_interleave(shape[at] // self.num_samples, at)
