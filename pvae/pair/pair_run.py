"""One run of a pair: its sites, its log weights per datum, and the draws behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from pyro.distributions import Delta
from torch import Tensor

from pvae.pair.implicit import refusal_of
from pvae.pair.layout import Layout
from pvae.pair.scores import CommonScale, Placed, bounds_at, common_scale, left_out, log_prob_of, own_scale
from pvae.pair.sites import Batch, Plate, Site, base_of, subsampled_plate
from pvae.pair.sums.alike import spread
from pvae.pair.sums.elimination import Elimination
from pvae.pair.sums.marginal import conditional, draw_state, sum_out
from pvae.pair.sums.states import States
from pvae.support.refusals import ContractError

__all__ = ["LogWeights", "PairRun"]


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
    the prior. `factors` holds the guide's `pyro.factor` statements, which train the pair and are no part of
    log q(z | x).
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
    factors: dict[str, Site] = field(default_factory=dict)

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
            raise ContractError(
                f"{what} is taken site by site, and {sorted(self.states.tables)} are summed out",
                "use ELBO() with its sampled KL, or a guide that draws them",
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
        log_likelihood, log_prior = self._of_model(log_prob_of)
        index = draw_state(log_likelihood + log_prior, self.states.count)
        values = self.states.values(torch.arange(self.states.count, device=index.device), self.num_data)
        columns = torch.arange(self.num_data, device=index.device)
        return {name: value[index, columns] for name, value in values.items()}

    def log_weights(self) -> LogWeights:
        """Unscaled weights, masks as Pyro counts them: no plate scale and no `poutine.scale` takes part.

        A datum that every site leaves out by a mask over data alone is weighed as if it were not left out.

        Raises: ValueError for a plate within a datum that looks at a part of its entries only.
        """
        self._require_whole_data()
        skipped = self.skipped

        def score(placed: Placed) -> Tensor:
            return log_prob_of(placed, skipped)

        return self._collect(score, score)

    def scaled_log_weights(self) -> LogWeights:
        """What the author's own `poutine.scale` asks training to optimise, without what stands outside (`scaled`).

        Where sites are summed out, a scale that all sites of the model share stands outside the logarithm of the sum.
        """
        if self.states is None:
            return self._collect(self.scaled_log_prob, self.scaled_log_prob)
        of_model = common_scale(self.of_the_model, self.num_data)

        def score(placed: Placed) -> Tensor:
            return of_model.inside(placed, log_prob_of(placed))

        parts = self._collect(score, self.scaled_log_prob, normalized=of_model.shared is True)
        rest = of_model.outside
        if isinstance(self.common.shared, Tensor):
            rest = torch.where(self.common.shared, 1.0, torch.as_tensor(rest, dtype=parts.log_prior.dtype))
        elif self.common.shared:
            return parts
        return LogWeights(rest * parts.log_likelihood, rest * parts.log_prior, parts.log_guide)

    def scaled(self, bound: Tensor) -> Tensor:
        """A bound (B,) times the scale that all sites of both functions share: it stands outside every logarithm."""
        return self.common.times(bound)

    @cached_property
    def common(self) -> CommonScale:
        """The scale that all sites of both functions share."""
        return common_scale(self._all_sites, self.num_data)

    @property
    def skipped(self) -> Tensor | None:
        """The data (B,) whose masks `log_weights` does not count; None where no mask is of that kind."""
        of_guide = self.placed(self.guide | self.reverse | self.factors)
        return left_out([*self._of_the_model_besides(()), *of_guide], self.num_data)

    def penalty(self) -> Tensor | None:
        """What `pyro.factor` statements of the guide take off the objective, (K, B), scaled; None without any.

        They are losses that train the pair, such as a classifier's, and no part of log q(z | x).
        """
        if not self.factors:
            return None
        terms = [(placed[1], log_prob_of(placed) * own_scale(placed)) for placed in self.placed(self.factors)]
        return self.total(terms)

    def terms(self) -> dict[tuple[str, str, str], Tensor]:
        """What each ("model" or "guide", site, "log density") adds to `log_weights`, (K, B).

        Sites without a density, or without one at these values, and points (Delta) are left out. A support whose
        bounds are tensors adds a term per bound, for a density may be the same wherever they are.
        """
        found, skipped = {}, self.skipped
        for function, sites, rows in (
            ("model", self.of_the_model, self._num_states),
            ("guide", self.of_the_guide + self.placed(self.reverse), 1),
        ):
            for placed in sites:
                if refusal_of(placed[0]) is None and not isinstance(base_of(placed[0]["fn"]), Delta):
                    key = function, placed[0]["name"]
                    with suppress(ValueError):
                        found[*key, "log density"] = self.total([(placed[1], log_prob_of(placed, skipped))], rows)
                    for number, bound in enumerate(bounds_at(placed, skipped), 1):
                        found[*key, f"support bound {number}"] = self.total([(placed[1], bound)], rows)
        return found

    def average(self, values: Tensor) -> Tensor:
        """The mean of values (K, B) over the draws, (B,): each branch counts by its probability under the guide."""
        if self.branches is None:
            return values.mean(0)
        branched = self.placed({name: self.guide[name] for name in self.branches.tables})
        log_probs = [(placed[1], log_prob_of(placed, masked=self._share(placed[0]["name"]))) for placed in branched]
        probs = self.total(log_probs).exp()
        return (probs * values).sum(0) * self.branches.count / self.num_samples

    def scaled_log_joint(self) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) of `scaled_log_weights`, each (K, B), of a guide that may have no density.

        Raises: ValueError if sites are summed out.
        """
        self.require_all_drawn("a discriminator's KL")
        return self._of_model(self.scaled_log_prob)

    def log_guide_of(self, names: Collection[str]) -> Tensor:
        """The part of `scaled_log_weights().log_guide` that some of the guide's sites give, (K, B)."""
        chosen = self.placed({name: self.guide[name] for name in names})
        return self.total([(placed[1], self.scaled_log_prob(placed)) for placed in chosen])

    @property
    def data_scale(self) -> float:
        """N / B of a subsampling plate over the data, 1 for a plain plate."""
        return self.num_total / self.num_data

    def scaled_log_prob(self, placed: Placed) -> Tensor:
        """The log probability of a site in `scaled_log_weights`."""
        return self.common.inside(placed, log_prob_of(placed))

    def _share(self, name: str) -> float:
        """The log probability of one state where a branched site is masked: all its states together count once."""
        assert self.branches is not None
        return -self.branches.log_count(name, self.guide[name]["fn"].event_shape)

    def _require_whole_data(self) -> None:
        for site, plate in self._all_sites:
            if (part := subsampled_plate(site, plate.name)) is not None:
                raise ContractError(
                    f"site '{site['name']}' stands in the plate '{part.name}', which looks at {part.size} of "
                    f"{part.full_size} entries of a datum, and no log p(x) of the whole follows from a part",
                    "train with it, and evaluate with the whole plate",
                )

    @property
    def _all_sites(self) -> list[Placed]:
        return [*self.of_the_model, *self.of_the_guide, *self.placed(self.reverse)]

    @property
    def of_the_model(self) -> list[Placed]:
        """The model's sites with its data plate."""
        return self._of_the_model_besides(() if self.states is None else self.states.tables)

    def _of_the_model_besides(self, summed: Collection[str]) -> list[Placed]:
        """The model's sites with its data plate; the own mask of one that is summed out does not count, as in Pyro."""
        return [
            ({**site, "mask": None} if name in summed else site, self.model_plate) for name, site in self.model.items()
        ]

    @property
    def of_the_guide(self) -> list[Placed]:
        """The guide's sites with its data plate."""
        return self.placed(self.guide)

    def placed(self, sites: Mapping[str, Site]) -> list[Placed]:
        """Sites of the guide with its data plate."""
        return [] if self.guide_plate is None else [(site, self.guide_plate) for site in sites.values()]

    def _collect(
        self, of_model: Callable[[Placed], Tensor], of_guide: Callable[[Placed], Tensor], *, normalized: bool = True
    ) -> LogWeights:
        if self.states is not None and self.states.way != "joint":
            log_likelihood, log_prior = self._entry_by_entry(of_model, normalized)
        else:
            log_likelihood, log_prior = self._of_model(of_model)
        if self.states is not None and self.states.way == "joint":
            log_likelihood, log_prior = sum_out(log_likelihood, log_prior, self.states.count)
        if self.guide:
            log_guide = self.total([(placed[1], of_guide(placed)) for placed in self.of_the_guide])
        else:
            log_guide = log_prior
        if self.reverse:
            log_prior = log_prior - self.total([(placed[1], of_guide(placed)) for placed in self.placed(self.reverse)])
        return LogWeights(log_likelihood, log_prior, log_guide)

    def _of_model(self, of_site: Callable[[Placed], Tensor]) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z), (K, B); (S K, B) at S states of sites that are to be summed out."""
        parts: tuple[list[tuple[Plate, Tensor]], list[tuple[Plate, Tensor]]] = ([], [])
        for placed in self.of_the_model:
            parts[not placed[0]["is_observed"]].append((placed[1], of_site(placed)))
        return self.total(parts[0], self._num_states), self.total(parts[1], self._num_states)

    def _entry_by_entry(self, of_site: Callable[[Placed], Tensor], normalized: bool) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z), (K, B), the summed sites eliminated; the `normalized` ones sum to 1."""
        elimination, plate = self.elimination(of_site), self.model_plate
        latent = [name for name, site in self.model.items() if not site["is_observed"]]
        of_latents = self.total([(plate, each) for each in elimination.log_sum(latent, normalized=normalized)])
        of_all = self.total([(plate, each) for each in elimination.log_sum(self.model, normalized=normalized)])
        free: dict[bool, list[tuple[Plate, Tensor]]] = {True: [], False: []}
        for name in elimination.free:
            free[name in latent].append((plate, elimination.log_probs[name]))
        log_likelihood, log_prior = (self.total(free[is_latent]) for is_latent in (False, True))
        return log_likelihood + conditional(of_all, of_latents), log_prior + of_latents

    def log_probs(
        self, summed: Collection[str], of_site: Callable[[Placed], Tensor] = log_prob_of
    ) -> dict[str, Tensor]:
        """The log probability of each site of the model, that of `summed` ones without their own masks."""
        return {placed[0]["name"]: of_site(placed) for placed in self._of_the_model_besides(summed)}

    def elimination(self, of_site: Callable[[Placed], Tensor] = log_prob_of) -> Elimination:
        """The model's sites as factors over the states of those that are summed out entry by entry."""
        assert self.states is not None
        names, sites = self.states.tables, self.model
        log_probs = self.log_probs(names, of_site)
        if self.states.way == "alike":
            sites, log_probs = spread(sites, log_probs, self.states, self.layout, self.model_plate)
        return Elimination(sites, log_probs, names, self.model_plate)

    def total(self, log_probs: Sequence[tuple[Plate, Tensor]], num_states: int = 1) -> Tensor:
        """Sum sites, and within a site every plate but particles and data: (K, B), or (S K, B) at S states each."""
        device = next(iter(self.model.values()))["value"].device
        total = torch.zeros((), device=device)
        for plate, log_prob in log_probs:
            lead = self.layout.nesting - log_prob.dim()
            full = log_prob.reshape((1,) * lead + log_prob.shape) if lead > 0 else log_prob
            inner = [dim for dim in range(-self.layout.nesting, 0) if dim != plate.dim]
            total = total + (full.sum(inner) if inner else full).reshape(-1, self.num_data)
        return total.expand(num_states * self.num_samples, self.num_data)
