"""The command that holds pvae to known answers: that it passes, covers everything, and sees what is wrong."""

import dataclasses
import json
import math

import pytest
import torch
from typer.testing import CliRunner

from pvae import selfcheck, truth
from pvae.cli.main import app
from pvae.estimators import ImportanceSampling, Quadrature
from pvae.objectives import ELBO, IWAE
from pvae.runs.recipes import exported
from pvae.selfcheck import Row, of_bounds, of_estimators, of_gradients
from pvae.selfcheck.answers import BitsAnswers, LineAnswers, expected, log_mean
from pvae.selfcheck.cases import Case
from pvae.selfcheck.rows import Check, apart, mean_of, not_above, of_data
from pvae.selfcheck.setting import Setting
from tests.test_clean_world import assert_unchanged, world

FIELDS = ["group", "what", "on", "quantity", "estimate", "truth", "standard_error", "error", "verdict", "note"]


def command(*words):
    return CliRunner().invoke(app, ["selfcheck", "--device", "cpu", *map(str, words)])


@pytest.fixture(scope="module")
def printed():
    """What the whole command prints, with few draws; it must change nothing of the world."""
    before, threads = world(), torch.get_num_threads()
    result = command("--samples", 1000, "--json")
    assert_unchanged(before)
    assert torch.get_num_threads() == threads
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def rows(printed):
    return [Row(**row) for row in printed["rows"]]


def setting(*builders, num_samples=4000):
    return Setting(builders, torch.device("cpu"), 0, num_samples)


def measured(part, *builders, **options):
    return [row for check in part.checks(setting(*builders, **options)) for row in check.rows()]


# --- the command


def test_it_passes_and_prints_one_object(printed):
    assert printed.keys() == {"passed", "num_rows", "num_off", "limit", "largest_error", "rows"}
    assert (printed["passed"], printed["num_off"], printed["limit"]) == (True, 0, 5)
    assert printed["num_rows"] == len(printed["rows"]) > 100
    assert all(list(row) == FIELDS for row in printed["rows"])
    # Of more than a thousand numbers the worst, and not all of them a little too good.
    assert 2 < printed["largest_error"] < 5


@pytest.mark.parametrize(("package", "group"), [("pvae.estimators", "estimators"), ("pvae.objectives", "gradients")])
def test_every_exported_class_has_a_row(package, group, rows):
    checked = {row.what.split("(")[0] for row in rows if row.group == group and row.verdict == "ok"}
    missing = {cls.__name__ for cls in exported(package).values()} - checked
    assert not missing


def test_every_truth_has_its_estimators_and_bounds(rows):
    for known in truth.all_truths():
        of_it = {row.what.split("(")[0] for row in rows if row.on == known.name}
        exact = {"Enumeration"} if known.latent == "discrete" else {"AnnealedImportanceSampling"}
        assert {"ImportanceSampling", "PriorSampling", "DefensiveMixture", "Jackknife"} | exact <= of_it
        assert "ELBO <= IWAE <= log p" in {row.what.split("(")[0].strip() for row in rows if row.on == known.name}


def test_each_verdict_is_what_its_numbers_say(rows):
    assert {row.verdict for row in rows} == {"ok", "biased", "not claimed"}
    for row in rows:
        assert (abs(row.error) <= 5) == (row.verdict == "ok"), row
        assert row.standard_error > 0
        if "<=" not in row.quantity:  # less what of the error is a known bias
            off = (row.estimate - row.truth) / row.standard_error
            assert off == pytest.approx(row.error, abs=0.2 + 0.05 * abs(row.error)), row


def test_the_known_bias_of_sticking_the_landing_is_shown(rows):
    (row,) = [row for row in rows if row.verdict == "biased"]
    assert row.what == "IWAE(4, stl)"
    assert row.truth == pytest.approx(0.1956, abs=5e-4)
    assert row.estimate == pytest.approx(0.721, abs=5 * row.standard_error + 5e-4)
    (claim,) = [row for row in rows if row.quantity == "d loc + bias"]
    assert claim.truth == pytest.approx(0.721, abs=5e-4)


def test_the_table_fits_100_columns_and_says_all(rows, capsys):
    bad = Row("estimators", "Odd[bold]", "ring", "", math.nan, math.nan, math.nan, math.nan, "failed", "Error: no luck")
    selfcheck.show([*rows, bad])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    for row in rows:
        assert row.what in shown
        assert row.on in shown
    assert "Odd[bold] on ring failed: Error: no luck" in shown
    assert f"{len(rows) + 1} rows, 1 off or failed; the largest error is" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", 10], "error: num_samples must be a whole number of at least 1000, got 10; try 20000\n"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
    ],
)
def test_mistakes_are_told_in_one_line(words, message):
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


# --- what is wrong is seen


def shifted(x=None):
    known = truth.shifted_gaussian(x=x)
    return dataclasses.replace(known, log_prob=known.log_prob + 0.05)


def test_a_truth_that_is_off_by_a_twentieth_of_a_nat_fails_the_command(monkeypatch):
    monkeypatch.setattr(truth, "TRUTHS", (shifted,))
    result = command("--samples", 2000, "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert not printed["passed"]
    assert printed["num_off"] == sum(row["verdict"] == "off" for row in printed["rows"])
    for row in printed["rows"]:
        on_it = row["on"] == shifted().name and "<=" not in row["what"]
        assert (row["verdict"] == "off") == (on_it and "lower - log" not in row["quantity"]), row


class WithoutConstant(ImportanceSampling):
    """Drops log(2 pi) / 2 of one datum."""

    def start(self, *args):
        estimate = super().start(*args)

        def less(batch):
            found = estimate(batch)
            found.values[3] += 0.5 * math.log(2 * math.pi)
            return found

        return less


class Coarse(Quadrature):
    """Off by a millionth."""

    def start(self, *args):
        estimate = super().start(*args)

        def less(batch):
            found = estimate(batch)
            return dataclasses.replace(found, values=found.values + 1e-6)

        return less


def test_an_estimator_that_drops_a_constant_is_off(monkeypatch):
    monkeypatch.setattr(of_estimators, "ImportanceSampling", WithoutConstant)
    monkeypatch.setattr(of_estimators, "Quadrature", Coarse)
    found = measured(of_estimators, truth.beta_bernoulli)
    off = {row.what: row.quantity for row in found if row.verdict == "off"}
    assert off == {
        "ImportanceSampling(4000)": "log p(x[3])",
        "ImportanceSampling(smooth=True)": "log p(x[3])",
        "Coarse()": "log p(x)",
    }


def test_an_estimator_that_cannot_run_is_a_row_and_not_the_end(monkeypatch):
    class Broken(ImportanceSampling):
        def start(self, *args):
            raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(of_estimators, "ImportanceSampling", Broken)
    found = measured(of_estimators, truth.gaussian_mixture)
    failed = [row for row in found if row.verdict == "failed"]
    assert {row.what for row in failed} == {"ImportanceSampling(4000)", "ImportanceSampling(smooth=True)"}
    assert {row.note for row in failed} == {"RuntimeError: no kernel for this device"}
    assert len(found) > 5
    assert not selfcheck.summary(found)["passed"]


class Flattered(ELBO):
    """Its KL counts 90%."""

    def reduce(self, run, kl_weight):
        return super().reduce(run, 0.9 * kl_weight)


def test_a_bound_above_its_place_and_a_broken_identity_are_off(monkeypatch):
    monkeypatch.setattr(of_bounds, "ELBO", Flattered)
    off = {row.what for row in measured(of_bounds, truth.linear_gaussian) if row.verdict == "off"}
    assert "ELBO = log p(x) - KL" in off
    monkeypatch.undo()
    monkeypatch.setattr(of_bounds, "IWAE", lambda num_samples: Renamed(num_samples))
    off = {row.what for row in measured(of_bounds, truth.linear_gaussian) if row.verdict == "off"}
    assert off == {"ELBO <= IWAE <= log p(x)"}


class Renamed(IWAE):
    """The sum of weights in place of their mean."""

    def reduce(self, run, kl_weight):
        return super().reduce(run, kl_weight) + math.log(run.num_samples)


def iwae_of_two():
    line = LineAnswers()
    return line.answer(expected(line.states(), 2, log_mean(1)))


WRONG = {
    "sticking the landing": lambda: IWAE(2, gradient="stl"),
    "another K": lambda: IWAE(3),
    "no importance weights": lambda: ELBO(2),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_is_off(make, monkeypatch):
    cases = [Case("right", lambda: IWAE(2, gradient="dreg"), iwae_of_two), Case("wrong", make, iwae_of_two)]
    monkeypatch.setattr(of_gradients, "line_cases", lambda: cases)
    monkeypatch.setattr(of_gradients, "bits_cases", list)
    found = {row.what: row.verdict for row in measured(of_gradients)}
    assert (found["right"], found["wrong"]) == ("ok", "off")


# --- the parts


def test_the_answers_are_those_of_the_closed_forms():
    line = LineAnswers()
    value, gradient = line.answer(expected(line.states(), 1, log_mean(0)))
    # x = 1.3, q = N(0.2, s^2): log p - KL(q || N(x / 2, 1 / 2)).
    square = math.exp(-0.4)
    kl = square + (0.2 - 0.65) ** 2 - 0.5 - 0.5 * math.log(2 * square)
    assert value.item() == pytest.approx(-0.25 * 1.3**2 - 0.5 * math.log(4 * math.pi) - kl, abs=1e-10)
    assert gradient.tolist() == pytest.approx([1.1, 1.3 * 0.9, 0.9, 1 - 2 * square], abs=1e-9)
    coarse = line.answer(expected(line.states(35), 2, log_mean(1)))
    fine = line.answer(expected(line.states(321), 2, log_mean(1)))
    torch.testing.assert_close(coarse.gradient, fine.gradient, rtol=0, atol=1e-5)
    states = BitsAnswers().states()
    assert states.probability.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_number_that_is_none_is_off():
    nan = torch.tensor([0.1, math.nan, 0.2])
    zeros, ones = torch.zeros(3), torch.ones(3)
    for found in (
        of_data(nan, zeros, ones),
        of_data(zeros, zeros, nan),
        mean_of(nan, 0.0, ["value"]),
        not_above([nan, zeros], ["a", "b"]),
        apart(nan, zeros, 1.0, "value"),
    ):
        assert found.verdict == "off", found
    empty = Check("bounds", "what", "on", lambda: [of_data(nan, zeros, ones)]).rows()
    assert [row.verdict for row in empty] == ["off"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_it_passes_in_full_from_any_seed(seed):
    found = selfcheck.run("cpu", seed)
    assert [row for row in found if not row.passes] == []
