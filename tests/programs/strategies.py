"""Random programs, as hypothesis strategies: plates and sites first, then handlers, then breaches of the contract."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from tests.programs.handlers import Draw, breached, handled, seldom, with_allocated_dims, wrapped
from tests.programs.program import DATA, STATES, Body, Mask, Plate, Program, Site

_MOST_STATES = 16
_LATENT = ("normal", "normal", "normal", "bernoulli", "categorical", "lognormal", "gamma", "beta", "uniform")
_OBSERVED = ("normal", "normal", "bernoulli", "poisson", "categorical", "gamma", "beta", "uniform")
_LETTERS = {"latent": "z", "summed": "y", "observed": "x", "factor": "f", "deterministic": "d"}
_NUMBERS = st.sampled_from((0.0, 0.4, -0.7))
_WEIGHTS = st.sampled_from((0.6, -0.8))
_SPREADS = st.sampled_from((1.0, 0.6, 1.7))


@st.composite
def programs(draw: Draw) -> Program:
    """A random program; about one in ten breaks the contract."""
    num_data = draw(st.integers(1, 7))
    data_dim = draw(st.sampled_from((-1, -1, -2, -3)))
    subsampling = draw(st.sampled_from(("", "", "", "size", "index")))
    plates = _plates(draw, num_data, data_dim)
    model = _model(draw, plates)
    guide = _guide(draw, model)
    program = Program(
        num_data=num_data,
        model=Body(model, numbers=draw(_HOMES)),
        guide=Body(guide, numbers=draw(_HOMES)),
        plates=plates,
        data_dim=data_dim,
        subsampling=subsampling,
        num_more=draw(st.integers(0, 3)) if subsampling else 0,
        picky=seldom(draw, 8),
        seed=draw(st.integers(0, 3)),
        num_samples=draw(st.integers(1, 4)),
    )
    program = breached(draw, wrapped(draw, handled(draw, program)))
    return with_allocated_dims(draw, program)


@st.composite
def solvable_programs(draw: Draw, *, discrete: bool) -> Program:
    """A random program whose log p(x) is known."""
    return solvable(draw(programs()), discrete=discrete)


_HOMES = st.sampled_from(("tensor", "param", "module", "frozen", "pyro_module"))


def _plates(draw: Draw, num_data: int, data_dim: int) -> tuple[Plate, ...]:
    free = [dim for dim in (-1, -2, -3) if dim != data_dim]
    dims = draw(st.permutations(free))[: draw(st.integers(0, 2))]
    # Equal sizes are drawn on purpose: they are where dims are mistaken for each other.
    sizes = st.sampled_from((num_data, num_data, 2, 3, 1))
    plates = [Plate(name, draw(sizes), dim) for name, dim in zip("ab", dims, strict=False)]
    if plates and seldom(draw, 25):
        plates[0] = dataclasses.replace(plates[0], how="subsampled")
    if seldom(draw, 3):
        plates.append(Plate("t", draw(st.integers(1, 3)), 0, draw(st.sampled_from(("sequential", "markov")))))
    return tuple(plates)


def _model(draw: Draw, plates: tuple[Plate, ...]) -> tuple[Site, ...]:
    num_latents = draw(st.integers(1, 3))
    roles = ["latent"] * num_latents + ["observed"] * draw(st.integers(1, 2))
    roles += [role for role, times in (("summed", 4), ("factor", 5), ("deterministic", 6)) if seldom(draw, times)]
    roles += ["summed"] * ("summed" in roles and seldom(draw, 2))
    if "summed" in roles and seldom(draw, 4):
        roles = [role for role in roles if role != "latent"]
    if seldom(draw, 3):
        roles = draw(st.permutations(roles))
    sites: list[Site] = []
    states = 1
    for number, role in enumerate(roles):
        site = _site(draw, f"{_LETTERS[role]}{number}", role, plates, sites)
        if role == "summed":
            entries = _entries(plates, site)
            if states * STATES[site.family] ** entries > _MOST_STATES:
                site = dataclasses.replace(
                    site, plates=(DATA,), chain=False, parents=_inside(site.parents, sites, (DATA,))
                )
                entries = 1
            if states * STATES[site.family] > _MOST_STATES:
                continue
            states *= STATES[site.family] ** entries
        sites.append(site)
    return tuple(sites)


def _entries(plates: tuple[Plate, ...], site: Site) -> int:
    count = 1
    for plate in plates:
        count *= plate.size if plate.name in site.plates else 1
    return count


def _site(draw: Draw, name: str, role: str, plates: tuple[Plate, ...], earlier: list[Site]) -> Site:
    inner = [plate for plate in plates if draw(st.booleans())]
    opened = tuple(draw(st.permutations([DATA, *(plate.name for plate in inner)])))
    parents = tuple(site.name for site in earlier if site.role != "factor" and draw(st.booleans()))
    if role in ("latent", "observed"):
        family = draw(st.sampled_from(_LATENT if role == "latent" else _OBSERVED))
    else:
        family = draw(st.sampled_from(tuple(STATES))) if role == "summed" else "normal"
    parents = _inside(parents, earlier, opened)
    if role == "observed" and not any(each.role == "latent" for each in earlier if each.name in parents):
        # Data outside of a support that no latent moves are the user's mistake.
        family = "normal" if family == "uniform" else family
    has_event = role in ("latent", "observed") and family != "categorical" and seldom(draw, 4)
    centered = None
    if role == "latent" and family == "normal" and not any(plate.is_loop for plate in inner) and seldom(draw, 6):
        centered = draw(st.sampled_from((0.0, 0.3)))
    return Site(
        name,
        "conditioned" if role == "observed" and seldom(draw, 6) else role,
        family,
        opened,
        parents,
        chain=any(plate.how == "markov" for plate in inner) and role != "factor" and draw(st.booleans()),
        event=draw(st.integers(1, 3)) if has_event else 0,
        bias=draw(_NUMBERS),
        slope=draw(_NUMBERS),
        weight=draw(_WEIGHTS),
        spread=draw(_SPREADS),
        centered=centered,
    )  # fmt: skip


def _inside(parents: tuple[str, ...], earlier: list[Site], opened: tuple[str, ...]) -> tuple[str, ...]:
    """The parents a site may have: a summed one, and what depends on it, only where their plates are the site's too."""
    by_name = {site.name: site for site in earlier}

    def fits(name: str) -> bool:
        parent = by_name[name]
        return parent.role not in ("summed", "deterministic") or set(parent.plates) <= set(opened)

    return tuple(name for name in parents if fits(name))


def _guide(draw: Draw, model: tuple[Site, ...]) -> tuple[Site, ...]:
    latents = [site for site in model if site.role == "latent"]
    if seldom(draw, 3):
        latents = draw(st.permutations(latents))
    sites: list[Site] = []
    for site in latents:
        parents = tuple(each.name for each in sites if draw(st.booleans()))
        sites.append(
            dataclasses.replace(
                site,
                family="normal" if site.family == "uniform" else site.family,
                plates=tuple(draw(st.permutations(site.plates))),
                parents=parents,
                chain=site.chain and draw(st.booleans()),
                bias=draw(_NUMBERS),
                slope=draw(_NUMBERS),
                weight=draw(_WEIGHTS),
                spread=draw(_SPREADS),
            )
        )
    if sites and seldom(draw, 6):
        first = Site("h", "deterministic", plates=sites[0].plates, parents=(sites[0].name,), bias=draw(_NUMBERS))
        sites = [
            sites[0],
            first,
            *(dataclasses.replace(s, parents=_inside((*s.parents, "h"), [first, *sites], s.plates)) for s in sites[1:]),
        ]
    if sites and seldom(draw, 6):
        sites.append(
            Site("g", "factor", plates=sites[-1].plates, parents=(sites[-1].name,), bias=draw(_NUMBERS), slope=0.4)
        )
    return tuple(sites)


def solvable(program: Program, *, discrete: bool) -> Program:
    """The program with latents whose log p(x) is known, and without masks but on its observed sites."""

    def site_of(site: Site) -> Site:
        masks: tuple[Mask, ...] = site.masks if site.is_given and site.family != "factor" else ()
        family = site.family
        if site.role == "latent":
            family = "bernoulli" if discrete else "normal"
        elif site.role in ("observed", "conditioned") and not discrete:
            family = "normal"
        centered = None if discrete else site.centered
        return dataclasses.replace(site, family=family, masks=masks, centered=centered, breach="")

    def body_of(body: Body, keeps_masks: bool) -> Body:
        sites = [site_of(site) for site in body.sites]
        sites = [site if keeps_masks else dataclasses.replace(site, masks=()) for site in sites]
        return dataclasses.replace(body, sites=tuple(sites), masks=())

    return dataclasses.replace(program, model=body_of(program.model, True), guide=body_of(program.guide, False))
