"""From names and plain numbers to a pair: what the command line and `load` share."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pvae.data.dataset import DataSet
from pvae.nets import MLP
from pvae.pair.sites import find_latent_sites
from pvae.support.refusals import choice, whole

__all__ = ["build", "construct", "exported", "is_own", "name_of", "pick", "recipe_for", "takes_labels"]

_LIKELIHOODS = {"binary": "bernoulli", "unit": "gaussian", "real": "gaussian", "counts": "negative_binomial"}

_PACKAGE = "pvae.models.likelihoods"

# What a likelihood may ask to know of the data.
_ABOUT_DATA = ("num_categories", "num_values", "total_count")

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def exported(package: str) -> dict[str, type]:
    """The classes that a package offers, by name as on the command line: `MeanField` is "mean_field"."""
    members = inspect.getmembers(importlib.import_module(package), inspect.isclass)
    return {
        _snake(name): cls
        for name, cls in members
        if cls.__module__.startswith(package) and name[0] != "_" and not inspect.isabstract(cls)
    }


def pick(package: str, name: str) -> type:
    """The class of that name in a package.

    Raises: ValueError with the nearest name if there is none.
    """
    choices = exported(package)
    return choices[choice(package.rsplit(".")[-1].removesuffix("s"), name, list(choices))]


def name_of(part: object) -> str:
    """The name on the command line of a built-in model or guide."""
    return _snake(type(part).__name__)


def is_own(name: str | None) -> bool:
    """Whether a name points to a user's own code, as `module:function` or `file.py:function`."""
    return name is not None and ":" in name


def takes_labels(model: str) -> bool:
    """Whether batches of the built-in model of that name are (x, label)."""
    return not is_own(model) and getattr(pick("pvae.models", model), "takes_labels", False)


def recipe_for(
    dataset: DataSet,
    model: str,
    guide: str | None,
    latent_dim: int,
    hidden: tuple[int, ...],
    likelihood: str | None = None,
    prior: str | None = None,
    num_components: int | None = None,
) -> dict[str, Any]:
    """All that `build` needs for a pair over a data set, as plain values for config.json.

    Without a guide `build` takes "mean_field", or "empty" for a model with nothing to draw.

    Raises: ValueError for an unknown model, a number below 1, or a likelihood or prior beside a model that has one of
        its own.
    """
    takes = {} if is_own(model) else inspect.signature(pick("pvae.models", model)).parameters
    for part, name in {"likelihood": likelihood, "prior": prior}.items():
        if name is not None and part not in takes:
            raise ValueError(f"{model} has a {part} of its own, got {name!r} besides; leave {part} out")
    whole("latent_dim", latent_dim, usual=8)
    if num_components is not None:
        whole("num_components", num_components, usual=10)
    shape = list(dataset.shape)
    recipe: dict[str, Any] = {
        "model": model,
        "guide": guide,
        "x_shape": shape,
        "latent_dim": latent_dim,
        "hidden": list(hidden),
    }
    recipe["dtype"] = str(dataset.train.dtype).removeprefix("torch.")
    by_default = _LIKELIHOODS.get(dataset.observed_kind, "categorical")
    recipe["likelihood"] = by_default if likelihood is None else likelihood
    if recipe["likelihood"] == "categorical":
        recipe["num_categories"] = int(dataset.train.max()) + 1
    elif "num_values" in inspect.signature(pick(_PACKAGE, recipe["likelihood"])).parameters:
        recipe["num_values"] = _grid_size(dataset.train)
    elif recipe["likelihood"] == "multinomial":
        recipe["total_count"] = max(1, round(dataset.train.flatten(1).sum(1).mean().item()))
    if takes_labels(model):
        recipe["num_classes"] = dataset.parts("train")[1].shape[1]
    if num_components is not None and "num_components" in takes:
        return recipe | {"num_components": num_components}
    return recipe | _recipe_of_prior(dataset, prior, num_components)


def _recipe_of_prior(dataset: DataSet, prior: str | None, num_components: int | None) -> dict[str, Any]:
    takes = {} if prior is None else inspect.signature(pick("pvae.models.priors", prior)).parameters
    if num_components is not None and not {"num_components", "pseudo_inputs", "exemplars"} & takes.keys():
        raise ValueError(
            f"the prior {prior or 'standard_normal'} has no components, got {num_components}; leave it out"
        )
    recipe: dict[str, Any] = {} if prior is None else {"prior": prior}
    if num_components is not None:
        recipe["num_components"] = num_components
    if {"pseudo_inputs", "exemplars"} & takes.keys():
        recipe.setdefault("num_components", min(500, len(dataset.train)))
    if "bounds" in takes:
        recipe["bounds"] = [0.0, 1.0] if dataset.observed_kind in ("binary", "unit") else None
    return recipe


def build(recipe: Mapping[str, Any], model: Any = None, guide: Any = None) -> tuple[Any, Any]:
    """The pair of a recipe, freshly initialised; a given model or guide takes the place of the recipe's.

    Raises: ValueError for an unknown name, or a user's own function that was not given.
    """
    if recipe["latent_dim"] < 1:
        raise ValueError(f"latent_dim must be at least 1, got {recipe['latent_dim']}; try 8")
    for role, given in (("model", model), ("guide", guide)):
        if given is None and is_own(recipe[role]):
            raise ValueError(f"the {role} of this run is your own {recipe[role]}; give it again")
    model = _build_model(recipe) if model is None else model
    if guide is None:
        x = torch.zeros(2, *recipe["x_shape"], dtype=getattr(torch, recipe["dtype"]))
        labels = torch.eye(recipe["num_classes"]).to(x)[:1].expand(2, -1) if "num_classes" in recipe else None
        example = x if labels is None else (x, labels)
        offers = {"model": model, "example_batch": example, "hidden": tuple(recipe["hidden"])}
        name = recipe["guide"]
        if name is None:
            name = "mean_field" if find_latent_sites(model, example) else "empty"
        guide = construct(pick("pvae.guides", name), offers)
    if (tie := getattr(getattr(model, "prior", None), "tie", None)) is not None:
        tie(guide)
    return model, guide


def _grid_size(values: Tensor) -> int:
    """How many values a grid over [0, 1] has on which all of these lie: 256 for 8-bit images."""
    steps = values.unique().diff()
    return 2 if not len(steps) else max(2, round(1 / steps.min().item()) + 1)


def _build_model(recipe: Mapping[str, Any]) -> Any:
    cls = pick("pvae.models", recipe["model"])
    x_shape, latent_dim = tuple(recipe["x_shape"]), recipe["latent_dim"]
    offers: dict[str, Any] = {"x_shape": x_shape, "x_dim": math.prod(x_shape), "latent_dim": latent_dim}
    offers["layer_dims"] = tuple(recipe["hidden"])
    num_classes = recipe.get("num_classes", 0)
    offers |= {"num_classes": num_classes, "condition_dim": num_classes} if num_classes else {}
    offers |= {"num_components": recipe["num_components"]} if "num_components" in recipe else {}
    # As in Burda's net, the layer next to the data has twice as many dimensions as the one above it.
    offers["latent_dims"] = (2 * latent_dim, latent_dim)
    if "likelihood" in inspect.signature(cls).parameters:
        about_data = {name: recipe[name] for name in _ABOUT_DATA if name in recipe}
        likelihood = construct(pick(_PACKAGE, recipe["likelihood"]), about_data)
        widths = tuple(reversed(recipe["hidden"]))
        offers["likelihood"], offers["hidden"] = likelihood, widths
        offers["decoder"] = MLP(latent_dim + num_classes, widths, likelihood.parameter_shape(x_shape))
    if "prior" in recipe:
        offers["prior"] = _build_prior(recipe)
    model: nn.Module = construct(cls, offers)
    dtype = getattr(torch, recipe["dtype"])
    return model.to(dtype) if dtype.is_floating_point else model


def _build_prior(recipe: Mapping[str, Any]) -> Any:
    offers: dict[str, Any] = {"latent_dim": recipe["latent_dim"]}
    if "num_components" in recipe:
        offers["num_components"] = recipe["num_components"]
        # Their start is in the data, or the checkpoint.
        offers["pseudo_inputs"] = offers["exemplars"] = torch.zeros(recipe["num_components"], *recipe["x_shape"])
    if "bounds" in recipe:
        offers["bounds"] = recipe["bounds"] and tuple(recipe["bounds"])
    return construct(pick("pvae.models.priors", recipe["prior"]), offers)


def construct(cls: type, offers: Mapping[str, Any]) -> Any:
    """Construct from whichever of the offered arguments the class takes.

    Raises: ValueError if it needs another one.
    """
    takes = [each for each in inspect.signature(cls).parameters.values() if each.kind not in _REST]
    missing = [each.name for each in takes if each.default is each.empty and each.name not in offers]
    if missing:
        raise ValueError(f"{cls.__name__} needs {missing[0]}, which a name alone does not give; build it in Python")
    return cls(**{name: offers[name] for name in inspect.signature(cls).parameters if name in offers})


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
