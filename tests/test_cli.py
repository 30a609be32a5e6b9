"""The command line: what each command writes and prints, against the same numbers from Python."""

import importlib
import inspect
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

import pvae
from pvae.cli.main import app
from pvae.cli.own_code import own_function
from pvae.pair.contexts import seeded

ROOT = Path(__file__).parents[1]
TINY = ["--epochs", 2, "--hidden", 16, "--latent-dim", 2, "--batch-size", 500, "--step-mode", "eager"]
K = pvae.estimators.ImportanceSampling(40)
ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).numpy()

# A pair as in Pyro's examples: plain functions, and nets that they close over.
OWN_PAIR = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


def make():
    decoder, encoder = nn.Linear(2, 5), nn.Linear(5, 2)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide


model, guide = make()
"""


def run(*words):
    """What a command prints; it must succeed and say nothing on standard error."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def run_json(*words):
    """The one JSON object that a command prints, on one line."""
    text = run(*words, "--json")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return json.loads(text)


def refusal(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2
    # Before it trains, a command says what it understood of the data.
    assert result.stdout.count("\n") <= (words[0] == "train")
    return result.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_in_a_shell(*words, code="from pvae.cli.main import app; app()"):
    """A command in a process of its own, which imports nothing that this one has."""
    command = [sys.executable, "-c", code, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


@pytest.fixture
def own_pair(tmp_path):
    path = tmp_path / "own_pair.py"
    path.write_text(OWN_PAIR)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on binary digits, and what `train --json` printed."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return out, run_json("train", *TINY, "--binarize", "dynamic", "--seed", 5, "--out", out)


@pytest.fixture
def digits_run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "digits")


# --- train


def test_train_writes_a_run_and_prints_one_object(trained):
    out, printed = trained
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.jsonl", "checkpoint.safetensors"}
    metrics = lines(out / "metrics.jsonl")
    # 1,297 training digits in batches of 500 are 3 steps an epoch.
    assert [(record["epoch"], record["step"]) for record in metrics] == [(1, 3), (2, 6)]
    assert metrics[0]["train_bound"] < metrics[1]["train_bound"] < 0
    expected = {
        "run": str(out),
        "understood": "digits: 1,797 data of 1 x 8 x 8, unit, binarize dynamic; Bernoulli",
        "data": "digits train, binarize dynamic",
        "model": "vae",
        "guide": "mean_field",
        "objective": "ELBO(1)",
        "epochs": 2,
        "steps": 6,
        "step_mode": "eager",
        "seconds": round(metrics[1]["seconds"], 2),
        "train_bound_nats": metrics[1]["train_bound"],
        "valid_bound_nats": metrics[1]["valid_bound"],
    }
    assert printed == expected
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"] == {
        "model": "vae",
        "guide": "mean_field",
        "x_shape": [1, 8, 8],
        "latent_dim": 2,
        "hidden": [16],
        "dtype": "float32",
        "likelihood": "bernoulli",
        "data": "digits",
        "data_root": None,
        "binarize": "dynamic",
    }
    assert (config["seed"], config["steps"], config["batch_size"]) == (5, 6, 500)


def test_decoder_starts_at_the_data_mean(tmp_path):
    """One step at a rate of next to nothing leaves the last bias where it started: at the logit of the mean."""
    words = ["--epochs", 1, "--hidden", 16, "--latent-dim", 2, "--batch-size", 1297, "--lr", 1e-9]
    run("train", *words, "--binarize", "threshold", "--step-mode", "eager", "--out", tmp_path / "run")
    model, _ = pvae.load(tmp_path / "run")
    mean = pvae.data.load("digits", binarize="threshold").train.mean(0).flatten().clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(model.decoder.layers[-1].bias.detach().sigmoid(), mean)


def test_same_seed_gives_the_same_run(rows, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("train", *TINY, "--data", rows, "--seed", seed, "--out", tmp_path / name)
    metrics = {
        name: [{key: value for key, value in record.items() if key != "seconds"} for record in records]
        for name, records in ((name, lines(tmp_path / name / "metrics.jsonl")) for name in "abc")
    }
    weights = {name: (tmp_path / name / "checkpoint.safetensors").read_bytes() for name in "abc"}
    assert metrics["a"] == metrics["b"] != metrics["c"]
    assert weights["a"] == weights["b"] != weights["c"]


def test_seed_rules_the_first_weights(rows, tmp_path):
    words = ["--model", "linear_gaussian", "--guide", "exact", "--lr", 1e-9, "--seed", 2]
    run("train", *TINY, "--data", rows, *words, "--out", tmp_path / "run")
    with seeded(2):
        expected = pvae.models.LinearGaussian(5, 2).weight
    torch.testing.assert_close(pvae.load(tmp_path / "run")[0].weight, expected)


def test_objective_and_schedule_reach_the_training(rows, tmp_path):
    words = ["--objective", "iwae", "--num-samples", 3, "--schedule", "cosine", "--lr", 0.01]
    printed = run_json("train", *TINY, "--data", rows, *words, "--out", tmp_path / "run")
    assert printed["objective"] == "IWAE(3)"
    # Half a cosine over 2 epochs of one step: half the rate after the first, none after the second.
    assert [record["lr"] for record in lines(tmp_path / "run" / "metrics.jsonl")] == pytest.approx([0.005, 0])


def test_an_adversarial_objective_trains_and_says_that_it_is_no_bound(rows, tmp_path):
    words = ["--objective", "adversarial_autoencoder", "--guide", "implicit", "--seed", 3]
    for name in "ab":
        printed = run_json("train", *TINY, "--data", rows, *words, "--out", tmp_path / name)
    assert printed["objective"] == "AdversarialAutoencoder(1), no bound"
    # The discriminator, too, starts from the seed.
    weights = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert "log q(z | x) is not defined" in refusal("logp", tmp_path / "a")
    assert run_json("logp", tmp_path / "a", "--estimator", "prior_sampling")["mean"] < 0
    game = ["train", *TINY, "--data", rows, "--model", "generator", "--out", tmp_path / "game"]
    assert "trains a model without a guide" in refusal(*game, "--objective", "generative_adversarial")
    assert "log p(x) is not defined" in refusal(*game)


def test_default_folder_is_under_runs_and_never_taken_twice(tmp_path, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [run_json("train", *TINY, "--data", "rows.npy")["run"] for _ in range(3)]
    assert folders == [f"runs/rows-vae-mean_field{suffix}" for suffix in ("", "-2", "-3")]
    weights = {(tmp_path / folder / "checkpoint.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 1


def test_tables_show_the_numbers_of_the_files(rows, tmp_path):
    shown = run("train", *TINY, "--data", rows, "--out", tmp_path / "run")
    last = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert "train_bound (nats)" in shown
    assert f"{last['train_bound']:.4f}" in shown
    assert f"{last['valid_bound']:.4f}" in shown
    shown = run("logp", tmp_path / "run", "--samples", 10)
    (result,) = lines(tmp_path / "run" / "results.jsonl")
    assert f"{result['mean']:.4f}" in shown
    assert "rows.npy test, binarize none" in shown


# --- logp


@pytest.mark.parametrize("num", [None, 30])
def test_logp_is_what_python_says(digits_run, num):
    subset = [] if num is None else ["--subset", num]
    printed = run_json("logp", digits_run, "--samples", 40, "--seed", 3, "--batch-size", 70, *subset)
    dataset = pvae.data.load("digits", binarize="dynamic")
    dataset = pvae.data.DataSet("digits", dataset.train, test=dataset.test[:num], kind="unit", binarize="dynamic")
    result = pvae.log_marginal(*pvae.load(digits_run), dataset, K, batch_size=70, seed=3)
    assert printed["mean"] == pytest.approx(result.mean, abs=1e-6)
    assert printed["standard_error"] == pytest.approx(result.standard_error, abs=1e-6)
    assert printed["mc_standard_error"] == pytest.approx(result.mc_standard_error, abs=1e-6)
    assert (printed["estimator"], printed["num_samples"], printed["bound"]) == ("importance_sampling", 40, "lower")
    assert (printed["num_data"], printed["data"]) == (num or 300, "digits test, binarize dynamic")


def test_logp_appends_to_the_results(digits_run):
    first = run_json("logp", digits_run, "--samples", 10, "--subset", 20)
    second = run_json("logp", digits_run, "--samples", 20, "--subset", 20, "--estimator", "prior_sampling")
    results = lines(digits_run / "results.jsonl")
    assert [result["mean"] for result in results] == [first["mean"], second["mean"]]
    assert [(result["estimator"], result["num_samples"]) for result in results] == [
        ("importance_sampling", 10),
        ("prior_sampling", 20),
    ]
    assert results[0]["data"]["split"] == "test"
    assert results[0]["data"]["sizes"]["test"] == 20


def test_linear_gaussian_with_its_exact_guide_gives_the_closed_form(rows, tmp_path):
    out = tmp_path / "run"
    run("train", *TINY, "--data", rows, "--model", "linear_gaussian", "--guide", "exact", "--out", out)
    printed = run_json("logp", out, "--samples", 7)
    test = pvae.data.load(rows).test
    model, guide = pvae.load(out)
    assert guide.model is model
    assert printed["mean"] == pytest.approx(model.log_prob(test).mean().item(), abs=1e-5)
    assert printed["median_ess"] == pytest.approx(7, abs=1e-4)
    assert printed["mc_standard_error"] < 1e-6


def test_images_are_flattened_for_models_of_vectors(tmp_path):
    out = tmp_path / "run"
    run("train", *TINY, "--model", "linear_gaussian", "--guide", "exact", "--out", out)
    assert json.loads((out / "config.json").read_text())["recipe"]["x_shape"] == [64]
    test = pvae.data.load("digits").test.flatten(1)
    expected = pvae.load(out)[0].log_prob(test).mean().item()
    assert run_json("logp", out, "--samples", 2)["mean"] == pytest.approx(expected, rel=1e-5)


# --- sample


def png_size(path):
    """Width and height from the header chunk of a PNG file."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_sample_draws_pictures(digits_run):
    printed = run_json("sample", digits_run, "--num", 10, "--seed", 4)
    samples, reconstructions = digits_run / "samples.png", digits_run / "reconstructions.png"
    assert printed == {"samples": str(samples), "reconstructions": str(reconstructions)}
    # Digits of 8 pixels, 7 times as large, 2 pixels apart: 10 in rows of 3, data above their reconstructions.
    assert png_size(samples) == (3 * 58 + 2, 4 * 58 + 2)
    assert png_size(reconstructions) == (3 * 58 + 2, 8 * 58 + 2)

    from PIL import Image

    def tile(path, row, column):
        pixels = np.asarray(Image.open(path).convert("L"))
        return pixels[2 + 58 * row : 58 * (row + 1), 2 + 58 * column : 58 * (column + 1)][::7, ::7]

    model, guide = pvae.load(digits_run)
    drawn = pvae.sample(model, 10, mean=True, seed=4)["x"]
    assert np.abs(tile(samples, 3, 0) - drawn[9, 0].numpy() * 255).max() <= 0.51
    dataset = pvae.data.load("digits", binarize="dynamic")
    shown = dataset.observe(dataset.test[:10], torch.Generator().manual_seed(4))
    rebuilt = pvae.reconstruct(model, guide, shown, seed=4)["x"]
    assert (tile(reconstructions, 6, 0) == shown[9, 0].numpy() * 255).all()
    assert np.abs(tile(reconstructions, 7, 0) - rebuilt[9, 0].numpy() * 255).max() <= 0.51


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_sample_of_flat_data_writes_arrays(suffix, tmp_path):
    data, out = tmp_path / f"mine{suffix}", tmp_path / "run"
    np.save(data, ROWS) if suffix == ".npy" else np.savetxt(data, ROWS, delimiter=",", header="a,b,c,d,e", comments="")
    run("train", *TINY, "--data", data, "--out", out)
    config = json.loads((out / "config.json").read_text())
    assert (config["recipe"]["likelihood"], config["data"]["kind"]) == ("gaussian", "real")
    assert config["data"]["sizes"] == {"train": 32, "valid": 4, "test": 4}
    run("sample", out, "--num", 6)
    assert {path.name for path in out.glob("*.npy")} == {"samples.npy", "reconstructions.npy"}
    model, guide = pvae.load(out)
    test = pvae.data.load(data).test
    samples, reconstructions = (np.load(out / f"{name}.npy") for name in ("samples", "reconstructions"))
    assert samples.shape == (6, 5)
    assert (samples == pvae.sample(model, 6, mean=True, seed=0)["x"].numpy()).all()
    # All 4 test data, each before its reconstruction.
    assert reconstructions.shape == (4, 2, 5)
    assert (reconstructions[:, 0] == test.numpy()).all()
    assert (reconstructions[:, 1] == pvae.reconstruct(model, guide, test, seed=0)["x"].numpy()).all()


@pytest.mark.parametrize("prior", ["vamp_prior", "gaussian_mixture", "flow_prior", "exemplar_prior"])
def test_prior_is_named_trained_and_found_again(prior, tmp_path):
    options = ["--num-components", 7] if prior != "flow_prior" else []
    out = tmp_path / "run"
    run("train", *TINY, "--data", "digits", "--binarize", "static", "--prior", prior, *options, "--out", out)
    model, guide = pvae.load(out)
    assert type(model.prior).__name__.lower() == prior.replace("_", "")
    data = pvae.data.load("digits", binarize="static")
    if prior == "vamp_prior":
        # Two epochs move them little from data drawn in by 0.05.
        start = pvae.models.priors.pseudo_inputs_near(data.train, 7, seed=0)
        assert 0 < (model.prior.free - start).abs().max() < 0.05
    mean = run_json("logp", out, "--samples", 40, "--subset", 20)["mean"]
    assert mean == pytest.approx(pvae.log_marginal(model, guide, data.test[:20], K).mean, abs=1e-5)


def test_prior_without_components_or_model_without_prior_is_refused(tmp_path):
    assert "flow_prior has no components, got 3" in refusal("train", "--prior", "flow_prior", "--num-components", 3)
    assert "unknown prior 'vamp': the choices are" in refusal("train", "--prior", "vamp")
    assert "linear_gaussian has a prior of its own" in refusal(
        "train", "--model", "linear_gaussian", "--prior", "gaussian"
    )


# --- list


GROUPS = {
    "models": "pvae.models",
    "likelihoods": "pvae.models.likelihoods",
    "priors": "pvae.models.priors",
    "guides": "pvae.guides",
    "objectives": "pvae.objectives",
    "baselines": "pvae.objectives.baselines",
    "estimators": "pvae.estimators",
}


def test_list_names_everything_that_is_exported():
    found = run_json("list")
    assert set(found) == {*GROUPS, "data"}
    for group, package in GROUPS.items():
        module = importlib.import_module(package)
        classes = {
            name.lower(): cls
            for name, cls in inspect.getmembers(module, inspect.isclass)
            if cls.__module__.startswith(package) and not inspect.isabstract(cls)
        }
        assert {name.replace("_", "") for name in found[group]} == set(classes)
        for name, line in found[group].items():
            assert line == inspect.getdoc(classes[name.replace("_", "")]).split("\n")[0] != ""
    assert found["data"] == pvae.data.names()
    assert {"vae", "linear_gaussian"} <= set(found["models"])
    assert {"mean_field", "full_covariance", "exact"} <= set(found["guides"])


def test_list_shows_every_name_to_a_person():
    shown = run("list")
    found = run_json("list")
    assert all(heading in shown and all(name in shown for name in rows) for heading, rows in found.items())


# --- A user's own code


def test_own_pair_trains_and_is_found_again(own_pair, rows, tmp_path):
    out = tmp_path / "run"
    names = ["--model", f"{own_pair}:model", "--guide", f"{own_pair}:guide"]
    printed = run_json("train", *TINY, "--data", rows, *names, "--out", out)
    assert (printed["model"], printed["guide"]) == (names[1], names[3])
    # A copy of the file has nets of its own, untrained, which the run's weights must fill.
    copy = shutil.copy(own_pair, tmp_path / "moved.py")
    names = ["--model", f"{copy}:model", "--guide", f"{copy}:guide"]
    pair = own_function(names[1]), own_function(names[3])
    test = pvae.data.load(rows)
    untrained = pvae.log_marginal(*pair, test, K).mean
    mean = run_json("logp", out, *names, "--samples", 40)["mean"]
    assert abs(mean - untrained) > 0.01
    assert mean == pytest.approx(pvae.log_marginal(*pvae.load(out, *pair), test, K).mean, abs=1e-6)
    run("sample", out, *names, "--num", 3)
    assert np.load(out / "samples.npy").shape == (3, 5)


def test_own_pair_must_be_named_again(own_pair, rows, tmp_path):
    out = tmp_path / "run"
    names = ["--model", f"{own_pair}:model", "--guide", f"{own_pair}:guide"]
    run("train", *TINY, "--data", rows, *names, "--out", out)
    for command in ("logp", "sample"):
        assert refusal(command, out) == (
            f"error: the model of {out} is your own code; name it again with --model {own_pair}:model\n"
        )
        assert refusal(command, out, *names[:2]) == (
            f"error: the guide of {out} is your own code; name it again with --guide {own_pair}:guide\n"
        )
    assert not (out / "results.jsonl").exists()


def test_own_model_takes_a_guide_by_name(own_pair, rows, tmp_path):
    out, name = tmp_path / "run", f"{own_pair}:model"
    run("train", *TINY, "--data", rows, "--model", name, "--guide", "full_covariance", "--out", out)
    mean = run_json("logp", out, "--model", name, "--samples", 40)["mean"]
    model, guide = pvae.load(out, own_function(name))
    assert isinstance(guide, pvae.guides.FullCovariance)
    assert mean == pytest.approx(pvae.log_marginal(model, guide, pvae.data.load(rows), K).mean, abs=1e-6)


def test_own_code_may_be_an_importable_module(own_pair, rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    own_pair.rename(tmp_path / "importable_pair.py")
    out, names = tmp_path / "run", ["--model", "importable_pair:model", "--guide", "importable_pair:guide"]
    run("train", *TINY, "--data", rows, *names, "--out", out)
    import importable_pair

    pair = importable_pair.model, importable_pair.guide
    expected = pvae.log_marginal(*pair, pvae.data.load(rows), K).mean
    assert run_json("logp", out, *names, "--samples", 40)["mean"] == pytest.approx(expected, abs=1e-6)


def test_run_takes_no_other_pair_than_its_own(digits_run, own_pair):
    assert refusal("logp", digits_run, "--guide", "full_covariance") == (
        f"error: the guide of {digits_run} is mean_field, not full_covariance; leave --guide out\n"
    )
    assert refusal("logp", digits_run, "--model", f"{own_pair}:model") == (
        f"error: the model of {digits_run} is vae, not {own_pair}:model; leave --model out\n"
    )


def test_a_name_that_needs_more_than_a_name_is_refused_in_one_line(digits_run, tmp_path):
    out = tmp_path / "new"
    assert refusal("train", *TINY, "--binarize", "dynamic", "--guide", "local", "--out", out) == (
        "error: Local needs data, which a name alone does not give; build it in Python\n"
    )
    assert not out.exists()
    assert refusal("logp", digits_run, "--estimator", "guide_mixture") == (
        "error: GuideMixture needs others, which a name alone does not give; build it in Python\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "hierarchical_vae", "--guide", "bottom_up"],
        ["--model", "mixture_vae", "--num-components", 4],
        [
            "--model",
            "semi_supervised_vae",
            "--guide",
            "semi_supervised",
            "--objective",
            "supervised",
            "--num-labels",
            50,
        ],
    ],
    ids=lambda words: words[1],
)
def test_models_of_several_sites_train_by_name(words, tmp_path):
    out = tmp_path / "run"
    trained = run_json("train", *TINY, "--binarize", "dynamic", *words, "--out", out)
    assert (trained["model"], trained["epochs"]) == (words[1], 2)
    assert run_json("logp", out, "--samples", 20)["mean"] < 0


def test_fewer_labels_are_for_models_that_can_do_with_them(tmp_path):
    out = ["--out", tmp_path / "run"]
    assert refusal("train", *TINY, "--num-labels", 50, *out) == (
        "error: vae cannot do with fewer labels, got 50; leave num_labels out\n"
    )
    words = ["--model", "semi_supervised_vae", "--num-labels", 5000, "--binarize", "dynamic"]
    assert refusal("train", *TINY, *words, *out) == (
        "error: num_labels must lie in 1 to 1297, the training data, got 5000\n"
    )


# --- A process of its own


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys\nfrom pvae.cli.main import app\ntry:\n    app()\nfinally:\n"
        "    print({'torch', 'pyro', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = as_in_a_shell("--help", code=code)
        seconds.append(time.perf_counter() - started)
        assert (result.returncode, result.stderr) == (0, "set()\n")
        assert all(command in result.stdout for command in ("train", "logp", "sample", "selfcheck", "list"))
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logp"], "error: Missing argument 'run'.\n"),
        (["trian"], "error: No such command 'trian'. Did you mean 'train'?\n"),
        (["train", "--nope"], "error: No such option: --nope (Possible options: --model)\n"),
        (["--nope"], "error: No such option: --nope\n"),
    ],
)
def test_words_that_mean_nothing_give_one_line(words, message):
    result = as_in_a_shell(*words)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)


def test_no_words_give_the_help():
    result = as_in_a_shell()
    assert (result.returncode, result.stderr) == (2, "")
    assert result.stdout.split() == as_in_a_shell("--help").stdout.split()


def test_a_user_s_own_decoder_starts_where_the_user_put_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_vae.py").write_text(
        "import torch, pvae\n"
        "model = pvae.models.VAE((1, 8, 8), 2)\n"
        "guide = pvae.guides.MeanField(model, torch.zeros(2, 1, 8, 8), hidden=(8,))\n"
    )
    own = ["--model", "own_vae.py:model", "--guide", "own_vae.py:guide"]
    options = ["--binarize", "dynamic", "--epochs", "1", "--lr", "1e-12", "--out", "run"]
    assert CliRunner().invoke(app, ["train", *own, *options]).exit_code == 0
    weights = safetensors.torch.load_file("run/checkpoint.safetensors")
    # The last layer's bias is 0 in a fresh MLP, and up to -7 at the logit of the pixels' means.
    assert weights["vae$$$decoder.layers.4.bias"].abs().max() < 1e-6
