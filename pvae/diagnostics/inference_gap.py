"""What inference loses: by the guide's family, and by sharing one encoder among all data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.data.batches import Data
from pvae.diagnostics.local import free_guide, optimise
from pvae.diagnostics.looking import looking, rows_at_once
from pvae.estimators.importance import ImportanceSampling
from pvae.estimators.log_marginal import Estimator, log_marginal, require_estimator
from pvae.pair.contexts import evaluation, running, seeded
from pvae.pair.entry import entry
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters, find_parameters
from pvae.pair.sites import Batch
from pvae.support.arguments import GUIDE
from pvae.support.per_datum import PerDatum
from pvae.support.refusals import built, function, number, shown, whole

__all__ = ["InferenceGap", "inference_gap"]

# Nats that count as a gap, however small its error; Adam's last noise is of this size.
_LEAST_GAP = 0.01
# Estimates of log p(x) are noisy, and the largest of several the more so: one counts if it is larger by so many errors.
_CLEARLY = 3.0
# Adam leaves a best guide some noise below its optimum, so one that is not above its start by so many errors is left.
_JUST = 2.0


@dataclass(frozen=True)
class InferenceGap:
    """log p(x) >= L[q*] >= L[q], per datum, in nats, and the two gaps between them.

    Attributes:
        log_p: log p(x), as estimated.
        best_bound: the ELBO of the best guide of each datum within the family, L[q*].
        guide_bound: the guide's own ELBO, L[q].
        approximation: log p(x) - L[q*].
        amortisation: L[q*] - L[q], from the same noise for both.
        rise: how much L[q*] rose in the second half of the optimisation: about 0 if its steps were enough.
        bound: what `log_p` is: "exact", or as its estimator says; "lower" makes the approximation gap a lower bound.
    """

    log_p: PerDatum
    best_bound: PerDatum
    guide_bound: PerDatum
    approximation: PerDatum
    amortisation: PerDatum
    rise: PerDatum
    bound: str

    @property
    def verdict(self) -> str:
        """Which gap is the larger, in words."""
        gaps = {"approximation": self.approximation, "amortisation": self.amortisation}
        real = {name: gap.mean for name, gap in gaps.items() if gap.mean > max(3 * gap.mc_standard_error, _LEAST_GAP)}
        fixes = {"approximation": "a richer family of guides", "amortisation": "a larger or longer trained encoder"}
        if not real:
            words = "no gap beyond the errors: the guide is as good as exact"
        else:
            largest = max(real, key=lambda name: real[name])
            share = real[largest] / sum(max(gap.mean, 0.0) for gap in gaps.values())
            words = f"the {largest} gap is {share:.0%} of what inference loses: try {fixes[largest]}"
        rise = self.rise.mean
        if rise > max(3 * self.rise.mc_standard_error, 0.1 * self.amortisation.mean, _LEAST_GAP):
            words += f"; L[q*] rose by {rise:.2g} nats in the second half of its steps: raise local_steps or lr"
        return words

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for a table or JSON."""
        return {
            "log_p": self.log_p.summary(),
            "best_bound": self.best_bound.summary(),
            "guide_bound": self.guide_bound.summary(),
            "approximation_gap": self.approximation.summary(),
            "amortisation_gap": self.amortisation.summary(),
            "rise": self.rise.summary(),
            "bound": self.bound,
            "num_data": len(self.log_p.values),
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        return "\n".join(
            [
                self.verdict,
                f"log p(x) ({self.bound})        {self.log_p}",
                f"approximation gap      {self.approximation}",
                f"bound, best per datum  {self.best_bound}",
                f"amortisation gap       {self.amortisation}",
                f"bound of the guide     {self.guide_bound}",
            ]
        )


@entry
def inference_gap(
    model: Any,
    guide: Any,
    data: Data,
    *,
    estimator: Estimator | Sequence[Estimator] | Callable[[Tensor], Tensor] | None = None,
    local_guide: Callable[..., Any] | None = None,
    local_steps: int = 500,
    local_samples: int = 8,
    lr: float = 0.05,
    num_samples: int = 1000,
    batch_size: int = 100,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> InferenceGap:
    """Split log p(x) - ELBO into what the guide's family loses and what its encoder loses.

    The best guide q* of a datum is a copy of the guide in which free numbers stand for the encoder's output: they
    start there and are trained by Adam on the ELBO with the model frozen; all else in the guide stays as trained. For a
    datum that this takes no further, by draws of its own, q* is the start. The pair is not changed. A guide without
    parameters of its own is its own q*.

    Args:
        model: any Pyro model within the contract of a pair.
        guide: its guide; a module whose `encoder` gives (B, num_outputs), or see `local_guide`.
        data: a tensor, a tuple of tensors, a `DataSet` (its test split) or a `DataLoader`.
        estimator: of log p(x), by default `ImportanceSampling(5000)`. Of several, which have to be lower bounds, that
            of the largest mean counts, and for a datum another that is larger by 3 of their Monte-Carlo errors and has
            a k-hat to trust: the mere largest of noisy lower bounds is no lower bound. A function such as
            `model.log_prob` gives exact values (B,).
        local_guide: from a batch to a guide with free parameters for each of its data, all of which are trained.
        local_steps: Adam steps per batch, with a rate that falls along a cosine.
        local_samples: particles per step.
        lr: the first rate.
        num_samples: K for the two bounds.
        batch_size: data at once; a `DataLoader` keeps its own.
        device: where to compute; by default where the pair is.
        seed: of all draws.

    Raises: ValueError for a guide whose numbers cannot be freed, an estimator that gives an upper bound, or counts out
        of range.

    Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.
    """
    whole("local_steps", local_steps, usual=500)
    whole("local_samples", local_samples, usual=8)
    whole("num_samples", num_samples, 2, usual=1000)
    number("lr", lr, above=0, usual=0.05)
    if local_guide is not None:
        function("local_guide", local_guide, usual="lambda x: a guide with parameters for each datum of x")
    estimators = _estimators(estimator)
    with looking(model, guide, data, batch_size, device, seed) as (parameters, source):
        batches = list(source.epoch())
        log_p, bound = _log_p(model, guide, batches, estimators, batch_size, seed)
        looks = [
            _look(model, guide, batch, parameters, local_guide, local_steps, local_samples, lr, num_samples)
            for batch in batches
        ]
    own, best, rise = (torch.cat([look[i] for look in looks], 1) for i in range(3))
    best_bound = _mean(best)
    approximation = PerDatum(
        log_p.values - best_bound.values, torch.hypot(log_p.mc_standard_errors, best_bound.mc_standard_errors)
    )
    return InferenceGap(log_p, best_bound, _mean(own), approximation, _mean(best - own), _mean(rise), bound)


def _look(
    model: Any,
    guide: Any,
    batch: Batch,
    parameters: Parameters,
    local_guide: Callable[..., Any] | None,
    steps: int,
    local_samples: int,
    lr: float,
    num_samples: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights of the guide and of q*, and how much those of q* rose in the second half, each (K, B)."""
    judging, reporting = torch.randint(2**31, (2,), device="cpu").tolist()
    with Pair(model, guide).inside():
        if local_guide is not None:
            with running("local_guide", batch):
                local, only = built("what local_guide gives", local_guide(*batch), usual=GUIDE), None
        elif parameters.guide_only:
            local, only = free_guide(guide, batch)
        else:
            local, only = guide, None
        start, own = (_log_weights(model, guide, batch, num_samples, seed) for seed in (judging, reporting))
        half: list[Tensor] = []
        with Pair(model, local).inside():
            optimise(
                model,
                local,
                batch,
                only=only,
                steps=steps,
                num_samples=local_samples,
                lr=lr,
                halfway=lambda: half.append(_log_weights(model, local, batch, num_samples, judging)),
            )
            end, best = (_log_weights(model, local, batch, num_samples, seed) for seed in (judging, reporting))
    gain = _mean(end - start)
    better = gain.values > _JUST * gain.mc_standard_errors
    return own, torch.where(better, best, own), end - half[0]


def _estimators(given: Any) -> Any:
    """A list of estimators, or the one function that gives log p(x)."""
    if given is None:
        return [ImportanceSampling(5000)]
    if callable(given) and not isinstance(given, type) and not hasattr(given, "start"):
        return given
    several = [*given] if isinstance(given, (list, tuple)) else [given]
    for each in several:
        require_estimator(each)
    kinds = [getattr(each, "bound", "none") for each in several]
    if "upper" in kinds or not several or (len(several) > 1 and set(kinds) != {"lower"}):
        raise ValueError(
            f"expected one estimator of log p(x) that is no upper bound, or several lower bounds, got {kinds}; give "
            "for example ImportanceSampling(5000)"
        )
    return several


def _exact(log_prob: Callable[..., Any], batch: Batch) -> Tensor:
    with running("estimator", batch):
        values = log_prob(*batch)
    if not isinstance(values, Tensor) or values.shape != batch[0].shape[:1]:
        raise ValueError(
            f"a function in place of an estimator gives log p(x) of each datum, ({len(batch[0])},), got {shown(values)}"
            "; give for example model.log_prob"
        )
    return values.double().cpu()


def _log_p(
    model: Any, guide: Any, batches: list[Batch], several: Any, batch_size: int, seed: int
) -> tuple[PerDatum, str]:
    if not isinstance(several, list):
        values = torch.cat([_exact(several, batch) for batch in batches])
        return PerDatum(values, torch.zeros_like(values)), "exact"
    data = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    results = [log_marginal(model, guide, data, each, batch_size=batch_size, seed=seed) for each in several]
    results.sort(key=lambda result: result.mean, reverse=True)
    values, errors = results[0].values, results[0].mc_standard_errors
    for result in results[1:]:
        clearly = result.values - values > _CLEARLY * torch.hypot(result.mc_standard_errors, errors)
        clearly &= result.khat <= result.khat_threshold
        values = torch.where(clearly, result.values, values)
        errors = torch.where(clearly, result.mc_standard_errors, errors)
    return PerDatum(values, errors), several[0].bound


def _log_weights(model: Any, guide: Any, batch: Batch, num_samples: int, seed: int) -> Tensor:
    """log p(x, z) - log q(z | x), (K, B), float64, of nets in evaluation mode."""
    width = sum(part.numel() for part in batch)
    size = min(num_samples, max(2, rows_at_once(width)))
    with evaluation(find_parameters(model, guide, batch).modules), seeded(seed, batch[0].device):
        pair = Pair(model, guide)
        layout = pair.layout(batch, num_samples)
        chunks = [
            pair.run(batch, min(size, num_samples - start), layout=layout).log_weights().values.double().cpu()
            for start in range(0, num_samples, size)
        ]
    return torch.cat(chunks)


def _mean(log_weights: Tensor) -> PerDatum:
    return PerDatum(log_weights.mean(0), log_weights.std(0) / math.sqrt(len(log_weights)))
