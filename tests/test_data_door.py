"""One door for data: what numpy, torch's layouts and streams hold is what the pair sees, or one line says why not."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import pvae
from pvae.estimators import ImportanceSampling
from pvae.models.likelihoods import Gaussian
from pvae.nets import MLP
from pvae.support.batch import as_batch

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
COUNTS = torch.poisson(torch.full((40, 6), 0.7), generator=torch.Generator().manual_seed(0))


def pair(likelihood=None, x=X):
    torch.manual_seed(0)
    likelihood = Gaussian("shared") if likelihood is None else likelihood
    model = pvae.models.VAE((6,), 2, likelihood=likelihood, decoder=MLP(2, (5,), likelihood.parameter_shape((6,))))
    return model, pvae.guides.MeanField(model, x[:2], hidden=(5,))


# --- What is taken, and what it becomes


FORMS = {
    "float32": lambda: X.numpy(),
    "float64": lambda: X.double().numpy(),
    "read-only": lambda: np.frombuffer(X.numpy().tobytes(), dtype=np.float32).reshape(40, 6),
    "big-endian": lambda: X.numpy().astype(">f4"),
    "columns first": lambda: np.asfortranarray(X.numpy()),
    "reversed twice": lambda: X.numpy()[::-1].copy()[::-1],
    "COO": lambda: X.to_sparse(),
    "CSR": lambda: X.to_sparse_csr(),
    "CSC": lambda: X.to_sparse_csc(),
    "with a history": lambda: X.clone().requires_grad_() * 1.0,
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_numbers_gives_the_same_results(form):
    model, guide = pair()
    expected = pvae.fit(model, guide, X, epochs=1, batch_size=10, progress=False, step_mode="eager").losses
    model, guide = pair()
    found = pvae.fit(model, guide, FORMS[form](), epochs=1, batch_size=10, progress=False, step_mode="eager").losses
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    expected = pvae.log_marginal(model, guide, X, ImportanceSampling(5)).values
    torch.testing.assert_close(pvae.log_marginal(model, guide, FORMS[form](), ImportanceSampling(5)).values, expected)


def test_every_public_function_takes_arrays_of_numpy():
    model, _ = pair()
    x = X.double().numpy()
    guide = pvae.guides.MeanField(model, x[:2], hidden=(5,))
    torch.manual_seed(1)
    found = pvae.log_weights(model, guide, x, 3).values
    torch.manual_seed(1)
    assert torch.equal(found, pvae.log_weights(model, guide, X, 3).values)
    assert pvae.check(model, guide, x) == []
    for function in (pvae.encode, lambda _, data: pvae.reconstruct(model, guide, data)):
        for one, other in zip(function(guide, x).values(), function(guide, X).values(), strict=True):
            assert torch.equal(one, other)


def test_whole_numbers_of_numpy_stay_whole():
    (found,) = as_batch(np.array([[1, 2], [3, 2**40]]))
    assert found.dtype == torch.int64
    assert found.tolist() == [[1, 2], [3, 2**40]]
    (found,) = as_batch(np.array([[1, 2**16 - 1]], dtype=np.uint16))
    assert (found.dtype, found.tolist()) == (torch.int64, [[1, 2**16 - 1]])


class Table:
    def to_numpy(self):
        return X.numpy()


REFUSED = {
    "a list": (lambda: X.tolist(), "data must be a tensor.*torch.as_tensor"),
    "None": (lambda: None, "data must be a tensor.*got None"),
    "a path": (lambda: "cells.csv", r"pvae\.data\.load"),
    "a data frame": (lambda: Table(), r"give its \.to_numpy\(\)"),
    "a masked array": (lambda: np.ma.masked_array(X.numpy(), X.numpy() > 1), "masked array.*pvae.data.missing"),
    "words": (lambda: np.array([["a", "b"]]), "must be numbers"),
    "objects": (lambda: np.array([[1, None]], dtype=object), "must be numbers"),
    "times": (lambda: np.array([["2020-01-01"]], dtype="datetime64[D]"), "must be numbers"),
    "complex numbers": (lambda: X.to(torch.complex64), "must be real numbers"),
    "eight bits": (lambda: X.to(torch.float8_e4m3fn), "must be real numbers"),
    "no data": (lambda: X[:0], "empty data"),
    "no features": (lambda: X[:, :0], "empty data"),
    "a number": (lambda: torch.tensor(1.0), "empty data"),
    "no values": (lambda: X.to("meta"), "without values"),
    "ragged": (lambda: torch.nested.nested_tensor([X[0], X[1, :3]]), "nested"),
    "parts of two lengths": (lambda: (X, X[:3]), r"equal length, got \[3, 40\]"),
    "no parts": (lambda: (), "equal length, got no part"),
    "nan": (lambda: torch.where(X > 2, torch.nan, X), "nan or inf, the first in datum"),
    "beyond float32": (lambda: X.double().numpy() * 1e200, "nan or inf"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_data_is_refused_at_every_entry(form):
    make, words = REFUSED[form]
    data = make()
    model, guide = pair()
    before = [p.clone() for p in model.parameters()]
    for call in (
        lambda: pvae.fit(model, guide, data, epochs=1, progress=False),
        lambda: pvae.log_marginal(model, guide, data),
        lambda: pvae.log_weights(model, guide, data, 3),
        lambda: pvae.check(model, guide, data),
        lambda: pvae.encode(guide, data),
        lambda: pvae.reconstruct(model, guide, data),
        lambda: pvae.guides.MeanField(model, data),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) <= 300
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# --- Streams


class Rows(IterableDataset):
    """The rows of a tensor, as a stream that has no length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from self.rows


class Once(IterableDataset):
    def __init__(self, rows):
        self.left = iter(rows)

    def __iter__(self):
        return self.left


@pytest.mark.parametrize("mode", ["eager", "auto", "traced"])
def test_a_stream_trains_and_evaluates_as_its_rows_do(mode):
    options = {"epochs": 3, "progress": False, "step_mode": mode}
    found, expected = (pvae.fit(*pair(), DataLoader(data, batch_size=10), **options) for data in (Rows(X), list(X)))
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
    assert [record["step"] for record in found.history] == [4, 8, 12]
    values = [
        pvae.log_marginal(*pair(), data, ImportanceSampling(5), batch_size=10).values
        for data in (DataLoader(Rows(X), batch_size=10), DataLoader(list(X), batch_size=10))
    ]
    torch.testing.assert_close(*values)


def test_steps_of_a_stream_go_through_as_many_passes_as_they_need():
    result = pvae.fit(*pair(), DataLoader(Rows(X), batch_size=10), steps=10, progress=False)
    assert [record["step"] for record in result.history] == [4, 8, 10]


def test_what_a_stream_does_not_tell_is_asked_for():
    with pytest.raises(ValueError, match=r"schedule='cosine' needs the number of steps.*give steps="):
        pvae.fit(*pair(), DataLoader(Rows(X), batch_size=10), epochs=2, schedule="cosine", progress=False)
    pvae.fit(*pair(), DataLoader(Rows(X), batch_size=10), steps=2, schedule="cosine", progress=False)
    with pytest.raises(ValueError, match="the stream Once must give its data anew"):
        pvae.fit(*pair(), DataLoader(Once(X), batch_size=10), epochs=2, progress=False)
    with pytest.raises(ValueError, match="gave no batch"):
        pvae.fit(*pair(), DataLoader(Rows(X[:0]), batch_size=10), epochs=2, progress=False)
    with pytest.raises(ValueError, match=r"data must be a tensor.*got {"):
        pvae.fit(*pair(), DataLoader([{"x": row} for row in X], batch_size=10), epochs=1, progress=False)
    bad = X.clone()
    bad[33, 2] = math.inf
    with pytest.raises(ValueError, match="the first in datum 33"):
        pvae.fit(*pair(), DataLoader(Rows(bad), batch_size=10), epochs=1, progress=False)


# --- All data are held to the support of what is observed


def likelihoods():
    """Likelihood, good data, and one value that it cannot score in column 3."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(60, 6, generator=generator) * 0.8 + 0.1
    bits, counts, grid = unit.round(), torch.poisson(unit * 9, generator=generator), (unit * 255).round() / 255
    make = pvae.models.likelihoods
    table = torch.cat([unit, counts[:, :2], bits[:, :1], torch.floor(unit[:, :1] * 3)], 1)[:, 4:]
    return {
        "Bernoulli": (make.Bernoulli(), bits, 0.5),
        "Beta": (make.Beta(), unit, 1.0),
        "Categorical": (make.Categorical(7), torch.floor(unit * 7), 7.0),
        "Columns": (make.Columns(("real", "real", "count", "count", "binary", ("categorical", 3))), table, 2.5),
        "ContinuousBernoulli": (make.ContinuousBernoulli(), unit, 1.5),
        "DiscretizedLogistic": (make.DiscretizedLogistic(), grid, 0.5),
        "DiscretizedLogisticMixture": (make.DiscretizedLogisticMixture(), grid, 0.5),
        "Multinomial": (make.Multinomial(), counts, 2.5),
        "NegativeBinomial": (make.NegativeBinomial(), counts, 2.5),
        "Poisson": (make.Poisson(), counts, -1.0),
        "ZeroInflatedNegativeBinomial": (make.ZeroInflatedNegativeBinomial(), counts, 2.5),
    }


def test_every_likelihood_with_a_support_is_in_the_table():
    named = {name for name in dir(pvae.models.likelihoods) if name[0].isupper()}
    assert named == likelihoods().keys() | {"Gaussian", "StudentT"}  # these take any number


def placed(x, row, value):
    x = x.clone()
    x[row, 3] = value
    return x


@pytest.mark.parametrize("row", [0, 33, 59])
@pytest.mark.parametrize("name", likelihoods())
def test_a_datum_that_cannot_be_scored_is_found_wherever_it_stands(name, row):
    likelihood, x, value = likelihoods()[name]
    model, guide = pair(likelihood, x)
    bad = placed(x, row, value)
    words = f"outside the support of .*at datum {row}"
    loaders = [DataLoader(bad, batch_size=10), DataLoader(Rows(bad), batch_size=10)]
    for data in (bad, bad.numpy(), *loaders, pvae.data.DataSet("bad", bad), (bad,)):
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=words):
            pvae.fit(model, guide, data, epochs=1, batch_size=10, progress=False)
        if not isinstance(data, DataLoader):
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for data in (bad, *loaders, pvae.data.DataSet("bad", x, test=bad)):
        with pytest.raises(ValueError, match=words):
            pvae.log_marginal(model, guide, data, ImportanceSampling(3), batch_size=10)
    with pytest.raises(ValueError, match=f"the validation split: .*{words}"):
        pvae.fit(model, guide, pvae.data.DataSet("bad", x, valid=bad), epochs=1, progress=False)
    with pytest.raises(ValueError, match=words):
        pvae.log_weights(model, guide, bad, 3)
    assert math.isfinite(pvae.fit(model, guide, x, epochs=1, progress=False).losses[-1])


@pytest.mark.parametrize("row", [0, 30_000, 49_999])
def test_many_data_are_looked_through_to_the_end(row):
    net = nn.Linear(1, 16)

    def model(x, transform=torch.clone):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=transform(x))

    x = (torch.rand(50_000, 16) < 0.5).float()
    for observe in (lambda x: x, torch.sqrt):  # as it is, and computed
        pair = partial(model, transform=observe), None
        pvae.fit(*pair, x, steps=1, progress=False)
        with pytest.raises(ValueError, match=f"outside the support of Bernoulli.*at datum {row}$|at datum {row};"):
            pvae.fit(*pair, placed(x, row, 0.5), steps=1, progress=False)


def test_labels_beside_data_that_are_drawn_binary_are_looked_at_too():
    def model(x, label):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.expand(*z.shape[:-1], 6)).to_event(1), obs=x)
            pyro.sample("label", dist.Poisson(z[..., 0].exp()), obs=label)

    grey, label = torch.rand(300, 6), torch.ones(300)

    def data(label):
        grey_set = pvae.data.DataSet("grey", grey, kind="unit", beside={"train": label})
        return pvae.data.binarized(grey_set, "dynamic")

    pvae.fit(model, None, data(label), steps=1, progress=False)
    label[207] = 1.5
    with pytest.raises(ValueError, match=r"site 'label'.*outside the support of Poisson.*at datum 207"):
        pvae.fit(model, None, data(label), steps=1, progress=False)


def test_what_is_computed_from_the_data_is_looked_at_too():
    net = nn.Linear(2, 6)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=(x / 2).abs())

    x = (torch.rand(60, 6) < 0.5).float() * 2
    pvae.fit(model, None, x, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"site 'x'.*outside the support of Bernoulli.*at datum 41"):
        pvae.fit(model, None, placed(x, 41, 1.0), epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"site 'x'.*outside the support of Bernoulli.*at datum 41"):
        pvae.log_marginal(model, None, placed(x, 41, 1.0))


def test_steps_of_a_series_are_looked_at_one_by_one():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for t in pyro.markov(range(x.shape[1])):
                pyro.sample(f"x_{t}", dist.Poisson(z.exp()), obs=x[:, t])

    x = torch.poisson(torch.ones(60, 4))
    assert torch.isfinite(pvae.log_marginal(model, None, x, ImportanceSampling(50)).values).all()
    with pytest.raises(ValueError, match=r"site 'x_3'.*outside the support of Poisson.*at datum 41"):
        pvae.log_marginal(model, None, placed(x, 41, -1.0))


def test_what_a_mask_leaves_out_may_lie_anywhere():
    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Gamma(2.0, z.exp()[..., None]).mask(observed).to_event(1), obs=x)

    x = torch.rand(60, 4) + 0.1
    observed = torch.rand(60, 4) < 0.7
    filled = torch.where(observed, x, 0.0)
    expected = pvae.log_marginal(model, None, (torch.where(observed, x, 1.0), observed), ImportanceSampling(9))
    found = pvae.log_marginal(model, None, (filled, observed), ImportanceSampling(9))
    torch.testing.assert_close(found.values, expected.values)
    row = int(observed[:, 3].nonzero()[-1])
    with pytest.raises(ValueError, match=f"outside the support of Gamma.*at datum {row}"):
        pvae.log_marginal(model, None, (placed(filled, row, -1.0), observed))


def test_imputation_looks_at_its_data_too():
    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = z[..., None].expand(*z.shape, 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).mask(observed).to_event(1), obs=x)

    x = (torch.rand(60, 4) < 0.5).float()
    observed = torch.ones(60, 4, dtype=torch.bool)
    observed[:, 0] = False
    assert pvae.impute(model, None, (x.numpy(), observed.numpy()), 50, 5).mean.shape == (60, 4)
    with pytest.raises(ValueError, match=r"outside the support of Bernoulli.*at datum 41"):
        pvae.impute(model, None, (placed(x, 41, 0.5), observed), 50, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.5, 1e-30, 1 - 1e-7, 1 + 2e-7, -1.0, 2.0, 3e38])
def test_a_value_however_near_to_a_bit_is_none(value, dtype):
    net = nn.Linear(1, 6).to(dtype)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    bits = (X > 0).to(dtype)
    pvae.fit(model, None, bits.where(bits > 0, -0.0), steps=1, progress=False)
    with pytest.raises(ValueError, match=r"outside the support of Bernoulli.*at datum 39"):
        pvae.fit(model, None, placed(bits, 39, value), steps=1, progress=False)
