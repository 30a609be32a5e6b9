"""The log weights of a pair, per datum: one matrix that every objective and estimator reduces.

For z_k drawn from the guide q(z | x), log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x), in nats,
one row per particle and one column per datum: shape (K, B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.contexts import called_modules, seeded
from pvae.sites import Batch, Plate, Site, as_batch, data_plate, plate_nesting, plates_of, random_sites
from pvae.store import private_store

__all__ = ["Layout", "LogWeights", "PairRun", "log_weights", "read_layout", "run_pair"]

Stochastic = Callable[..., Any]
_PARTICLES = "_pvae_particles"
_TRIAL_ROWS = 13


@dataclass(frozen=True)
class LogWeights:
    """Log weights and their parts, each (K, B), in nats: `values = log_likelihood + log_prior - log_guide`."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor

    @property
    def values(self) -> Tensor:
        """log p(x, z) - log q(z | x), (K, B)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def num_samples(self) -> int:
        """K."""
        return self.log_likelihood.shape[0]


@dataclass(frozen=True)
class Layout:
    """How to run a pair with K particles.

    `nesting` is how many batch dims its plates use; the particle plate stands left of them. A pair whose
    nets cannot take that extra dim is run on K copies of the batch instead (`vectorizes` is False).
    `data_plates` names the plates over the data, of guide and model, which may have to hold those copies.
    """

    nesting: int
    vectorizes: bool
    data_plates: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PairRun:
    """One run of the guide, then of the model on the guide's draws.

    `num_data` is B, `num_total` the N that a subsampling plate over the data stands for (B for a plain plate).
    """

    guide: dict[str, Site]
    model: dict[str, Site]
    num_samples: int
    num_data: int
    num_total: int
    nesting: int
    guide_plate: Plate | None
    model_plate: Plate

    def log_weights(self) -> LogWeights:
        """Unscaled weights: no plate scale, no `poutine.scale` and no subsampling mask takes part."""
        masks = _shared_mask(self.model), _shared_mask(self.guide)
        return self._collect(*(partial(_log_prob, shared_mask=mask) for mask in masks))

    def scaled_log_weights(self) -> LogWeights:
        """What the author's own `poutine.scale` asks training to optimise, the data plate's scale taken out."""
        plate_scale = self._plate_scale()

        def log_prob(site: Site) -> Tensor:
            return scale_and_mask(_log_prob(site), site["scale"] / plate_scale)

        return self._collect(log_prob, log_prob)

    @property
    def data_scale(self) -> float:
        """N / B of a subsampling plate over the data, 1 for a plain plate."""
        return self.num_total / self.num_data

    def _plate_scale(self) -> Any:
        """What the data plate multiplied the scale of every site by; copies of the batch count as data to it."""
        frames = next(iter(self.model.values()))["cond_indep_stack"]
        return next(f.full_size / f.size for f in frames if f.name == self.model_plate.name and f.size)

    def kl(self) -> Tensor:
        """KL(q(z | x) || p(z)) summed over latent sites, (K, B): closed form where torch knows one.

        A site without a closed form contributes its sampled log q - log p, as in `TraceMeanField_ELBO`.
        """
        plate_scale = self._plate_scale()
        terms = []
        for name, site in self.guide.items():
            scale = site["scale"] / plate_scale
            prior = self.model.get(name)
            if prior is None:
                terms.append(scale_and_mask(_log_prob(site), scale))
                continue
            try:
                divergence = kl_divergence(site["fn"], prior["fn"])
                terms.append(scale_and_mask(divergence, scale, site["mask"]))
            except NotImplementedError:
                log_prior = scale_and_mask(_log_prob(prior), prior["scale"] / plate_scale)
                terms.append(scale_and_mask(_log_prob(site), scale) - log_prior)
        return self._sum(terms, self.guide_plate)

    def _collect(self, of_model: Callable[[Site], Tensor], of_guide: Callable[[Site], Tensor]) -> LogWeights:
        prior: list[Tensor] = []
        likelihood: list[Tensor] = []
        for site in self.model.values():
            (likelihood if site["is_observed"] else prior).append(of_model(site))
        log_prior = self._sum(prior, self.model_plate)
        if self.guide_plate is None:
            log_guide = log_prior
        else:
            log_guide = self._sum([of_guide(site) for site in self.guide.values()], self.guide_plate)
        return LogWeights(self._sum(likelihood, self.model_plate), log_prior, log_guide)

    def _sum(self, log_probs: list[Tensor], plate: Plate | None) -> Tensor:
        """Sum sites, and within a site every plate but particles and data: (K, B)."""
        device = next(iter(self.model.values()))["value"].device
        total = torch.zeros((), device=device)
        for log_prob in log_probs:
            lead = self.nesting - log_prob.dim()
            full = log_prob.reshape((1,) * lead + log_prob.shape) if lead > 0 else log_prob
            inner = [dim for dim in range(-self.nesting, 0) if plate is None or dim != plate.dim]
            total = total + (full.sum(inner) if inner else full).reshape(-1, self.num_data)
        return total.expand(self.num_samples, self.num_data)


def log_weights(
    model: Stochastic, guide: Stochastic | None, batch: Tensor | tuple[Tensor, ...], num_samples: int
) -> LogWeights:
    """Draw `num_samples` particles per datum from the guide and weigh them: log p(x, z) - log q(z | x).

    A `guide` of None proposes from the model's own prior. Gradients flow to the parameters of the pair,
    the draws come from torch's global generator, and nets are in the mode (train or eval) they are in.

    Returns: `LogWeights` with parts of shape (K, B), in nats.
    Raises: ValueError if `num_samples` < 1 or the pair breaks the contract.
    """
    check_num_samples(num_samples)
    arguments = as_batch(batch)
    with private_store(model, guide):
        layout = read_layout(model, guide, arguments, num_samples)
        return run_pair(model, guide, arguments, num_samples, layout).log_weights()


def check_num_samples(num_samples: int) -> None:
    """Raise ValueError unless `num_samples` is an integer of at least 1."""
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples must be a whole number of at least 1, got {num_samples!r}; try 1000")


def read_layout(model: Stochastic, guide: Stochastic | None, batch: Batch, num_samples: int) -> Layout:
    """Find out from a trial run how to run the pair with `num_samples` particles.

    Whether the nets take a particle dim is tried, and the numbers compared with those of copied batches:
    a net that silently mixes dims would otherwise give wrong weights.
    """
    with torch.no_grad(), seeded(0, batch[0].device), called_modules():
        traces = _traces(model, guide, batch)
        layout = Layout(
            nesting=max(plate_nesting(trace) for trace in traces),
            vectorizes=True,
            data_plates=frozenset(data_plate(trace, len(batch[0])).name for trace in traces if random_sites(trace)),
        )
        if num_samples == 1:
            return layout
        return replace(layout, vectorizes=_vectorizes(model, guide, batch, layout))


def run_pair(model: Stochastic, guide: Stochastic | None, batch: Batch, num_samples: int, layout: Layout) -> PairRun:
    """Run the guide, then the model on its draws, with K particles; call inside a param store of your choice.

    Raises: ValueError if a site lies outside the data plate.
    """
    num_data, nesting = len(batch[0]), layout.nesting
    if num_samples == 1:
        guide_trace, model_trace = _traces(model, guide, batch)
    elif layout.vectorizes:
        with pyro.plate(_PARTICLES, num_samples, dim=-1 - nesting):
            guide_trace, model_trace = _traces(model, guide, batch)
    else:
        with _InOrder(layout.data_plates):
            guide_trace, model_trace = _traces(model, guide, _copies(batch, num_samples))
    rows = num_data if layout.vectorizes else num_data * num_samples
    guide_sites, model_sites = random_sites(guide_trace), random_sites(model_trace)
    missing, extra = unmatched_sites(guide_sites, model_sites)
    if guide is not None and (missing or extra):
        raise ValueError(
            f"the guide does not fit the model: it lacks {missing or 'nothing'} and adds {extra or 'nothing'}; "
            "sample exactly the model's latent sites in the guide"
        )
    model_plate = data_plate(model_trace, rows, besides=_PARTICLES)
    return PairRun(
        guide=guide_sites,
        model=model_sites,
        num_samples=num_samples,
        num_data=num_data,
        num_total=_subsampled_from(model_trace, model_plate) or num_data,
        nesting=nesting,
        guide_plate=data_plate(guide_trace, rows, besides=_PARTICLES) if guide_sites else None,
        model_plate=model_plate,
    )


def unmatched_sites(guide: dict[str, Site], model: dict[str, Site]) -> tuple[list[str], list[str]]:
    """Latent sites that the guide lacks, and guide sites that the model does not have as latents."""
    latent = {name for name, site in model.items() if not site["is_observed"]}
    missing = [name for name in model if name in latent and name not in guide]
    extra = [name for name, site in guide.items() if name not in latent and not site["infer"].get("is_auxiliary")]
    return missing, extra


def _traces(model: Stochastic, guide: Stochastic | None, batch: Batch) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.trace(guide).get_trace(*batch) if guide is not None else poutine.Trace()
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    return guide_trace, model_trace


def _copies(batch: Batch, num_samples: int) -> Batch:
    """The batch K times over along dim 0: row k * B + b is datum b."""
    return tuple(part.repeat(num_samples, *(1,) * (part.dim() - 1)) for part in batch)


def _subsampled_from(trace: poutine.Trace, plate: Plate) -> int | None:
    """How many data a subsampling plate stands for; None for a plain plate."""
    drawn = trace.nodes[plate.name]["fn"] if plate.name in trace.nodes else None
    if isinstance(drawn, _Subsample) and (drawn.subsample_size is not None or drawn.size != plate.size):
        return drawn.size
    return None


def _vectorizes(model: Stochastic, guide: Stochastic | None, batch: Batch, layout: Layout) -> bool:
    batch = _trial_batch(model, guide, batch, layout)
    num_samples, num_data = 2, len(batch[0])
    try:
        wide = run_pair(model, guide, batch, num_samples, layout)
        weights = wide.log_weights()
    except Exception:  # whatever a net trips over, it does not take particles
        return False
    draws = {}
    for name, site in {**wide.model, **wide.guide}.items():
        if site["is_observed"]:
            continue
        value, event_dim = site["value"], site["fn"].event_dim
        data_dim = wide.model_plate.dim - event_dim
        if value.dim() - layout.nesting - event_dim < 1:
            return False
        long = value.movedim(0, data_dim - 1).flatten(data_dim - 1, data_dim)
        own_dims = event_dim + max(-plate.dim for plate in plates_of(site) if plate.name != _PARTICLES)
        draws[name] = long.reshape(long.shape[long.dim() - own_dims :])
    try:
        with _Given(draws), _InOrder(layout.data_plates):
            copied = run_pair(model, guide, _copies(batch, num_samples), 1, layout).log_weights()
    except Exception:  # then the copies are no way out
        return True
    pairs = ((weights.log_likelihood, copied.log_likelihood), (weights.log_prior, copied.log_prior))
    return all(
        torch.allclose(wide_part, long_part.reshape(num_samples, num_data), rtol=1e-3, atol=1e-3)
        for wide_part, long_part in (*pairs, (weights.log_guide, copied.log_guide))
    )


def _trial_batch(model: Stochastic, guide: Stochastic | None, batch: Batch, layout: Layout) -> Batch:
    """Data to try particles with: an odd number of them, as a net may take a data dim of its own width for features.

    A pair over exactly these data, such as one with a parameter per datum, is tried on the batch itself.
    """
    rows = torch.arange(_TRIAL_ROWS, device=batch[0].device) % len(batch[0])
    trial = tuple(part[rows] for part in batch)
    try:
        run_pair(model, guide, trial, 1, layout).log_weights()
    except Exception:  # the pair has just run on the batch, so it is the number of data that fails
        return batch
    return trial


class _Given(Messenger):
    """Set the values of latent sites by name."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _InOrder(Messenger):
    """Give a subsampling plate over the data its batch in order, for it would refuse to hold more copies than data.

    The batch is the subsample already, so no index is needed.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and fn.subsample_size is not None and msg["name"] in self.names:
            msg["value"] = torch.arange(fn.subsample_size, device=fn.device)


def _shared_mask(sites: dict[str, Site]) -> Any:
    """The mask that every site of a trace carries: it leaves out data, not terms, so log p(x) ignores it."""
    masks = [site["mask"] for site in sites.values()]
    first = masks[0] if masks else None
    return first if all(_same(mask, first) for mask in masks) else None


def _same(mask: Any, other: Any) -> bool:
    if isinstance(mask, Tensor) and isinstance(other, Tensor):
        return mask is other or (mask.shape == other.shape and torch.equal(mask, other))
    return mask is other


def _log_prob(site: Site, shared_mask: Any = None) -> Tensor:
    log_prob = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if mask is None or _same(mask, shared_mask):
        return log_prob
    return scale_and_mask(log_prob, mask=mask)
