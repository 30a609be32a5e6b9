"""Posterior collapse: which latent dimensions the guide uses, and how much it tells about x."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.data.batches import Data
from pvae.diagnostics.factors import site_kl, site_mean
from pvae.diagnostics.looking import looking, take
from pvae.pair.aggregate import log_aggregate_posterior, refuse_points
from pvae.pair.entry import entry
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import require_latents
from pvae.support.arguments import GUIDE
from pvae.support.per_datum import PerDatum
from pvae.support.refusals import built, number, whole

__all__ = ["Collapse", "collapse"]

_NEAR_CEILING = 0.5


@dataclass(frozen=True)
class Collapse:
    """What of the latents is in use, in nats, from N data.

    Attributes:
        kl: KL(q(z | x) || p(z)) by site, averaged over data, (dims,); one joint number, (1,), where `per_dim` is False.
        kl_standard_errors: of `kl` over data, alike.
        per_dim: by site, whether the dims of guide and prior are independent, so that each has a KL of its own.
        variances: Var_x(E_q[z_u | x]) by site, (dims,).
        threshold: the variance above which a unit is active.
        information: log q(z_n | x_n) - log q(z_n), (N,), whose mean is the mutual information of x and z.
    """

    kl: dict[str, Tensor]
    kl_standard_errors: dict[str, Tensor]
    per_dim: dict[str, bool]
    variances: dict[str, Tensor]
    threshold: float
    information: Tensor

    @property
    def active(self) -> dict[str, Tensor]:
        """Which units are active, by site, (dims,) of bool."""
        return {name: variances > self.threshold for name, variances in self.variances.items()}

    @property
    def num_active(self) -> int:
        """How many units are active, of all sites."""
        return int(sum(int(active.sum()) for active in self.active.values()))

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return sum(len(variances) for variances in self.variances.values())

    @property
    def total_kl(self) -> float:
        """E_x KL(q(z | x) || p(z)), all sites together."""
        return sum(kl.sum().item() for kl in self.kl.values())

    @property
    def mutual_information(self) -> float:
        """I_q(x; z), at most `ceiling`."""
        return self.information.mean().item()

    @property
    def mutual_information_error(self) -> float:
        """Standard error of the mutual information, from data and draws."""
        return PerDatum(self.information, torch.zeros_like(self.information)).standard_error

    @property
    def ceiling(self) -> float:
        """log N: no estimate from N data can be larger."""
        return math.log(len(self.information))

    @property
    def marginal_kl(self) -> float:
        """KL(q(z) || p(z)) of the aggregate posterior: the total KL less the mutual information."""
        return self.total_kl - self.mutual_information

    @property
    def verdict(self) -> str:
        """The state of the latents in words."""
        counts = f"{self.num_active} of {self.num_units} units active"
        words = [f"collapsed: {counts}" if self.num_active == 0 else counts]
        if self.ceiling - self.mutual_information < _NEAR_CEILING:
            words.append(
                f"the mutual information is at its ceiling log {len(self.information)} = {self.ceiling:.2f}, so it is "
                "at least that: raise num_data"
            )
        return "; ".join(words)

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for a table or JSON."""
        return {
            "num_active": self.num_active,
            "num_units": self.num_units,
            "threshold": self.threshold,
            "kl": {name: kl.tolist() for name, kl in self.kl.items()},
            "kl_standard_error": {name: errors.tolist() for name, errors in self.kl_standard_errors.items()},
            "variance": {name: variances.tolist() for name, variances in self.variances.items()},
            "total_kl": self.total_kl,
            "mutual_information": self.mutual_information,
            "mutual_information_error": self.mutual_information_error,
            "ceiling": self.ceiling,
            "marginal_kl": self.marginal_kl,
            "num_data": len(self.information),
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        lines = [
            self.verdict,
            f"KL {self.total_kl:.3f} = mutual information {self.mutual_information:.3f} "
            f"(se {self.mutual_information_error:.2g}, ceiling log {len(self.information)} = {self.ceiling:.2f}) "
            f"+ KL of the aggregate posterior {self.marginal_kl:.3f} nats",
        ]
        for name, kl in self.kl.items():
            numbers = ", ".join(f"{value:.3g}" for value in kl.tolist())
            lines.append(f"KL of '{name}' {'per dimension' if self.per_dim[name] else 'of its dimensions'}: {numbers}")
        return "\n".join(lines)


@entry
def collapse(
    model: Any,
    guide: Any,
    data: Data,
    *,
    num_data: int = 1000,
    num_samples: int = 10,
    threshold: float = 1e-2,
    batch_size: int = 100,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Collapse:
    """Say which latent units are in use: KL per dimension, active units, and the mutual information of x and z.

    A unit u is active if Var_x(E_q[z_u | x]) > threshold; the noise of means that are estimated from K draws is taken
    off. The mutual information is I_q = E_x KL(q(z | x) || p(z)) - KL(q(z) || p(z)), estimated from one draw per datum
    as mean_n log q(z_n | x_n) - mean_n log 1/N sum_m q(z_n | x_m), m = n included. It cannot exceed log N, so N has to
    be larger than e^I; its bias is negative and of order 1 / N.

    Args:
        model: any Pyro model within the contract of a pair.
        guide: its guide.
        data: a tensor, a tuple of tensors, a `DataSet` (its test split) or a `DataLoader`.
        num_data: N, at most; so many data are drawn without replacement. The time grows with N^2.
        num_samples: K, draws per datum for the KL and means that have no closed form.
        threshold: least variance of an active unit.
        batch_size: data at once; a `DataLoader` keeps its own.
        device: where to compute; by default where the pair is.
        seed: of the draws and the choice of data.

    Raises: ValueError for a guide that draws from a point (Delta), fewer than 2 data, or counts out of range.

    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders (active units); Hoffman and Johnson (2016),
    ELBO surgery; He, Spokoyny, Neubig and Berg-Kirkpatrick (2019), Lagging Inference Networks.
    """
    num_data, num_samples = whole("num_data", num_data, 2, usual=1000), whole("num_samples", num_samples, usual=10)
    threshold = number("threshold", threshold, least=0, usual=1e-2)
    built("guide", guide, usual=GUIDE)
    with looking(model, guide, data, batch_size, device, seed) as (_, source):
        batches = take(source, num_data)
        if sum(len(batch[0]) for batch in batches) < 2:
            raise ValueError("one datum has no variance over data; give at least 2, better 1000")
        pair = Pair(model, guide)
        looks = [_look(pair.run(batch, num_samples)) for batch in batches]
        require_latents(looks[0].draws, "nothing can collapse")
        draws = {name: torch.cat([look.draws[name] for look in looks]) for name in looks[0].draws}
        own = torch.cat([look.log_guide for look in looks])
        information = (own - log_aggregate_posterior(guide, draws, batches)).cpu()
    kl, errors, variances = {}, {}, {}
    for name in looks[0].kl:
        divergence, means, noise = (
            torch.cat([part[name] for part in parts]).cpu()
            for parts in ([look.kl for look in looks], [look.means for look in looks], [look.noise for look in looks])
        )
        kl[name] = divergence.mean(0)
        errors[name] = divergence.std(0) / math.sqrt(len(divergence))
        variances[name] = means.var(0) - noise.mean(0)
    return Collapse(kl, errors, looks[0].per_dim, variances, threshold, information)


@dataclass(frozen=True)
class _Look:
    """What one batch shows: by site, one draw (B, ...), the KL, the mean and its squared error, each (B, dims)."""

    draws: dict[str, Tensor]
    log_guide: Tensor
    kl: dict[str, Tensor]
    per_dim: dict[str, bool]
    means: dict[str, Tensor]
    noise: dict[str, Tensor]


def _look(run: PairRun) -> _Look:
    refuse_points(run.guide)
    num_samples = run.num_samples
    kl = {name: site_kl(run, name) for name in run.latents}
    means = {name: site_mean(run, name) for name in run.latents}
    return _Look(
        draws={name: run.layout.collect(name, site["value"], num_samples)[0] for name, site in run.guide.items()},
        log_guide=run.log_weights().log_guide[0].double(),
        kl={name: values.mean(0) for name, (values, _) in kl.items()},
        per_dim={name: split for name, (_, split) in kl.items()},
        means={name: values.mean(0) for name, values in means.items()},
        noise={
            name: values.var(0) / num_samples if num_samples > 1 else torch.zeros_like(values[0])
            for name, values in means.items()
        },
    )
