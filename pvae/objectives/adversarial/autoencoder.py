"""The adversarial autoencoder: the aggregate posterior drawn to the prior by a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pvae.objectives.adversarial.density_ratio import Discriminator, example_latents, logistic, negative_divergence
from pvae.objectives.adversarial.prior_draws import as_vectors, draw_prior
from pvae.objectives.gradient import attach_draws, value_with_gradient
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch, as_batch
from pvae.support.refusals import number

__all__ = ["AdversarialAutoencoder"]


class AdversarialAutoencoder(Objective):
    """Reconstruction, and a discriminator that tells the aggregate posterior q(z) from the prior.

    From one particle per datum, D = sigmoid(T) being the probability that z comes from the guide, it is

        E log p(x | z) - lambda JSD(q(z), p(z)),    2 JSD - log 4 = max_T E_q[log D(z)] + E_p[log(1 - D(z))].

    The discriminator learns beside the pair; the guide ascends E log p(x | z) + lambda E_q[log(1 - D(z))], the
    non-saturating loss. The guide may be any with pathwise draws: `Delta` as in most of the paper, `MeanField`,
    `Implicit`. It is the Wasserstein autoencoder with its adversarial penalty, `InfoVAE` with its MMD.

    The value takes the JSD as the discriminator sees it, in nats: it is no bound on log p(x), and no two epochs' values
    compare. The KL weight multiplies the divergence. A prior with parameters of its own is not trained.

    Args:
        model: the model, read for its latent sites.
        example_batch: a batch, read for its shapes.
        divergence: lambda. The JSD is at most log 2, so that small ones are lost beside hundreds of nats of
            reconstruction.
        hidden: widths of the default discriminator's hidden layers (ELU).
        discriminator: a net from z, (B, dims) with all latent sites side by side, to T, (B,) or (B, 1), to use instead.

    Raises: ValueError for a divergence that is not positive, guide sites without a pathwise gradient, and latents that
        are summed out.

    Makhzani, Shlens, Jaitly, Goodfellow and Frey (2016), Adversarial Autoencoders; Tolstikhin, Bousquet, Gelly and
    Schoelkopf (2018), Wasserstein Auto-Encoders.
    """

    is_adversarial = True
    scores = ("model",)
    always_split = True

    def __init__(
        self,
        model: Callable[..., Any],
        example_batch: Tensor | Batch,
        divergence: float = 10.0,
        *,
        hidden: Sequence[int] = (200, 200),
        discriminator: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.divergence = number("divergence", divergence, above=0, usual=10)
        self.discriminator = Discriminator((example_latents(model, as_batch(example_batch)),), hidden, discriminator)
        self.companions["discriminator"] = self.discriminator

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """E log p(x | z) - kl_weight * lambda * JSD, (B,)."""
        assert self._pair is not None
        weight = kl_weight * self.divergence
        log_likelihood = run.scaled_log_joint()[0][0]
        of_guide = self.discriminator(as_vectors(run.latents))
        of_prior = self.discriminator(draw_prior(run, self._pair.model).detach())
        value = log_likelihood + weight * negative_divergence(of_guide, of_prior)
        if not torch.is_grad_enabled():
            return value
        pull = attach_draws(run, log_likelihood + weight * logsigmoid(-of_guide))
        return value_with_gradient(value, log_likelihood + pull + logistic(of_guide, of_prior))
