"""The flattened graph computes what the trace did, with leaves as inputs and no gradient that is a leaf itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import pvae
from pvae.graphs.flatten import flatten
from pvae.objectives import ELBO


def flat(function, leaves, *inputs):
    return flatten(make_fx(function)(*inputs), leaves)


def repeats(a, b, x):
    """Every kind of call that repeats its input, and some that only look like it."""
    zeros = torch.zeros(3, 3)
    y = (x @ a.t().t() * 1 / 1).pow(1).view(3, 3).expand(3, 3)
    y = torch.cat([y]) + b.neg().neg() * 2
    y = torch.add(zeros, y) + torch.add(zeros, y, alpha=3)
    y = y.split([3])[0] * torch.tensor(1) + (y * 1.0).to(torch.float64).sum()
    return [y, y.expand(2, 3, 3), y.sum(0, True)]


def test_flattening_changes_no_number():
    torch.manual_seed(0)
    a, b, x = torch.randn(3, 3), torch.randn(3), torch.randn(3, 3)
    graph = flat(lambda x: repeats(a, b, x), [a, b], x)
    for found, expected in zip(graph(a, b, x), repeats(a, b, x), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_leaves_are_inputs_and_draws_are_fresh():
    leaf = torch.randn(4)
    graph = flat(lambda x: [x * leaf + torch.randn(4)], [leaf], torch.ones(4))
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(graph(2 * leaf, torch.ones(4))[0])
    torch.manual_seed(0)
    torch.testing.assert_close(outputs[0], 2 * leaf + torch.randn(4))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_an_output_is_never_a_leaf_itself():
    leaf = torch.randn(4)
    graph = flat(lambda x: [leaf * 1, leaf.detach(), x.sum()], [leaf], torch.ones(4))
    product, detached, _ = graph(leaf, torch.ones(4))
    assert product.data_ptr() != leaf.data_ptr()
    assert detached is not leaf


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_clipping_treats_leaves_that_share_a_gradient_alike(step_mode):
    def model(x):
        a, b = pyro.param("a", torch.zeros(3)), pyro.param("b", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.full((4, 3), 10.0)
    values = pvae.fit(
        model,
        guide,
        x,
        objective=ELBO(),
        steps=1,
        batch_size=4,
        clip_norm=1.0,
        optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1.0),
        step_mode=step_mode,
    ).parameters
    # The gradient is -10 in all 6 places, so its norm is 10 sqrt 6, and a step of norm 1 moves each by 1 / sqrt 6.
    for name in ("a", "b"):
        torch.testing.assert_close(values[name], torch.full((3,), 6**-0.5), rtol=1e-4, atol=0)
