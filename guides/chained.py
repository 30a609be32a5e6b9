"""The guide of a two-stage VAE, made of those of its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pvae.models.two_stage_vae import TwoStageVAE
from pvae.support.refusals import built, shown

__all__ = ["Chained"]


class Chained(nn.Module):
    """The guides of the two stages one after the other: q(z | x) q(u | z).

    It has no parameters but theirs. The second sees the draws of the first as its data, as it did when it was trained.

    Args:
        model: the two stages together.
        first: a guide of `model.first`.
        second: a guide of `model.second`, for data (B, first.latent_dim).

    Raises: ValueError for a model other than `TwoStageVAE`.

    Dai and Wipf (2019), Diagnosing and Enhancing VAE Models.
    """

    def __init__(self, model: TwoStageVAE, first: Callable[..., object], second: Callable[..., object]) -> None:
        super().__init__()
        if not isinstance(model, TwoStageVAE):
            raise ValueError(f"guides are chained for TwoStageVAE, got {shown(model)}; use TopDown")
        self.first = built("first", first, usual="a guide of model.first")
        self.second = built("second", second, usual="a guide of model.second")

    def forward(self, *batch: Tensor) -> None:
        """Sample z and u for each datum of the batch."""
        pyro.module("chained", self)
        with poutine.trace() as run:
            self.first(*batch)
        with _Second():
            self.second(run.trace.nodes["z"]["value"])


class _Second(Messenger):
    """Let the second stage's guide sample "u" where it says "z", beside the first one's plate and parameters."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            msg["stop"] = True  # a plate of the same name and size is there already
        elif msg["name"] == "z":
            msg["name"] = "u"

    def _pyro_param(self, msg: Any) -> None:
        msg["name"] = f"second.{msg['name']}"
        msg["args"] = (msg["name"], *msg["args"][1:])
