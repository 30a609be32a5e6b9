"""Pins the numbers of the library to the bit, to be compared before and after a change that should move none.

    python -m tests.pins before.json
    python -m tests.pins after.json --against before.json

A pin is the sum of a tensor, its shape and a digest of its bytes; where a call refuses, it is the line that it says.
One thread, fixed seeds; equal bits are promised on one machine alone.
"""

import argparse
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pvae
from pvae import diagnostics, estimators
from pvae.objectives import ELBO, IWAE
from tests import tables
from tests.tables import ESTIMATORS, GUIDES, IMPLICIT, MODELS, NO_DENSITY, OBJECTIVES

QUIET = {"progress": False, "seed": 3}
PAIRS = {
    "VAE": ("VAE", "MeanField"),
    "linear": ("LinearGaussian", "FullCovariance"),
    "hierarchy": ("HierarchicalVAE", "TopDown"),
    "bits": ("SigmoidBeliefNet", "Bernoulli"),
    "classes": ("MixtureVAE", "MeanField"),
    "sequence": ("StateSpace", "Recurrent"),
}
DIAGNOSTICS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "collapse": lambda model, guide, x: diagnostics.collapse(model, guide, x, seed=3),
    "inference_gap": lambda model, guide, x: diagnostics.inference_gap(
        model, guide, x, local_steps=20, num_samples=40, seed=3
    ),
    "calibration": lambda model, guide, x: diagnostics.calibration(
        model, guide, x, num_simulations=20, num_samples=19, seed=3
    ),
    "gradient_variance": lambda model, guide, x: diagnostics.gradient_variance(
        IWAE(3), model, guide, x, num_repeats=8, seed=3
    ),
}


def pair(model_name: str, guide_name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    make_model, make_data = MODELS[model_name]
    x = tables.cast(make_data(), dtype)
    model = make_model().to(dtype)
    return model, GUIDES[guide_name](model, x).to(dtype), x


def of_cells() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Weights, gradients, losses, log p(x), codes and reconstructions of every cell of the tables."""
    for guide_name in GUIDES:
        for model_name in MODELS:
            if {model_name, guide_name} & IMPLICIT or not tables.fits(model_name, guide_name):
                continue
            cell = (model_name, guide_name)
            options = tables.gradient_for(guide_name)
            objective = ELBO(beta=0.0) if guide_name in NO_DENSITY else ELBO(2, **options)
            where = f"{model_name} x {guide_name}"
            yield f"{where}: weights", lambda cell=cell: pvae.log_weights(*pair(*cell), 3)
            yield f"{where}: gradients", lambda cell=cell, o=objective: gradients(o, *pair(*cell))
            yield f"{where}: losses", lambda cell=cell, o=objective: losses(o, *cell, steps=6)
            yield f"{where}: log p", lambda cell=cell: log_p(cell, lambda model, x: estimators.ImportanceSampling(50))
            yield f"{where}: codes", lambda cell=cell: pvae.encode(*pair(*cell)[1:], num_samples=2)
            yield f"{where}: reconstructions", lambda cell=cell: pvae.reconstruct(*pair(*cell))


def of_parts() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Draws of every model, training by every objective, and every estimator and diagnostic on a few pairs."""
    for name, (make_model, make_data) in MODELS.items():
        yield f"{name}: draws", lambda m=make_model, d=make_data: pvae.sample(seeded(m), 5, like=d(), seed=3)
    for name, make in OBJECTIVES.items():
        for mode in ("eager", "traced"):
            cell = ("VAE, learned Gaussian", "MeanField")
            yield f"{name}, {mode}: losses", lambda m=make, mode=mode, c=cell: losses(m(), *c, steps=20, mode=mode)
    for where, cell in PAIRS.items():
        for name, make in ESTIMATORS.items():
            yield f"{name} of {where}", lambda m=make, c=cell: log_p(c, m)
        sampling = ESTIMATORS["ImportanceSampling"]
        yield f"an error of 0.3 of {where}", lambda c=cell, m=sampling: log_p(c, m, target_se=0.3)
        for name, call in DIAGNOSTICS.items():
            yield f"{name} of {where}", lambda call=call, c=cell: call(*pair(*c))
        for mode in ("eager", "traced"):
            yield f"mode {mode} of {where}", lambda mode=mode, c=cell: losses(IWAE(3), *c, steps=20, mode=mode)
        yield f"double of {where}", lambda c=cell: pvae.log_weights(*pair(*c, torch.float64), 4)
        yield f"training's ways of {where}", lambda c=cell: trained(*c)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def gradients(objective: Any, model: Any, guide: Any, x: Any) -> dict[str, Tensor | None]:
    torch.manual_seed(1)
    (-objective.bound(model, guide, x).mean()).backward()
    named = [*model.named_parameters(prefix="model"), *guide.named_parameters(prefix="guide")]
    return {name: parameter.grad for name, parameter in named}


def losses(objective: Any, model_name: str, guide_name: str, steps: int, mode: str = "eager") -> Tensor:
    options = {"steps": steps, "batch_size": 4, "step_mode": mode, **QUIET}
    return pvae.fit(*pair(model_name, guide_name), objective=objective, **options).losses


def trained(model_name: str, guide_name: str) -> list[Any]:
    """A run with most of what `fit` offers: schedules, clipping, an average, inner steps, a validation split."""
    model, guide, x = pair(model_name, guide_name)
    options = {"schedule": "cosine", "kl_schedule": pvae.training.linear_warmup(5), "clip_norm": 1.0, "ema": 0.9}
    objective = ELBO(2, **tables.gradient_for(guide_name))
    result = pvae.fit(
        model, guide, x, objective=objective, epochs=6, batch_size=3, inference_steps=2, **options, **QUIET
    )
    return [result.losses, dict(model.state_dict()), dict(guide.state_dict())]


def log_p(cell: tuple[str, str], estimator: Callable[[Any, Any], Any], **options: Any) -> list[Any]:
    model, guide, x = pair(*cell)
    found = pvae.log_marginal(model, guide, x, estimator(model, x), batch_size=4, **QUIET, **options)
    numbers = [found.mean, found.standard_error, found.mc_standard_error]
    return [found.values, found.mc_standard_errors, found.ess, found.khat, *numbers, found.bound]


def pin(found: Any) -> Any:
    """What a result is pinned by."""
    if isinstance(found, Tensor):
        values = found.detach().contiguous()
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
        return [list(values.shape), values.double().sum().item(), digest]
    if isinstance(found, dict):
        return {str(name): pin(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [pin(value) for value in found]
    if found is None or isinstance(found, (str, bool, int, float)):
        return found
    public = {name: value for name, value in vars(found).items() if not name.startswith("_") and not callable(value)}
    return pin(public)


def record() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (of_cells(), of_parts()):
        for name, call in part:
            with pyro.get_param_store().scope(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found[name] = pin(call())
                except Exception as error:  # what fails is pinned, too
                    found[name] = f"{type(error).__name__}: {error}"
    # As JSON gives them back.
    return json.loads(json.dumps(found))


def moved(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before | after if not same(before.get(name), after.get(name))]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="where to write the pins")
    parser.add_argument("--against", type=Path, help="earlier pins, to compare with")
    words = parser.parse_args()
    torch.set_num_threads(1)
    found = record()
    words.out.write_text(json.dumps(found, indent=0, sort_keys=True))
    refused = sum(isinstance(value, str) for value in found.values())
    print(f"{len(found)} pins, {refused} of them refusals")
    if words.against is None:
        return 0
    names = moved(json.loads(words.against.read_text()), found)
    print(f"{len(names)} moved", *names, sep="\n  ")
    return bool(names)


if __name__ == "__main__":
    sys.exit(main())
