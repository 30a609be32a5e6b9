"""Bias, variance and signal-to-noise ratio of an objective's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.data.batches import Batches
from pvae.diagnostics.moments import NUM_BLOCKS, GradientStatistics, Moments, statistics
from pvae.graphs.replay import Replay
from pvae.graphs.trace import unchanged_buffers
from pvae.objectives.objective import Objective
from pvae.pair.contexts import seeded
from pvae.pair.entry import entry
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters, find_and_place
from pvae.pair.sites import Batch
from pvae.support.arguments import check_pair, check_seed
from pvae.support.refusals import instance, nearest, one_line, shown, whole

__all__ = ["GradientVariance", "gradient_variance"]


@dataclass(frozen=True)
class GradientVariance:
    """Moments of the gradient of an objective, per nat and datum, by parameter.

    Attributes:
        mean: mean gradient of each unconstrained parameter.
        standard_errors: of each of its elements.
        variances: of each element of one gradient.
        bias: mean - reference, or None.
        bias_errors: standard errors of each of its elements, or None.
        groups: the statistics of the groups and of every parameter.
        num_repeats: R.
    """

    mean: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    variances: dict[str, Tensor]
    bias: dict[str, Tensor] | None
    bias_errors: dict[str, Tensor] | None
    groups: dict[str, GradientStatistics]
    num_repeats: int

    @property
    def verdict(self) -> str:
        """Which groups hear a signal, in words."""
        floor = math.sqrt(2 / (math.pi * self.num_repeats))
        words = []
        for name in [name for name in self.groups if name not in self.mean]:
            group = self.groups[name]
            words.append(
                f"{name}: signal-to-noise {group.snr:.2g}"
                + (f", no more than {self.num_repeats} repeats of noise show" if group.snr < 1.5 * floor else "")
                + (", biased" if group.bias > 5 * group.bias_noise else "")
            )
        return "; ".join(words)

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for a table or JSON."""
        return {
            "groups": {name: vars(group) for name, group in self.groups.items()},
            "num_repeats": self.num_repeats,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        width = max(map(len, self.groups))
        lines = [self.verdict, f"{'':<{width}} {'norm':>10} {'variance':>18} {'snr':>16} {'bias':>18}"]
        for name, g in self.groups.items():
            variance, snr = f"{g.variance:.3g} ({g.variance_error:.1g})", f"{g.snr:.3g} ({g.snr_error:.1g})"
            bias = "" if math.isnan(g.bias) else f"{g.bias:.3g} ({g.bias_noise:.1g})"
            lines.append(f"{name:<{width}} {g.norm:>10.3g} {variance:>18} {snr:>16} {bias:>18}")
        return "\n".join(lines)


@entry
def gradient_variance(
    objective: Objective,
    model: Any,
    guide: Any,
    batch: Tensor | tuple[Tensor, ...],
    *,
    num_repeats: int = 200,
    reference: Objective | Mapping[str, Tensor] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> GradientVariance:
    """Repeat the gradient of an objective's bound, the mean over one batch, and say how it scatters.

    Nets are in the mode they are in; the pair is not changed.

    Args:
        objective: one of `pvae.objectives`.
        model: any Pyro model within the contract of a pair.
        guide: its guide.
        batch: the data, (B, ...), or a tuple of them.
        num_repeats: R, at least 20.
        reference: what the mean should be: gradients by Pyro's parameter name, or another objective, whose mean over
            as many repeats is used.
        groups: parameter names by group; by default "guide" (what only the guide uses) and "model" (all else).
        seed: of the draws.

    Raises: ValueError for a pair without parameters, names that are none of them, or too few repeats.

    Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter Variational Bounds are Not Necessarily Better.
    """
    whole("num_repeats", num_repeats, 2 * NUM_BLOCKS, usual=200)
    instance("objective", objective, Objective, what="one of pvae.objectives, built", usual="ELBO()")
    check_pair(model, guide)
    seed = check_seed(seed)
    if reference is not None:
        what = "gradients by parameter name, or an objective"
        instance("reference", reference, (Objective, Mapping), what=what, usual="ELBO(1000)")
    if groups is not None:
        instance("groups", groups, Mapping, what="lists of parameter names by group", usual="{'decoder': [names]}")
    source = Batches(batch, None)
    with Pair(model, guide).inside(), torch.enable_grad():
        parameters = find_and_place(model, guide, source, None)
        batch = source.example()
        for each in (objective, reference):
            for companion in each.companions.values() if isinstance(each, Objective) else ():
                companion.to(parameters.device)
        named = _groups(parameters, groups)
        with unchanged_buffers(parameters):
            moments = _repeat(objective, model, guide, parameters, batch, num_repeats, seed)
            target = None
            if isinstance(reference, Objective):
                target = _repeat(reference, model, guide, parameters, batch, num_repeats, seed + 1)
    shapes = {name: leaf.shape for name, leaf in parameters.leaves.items()}
    squared_error = moments.variance / num_repeats
    bias = None
    if target is not None:
        bias, squared_error_of_bias = moments.mean - target.mean, squared_error + target.variance / num_repeats
    elif reference is not None:
        assert isinstance(reference, Mapping)
        bias, squared_error_of_bias = moments.mean - _flat(reference, shapes), squared_error
    return GradientVariance(
        mean=_named(moments.mean, shapes),
        standard_errors=_named(squared_error.sqrt(), shapes),
        variances=_named(moments.variance, shapes),
        bias=None if bias is None else _named(bias, shapes),
        bias_errors=None if bias is None else _named(squared_error_of_bias.sqrt(), shapes),
        groups={
            name: statistics(moments, index, bias, None if bias is None else squared_error_of_bias)
            for name, index in named.items()
        },
        num_repeats=num_repeats,
    )


def _repeat(
    objective: Objective, model: Any, guide: Any, parameters: Parameters, batch: Batch, num_repeats: int, seed: int
) -> Moments:
    leaves = [*parameters.leaves.values()]

    def gradients(*inputs: Tensor) -> list[Tensor | None]:
        bound = objective.bound(model, guide, inputs).mean()
        return [bound.detach(), *torch.autograd.grad(bound, leaves, allow_unused=True)]

    replay = Replay(gradients, parameters, "traced", lambda: 0, "gradients")
    sums = squares = first = torch.zeros(0, device="cpu")
    counts = torch.zeros(NUM_BLOCKS, dtype=torch.float64, device="cpu")
    with seeded(seed, parameters.device):
        for repeat in range(num_repeats):
            _, *found = replay(*batch)
            flat = torch.cat(
                [
                    (leaf.new_zeros(leaf.shape) if each is None else each).detach().flatten().double()
                    for leaf, each in zip(leaves, found, strict=True)
                ]
            )
            if repeat == 0:
                first = flat
                sums, squares = (flat.new_zeros(NUM_BLOCKS, len(flat)) for _ in range(2))
            block = repeat % NUM_BLOCKS
            sums[block] += flat - first
            squares[block] += (flat - first).square()
            counts[block] += 1
    return Moments(first.cpu(), sums.cpu(), squares.cpu(), counts)


def _groups(parameters: Parameters, groups: Mapping[str, Sequence[str]] | None) -> dict[str, Tensor]:
    """Where the elements of each group, and of each parameter, are in a flat gradient."""
    names = list(parameters.leaves)
    if not names:
        raise ValueError("the pair has no parameters, so no gradient; register its nets with pyro.module")
    if groups is None:
        own = [name for name in names if name in parameters.guide_only]
        groups = {"guide": own, "model": [name for name in names if name not in parameters.guide_only]}
    places: dict[str, Tensor] = {}
    start = 0
    for name, leaf in parameters.leaves.items():
        places[name] = torch.arange(start, start + leaf.numel(), device="cpu")
        start += leaf.numel()
    for group, members in groups.items():
        what = "a list of parameter names"
        for name in instance(f"group {shown(group)}", members, (list, tuple, set), what=what, usual=f"{names[:1]}"):
            if name not in names:
                raise ValueError(one_line(f"the pair has no parameter {shown(name)}: {nearest(name, names)}"))
    together = {group: torch.cat([places[name] for name in members]) for group, members in groups.items() if members}
    return together | places


def _named(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _flat(reference: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Tensor:
    """The reference in the order of the parameters; nan where it says nothing.

    Raises: ValueError for names and shapes that are not the pair's.
    """
    for name, value in reference.items():
        if name not in shapes:
            line = f"the reference names {shown(name)}, which is no parameter of the pair: {nearest(name, shapes)}"
            raise ValueError(one_line(line))
        if not isinstance(value, Tensor) or shapes[name] != value.shape:
            raise ValueError(
                f"the reference gives {name!r} as {shown(value)}, and the parameter has the shape "
                f"{tuple(shapes[name])}; give a gradient of that shape"
            )
    return torch.cat(
        [
            reference[name].detach().double().cpu().flatten()
            if name in reference
            else torch.full((shape.numel(),), math.nan, dtype=torch.float64, device="cpu")
            for name, shape in shapes.items()
        ]
    )
