"""The variational autoencoder with several stochastic layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.models.checks import check_shape, likelihood_or, part_or
from pvae.models.likelihoods import Bernoulli
from pvae.models.priors import StandardNormal
from pvae.nets import MLP
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import flag, instance, widths

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(nn.Module):
    """Gaussian layers from the top down: p(z_L) prod_l N(z_l; loc_l(z_l+1), scale_l(z_l+1)^2) p(x | z_1).

    With `skip` every net takes all layers above it, side by side: p(z_l | z_l+1, ..., z_L) and p(x | z_1, ..., z_L).
    By default these are the two layers of Burda et al.: z_2-100-100-z_1 and z_1-200-200-x, with tanh.

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        latent_dims: dimensions of z_1, ..., z_L, from the data up.
        hidden: widths of the hidden layers between z_1 and x; between layers of latents they are half as wide.
        likelihood: from the last net's output to the distribution of x; by default `Bernoulli`.
        prior: its call gives p(z_L); by default `StandardNormal(latent_dims[-1])`.
        nets: used instead of the default MLPs, from the data up. The first goes from (..., width of its inputs) to
            (..., *likelihood.parameter_shape(x_shape)), that which gives z_l to (..., 2 latent_dims[l]): the locs, then
            the raw scales, scale = min_scale + softplus(raw).
        skip: whether a net takes all layers above it, that next above first, instead of that one alone.
        min_scale: floor on each scale.

    Sites: "zL" (latent_dims[-1],), ..., "z1" (latent_dims[0],) and "x" `x_shape`, in the plate "data".

    Raises: ValueError for no layer, a layer without dimensions, another number of nets than of layers, or a batch that
        does not have the shape (B, *x_shape).

    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders; skips: Tomczak and Welling (2018), VAE
    with a VampPrior.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dims: Sequence[int] = (100, 50),
        *,
        hidden: Sequence[int] = (200, 200),
        likelihood: nn.Module | None = None,
        prior: nn.Module | None = None,
        nets: Sequence[nn.Module] | None = None,
        skip: bool = False,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.latent_dims = widths("latent_dims", latent_dims, usual=(100, 50))
        if not self.latent_dims:
            raise ValueError("latent_dims must name at least one layer, got none; try (100, 50)")
        self.skip, self.min_scale = flag("skip", skip), check_min_scale(min_scale)
        self.likelihood = likelihood_or(likelihood, Bernoulli)
        self.prior = part_or("prior", prior, lambda: StandardNormal(self.latent_dims[-1]), usual="StandardNormal(8)")
        hidden = widths("hidden", hidden)
        self.nets = nn.ModuleList(self._default_nets(hidden) if nets is None else self._checked(nets))

    @property
    def decoder(self) -> nn.Module:
        """The net between z_1 and x."""
        return self.nets[0]

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch x (B, *x_shape); returns the observed x."""
        check_shape(self, x)
        pyro.module("hierarchical_vae", self)
        with pyro.plate("data", len(x)):
            layers = [pyro.sample(f"z{len(self.nets)}", self.prior())]
            for index in reversed(range(1, len(self.nets))):
                loc, raw = self.nets[index](self._inputs(layers)).chunk(2, -1)
                normal = dist.Normal(loc, self.min_scale + softplus(raw))
                layers.insert(0, pyro.sample(f"z{index}", normal.to_event(1)))
            parameters = self.nets[0](self._inputs(layers))
            return pyro.sample("x", self.likelihood(parameters, self.x_shape), obs=x)

    def _inputs(self, layers: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(layers), -1) if self.skip else layers[0]

    def _checked(self, nets: Sequence[nn.Module]) -> list[nn.Module]:
        what = {"what": "a sequence of modules, from the data up", "usual": "[MLP(...), MLP(...)]"}
        found = [*instance("nets", nets, (list, tuple, nn.ModuleList, nn.Sequential), **what)]
        for net in found:
            instance("each of nets", net, nn.Module, what="a module", usual="pvae.nets.MLP")
        if len(found) != len(self.latent_dims):
            raise ValueError(
                f"nets must be one per layer, from the data up, got {len(found)} for {len(self.latent_dims)} layers; "
                "the prior is not one of them"
            )
        return found

    def _default_nets(self, hidden: Sequence[int]) -> list[nn.Module]:
        sizes = list(self.latent_dims)
        if self.skip:
            sizes = list(itertools.accumulate(reversed(sizes)))[::-1]
        between = [max(1, width // 2) for width in hidden]
        parameter_shape = self.likelihood.parameter_shape(self.x_shape)
        outputs = [2 * latent_dim for latent_dim in self.latent_dims[:-1]]
        above = [MLP(width, between, output) for width, output in zip(sizes[1:], outputs, strict=True)]
        return [MLP(sizes[0], hidden, parameter_shape), *above]
