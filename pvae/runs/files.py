"""Runs on disk: a readable config, and weights in a format that cannot execute code."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pvae.data.batches import Batches
from pvae.pair.entry import entry
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters, as_device, device_of_pair, find_parameters
from pvae.pair.soundness import require_sound
from pvae.pair.store import private_store
from pvae.runs.metrics import plain
from pvae.support.arguments import GUIDE, MODEL, check_pair, path_of
from pvae.support.refusals import built, instance

__all__ = ["amend_config", "load", "read_config", "save", "write_run"]

_CONFIG, _WEIGHTS, _FORMAT = "config.json", "checkpoint.safetensors", 1


@entry
def save(
    path: str | Path,
    model: Any,
    guide: Any,
    example_batch: Tensor | tuple[Tensor, ...],
    *,
    recipe: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a pair's weights and buffers to the folder `path`, each file whole or not at all.

    Args:
        path: a folder, made if need be.
        model: the pair's model, any Pyro callable.
        guide: the pair's guide; None if it has none.
        example_batch: a batch to find the parameters with; only its shapes and dtypes are kept.
        recipe: what `pvae.runs.recipes.build` needs to rebuild a built-in pair; without it `load` wants the pair.
        record: anything else to keep in config.json (data, objective, results).

    Raises: ValueError for a parameter that holds nan, or one to be trained that holds inf; nothing is written.
    """
    check_pair(model, guide)
    folder = path_of("path", path)
    for name, entries in (("recipe", recipe), ("record", record)):
        if entries is not None:
            instance(name, entries, Mapping, what="a mapping of names to plain values", usual="{'note': 'first'}")
    batch = Batches(example_batch, None).example()
    with Pair(model, guide).inside():
        parameters = find_parameters(model, guide, batch)
    write_run(folder, parameters, batch, recipe, record)


def write_run(
    folder: Path,
    parameters: Parameters,
    batch: tuple[Tensor, ...],
    recipe: Mapping[str, Any] | None,
    record: Mapping[str, Any] | None,
) -> None:
    """Write parameters that are already found; see `save`."""
    fix = "nothing was written; build the pair anew, or load a run that is sound"
    require_sound(parameters, parameters.state(), "parameter", fix)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.cpu().clone().contiguous() for name, tensor in parameters.state().items()}
    example = [{"shape": list(part.shape[1:]), "dtype": str(part.dtype).removeprefix("torch.")} for part in batch]
    config = {"format": _FORMAT, "recipe": recipe, "example_batch": example, **(record or {})}
    if len(parameters.functions) == 1:
        config["without_guide"] = True
    _write(folder / _WEIGHTS, safetensors.torch.save(state, metadata={"sha256": _digest(state)}))
    _write(folder / _CONFIG, (json.dumps(plain(config), indent=2) + "\n").encode())


def read_config(path: str | Path) -> dict[str, Any]:
    """The config of a run folder.

    Raises: ValueError if `path` is no run folder, or its config cannot be read.
    """
    file = path_of("path", path) / _CONFIG
    if not file.is_file():
        raise ValueError(f"{path} is not a run folder: it has no {_CONFIG}; give a folder that `pvae train` wrote")
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not readable as JSON ({error}); restore it from a copy, or train anew") from None
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ValueError(f"{file} does not describe a run of format {_FORMAT}; was it written by another pvae?")
    return config


def amend_config(path: str | Path, **entries: Any) -> None:
    """Set entries of a run folder's config, whole or not at all."""
    config = {**read_config(path), **entries}
    _write(Path(path) / _CONFIG, (json.dumps(plain(config), indent=2) + "\n").encode())


@entry
def load(
    path: str | Path, model: Any = None, guide: Any = None, *, device: torch.device | str = "cpu"
) -> tuple[Any, Any]:
    """Read a run folder into a pair, and return the pair; never unpickles, never imports what a file names.

    Args:
        path: a folder that `save` or `fit(out=...)` wrote.
        model: a model built as it was when saved; may be left out for a pair that has a recipe.
        guide: its guide; None if it was trained without.
        device: where the pair shall live.

    Raises: ValueError if the folder is no run, its files are truncated or corrupt, the weights hold nan or belong to
        another pair, or the device cannot be used. The pair is then as it was.
    """
    for name, function, usual in (("model", model, MODEL), ("guide", guide, GUIDE)):
        if function is not None:
            built(name, function, usual=usual)
    device = as_device(device)
    config = read_config(path)
    state = _read_weights(Path(path) / _WEIGHTS)
    incomplete = model is None or (guide is None and not config.get("without_guide"))
    if incomplete and config.get("recipe") is None:
        raise ValueError(f"{path} holds a pair of your own; build it as before and call load(path, model, guide)")
    try:
        batch = tuple(
            torch.zeros(2, *part["shape"], dtype=getattr(torch, part["dtype"]), device="cpu")
            for part in config["example_batch"]
        )
        if incomplete:
            # Recipes know the built-in models and guides, which the engine below them must not.
            from pvae.runs.recipes import build

            model, guide = build(config["recipe"], model, guide)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{Path(path) / _CONFIG} cannot rebuild the pair ({reason}); restore it from a copy, or build the pair as "
            "it was and call load(path, model, guide)"
        ) from error
    batch = tuple(part.to(device_of_pair(model, guide)) for part in batch)
    with private_store(model, guide, keep=True), pyro.validation_enabled(False):
        parameters = find_parameters(model, guide, batch)
        fix = "the run that wrote it broke: train it anew, or load another"
        require_sound(parameters, state, f"{Path(path) / _WEIGHTS}: saved weight", fix)
        parameters.load(state)
        parameters.to(device)
    return model, guide


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}; the run did not end, train it anew")
    content = file.read_bytes()
    try:
        state = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if header.get("__metadata__", {}).get("sha256", _digest(state)) != _digest(state):
            raise ValueError("its numbers do not match its checksum")
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} is truncated or corrupt ({str(error).splitlines()[0]}); restore it from a copy, or train anew"
        ) from None
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes: safetensors itself notices a short file, but not a flipped bit."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(file: Path, content: bytes) -> None:
    """Write beside the target, flush to disk, then rename: a crash leaves the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
