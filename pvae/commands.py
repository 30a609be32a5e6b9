"""What the command line does between reading its options and printing a table."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pvae
from pvae import recipes
from pvae.data.beside import Parts
from pvae.data.dataset import DataSet
from pvae.models.priors import ExemplarPrior, VampPrior, pseudo_inputs_near
from pvae.nets import init_output_bias
from pvae.objectives.objective import Objective
from pvae.simulate import observed_parts
from pvae.store import private_store
from pvae.training.checkpoint import load, read_config
from pvae.training.metrics import plain
from pvae.training.turns import Aggressive, Alternating, Turns

__all__ = [
    "catalogue",
    "draw",
    "estimator_for",
    "first_test_data",
    "fitted_to",
    "free_folder",
    "load_run",
    "objective_for",
    "own_function",
    "record_result",
    "start_at_mean",
    "start_near_data",
    "turns_of",
    "widths",
]


def widths(words: str) -> tuple[int, ...]:
    """Widths of hidden layers from "200,200".

    Raises: ValueError unless they are whole numbers of at least 1, separated by commas.
    """
    parts = [part.strip() for part in words.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"hidden must be widths such as 200,200, got {words!r}")
    return tuple(int(part) for part in parts)


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
    return recipes.construct(cls, {} if num_samples is None else {"num_samples": num_samples})


def turns_of(words: str) -> int | Turns:
    """How guide and model take turns: a number, "alternating" or "aggressive"."""
    named = {"aggressive": Aggressive, "alternating": Alternating}
    if words in named:
        return named[words]()
    if not words.isdecimal():
        raise ValueError(f"inference_steps must be a whole number, alternating or aggressive, got {words!r}")
    return int(words)


def own_function(name: str | None) -> Any:
    """The function behind `module:function` or `file.py:function`; None for a built-in name.

    Raises: ValueError if the file, module or function is not there.
    """
    if name is None or not recipes.is_own(name):
        return None
    place, _, path = name.rpartition(":")
    if not place or not path:
        raise ValueError(f"expected module:function or file.py:function, got {name!r}; name both parts")
    try:
        found: Any = _module_from(place)
    except (ImportError, FileNotFoundError, SyntaxError) as error:
        raise ValueError(f"cannot import {place}: {error}; give module:function or file.py:function") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{place} has no '{path}'; it defines {[n for n in vars(found) if n[0] != '_'][:8]}")
        found = getattr(found, part)
    if inspect.isclass(found) or not callable(found):
        raise ValueError(f"{name} is not a function that takes a batch; name a Pyro function or a built module")
    return found


@cache
def _module_from(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    file = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"no such file: {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    return module


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


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2` and so on: the first that does not exist."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def load_run(
    run: Path, model: str | None, guide: str | None, data_root: Path | None, device: str, suffix: str = ""
) -> tuple[tuple[Any, Any], DataSet]:
    """The trained pair of a run folder, and its data set; the options were --model and --guide plus `suffix`."""
    config = read_config(run)
    recipe = config.get("recipe")
    if not isinstance(recipe, dict) or not {"data", "data_root", "binarize", "model", "guide"} <= recipe.keys():
        raise ValueError(f"{run} was not written by `pvae train`; load it in Python with pvae.load(path, model, guide)")
    for role, given in (("model", model), ("guide", guide)):
        own = recipes.is_own(recipe[role])
        if given is not None and given != recipe[role] and not (own and recipes.is_own(given)):
            raise ValueError(f"the {role} of {run} is {recipe[role]}, not {given}; leave --{role}{suffix} out")
        if given is None and own:
            again = f"--{role}{suffix} {recipe[role]}"
            raise ValueError(f"the {role} of {run} is your own code; name it again with {again}")
    pair = load(run, own_function(model), own_function(guide), device=device)
    root = data_root or recipe["data_root"]
    dataset = pvae.data.load(recipe["data"], root=root, binarize=recipe["binarize"])
    return pair, fitted_to(recipe["model"], dataset)


def first_test_data(dataset: DataSet, num: int) -> DataSet:
    """The data set with only the first `num` test data."""
    if num < 1 or dataset.test is None:
        raise ValueError(f"subset must be at least 1, of a data set with a test split, got {num}")
    beside = dataset.beside and {**dataset.beside, "test": tuple(part[:num] for part in dataset.parts("test")[1:])}
    return dataclasses.replace(dataset, test=dataset.test[:num], labels=None, beside=beside)


def record_result(run: Path, summary: dict[str, Any]) -> None:
    """Append a result to the run's results.jsonl."""
    with (run / "results.jsonl").open("a") as file:
        file.write(json.dumps(plain(summary)) + "\n")


def draw(run: Path, pair: tuple[Any, Any], dataset: DataSet, num: int, seed: int) -> dict[str, Any]:
    """Samples, and test data with their reconstructions, as PNG (image data) or NPY; returns what was written.

    Samples given labels have these in turn, one column of the picture for each.
    """
    shown = _shown(dataset, num, seed)
    drawn = pvae.sample(pair[0], num, like=_conditions(shown), mean=True, seed=seed)
    rebuilt = pvae.reconstruct(*pair, shown, seed=seed)
    site = next(iter(rebuilt))
    # What a classifier draws and rebuilds is the label.
    seen = shown[_part_of(pair[0], site, shown)]
    samples, copies = drawn[site].reshape(num, *seen.shape[1:]), rebuilt[site].reshape(seen.shape)
    if seen.dim() != 4 or seen.shape[1] not in (1, 3):
        files = {"samples": run / "samples.npy", "reconstructions": run / "reconstructions.npy"}
        np.save(files["samples"], samples.numpy())
        np.save(files["reconstructions"], torch.stack([seen, copies], 1).numpy())
        return {name: str(file) for name, file in files.items()}
    columns = max(1, round(num**0.5)) if len(shown) == 1 else shown[1].shape[1]
    # Filled up to whole rows, so that the last data, too, stand above their reconstructions.
    missing = seen.new_full((-len(seen) % columns, *seen.shape[1:]), 0.5)
    rows = zip(*(torch.cat([part, missing]).split(columns) for part in (seen, copies)), strict=True)
    files = {"samples": run / "samples.png", "reconstructions": run / "reconstructions.png"}
    _save_grid(samples, files["samples"], columns)
    _save_grid(torch.cat([part for pair in rows for part in pair]), files["reconstructions"], columns)
    return {name: str(file) for name, file in files.items()}


def _shown(dataset: DataSet, num: int, seed: int) -> Parts:
    """The first `num` test data as a batch, observed."""
    x, *beside = (part[:num] for part in dataset.parts("train" if dataset.test is None else "test"))
    return dataset.observe(x, torch.Generator().manual_seed(seed)), *beside


def _conditions(shown: Parts) -> Parts:
    """A batch to draw data like: any datum, and beside it every label."""
    x, *labels = shown
    if not labels:
        return (x[:1],)
    classes = torch.eye(labels[0].shape[1], dtype=labels[0].dtype)
    return x[:1].expand(len(classes), *x.shape[1:]), classes


def _part_of(model: Any, site: str, batch: Parts) -> int:
    """Which part of the batch a site observes, the first where there is but one."""
    if len(batch) == 1:
        return 0
    with private_store(model):
        return observed_parts(model, batch)[site]


def _save_grid(images: torch.Tensor, file: Path, columns: int) -> None:
    """Images (N, C, H, W) in [0, 1] as a PNG, small ones enlarged so that a person can see them."""
    from torchvision.utils import save_image

    factor = max(1, 56 // images.shape[-1])
    large = images.clamp(0, 1).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    save_image(large, file, nrow=columns, pad_value=0.5)


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
