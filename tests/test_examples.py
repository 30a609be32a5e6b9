"""Every example runs, writes its figure, and shows finite numbers."""

import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
AS_A_SCRIPT = "own_pair"
# What takes seconds to import, and most examples do.
LOADED = [
    "arviz",
    "matplotlib.pyplot",
    "pvae.cli.main",
    "pvae.guides",
    "pvae.models",
    "sklearn.datasets",
    "torch._dynamo",
]


def run_script(script, words, printed, complaints):
    """Run a script as `python script words` would, its output in two files."""
    for stream, path in ((1, printed), (2, complaints)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = [script, *words]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="module")
def interpreter():
    """Makes processes of an interpreter that has loaded torch, once for all examples."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context.Process


def assert_shown(returncode, printed, complaints, figure):
    assert returncode == 0, complaints
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"-\d+\.\d+", printed)
    assert "nan" not in printed


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, interpreter, tmp_path):
    figure, printed, complaints = (tmp_path / name for name in ("figure.png", "stdout", "stderr"))
    words = ["--smoke", "--out", str(figure)]
    process = interpreter(target=run_script, args=(str(example), words, printed, complaints))
    process.start()
    process.join()
    assert_shown(process.exitcode, printed.read_text(), complaints.read_text(), figure)


@pytest.mark.parametrize(
    "example",
    [pytest.param(path, marks=() if path.stem == AS_A_SCRIPT else pytest.mark.slow) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_example_as_a_script(example, tmp_path):
    """In an interpreter of its own, which has loaded nothing."""
    figure = tmp_path / "figure.png"
    run = subprocess.run(
        [sys.executable, example, "--smoke", "--out", figure],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert_shown(run.returncode, run.stdout, run.stderr, figure)


def test_examples_are_short():
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) < 100, example.name
