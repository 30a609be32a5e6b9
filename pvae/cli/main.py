"""The command line: train, logp, compare, sample, selfcheck, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pvae.cli.endings import Commands
from pvae.cli.showing import data_words, say, show

app = typer.Typer(
    cls=Commands,
    help="Deep latent-variable models on Pyro: train a pair, estimate log p(x), draw samples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Run = Annotated[Path, typer.Argument(help="A folder that `pvae train` wrote.", show_default=False)]
Own = Annotated[str | None, typer.Option(help="Your own module:function or file.py:function, if the run has one.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data files.")]
Estimator = Annotated[str, typer.Option(help="A name, such as importance_sampling (see `pvae list`).")]
Seed = Annotated[int, typer.Option(help="Seed of all draws.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda; by default a GPU if there is one.")]


@app.command()
def train(
    data: Annotated[str, typer.Option(help="A name (see `pvae list`) or a path to .npy, .npz or .csv.")] = "digits",
    data_root: Root = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set if it is not there.")] = False,
    binarize: Annotated[str | None, typer.Option(help="dynamic, static or threshold.")] = None,
    kind: Annotated[str | None, typer.Option(help="Of your file's values: binary, unit, counts or real.")] = None,
    model: Annotated[str, typer.Option(help="A name, module:function or file.py:function.")] = "vae",
    guide: Annotated[str | None, typer.Option(help="As for a model; by default mean_field, or empty.")] = None,
    likelihood: Annotated[str | None, typer.Option(help="By default what fits the data's kind.")] = None,
    prior: Annotated[str | None, typer.Option(help="By default the standard normal (see `pvae list`).")] = None,
    num_components: Annotated[int | None, typer.Option(help="Of a mixture, or a prior's pseudo-inputs.")] = None,
    num_labels: Annotated[int | None, typer.Option(help="Training data that keep their label; by default all.")] = None,
    objective: Annotated[str, typer.Option(help="A name, such as elbo or iwae (see `pvae list`).")] = "elbo",
    num_samples: Annotated[int | None, typer.Option(help="Particles of the objective.")] = None,
    gradient: Annotated[str | None, typer.Option(help="pathwise, stl, dreg, score or mixed.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Of the score function: leave_one_out, neural, ...")] = None,
    latent_dim: Annotated[int, typer.Option(help="Dimensions of z.")] = 8,
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers, encoder first.")] = "200,200",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Data per step.")] = 100,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    schedule: Annotated[str | None, typer.Option(help="cosine, or leave out for a constant rate.")] = None,
    kl_warmup: Annotated[int, typer.Option(help="Steps in which the KL's weight rises from 0 to 1.")] = 0,
    inference_steps: Annotated[str, typer.Option(help="A number, alternating or aggressive.")] = "1",
    step_mode: Annotated[str, typer.Option(help="auto, eager, traced, compiled or graph.")] = "auto",
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the run; by default under runs/.")] = None,
    as_json: Json = False,
) -> None:
    """Train a pair, and write a run folder."""
    import pvae
    from pvae.cli import commands, options
    from pvae.cli.own_code import own_function
    from pvae.pair.contexts import seeded
    from pvae.runs import recipes
    from pvae.runs.files import amend_config
    from pvae.support.arguments import check_seed

    check_seed(seed)
    read = pvae.data.load(data, data_root, binarize, download, kind)  # type: ignore[arg-type]
    dataset = commands.fitted_to(model, read, num_labels, seed)
    turns = options.turns_of(inference_steps)
    widths = options.widths_of(hidden)
    recipe = recipes.recipe_for(dataset, model, guide, latent_dim, widths, likelihood, prior, num_components)
    with seeded(seed):
        pair = recipes.build(recipe, own_function(model), own_function(guide))
        chosen = commands.objective_for(objective, pair[0], dataset, num_samples, gradient, baseline)
    recipe["guide"] = guide = recipes.name_of(pair[1]) if guide is None else guide
    if not recipes.is_own(model):
        commands.start_at_mean(pair[0], dataset)
        commands.start_near_data(pair[0], dataset, seed)
    folder = options.run_folder(out, data, model, guide)
    understood = commands.understood(read, pair[0])
    if not as_json:
        say(understood)
    result = pvae.fit(
        *pair,
        dataset,
        objective=chosen,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=schedule,  # type: ignore[arg-type]
        kl_schedule=options.warmup_of(kl_warmup),
        inference_steps=turns,
        step_mode=step_mode,  # type: ignore[arg-type]
        device=options.device_of(device),
        seed=seed,
        out=folder,
        progress=not as_json,
    )
    origin = {"data": data, "data_root": str(data_root) if data_root else None, "binarize": binarize}
    said = {name: value for name, value in (("num_labels", num_labels), ("kind", kind)) if value is not None}
    amend_config(folder, recipe={**recipe, **origin, **said})
    rows = commands.summary(result, folder, model, guide, chosen)
    show(f"trained {folder}", {**rows, "understood": understood} if as_json else rows, as_json=as_json)


@app.command()
def logp(
    run: Run,
    estimator: Estimator = "importance_sampling",
    samples: Annotated[int | None, typer.Option(help="Particles per datum (K).")] = None,
    target_se: Annotated[float | None, typer.Option(help="Draw until each datum's error is below it, in nats.")] = None,
    max_samples: Annotated[int, typer.Option(help="Particles per datum, at most, with --target-se.")] = 1_000_000,
    subset: Annotated[int | None, typer.Option(help="Only the first so many test data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Data at once.")] = 100,
    data_root: Root = None,
    model: Own = None,
    guide: Own = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Estimate log p(x) of a run's test data, with errors and the k-hat of its weights."""
    import pvae
    from pvae.cli.commands import estimator_for, first_test_data, load_run, record_result
    from pvae.cli.options import device_of
    from pvae.support.arguments import check_seed

    check_seed(seed)
    chosen = estimator_for(estimator, samples)
    pair, dataset = load_run(run, model, guide, data_root, device_of(device))
    if subset is not None:
        dataset = first_test_data(dataset, subset)
    result = pvae.log_marginal(
        *pair,
        dataset,
        chosen,
        batch_size=batch_size,
        target_se=target_se,
        max_samples=max_samples,
        seed=seed,
        progress=not as_json,
    )
    summary = {"estimator": estimator, **result.summary()}
    record_result(run, summary)
    show(f"log p(x) of {run}, nats per datum", {**summary, "data": data_words(result.data)}, as_json=as_json)


@app.command()
def compare(
    run_a: Run,
    run_b: Run,
    estimator: Estimator = "importance_sampling",
    samples: Annotated[int | None, typer.Option(help="Particles per datum (K).")] = None,
    subset: Annotated[int | None, typer.Option(help="Only the first so many test data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Data at once.")] = 100,
    data_root: Root = None,
    model_a: Own = None,
    guide_a: Own = None,
    model_b: Own = None,
    guide_b: Own = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare log p(x) of the same test data under two runs: the paired difference, its error, a verdict."""
    from pvae.cli.commands import estimator_for, first_test_data, load_run
    from pvae.cli.compare_runs import compare_runs
    from pvae.cli.options import device_of
    from pvae.support.arguments import check_seed

    check_seed(seed)
    chosen = estimator_for(estimator, samples)
    device = device_of(device)
    loaded_a = load_run(run_a, model_a, guide_a, data_root, device, "-a")
    loaded_b = load_run(run_b, model_b, guide_b, data_root, device, "-b")
    if subset is not None:
        loaded_a, loaded_b = ((pair, first_test_data(dataset, subset)) for pair, dataset in (loaded_a, loaded_b))
    a, b, found = compare_runs(
        loaded_a, loaded_b, chosen, batch_size=batch_size, device=device, seed=seed, progress=not as_json
    )
    rows = {"run_a": str(run_a), "run_b": str(run_b), "estimator": estimator, "num_samples": a.num_samples}
    rows |= {"mean_a": a.mean, "mean_b": b.mean, **found.summary(), "data": data_words(found.data)}
    show("log p(x) of A - B, nats per datum", rows, as_json=as_json)


@app.command()
def sample(
    run: Run,
    num: Annotated[int, typer.Option(help="How many.")] = 64,
    data_root: Root = None,
    model: Own = None,
    guide: Own = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw samples and reconstruct test data; writes pictures (or arrays, for data that are no images)."""
    from pvae.cli.commands import load_run
    from pvae.cli.drawing import draw
    from pvae.support.arguments import check_seed

    check_seed(seed)
    pair, dataset = load_run(run, model, guide, data_root, "cpu")
    show(f"drawn from {run}", draw(run, pair, dataset, num, seed), as_json=as_json)


@app.command()
def selfcheck(
    samples: Annotated[int, typer.Option(help="Draws per datum of most estimators, at least 1000.")] = 20_000,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Hold every estimator, bound and gradient to known answers on this machine; exit 1 if one is off."""
    from pvae.selfcheck import run, summary
    from pvae.selfcheck import show as show_rows
    from pvae.support.arguments import check_seed

    check_seed(seed)
    rows = run(device, seed, num_samples=samples, progress=not as_json)
    found = summary(rows)
    if as_json:
        show("", found, as_json=True)
    else:
        show_rows(rows)
    if not found["passed"]:
        raise typer.Exit(1)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Show every model, likelihood, guide, objective, estimator and data set, one line each."""
    from pvae.cli.commands import catalogue

    found = catalogue()
    if as_json:
        show("", found, as_json=True)
        return
    for heading, rows in found.items():
        show(heading, rows)
