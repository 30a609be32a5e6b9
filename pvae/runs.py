"""One run of a pair: its sites, its log weights per datum, and the draws behind them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.marginal import draw_state, repeated, sum_out
from pvae.sites import Batch, Plate, Site, data_plate, plates_of, random_sites
from pvae.states import States

__all__ = ["Layout", "LogWeights", "PairRun", "Place", "place_of", "run_pair", "trace_pair", "unmatched_sites"]

Stochastic = Callable[..., Any]
_PARTICLES = "_pvae_particles"


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


class Place(NamedTuple):
    """Where a site's dims are, counted from the right: those of an event, the data plate's, and all of its plates."""

    event_dim: int
    data_dim: int
    num_plates: int


@dataclass(frozen=True)
class Layout:
    """How to run a pair with K particles.

    `nesting` is how many batch dims its plates use; the particle plate stands left of them. A pair whose
    nets cannot take that extra dim is run on K copies of the batch instead (`vectorizes` is False).
    `data_plates` names the plates over the data, of guide and model, which may have to hold those copies;
    `places` says for each latent site where its dims are. `summed` holds the states of the model's latents that are
    summed out: those annotated with infer={"enumerate": "parallel"} that the guide lacks; `branching` those of the
    guide's own latents with that annotation, which an objective may run at every state instead of drawing them.
    """

    nesting: int
    vectorizes: bool
    data_plates: frozenset[str] = frozenset()
    places: Mapping[str, Place] = field(default_factory=dict)
    summed: States | None = None
    branching: States | None = None

    def states_besides(self, names: Collection[str]) -> States | None:
        """The joint states to sum over where the values of some sites are given; None if there are none."""
        rest = None if self.summed is None else self.summed.besides(names)
        return rest if rest is not None and rest.tables else None

    def arrange(self, name: str, value: Tensor) -> Tensor:
        """A latent value (K, B, ...) in the shape that the site has in a run with this layout."""
        num_samples, num_data = value.shape[:2]
        place = self.places[name]
        data_dim = place.data_dim - place.event_dim
        if num_samples > 1 and self.vectorizes:
            value = value.movedim(1, data_dim)
            return value.reshape(num_samples, *(1,) * (self.nesting - place.num_plates), *value.shape[1:])
        return value.reshape(num_samples * num_data, *value.shape[2:]).movedim(0, data_dim)

    def collect(self, name: str, value: Tensor, num_samples: int) -> Tensor:
        """The inverse: a site's value in a run with this layout as (K, B, ...)."""
        place = self.places[name]
        data_dim, own = place.data_dim - place.event_dim, place.num_plates + place.event_dim
        value = value.expand(*(1,) * (own - value.dim()), *value.shape)
        if num_samples > 1 and self.vectorizes:
            value = value.reshape(num_samples, *value.shape[value.dim() - own :])
            return value.movedim(data_dim, 1)
        value = value.reshape(value.shape[value.dim() - own :]).movedim(data_dim, 0)
        return value.unflatten(0, (num_samples, -1))


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
        return 1 if self.states is None else self.states.count

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
        shared = scales.pop() if len(scales) == 1 else 1.0

        def unshared(site: Site, masked: float = 0.0) -> Tensor:
            return self._scaled(site, masked) / shared

        parts = self._collect(unshared, unshared)
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
        site = self.model[name]
        for states in (self.states, self.branches):
            if states is not None and name in states.tables:
                return -states.log_count(name, site["fn"].event_shape)
        return 0.0

    def _collect(self, of_model: Callable[..., Tensor], of_guide: Callable[..., Tensor]) -> LogWeights:
        log_likelihood, log_prior = self._of_model(of_model)
        if self.states is not None:
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
        prior: list[Tensor] = []
        likelihood: list[Tensor] = []
        for name, site in self.model.items():
            is_summed = self.states is not None and name in self.states.tables
            log_prob = of_site(site, masked=self._share(name)) if is_summed else of_site(site)
            (likelihood if site["is_observed"] else prior).append(log_prob)
        return (
            self._sum(likelihood, self.model_plate, self._num_states),
            self._sum(prior, self.model_plate, self._num_states),
        )

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


def run_pair(
    model: Stochastic,
    guide: Stochastic | None,
    batch: Batch,
    num_samples: int,
    layout: Layout,
    *,
    given: Mapping[str, Tensor] | None = None,
    split: bool = False,
    branch: bool = False,
) -> PairRun:
    """Run the guide, then the model on its draws, with K particles; call inside a param store of your choice.

    Args:
        model: the model.
        guide: its guide; None proposes from the model's own prior.
        batch: the data.
        num_samples: K.
        layout: that of the pair for K particles.
        given: values of latent sites to use instead of draws, each (K, B, ...).
        split: cut the graph between a draw and what is computed from it (see `PairRun.drawn`).
        branch: run K particles at each joint state of the guide's annotated sites (see `PairRun.branches`).

    Raises: ValueError if a site lies outside the data plate.
    """
    given = given or {}
    drawn: dict[str, Tensor] = {}
    branches = layout.branching.besides(given) if branch and layout.branching is not None else None
    if branches is not None:
        given = repeated(given, branches, num_samples, batch)
        num_samples *= branches.count
    states = layout.states_besides(given)
    with _particles(batch, num_samples, layout, given) as rows:
        guide_trace = trace_guide(guide, rows, _Split(drawn) if split else None)
        if guide is None or states is None:
            model_trace = trace_model(model, guide_trace, rows)
    model_rows = rows
    if states is not None:
        proposed = model_trace if guide is None else guide_trace
        latents = {
            name: layout.collect(name, site["value"], num_samples)
            for name, site in random_sites(proposed).items()
            if not site["is_observed"] and name not in states.tables and not site["infer"].get("is_auxiliary")
        }
        values = repeated({**given, **latents}, states, num_samples, batch)
        with _particles(batch, num_samples * states.count, layout, values) as model_rows:
            model_trace = trace_model(model, proposed, model_rows)
    guide_sites, model_sites = random_sites(guide_trace), random_sites(model_trace)
    missing, extra = unmatched_sites(guide_sites, model_sites, () if layout.summed is None else layout.summed.tables)
    if guide is not None and (missing or extra):
        raise ValueError(
            f"the guide does not fit the model: it lacks {missing or 'nothing'} and adds {extra or 'nothing'}; "
            "sample exactly the model's latent sites in the guide"
        )
    model_plate = data_plate(model_trace, len(model_rows[0]), besides=_PARTICLES)
    reverse = {name: guide_sites.pop(name) for name in list(guide_sites) if _extends_model(guide_sites[name])}
    return PairRun(
        batch=batch,
        guide=guide_sites,
        model=model_sites,
        num_samples=num_samples,
        num_data=len(batch[0]),
        num_total=_subsampled_from(model_trace, model_plate) or len(batch[0]),
        layout=layout,
        guide_plate=data_plate(guide_trace, len(rows[0]), besides=_PARTICLES) if guide_sites else None,
        model_plate=model_plate,
        drawn=drawn,
        states=states,
        branches=branches,
        reverse=reverse,
    )


def _extends_model(site: Site) -> bool:
    return bool((site["infer"] or {}).get("extends_model"))


def unmatched_sites(
    guide: dict[str, Site], model: dict[str, Site], summed: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Latent sites that the guide lacks, `summed` ones aside, and guide sites that are no latents of the model."""
    latent = {name for name, site in model.items() if not site["is_observed"]}
    missing = [name for name in model if name in latent and name not in guide and name not in summed]
    extra = [name for name, site in guide.items() if name not in latent and not site["infer"].get("is_auxiliary")]
    return missing, extra


def trace_pair(
    model: Stochastic, guide: Stochastic | None, batch: Batch, around_guide: Messenger | None = None
) -> tuple[poutine.Trace, poutine.Trace]:
    """The trace of the guide, and that of the model on the guide's draws."""
    guide_trace = trace_guide(guide, batch, around_guide)
    return guide_trace, trace_model(model, guide_trace, batch)


def trace_guide(guide: Stochastic | None, batch: Batch, around: Messenger | None = None) -> poutine.Trace:
    """The trace of the guide; an empty one without a guide."""
    with around or ExitStack():
        return poutine.trace(guide).get_trace(*batch) if guide is not None else poutine.Trace()


def trace_model(model: Stochastic, guide_trace: poutine.Trace, batch: Batch) -> poutine.Trace:
    """The trace of the model on the guide's draws."""
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)


@contextmanager
def _particles(batch: Batch, num_samples: int, layout: Layout, given: Mapping[str, Tensor]) -> Iterator[Batch]:
    """Run what is inside with K particles, at given values of some sites; gives the batch to run it on."""
    with ExitStack() as handlers:
        if given:
            handlers.enter_context(_Given({name: layout.arrange(name, value) for name, value in given.items()}))
        if num_samples > 1 and layout.vectorizes:
            handlers.enter_context(pyro.plate(_PARTICLES, num_samples, dim=-1 - layout.nesting))
        elif num_samples > 1:
            handlers.enter_context(_InOrder(layout.data_plates))
            batch = _copies(batch, num_samples)
        yield batch


def place_of(site: Site, plate: Plate) -> Place:
    """Where the dims of a site are, `plate` being the one over the data."""
    outermost = max(-each.dim for each in plates_of(site) if each.name != _PARTICLES)
    return Place(site["fn"].event_dim, plate.dim, outermost)


def _copies(batch: Batch, num_samples: int) -> Batch:
    """The batch K times over along dim 0: row k * B + b is datum b."""
    return tuple(part.repeat(num_samples, *(1,) * (part.dim() - 1)) for part in batch)


def _subsampled_from(trace: poutine.Trace, plate: Plate) -> int | None:
    """How many data a subsampling plate stands for; None for a plain plate."""
    drawn = trace.nodes[plate.name]["fn"] if plate.name in trace.nodes else None
    if isinstance(drawn, _Subsample) and (drawn.subsample_size is not None or drawn.size != plate.size):
        return drawn.size
    return None


class _Given(Messenger):
    """Set the values of latent sites by name."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Split(Messenger):
    """Give what follows a draw a leaf of the same value, and keep the draw with its history."""

    def __init__(self, drawn: dict[str, Tensor]) -> None:
        super().__init__()
        self.drawn = drawn

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        self.drawn[msg["name"]] = msg["value"]
        leaf = msg["value"].detach()
        msg["value"] = leaf.requires_grad_() if leaf.is_floating_point() else leaf


class _InOrder(Messenger):
    """Give a plate over the data its batch in order, whatever it would draw or take over from another run.

    The batch is the subsample already, so no index is needed, and a subsampling plate would refuse to hold more copies
    than data.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and msg["name"] in self.names:
            size = fn.size if fn.subsample_size is None else fn.subsample_size
            msg["value"] = torch.arange(size, device=fn.device)


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
