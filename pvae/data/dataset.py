"""A data set: its splits, the kind of value they hold, and what a model sees of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pvae.data.beside import Parts, as_beside, one_hot_labels
from pvae.data.kinds import Binarization, Kind, as_stored, check_binarization, check_kind
from pvae.support.batch import Part, as_part
from pvae.support.refusals import instance

__all__ = ["Binarization", "DataSet", "Kind"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Named data: `train`, `valid` and `test` are (N, *shape), float32 unless given as another float type.

    Arrays of numpy become tensors, here and for labels and what stands beside, and sparse layouts become dense.
    `kind` is the kind of the values as stored (categories are int64, every other kind floats). `binarize`
    records how the data become binary: "dynamic" keeps intensities and draws afresh on every `observe`;
    "static" and "threshold" are stored binary already (`pvae.data.binarized` makes all three). `labels` maps
    the name of a split to (N,) int64. `beside` maps the name of every split to what its batches carry beside the data,
    one tensor (N, ...) or several: with it a batch is (x, *beside), as conditional models take it. `note` says what was
    left out or changed when a file was read.

    Raises ValueError for splits that are empty, differ in shape or dtype, are not finite or leave the range
    of `kind`, for labels or a `beside` that do not fit, and for a `binarize` that does not go with `kind`.
    """

    name: str
    train: Tensor = field(repr=False)
    valid: Tensor | None = field(default=None, repr=False)
    test: Tensor | None = field(default=None, repr=False)
    kind: Kind = "real"
    binarize: Binarization | None = None
    labels: Mapping[str, Tensor] | None = field(default=None, repr=False)
    beside: Mapping[str, Tensor | Parts] | None = field(default=None, repr=False)
    note: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        instance("name", self.name, str, what="the name of the data", usual="'mine'")
        for part in ("labels", "beside"):
            kinds = (Mapping, type(None))
            instance(part, getattr(self, part), kinds, what="a dict by split, or None", usual="{'train': labels}")
        check_kind(self.kind)
        self._check_binarize()
        for split in ("train", "valid", "test"):
            values = getattr(self, split)
            if split == "train" or values is not None:
                stored = as_stored(values, self.kind, f"data set {self.name!r}: {split}")
                object.__setattr__(self, split, stored)
                self._check_alike(split, stored)
        if self.labels is not None:
            labels = {split: self._as_labels(split, values) for split, values in self.labels.items()}
            object.__setattr__(self, "labels", labels)
        if self.beside is not None:
            stored_beside = as_beside(self.beside, self.splits, f"data set {self.name!r}")
            object.__setattr__(self, "beside", stored_beside)

    @property
    def splits(self) -> dict[str, Tensor]:
        """The splits that were given, by name, each (N, *shape)."""
        given = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: values for split, values in given.items() if values is not None}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.train.shape[1:])

    @property
    def observed_kind(self) -> Kind:
        """The kind of what a model sees: "binary" if the data are binarized, else the kind as stored."""
        return self.kind if self.binarize is None else "binary"

    def parts(self, split: str) -> Parts:
        """What the batches of a split are made of: its data, and what stands beside them."""
        return self.splits[split], *(self.beside[split] if self.beside is not None else ())

    def example(self, num: int = 2) -> Tensor | Parts:
        """The first `num` training data as a batch that a model takes, to build a guide with."""
        x, *beside = (part[:num] for part in self.parts("train"))
        x = self.observe(x, torch.Generator(x.device).manual_seed(0))
        return (x, *beside) if beside else x

    def with_labels(self) -> "DataSet":
        """The data set with batches (x, label), labels as one-hot vectors (B, num_classes) of the data's dtype.

        One-hot, because a guide's encoder would take the number of a class for a quantity.

        Raises ValueError unless every split has labels.
        """
        labels = self.labels or {}
        if missing := [split for split in self.splits if split not in labels]:
            raise ValueError(
                f"data set {self.name!r} has no labels of {', '.join(missing)}: give labels={{split: (N,) int64}}, or "
                "a model that needs none"
            )
        if negative := [split for split, values in labels.items() if values.min() < 0]:
            raise ValueError(
                f"data set {self.name!r}: {negative[0]} labels must count from 0, got some below: shift them"
            )
        dtype = self.train.dtype if self.train.is_floating_point() else torch.get_default_dtype()
        return replace(self, beside=one_hot_labels(labels, dtype))

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What a model sees of x (B, *shape): fresh Bernoulli draws if "dynamic", else x itself."""
        if self.binarize != "dynamic":
            return x
        # Four times as fast as torch.bernoulli on a CPU, which draws one value at a time.
        return (torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) < x).to(x.dtype)

    def describe(self) -> dict[str, Any]:
        """A record for JSON: name, kind, binarize, shape, and the size of every split (0 if absent)."""
        sizes = {split: len(self.splits.get(split, ())) for split in ("train", "valid", "test")}
        return {
            "name": self.name,
            "kind": self.kind,
            "binarize": self.binarize,
            "shape": list(self.shape),
            "sizes": sizes,
            **({} if self.beside is None else {"beside": [list(part.shape[1:]) for part in self.parts("train")[1:]]}),
        }

    def _check_binarize(self) -> None:
        check_binarization(self.binarize)
        if self.binarize is None:
            return
        # A record of binary data over grey values would let them through to a Bernoulli likelihood.
        needed = "unit" if self.binarize == "dynamic" else "binary"
        if self.kind != needed:
            raise ValueError(
                f"data set {self.name!r}: binarize={self.binarize!r} must be stored as kind {needed!r}, got "
                f"{self.kind!r}: make it with pvae.data.binarized(dataset, {self.binarize!r})"
            )

    def _check_alike(self, split: str, values: Tensor) -> None:
        if tuple(values.shape[1:]) != self.shape or values.dtype != self.train.dtype:
            raise ValueError(
                f"data set {self.name!r}: {split} must match train's {self.shape} of {self.train.dtype}, got "
                f"{tuple(values.shape[1:])} of {values.dtype}: reshape or convert it"
            )

    def _as_labels(self, split: str, labels: Part) -> Tensor:
        values = self.splits.get(split)
        if values is None:
            raise ValueError(
                f"data set {self.name!r}: labels must be for one of {', '.join(self.splits)}, "
                f"got {split!r}: give that split or drop its labels"
            )
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
            labels = as_part(labels).to(torch.int64)
        if not isinstance(labels, Tensor):
            got = type(labels).__name__
        elif labels.shape != (len(values),) or labels.dtype != torch.int64:
            got = f"{tuple(labels.shape)} of {labels.dtype}"
        else:
            return labels
        raise ValueError(
            f"data set {self.name!r}: {split} labels must be a Tensor ({len(values)},) of torch.int64, got {got}: one "
            "integer a datum"
        )
