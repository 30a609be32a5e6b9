"""The ladder guide: evidence from below and the model's own prior from above, weighed by their precisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import Encoder, read
from pvae.guides.parts.placing import arrange, width
from pvae.nets import MLP
from pvae.pair.contexts import called_modules, seeded
from pvae.pair.pair import Pair
from pvae.pair.sites import LatentSite, as_batch
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import widths

__all__ = ["Ladder"]


class Ladder(nn.Module):
    """Two Gaussians per layer: q(z_l | z_>l, x) ~ N(z_l; mu_d(x), var_d(x)) p(z_l | z_>l); the first alone at the top.

    A deterministic pass from the data up gives mu_d and var_d of every layer. The pass down runs the model itself, up
    to its last latent site, and combines what its prior says there with what came from below:

        1 / var_q = 1 / var_d + 1 / var_p        mu_q = var_q (mu_d / var_d + mu_p / var_p)

    So the guide holds no net for the way down: its draws carry gradients to the model's priors.

    Args:
        model: a model whose latent sites are Gaussian given those before them; they are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the hidden layers (tanh) of the default encoder, and of each step up.
        encoder: a net from the batch to features (B, F), used instead of the default.
        min_scale: floor on each sqrt(var_d).

    Raises: ValueError for a latent site that is not drawn from Normal(...).to_event(n), or data of another shape than
        the example.

    Soenderby, Raiko, Maaloee, Soenderby and Winther (2016), Ladder Variational Autoencoders.
    """

    model: Callable[..., object]

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        hidden = widths("hidden", hidden)
        # Not a part of the guide: its parameters stay the model's.
        object.__setattr__(self, "model", model)
        self.sites = read(model, example_batch)
        self._look(as_batch(example_batch))
        self.min_scale = check_min_scale(min_scale)
        sizes = [2 * width(site) for site in reversed(self.sites)]
        # A layer's net gives its own numbers, and beside them what the layers above are computed from.
        self.splits = [[own, _upwards(sizes[index + 1 :], hidden)] for index, own in enumerate(sizes)]
        self.encoder = Encoder(example_batch, sum(self.splits[0]), hidden, encoder)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Tanh(), MLP(hidden[0], hidden[1:], sum(split))) if hidden else nn.Identity()
            for split in self.splits[1:]
        ).to(self.encoder.head.weight.dtype)

    def forward(self, *batch: Tensor) -> None:
        """Sample every latent site of the model, for each datum of the batch."""
        pyro.module("ladder", self)
        outputs = self.encoder(*batch)
        numbers: dict[str, Tensor] = {}
        for site, split, step in zip(reversed(self.sites), self.splits, [*self.steps, None], strict=True):
            numbers[site.name], upwards = outputs.split(split, -1)
            outputs = step(upwards) if step is not None else upwards
        try:
            with _Combine(self.sites, numbers, self.min_scale):
                self.model(*batch)
        except _LastSite:
            pass

    def _look(self, batch: tuple[Tensor, ...]) -> None:
        """Run the model once and refuse other priors than Gaussian ones."""
        with (
            Pair(self.model).inside(),
            torch.no_grad(),
            seeded(0, batch[0].device),
            called_modules(),
            poutine.trace() as run,
        ):
            self.model(*batch)
        for site in self.sites:
            _normal(site.name, run.trace.nodes[site.name]["fn"])


class _LastSite(Exception):
    """The last latent site has its value, and the rest of the model is of no interest."""


class _Combine(Messenger):
    """Run a model with the product of evidence and prior in place of each prior, and leave what it observes aside."""

    def __init__(self, sites: Sequence[LatentSite], numbers: dict[str, Tensor], min_scale: float) -> None:
        super().__init__()
        self.sites = {site.name: site for site in sites}
        self.numbers, self.min_scale = numbers, min_scale
        self.top, self.last = sites[0].name, sites[-1].name

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        if msg["name"] not in self.sites:
            msg["stop"] = True
            return
        site, prior = self.sites[msg["name"]], _normal(msg["name"], msg["fn"])
        loc, raw = (arrange(site, each, site.event_shape) for each in self.numbers[site.name].chunk(2, -1))
        scale = self.min_scale + softplus(raw)
        if site.name != self.top:
            precision = scale.pow(-2) + prior.scale.pow(-2)
            loc = (loc * scale.pow(-2) + prior.loc * prior.scale.pow(-2)) / precision
            scale = precision.rsqrt()
        plates = msg["fn"].batch_shape
        msg["fn"] = dist.Normal(loc, scale).to_event(len(site.event_shape))
        msg["fn"] = msg["fn"].expand(torch.broadcast_shapes(plates, msg["fn"].batch_shape))
        if site.name == self.last:
            msg["continuation"] = _leave


def _leave(_: Any) -> None:
    raise _LastSite


def _normal(name: str, fn: Any) -> Any:
    prior = fn
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    if not isinstance(prior, torch.distributions.Normal):
        raise ValueError(
            f"site '{name}' is drawn from {type(prior).__name__}, Ladder multiplies Gaussians and takes "
            "Normal(...).to_event(n); use TopDown"
        )
    return prior


def _upwards(widths_above: Sequence[int], hidden: Sequence[int]) -> int:
    """How many numbers a layer's net hands on: hidden ones, or with affine nets all that the layers above need."""
    if not widths_above:
        return 0
    return hidden[0] if hidden else sum(widths_above)
