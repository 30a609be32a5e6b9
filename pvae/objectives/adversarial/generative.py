"""Generative adversarial training: a model learns from its own draws and a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import logsigmoid

from pvae.objectives.adversarial.density_ratio import Discriminator, logistic, negative_divergence
from pvae.objectives.gradient import value_with_gradient
from pvae.objectives.objective import Objective, site_without_gradient
from pvae.pair.contexts import called_modules, seeded
from pvae.pair.pair_run import PairRun
from pvae.pair.simulate import observed_parts
from pvae.pair.sites import Batch, as_batch, base_of

__all__ = ["GenerativeAdversarial"]


class GenerativeAdversarial(Objective):
    """The game of a model against a discriminator D = sigmoid(T), which tells data from the model's draws.

    The discriminator ascends V = E_data[log D(x)] + E_model[log(1 - D(x))], the model E_model[log D(x)] (the
    non-saturating loss). A part of the batch that the model conditions on is shown to the discriminator beside x. One
    step moves both, by one optimizer; `fit(inference_steps=k)` moves the discriminator alone on all but every k-th.

    The value is -(V + log 4) / 2 per datum: minus the Jensen-Shannon divergence of data and model in nats, at the best
    discriminator, and above it at any other. So it is no bound on log p(x), no likelihood at all, and a high value may
    tell of a poor discriminator as well as of a good model. The KL weight has no meaning here.

    No density is asked for, and the guide is not used: `pvae.fit(model, None, data, objective=...)`.

    Args:
        example_batch: a batch, read for its shapes.
        hidden: widths of the default discriminator's hidden layers (ELU).
        discriminator: a net from the parts of the batch to T, (B,) or (B, 1), to use instead.

    Raises: ValueError for a model with sites that have no pathwise gradient, such as Bernoulli pixels.

    Goodfellow et al. (2014), Generative Adversarial Nets; conditional: Mirza and Osindero (2014).
    """

    is_adversarial = True
    scores = ()
    trains_guide = False

    def __init__(
        self,
        example_batch: Tensor | Batch,
        *,
        hidden: Sequence[int] = (200, 200),
        discriminator: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.discriminator = Discriminator(as_batch(example_batch), hidden, discriminator)
        self.companions["discriminator"] = self.discriminator
        self._free: tuple[Any, Any, dict[str, int]] | None = None

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """-(log D(x) + log(1 - D(x')) + log 4) / 2 at each datum and a draw x', (B,)."""
        assert self._free is not None
        learns = torch.is_grad_enabled()
        fake, drawn, leaves = list(run.batch), [], []
        for name, index in self._free[2].items():
            draw = run.layout.collect(name, run.model[name]["value"], 1)[0].reshape(fake[index].shape)
            drawn.append(draw)
            # Cut off here, so that the discriminator runs once on draws that each side has a gradient of its own for.
            leaves.append(draw.detach().requires_grad_(learns))
            fake[index] = leaves[-1]
        of_data, of_draws = self.discriminator(*run.batch), self.discriminator(*fake)
        value = negative_divergence(of_data, of_draws)
        if not learns:
            return value
        surrogate = logistic(of_data, of_draws)
        pulls = torch.autograd.grad(logsigmoid(of_draws).sum(), leaves, retain_graph=True)
        for pull, draw in zip(pulls, drawn, strict=True):
            surrogate = surrogate + (pull * draw).reshape(run.num_data, -1).sum(1)
        return value_with_gradient(value, surrogate)

    def _run(self, model: Any, guide: Any, batch: Batch) -> PairRun:
        if self._free is None or self._free[0] is not model:
            with seeded(0, batch[0].device), called_modules():
                self._free = model, poutine.uncondition(model), observed_parts(model, batch)
        run = super()._run(self._free[1], None, batch)
        for name, site in run.model.items():
            if torch.is_grad_enabled() and site_without_gradient(site):
                family = type(base_of(site["fn"])).__name__
                raise ValueError(
                    f"site '{name}' is drawn from {family}, which has no pathwise gradient, "
                    "so that draws do not teach the model; use pvae.models.Generator, or a Gaussian likelihood"
                )
        return run
