"""What amortized guides share: an encoder, and draws from the numbers that it gives.

Example: a guide of one latent z (B, 2) by Gaussians needs 4 numbers per datum. For a batch x (3, 64), `numbers(x)` is
(3, 4), and `draw` of these samples z (3, 2), or with K = 5 particles around (5, 3, 2).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.nets import MLP
from pvae.pair.outputs import output_of
from pvae.pair.sites import Batch, LatentSite, as_batch, latent_sites
from pvae.support.glorot import glorot
from pvae.support.refusals import shown, widths

__all__ = ["AmortizedGuide", "Encoder", "as_amortized", "constrained", "read", "width_given"]


class AmortizedGuide(nn.Module):
    """A guide q(z | x) = q(z; numbers(x)): an encoder gives numbers for each datum, and all latents are drawn by them.

    To write a guide, subclass it: the constructor reads the latent sites of the model (`read`) and builds the encoder
    with as many numbers as they need, and `draw` samples every site, the numbers of a datum being all that it knows of
    it. Whatever puts other numbers in their place, such as a table of free ones (`Local`) or refined ones
    (`SemiAmortized`), then works with it.

    Attributes:
        name: what the guide is registered as by `pyro.module`, and so the first part of the names of its parameters.
        encoder: from a batch to the numbers of each datum.
    """

    name: str
    encoder: Any

    def numbers(self, *batch: Tensor) -> Tensor:
        """What the encoder says of each datum, (B, num_outputs)."""
        numbers: Tensor = self.encoder(*batch)
        return numbers

    @abstractmethod
    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""

    def forward(self, *batch: Tensor) -> None:
        """Sample every latent site of the model, for each datum of the batch."""
        pyro.module(self.name, self)
        self.draw(self.numbers(*batch))

    def without_encoder(self) -> AmortizedGuide:
        """What draws, by itself: the same sites, and copies of all parts but the encoder."""
        alone = copy.copy(self)
        for kind in ("_modules", "_parameters", "_buffers"):
            parts = vars(self)[kind].items()
            vars(alone)[kind] = {name: copy.deepcopy(part) for name, part in parts if part is not self.encoder}
        return alone


def as_amortized(guide: Any) -> AmortizedGuide:
    """The guide that a family gave. Raises ValueError unless an encoder of its own gives the numbers it draws from."""
    if not isinstance(guide, AmortizedGuide) or not isinstance(getattr(guide, "encoder", None), nn.Module):
        raise ValueError(
            f"family must give an amortized guide with an encoder, got {shown(guide)}; use MeanField, or a subclass of "
            "pvae.guides.parts.amortized.AmortizedGuide"
        )
    return guide


class Encoder(nn.Module):
    """From a batch to the numbers that a guide needs for every datum: (B, num_outputs).

    The parts of the batch are flattened and put side by side, unless a `net` is given, which takes the batch
    as the guide does and returns features (B, F).

    Args:
        example_batch: a batch, read for its shapes.
        num_outputs: numbers per datum.
        hidden: widths of the default net's hidden layers.
        net: features to use instead of the default net.

    Raises: ValueError for a default net without a hidden layer, or a batch of another shape than the example.
    """

    def __init__(
        self,
        example_batch: Tensor | tuple[Tensor, ...],
        num_outputs: int,
        hidden: Sequence[int],
        net: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__()
        batch, hidden = as_batch(example_batch), widths("hidden", hidden)
        self.shapes = [tuple(part.shape[1:]) for part in batch]
        if net is None and not hidden:
            raise ValueError("hidden must name at least one width, got none; try (200, 200)")
        if net is None:
            width = sum(part[0].numel() for part in batch)
            self.net: Callable[..., Tensor] = MLP(width, hidden[:-1], hidden[-1])
            self.default, features = True, hidden[-1]
            self.last: nn.Module = nn.Tanh()
        else:
            self.net, self.default = net, False
            self.last = nn.Identity()
            features = width_given("encoder", net, batch)
        self.head = glorot(nn.Linear(features, num_outputs))
        like = next((part for part in batch if part.is_floating_point()), None)
        if like is not None and net is None:
            self.to(like.dtype)

    def forward(self, *batch: Tensor) -> Tensor:
        """The numbers of each datum, (B, num_outputs)."""
        shapes = [tuple(part.shape[1:]) for part in batch]
        if shapes != self.shapes:
            expected, got = (", ".join(map(str, each)) for each in (self.shapes, shapes))
            raise ValueError(
                f"the guide was built for data of shape {expected}, got {got}; reshape the data, or build it for them"
            )
        if self.default:
            weight = self.head.weight
            batch = (torch.cat([part.reshape(len(part), -1).to(weight) for part in batch], -1),)
        return self.head(self.last(self.net(*batch)))


def width_given(name: str, net: Callable[..., Tensor], batch: Batch, lead: tuple[str, ...] = ("B",)) -> int:
    """F of the features (*lead, F) that a net of the user's gives for a batch, the lead being dims of its first part.

    Raises: ValueError for what is no net, or gives another shape.
    """
    features = output_of(name, net, batch, usual="pvae.nets.MLP(in_shape, (200,), 200)")
    if features.shape[:-1] != batch[0].shape[: len(lead)]:
        raise ValueError(
            f"{name} must give features ({', '.join((*lead, 'F'))}) of a batch of shape {tuple(batch[0].shape)}, got "
            f"{shown(features)}; end it in one vector for each"
        )
    return features.shape[-1]


def read(model: Callable[..., object], example_batch: Tensor | tuple[Tensor, ...]) -> tuple[LatentSite, ...]:
    """The latent sites of a model that a reparameterised guide can serve.

    Raises: ValueError for discrete sites, and for a support that moves or that no bijection leads to.
    """
    sites = latent_sites(model, example_batch)
    for site in sites:
        if site.support.is_discrete:
            raise ValueError(
                f"site '{site.name}' is discrete, this guide serves continuous sites; for binary sites use "
                "pvae.guides.Bernoulli, for others Categorical, for several kinds Mixed; or have it summed out: "
                "infer={'enumerate': 'parallel'}"
            )
        # A support that no guide here can draw on is refused now, not at the first draw.
        _ = site.bijection
    return sites


def constrained(base: dist.TorchDistribution, site: LatentSite) -> dist.TorchDistribution:
    """A distribution on the reals carried to the support of a site; untouched if that is where it lives."""
    inner = site.support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    if inner is constraints.real or inner is constraints.real_vector:
        return base
    return dist.TransformedDistribution(base, [site.bijection])
