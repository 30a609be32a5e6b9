"""What the programs hold, and what pvae did with them: `python -m tests.programs.coverage 1000` prints the table."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import hypothesis
import pyro
from hypothesis import HealthCheck, Phase, given, settings

from tests.programs.checks import check_weights
from tests.programs.program import DATA, Program
from tests.programs.strategies import programs


def search(
    check: Callable[[Program], str], num_programs: int, seed: int, strategy: Any = None
) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Check so many random programs; what came of them, by feature, and in all.

    Raises: the error of the simplest program that fails.
    """
    by_feature: dict[str, Counter[str]] = defaultdict(Counter)
    outcomes: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=num_programs,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(programs() if strategy is None else strategy)
    def examine(program: Program) -> None:
        with pyro.get_param_store().scope():
            outcome = check(program)
        outcomes[outcome] += 1
        for feature in features(program):
            by_feature[feature][outcome] += 1

    examine()
    return by_feature, outcomes


def features(program: Program) -> list[str]:
    """What a program is made of, in words."""
    sites, plates = program.sites, program.plates
    vectorised = [plate for plate in plates if not plate.is_loop]
    masks = [mask for body in (program.model, program.guide) for mask in body.masks]
    found = {
        "any program": True,
        "the data plate at dim -1": program.data_dim == -1,
        "the data plate at dim -2": program.data_dim == -2,
        "the data plate at dim -3": program.data_dim == -3,
        "dims left to Pyro": not all([program.writes_dim, *(plate.writes_dim for plate in vectorised)]),
        "data plate with subsample_size=len(x)": program.subsampling == "size",
        "data plate with subsample=index": program.subsampling == "index",
        "one datum": program.num_data == 1,
        "two inner plates": len(vectorised) > 1,
        "inner plates of equal sizes": len({plate.size for plate in vectorised}) < len(vectorised),
        "an inner plate as large as the batch": any(plate.size == program.num_data for plate in vectorised),
        "an inner plate opened before the data plate": any(
            site.plates.index(DATA) for site in sites if DATA in site.plates
        ),
        "a sequential plate": any(plate.how == "sequential" for plate in plates),
        "a pyro.markov loop": any(plate.how == "markov" for plate in plates),
        "a chain": any(site.chain for site in sites),
        "a subsampled inner plate": any(plate.how == "subsampled" for plate in plates),
        "a mask per datum on all sites": bool(program.model.masks and program.guide.masks)
        and all(mask.kind == "datum" for mask in masks),
        "a mask on all sites of one function": bool(program.model.masks) != bool(program.guide.masks),
        "a mask within a datum": any(mask.kind in ("within", "entries") for site in sites for mask in site.masks),
        "dist.mask": any(mask.how == "dist" for site in sites for mask in site.masks),
        "a mask on a latent site": any(site.masks for site in sites if site.role == "latent"),
        "a scale on all sites": bool(program.model.scales and program.guide.scales),
        "a scale per datum": any(
            scale.kind == "datum"
            for scale in (*program.model.scales, *program.guide.scales, *(s for site in sites for s in site.scales))
        ),
        "scales on some sites": any(site.scales for site in sites),
        "pyro.factor in the model": any(site.role == "factor" for site in program.model.sites),
        "pyro.factor in the guide": any(site.role == "factor" for site in program.guide.sites),
        "pyro.deterministic": any(site.role == "deterministic" for site in sites),
        "sites summed out": program.states() > 1,
        "sites summed out in inner plates": any(site.role == "summed" and len(site.plates) > 1 for site in sites),
        "drawn discrete sites": any(
            site.role == "latent" and site.family in ("bernoulli", "categorical") for site in sites
        ),
        "a guide that draws nothing": not program.guide.sites,
        "event dims": any(site.event for site in sites),
        "poutine.condition": any(site.role == "conditioned" for site in sites),
        "LocScaleReparam": any(site.centered is not None for site in sites),
        "draws outside the prior's support": any(s.family == "uniform" and s.role == "latent" for s in sites),
        "data outside a likelihood's support that the latents move": any(
            site.family == "uniform" and site.is_given for site in sites
        ),
        "nets of one run's dims alone": program.picky,
        "a wrapped function": any((program.model.wrapper, program.guide.wrapper)),
        "config_enumerate": "config_enumerate" in (program.model.wrapper, program.guide.wrapper),
        "PyroModule": "pyro_module" in (program.model.numbers, program.guide.numbers),
        "frozen parameters": "frozen" in (program.model.numbers, program.guide.numbers),
        "bare pyro.param": "param" in (program.model.numbers, program.guide.numbers),
        f"a breach: {program.breach}": bool(program.breach),
    }
    return [feature for feature, holds in found.items() if holds]


def table(by_feature: dict[str, Counter[str]]) -> str:
    """What came of the programs with each feature, as a Markdown table, with the reasons of refusals below."""
    reasons = [reason for reason in Counter(itertools.chain(*by_feature.values())) if reason != "answered"]
    lines = ["| programs with | made | answered rightly | refused |", "|---|---|---|---|"]
    for feature, outcomes in sorted(by_feature.items(), key=lambda item: (item[0].startswith("a breach"), item[0])):
        refused = ", ".join(f"{outcomes[each]} ({n + 1})" for n, each in enumerate(reasons) if outcomes[each])
        lines.append(f"| {feature} | {outcomes.total()} | {outcomes['answered']} | {refused or 0} |")
    return "\n".join([*lines, "", *(f"({n + 1}) {reason}" for n, reason in enumerate(reasons))])


if __name__ == "__main__":
    print(table(search(check_weights, int(sys.argv[1]), seed=0)[0]))
