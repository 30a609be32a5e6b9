"""One run of a pair: its sites, its log weights per datum, and the draws behind them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.alike import spread
from pvae.elimination import Elimination
from pvae.marginal import draw_state, sum_out
from pvae.places import Layout
from pvae.sites import Batch, Plate, Site
from pvae.states import States

__all__ = ["LogWeights", "PairRun", "log_probs_of"]


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
class PairRun:
    """One run of the guide, then of the model on the guide's draws.

    `batch` is what it ran on, `num_data` its B, `num_total` the N that a subsampling plate over the data stands for (B
    for a plain plate).
    Of a split run, `drawn` holds the guide's draws with their history, in the order they were drawn; the values in
    the sites are leaves of their own. `reverse` holds the guide's sites marked `extends_model`, each -log r of
    auxiliary draws that the model knows nothing of: the weights are those of the model times r, so log r counts with
    the prior.
    Where sites are summed out, the model ran on every draw at each of their joint `states`, one state after the other.
    Where the guide ran at every joint state of its annotated sites, `branches` holds these, and `num_samples` counts
    the draws of all branches, one branch after the other.
    """

    batch: Batch
    guide: dict[str, Site]
    model: dict[str, Site]
    num_samples: int
    num_data: int
    num_total: int
    layout: Layout
    guide_plate: Plate | None
    model_plate: Plate
    drawn: dict[str, Tensor] = field(default_factory=dict)
    states: States | None = None
    branches: States | None = None
    reverse: dict[str, Site] = field(default_factory=dict)

    @property
    def latents(self) -> dict[str, Tensor]:
        """The draws of the model's latent sites by name, (K, B, ...), without those that are summed out."""
        return {
            name: self.layout.collect(name, site["value"], self.num_samples * self._num_states)[: self.num_samples]
            for name, site in self.model.items()
            if not site["is_observed"] and (self.states is None or name not in self.states.tables)
        }

    @property
    def _num_states(self) -> int:
        return 1 if self.states is None or self.states.way == "dims" else self.states.count

    def require_all_drawn(self, what: str) -> None:
        """Raise ValueError if sites are summed out, for `what` looks at one site after the other."""
        if self.states is not None:
            raise ValueError(
                f"{what} is taken site by site, and {sorted(self.states.tables)} are summed out; use ELBO() with its "
                "sampled KL, or a guide that draws them"
            )

    def draw_summed(self) -> dict[str, Tensor]:
        """Draws of the sites that are summed out from p(y | x, z) at each draw z, (K, B, ...)."""
        if self.states is None:
            return {}
        if self.states.way != "joint":
            return {
                name: self.layout.collect(name, self.states.events(name)[index], self.num_samples)
                for name, index in self.elimination().draw().items()
            }
        log_likelihood, log_prior = self._of_model(_log_prob)
        index = draw_state(log_likelihood + log_prior, self.states.count)
        values = self.states.values(torch.arange(self.states.count, device=index.device), self.num_data)
        columns = torch.arange(self.num_data, device=index.device)
        return {name: value[index, columns] for name, value in values.items()}

    def log_weights(self) -> LogWeights:
        """Unscaled weights: no plate scale, no `poutine.scale` and no subsampling mask takes part."""
        masks = _shared_mask(self.model), _shared_mask(self.guide)
        return self._collect(*(partial(_log_prob, shared_mask=mask) for mask in masks))

    def scaled_log_weights(self) -> LogWeights:
        """What the author's own `poutine.scale` asks training to optimise, the data plate's scale taken out.

        Where sites are summed out, a number that scales all sites of the model scales the logarithm of the sum.
        """
        if self.states is None:
            return self._collect(self._scaled, self._scaled)
        scales = {site["scale"] / self._plate_scale() for site in self.model.values()}
        has_one = len(scales) == 1
        shared = scales.pop() if has_one else 1.0

        def unshared(site: Site, masked: float = 0.0) -> Tensor:
            return self._scaled(site, masked) / shared

        parts = self._collect(unshared, unshared, normalized=has_one)
        return LogWeights(shared * parts.log_likelihood, shared * parts.log_prior, shared * parts.log_guide)

    def average(self, values: Tensor) -> Tensor:
        """The mean of values (K, B) over the draws, (B,): each branch counts by its probability under the guide."""
        if self.branches is None:
            return values.mean(0)
        log_probs = [_log_prob(self.guide[name], masked=self._share(name)) for name in self.branches.tables]
        probs = self._sum(log_probs, self.guide_plate).exp()
        return (probs * values).sum(0) * self.branches.count / self.num_samples

    def scaled_log_joint(self) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) of `scaled_log_weights`, each (K, B), of a guide that may have no density.

        Raises: ValueError if sites are summed out.
        """
        self.require_all_drawn("a discriminator's KL")
        return self._of_model(self._scaled)

    def log_guide_of(self, names: Collection[str]) -> Tensor:
        """The part of `scaled_log_weights().log_guide` that some of the guide's sites give, (K, B)."""
        return self._sum([self._scaled(self.guide[name]) for name in names], self.guide_plate)

    def log_guide_at_observed(self) -> Tensor:
        """Sum of log q(y | ...) over labels that are known, (K, B); 0 where one is not.

        These are the values of the model's site "y_observed" under the guide's "y_unobserved", named as by `obs_mask`.
        """
        terms = []
        for name, site in self.guide.items():
            seen = self.model.get(f"{name.removesuffix('_unobserved')}_observed")
            if name.endswith("_unobserved") and seen is not None and seen["is_observed"]:
                terms.append(scale_and_mask(site["fn"].log_prob(seen["value"]), mask=seen["mask"]))
        return self._sum(terms, self.guide_plate)

    @property
    def data_scale(self) -> float:
        """N / B of a subsampling plate over the data, 1 for a plain plate."""
        return self.num_total / self.num_data

    def _plate_scale(self) -> Any:
        """What the data plate multiplied the scale of every site by; copies of the batch count as data to it."""
        frames = next(iter(self.model.values()))["cond_indep_stack"]
        return next(f.full_size / f.size for f in frames if f.name == self.model_plate.name and f.size)

    def kl(self, *, analytic: bool) -> dict[str, Tensor]:
        """KL(q(z | x) || p(z)) of each latent site, (K, B): log q - log p at the draws, or in closed form.

        A site for which torch knows no closed form contributes its sampled one, as in `TraceMeanField_ELBO`. So does
        one that the guide draws before what it depends on in the model: the closed form is not that of a fixed prior.

        Raises: ValueError if sites are summed out.
        """
        self.require_all_drawn("the KL")
        return {
            name: self._sum([self._kl_term(name, site, analytic)], self.guide_plate) for name, site in self._kl_sites()
        }

    def _kl_sites(self) -> list[tuple[str, Site]]:
        """The guide's sites, or without a guide the model's own latent ones."""
        if self.guide:
            return [*self.guide.items(), *self.reverse.items()]
        return [(name, site) for name, site in self.model.items() if not site["is_observed"]]

    def _kl_term(self, name: str, site: Site, analytic: bool) -> Tensor:
        prior = self.model.get(name)
        if prior is None:
            return self._scaled(site)
        if analytic and self._follows(name):
            try:
                divergence = kl_divergence(site["fn"], prior["fn"])
                return scale_and_mask(divergence, site["scale"] / self._plate_scale(), site["mask"])
            except NotImplementedError:
                pass
        return self._scaled(site) - self._scaled(prior)

    def _follows(self, name: str) -> bool:
        """Whether the guide, too, draws all sites before this one that the model does."""
        drawn = [*itertools.takewhile(lambda each: each != name, self.guide)]
        before = itertools.takewhile(lambda each: each != name, self.model)
        return not self.guide or all(each in drawn for each in before if each in self.guide)

    def _scaled(self, site: Site, masked: float = 0.0) -> Tensor:
        return scale_and_mask(_log_prob(site, masked=masked), site["scale"] / self._plate_scale())

    def _share(self, name: str) -> float:
        """The log probability of one state where a site is masked, so that all its states together count once."""
        site = self.model.get(name) or self.guide[name]
        for states in (self.states, self.branches):
            if states is not None and name in states.tables:
                return -states.log_count(name, site["fn"].event_shape)
        return 0.0

    def _collect(
        self, of_model: Callable[..., Tensor], of_guide: Callable[..., Tensor], *, normalized: bool = True
    ) -> LogWeights:
        if self.states is not None and self.states.way != "joint":
            log_likelihood, log_prior = self._entry_by_entry(of_model, normalized)
        else:
            log_likelihood, log_prior = self._of_model(of_model)
        if self.states is not None and self.states.way == "joint":
            log_likelihood, log_prior = sum_out(log_likelihood, log_prior, self.states.count)
        if self.guide_plate is None:
            log_guide = log_prior
        else:
            log_guide = self._sum([of_guide(site) for site in self.guide.values()], self.guide_plate)
        if self.reverse:
            log_prior = log_prior - self._sum([of_guide(site) for site in self.reverse.values()], self.guide_plate)
        return LogWeights(log_likelihood, log_prior, log_guide)

    def _of_model(self, of_site: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z), (K, B); (S K, B) at S states of sites that are to be summed out."""
        log_probs = log_probs_of(self.model, () if self.states is None else self.states.tables, of_site)
        prior = [log_probs[name] for name, site in self.model.items() if not site["is_observed"]]
        likelihood = [log_probs[name] for name, site in self.model.items() if site["is_observed"]]
        return (
            self._sum(likelihood, self.model_plate, self._num_states),
            self._sum(prior, self.model_plate, self._num_states),
        )

    def _entry_by_entry(self, of_site: Callable[..., Tensor], normalized: bool) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z), (K, B), the summed sites eliminated; the `normalized` ones sum to 1."""
        elimination = self.elimination(of_site)
        latent = [name for name, site in self.model.items() if not site["is_observed"]]
        of_latents = self._sum(elimination.log_sum(latent, normalized=normalized), self.model_plate)
        of_all = self._sum(elimination.log_sum(self.model, normalized=normalized), self.model_plate)
        free: dict[bool, list[Tensor]] = {True: [], False: []}
        for name in elimination.free:
            free[name in latent].append(elimination.log_probs[name])
        log_likelihood, log_prior = (self._sum(free[is_latent], self.model_plate) for is_latent in (False, True))
        return log_likelihood + of_all - of_latents, log_prior + of_latents

    def elimination(self, of_site: Callable[..., Tensor] | None = None) -> Elimination:
        """The model's sites as factors over the states of those that are summed out entry by entry."""
        assert self.states is not None
        names, sites = self.states.tables, self.model
        log_probs = log_probs_of(sites, names, of_site)
        if self.states.way == "alike":
            sites, log_probs = spread(sites, log_probs, self.states, self.layout, self.model_plate)
        return Elimination(sites, log_probs, names, self.model_plate)

    def _sum(self, log_probs: list[Tensor], plate: Plate | None, num_states: int = 1) -> Tensor:
        """Sum sites, and within a site every plate but particles and data: (K, B), or (S K, B) at S states each."""
        device = next(iter(self.model.values()))["value"].device
        total = torch.zeros((), device=device)
        for log_prob in log_probs:
            lead = self.layout.nesting - log_prob.dim()
            full = log_prob.reshape((1,) * lead + log_prob.shape) if lead > 0 else log_prob
            inner = [dim for dim in range(-self.layout.nesting, 0) if plate is None or dim != plate.dim]
            total = total + (full.sum(inner) if inner else full).reshape(-1, self.num_data)
        return total.expand(num_states * self.num_samples, self.num_data)


def log_probs_of(
    sites: Mapping[str, Site], summed: Collection[str], of_site: Callable[..., Tensor] | None = None
) -> dict[str, Tensor]:
    """The log probability of each site.

    A mask leaves out what is known of a site to be summed out, not its states: they go unmasked, as in Pyro.
    """
    of_site = of_site or _log_prob
    return {name: of_site({**site, "mask": None} if name in summed else site) for name, site in sites.items()}


def _shared_mask(sites: dict[str, Site]) -> Any:
    """The mask that every site of a trace carries: it leaves out data, not terms, so log p(x) ignores it."""
    masks = [site["mask"] for site in sites.values()]
    # To compare the values of masks ends a trace, and is needless where a site carries none.
    if not masks or any(mask is None for mask in masks):
        return None
    return masks[0] if all(_same(mask, masks[0]) for mask in masks) else None


def _same(mask: Any, other: Any) -> bool:
    if isinstance(mask, Tensor) and isinstance(other, Tensor):
        return mask is other or (mask.shape == other.shape and torch.equal(mask, other))
    return mask is other


def _log_prob(site: Site, shared_mask: Any = None, masked: float = 0.0) -> Tensor:
    """The log density of a site, `masked` where its own mask leaves it out."""
    try:
        log_prob = site["fn"].log_prob(site["value"])
    except (NotImplementedError, KeyError) as error:
        raise ValueError(
            f"site '{site['name']}' has no density at a value that it did not draw itself; use a flow with an inverse, "
            "or an objective with gradient='pathwise'"
        ) from error
    mask = site["mask"]
    if mask is None or _same(mask, shared_mask):
        return log_prob
    return torch.where(torch.as_tensor(mask, device=log_prob.device), log_prob, masked)
