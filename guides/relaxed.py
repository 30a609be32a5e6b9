"""The guides for discrete latents that train by pathwise gradients, through a concrete relaxation of their draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from torch.distributions import constraints

from pvae.guides.parts.laws import Law, bits, one_hots, other_guide, support_of
from pvae.guides.parts.layered import Layered
from pvae.guides.parts.straight_through import StraightThroughBernoulli, StraightThroughOneHot
from pvae.guides.parts.temperature import Temperature
from pvae.pair.sites import LatentSite, latent_sites

__all__ = ["RelaxedBernoulli", "RelaxedCategorical"]


class RelaxedBernoulli(Layered):
    """`Bernoulli` with a pathwise gradient: its draws are bits, differentiated as sigmoid((logits + L) / temperature).

    L is the logistic noise that made them. Draws and densities are those of the exact Bernoullis, so all bounds and
    weights are valid ones, and only the gradient is that of a relaxation (biased, of less variance than the score
    function; the lower the temperature, the less of the one and the more of the other). Train with
    `gradient="pathwise"`; a model has to take a bit's gradient, so `nn.Embedding` or an index stop it.

    Args:
        model: any model whose latent sites are binary; they are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        temperature: of the relaxation at the start.

    Attributes: `temperature`, whose `anneal()` is a callback for `pvae.fit` that lowers it.

    Raises: ValueError for a site that is not binary, a temperature that is not above 0, or data of another shape than
        the example.

    Maddison, Mnih and Teh (2017), The Concrete Distribution; Bengio, Leonard and Courville (2013), Estimating or
    Propagating Gradients Through Stochastic Neurons.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        temperature: float = 1.0,
    ) -> None:
        own = Temperature(temperature)
        laws = [_soft_bits(site, own) for site in reversed(latent_sites(model, example_batch))]
        super().__init__("relaxed_bernoulli", laws, example_batch, hidden, encoder)
        self.temperature = own.to(self.encoder.head.weight.dtype)


class RelaxedCategorical(Layered):
    """`Categorical` with a pathwise gradient: one-hot draws, differentiated as softmax((logits + G) / temperature).

    G is the Gumbel noise that made them. Draws and densities are those of the exact categoricals, so all bounds and
    weights are valid ones, and only the gradient is that of a relaxation. The log probability that torch gives a
    one-hot prior has no gradient in its value: train with `ELBO(kl="analytic")`, as its authors do.

    Args:
        model: any model whose latent sites are `OneHotCategorical`; they are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        temperature: of the relaxation at the start.

    Attributes: `temperature`, whose `anneal()` is a callback for `pvae.fit` that lowers it.

    Raises: ValueError for a site that is not one-hot, a temperature that is not above 0, or data of another shape than
        the example.

    Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        temperature: float = 1.0,
    ) -> None:
        own = Temperature(temperature)
        laws = [_soft_one_hots(site, own) for site in reversed(latent_sites(model, example_batch))]
        super().__init__("relaxed_categorical", laws, example_batch, hidden, encoder)
        self.temperature = own.to(self.encoder.head.weight.dtype)


def _soft_bits(site: LatentSite, temperature: Temperature) -> Law:
    if support_of(site) is not constraints.boolean:
        raise ValueError(f"site '{site.name}' is not binary, this guide serves binary sites; {other_guide(site)}")
    return bits(site, partial(StraightThroughBernoulli, temperature))


def _soft_one_hots(site: LatentSite, temperature: Temperature) -> Law:
    if support_of(site) is not constraints.one_hot:
        raise ValueError(
            f"site '{site.name}' is not one-hot, and only one-hot vectors relax; {other_guide(site)}, or make it "
            "OneHotCategorical in the model"
        )
    return one_hots(site, partial(StraightThroughOneHot, temperature))
