"""The benchmarks run, and their hand-written rival computes what pvae computes."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import pvae

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


ALONE = ["epoch_overhead", "first_look", "log_marginal", "memory", "scaling", "startup", "summing_out", "train_step"]
COMMANDS = {
    "run": ("run.py", "--smoke"),
    **{name: (f"{name}.py", "--smoke") for name in ALONE},
    "mnist_burda": ("mnist_burda.py", "--smoke", "--epochs", "3"),
    "no data": ("mnist_burda.py",),
    "gpu": ("gpu.py", "--smoke"),
    "no gpu": ("gpu.py",),
}


@dataclass
class Result:
    code: int
    output: str
    errors: str
    json: Path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Every script, all at once: most of their time is the import of torch, and inductor's."""
    folder = tmp_path_factory.mktemp("benchmarks")
    environment = {name: value for name, value in os.environ.items() if name != "PVAE_DATA_ROOT"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = {
        name: subprocess.Popen(
            [sys.executable, str(BENCHMARKS / script), *flags, "--json", str(folder / f"{name}.json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name, (script, *flags) in COMMANDS.items()
    }
    outputs = {name: process.communicate(timeout=600) for name, process in processes.items()}
    return {name: Result(processes[name].returncode, *outputs[name], folder / f"{name}.json") for name in COMMANDS}


def read(path: Path) -> dict:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{path.name} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    known = set(sys.modules)
    yield common
    for name in {"common", *(set(sys.modules) - known)}:
        if str(BENCHMARKS) in str(getattr(sys.modules.get(name), "__file__", "")):
            sys.modules.pop(name)


def check_steps(rows: list[dict]) -> None:
    modes = {"pvae eager", "pvae traced", "pvae compiled", "by hand", "by hand, torch.compile"}
    everyone = modes | {"Pyro SVI.step", "Pyro ELBOModule, one Adam"}
    cases = {row["case"]: {other["contestant"] for other in rows if other["case"] == row["case"]} for row in rows}
    of_pair = {"pvae eager", "pvae traced", "pvae compiled", "Pyro SVI.step"}
    assert [names - {"pythae"} for names in cases.values()] == [everyone, modes, of_pair]
    for row in rows:
        assert 0 < row["lower_quartile"] <= row["value"] <= row["upper_quartile"]
        assert all(ratio > 0 for ratio in row["ratios"].values())
        assert row["ratios"].get(row["contestant"], 1) == 1


def check_mnist(rows: list[dict]) -> None:
    assert [row["contestant"] for row in rows] == ["pvae", "hand-written"]
    for row in rows:
        assert row["train_seconds"] > row["epoch_seconds"] > 0
        assert row["eval_seconds"] > 0
        # 64 binary values: an untrained net with the mean's bias is at some 28 nats, coin flips at 44.
        assert 15 < row["nll"] < 44
        assert row["nll_standard_error"] > 0
    assert rows[1]["train_ratio"] == rows[1]["epoch_ratio"] == rows[1]["eval_ratio"] == 1


@pytest.mark.slow
def test_all_benchmarks_run_and_end_in_one_table(results: dict[str, Result]) -> None:
    result = results["run"]
    assert result.code == 0, result.errors
    assert "pvae traced" in result.output
    assert "NLL" in result.output
    record = read(result.json)
    check_steps([row for row in record["rows"] if row["benchmark"] == "train_step"])
    check_mnist([row for row in record["rows"] if row.get("case") == "MNIST, 20 epochs"])
    assert {row["benchmark"] for row in record["rows"]} == {*ALONE, "mnist_burda"}
    # The tiny nets are none of those that have targets; the start-up is what it is.
    assert {line[-1] for line in record["targets"] if line[0] != "start-up"} == {"not run here"}
    assert record["machine"]["threads"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_each_runs_alone(name: str, results: dict[str, Result]) -> None:
    result = results[name]
    assert result.code == 0, result.errors
    record = read(result.json)
    assert record["benchmark"] == name
    for row in record["rows"]:
        assert row["value"] > 0 or row["contestant"] == "slope"
    if name == "train_step":
        check_steps(record["rows"])


def test_every_target_names_a_row_of_the_real_run(common) -> None:
    """A renamed case or contestant would read "not run here" for ever."""
    import log_marginal
    import run
    import train_step

    cases = {str(task) for task in (*train_step.TASKS, *train_step.GPU_TASKS)}
    for case, *_ in run.TARGETS:
        if case.startswith("step: "):
            assert case in cases
        if case.startswith("log p(x): 784"):
            assert case == f"log p(x): {common.BURDA}, K = 5000"
    assert log_marginal.GPU_IMAGES == 10_000


@pytest.mark.slow
def test_mnist_burda_runs_alone_on_digits(results: dict[str, Result]) -> None:
    result = results["mnist_burda"]
    assert result.code == 0, result.errors
    record = read(result.json)
    check_mnist(record["rows"])
    assert record["data"]["name"] == "digits"
    assert math.isfinite(record["nll_difference"])


@pytest.mark.slow
def test_mnist_burda_without_data_says_what_to_give(results: dict[str, Result]) -> None:
    result = results["no data"]
    assert result.code == 2
    assert "--data-root" in result.errors
    assert "Traceback" not in result.errors
    assert not result.json.exists()


@pytest.mark.slow
def test_gpu_runs_on_the_cpu_as_a_smoke_test(results: dict[str, Result]) -> None:
    result = results["gpu"]
    assert result.code == 0, result.errors
    record = read(result.json)
    assert record["notes"] == []
    assert all(row["met"] for row in record["rows"] if "met" in row)
    found = {row["case"] for row in record["rows"]}
    assert {"tests that need a GPU", "log weights at given draws, GPU / CPU - 1", "its NLL"} <= found


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_gpu_without_a_gpu_says_so_in_one_line(results: dict[str, Result]) -> None:
    result = results["no gpu"]
    assert result.code == 2
    assert result.errors == "gpu.py: no CUDA device here; run it on a machine that has one, or give --smoke\n"
    assert not result.json.exists()


def test_hand_written_rival_has_the_same_loss_and_gradients(common) -> None:
    net = common.Net((1, 8, 8), (16, 12), 5)
    torch.manual_seed(0)
    model, guide = common.pair(net)
    plain = common.PlainVAE(net)
    plain.start_from(model, guide)
    x = torch.bernoulli(torch.full((30, 1, 8, 8), 0.3))

    objective = pvae.objectives.ELBO()
    objective.bound(model, guide, x)
    torch.manual_seed(1)
    ours = -objective.bound(model, guide, x).mean()
    torch.manual_seed(1)
    theirs = plain.loss(x.flatten(1))
    torch.testing.assert_close(theirs, ours)
    leaves = [*guide.parameters(), *model.parameters()]
    own = torch.autograd.grad(ours, leaves)
    torch.testing.assert_close(torch.autograd.grad(theirs, [*plain.parameters()]), own, rtol=1e-4, atol=1e-5)


def test_hand_written_rival_estimates_the_same_log_marginal(common) -> None:
    net = common.Net((1, 8, 8), (16, 12), 2)
    torch.manual_seed(0)
    model, guide = common.pair(net)
    plain = common.PlainVAE(net)
    plain.start_from(model, guide)
    x = torch.bernoulli(torch.full((120, 1, 8, 8), 0.3))

    ours = pvae.log_marginal(model, guide, x, pvae.estimators.ImportanceSampling(1000))
    theirs = plain.log_marginal(x.flatten(1), 1000, torch.Generator().manual_seed(0))
    # Two independent estimates of equal error.
    assert abs(theirs.mean().item() - ours.mean) < 5 * math.sqrt(2) * ours.mc_standard_error
