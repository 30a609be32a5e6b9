"""A trace made flat: parameters as inputs, nothing done twice, and cheap calls."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import softplus

from pvae.graphs.hoist import mark_draws
from pvae.graphs.matmul import faster_matmuls

__all__ = ["flatten"]

aten = torch.ops.aten

# torch's own functions parse their arguments in about half the time of the dispatcher's overloads (0.8 against
# 1.4 us for a `neg`), and a step of a small net is little else than such calls. Same arguments, same kernels.
_FAST: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.addmm.default: torch.addmm,
    aten.binary_cross_entropy_with_logits.default: torch.binary_cross_entropy_with_logits,
    aten.cat.default: torch.cat,
    aten.div.Scalar: torch.div,
    aten.div.Tensor: torch.div,
    aten.empty.memory_format: torch.empty,
    aten.exp.default: torch.exp,
    aten.expand.default: Tensor.expand,
    aten.log.default: torch.log,
    aten.mean.default: torch.mean,
    aten.mean.dim: torch.mean,
    aten.mm.default: torch.mm,
    aten.mul.Scalar: torch.mul,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.normal_.default: Tensor.normal_,
    aten.ones_like.default: torch.ones_like,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.sigmoid.default: torch.sigmoid,
    aten.softplus.default: softplus,
    aten.stack.default: torch.stack,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
    aten.t.default: torch.t,
    aten.tanh.default: torch.tanh,
    aten.unbind.int: torch.unbind,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: Tensor.view,
}
_BY_ONE = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar)
_TWICE = (aten.t.default, aten.neg.default)
_NO_OPS = (aten.detach.default, aten.alias.default)


def flatten(traced: fx.GraphModule, leaves: Sequence[Tensor]) -> fx.GraphModule:
    """Turn the leaves that a trace holds as constants into its first inputs, and drop what changes nothing."""
    graph = traced.graph
    index = {id(leaf): position for position, leaf in enumerate(leaves)}
    with graph.inserting_before(next(iter(graph.nodes))):
        inputs = [graph.placeholder(f"leaf_{position}") for position in range(len(leaves))]
    for node in list(graph.nodes):
        if node.op == "get_attr" and id(getattr(traced, node.target)) in index:
            leaf = inputs[index[id(getattr(traced, node.target))]]
            leaf.meta = node.meta
            node.replace_all_uses_with(leaf)
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in _NO_OPS:
            _replace(node, node.args[0])
    _simplify(graph)
    faster_matmuls(graph)
    mark_draws(graph)
    _call_torch(graph)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _simplify(graph: fx.Graph) -> None:
    """Drop calls that repeat their input, and what nobody uses."""
    if not _writes_in_place(graph):
        for node in list(graph.nodes):
            if node.op == "call_function" and (same := _repeats(node)) is not None:
                _replace(node, same)
    graph.eliminate_dead_code()


def _call_torch(graph: fx.Graph) -> None:
    """Call torch's functions where the trace calls the dispatcher."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _FAST.get(node.target, node.target)


def _replace(node: fx.Node, same: Any) -> None:
    """Use `same` for `node`, unless a gradient would then be a parameter itself."""
    if same.op in ("placeholder", "get_attr") and any(user.op == "output" for user in node.users):
        return
    node.replace_all_uses_with(same)
    node.graph.erase_node(node)


def _writes_in_place(graph: fx.Graph) -> bool:
    """Whether something but a fresh `empty` is written to: then a copy may matter (batch statistics)."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            first = node.args[0] if node.args else None
            if not isinstance(first, fx.Node) or first.target is not aten.empty.memory_format:
                return True
    return False


def _repeats(node: fx.Node) -> Any:
    """The node whose value this one repeats, or None."""
    target, args = node.target, node.args
    first: Any = args[0] if args else None
    if target in _BY_ONE and not isinstance(args[1], fx.Node) and args[1] == 1:
        return first if _kind(first)[:2] == _kind(node)[:2] else None
    if target in (aten.expand.default, aten.view.default) and _kind(first) == _kind(node):
        return first
    if target in _TWICE and first.target is target:
        return first.args[0]
    if target is aten.cat.default and len(first) == 1:
        return first[0]
    if target is operator.getitem and first.target is aten.split_with_sizes.default and len(first.args[1]) == 1:
        return first.args[0]
    if (
        target is aten.add.Tensor
        and not node.kwargs
        and first.target is aten.zeros.default
        and _kind(args[1]) == _kind(node)
    ):
        return args[1]
    return None


def _kind(node: Any) -> tuple[Any, ...]:
    """Shape, dtype and strides of a node's value; a constant is like nothing else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return (object(),) * 3 if meta is None else (meta.shape, meta.dtype, meta.stride)
