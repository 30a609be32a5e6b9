"""Adversarial variational Bayes: an ELBO for guides without a density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pvae.objectives.adversarial.density_ratio import Discriminator, example_latents, logistic
from pvae.objectives.adversarial.prior_draws import as_vectors, draw_prior
from pvae.objectives.gradient import attach_draws, value_with_gradient
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch, as_batch

__all__ = ["AdversarialVB"]


class AdversarialVB(Objective):
    """The ELBO with log q(z | x) - log p(z) read off a discriminator, for guides that can only be drawn from.

    From one particle per datum it is

        E log p(x | z) - T(x, z),
        T = argmax E_x { E_q(z | x)[log sigmoid(T(x, z))] + E_p(z)[log sigmoid(-T(x, z))] },

    where the best T is log q(z | x) - log p(z). At the best T its own change with q adds nothing to the gradient, as
    E_q[d log q(z | x)] = 0, so that guide and model take T as given while the discriminator learns beside them. A
    learned prior is trained through log p(z).

    The value lies near the ELBO as far as T is near its best, and may well be above log p(x): it is no bound, and no
    two epochs' values compare. The KL weight multiplies T.

    Args:
        model: the model, read for its latent sites.
        example_batch: a batch, read for its shapes.
        hidden: widths of the default discriminator's hidden layers (ELU).
        discriminator: a net from the parts of the batch and z, (B, dims) with all latent sites side by side, to T, (B,)
            or (B, 1), to use instead.

    Raises: ValueError for guide sites without a pathwise gradient, and latents that are summed out.

    Mescheder, Nowozin and Geiger (2017), Adversarial Variational Bayes: Unifying Variational Autoencoders and
    Generative Adversarial Networks.
    """

    is_adversarial = True
    scores = ("model",)
    always_split = True

    def __init__(
        self,
        model: Callable[..., Any],
        example_batch: Tensor | Batch,
        *,
        hidden: Sequence[int] = (200, 200),
        discriminator: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        batch = as_batch(example_batch)
        self.discriminator = Discriminator((*batch, example_latents(model, batch)), hidden, discriminator)
        self.companions["discriminator"] = self.discriminator

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """E log p(x | z) - kl_weight * T(x, z), (B,)."""
        assert self._pair is not None
        log_likelihood, log_prior = (part[0] for part in run.scaled_log_joint())
        of_guide = self.discriminator(*run.batch, as_vectors(run.latents))
        value = log_likelihood - kl_weight * of_guide
        if not torch.is_grad_enabled():
            return value
        of_prior = self.discriminator(*run.batch, draw_prior(run, self._pair.model).detach())
        surrogate = log_likelihood + kl_weight * log_prior + attach_draws(run, value) + logistic(of_guide, of_prior)
        return value_with_gradient(value, surrogate)
