"""Every public parameter, given wrong values by the thousand: one line that says what is wrong, or a reason why not."""

import importlib
from fnmatch import fnmatch

import pytest

import pvae
from tests.right_values import LEFT_OUT, LEGITIMATE, PACKAGES
from tests.wrong_calls import DATA, GUIDE, MODEL, POOL, SUBJECTS, X

ONE_LINE = 300


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("subject") == "pvae.load":
        pvae.save("nonsense", MODEL, GUIDE, X)


def legitimate(subject: str, parameter: str) -> set[str]:
    """The values of the pool that the table of reasons lets pass."""
    rows = (row for row in LEGITIMATE if parameter in row.parameters and any(fnmatch(subject, each) for each in row.of))
    return {label for row in rows for label in row.labels}


def swept(subject: str) -> list[str]:
    """Its parameters but for those that take data."""
    return [each for each in SUBJECTS[subject].parameters() if each not in DATA.get(subject.split(".")[0], DATA["*"])]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_good_call_is_good(subject):
    SUBJECTS[subject].use(SUBJECTS[subject].call(**SUBJECTS[subject].good))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_wrong_value_is_refused_in_one_line(subject):
    for parameter in swept(subject):
        passed = set()
        for label, value in POOL.items():
            try:
                SUBJECTS[subject].wrongly(parameter, value)
            except (ValueError, FloatingPointError) as error:
                message = str(error)
                assert "\n" not in message, (parameter, label, message)
                assert len(message) <= ONE_LINE, (parameter, label, message)
                assert "tensor([" not in message, (parameter, label, message)
                assert "; " in message or ": " in message, (parameter, label, message)
            else:
                passed.add(label)
        assert passed == legitimate(subject, parameter), parameter


def test_the_sweep_holds_thousands_of_wrong_calls():
    refused = [
        (subject, parameter, label)
        for subject in SUBJECTS
        for parameter in swept(subject)
        for label in POOL.keys() - legitimate(subject, parameter)
    ]
    assert len(refused) >= 15_000
    assert len({(subject, parameter) for subject, parameter, _ in refused}) >= 400


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_swept(package):
    module = importlib.import_module(package)
    short = package.rsplit(".", 1)[-1]
    for name in PACKAGES[package] or [each for each in vars(module) if not each.startswith("_")]:
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith("pvae."):
            assert (f"{short}.{name}" in SUBJECTS) != (f"{short}.{name}" in LEFT_OUT), name
