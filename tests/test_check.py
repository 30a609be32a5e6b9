"""`pvae.check` says what is wrong with a pair, where, and what to do; `fit` refuses with the same lines."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pvae
from pvae.objectives import ELBO, IWAE
from tests import own_pairs
from tests.own_pairs import PAIRS, pictures

BITS = pictures(6, (4,))
PRIOR = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def model_of(likelihood=None, prior=PRIOR, site="z", plate=len):
    """A model with one part to swap; one parameter, so that there is something to train."""

    def model(x):
        slope = pyro.param("slope", torch.ones(4))
        with pyro.plate("data", plate(x)):
            z = pyro.sample(site, prior)
            logits = z.sum(-1, keepdim=True) * slope
            pyro.sample("x", likelihood(logits) if likelihood else dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return model


def guide_of(posterior=None, sites=("z",), plate=len):
    def guide(x):
        loc = pyro.param("z_loc", torch.zeros(2))
        with pyro.plate("data", plate(x)):
            for site in sites:
                pyro.sample(site, posterior(x) if posterior else dist.Normal(loc, 1.0).to_event(1))

    return guide


def outside(x):
    loc = pyro.param("z_loc", torch.zeros(2))
    pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def model_outside(x):
    slope = pyro.param("slope", torch.ones(4))
    z = pyro.sample("z", PRIOR)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=z.sum() * slope).to_event(1), obs=x)


def never_registered():
    net = nn.Linear(2, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    return model


class OwnParameter(nn.Module):
    """A method that uses a parameter of its object, which registers no more than a part of itself."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def model(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.Bernoulli(logits=self.net(z) + self.shift).to_event(1), obs=x)


GREY = torch.linspace(0, 1, 24).reshape(6, 4)
MISTAKES = {
    "missing site": (
        (model_of(), guide_of(sites=()), BITS),
        "site 'z': is latent in the model and missing from the guide; sample 'z' in the guide",
    ),
    "extra site": (
        (model_of(), guide_of(sites=("z", "w")), BITS),
        "site 'w': is in the guide but absent from the model; drop it from the guide",
    ),
    "site of the data": (
        (model_of(), guide_of(sites=("z", "x"), posterior=lambda x: PRIOR), BITS),
        "site 'x': is in the guide but observed in the model; drop it from the guide",
    ),
    "site of another name": (
        (model_of(), guide_of(sites=("zed",)), BITS),
        "site 'z': is latent in the model and missing from the guide; sample 'z' in the guide\n"
        "site 'zed': is in the guide but absent from the model; drop it, or rename it to one of ['z']",
    ),
    "event shapes": (
        (model_of(), guide_of(posterior=lambda x: dist.Normal(torch.zeros(3), 1.0).to_event(1)), BITS),
        "site 'z': has event shape (3,) in the guide, (2,) in the model; build the guide for this model, with the same "
        "to_event",
    ),
    "grey pixels": (
        (model_of(), guide_of(), GREY),
        "site 'x': holds values outside the support of Bernoulli (grey pixels), range [0, 1]; binarise the data "
        "(binarize='dynamic', 'static' or 'threshold' in pvae.data.load) or use a likelihood for grey values "
        "(ContinuousBernoulli, DiscretizedLogistic or Gaussian)",
    ),
    "scale of the data": (
        (model_of(), guide_of(), GREY * 255),
        "site 'x': holds values outside the support of Bernoulli, range [0, 255]; rescale the data, or use a "
        "likelihood whose support holds [0, 255]",
    ),
    "support of another likelihood": (
        (model_of(lambda logits: dist.Gamma(logits.exp(), 1.0).to_event(1)), guide_of(), GREY - 1),
        "site 'x': holds values outside the support of Gamma, range [-1, 0]; rescale the data, or use a "
        "likelihood whose support holds [-1, 0]",
    ),
    "latents outside the data plate": (
        (model_outside, outside, BITS),
        "guide: site 'z' lies outside the data plate; open `with pyro.plate('data', len(x)):` around every site, and "
        "make what is shared by all data a parameter\n"
        "model: site 'z' lies outside the data plate; open `with pyro.plate('data', len(x)):` around every site, and "
        "make what is shared by all data a parameter",
    ),
    "plate of another length": (
        (model_of(plate=lambda x: 5), guide_of(plate=lambda x: 5), BITS),
        "guide: the data plate 'data' holds 5 data, the batch 6; give the plate the length of the batch (a subsampling "
        "plate takes subsample_size=len(x))\n"
        "model: the data plate 'data' holds 5 data, the batch 6; give the plate the length of the batch (a subsampling "
        "plate takes subsample_size=len(x))",
    ),
    "net that is not registered": (
        (never_registered(), guide_of(), BITS),
        "net Linear: is used but registered by no pyro.module, so it is not trained; call pyro.module('name', net) "
        "where it is used, or freeze it with requires_grad_(False)",
    ),
    "parameter beside the registered net": (
        (OwnParameter().model, guide_of(), BITS),
        "net OwnParameter: is used but registered by no pyro.module, so it is not trained; call pyro.module('name', "
        "net) where it is used, or freeze it with requires_grad_(False)",
    ),
    "site without a pathwise gradient": (
        (
            model_of(prior=dist.Poisson(torch.ones(2)).to_event(1)),
            guide_of(posterior=lambda x: dist.Poisson(pyro.param("rate", torch.ones(2))).to_event(1)),
            BITS,
        ),
        "site 'z': Poisson has no pathwise gradient; use a reparameterised distribution, or an objective with "
        "gradient='score'",
    ),
}


def lines(pair, **options):
    return [str(finding) for finding in pvae.check(*pair, **options)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_named_with_its_fix(mistake):
    pair, expected = MISTAKES[mistake]
    found = pvae.check(*pair)
    assert [str(finding) for finding in found] == expected.split("\n")
    assert {finding.level for finding in found} == {"error"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_fit_refuses_with_the_same_lines(mistake):
    pair, expected = MISTAKES[mistake]
    with pytest.raises(ValueError, match="; ") as caught:
        pvae.fit(*pair, steps=1, progress=False)
    assert str(caught.value) == expected.replace("\n", " | ")


def test_missing_to_event_is_named():
    # Without it the pixels are a batch dim, which does not fit a plate of six data.
    pair = model_of(lambda logits: dist.Bernoulli(logits=logits)), guide_of(), BITS
    found = (
        "cannot run on a batch of shape (6, 4): Shape mismatch inside plate('data') at site x dim -1, 6 vs 4; give the "
        "plate the length of the batch, and call .to_event(n) on a distribution over n dims of a datum"
    )
    assert lines(pair) == [f"model: {found}"]
    with pytest.raises(ValueError, match="to_event") as caught:
        pvae.fit(*pair, steps=1, progress=False)
    assert str(caught.value) == f"the pair {found}"
    # With as many data as pixels nothing fails, and log p(x) would be a sum over the wrong dim.
    pair = model_of(lambda logits: dist.Bernoulli(logits=logits)), guide_of(), BITS[:4]
    assert lines(pair) == [
        "site 'x': has batch shape (4, 4) in the model, the data plate holds [4]; call .to_event(n) on its "
        "distribution, n being the dims of one datum"
    ]


def test_objectives_that_need_no_pathwise_gradient():
    pair, expected = MISTAKES["site without a pathwise gradient"]
    for objective in (None, ELBO(), IWAE(2), TraceMeanField_ELBO()):
        assert lines(pair, objective=objective) == [expected]
    for objective in (TraceGraph_ELBO(), Trace_ELBO()):
        assert lines(pair, objective=objective) == []
        result = pvae.fit(*pair, objective=objective, steps=2, progress=False)
        assert result.losses.isfinite().all()


def test_batch_statistics_are_a_warning(caplog):
    pair = PAIRS["convolutional"]()
    line = (
        "BatchNorm: is in training mode, so one datum's density depends on the others in its batch; call .eval() "
        "before you evaluate by hand (pvae.log_marginal does)"
    )
    (finding,) = pvae.check(*pair)
    assert (str(finding), finding.level) == (line, "warning")
    with caplog.at_level(logging.WARNING, logger="pvae"):
        pvae.fit(*pair, steps=1, progress=False)
    # Training is where batch statistics belong, so it says nothing.
    assert not [record for record in caplog.records if record.name.startswith("pvae")]
    pair.model.__self__.eval()
    assert pvae.check(*pair) == []


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "convolutional"])
def test_clean_pairs_have_no_findings(name):
    assert pvae.check(*PAIRS[name]()) == []


@pytest.mark.parametrize("guide", ["MeanField", "FullCovariance", "Delta"])
def test_built_in_pairs_have_no_findings(guide):
    model = pvae.models.VAE((4,), 2)
    assert lines((model, getattr(pvae.guides, guide)(model, BITS), BITS)) == []


def test_frozen_nets_and_grey_likelihoods_have_no_findings():
    frozen = nn.Linear(2, 4).requires_grad_(False)

    def model(x):
        slope = pyro.param("slope", torch.ones(4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.ContinuousBernoulli(logits=frozen(z) * slope).to_event(1), obs=x)

    assert lines((model, guide_of(), GREY)) == []
    assert pvae.fit(model, guide_of(), GREY, steps=2, progress=False).losses.isfinite().all()


def test_a_pair_that_cannot_run_says_why():
    def model(x):
        raise ValueError("a sentence\n  of the author's own")

    assert lines((model, guide_of(), BITS)) == [
        "model: cannot run on a batch of shape (6, 4): a sentence of the author's own; see the shapes"
    ]


def test_a_pair_that_cannot_be_traced_gets_a_note_that_says_why():
    pair = own_pairs.plain()

    def model(x):
        if x[0, 0] > 5:
            raise RuntimeError("a branch on data")
        pair.model(x)

    (note,) = pvae.check(model, pair.guide, pair.batch)
    assert note.level == "note"
    assert str(note).startswith("pair: cannot be traced: ")
    assert "they run eagerly now" in note.fix


# --- tensors that nothing registers

LOOSE = nn.Parameter(torch.zeros(4))
UNSTATED = (
    "asks for a gradient, but no pyro.param or pyro.module states it, so it is not trained; state it by pyro.param, "
    "hold it in a module given to pyro.module, or freeze it with requires_grad_(False)"
)


class Affine:
    """A decoder that is no module."""

    def __init__(self):
        self.weight, self.rest = nn.Parameter(torch.ones(2, 4)), {"shift": torch.zeros(4, requires_grad=True)}

    def __call__(self, z):
        return z @ self.weight + self.rest["shift"]


def loose_pair():
    """A plain object, a global, a closure and a net of which nobody calls anything; all of them are to be trained."""
    decoder, loc, net = Affine(), nn.Parameter(torch.zeros(2)), nn.Linear(4, 2)

    def model(x):
        slope = pyro.param("slope", torch.ones(4), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.Normal(decoder(z) + LOOSE, slope).to_event(1), obs=x)

    def guide(x):
        # An auxiliary leaf, as refinement by gradients makes, is nobody's parameter.
        step = torch.zeros(2, requires_grad=True)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ net.weight.T + loc + step, 1.0).to_event(1))

    return model, guide, {"weight": decoder.weight, "shift": decoder.rest["shift"], "loc": loc, "net": net.weight}


def test_tensors_that_no_statement_holds_are_named():
    model, guide, held = loose_pair()
    # That of the data is no parameter either.
    x = torch.zeros(6, 4, requires_grad=True)
    found = {str(finding) for finding in pvae.check(model, guide, x)}
    names = {"LOOSE": 4, "decoder.rest['shift']": 4, "decoder.weight": (2, 4), "loc": 2, "net.weight": (2, 4)}
    assert found == {
        f"tensor '{name}': of shape {shape if isinstance(shape, tuple) else (shape,)} {UNSTATED}"
        for name, shape in names.items()
    }
    with pytest.raises(ValueError, match="tensor 'loc': of shape") as refusal:
        pvae.fit(model, guide, x.detach(), epochs=1, progress=False)
    assert set(str(refusal.value).split(" | ")) == found
    LOOSE.requires_grad_(False)
    try:
        for tensor in held.values():
            tensor.requires_grad_(False)
        assert pvae.check(model, guide, x) == []
    finally:
        LOOSE.requires_grad_(True)


def test_a_tensor_without_a_name_in_sight_is_reported_by_its_shape():
    hidden = torch.zeros(4, requires_grad=True).unbind()  # views, whose leaf no name reaches

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", PRIOR)
            logits = torch.stack(hidden) + z.sum(-1, keepdim=True)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    assert list(map(str, pvae.check(model, guide_of(), BITS))) == [f"a tensor: of shape (4,) {UNSTATED}"]
