"""Masks, scales, wrappers and breaches for a random program, and the dims that are left to Pyro."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.programs.program import DATA, Body, Mask, Plate, Program, Scale, Site

Draw = Callable[[st.SearchStrategy[Any]], Any]

_BREACHES = ("mean", "neighbour", "count", "order", "particles", "outside", "again")


def seldom(draw: Draw, times: int) -> bool:
    """Whether to do what is done once in so many times, and not in the simplest program."""
    return draw(st.integers(0, times - 1)) == times - 1


def handled(draw: Draw, program: Program) -> Program:
    """With masks and scales: on all sites of both functions, of one, or on some sites."""
    model, guide = program.model, program.guide
    if seldom(draw, 3):
        mask = Mask(draw(st.sampled_from(("datum", "datum", "datum", "off", "on"))))
        where = draw(st.sampled_from(("both", "both", "model", "guide")))
        model = dataclasses.replace(model, masks=(mask,) if where != "guide" else ())
        guide = dataclasses.replace(guide, masks=(mask,) if where != "model" else ())
    if seldom(draw, 4):
        scale = Scale(draw(st.sampled_from(("number", "tensor", "datum"))), draw(st.sampled_from((0.5, 3.0))))
        where = draw(st.sampled_from(("both", "both", "model", "guide")))
        model = dataclasses.replace(model, scales=(scale,) if where != "guide" else ())
        guide = dataclasses.replace(guide, scales=(scale,) if where != "model" else ())
    some = draw(st.sampled_from(("", "", "model", "guide", "both")))
    if some in ("model", "both"):
        model = dataclasses.replace(model, sites=tuple(_handle_site(draw, site) for site in model.sites))
    if some in ("guide", "both"):
        guide = dataclasses.replace(guide, sites=tuple(_handle_site(draw, site) for site in guide.sites))
    return dataclasses.replace(program, model=model, guide=guide)


def _handle_site(draw: Draw, site: Site) -> Site:
    if not site.is_random:
        return site
    masks: tuple[Mask, ...] = ()
    scales: tuple[Scale, ...] = ()
    if seldom(draw, 2):
        plain = site.role not in ("summed", "factor") and site.centered is None
        how = draw(st.sampled_from(("poutine", "poutine", "dist"))) if plain else "poutine"
        masks = (Mask(draw(st.sampled_from(("datum", "within", "within", "entries", "off", "False"))), how),)
    if seldom(draw, 3):
        scales = (
            Scale(draw(st.sampled_from(("number", "tensor", "datum", "within"))), draw(st.sampled_from((0.5, 2.0)))),
        )
    return dataclasses.replace(site, masks=masks, scales=scales)


def wrapped(draw: Draw, program: Program) -> Program:
    wrappers = st.sampled_from(("", "", "", "", "partial", "lambda", "scale", "config_enumerate"))
    return dataclasses.replace(
        program,
        model=dataclasses.replace(program.model, wrapper=draw(wrappers)),
        guide=dataclasses.replace(program.guide, wrapper=draw(wrappers)),
    )


def breached(draw: Draw, program: Program) -> Program:
    """One program in ten breaks the contract at one of its sites."""
    if not seldom(draw, 10):
        return program
    breach = draw(st.sampled_from(_BREACHES))
    names = [site.name for site in program.guide.sites if site.role == "latent"]
    if breach == "outside" and names:
        bodies = [
            dataclasses.replace(
                body,
                sites=tuple(
                    dataclasses.replace(
                        site,
                        breach=breach if site.name == names[0] else "",
                        plates=tuple(plate for plate in site.plates if plate != DATA or site.name != names[0]),
                        slope=0.0 if site.name == names[0] else site.slope,
                        parents=() if site.name == names[0] else site.parents,
                        masks=() if site.name == names[0] else site.masks,
                        scales=() if site.name == names[0] else site.scales,
                    )
                    for site in body.sites
                ),
            )
            for body in (program.model, program.guide)
        ]
        bodies = [dataclasses.replace(body, masks=(), scales=()) for body in bodies]
        return dataclasses.replace(program, model=bodies[0], guide=bodies[1], subsampling="", num_more=0)
    if breach == "outside":
        return program
    where = draw(st.sampled_from(("model", "guide"))) if program.guide.sites and breach != "again" else "model"
    body: Body = getattr(program, where)
    sites = list(body.sites)
    at = max(i for i, site in enumerate(sites) if site.role in ("latent", "observed", "summed", "conditioned"))
    sites[at] = dataclasses.replace(sites[at], breach=breach, masks=())
    if breach == "again":
        free = [dim for dim in (-1, -2, -3, -4) if dim not in (program.data_dim, *(p.dim for p in program.plates))]
        program = dataclasses.replace(
            program,
            plates=(*program.plates, Plate("again", program.num_data, free[0], "again")),
            subsampling="",
            num_more=0,
        )
        sites[at] = dataclasses.replace(
            sites[at], role="observed", family="normal", plates=(*sites[at].plates, "again")
        )
        # Where a mask leaves all data out, the plate does no harm.
        body = dataclasses.replace(body, masks=())
    return dataclasses.replace(program, **{where: dataclasses.replace(body, sites=tuple(sites))})


def with_allocated_dims(draw: Draw, program: Program) -> Program:
    """Leave some dims to Pyro, where it allocates the very dims that the program says."""
    names = [DATA, *(plate.name for plate in program.plates if not plate.is_loop)]
    unwritten = {name for name in names if draw(st.booleans())}
    dims = {DATA: program.data_dim} | {plate.name: plate.dim for plate in program.plates}
    for body in (program.model, program.guide):
        seen: set[str] = set()
        for site in body.sites:
            open_dims: set[int] = set()
            for name in (name for name in site.plates if name in names):
                rightmost = next(dim for dim in range(-1, -9, -1) if dim not in open_dims)
                if name not in seen and rightmost != dims[name]:
                    unwritten.discard(name)
                seen.add(name)
                open_dims.add(dims[name])
    return dataclasses.replace(
        program,
        writes_dim=DATA not in unwritten,
        plates=tuple(dataclasses.replace(plate, writes_dim=plate.name not in unwritten) for plate in program.plates),
    )
