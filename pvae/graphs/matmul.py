"""Matrix products by oneDNN where that is the faster of the two libraries that torch brings.

On a processor with AVX-512 that is not Intel's, MKL uses half the width of the vector units, and oneDNN all of it:
240 against 500 GFLOP/s. torch calls MKL for float32; a graph may call either. A tanh that follows is done on the way,
in a fifth of the time, to the same 7e-8. The choice depends on the processor and the shapes alone, never on a clock, so
that one machine always gives the same numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["faster_matmuls"]

aten = torch.ops.aten

# Below this, oneDNN's overhead of some 10 us per call outweighs what its kernels gain.
_LEAST_FLOP = 5_000_000


def faster_matmuls(graph: fx.Graph) -> None:
    """Replace the large float32 products on the CPU, `mm` and `addmm`, by oneDNN's, if this machine gains by it."""
    if not _gains():
        return
    linear = _linear()
    for node in list(graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
            continue
        *bias, left, right = node.args
        if not _is_large(left.meta["val"], right.meta["val"]) or any(each.meta["val"].dim() != 1 for each in bias):
            continue
        with graph.inserting_before(node):
            is_transposed = right.target is aten.t.default
            weight = right.args[0] if is_transposed else graph.call_function(aten.t.default, (right,))
            tanh = _tanh_after(node)
            activation = "none" if tanh is None else "tanh"
            product = graph.call_function(linear, (left, weight, bias[0] if bias else None, activation))
        product.meta = node.meta
        if tanh is not None:
            tanh.replace_all_uses_with(tanh.all_input_nodes[0])
            graph.erase_node(tanh)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    graph.eliminate_dead_code()


@functools.cache
def _gains() -> bool:
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@functools.cache
def _linear() -> Any:
    """activation(x @ weight.t() + bias), an operator of our own: inductor takes oneDNN's for constant weights only."""
    library = torch.library.Library("pvae", "DEF")
    signature = "linear(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor"
    library.define(signature, tags=(torch.Tag.pt2_compliant_tag,))
    onednn = torch.ops.mkldnn._linear_pointwise.default

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return onednn(x, weight, bias, activation, [], "")

    def shape(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    library.impl("linear", linear, "CPU")
    library.impl("linear", shape, "Meta")
    # The operator lives as long as its library object does.
    _linear.library = library  # type: ignore[attr-defined]
    return torch.ops.pvae.linear.default


def _tanh_after(node: fx.Node) -> fx.Node | None:
    """The tanh that is all that happens to a product, reshaped or not."""
    users = list(node.users)
    if len(users) == 1 and users[0].target is aten.view.default:
        users = list(users[0].users)
    return users[0] if len(users) == 1 and users[0].target is aten.tanh.default else None


def _is_large(left: Tensor, right: Tensor) -> bool:
    flop = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    return left.device.type == "cpu" and left.dtype == torch.float32 and flop >= _LEAST_FLOP
