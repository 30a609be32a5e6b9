"""Random Pyro pairs: pvae gives the numbers of a slow plain reference, or refuses in one line."""

import pytest
from hypothesis import assume

from tests.programs import coverage
from tests.programs.checks import check_against_pyro, check_bounds, check_weights
from tests.programs.exact import check_log_marginal, is_small
from tests.programs.program import Program
from tests.programs.strategies import solvable_programs


def search(check, quick, slow, seed, strategy=None):
    """The quick number of programs under seed 0, the slow one under every other."""
    return coverage.search(check, slow if seed else quick, seed, strategy)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 11))]


@pytest.mark.parametrize("seed", SEEDS)
def test_log_weights_are_those_of_the_reference_or_refused(seed):
    by_feature, outcomes = search(check_weights, 200, 1000, seed)
    print(coverage.table(by_feature))
    print(outcomes)
    assert outcomes["answered"] > outcomes.total() / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_training_bounds_are_those_of_the_reference(seed):
    _, outcomes = search(check_bounds, 60, 300, seed)
    assert outcomes["answered"] > outcomes.total() / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reference_agrees_with_pyro(seed):
    def check(program: Program) -> str:
        assume(not program.breach)
        check_against_pyro(program)
        return "agrees"

    assert set(search(check, 60, 300, seed)[1]) == {"agrees"}


@pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "gaussian"])
@pytest.mark.parametrize("seed", SEEDS)
def test_log_p_is_the_closed_form(seed, discrete):
    def check(program: Program) -> str:
        assume(is_small(program, discrete=discrete))
        return check_log_marginal(program, discrete=discrete)

    _, outcomes = search(check, 20, 100, seed, solvable_programs(discrete=discrete))
    assert set(outcomes) == {"answered"}
