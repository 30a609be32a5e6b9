"""Run folders: what is saved comes back bit for bit, a crash harms nothing, and nothing in a file is executed."""

import json
import os
import pickle
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro.distributions import constraints
from torch import nn

import pvae
from pvae.data import DataSet
from pvae.nets import MLP
from pvae.pair.parameters import find_parameters
from pvae.runs.recipes import build, recipe_for

K = pvae.estimators.ImportanceSampling(20)
X = (torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
REALS = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))


def vae_pair(latent_dim=2, width=6, guide=pvae.guides.MeanField):
    model = pvae.models.VAE((1, 4, 4), latent_dim, decoder=MLP(latent_dim, (width,), (1, 4, 4)))
    return model, guide(model, X, hidden=(width,))


def batch_norm_pair():
    """A pair with buffers: batch statistics in the encoder, and one that no parameter stands beside."""
    model, _ = vae_pair()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False))
    return model, pvae.guides.MeanField(model, X, encoder=encoder)


def bare_pair():
    """Plain functions whose parameters live in bare `pyro.param` statements, one of them constrained."""

    def model(x):
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.zeros(3, 1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.5).to_event(1))

    return model, guide


def closed_over_pair():
    """Plain functions that close over nets, as in Pyro's own examples."""
    decoder, encoder = nn.Linear(2, 3), nn.Linear(3, 2)

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


PAIRS = {
    "modules": (vae_pair, X),
    "buffers": (batch_norm_pair, X),
    "bare": (bare_pair, REALS),
    "closed over": (closed_over_pair, REALS),
}


def train(pair, x, **arguments):
    return pvae.fit(*pair, x, steps=4, batch_size=10, lr=0.05, step_mode="eager", progress=False, **arguments)


def values(pair, x):
    return pvae.log_marginal(*pair, x, K, seed=3).values


def weights(path):
    return safetensors.torch.load_file(path / "checkpoint.safetensors")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Round trips


@pytest.mark.parametrize("name", PAIRS)
def test_fresh_pair_becomes_the_saved_one_exactly(name, tmp_path):
    make, x = PAIRS[name]
    trained, fresh = make(), make()
    untrained = values(fresh, x)
    train(trained, x)
    pvae.save(tmp_path / "run", *trained, x)
    assert not untrained.equal(values(trained, x))
    assert pvae.load(tmp_path / "run", *fresh) == fresh
    assert values(fresh, x).equal(values(trained, x))
    pvae.save(tmp_path / "again", *fresh, x)
    assert files(tmp_path / "again") == files(tmp_path / "run")


@pytest.mark.parametrize("name", PAIRS)
def test_fit_writes_a_run_that_loads(name, tmp_path):
    make, x = PAIRS[name]
    trained, fresh = make(), make()
    # With a moving average the pair ends with the averages, and so must the file.
    train(trained, x, out=tmp_path / "run", ema=0.5)
    assert set(files(tmp_path / "run")) == {"config.json", "metrics.jsonl", "checkpoint.safetensors"}
    pvae.load(tmp_path / "run", *fresh)
    assert values(fresh, x).equal(values(trained, x))
    with pytest.raises(ValueError, match=r"\A.*run holds a pair of your own; .* call load\(path, model, guide\)\Z"):
        pvae.load(tmp_path / "run")


def test_batch_statistics_are_saved(tmp_path):
    pair = batch_norm_pair()
    train(pair, X, out=tmp_path / "run")
    saved = weights(tmp_path / "run")
    for norm in (pair[1].encoder.net[2], pair[1].encoder.net[3]):
        assert norm.num_batches_tracked == 4
        for name, buffer in norm.named_buffers():
            assert any(key.endswith(name) and value.equal(buffer) for key, value in saved.items()), name
    (tracked,) = {value.item() for key, value in saved.items() if key.endswith("num_batches_tracked")}
    assert tracked == 4


def test_bare_parameters_are_saved_unconstrained_and_stay_out_of_pyros_store(tmp_path):
    trained, fresh = bare_pair(), bare_pair()
    train(trained, REALS, out=tmp_path / "run")
    saved = weights(tmp_path / "run")
    assert {name: tuple(value.shape) for name, value in saved.items()} == {"scale": (3,), "weight": (3, 1)}
    pvae.load(tmp_path / "run", *fresh)
    drawn = pvae.reconstruct(*fresh, REALS, mean=False, seed=0)["x"] - pvae.reconstruct(*fresh, REALS, seed=0)["x"]
    same = pvae.reconstruct(*trained, REALS, mean=False, seed=0)["x"] - pvae.reconstruct(*trained, REALS, seed=0)["x"]
    assert drawn.equal(same)
    assert not list(pyro.get_param_store().keys())


def test_best_weights_of_early_stopping_are_the_saved_ones(tmp_path):
    pair, fresh = vae_pair(), vae_pair()
    data = DataSet("bits", X[:20], X[20:], kind="binary")
    result = pvae.fit(
        *pair, data, epochs=12, lr=0.5, early_stopping=2, step_mode="eager", out=tmp_path / "run", progress=False
    )
    assert result.best_epoch < len(result.history)
    pvae.load(tmp_path / "run", *fresh)
    # Validation draws from seed 0 with nets in evaluation mode, so the best bound can be had again exactly.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        bound = pvae.objectives.ELBO().bound(*fresh, X[20:]).mean().item()
    assert bound == pytest.approx(max(record["valid_bound"] for record in result.history), abs=1e-6)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["best_epoch"] == result.best_epoch


def test_recipe_rebuilds_the_pair(tmp_path):
    data = DataSet("bits", X, kind="binary")
    recipe = recipe_for(data, "vae", "full_covariance", 2, (6,))
    pair = build(recipe)
    train(pair, X)
    pvae.save(tmp_path, *pair, X, recipe=recipe)
    loaded = pvae.load(tmp_path)
    assert [type(part) for part in loaded] == [pvae.models.VAE, pvae.guides.FullCovariance]
    assert values(loaded, X).equal(values(pair, X))


def test_double_precision_comes_back_as_such(tmp_path):
    model = pvae.models.LinearGaussian(3, 2).double()
    guide = pvae.guides.Exact(model)
    pvae.save(tmp_path, model, guide, REALS.double())
    fresh = pvae.models.LinearGaussian(3, 2).double()
    pvae.load(tmp_path, fresh, pvae.guides.Exact(fresh))
    assert fresh.weight.dtype == torch.float64
    assert fresh.log_prob(REALS.double()).equal(model.log_prob(REALS.double()))


# --- The files


def test_config_says_what_was_run(tmp_path):
    data = DataSet("bits", X[:20], X[20:], kind="binary")
    pvae.fit(
        *vae_pair(), data, epochs=2, batch_size=10, seed=7, step_mode="eager", out=tmp_path / "run", progress=False
    )
    text = (tmp_path / "run" / "config.json").read_text()
    assert json.loads(text) == {
        "format": 1,
        "recipe": None,
        "example_batch": [{"shape": [1, 4, 4], "dtype": "float32"}],
        "pvae": pvae.__version__,
        "torch": torch.__version__,
        "objective": "ELBO",
        "data": {
            "name": "bits",
            "kind": "binary",
            "binarize": None,
            "shape": [1, 4, 4],
            "sizes": {"train": 20, "valid": 10, "test": 0},
            "split": "train",
        },
        "seed": 7,
        "batch_size": 10,
        "steps": 4,
        "step_mode": "eager",
        "best_epoch": 2,
    }
    assert text.startswith('{\n  "format": 1,\n')
    assert text.endswith("}\n")


def test_several_parts_of_a_batch_and_own_entries_are_kept(tmp_path):
    encoder = nn.Linear(4, 2)

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = torch.stack([z.sum(-1), -z.sum(-1)], -1)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], 3]).to_event(1), obs=x)
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def guide(x, y):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(torch.cat([x, y[:, None].float()], -1)), 1.0).to_event(1))

    batch = (REALS, torch.arange(30) % 2)
    pvae.save(tmp_path, model, guide, batch, record={"note": "mine", "nothing": float("nan")})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["example_batch"] == [{"shape": [3], "dtype": "float32"}, {"shape": [], "dtype": "int64"}]
    assert (config["note"], config["nothing"]) == ("mine", None)
    before = encoder.weight.detach().clone()
    nn.init.zeros_(encoder.weight)
    pvae.load(tmp_path, model, guide)
    assert encoder.weight.equal(before)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_crash_leaves_the_old_file_and_no_other(fails, tmp_path, monkeypatch):
    pvae.save(tmp_path, *vae_pair(), X)
    before = files(tmp_path)

    def crash(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "replace")), crash)
        with pytest.raises(OSError, match="the disk is full"):
            pvae.save(tmp_path, *vae_pair(), X)
        with pytest.raises(OSError, match="the disk is full"):
            pvae.save(tmp_path / "new", *vae_pair(), X)
    assert not files(tmp_path / "new")
    (tmp_path / "new").rmdir()
    assert files(tmp_path) == before


def test_content_is_on_disk_before_the_old_file_goes(tmp_path, monkeypatch):
    """At every fsync the new content is whole in the temporary file, and the old file still stands."""
    pvae.save(tmp_path, *vae_pair(), X)
    before, seen = files(tmp_path), []
    fsync = os.fsync

    def look(handle):
        size = os.fstat(handle).st_size
        seen.append((size, {name: content for name, content in files(tmp_path).items() if name[0] != "."}))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    pvae.save(tmp_path, *vae_pair(), X)
    after = files(tmp_path)
    assert after.keys() == before.keys()
    assert after["checkpoint.safetensors"] != before["checkpoint.safetensors"]
    assert seen == [
        (len(after["checkpoint.safetensors"]), before),
        (len(after["config.json"]), {**before, "checkpoint.safetensors": after["checkpoint.safetensors"]}),
    ]


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save])
def test_pickles_are_refused_and_not_run(write, tmp_path):
    pair = vae_pair()
    pvae.save(tmp_path, *pair, X)
    before = values(pair, X)
    checkpoint, sprung = tmp_path / "checkpoint.safetensors", tmp_path / "sprung"
    write(Trap(sprung), checkpoint)
    with pytest.raises(ValueError, match=r"\A.*checkpoint\.safetensors is truncated or corrupt [^\n]*\Z"):
        pvae.load(tmp_path, *pair)
    assert not sprung.exists()
    assert values(pair, X).equal(before)
    # The trap does spring where pickles are loaded, or the test would show nothing.
    with checkpoint.open("rb") as file:
        torch.load(file, weights_only=False) if write is torch.save else pickle.load(file)
    assert sprung.exists()


# --- Weights that do not fit


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: vae_pair(width=7), ["has shape (6, 16)", "this pair expects (7, 16)", "build the pair with"]),
        (lambda: vae_pair(latent_dim=3), ["has shape (4, 6)", "this pair expects (6, 6)", "build the pair with"]),
        (
            lambda: vae_pair(guide=pvae.guides.FullCovariance),
            ["another pair", "missing full_covariance$$$encoder", "not in this pair mean_field$$$encoder", "build the"],
        ),
        (batch_norm_pair, ["another pair", "missing mean_field$$$encoder.net.1.bias", "build the pair as it was"]),
        (bare_pair, ["cannot run on a batch of shape (2, 1, 4, 4)"]),
    ],
    ids=["wider", "latent_dim", "guide", "buffers", "cannot run"],
)
def test_pair_of_another_build_is_refused_and_left_alone(other, words, tmp_path):
    pvae.save(tmp_path, *vae_pair(), X)
    pair = other()
    modules = [part for part in pair if isinstance(part, nn.Module)]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        pvae.load(tmp_path, *pair)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    for module, state in zip(modules, before, strict=True):
        assert all(value.equal(state[name]) for name, value in module.state_dict().items())
        assert module.training


def test_file_with_one_wrong_shape_changes_nothing(tmp_path):
    """The shape that differs comes last, so a copy that checks as it goes would have changed the others."""
    pair = vae_pair()
    pvae.save(tmp_path, *pair, X)
    state = weights(tmp_path)
    last = list(find_parameters(*pair, (X,)).leaves)[-1]
    changed = {name: value + 1 for name, value in state.items()} | {last: torch.zeros(99)}
    safetensors.torch.save_file(changed, tmp_path / "checkpoint.safetensors")
    before = values(pair, X)
    with pytest.raises(ValueError, match=r"saved weight .* has shape \(99,\)"):
        pvae.load(tmp_path, *pair)
    assert values(pair, X).equal(before)


# --- Devices


def test_device_is_where_the_pair_lives(tmp_path):
    pvae.save(tmp_path, *vae_pair(), X)
    pair = vae_pair()
    before = values(pair, X)
    with pytest.raises(ValueError, match=r"\Adevice 'gpu' cannot be used here: .*; give cpu, or cuda on a GPU\Z"):
        pvae.load(tmp_path, *pair, device="gpu")
    assert values(pair, X).equal(before)
    pvae.load(tmp_path, *pair, device=torch.device("cpu"))
    assert {p.device.type for part in pair for p in part.parameters()} == {"cpu"}
    assert not values(pair, X).equal(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_run_goes_to_a_gpu_and_back(tmp_path):
    pair = vae_pair()
    pvae.save(tmp_path / "cpu", *pair, X)
    on_gpu = pvae.load(tmp_path / "cpu", *vae_pair(), device="cuda")
    assert {p.device.type for part in on_gpu for p in (*part.parameters(), *part.buffers())} == {"cuda"}
    pvae.save(tmp_path / "gpu", *on_gpu, X.cuda())
    assert files(tmp_path / "gpu") == files(tmp_path / "cpu")
    # A pair that lives on the GPU is loaded there, and comes back to the CPU.
    pvae.load(tmp_path / "gpu", *on_gpu)
    assert values(on_gpu, X).equal(values(pair, X))


def test_a_flipped_bit_among_the_numbers_is_noticed(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(4, 3).round()
    model = pvae.models.VAE((3,), 2)
    guide = pvae.guides.MeanField(model, x, hidden=(4,))
    pvae.save(tmp_path, model, guide, x)
    file = tmp_path / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated or corrupt .*its numbers do not match its checksum"):
        pvae.load(tmp_path, model, guide)
