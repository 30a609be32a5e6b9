"""Pictures (or arrays) of what a trained pair draws and rebuilds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import pvae
from pvae.data.beside import Parts
from pvae.data.dataset import DataSet
from pvae.pair.pair import Pair
from pvae.pair.simulate import observed_parts

__all__ = ["draw"]


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
    with Pair(model).inside():
        return observed_parts(model, batch)[site]


def _save_grid(images: torch.Tensor, file: Path, columns: int) -> None:
    """Images (N, C, H, W) in [0, 1] as a PNG, small ones enlarged so that a person can see them."""
    from torchvision.utils import save_image

    factor = max(1, 56 // images.shape[-1])
    large = images.clamp(0, 1).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    save_image(large, file, nrow=columns, pad_value=0.5)
