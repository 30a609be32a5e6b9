"""What the documents show is run."""

import re
from pathlib import Path

import pyro
import pytest
import torch
from typer.testing import CliRunner

import pvae
from pvae.cli.main import app

ROOT = Path(__file__).resolve().parents[1]


def snippets(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)


def fewer_epochs(code):
    return re.sub(r"epochs=\d+", "epochs=1", code)


def test_readme_runs_from_top_to_bottom(capsys):
    namespace = {}
    torch.manual_seed(0)
    for code in snippets("README.md"):
        exec(compile(fewer_epochs(code), "README.md", "exec"), namespace)
    printed = [float(word) for word in capsys.readouterr().out.split() if word != "lower"]
    assert len(printed) == 7
    assert all(-60 < value < 1 for value in printed)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("document", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_page_runs_from_top_to_bottom(document, capsys):
    namespace = {}
    torch.manual_seed(0)
    for code in snippets(f"docs/{document}"):
        exec(compile(fewer_epochs(code), document, "exec"), namespace)
    assert re.search(r"-\d+\.\d+", capsys.readouterr().out)
    assert len(pyro.get_param_store()) == 0


def test_readme_opens_with_two_commands():
    commands = re.findall(r"^ {4}(make .*?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.M)
    assert commands == ["make demo", "make test"]
    targets = (ROOT / "Makefile").read_text()
    for command in commands:
        assert re.search(rf"^{command.removeprefix('make ')}:", targets, re.M)


def test_readme_command_lines_have_the_options_they_show():
    for line in re.findall(r"^ {4}pvae (.*)$", (ROOT / "README.md").read_text(), re.M):
        command, *words = line.split()
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        for word in words:
            if word.startswith("--"):
                assert word in shown, line


def test_the_skeletons_to_paste_train():
    namespace = {}
    for code in snippets("CONTRIBUTING.md"):
        exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    torch.manual_seed(0)
    x = torch.rand(50, 64).round()
    model = namespace["MyModel"]((64,))
    guide = namespace["MyGuide"](model, x)
    assert pvae.check(model, guide, x) == []
    losses = pvae.fit(model, guide, x, steps=60, batch_size=50, lr=1e-2).losses
    assert losses[-1] < losses[0] - 3
    assert torch.isfinite(pvae.log_marginal(model, guide, x).values).all()


def test_a_model_from_the_skeleton_needs_no_guide_of_its_own():
    namespace = {}
    exec(compile(snippets("CONTRIBUTING.md")[0], "CONTRIBUTING.md", "exec"), namespace)
    torch.manual_seed(0)
    x = torch.rand(50, 64).round()
    model = namespace["MyModel"]((64,))
    guide = pvae.guides.MeanField(model, x[:2], hidden=(20,))
    result = pvae.fit(model, guide, x, steps=20, batch_size=50, lr=1e-2, step_mode="traced")
    assert result.step_mode == "traced"
    assert result.losses[-5:].mean() < result.losses[:5].mean()
    answer = pvae.log_marginal(model, guide, x)
    assert torch.isfinite(answer.values).all()
    # 64 fair coins have -44.4 nats, and 50 data in a model of 8 latents gain some.
    assert -48 < answer.mean < -35
    assert pvae.sample(model, 3, like=x)["x"].shape == (3, 64)
