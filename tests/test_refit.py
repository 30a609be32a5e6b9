"""A guide trained against a frozen model."""

import pytest
import torch
from torch import nn

import pvae
from pvae.guides import Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.nets import MLP
from pvae.objectives import ELBO
from pvae.training import Aggressive


def linear():
    torch.manual_seed(0)
    model = LinearGaussian(5, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.9], [0.8, -0.4], [0.1, 1.2], [0.5, 0.5], [-0.7, 0.3]]))
    return model, pvae.sample(model, 300, like=torch.zeros(2, 5), seed=3)["x"]


@pytest.mark.parametrize("step_mode", ["eager", "traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_model_stays_as_it_is_and_the_bound_reaches_log_p(step_mode):
    model, x = linear()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guide = FullCovariance(model, x[:2], hidden=(32,))
    result = pvae.fit(
        model, guide, x, steps=1500, lr=5e-3, schedule="cosine", train="guide", step_mode=step_mode, progress=False
    )
    assert result.step_mode == step_mode
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert model.get_parameter(name).requires_grad
    with torch.no_grad():
        gap = (model.log_prob(x) - ELBO(400).bound(model, guide, x)).mean()
    assert -0.01 < gap < 0.03


class Noisy(nn.Module):
    """Dropout and batch statistics, to see whether they stay still."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, z):
        return self.layers(z.reshape(-1, 2)).reshape(*z.shape[:-1], 5)


def test_the_nets_of_a_frozen_model_are_in_evaluation_mode_and_those_of_the_guide_are_not():
    torch.manual_seed(0)
    x = torch.rand(40, 5).round()
    model = VAE((5,), 2, decoder=Noisy())
    encoder = nn.Sequential(MLP(5, (8,), 8), nn.BatchNorm1d(8))
    guide = MeanField(model, x, encoder=encoder)
    statistics = [norm.running_mean.clone() for norm in (model.decoder.layers[1], encoder[1])]
    modes = []
    model.decoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    pvae.fit(model, guide, x, steps=3, train="guide", step_mode="eager", progress=False)
    assert torch.equal(model.decoder.layers[1].running_mean, statistics[0])
    assert not torch.equal(encoder[1].running_mean, statistics[1])
    assert model.decoder.layers[2].training
    assert not any(modes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "model"}, "unknown train 'model': the choices are both, guide"),
        (
            {"train": "guide", "inference_steps": Aggressive()},
            "train='guide' moves the guide alone, inference_steps",
        ),
    ],
)
def test_options_are_checked(options, message):
    model, x = linear()
    with pytest.raises(ValueError, match=message):
        pvae.fit(model, MeanField(model, x), x, steps=1, **options)


def test_a_guide_without_parameters_of_its_own_is_refused():
    model, x = linear()
    with pytest.raises(ValueError, match="train asks to train the guide alone, and the guide has no parameter"):
        pvae.fit(model, Exact(model), x, steps=1, train="guide")


def test_a_broken_step_of_the_guide_alone_names_its_parameter():
    model, x = linear()
    guide = MeanField(model, x[:2], hidden=(4,))
    with pytest.raises(FloatingPointError, match=r"step \d: loss .* parameter .*'mean_field"):
        pvae.fit(model, guide, x, steps=9, lr=1e25, train="guide", progress=False)
