"""The ladder from a function to its graph, to the compiled graph; and what a graph computes once."""

import logging
import operator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader

import pvae
from pvae.estimators import ImportanceSampling
from pvae.estimators.weights import chunks
from pvae.graphs import matmul, replay
from pvae.graphs.flatten import flatten
from pvae.graphs.hoist import split
from pvae.graphs.replay import Replay
from pvae.pair.parameters import Parameters

aten = torch.ops.aten


class Scaled:
    """A function with one parameter, one buffer that counts its calls, and a draw."""

    def __init__(self, width=4):
        self.leaf = nn.Parameter(torch.arange(1.0, width + 1))
        self.calls = torch.zeros(())
        self.parameters = Parameters(leaves={"leaf": self.leaf}, buffers={"calls": self.calls}, modules=())

    def __call__(self, x):
        self.calls.add_(1)
        return [(x * self.leaf).tanh() + torch.randn_like(x), None, (x * self.leaf).detach().sum()]

    def replay(self, mode, calls_left=0):
        return Replay(self, self.parameters, mode, lambda: calls_left, "tests")


@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_a_replay_is_the_function(mode):
    function = Scaled()
    replayed = function.replay(mode)
    x = torch.linspace(-1, 1, 4)
    for call in range(1, 5):
        torch.manual_seed(call)
        found = replayed(x * call)
        assert function.calls == call
        torch.manual_seed(call)
        expected = [part.detach() if part is not None else None for part in Scaled()(x * call)]
        assert found[1] is expected[1] is None
        torch.testing.assert_close([found[0], found[2]], [expected[0], expected[2]])
        assert not found[0].requires_grad
        with torch.no_grad():
            function.leaf.copy_(torch.arange(1.0, 5.0))
    assert replayed.mode == mode


def test_auto_compiles_only_what_is_left_to_pay_for_it(monkeypatch):
    for calls_left, mode in ((1, "traced"), (10**9, "compiled")):
        monkeypatch.setattr(replay, "_SECONDS_TO_TRACE", 0.0)
        function = Scaled()
        replayed = function.replay("auto", calls_left)
        modes = []
        for _ in range(20):
            replayed(torch.ones(4))
            modes.append(replayed.mode)
        # The first calls are timed.
        assert modes[:15] == ["eager"] + ["traced"] * 14
        assert modes[-1] == mode
        assert function.calls == 20


class Timed(Scaled):
    """A function that takes a second by a clock that nothing else moves; so a trace, which runs it twice, takes two."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.now, self.calls_left, self.runs = 0.0, 0, 0
        monkeypatch.setattr(replay.time, "perf_counter", lambda: self.now)

    def __call__(self, x):
        self.now, self.runs = self.now + 1, self.runs + 1
        return super().__call__(x[:, :4])

    def shapes_traced(self, widths, mode="auto"):
        """The widths that had a graph by the end of these calls."""
        self.calls_left = len(widths)
        replayed = Replay(self, self.parameters, mode, lambda: self.calls_left, "tests")
        for width in widths:
            replayed(torch.ones(1, width))
            self.calls_left -= 1
        return [key[1][0][1] for key in replayed._graphs]


def test_auto_traces_one_shape_at_its_second_call(monkeypatch):
    function = Timed(monkeypatch)
    # A graph saves 0.4 of each second, and costs half a second as long as no trace has told.
    assert function.shapes_traced([4] * 4) == [4]
    # The first call, and two runs of the function for the trace at the second.
    assert function.runs == 3


@pytest.mark.parametrize(
    ("widths", "traced"),
    [
        ([4, 4], []),  # one call is left, which saves 0.4 seconds
        ([*range(4, 104)], []),  # no shape comes back
        ([*range(4, 104)] * 2, []),  # once more, of which nothing can be told
        ([4, 4, 4, 4, 5, 5], [4]),  # by now a trace is known to take 2 seconds, and one call is left
        ([4, 5] * 20, [4, 5]),
        ([4] * 9 + [5] + [4] * 9 + [5], [4]),
    ],
)
def test_auto_traces_the_shapes_that_can_be_expected_to_pay_for_it(widths, traced, monkeypatch):
    assert Timed(monkeypatch).shapes_traced(widths) == traced


def test_a_named_mode_traces_every_shape_at_its_first_call(monkeypatch):
    assert Timed(monkeypatch).shapes_traced([4, 5, 6], mode="traced") == [4, 5, 6]


def test_auto_leaves_more_shapes_than_it_keeps_graphs_for_to_the_function(monkeypatch, caplog):
    monkeypatch.setattr(replay, "_MOST_GRAPHS", 2)
    with caplog.at_level(logging.INFO, logger="pvae"):
        assert Timed(monkeypatch).shapes_traced([4, 5, 6, 7] * 20) == [4, 5]
    assert [record for record in caplog.records if record.name.startswith("pvae")] == []


def test_batches_of_many_lengths_are_not_traced_one_by_one():
    """Each of 30 lengths comes once or twice, so no graph would pay for itself."""
    torch.manual_seed(0)
    decoder, encoder = nn.Linear(2, 1), nn.Linear(1, 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z).expand(*z.shape[:-1], x.shape[1]), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, raw = encoder(x.mean(1, keepdim=True)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    batches = [torch.randn(5, length) for length in torch.randint(3, 33, (40,)).tolist()]
    loader = DataLoader(batches, batch_size=None)
    assert pvae.fit(model, guide, loader, epochs=1, progress=False).step_mode == "eager"


@pytest.mark.parametrize("trouble", ["no compiler", "an error"])
def test_what_cannot_be_compiled_stays_traced_and_says_so_once(trouble, monkeypatch, caplog):
    def refuse(graph, inputs):
        raise RuntimeError("no room\nfor kernels")

    if trouble == "no compiler":
        monkeypatch.setattr(replay, "compiler_present", lambda device: False)
    else:
        monkeypatch.setattr(replay, "compile_graph", refuse)
    function = Scaled()
    replayed = function.replay("compiled")
    with caplog.at_level(logging.INFO, logger="pvae"):
        for _ in range(20):
            replayed(torch.ones(4))
    assert replayed.mode == "traced"
    assert function.calls == 20
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("pvae")]
    reason = "to compile, install" if trouble == "no compiler" else "no room for kernels"
    assert line.startswith(f"tests run traced: {reason}")


def test_too_many_shapes_are_left_to_the_function(monkeypatch, caplog):
    monkeypatch.setattr(replay, "_MOST_GRAPHS", 3)
    replayed = Scaled(1).replay("traced")
    with caplog.at_level(logging.INFO, logger="pvae"):
        for rows in range(1, 7):
            replayed(torch.ones(rows, 1))
    assert replayed.mode == "eager"
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("pvae")]
    assert line == (
        "tests run eagerly, the pair cannot be traced: its data have more than 3 shapes, and each needs a graph"
    )


def test_repeated_calls_share_what_no_draw_changes():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
    leaves = [*encoder.parameters(), *decoder.parameters()]
    parameters = Parameters(leaves={str(i): leaf for i, leaf in enumerate(leaves)}, buffers={}, modules=())

    def function(x):
        loc = encoder(x)
        return [decoder(loc.expand(3, *loc.shape) + torch.randn(3, *loc.shape)).sum(-1) + loc.square().sum(-1)]

    x = torch.randn(5, 6)
    replayed = Replay(function, parameters, "traced", lambda: 0, "tests")
    again = replayed.repeatedly(x)
    (graph,) = replayed._graphs.values()

    def products(part):
        return sum(node.target in (torch.addmm, torch.mm) for node in part.graph.nodes)

    assert (products(graph.once), products(graph.traced)) == (1, 1)
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(again()[0])
    torch.manual_seed(3)
    torch.testing.assert_close(outputs[0], function(x)[0].detach())
    assert outputs[0].equal(outputs[1])
    assert not outputs[0].equal(outputs[2])


def test_what_is_computed_once_are_tensors_and_no_lists():
    """A captured graph is given them one by one; parts of a split are made again, for they are views."""
    torch.manual_seed(0)

    def function(x):
        left, right = x.chunk(2, -1)
        largest, _ = torch.nn.functional.layer_norm(x, x.shape[-1:]).sort(-1)
        return [(left - right) * torch.randn_like(left) + largest[:, :2]]

    x = torch.randn(3, 4)
    once, each = split(flatten(make_fx(function)(x), []), 1)
    values = once(x)
    assert sorted(tuple(value.shape) for value in values) == [(3, 2), (3, 4)]
    torch.manual_seed(1)
    expected = function(x)
    torch.manual_seed(1)
    assert each(x, *values)[0].equal(expected[0])


def test_what_is_written_to_is_never_shared():
    """`normal_` fills a fresh tensor at every call, so neither it nor what it makes is kept."""
    leaf = torch.ones(3)
    whole = flatten(make_fx(lambda x: [torch.empty(3).normal_() + x.exp() * leaf])(torch.ones(3)), [leaf])
    once, each = split(whole, 2)
    targets = [node.target for node in once.graph.nodes if node.op == "call_function"]
    assert targets == [torch.exp, torch.mul]
    (values,) = once(leaf, torch.ones(3))
    first, second = each(leaf, torch.ones(3), values)[0], each(leaf, torch.ones(3), values)[0]
    assert not first.equal(second)


# --- products by oneDNN

needs_onednn = pytest.mark.skipif(not matmul._gains(), reason="torch's own products are as fast on this processor")
LARGE, SMALL = 200, 20


def products_of(function, *inputs):
    graph = flatten(make_fx(function)(*inputs), [])
    swapped = [node for node in graph.graph.nodes if "pvae.linear" in str(node.target)]
    return graph, swapped


@needs_onednn
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c: a @ b,
        lambda a, b, c: a.t() @ b,
        lambda a, b, c: a @ b.t(),
        lambda a, b, c: torch.addmm(c, a, b),
        lambda a, b, c: torch.addmm(c, a, b.t()).tanh(),
        lambda a, b, c: torch.addmm(c, a, b).view(2, -1, LARGE).tanh().sum(0),
    ],
)
def test_large_products_are_those_of_torch(function):
    torch.manual_seed(0)
    inputs = torch.randn(LARGE, LARGE), torch.randn(LARGE, LARGE) / LARGE, torch.randn(LARGE)
    graph, swapped = products_of(lambda *x: [function(*x)], *inputs)
    assert len(swapped) == 1
    assert torch.tanh not in [node.target for node in graph.graph.nodes]
    exact = function(*(part.double() for part in inputs))
    torch.testing.assert_close(graph(*inputs)[0].double(), exact, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_a_product_that_is_used_before_its_tanh_is_kept():
    torch.manual_seed(0)
    a, b = torch.randn(LARGE, LARGE), torch.randn(LARGE, LARGE) / LARGE

    def function(a, b):
        product = a @ b
        return [product.tanh() + product]

    graph, swapped = products_of(function, a, b)
    assert [node.args[-1] for node in swapped] == ["none"]
    torch.testing.assert_close(graph(a, b)[0], function(a, b)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_products_and_other_precisions_stay_with_torch(dtype):
    size = SMALL if dtype == torch.float32 else LARGE
    inputs = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    _, swapped = products_of(lambda *x: [operator.matmul(*x)], *inputs)
    assert swapped == []


# --- when log p(x) is traced


def test_auto_traces_log_marginal_where_the_run_is_long_enough(monkeypatch):
    """One chunk per batch: the second is timed. What counts is the time that is left, here made short or long."""
    torch.manual_seed(0)
    model = pvae.models.LinearGaussian(4, 2)
    guide = pvae.guides.MeanField(model, torch.zeros(2, 4), hidden=(4,))
    x = torch.randn(40, 4)
    traced = []
    original = Replay.repeatedly
    monkeypatch.setattr(Replay, "repeatedly", lambda self, *inputs: traced.append(1) or original(self, *inputs))
    for seconds, calls in ((1e9, 0), (0.0, 8)):
        monkeypatch.setattr(chunks, "_SECONDS_TO_TRACE", seconds)
        traced.clear()
        pvae.log_marginal(model, guide, x, ImportanceSampling(20), batch_size=4)
        assert len(traced) == calls
