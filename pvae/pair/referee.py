"""Whether the log weights of a pair are what Pyro says they are, tried on a few data before they are trusted.

Example: 5 data and 3 particles of a pair over x (B, 64) and z (B, 8). One run with 3 particles gives draws z (3, 5, 8)
and, per site, log densities (3, 5). At these same draws,

- the sum over data of each row has to be what Pyro's own trace gives for that site, scales taken out,
- a column has to be that of its datum run alone, and each of the 5 that of the data run in another order,
- each of the 3 rows has to be that of a run with one particle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pvae.pair.contexts import in_one_line, seeded
from pvae.pair.guards import Guard
from pvae.pair.layout import Layout
from pvae.pair.pair_run import PairRun
from pvae.pair.run import Stochastic, run_pair, setting, trace_guide, trace_model
from pvae.pair.scores import agree
from pvae.pair.sites import Batch, plate_named, random_sites, score_all
from pvae.pair.sums.enumerable import entry_by_entry
from pvae.support.refusals import ContractError

__all__ = ["NoParticles", "approve"]

_LEAST_DATA, _MOST_SIZES = 5, 4096

Draws = Mapping[str, Tensor]
Terms = Mapping[tuple[str, str, str], Tensor]


class NoParticles(ValueError):
    """A pair that gives right numbers for one particle at a time only."""


def approve(
    model: Stochastic,
    guide: Stochastic | None,
    batch: Batch,
    layout: Layout,
    modules: Sequence[nn.Module],
    many: bool,
) -> Layout:
    """The layout, with the way of running particles that gives the right numbers; `many` if there are several.

    `modules` are those that the pair uses. Call it without gradients, nets in evaluation mode.

    Raises: ValueError, with the site and the reason, where no way does.
    """
    if not layout.model_plate:  # it states nothing, and has no log weights
        return layout
    return _Referee(model, guide, batch, layout, modules).verdict(many)


class _Referee:
    def __init__(
        self,
        model: Stochastic,
        guide: Stochastic | None,
        batch: Batch,
        layout: Layout,
        modules: Sequence[nn.Module],
    ) -> None:
        self.model, self.guide, self.layout = model, guide, layout
        self.num_samples, self.batch = _trial(model, guide, batch, layout, modules)
        self.num_data = len(self.batch[0])

    def verdict(self, many: bool) -> Layout:
        # States are run as particles are, one after the other.
        has_states = self.layout.summed is not None or self.layout.branching is not None
        if not many and not has_states:
            run = self._run(self.layout, 1, self.batch)
            draws = self._draws(run)
            at_draws = self._run(self.layout, 1, self.batch, draws) if self._has_noise(draws) else run
            compared = self._require_agreement(draws, at_draws)
            self._without_inverse(self.layout, run, compared)
            return self.layout
        failures: list[Exception] = []
        found = entry_by_entry(self.model, self.guide, self.batch, self.layout)
        for layout in [replace(self.layout, vectorizes=each) for each in (True, False)] if found is None else [found]:
            try:
                run = self._run(layout, self.num_samples, self.batch)
                draws = self._draws(run)
                given = draws if run.states is not None or self._has_noise(draws) else None
                rows = (run if given is None else self._run(layout, self.num_samples, self.batch, given)).terms()
            except Exception as error:  # whatever a net trips over, it does not run so
                failures.append(error)
                continue
            if layout.vectorizes and not _holds_particles(run):
                failures.append(ValueError("a site has one draw for all particles"))
                continue
            single = self._single(draws)
            if (differs := _differs(rows, single)) is None:
                self._without_inverse(layout, run, single)
                return layout
            failures.append(ValueError(f"{differs} beside other particles than alone"))
        if has_states:
            with in_one_line(self.batch):
                raise failures[-1]
        self.verdict(many=False)
        reason = " ".join(str(failures[-1]).partition("Trace Shapes:")[0].split())
        raise NoParticles(
            f"the pair runs with one particle at a time only: {reason}",
            "let its functions take a batch of any "
            "length, or its nets any number of leading dims, or draw one particle",
        )

    def _has_noise(self, draws: Draws) -> bool:
        """Whether the pair draws anything beside its sites, such as the entries that a plate looks at.

        Then two runs compare only if all draws of sites are given to both, and they draw the rest alike.
        """
        given = {name: value[:1] for name, value in draws.items()}
        once, again = (self._run(self.layout, 1, self.batch, given, seed).terms() for seed in (1, 2))
        return _differs(once, again) is not None

    def _single(self, draws: Draws) -> Terms:
        """The log densities of K separate runs at these draws, each (K, B), once Pyro and single data agree to them."""
        runs = []
        for row in range(len(next(iter(draws.values()))) if draws else 1):
            given = {name: value[row : row + 1] for name, value in draws.items()}
            run = self._run(self.layout, 1, self.batch, given)
            runs.append(self._require_agreement(given, run) if row == 0 else self._by_pyro(run))
        return _joined(runs, 0)

    def _require_agreement(self, given: Draws, run: PairRun) -> Terms:
        """The log densities of a run with one particle, once Pyro and single data agree to them.

        What has no density at values that it did not draw itself is left out.
        """
        terms = self._by_pyro(run)
        try:
            others = self._by_datum(given, terms)
        except ValueError:
            self._require_repeatable(given)
            raise
        return {key: value for key, value in terms.items() if key in others}

    def _by_pyro(self, run: PairRun) -> Terms:
        """Compare a run with what Pyro's trace makes of its sites, which knows no rows and columns.

        Data whose masks do not count in the weights count 0 there.
        """
        terms, skipped = run.terms(), run.skipped
        for function, sites in (("model", run.model), ("guide", run.guide)):
            for name, site in sites.items():
                # What lies outside its support weighs zero, whatever Pyro makes of it.
                leaves = "outside" in site and bool(site["outside"].any())
                if (found := terms.get((function, name, "log density"))) is None or leaves:
                    continue
                total = (found if skipped is None else found[:, ~skipped]).sum()
                own = poutine.Trace()
                own.add_node(name, **{**site, "scale": 1.0})
                if not agree(total, expected := own.log_prob_sum()):
                    raise ContractError(
                        f"site '{name}' in the {function}: its log density per datum adds up to {total:.6g}, "
                        f"Pyro's own to {expected:.6g}",
                        "keep every dim of its distribution in a plate or to_event(n)",
                    )

        return terms

    def _require_repeatable(self, given: Draws) -> None:
        once, again = (self._run(self.layout, 1, self.batch, given).terms() for _ in range(2))
        if (differs := _differs(once, again)) is not None:
            raise ContractError(
                f"{differs} in each run at the same draws",
                "draw what is random by pyro.sample, or before the pair runs",
            )

    def _by_datum(self, given: Draws, terms: Terms) -> Terms:
        """Compare with the data one by one, and in another order; where they cannot run so, with one datum replaced."""
        few = sorted({0, self.num_data - 1})
        order = torch.arange(self.num_data, device="cpu").flip(0)
        try:
            alone = [self._at(torch.tensor([index], device="cpu"), given) for index in few]
            turned = self._at(order, given)
        except Exception:  # it runs on exactly these data
            return self._by_replacing(given, terms)
        columns = _joined(alone, 1)
        self._require_same({key: value[:, few] for key, value in terms.items()}, columns, "alone")
        self._require_same({key: value[:, order] for key, value in terms.items()}, turned, "in another order")
        return columns

    def _by_replacing(self, given: Draws, terms: Terms) -> Terms:
        if self.num_data == 1:
            return terms
        others = self._run(self.layout, 1, self._with_another(), given).terms()
        self._require_same(
            {key: value[:, 1:] for key, value in terms.items()},
            {key: value[:, 1:] for key, value in others.items()},
            "where the datum before it is another",
        )
        return others

    def _without_inverse(self, layout: Layout, run: PairRun, terms: Terms) -> None:
        """Compare what has a density at its own draws alone with a run of equal noise where one datum is replaced."""
        own = {key: value for key, value in run.terms().items() if key not in terms} if run.states is None else {}
        if own and self.num_data > 1:
            others = self._run(layout, run.num_samples, self._with_another(), None).terms()
            self._require_same(
                {key: value[:, 1:] for key, value in own.items()},
                {key: others[key][:, 1:] for key in own},
                "where the datum before it is another",
            )

    def _with_another(self) -> Batch:
        """The data, the second in the place of the first, too."""
        rows = torch.arange(self.num_data, device="cpu")
        rows[0] = 1
        return tuple(part[rows] for part in self.batch)

    def _at(self, rows: Tensor, given: Draws) -> Terms:
        """The log densities of some of the data, at their draws."""
        batch = tuple(part[rows] for part in self.batch)
        return self._run(self.layout, 1, batch, {name: value[:, rows] for name, value in given.items()}).terms()

    def _require_same(self, terms: Terms, others: Terms, what: str) -> None:
        for key in _common(terms, others):
            if not agree(terms[key], others[key]):
                apart = (terms[key] - others[key]).abs().nan_to_num(nan=torch.inf)
                bad = torch.where(terms[key] == others[key], 0.0, apart)[0].argmax()
                raise ContractError(
                    f"site '{key[1]}' in the {key[0]}: a datum has the {key[2]} {terms[key][0, bad]:.6g} within its "
                    f"batch and {others[key][0, bad]:.6g} {what}, so data are not independent",
                    "compute what belongs to a datum from that datum and from parameters alone",
                )

    def _run(
        self, layout: Layout, num_samples: int, batch: Batch, given: Draws | None = None, seed: int = 1
    ) -> PairRun:
        with seeded(seed, batch[0].device), pyro.validation_enabled(False):
            return run_pair(self.model, self.guide, batch, num_samples, layout, given=given)

    def _draws(self, run: PairRun) -> Draws:
        """The draws of a run, auxiliary ones included, each (K, B, ...), with some for what it sums out."""
        layout = run.layout
        # What the guide drew, not what a guard made of it for the model.
        drawn = run.latents | {
            name: layout.collect(name, site["value"], run.num_samples) for name, site in run.guide.items()
        }
        return drawn | self._summed(drawn, run.num_samples)

    def _summed(self, given: Draws, num_samples: int) -> dict[str, Tensor]:
        """Draws of what is summed out, from the model itself, each (K, B, ...)."""
        summed = {} if self.layout.summed is None else self.layout.summed.tables
        rows: dict[str, list[Tensor]] = {name: [] for name in summed}
        for row in range(num_samples if summed else 0):
            own = {name: value[row : row + 1] for name, value in given.items()}
            with setting(self.layout, own), seeded(row, self.batch[0].device):
                guide_trace = trace_guide(self.guide, self.batch)
                sites = random_sites(trace_model(self.model, guide_trace, self.batch, Guard(self.layout.guarded)))
            for name in summed:
                rows[name].append(self.layout.collect(name, sites[name]["value"], 1))
        return {name: torch.cat(values) for name, values in rows.items()}


def _holds_particles(run: PairRun) -> bool:
    """Whether every latent of a wide run has a dim of particles."""
    sites = [site for site in (run.model | run.guide).values() if not site["is_observed"]]
    return all(site["value"].dim() - run.layout.nesting - site["fn"].event_dim >= 1 for site in sites)


def _joined(runs: Sequence[Terms], dim: int) -> Terms:
    """The terms that all runs have, one run after the other along a dim."""
    shared = [key for key in runs[0] if all(key in terms for terms in runs)]
    return {key: torch.cat([terms[key] for terms in runs], dim) for key in shared}


def _common(terms: Terms, others: Terms) -> list[tuple[str, str, str]]:
    return [key for key in terms if key in others]


def _differs(terms: Terms, others: Terms) -> str | None:
    """What is another in the first site that is not the same, in words."""
    for key in _common(terms, others):
        if not agree(terms[key], others[key]):
            return f"site '{key[1]}' has another {key[2]}"
    return None


def _trial(
    model: Stochastic, guide: Stochastic | None, batch: Batch, layout: Layout, modules: Sequence[nn.Module]
) -> tuple[int, Batch]:
    """How many particles and which data to try: numbers that are no width of a net, which would take them for features.

    A pair over exactly these data, such as one with a parameter per datum, is tried on the batch itself.
    """
    widths = {size for module in modules for leaf in module.parameters(recurse=False) for size in leaf.shape}
    widths |= {size for part in batch for size in part.shape[1:]}
    free = [number for number in range(2, _MOST_SIZES) if number not in widths]
    num_samples, num_data = free[0], next(number for number in free[1:] if number >= _LEAST_DATA)
    rows = torch.linspace(0, len(batch[0]) - 1, num_data, device=batch[0].device).round().long()
    trial = tuple(part[rows] for part in batch)
    try:
        guide_trace = trace_guide(guide, trial)
        model_trace = trace_model(model, guide_trace, trial, Guard())
        for trace, name in ((guide_trace, layout.guide_plate), (model_trace, layout.model_plate)):
            if name is not None:
                plate_named(random_sites(trace), name, num_data)
            score_all(trace)
    except Exception:  # the pair has just run on the batch, so it is the number of data that fails
        return num_samples, batch
    return num_samples, trial
