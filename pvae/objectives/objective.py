"""What the objectives share: from a pair to a bound per datum, and from there to the losses that SVI asks for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pvae.objectives.baselines import Baseline
from pvae.objectives.gradient import Gradient, GradientName, attach_draws, value_with_gradient
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch, Site, as_batch, base_of
from pvae.support.arguments import check_pair
from pvae.support.refusals import number, whole

__all__ = ["PATHWISE_FIX", "Objective", "site_without_gradient"]

PATHWISE_FIX = "use a reparameterised distribution, or an objective with gradient='score'"


class Objective(pyro.infer.ELBO):
    """A bound on log p(x), per datum, to be made as large as possible.

    A subclass writes `reduce`, from one run of a pair to (B,). `loss` and its kin follow Pyro's
    convention instead: the negative, summed over the batch, times the scale of a subsampling plate.

    Args:
        num_particles: draws per datum of one run.
        gradient: "pathwise", "stl", "dreg", "score" or "mixed" (`pvae.objectives.gradient.Gradient`).
        baseline: of the score function, one of `pvae.objectives.baselines`; trained beside the pair.

    Attributes: `companions`, modules of its own by name that are trained beside the pair, such as a baseline.

    Raises: ValueError for fewer than 1 particle, an unknown gradient, or a baseline without a score function.
    """

    # Whether the graph is cut at the draws even for the pathwise gradient.
    always_split = False
    # Whether the guide's sites with infer={"enumerate": "parallel"} are summed out instead of drawn.
    sums_out_guide = False
    # Whether its value itself is made of derivatives, so that it needs a history where none is asked for.
    needs_history = False
    # Whether its value is what a discriminator makes of the pair: no bound, and not to be compared between epochs.
    is_adversarial = False
    # Of which functions it asks for log densities.
    scores: tuple[str, ...] = ("model", "guide")
    # Whether it runs a guide at all.
    trains_guide = True

    def __init__(
        self, num_particles: int = 1, gradient: GradientName = "pathwise", baseline: Baseline | None = None
    ) -> None:
        super().__init__(num_particles=whole("num_samples", num_particles, usual=1000), vectorize_particles=True)
        self.gradient = Gradient(gradient, baseline)
        self.companions: dict[str, nn.Module] = {} if baseline is None else {"baseline": baseline}
        self._pair: Pair | None = None

    @abstractmethod
    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """The bound per datum, (B,), in nats, with every KL term times `kl_weight`."""

    def bound(
        self, model: Any, guide: Any, batch: Tensor | tuple[Tensor, ...], kl_weight: float | Tensor = 1.0
    ) -> Tensor:
        """The bound per datum, (B,), in nats; its gradient is the one asked for. A KL weight below 1 makes it no bound.

        Raises: ValueError if a guide site has no pathwise gradient and the gradient needs one, or for a KL weight that
            is no number of at least 0.
        """
        check_pair(model, guide)
        if not isinstance(kl_weight, Tensor) or kl_weight.dim() or kl_weight.is_complex():
            kl_weight = number("kl_weight", kl_weight, least=0, usual=1.0)
        return self._evaluate(model, guide, as_batch(batch, finite=False), kl_weight)[1]

    def bound_and_report(
        self, model: Any, guide: Any, batch: tuple[Tensor, ...], kl_weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The bound to differentiate, and the one to report, where the KL counts in full; both (B,), of one run."""
        run, bound = self._evaluate(model, guide, batch, kl_weight)
        if isinstance(kl_weight, float) and kl_weight == 1.0 and not run.factors:
            return bound, bound.detach()
        with torch.set_grad_enabled(self.needs_history):
            return bound, run.scaled(self.reduce(run, 1.0)).detach()

    def prepare(self, model: Any, guide: Any, batch: Batch) -> Batch:
        """The batch that the pair runs on: the given one, but for objectives that say otherwise."""
        return batch

    def _evaluate(self, model: Any, guide: Any, batch: Batch, kl_weight: float | Tensor) -> tuple[PairRun, Tensor]:
        learns = torch.is_grad_enabled()
        with torch.set_grad_enabled(learns or self.needs_history):
            run = self._run(model, guide, self.prepare(model, guide, batch))
            bound = run.scaled(self.reduce(run, kl_weight))
            penalty = run.penalty()
            if penalty is not None:
                bound = bound - self._trained(run, penalty)
        return run, bound if learns else bound.detach()

    def _trained(self, run: PairRun, penalty: Tensor) -> Tensor:
        """The mean over draws of what the guide's factors take off the bound, (B,), with its gradient by the draws."""
        mean = run.average(penalty)
        if not run.drawn or not torch.is_grad_enabled():
            return mean
        return value_with_gradient(mean, mean + attach_draws(run, penalty / len(penalty)))

    def _run(self, model: Any, guide: Any, batch: Batch) -> PairRun:
        if self._pair is None or not self._pair.is_of(model, guide):
            self._pair = Pair(model, guide, in_own_store=False)
        learns = torch.is_grad_enabled()
        split = learns and (self.always_split or self.gradient.name != "pathwise")
        branch = self.sums_out_guide and self.gradient.name == "pathwise"
        run = self._pair.run(batch, self.num_particles, split=split, branch=branch)
        summed = () if run.branches is None else run.branches.tables
        for name, site in run.guide.items():
            if learns and self.needs_pathwise and name not in summed and site_without_gradient(site):
                family = type(base_of(site["fn"])).__name__
                raise ValueError(
                    f"site '{name}' is drawn from {family}, which has no pathwise gradient; {PATHWISE_FIX}"
                )
        return run

    @property
    def needs_pathwise(self) -> bool:
        """Whether every site of the guide has to be reparameterised."""
        return self.gradient.name not in ("score", "mixed")

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, summed over data, as a tensor to differentiate (what `ELBOModule` calls)."""
        if kwargs:
            raise ValueError(f"a batch is positional, got keywords {sorted(kwargs)}; pass tensors in order")
        for name, module in self.companions.items():
            pyro.module(name, module)
        run, bound = self._evaluate(model, guide, args, 1.0)
        return -bound.sum() * run.data_scale

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
        raise NotImplementedError("pvae objectives run a pair through pvae.pair.pair.Pair")


def site_without_gradient(site: Site) -> bool:
    """Whether a guide site's draw has no pathwise gradient; what is observed, such as a factor, is not drawn."""
    return not site["is_observed"] and not site["fn"].has_rsample
