"""Latents of a model as positions on unconstrained space: read from a run, and written into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pvae.pair.layout import Layout
from pvae.pair.supports import bijection

__all__ = ["ReadPositions", "Space", "WritePositions", "with_event_dims"]


@dataclass(frozen=True)
class Space:
    """Where in a position (K, B, D) the unconstrained value of each latent site is.

    `layout` runs the model; `outer` arranges unconstrained values, whose event dims may be other than the site's.
    """

    layout: Layout
    outer: Layout
    shapes: dict[str, torch.Size]

    def split(self, position: Tensor) -> dict[str, Tensor]:
        """The values by site, as they stand in a run of the model."""
        parts = position.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: self.outer.arrange(name, part.reshape(*part.shape[:2], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def total(self, log_dets: Mapping[str, Tensor], num_samples: int) -> Tensor:
        """The sum over sites and the plates inside the data plate, of values without event dims, (K, B)."""
        scalar = with_event_dims(self.layout, dict.fromkeys(log_dets, 0))
        parts = [scalar.collect(name, value, num_samples) for name, value in log_dets.items()]
        return torch.stack([part.reshape(*part.shape[:2], -1).sum(-1) for part in parts]).sum(0)


def with_event_dims(layout: Layout, event_dims: Mapping[str, int]) -> Layout:
    """The layout of values whose sites have these event dims."""
    return replace(
        layout, places={name: layout.places[name]._replace(event_dim=number) for name, number in event_dims.items()}
    )


class ReadPositions(Messenger):
    """Find the unconstrained value of each latent that is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: dict[str, Tensor] = {}
        self.event_dims: dict[str, int] = {}
        self.discrete: list[str] = []
        self.refusal: ValueError | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        # An error raised here would come with a table of shapes.
        if msg["fn"].support.is_discrete:
            self.discrete.append(name)
            return
        try:
            transform = bijection(name, msg["fn"])
        except ValueError as error:
            self.refusal = error
            return
        self.positions[name] = transform.inv(msg["value"])
        self.event_dims[name] = transform.domain.event_dim


class WritePositions(Messenger):
    """Set each latent from its unconstrained value, and keep log |dz / du|."""

    def __init__(self, positions: dict[str, Tensor]) -> None:
        super().__init__()
        self.positions = positions
        self.log_dets: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        transform, position = bijection(msg["name"], msg["fn"]), self.positions[msg["name"]]
        msg["value"], msg["done"] = transform(position), True
        self.log_dets[msg["name"]] = transform.log_abs_det_jacobian(position, msg["value"])
