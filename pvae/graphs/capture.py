"""A CUDA graph: all kernels of a call recorded once, and launched together ever after."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured"]

_WARM_UPS = 3


class Captured:
    """Replays the kernels that `call(*fixed, *inputs)` launches.

    The `fixed` tensors are read where they are, so they may change in place; inputs are copied to where the
    kernels look for them. Outputs are overwritten by the next call. Random operations draw afresh.

    Raises: RuntimeError for a call that cannot be captured; what is drawn afterwards is as if it had not been tried.
    """

    def __init__(self, call: Callable[..., Sequence[Any]], fixed: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        # The kernels read constants of the call, too, which must not be freed before the graph.
        self._kept = call, fixed
        self.inputs = [part.clone() for part in inputs]
        self.num_fixed = len(fixed)
        # A stream belongs to one device; the kernels of another would be launched, not captured.
        with torch.no_grad(), torch.cuda.device(inputs[0].device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    call(*fixed, *self.inputs)
                with _refusing_to_wait():
                    call(*fixed, *self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on calling CUDA: those that fill pinned memory for a loader do.
                with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                    self.outputs = call(*fixed, *self.inputs)
            except RuntimeError:
                _end_a_broken_capture()
                raise

    def __call__(self, *arguments: Tensor) -> Sequence[Any]:
        """Outputs for these inputs; the fixed tensors lead the arguments, as in the call that was captured."""
        for place, part in zip(self.inputs, arguments[self.num_fixed :], strict=True):
            place.copy_(part, non_blocking=True)
        self.graph.replay()
        return self.outputs


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise RuntimeError where the host waits for the device, before a capture trips over it."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # torch calls the mode a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise RuntimeError(
            "some operation waits for the GPU, as a Cholesky factorisation does to check its result, and a CUDA graph "
            "cannot wait"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _end_a_broken_capture() -> None:
    """Put the random generator back to work, which waits for the end of a capture that failed until another ends."""
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")
