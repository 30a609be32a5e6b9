"""A CUDA graph: all kernels of a call recorded once, and launched together ever after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured"]

_WARM_UPS = 3


class Captured:
    """Replays the kernels that `call(*fixed, *inputs)` launches.

    The `fixed` tensors are read where they are, so they may change in place; inputs are copied to where the
    kernels look for them. Outputs are overwritten by the next call. Random operations draw afresh.
    """

    def __init__(self, call: Callable[..., Sequence[Any]], fixed: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self.inputs = [part.clone() for part in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                call(*fixed, *self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on calling CUDA: those that fill pinned memory for a loader do.
        with torch.no_grad(), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = call(*fixed, *self.inputs)
        self.num_fixed = len(fixed)

    def __call__(self, *arguments: Tensor) -> Sequence[Any]:
        """Outputs for these inputs; the fixed tensors lead the arguments, as in the call that was captured."""
        for place, part in zip(self.inputs, arguments[self.num_fixed :], strict=True):
            place.copy_(part, non_blocking=True)
        self.graph.replay()
        return self.outputs
