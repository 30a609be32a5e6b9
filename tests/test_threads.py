"""Calls from several threads run one after the other, and each gives what it gives alone."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pvae
from pvae.estimators import ImportanceSampling
from pvae.pair.sites import latent_sites
from tests.own_pairs import BatchNormPair

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def bare_pair(start):
    """Parameters in bare `pyro.param` statements, of the same names in every pair."""

    def model(x):
        loc = pyro.param("loc", torch.full((3,), start))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + loc, 0.5).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.full((3,), 0.1 * start))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * weight, 0.4).to_event(1))

    return model, guide


def job(number):
    """A function that trains a pair, or one that estimates with it: by number, with pairs and seeds of their own.

    The pair is built at once, for building nets draws from torch's global generator.
    """
    whole = BatchNormPair(number)
    pair = bare_pair(0.3 * number) if number % 2 else (whole.model, whole.guide)

    def train():
        mode = "traced" if number == 4 else "eager"
        result = pvae.fit(*pair, X, steps=3, batch_size=7, seed=number, step_mode=mode, progress=False)
        return result.losses, *result.parameters.values()

    def estimate():
        found = pvae.log_marginal(*pair, X, ImportanceSampling(5), batch_size=8, seed=number)
        return found.values, pvae.encode(pair[1], X)["z"]

    return estimate if number in (2, 6) else train


def world():
    return (
        {name: value.tolist() for name, value in pyro.get_param_store().items()},
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),
        torch.distributions.Distribution._validate_args,
        len(nn.modules.module._global_forward_pre_hooks),
    )


@pytest.fixture(scope="module")
def alone():
    return [job(number)() for number in range(8)]


def at_once(jobs):
    """Run functions in a thread each, which all start together."""
    barrier = threading.Barrier(len(jobs))

    def started(each):
        barrier.wait()
        return each()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(started, each) for each in jobs]]


@pytest.mark.parametrize(
    ("num_threads", "rounds"),
    [(2, 6), (4, 4), (8, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 24), (4, 16), (8, 10)))],
)
def test_every_thread_gets_what_it_gets_alone(num_threads, rounds, alone):
    pyro.param("elsewhere", torch.full((3,), 7.0))
    before = world()
    for start in range(rounds):
        numbers = [(start + i) % len(alone) for i in range(num_threads)]
        found = at_once([job(number) for number in numbers])
        for number, result in zip(numbers, found, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(result, alone[number], strict=True)), number
        assert world() == before


def test_a_look_of_one_thread_leaves_training_in_another_alone(alone):
    """A guide looks at its model when it is built, by hooks that see the modules of all threads."""
    model = BatchNormPair(9).model
    trained = threading.Event()

    def look():
        while not trained.is_set():
            latent_sites(model, X)

    jobs = [job(0) for _ in range(5)]

    def train():
        try:
            return [run() for run in jobs]
        finally:
            trained.set()

    _, found = at_once([look, train])
    assert all(torch.equal(one, other) for result in found for one, other in zip(result, alone[0], strict=True))


def test_an_error_in_one_thread_leaves_the_others_alone(alone):
    def broken(x):
        raise RuntimeError("no model")

    def fail():
        with pytest.raises(ValueError, match="no model"):
            pvae.fit(broken, None, X, steps=2, progress=False)

    _, found, _ = at_once([fail, job(1), fail])
    assert all(torch.equal(one, other) for one, other in zip(found, alone[1], strict=True))


def test_a_callback_may_call_pvae_itself():
    seen = []
    pair = bare_pair(0.5)

    def look(record):
        seen.append(pvae.log_marginal(*pair, X, ImportanceSampling(5)).mean)
        pvae.fit(*bare_pair(0.1), X, steps=1, progress=False)

    watched = pvae.fit(*pair, X, epochs=3, seed=4, callbacks=[look], step_mode="eager", progress=False)
    unwatched = pvae.fit(*bare_pair(0.5), X, epochs=3, seed=4, step_mode="eager", progress=False)
    assert len(seen) == 3
    assert watched.losses.equal(unwatched.losses)


class Encoded(Dataset):
    """Data that pvae itself makes when they are asked for."""

    def __init__(self, guide):
        self.guide = guide

    def __len__(self):
        return 6

    def __getitem__(self, index):
        codes = pvae.encode(self.guide, X[index : index + 1], seed=index)["z"]
        return torch.cat([codes, codes[:, :1]], 1)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_may_be_made_by_pvae_while_it_trains(num_workers):
    data = DataLoader(Encoded(BatchNormPair(0).guide), batch_size=3, num_workers=num_workers)
    given = torch.stack([data.dataset[index] for index in range(6)])
    streamed = pvae.fit(*bare_pair(0.5), data, epochs=2, step_mode="eager", progress=False)
    at_hand = pvae.fit(*bare_pair(0.5), DataLoader(given, batch_size=3), epochs=2, step_mode="eager", progress=False)
    assert streamed.losses.equal(at_hand.losses)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_forks_while_another_thread_trains_can_call_pvae():
    training, done = threading.Event(), threading.Event()

    def wait(record):
        training.set()
        done.wait()

    thread = threading.Thread(
        target=lambda: pvae.fit(*bare_pair(0.5), X, epochs=1, callbacks=[wait], progress=False), daemon=True
    )
    thread.start()
    training.wait()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            found = pvae.encode(bare_pair(1.0)[1], X[:1])["z"]
            os._exit(0 if found.shape == (1, 3) else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
