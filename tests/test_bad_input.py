"""Bad input: one line that says what was expected, what came and what to do, and nothing written."""

import json
import shutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from typer.testing import CliRunner

import pvae
from pvae.cli.main import app
from pvae.data import DataSet
from pvae.estimators import ImportanceSampling, PriorSampling
from pvae.guides import Delta, Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.nets import MLP
from pvae.objectives import ELBO, IWAE
from pvae.runs.recipes import pick

BITS = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def pair(x_shape=(1, 4, 4), latent_dim=2):
    model = VAE(x_shape, latent_dim, decoder=MLP(latent_dim, (5,), x_shape))
    return model, MeanField(model, torch.zeros(2, *x_shape), hidden=(5,))


def fit(data=BITS, model=None, guide=None, **arguments):
    own = pair()
    arguments = {"epochs": 1, "step_mode": "eager", "progress": False, "out": "run", **arguments}
    return pvae.fit(own[0] if model is None else model, own[1] if guide is None else guide, data, **arguments)


def log_marginal(data=BITS, model=None, guide=None, estimator=None, **arguments):
    own = pair()
    estimator = ImportanceSampling(3) if estimator is None else estimator
    return pvae.log_marginal(
        own[0] if model is None else model, own[1] if guide is None else guide, data, estimator, **arguments
    )


def with_value(value, row=3):
    x = BITS.clone()
    x[row, 0, 1, 2] = value
    return x


def model_of_w(x):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def silent_guide(x):
    pass


# --- From Python: data that no pair can take, and every function that takes data

DATA = {
    "rank": (BITS.flatten(1), ["(20, 16)", "(1, 4, 4)", "reshape"]),
    "width": (torch.zeros(20, 1, 4, 5), ["(20, 1, 4, 5)", "(1, 4, 4)", "reshape"]),
    "labels": (torch.arange(20), ["(20,)", "(1, 4, 4)", "reshape"]),
    "empty": (BITS[:0], ["empty", "(0, 1, 4, 4)", "at least one datum"]),
    "scalar": (torch.tensor(1.0), ["empty", "()", "at least one datum"]),
    "nan": (with_value(torch.nan), ["1 values", "nan or inf", "datum 3", "drop or impute"]),
    "inf": (with_value(-torch.inf, 7), ["1 values", "nan or inf", "datum 7", "drop or impute"]),
    "object": (np.array([[1, None]] * 3, dtype=object), ["dtype object", "must be numbers", "numeric dtype"]),
    "text": (np.array([["a", "b"]] * 3), ["dtype <U1", "must be numbers", "numeric dtype"]),
    "complex": (BITS + 0j, ["complex64", "must be real numbers", "convert"]),
    "list": ([[0.0, 1.0]], ["must be a tensor", "got [[0.0, 1.0]]", "torch.as_tensor"]),
    "name": ("digits", ["must be a tensor", "got 'digits'", "pvae.data.load(path)"]),
    "None": (None, ["must be a tensor", "got None"]),
}

TAKERS = {
    "fit": fit,
    "log_marginal": log_marginal,
    "reconstruct": lambda x: pvae.reconstruct(*pair(), x),
    "encode": lambda x: pvae.encode(pair()[1], x),
    "save": lambda x: pvae.save("run", *pair(), x),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("data", DATA)
def test_bad_data(taker, data, error_of):
    x, words = DATA[data]
    message = error_of(TAKERS[taker], x)
    assert all(word in message for word in words), message


# --- From Python: everything else

GREY = ["Bernoulli", "grey", "[0.25, 0.25]", "binarise the data", "binarize='dynamic'", "ContinuousBernoulli"]
SPLIT = DataSet("bits", BITS, BITS, kind="binary")

CASES = {
    "K = 0": (lambda: ELBO(0), ["num_samples", "whole number of at least 1", "got 0", "try 1000"]),
    "K < 0": (lambda: IWAE(-1), ["num_samples", "whole number of at least 1", "got -1"]),
    "K = 1.5": (lambda: ImportanceSampling(1.5), ["num_samples", "whole number of at least 1", "got 1.5"]),
    "K of the prior": (lambda: PriorSampling(0), ["num_samples", "got 0"]),
    "K of log_weights": (lambda: pvae.log_weights(*pair(), BITS, 0), ["num_samples", "got 0"]),
    "K of encode": (lambda: pvae.encode(pair()[1], BITS, num_samples=0), ["num_samples", "got 0"]),
    "num of sample": (lambda: pvae.sample(pair()[0], 0), ["num must be", "got 0"]),
    "chunk_size": (lambda: ImportanceSampling(5, chunk_size=1.5), ["chunk_size", "got 1.5", "leave it out"]),
    # Names
    "data": (lambda: pvae.data.load("mnits"), ["unknown data set 'mnits'", "did you mean 'mnist'?", ".npy"]),
    "binarize": (lambda: pvae.data.load("digits", binarize="dynamc"), ["'dynamc'", "mean 'dynamic'?", "None"]),
    "kind": (lambda: DataSet("x", BITS, kind="unti"), ["unknown kind 'unti'", "did you mean 'unit'?"]),
    "model": (lambda: pick("pvae.models", "vea"), ["unknown model 'vea'", "did you mean 'vae'?"]),
    "guide": (lambda: pick("pvae.guides", "meanfield"), ["unknown guide", "did you mean 'mean_field'?"]),
    "objective": (lambda: pick("pvae.objectives", "ebo"), ["unknown objective", "did you mean 'elbo'?"]),
    "schedule": (lambda: fit(schedule="cosin"), ["unknown schedule 'cosin'", "did you mean 'cosine'?", "leave it out"]),
    "step_mode": (lambda: fit(step_mode="trace"), ["unknown step_mode 'trace'", "did you mean 'traced'?", "eager"]),
    "kl": (lambda: ELBO(kl="analytical"), ["unknown kl 'analytical'", "did you mean 'analytic'?"]),
    "device": (lambda: fit(device="gpu"), ["device 'gpu' cannot be used here", "give cpu"]),
    # Things in the place of others
    "name for an objective": (lambda: fit(objective="elbo"), ["one of pvae.objectives, built", "got 'elbo'", "ELBO()"]),
    "class for an objective": (lambda: fit(objective=ELBO), ["pvae.objectives, built", "got the class ELBO", "ELBO()"]),
    "name for an estimator": (lambda: log_marginal(estimator="iwae"), ["ImportanceSampling(1000)", "got 'iwae'"]),
    "class for an estimator": (
        lambda: log_marginal(estimator=ImportanceSampling),
        ["ImportanceSampling(1000)", "got the class ImportanceSampling", "built"],
    ),
    "name for a model": (lambda: fit(model="vae"), ["model must be a function", "got 'vae'", "build it first"]),
    "class for a model": (lambda: log_marginal(model=VAE), ["a function or a built module", "got the class VAE"]),
    "name for an optimizer": (lambda: fit(optimizer="adam"), ["optimizer must be a function", "'adam'", "AdamW"]),
    "pyro's optimizer": (
        lambda: fit(optimizer=pyro.optim.Adam({"lr": 1e-3})),
        ["optimizer must make a torch optimizer", "got None", "AdamW"],
    ),
    "number for a kl_schedule": (lambda: fit(kl_schedule=0.5), ["kl_schedule must be a function", "linear_warmup"]),
    "number for a schedule": (lambda: fit(schedule=0.5), ["schedule must be a function", "got 0.5", "'cosine'"]),
    # Pairs
    "guide for other data": (
        lambda: fit(guide=pair((1, 5, 5))[1]),
        ["the guide was built for data of shape (1, 5, 5), got (1, 4, 4)", "reshape the data, or build it"],
    ),
    "guide for other latents": (
        lambda: log_marginal(guide=pair(latent_dim=3)[1]),
        ["expected data of shape (..., 2), got (20, 3)", "build the net (and the guide, for latents)"],
    ),
    "guide for other sites": (
        lambda: fit(guide=MeanField(model_of_w, BITS, hidden=(5,))),
        ["'z': is latent in the model and missing from the guide", "'w': is in the guide but absent", "rename it"],
    ),
    "the same under log_marginal": (
        lambda: log_marginal(guide=MeanField(model_of_w, BITS, hidden=(5,))),
        ["lacks ['z'] and adds ['w']", "sample exactly the model's latent sites"],
    ),
    "guide of nothing": (lambda: fit(guide=silent_guide), ["'z': is latent in the model and missing from the guide"]),
    "exact guide of a VAE": (lambda: Exact(pair()[0]), ["known for LinearGaussian", "got VAE", "FullCovariance"]),
    "exact guide of another model": (lambda: fit(guide=Exact(LinearGaussian(16, 2))), ["(B, 16)", "(20, 1, 4, 4)"]),
    "point guide": (
        lambda: log_marginal(guide=Delta(pair()[0], BITS, hidden=(5,))),
        ["'z' from a point (Delta)", "MeanField", "PriorSampling"],
    ),
    "guide built on other data": (lambda: MeanField(pair()[0], torch.zeros(2, 16)), ["(2, 16)", "(B, 1, 4, 4)"]),
    "guide without layers": (lambda: FullCovariance(pair()[0], BITS, hidden=()), ["at least one width", "try (200,"]),
    "grey data in fit": (lambda: fit(BITS * 0 + 0.25), GREY),
    "grey data in log_marginal": (lambda: log_marginal(BITS * 0 + 0.25), GREY),
    "integers in fit": (lambda: fit(BITS.long()), ["cannot score values of dtype torch.int64", ".float()"]),
    "booleans in log_marginal": (lambda: log_marginal(BITS.bool()), ["values of dtype torch.bool", ".float()"]),
    # Sizes and lengths
    "latent_dim of VAE": (lambda: VAE((1, 4, 4), 0), ["latent_dim must be", "at least 1", "got 0", "try 8"]),
    "latent_dim of LinearGaussian": (lambda: LinearGaussian(4, 0), ["latent_dim must be", "got 0", "try 8"]),
    "epochs": (lambda: fit(epochs=0), ["epochs must be a whole number of at least 1", "got 0"]),
    "steps": (lambda: fit(epochs=None, steps=2.5), ["steps must be a whole number of at least 1", "got 2.5"]),
    "both": (lambda: fit(epochs=1, steps=2), ["either epochs or steps", "got both"]),
    "neither": (lambda: fit(epochs=None), ["either epochs or steps", "got neither"]),
    "batch_size": (lambda: fit(batch_size=0), ["batch_size must be", "at least 1", "got 0", "try 100"]),
    "batch_size of log_marginal": (lambda: log_marginal(batch_size=-1), ["batch_size", "got -1", "try 100"]),
    "lr": (lambda: fit(lr=-1e-3), ["lr must be a finite number above 0", "got -0.001", "try 0.001"]),
    "lr that is no number": (lambda: fit(lr=torch.nan), ["lr must be a finite number above 0", "got nan"]),
    "clip_norm": (lambda: fit(clip_norm=0), ["clip_norm must be a finite number above 0", "got 0", "try 10"]),
    "ema": (lambda: fit(ema=1.0), ["ema must be a finite number above 0 and below 1", "got 1.0", "try 0.999"]),
    "inference_steps": (lambda: fit(inference_steps=0), ["inference_steps", "at least 1", "got 0"]),
    "early_stopping": (lambda: fit(SPLIT, early_stopping=0), ["early_stopping", "at least 1", "got 0"]),
    "early_stopping of what": (lambda: fit(early_stopping=2), ["needs a validation split", "DataSet(name, train=..."]),
    "split that is not there": (lambda: log_marginal(SPLIT), ["'bits' has no test split", "train", "valid"]),
    # Files
    "no file": (lambda: pvae.data.load("mine.npy"), ["expected a file at", "mine.npy", "check the path"]),
    "no root": (lambda: pvae.data.load("mnist"), ["expected root", "MNIST/raw", "download=True"]),
    "empty root": (
        lambda: pvae.data.load("mnist", "nowhere"),
        ["nowhere/MNIST/raw", "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "download=True", "--download"],
    ),
    "empty root of another": (
        lambda: pvae.data.load("binarized_mnist", "nowhere"),
        ["nowhere", "binarized_mnist_train.amat", "put the file in one of them"],
    ),
    "no run": (lambda: pvae.load("nowhere"), ["nowhere is not a run folder", "config.json", "pvae train"]),
    "run of a newer pvae": (lambda: read_of({"format": 2}), ["does not describe a run of format 1", "another pvae"]),
    "config that is no object": (lambda: read_of([1]), ["does not describe a run of format 1"]),
    "config without parts": (
        lambda: read_of({"format": 1, "recipe": {}}),
        ["cannot rebuild the pair", "example_batch"],
    ),
    "config of a wrong dtype": (
        lambda: read_of({"format": 1, "recipe": {}, "example_batch": [{"shape": [2], "dtype": "float99"}]}),
        ["cannot rebuild the pair", "float99", "restore it from a copy"],
    ),
}


def read_of(config):
    """Load a good run whose config was replaced; the folder is removed, so that nothing is left to find."""
    pvae.save("broken", *pair(), BITS)
    try:
        with open("broken/config.json", "w") as file:
            json.dump(config, file)
        return pvae.load("broken")
    finally:
        shutil.rmtree("broken")


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    """The message of the ValueError that a call must raise: one line, and nothing written beside it."""
    monkeypatch.chdir(tmp_path)

    def call(function, *arguments):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
            function(*arguments)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    return call


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case, error_of):
    function, words = CASES[case]
    message = error_of(function)
    assert all(word in message for word in words), message


def test_refused_data_leave_the_pair_as_it_was(tmp_path):
    model, guide = pair()
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    for x in (BITS * 0.5, BITS.long(), with_value(torch.nan), BITS[:0]):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            pvae.fit(model, guide, x, steps=1, step_mode="eager", progress=False)
    after = [*model.parameters(), *guide.parameters()]
    assert all(p.equal(q) for p, q in zip(before, after, strict=True))


def test_grey_data_are_refused_without_pyros_validation():
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"grey pixels.* binarise the data"):
        log_marginal(BITS * 0.5)


def test_existing_out_is_never_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "run", tmp_path / "run" / "thesis.txt"):
        with pytest.raises(ValueError, match=r"exists and is not empty; choose a new folder, nothing was overwritten"):
            fit(out=out)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


# --- From the command line

TINY = ["--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--step-mode", "eager"]
ROWS = np.random.RandomState(0).standard_normal((40, 5)).astype(np.float32)

OWN = """
import pyro
import pyro.distributions as dist
import torch

size = 3

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

class Model:
    pass
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with data files, good and bad, a file of own code, and two runs."""
    folder = tmp_path_factory.mktemp("prepared")
    nan, inf = ROWS.copy(), ROWS.copy()
    nan[7, 2], inf[4, 1] = np.nan, np.inf
    arrays = {
        "rows": ROWS,
        "grey": np.abs(ROWS) / np.abs(ROWS).max(),
        "nan": nan,
        "inf": inf,
        "labels": np.arange(40),
        "empty": ROWS[:0],
        "object": np.array([[1, None]] * 5, dtype=object),
        "text": np.array([["a", "b"]] * 5),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savetxt(folder / "nan.csv", nan, delimiter=",")
    (folder / "own.py").write_text(OWN)
    (folder / "broken.py").write_text("def model(x:\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out, guide in (("run", "mean_field"), ("other", "full_covariance")):
            result = CliRunner().invoke(app, ["train", *TINY, "--data", "rows.npy", "--guide", guide, "--out", out])
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder, as the working directory."""
    copy = shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(copy)
    return copy


def contents(folder):
    """Every file's bytes and every folder, but for what Python itself caches of imported code."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def error_line(folder, *words):
    """The line that a command must end with: exit code 2, one line on standard error, nothing written."""
    before = contents(folder)
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    # Before it trains, a command says what it understood of the data.
    assert result.stdout.count("\n") <= (words[0] == "train")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    assert contents(folder) == before
    return result.stderr


TRAIN = {
    "labels": (["--data", "labels.npy"], ["labels.npy", "2-D or more", "got shape (40,)", "not labels"]),
    "empty": (["--data", "empty.npy"], ["empty.npy", "not empty", "got shape (0, 5)"]),
    "nan": (["--data", "nan.npy"], ["nan.npy must be finite", "1 values", "row 7", "drop those rows"]),
    "inf": (["--data", "inf.npy"], ["inf.npy must be finite", "1 values", "row 4", "drop those rows"]),
    "nan in text": (["--data", "nan.csv"], ["nan.csv must be finite", "row 7", "drop those rows"]),
    "object": (["--data", "object.npy"], ["dtype object", "pickles are never loaded", "numpy.save"]),
    "text": (["--data", "text.npy"], ["text.npy must hold real numbers", "<U1", "convert"]),
    "no file": (["--data", "mine.npy"], ["expected a file at", "mine.npy", "check the path"]),
    "data": (["--data", "mnits"], ["unknown data set 'mnits'", "did you mean 'mnist'?"]),
    "root": (["--data", "mnist"], ["expected root", "MNIST/raw", "--download"]),
    "empty root": (
        ["--data", "mnist", "--data-root", "nowhere"],
        ["nowhere/MNIST/raw", "train-images-idx3-ubyte", "--download"],
    ),
    "model": (["--model", "vea"], ["unknown model 'vea'", "did you mean 'vae'?"]),
    "guide": (["--guide", "meanfield"], ["unknown guide 'meanfield'", "did you mean 'mean_field'?"]),
    "objective": (["--objective", "iwea"], ["unknown objective 'iwea'", "did you mean 'iwae'?"]),
    "likelihood": (["--likelihood", "bernouli"], ["unknown likelihood", "did you mean 'bernoulli'?"]),
    "binarize": (["--binarize", "dynamik"], ["unknown binarize", "did you mean 'dynamic'?"]),
    "schedule": (["--schedule", "cosin"], ["unknown schedule", "did you mean 'cosine'?"]),
    "step mode": (["--step-mode", "trace"], ["unknown step_mode", "did you mean 'traced'?"]),
    "device": (["--device", "gpu"], ["device 'gpu' cannot be used here", "give cpu"]),
    "two likelihoods": (
        ["--model", "linear_gaussian", "--guide", "exact", "--likelihood", "bernoulli"],
        ["linear_gaussian has a likelihood of its own", "'bernoulli'", "leave likelihood out"],
    ),
    "guide of another model": (["--guide", "exact"], ["known for LinearGaussian", "got VAE", "FullCovariance"]),
    "own guide of another model": (
        ["--guide", "own.py:guide"],
        ["'z': is latent in the model and missing from the guide", "'w': is in the guide but absent", "rename it"],
    ),
    "K = 0": (["--num-samples", 0], ["num_samples", "at least 1", "got 0"]),
    "K < 0": (["--objective", "iwae", "--num-samples", -2], ["num_samples", "at least 1", "got -2"]),
    "K = 1.5": (["--num-samples", 1.5], ["'--num-samples'", "valid integer"]),
    "latent dim": (["--latent-dim", 0], ["latent_dim must be a whole number of at least 1", "got 0", "try 8"]),
    "latent dim of another": (["--model", "linear_gaussian", "--latent-dim", -1], ["latent_dim", "got -1"]),
    "epochs": (["--epochs", 0], ["epochs must be", "at least 1", "got 0"]),
    "batch size": (["--batch-size", 0], ["batch_size must be", "at least 1", "got 0", "try 100"]),
    "lr": (["--lr", -0.5], ["lr must be a finite number above 0", "got -0.5", "try 0.001"]),
    "hidden": (["--hidden", "16,none"], ["widths such as 200,200", "'16,none'"]),
    "hidden of 0": (["--hidden", "16,0"], ["widths such as 200,200", "'16,0'"]),
    "grey": (
        ["--data", "grey.npy", "--likelihood", "bernoulli"],
        ["Bernoulli", "grey", "binarise the data", "binarize='dynamic'", "ContinuousBernoulli"],
    ),
    "real": (["--likelihood", "bernoulli"], ["outside the support of Bernoulli", "rescale the data"]),
    "binary of real": (["--binarize", "dynamic"], ["intensities in [0, 1]", "got kind 'real'", "leave binarize out"]),
    "out": (["--out", "run"], ["run exists and is not empty", "choose a new folder", "nothing was overwritten"]),
    "out that is a file": (["--out", "rows.npy"], ["rows.npy exists", "choose a new folder"]),
    "no own file": (["--model", "mine.py:model"], ["cannot import mine.py", "no such file", "file.py:function"]),
    "no own module": (["--model", "mine_own:model"], ["cannot import mine_own", "No module named", "module:function"]),
    "no own function": (["--guide", "own.py:guid"], ["own.py has no 'guid'", "'guide'"]),
    "no own name": (["--guide", "own.py:"], ["expected module:function or file.py:function", "'own.py:'"]),
    "own class": (["--model", "own.py:Model"], ["own.py:Model is not a function that takes a batch", "built module"]),
    "own number": (["--model", "own.py:size"], ["own.py:size is not a function that takes a batch"]),
    "broken own file": (["--model", "broken.py:model"], ["cannot import broken.py", "line 1"]),
    "function of something else": (["--model", "math:sqrt"], ["the model cannot run on a batch of shape (2, 5)"]),
}


@pytest.mark.parametrize("case", TRAIN)
def test_train_refuses(case, folder):
    words, expected = TRAIN[case]
    line = error_line(folder, "train", *TINY, "--data", "rows.npy", "--out", "new", *words)
    assert all(word in line for word in expected), line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["logp", "nowhere"], ["nowhere is not a run folder", "config.json", "pvae train"]),
        (["sample", "rows.npy"], ["rows.npy is not a run folder"]),
        (["logp", "run", "--estimator", "importance"], ["unknown estimator", "did you mean 'importance_sampling'?"]),
        (["logp", "run", "--samples", 0], ["num_samples", "at least 1", "got 0"]),
        (["logp", "run", "--samples", -5], ["num_samples", "at least 1", "got -5"]),
        (["logp", "run", "--samples", 1.5], ["'--samples'", "valid integer"]),
        (["logp", "run", "--batch-size", 0], ["batch_size", "at least 1", "got 0"]),
        (["logp", "run", "--subset", 0], ["subset must be a whole number of at least 1", "got 0"]),
        (["logp", "run", "--device", "gpu"], ["device 'gpu' cannot be used here", "give cpu"]),
        (["logp", "run", "--guide", "full_covariance"], ["is mean_field, not full_covariance", "leave --guide out"]),
        (["sample", "run", "--num", 0], ["num must be", "at least 1", "got 0"]),
    ],
)
def test_logp_and_sample_refuse(words, expected, folder):
    line = error_line(folder, *words)
    assert all(word in line for word in expected), line


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :]


DAMAGE = {
    "no weights": ("checkpoint.safetensors", lambda old, other: None, ["has no checkpoint.safetensors", "anew"]),
    "empty weights": ("checkpoint.safetensors", lambda old, other: b"", ["truncated or corrupt", "restore it"]),
    "half the weights": (
        "checkpoint.safetensors",
        lambda old, other: old[: len(old) // 2],
        ["truncated or corrupt", "restore it from a copy, or train anew"],
    ),
    "weights less a byte": ("checkpoint.safetensors", lambda old, other: old[:-1], ["truncated or corrupt"]),
    "weights and a byte": ("checkpoint.safetensors", lambda old, other: old + b"\0", ["truncated or corrupt"]),
    # Bytes 0 to 7 of the format are the length of its header, which is JSON and begins at byte 8.
    "flip in the length": ("checkpoint.safetensors", lambda old, other: flipped(old, 7), ["truncated or corrupt"]),
    "flip in the brace": ("checkpoint.safetensors", lambda old, other: flipped(old, 8), ["truncated or corrupt"]),
    "flip in a name": (
        "checkpoint.safetensors",
        lambda old, other: flipped(old, old.index(b"encoder")),
        ["truncated or corrupt", "do not match its checksum"],
    ),
    "flip in a dtype": (
        "checkpoint.safetensors",
        lambda old, other: flipped(old, old.index(b"F32")),
        ["truncated or corrupt"],
    ),
    "weights of another pair": (
        "checkpoint.safetensors",
        lambda old, other: (other / "checkpoint.safetensors").read_bytes(),
        ["belong to another pair", "missing mean_field", "not in this pair full_covariance", "build the pair as"],
    ),
    "no config": ("config.json", lambda old, other: None, ["is not a run folder", "config.json"]),
    "empty config": ("config.json", lambda old, other: b"", ["config.json is not readable as JSON", "restore it"]),
    "half a config": ("config.json", lambda old, other: old[:-9], ["config.json is not readable as JSON"]),
    "config of bytes": ("config.json", lambda old, other: b"\xff\xfe\0", ["config.json is not readable as JSON"]),
    "config of another format": (
        "config.json",
        lambda old, other: old.replace(b'"format": 1', b'"format": 7'),
        ["does not describe a run of format 1", "another pvae"],
    ),
    "config of a Python run": (
        "config.json",
        lambda old, other: json.dumps({**json.loads(old), "recipe": None}).encode(),
        ["was not written by `pvae train`", "pvae.load(path, model, guide)"],
    ),
    "config of another guide": (
        "config.json",
        lambda old, other: (other / "config.json").read_bytes(),
        ["belong to another pair", "missing full_covariance", "not in this pair mean_field"],
    ),
    "config of other sizes": (
        "config.json",
        lambda old, other: old.replace(b'"latent_dim": 2', b'"latent_dim": 3'),
        ["has shape (4, 8)", "this pair expects (6, 8)", "build the pair with the sizes"],
    ),
    "config of no sizes": (
        "config.json",
        lambda old, other: old.replace(b'"latent_dim": 2', b'"latent_dim": "2"'),
        ["cannot rebuild the pair", "restore it from a copy"],
    ),
    "config of an unknown model": (
        "config.json",
        lambda old, other: old.replace(b'"vae"', b'"vea"'),
        ["unknown model 'vea'", "did you mean 'vae'?"],
    ),
}


@pytest.mark.parametrize("command", ["logp", "sample"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_run_is_refused(damage, command, folder):
    name, change, expected = DAMAGE[damage]
    file = folder / "run" / name
    content = change(file.read_bytes(), folder / "other")
    assert content != file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    line = error_line(folder, command, "run")
    assert all(word in line for word in expected), line


def test_run_whose_data_are_gone_or_changed(folder):
    (folder / "rows.npy").unlink()
    assert "expected a file at" in error_line(folder, "logp", "run")
    np.save(folder / "rows.npy", ROWS[:, :3])
    line = error_line(folder, "logp", "run")
    assert all(word in line for word in ("built for data of shape (5,), got (3,)", "reshape the data")), line


def test_more_than_memory_holds_is_one_line():
    line = "pvae.sample: the memory does not suffice; make the number of samples, batch_size or the nets smaller"
    with pytest.raises(ValueError, match=line):
        pvae.sample(VAE((10,), 2), 10**13)
