"""What the objectives share: from a pair to a bound per datum, and from there to the losses that SVI asks for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.layout import read_layout
from pvae.runs import Layout, PairRun, run_pair
from pvae.sites import Site, as_batch, base_of
from pvae.weights import check_num_samples

__all__ = ["Objective", "site_without_gradient"]


class Objective(pyro.infer.ELBO):
    """A bound on log p(x), per datum, to be made as large as possible.

    A subclass writes `reduce`, from one run of a pair to (B,). `loss` and its kin follow Pyro's
    convention instead: the negative, summed over the batch, times the scale of a subsampling plate.
    """

    def __init__(self, num_samples: int = 1) -> None:
        check_num_samples(num_samples)
        super().__init__(num_particles=num_samples, vectorize_particles=True)
        self.num_samples = num_samples
        self._layout: tuple[Any, Any, Layout] | None = None

    @abstractmethod
    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """The bound per datum, (B,), in nats, with every KL term times `kl_weight`."""

    def bound(
        self, model: Any, guide: Any, batch: Tensor | tuple[Tensor, ...], kl_weight: float | Tensor = 1.0
    ) -> Tensor:
        """The bound per datum, (B,), in nats; differentiable; a KL weight below 1 makes it no bound.

        Raises: ValueError if a guide site has no pathwise gradient.
        """
        return self.reduce(self._run(model, guide, as_batch(batch)), kl_weight)

    def _run(self, model: Any, guide: Any, batch: tuple[Tensor, ...]) -> PairRun:
        if self._layout is None or self._layout[:2] != (model, guide):
            self._layout = model, guide, read_layout(model, guide, batch, self.num_samples)
        run = run_pair(model, guide, batch, self.num_samples, self._layout[2])
        for name, site in run.guide.items():
            if torch.is_grad_enabled() and site_without_gradient(site):
                family = type(base_of(site["fn"])).__name__
                raise ValueError(
                    f"site '{name}' is drawn from {family}, which has no pathwise gradient; "
                    "use a reparameterised distribution, or pyro's TraceGraph_ELBO for score-function gradients"
                )
        return run

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, summed over data, as a tensor to differentiate (what `ELBOModule` calls)."""
        if kwargs:
            raise ValueError(f"a batch is positional, got keywords {sorted(kwargs)}; pass tensors in order")
        run = self._run(model, guide, args)
        return -self.reduce(run, 1.0).sum() * run.data_scale

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, summed over data."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """`loss`, after adding its gradients to the parameters (what `SVI.step` calls)."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("pvae objectives read a pair through pvae.runs.run_pair")


def site_without_gradient(site: Site) -> bool:
    """Whether a guide site's draw has no pathwise gradient."""
    return not site["fn"].has_rsample
