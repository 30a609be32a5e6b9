"""Whether the guide's uncertainty is right: simulation-based calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.data.batches import Batches, Data
from pvae.diagnostics.looking import looking, rows_at_once, take
from pvae.pair.entry import entry
from pvae.pair.layout import Layout
from pvae.pair.pair import Pair
from pvae.pair.simulate import simulate
from pvae.pair.sites import Batch, require_latents
from pvae.support.arguments import GUIDE
from pvae.support.refusals import built, whole

__all__ = ["Calibration", "calibration"]

LEVELS = (0.5, 0.8, 0.95)
_NUM_BINS = 20
# Of a calibrated guide, so many are called uncalibrated, all dimensions and tests together.
_FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Calibration:
    """Ranks of true latents among the guide's draws, S simulations, L draws; by site, dims flattened.

    Attributes:
        ranks: how many of L draws are below the true latent, (S, dims), from 0 to L.
        positions: the same within (0, 1), ties and steps filled at random, (S, dims): uniform if q is the posterior.
        p_values: chi-squared test of uniform ranks, (dims,).
        coverage: share of true latents inside the central interval of each of `levels`, (levels, dims).
        levels: 0.5, 0.8 and 0.95.
        num_samples: L.
    """

    ranks: dict[str, Tensor]
    positions: dict[str, Tensor]
    p_values: dict[str, Tensor]
    coverage: dict[str, Tensor]
    levels: tuple[float, ...]
    num_samples: int

    @property
    def num_simulations(self) -> int:
        """S."""
        return len(next(iter(self.ranks.values())))

    @property
    def coverage_errors(self) -> Tensor:
        """Binomial standard error of each coverage of a calibrated guide, (levels,)."""
        levels = torch.tensor(self.levels, dtype=torch.float64, device="cpu")
        return (levels * (1 - levels) / self.num_simulations).sqrt()

    @property
    def findings(self) -> dict[str, list[str]]:
        """Each dimension in a word: "calibrated", "biased", "too narrow", "too wide" or "misshapen"."""
        num_dims = sum(len(p) for p in self.p_values.values())
        level = _FALSE_ALARMS / (3 * num_dims)
        found: dict[str, list[str]] = {}
        for name, u in self.positions.items():
            root = math.sqrt(len(u))
            # Of a uniform u, u - 1/2 has variance 1/12 and (u - 1/2)^2 has variance 1/180.
            bias = (u.mean(0) - 0.5) * root * math.sqrt(12)
            spread = ((u - 0.5).square().mean(0) - 1 / 12) * root * math.sqrt(180)
            rows = zip(bias.tolist(), spread.tolist(), self.p_values[name].tolist(), strict=True)
            found[name] = [_word(*row, level) for row in rows]
        return found

    @property
    def verdict(self) -> str:
        """What is wrong with the guide's uncertainty, in words."""
        words = [word for words in self.findings.values() for word in words]
        wrong = [word for word in ("too narrow", "too wide", "biased", "misshapen") if word in words]
        if not wrong:
            return f"calibrated in all {len(words)} dimensions, as far as {self.num_simulations} simulations tell"
        return ", ".join(f"{word} in {words.count(word)}" for word in wrong) + f" of {len(words)} dimensions"

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for a table or JSON."""
        return {
            "p_value": {name: values.tolist() for name, values in self.p_values.items()},
            "levels": list(self.levels),
            "coverage": {name: values.tolist() for name, values in self.coverage.items()},
            "coverage_error": self.coverage_errors.tolist(),
            "findings": self.findings,
            "num_simulations": self.num_simulations,
            "num_samples": self.num_samples,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        heads = " ".join(f"{f'{level:.0%}':>7}" for level in self.levels)
        lines = [self.verdict, f"{'dimension':<16} {heads} {'p-value':>9}"]
        for name, words in self.findings.items():
            columns = zip(words, self.coverage[name].T.tolist(), self.p_values[name].tolist(), strict=True)
            for i, (word, shares, p) in enumerate(columns):
                row = " ".join(f"{share:>7.3f}" for share in shares)
                lines.append(f"{f'{name}[{i}]':<16} {row} {p:>9.2g}  {word}")
        errors = " ".join(f"{error:>7.3f}" for error in self.coverage_errors.tolist())
        return "\n".join([*lines, f"{'standard error':<16} {errors}"])


@entry
def calibration(
    model: Any,
    guide: Any,
    like: Data,
    *,
    num_simulations: int = 1000,
    num_samples: int = 999,
    batch_size: int = 100,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Calibration:
    """Compare the guide with the posterior on data simulated from the model, where a true latent is known.

    For x, z ~ p(x, z), the rank of each dimension of z among L draws from q(z | x) is uniform if q is the posterior.
    A guide that is too narrow puts ranks at both ends, one too wide puts them in the middle. Averages over x can hide
    errors: the prior itself, which ignores x, passes. Discrete sites are left aside.

    Args:
        model: any Pyro model within the contract of a pair.
        guide: its guide.
        like: data to take shapes from, and what the model conditions on; used in turn.
        num_simulations: S.
        num_samples: L, draws from the guide per simulation.
        batch_size: simulations at once; a `DataLoader` keeps its own.
        device: where to compute; by default where the pair is.
        seed: of all draws.

    Raises: ValueError for a guide without continuous sites, a model that observes something computed from its batch,
        or counts out of range.

    Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian Inference Algorithms with
    Simulation-Based Calibration.
    """
    num_simulations = whole("num_simulations", num_simulations, 20, usual=1000)
    num_samples = whole("num_samples", num_samples, usual=999)
    built("guide", guide, usual=GUIDE)
    with looking(model, guide, like, batch_size, device, seed) as (_, source):
        batches = _in_turn(source, num_simulations)
        alone = Pair(guide)
        layout = alone.layout(batches[0], 2)
        parts = []
        for batch in batches:
            simulated = simulate(model, batch)
            require_latents(simulated.latents, "there is no posterior to calibrate")
            parts.append(_ranks(alone, simulated.batch, simulated.latents, num_samples, layout))
        ranks = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
        jitter = {name: torch.rand(rank.shape, dtype=torch.float64, device="cpu") for name, rank in ranks.items()}
    positions = {name: (rank + jitter[name]) / (num_samples + 1) for name, rank in ranks.items()}
    levels = torch.tensor(LEVELS, dtype=torch.float64, device="cpu")[:, None, None]
    return Calibration(
        ranks=ranks,
        positions=positions,
        p_values={name: _uniformity(u) for name, u in positions.items()},
        coverage={name: ((u - 0.5).abs() <= levels / 2).double().mean(1) for name, u in positions.items()},
        levels=LEVELS,
        num_samples=num_samples,
    )


def _in_turn(source: Batches, num: int) -> list[Batch]:
    """The data again and again, until there are `num`."""
    batches = take(source, num)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    rows = torch.arange(num, device=whole[0].device) % len(whole[0])
    size = len(batches[0][0])
    return [tuple(part[chunk] for part in whole) for chunk in rows.split(size)]


def _ranks(
    guide: Pair, batch: Batch, latents: dict[str, Tensor], num_samples: int, layout: Layout
) -> dict[str, Tensor]:
    """How many of the guide's draws are below each dimension of the latents, by continuous site, (B, dims)."""
    width = sum(z.numel() for z in latents.values())
    if not layout.vectorizes:
        width += sum(part.numel() for part in batch)
    size = rows_at_once(width)
    ranks: dict[str, Tensor] = {}
    for start in range(0, num_samples, size):
        run = guide.run(batch, min(size, num_samples - start), layout=layout)
        for name, draws in run.latents.items():
            if name in latents and not run.model[name]["fn"].support.is_discrete:
                below = (draws < latents[name]).sum(0).flatten(1)
                ranks[name] = ranks[name] + below if name in ranks else below
    if not ranks:
        raise ValueError(
            f"the sites {sorted(latents)} are discrete and have no ranks; give a pair with a continuous one"
        )
    return ranks


def _uniformity(positions: Tensor) -> Tensor:
    """p-value of the chi-squared test in equal bins, at least 5 expected in each, (dims,)."""
    num, num_dims = positions.shape
    num_bins = max(2, min(_NUM_BINS, num // 5))
    bins = (positions * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.zeros(num_bins, num_dims, dtype=torch.float64, device="cpu").scatter_add_(
        0, bins, torch.ones_like(positions)
    )
    expected = num / num_bins
    statistic = ((counts - expected).square() / expected).sum(0)
    return torch.special.gammaincc(torch.full_like(statistic, (num_bins - 1) / 2), statistic / 2)


def _word(bias: float, spread: float, p_value: float, level: float) -> str:
    def p(score: float) -> float:
        return math.erfc(abs(score) / math.sqrt(2))

    if p(bias) < level and abs(bias) >= abs(spread):
        return "biased"
    if p(spread) < level:
        return "too narrow" if spread > 0 else "too wide"
    if p(bias) < level:
        return "biased"
    return "misshapen" if p_value < level else "calibrated"
