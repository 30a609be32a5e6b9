"""What a graph computes before it draws anything: the same at every call, so it can be computed once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = ["mark_draws", "split"]

aten = torch.ops.aten
# Views cost nothing to make again, and an expanded tensor, kept, would be a full one once it is compiled or captured.
_VIEWS: set[Any] = {aten.expand.default, aten.view.default, aten.unsqueeze.default, aten.t.default, aten.unbind.int}
_VIEWS |= {aten.permute.default, aten.transpose.int, aten.select.int, aten.slice.Tensor}
_VIEWS |= {aten.split.Tensor, aten.split_with_sizes.default}


def mark_draws(graph: fx.Graph) -> None:
    """Set `meta["drawn"]` of each node that depends on a random draw, and `meta["view"]` of each view.

    Something that is written to counts as drawn: it is not the same at every call. A tensor out of a list is a view
    where the list is one of views; else it is a value itself, so that no list is ever kept.
    """
    for node in graph.nodes:
        target: Any = node.target
        of_list = node.args[0] if target is operator.getitem else None
        node.meta["view"] = target in _VIEWS if of_list is None else of_list.meta["view"]
        drawn = any(parent.meta["drawn"] for parent in node.all_input_nodes)
        if isinstance(target, torch._ops.OpOverload):
            drawn = drawn or torch.Tag.nondeterministic_seeded in target.tags
            if target._schema.is_mutable:
                drawn = True
                for argument, value in zip(target._schema.arguments, node.args, strict=False):
                    if argument.is_write and isinstance(value, fx.Node):
                        value.meta["drawn"] = True
        node.meta["drawn"] = drawn


def split(whole: fx.GraphModule, num_inputs: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A flattened graph in two: `once(*inputs)` gives values, `each(*inputs, *values)` outputs, from fresh draws."""
    nodes = list(whole.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"][:num_inputs]
    again = {node for node in nodes if node.meta["drawn"]} - {*inputs}
    pending, kept = [nodes[-1], *again], dict.fromkeys(inputs)
    while pending:
        for parent in pending.pop().all_input_nodes:
            if parent in again or parent in kept:
                continue
            if parent.meta["view"] or parent.op == "get_attr":
                again.add(parent)
                pending.append(parent)
            else:
                kept[parent] = None
    values = [node for node in kept if node not in inputs]
    before = {node for node in nodes if not node.meta["drawn"] and node.op in ("call_function", "get_attr")}
    once = _part(whole, before, inputs, values)
    once.graph.eliminate_dead_code()
    once.recompile()
    return once, _part(whole, again, [*inputs, *values], nodes[-1].args[0])


def _part(whole: fx.GraphModule, members: set[fx.Node], inputs: list[fx.Node], outputs: Any) -> fx.GraphModule:
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    for node in whole.graph.nodes:
        if node in members and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(fx.map_arg(outputs, copies.__getitem__))
    return fx.GraphModule(whole, part)
