"""However many particles, memory stays flat, and exactly so many are drawn."""

import subprocess
import sys
import textwrap

import pyro
import pytest
import torch

import pvae
from pvae.estimators import ImportanceSampling, PriorSampling
from tests import own_pairs

SCRIPT = """
import resource, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import pvae
from pvae.estimators import ImportanceSampling

x = (pvae.data.load("digits").test[:20] > 0.5).float()
torch.manual_seed(0)
model = pvae.models.VAE((1, 8, 8), 2, decoder=pvae.nets.MLP(2, (32,), (1, 8, 8)))
guide = pvae.guides.MeanField(model, x, hidden=(32,))
result = pvae.log_marginal(model, guide, x, ImportanceSampling({num_samples}))
kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
print(kibibytes * 1024, result.mean, result.mc_standard_error, result.ess.max().item())
"""


def peak_and_result(num_samples):
    """Peak memory of a fresh process in bytes, and the mean, its error and the largest ESS that it found."""
    script = textwrap.dedent(SCRIPT).format(path=sys.path, num_samples=num_samples)
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return tuple(float(number) for number in output.split())


def test_peak_memory_does_not_grow_with_the_number_of_particles():
    few, many = peak_and_result(100), peak_and_result(25_000)
    # The pixels of all particles at once would be 20 x 25,000 x 64 floats, an eighth of a gigabyte for each operation.
    assert many[0] - few[0] < 50e6
    assert abs(few[1] - many[1]) < 5 * few[2] + 0.01
    assert many[3] > 100


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 125, 250, 1000, None])
def test_exactly_as_many_particles_as_asked(chunk_size):
    pair = own_pairs.exact()
    estimator = ImportanceSampling(250, chunk_size=chunk_size)
    found = pvae.log_marginal(pair.model, pair.guide, pair.batch, estimator)
    # Equal weights have as large an effective sample as there are weights.
    torch.testing.assert_close(found.ess, torch.full((12,), 250.0).double(), rtol=1e-6, atol=0)
    assert found.num_samples == 250


@pytest.mark.parametrize("strict", [False, True], ids=["particles", "copies"])
@pytest.mark.parametrize("chunk_size", [1, 100, 250, None])
def test_the_guide_is_asked_for_each_particle_once(chunk_size, strict):
    """The looks at a pair draw as well, but as often for any K, so what K adds is counted."""
    pair = own_pairs.plain(strict=strict)
    rows = []

    def guide(x):
        with pyro.poutine.trace() as run:
            pair.guide(x)
        rows.append(run.trace.nodes["z"]["value"].numel() // 2)

    counted = {}
    for num_samples in (300, 600):
        rows.clear()
        # A traced guide is asked no more, and the clock decides what is traced.
        estimator = ImportanceSampling(num_samples, chunk_size=chunk_size, step_mode="eager")
        pvae.log_marginal(pair.model, guide, pair.batch, estimator)
        counted[num_samples] = sum(rows)
    # Chunks of one size may draw a few particles beyond K, at most one per chunk, which are left out.
    assert 0 <= counted[600] - counted[300] - 300 * 12 <= 7 * 12


def test_prior_sampling_draws_as_many_too():
    """A model whose likelihood ignores z has equal weights under its prior."""

    def model(x):
        shift = pyro.param("shift", torch.zeros(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", own_pairs.PRIOR)
            pyro.sample("x", pyro.distributions.Normal(shift, 1.0).to_event(1), obs=x)

    found = pvae.log_marginal(model, None, torch.ones(3, 1), PriorSampling(250, chunk_size=100))
    torch.testing.assert_close(found.ess, torch.full((3,), 250.0).double(), rtol=1e-6, atol=0)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).double()
    torch.testing.assert_close(found.values, exact.expand(3), rtol=1e-6, atol=0)
