"""The skeletons of CONTRIBUTING.md, pasted into a copy of the tree: a part costs a file, an import, a row."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
# From a heading such as "A model" to its code and to where it goes.
SKELETONS = {
    heading: (code, re.findall(r"^    (\S+\.py)(?: +(.+))?$", places, re.M))
    for heading, code, places in re.findall(
        r"^### ([^\n]+)\n.*?```python\n(.*?)```\n\n((?:    [^\n]+\n)+)", PAGE, re.M | re.S
    )
}
PARTS = ["A model", "A guide", "A prior", "A likelihood", "An objective", "An estimator"]


def paste(heading, tree):
    """Write a skeleton's file, import and row."""
    code, places = SKELETONS[heading]
    (file, _), *lines = places
    (tree / file).write_text(code)
    name = re.search(r"^class (\w+)", code, re.M)[1]
    package = "pvae." + ".".join(Path(file).parts[:-1]).removeprefix("pvae.")
    for place, line in lines:
        text = (tree / place).read_text()
        if row := re.fullmatch(r"in (\w+): (.+)", line):
            table = re.search(rf"^{row[1]}: .* = {{$", text, re.M)[0]
            text = text.replace(table, f"{table}\n    {row[2]}")
            line = ""
            text = text.replace("import pytest\n", f"import pytest\nfrom {package} import {name}\n", 1)
        (tree / place).write_text(f"{text.rstrip()}\n{line}\n")


def run(tree, *words):
    """A module of Python's in the tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, "-m", *words], cwd=tree, env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    """A copy of what is tested, with its links."""
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("pvae", "models", "guides", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_there_is_a_skeleton_of_each_part():
    assert list(SKELETONS) == PARTS
    assert all(len(places) == 3 for _, places in SKELETONS.values())


def test_all_of_them_together_train_by_name(tree):
    for heading in SKELETONS:
        paste(heading, tree)
    words = ["--model", "my_model", "--guide", "my_guide", "--objective", "my_objective"]
    data = ["--data", "digits", "--epochs", "1"]
    trained = run(tree, "pvae", "train", *data, "--binarize", "dynamic", "--out", "a", *words)
    assert trained.returncode == 0, trained.stderr
    estimated = run(tree, "pvae", "logp", "a", "--samples", "20", "--subset", "20", "--estimator", "my_estimator")
    assert estimated.returncode == 0, estimated.stderr
    assert re.search(r"-\d+\.\d+", estimated.stdout)
    words = ["--prior", "my_prior", "--likelihood", "my_likelihood"]
    trained = run(tree, "pvae", "train", *data, "--out", "b", *words)
    assert trained.returncode == 0, trained.stderr


@pytest.mark.slow
@pytest.mark.parametrize("heading", SKELETONS)
def test_the_tables_and_the_plan_hold_with_it(heading, tree):
    paste(heading, tree)
    options = ["-q", "-n", "2", "-p", "no:cacheprovider", "-m", ""]
    cells = run(tree, "pytest", *options, "-k", "my or exported", "tests/test_tables.py")
    assert cells.returncode == 0, cells.stdout[-3000:]
    plan = run(tree, "pytest", *options, "tests/test_floors.py", "tests/test_names.py")
    assert plan.returncode == 0, plan.stdout[-3000:]
