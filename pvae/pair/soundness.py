"""Whether weights are numbers: looked at after updates, before they are written, and when they are read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from pvae.pair.parameters import Parameters, plain_name

__all__ = ["Watch", "require_sound"]


class Watch:
    """The weights and buffers of a run, of which none may stop being finite.

    What is infinite before training, such as a mask or the log of a probability of 0, may stay so.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._tensors = parameters.leaves | parameters.frozen | parameters.buffers
        self._exempt = frozenset(_not_finite(self._tensors))

    def require(
        self, epoch: int, step: int, cause: str, best_epoch: int = 0, best: dict[str, Tensor] | None = None
    ) -> None:
        """Look at all of them, by one pass; where one is broken, the best weights so far come back, if there are such.

        Raises: FloatingPointError that names the first, and the `cause` with what to do.
        """
        name = next((name for name in _not_finite(self._tensors) if name not in self._exempt), None)
        if name is None:
            return
        kept = "The weights from before are gone: load a saved run, or build the pair anew"
        if best is not None:
            self.parameters.load(best)
            kept = f"The weights of epoch {best_epoch}, the best so far, are kept"
        raise FloatingPointError(f"epoch {epoch}, step {step}: '{name}' is not finite after the {cause}. {kept}")


def require_sound(parameters: Parameters, tensors: Mapping[str, Tensor], whose: str, fix: str) -> None:
    """Refuse values for the parameters of a pair, by name, that hold a nan, or for one to be trained plus infinity.

    Minus infinity may stand: it is the log of 0. Buffers hold what they like.

    Raises: ValueError that names the first, and `whose` it is.
    """
    names = [plain_name(name) for name in (*parameters.leaves, *parameters.frozen)]
    trained = {plain_name(name) for name in parameters.leaves}
    for name in _not_finite({name: tensors[name] for name in names if name in tensors}):
        what = _fault(name, tensors[name], trained)
        if what is not None:
            raise ValueError(f"{whose} '{name}' holds {what}; {fix}")


def _fault(name: str, tensor: Tensor, trained: Collection[str]) -> str | None:
    if tensor.isnan().any():
        return "nan"
    is_infinite = tensor.isinf().any() if tensor.is_complex() else tensor.isposinf().any()
    return "inf" if name in trained and is_infinite else None


@torch.no_grad()
def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    held = {name: each for name, each in tensors.items() if each.is_floating_point() or each.is_complex()}
    if not held:
        return []
    norms = torch._foreach_norm([*held.values()])
    if len({norm.device for norm in norms}) == 1 and math.isfinite(torch.stack([*map(_single, norms)]).sum()):
        return []
    # A norm overflows before its numbers do, so each is looked at by itself.
    return [name for name, each in held.items() if not each.isfinite().all()]


def _single(norm: Tensor) -> Tensor:
    return norm if norm.dtype == torch.float32 else norm.float()
