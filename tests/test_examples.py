"""Every example runs, writes its figure, and shows finite numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    figure = tmp_path / "figure.png"
    environment = {**os.environ, "PYTHONPATH": str(example.parents[1])}
    run = subprocess.run(
        [sys.executable, example, "--smoke", "--out", figure], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"-\d+\.\d+", run.stdout)
    assert "nan" not in run.stdout


def test_examples_are_short():
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) < 100, example.name
