"""What the command line does between reading its options and printing a table."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pvae
from pvae.cli.own_code import own_function
from pvae.cli.showing import data_words
from pvae.data.dataset import DataSet
from pvae.data.words import in_words
from pvae.models.priors import ExemplarPrior, VampPrior, pseudo_inputs_near
from pvae.nets import init_output_bias
from pvae.objectives.objective import Objective
from pvae.runs import recipes
from pvae.runs.files import load, read_config
from pvae.runs.metrics import plain
from pvae.support.refusals import shown, whole
from pvae.training.fit import FitResult

__all__ = [
    "catalogue",
    "estimator_for",
    "first_test_data",
    "fitted_to",
    "load_run",
    "objective_for",
    "record_result",
    "start_at_mean",
    "start_near_data",
    "summary",
    "understood",
]


def objective_for(
    name: str,
    model: Any,
    dataset: DataSet,
    num_samples: int | None = None,
    gradient: str | None = None,
    baseline: str | None = None,
) -> Objective:
    """The objective of that name for a model and a data set, with its own defaults for what is None.

    Raises: ValueError for an unknown name, an option that the objective does not take, or one that has no guide.
    """
    cls = recipes.pick("pvae.objectives", name)
    if num_samples is not None:
        whole("num_samples", num_samples, usual=1)
    if not cls.trains_guide:  # type: ignore[attr-defined]
        raise ValueError(
            f"the objective {name} trains a model without a guide, and a run holds a pair; use Python: "
            "pvae.fit(model, None, data, objective=...)"
        )
    takes = inspect.signature(cls).parameters
    options: dict[str, Any] = {"num_samples": num_samples, "gradient": gradient}
    offers = {"model": model, "example_batch": dataset.train[:2], "num_data": len(dataset.train)}
    if baseline is not None:
        options["baseline"] = recipes.construct(recipes.pick("pvae.objectives.baselines", baseline), offers)
    options = {option: value for option, value in options.items() if value is not None}
    if unknown := [option for option in options if option not in takes]:
        raise ValueError(f"the objective {name} takes no {unknown[0]}; it takes {', '.join(takes)}")
    return recipes.construct(cls, offers | options)


def estimator_for(name: str, num_samples: int | None) -> Any:
    """The estimator of that name, with its own defaults for what is None.

    Raises: ValueError for an unknown name, one that takes more than a number, or a number for one that is exact.
    """
    cls = recipes.pick("pvae.estimators", name)
    if num_samples is not None and "num_samples" not in inspect.signature(cls).parameters:
        raise ValueError(f"the estimator {name} draws nothing, got {num_samples} samples; leave samples out")
    if num_samples is not None:
        whole("num_samples", num_samples, usual=1000)
    return recipes.construct(cls, {} if num_samples is None else {"num_samples": num_samples})


# What every run of `pvae train` has in its recipe beside what `recipes.build` looks at.
_RECIPE: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "guide": (str,),
    "data": (str,),
    "data_root": (str, type(None)),
    "binarize": (str, type(None)),
}


def fitted_to(model: str, dataset: DataSet, num_labels: int | None = None, seed: int = 0) -> DataSet:
    """The data set as a built-in model takes it: with labels where it `takes_labels`, flat where it has an `x_dim`.

    Of the training data `num_labels` keep their label, all of them for None.

    Raises: ValueError for data without the labels that the model takes, or a `num_labels` that does not go with it.
    """
    if num_labels is not None and model != "semi_supervised_vae":
        raise ValueError(f"{model} cannot do with fewer labels, got {num_labels}; leave num_labels out")
    if recipes.is_own(model):
        return dataset
    if recipes.takes_labels(model):
        dataset = dataset.with_labels()
    if num_labels is not None:
        dataset = _with_few_labels(dataset, num_labels, seed)
    if "x_dim" not in inspect.signature(recipes.pick("pvae.models", model)).parameters:
        return dataset
    flat = {name: values.flatten(1) for name, values in dataset.splits.items()}
    return dataclasses.replace(dataset, train=flat["train"], valid=flat.get("valid"), test=flat.get("test"))


def _with_few_labels(dataset: DataSet, num_labels: int, seed: int) -> DataSet:
    (labels,) = dataset.parts("train")[1:]
    if not 1 <= num_labels <= len(labels):
        raise ValueError(f"num_labels must lie in 1 to {len(labels)}, the training data, got {num_labels}")
    kept = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:num_labels]
    few = torch.zeros_like(labels).index_copy(0, kept, labels[kept])
    return dataclasses.replace(dataset, beside={**(dataset.beside or {}), "train": few})


def start_at_mean(model: Any, dataset: DataSet) -> None:
    """Start a Bernoulli decoder at the data mean."""
    if isinstance(getattr(model, "likelihood", None), pvae.models.likelihoods.Bernoulli):
        init_output_bias(model.decoder, dataset.train.mean(0))


@torch.no_grad()
def start_near_data(model: Any, dataset: DataSet, seed: int) -> None:
    """Start the pseudo-inputs of a VampPrior near random data, and make random data the exemplars of a prior."""
    prior = getattr(model, "prior", None)
    if isinstance(prior, ExemplarPrior):
        order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
        prior.exemplars.copy_(dataset.train[order[: len(prior.exemplars)]])
    if isinstance(prior, VampPrior):
        prior.free.copy_(pseudo_inputs_near(dataset.train, len(prior.free), bounds=prior.bounds, seed=seed))


def understood(dataset: DataSet, model: Any) -> str:
    """What was understood of the data, and the likelihood (or the model that has one of its own) that takes them."""
    part = getattr(model, "likelihood", model)
    return in_words(dataset) + (f"; {type(part).__name__}" if isinstance(part, nn.Module) else "")


def load_run(
    run: Path, model: str | None, guide: str | None, data_root: Path | None, device: str, suffix: str = ""
) -> tuple[tuple[Any, Any], DataSet]:
    """The trained pair of a run folder, and its data set; the options were --model and --guide plus `suffix`."""
    config = read_config(run)
    recipe = config.get("recipe")
    if not isinstance(recipe, dict) or not _RECIPE.keys() <= recipe.keys():
        raise ValueError(f"{run} was not written by `pvae train`; load it in Python with pvae.load(path, model, guide)")
    for name, kinds in _RECIPE.items():
        if not isinstance(recipe[name], kinds):
            raise ValueError(
                f"{run}/config.json has {shown(recipe[name])} for the {name} of its recipe; restore it from a copy, or "
                "train anew"
            )
    for role, given in (("model", model), ("guide", guide)):
        own = recipes.is_own(recipe[role])
        if given is not None and given != recipe[role] and not (own and recipes.is_own(given)):
            raise ValueError(f"the {role} of {run} is {recipe[role]}, not {given}; leave --{role}{suffix} out")
        if given is None and own:
            again = f"--{role}{suffix} {recipe[role]}"
            raise ValueError(f"the {role} of {run} is your own code; name it again with {again}")
    pair = load(run, own_function(model), own_function(guide), device=device)
    root = data_root or recipe["data_root"]
    dataset = pvae.data.load(recipe["data"], root, recipe["binarize"], kind=recipe.get("kind"))
    return pair, fitted_to(recipe["model"], dataset)


def first_test_data(dataset: DataSet, num: int) -> DataSet:
    """The data set with only the first `num` test data."""
    whole("subset", num, usual=1000)
    if dataset.test is None:
        raise ValueError(f"subset is of test data, and {dataset.name} has none; leave subset out")
    beside = dataset.beside and {**dataset.beside, "test": tuple(part[:num] for part in dataset.parts("test")[1:])}
    return dataclasses.replace(dataset, test=dataset.test[:num], labels=None, beside=beside)


def summary(result: FitResult, folder: Path, model: str, guide: str, objective: Objective) -> dict[str, Any]:
    """What `train` shows of a run."""
    last = result.history[-1]
    kind = ", no bound" if objective.is_adversarial else ""
    return {
        "run": str(folder),
        "data": data_words(result.data),
        "model": model,
        "guide": guide,
        "objective": f"{type(objective).__name__}({objective.num_particles}){kind}",
        "epochs": last["epoch"],
        "steps": last["step"],
        "step_mode": result.step_mode,
        "seconds": round(last["seconds"], 2),
        "train_bound_nats": last["train_bound"],
        "valid_bound_nats": last["valid_bound"],
    }


def record_result(run: Path, summary: dict[str, Any]) -> None:
    """Append a result to the run's results.jsonl."""
    with (run / "results.jsonl").open("a") as file:
        file.write(json.dumps(plain(summary)) + "\n")


def catalogue() -> dict[str, dict[str, str]]:
    """Every name that the command line takes, by group, with its one line."""
    packages = {
        "models": "pvae.models",
        "likelihoods": "pvae.models.likelihoods",
        "priors": "pvae.models.priors",
        "guides": "pvae.guides",
        "objectives": "pvae.objectives",
        "baselines": "pvae.objectives.baselines",
        "estimators": "pvae.estimators",
    }
    found = {
        group: {name: _first_line(cls) for name, cls in recipes.exported(package).items()}
        for group, package in packages.items()
    }
    return {**found, "data": pvae.data.names()}


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]
