"""The temperature of a relaxation, and how it falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pvae.support.refusals import number

__all__ = ["Temperature"]


class Temperature(nn.Module):
    """A number above 0 in the buffer `value`, which traced steps read afresh; set it with `value.fill_`.

    Raises: ValueError for a temperature that is not above 0.
    """

    value: Tensor

    def __init__(self, start: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(number("temperature", start, above=0, usual=1.0)))

    def anneal(self, rate: float = 1e-4, least: float = 0.5) -> Callable[[Mapping[str, Any]], None]:
        """A callback for `pvae.fit`: after each epoch the temperature is max(floor, start exp(-rate step)).

        `start` is what it is now, `step` the training steps done so far.

        Raises: ValueError for a rate below 0, or a least temperature that is not above 0.

        Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax, section 4.
        """
        rate = number("rate", rate, least=0, usual=1e-4)
        floor = number("least", least, above=0, usual=0.5)
        start = self.value.item()

        def cool(record: Mapping[str, Any]) -> None:
            self.value.fill_(max(floor, start * math.exp(-rate * record["step"])))

        return cool
