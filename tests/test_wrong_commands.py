"""Wrong command lines: one line that begins with "error: ", the exit code of a mistake, and never a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pvae.cli.main import app

ROOT = Path(__file__).parents[1]
TINY = ["--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--step-mode", "eager", "--device", "cpu"]
HUGE = str(10**30)

OWN = """
import pyro
import pyro.distributions as dist
import torch

number, text = 3, "no function"


def ok(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 5]).to_event(1), obs=x)


def unnamed(x):
    return undefined


def divides(x):
    return 1 / 0


def breaks_off(x):
    raise MemoryError


def endless(x):
    return endless(x)


def wrong_type(x):
    return x + "1"


def wrong_shape(x):
    return x @ x


def missing_key(x):
    return {}["key"]


def of_two(x, y):
    pass


def lines(x):
    raise KeyError("a message\\nof two lines " + "and many letters " * 100)
"""

SOURCES = {
    "own.py": OWN,
    "syntax.py": "def model(x:\n",
    "raises.py": "raise RuntimeError('no model\\ntoday')\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "imports.py": "import a_module_that_is_not_there\n",
    "names.py": "model = undefined\n",
    "zero.py": "a = '\0'\n",
    "latin.py": b"# \xe9\nmodel = None\n",
}


def configs():
    """Broken configs, each as a function of the good one."""

    def recipe(**entries):
        return lambda config: {**config, "recipe": {**config["recipe"], **entries}}

    return {
        "list": lambda config: [config],
        "number": lambda config: 7,
        "no_recipe": lambda config: {**config, "recipe": [1]},
        "no_example": lambda config: {**config, "example_batch": None},
        "example_of_text": lambda config: {**config, "example_batch": [{"shape": "5", "dtype": "float32"}]},
        "example_of_module": lambda config: {**config, "example_batch": [{"shape": [5], "dtype": "nn"}]},
        "example_negative": lambda config: {**config, "example_batch": [{"shape": [-5], "dtype": "float32"}]},
        "model_number": recipe(model=5),
        "model_unknown": recipe(model="vea"),
        "guide_none": recipe(guide=None),
        "data_number": recipe(data=5),
        "data_gone": recipe(data="gone.npy"),
        "root_number": recipe(data_root=[1]),
        "binarize_number": recipe(binarize=1),
        "binarize_unknown": recipe(binarize="dynamik"),
        "kind_unknown": recipe(kind="kounts"),
        "shape_text": recipe(x_shape="five"),
        "shape_none": recipe(x_shape=None),
        "shape_negative": recipe(x_shape=[-5]),
        "shape_huge": recipe(x_shape=[10**15]),
        "latent_text": recipe(latent_dim="2"),
        "latent_zero": recipe(latent_dim=0),
        "latent_half": recipe(latent_dim=2.5),
        "latent_huge": recipe(latent_dim=10**15),
        "hidden_none": recipe(hidden=None),
        "hidden_text": recipe(hidden="8"),
        "hidden_negative": recipe(hidden=[-8]),
        "dtype_unknown": recipe(dtype="float99"),
        "dtype_number": recipe(dtype=3),
        "likelihood_number": recipe(likelihood=3),
        "prior_list": recipe(prior=["gaussian"]),
    }


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The working directory of all tests here: data, own code, a good run, and broken copies of it."""
    folder = tmp_path_factory.mktemp("wrong")
    rows = np.random.RandomState(0).standard_normal((40, 5)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "grey.npy", np.abs(rows) / 10)
    np.save(folder / "counts.npy", np.random.RandomState(0).poisson(3, (40, 5)))
    np.save(folder / "two.npy", np.where(rows > 0, 3, 7))
    (folder / "text.npy").write_text("no array")
    (folder / "empty.csv").write_text("")
    (folder / "words.csv").write_text("a,b\n1,x\n2,y\n")
    (folder / "a_folder.csv").mkdir()
    for name, source in SOURCES.items():
        (folder / name).write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = CliRunner().invoke(app, ["train", *TINY, "--data", "rows.npy", "--out", "run"])
        assert trained.exit_code == 0, trained.output
        config = json.loads((folder / "run" / "config.json").read_text())
        for name, change in configs().items():
            copy = shutil.copytree(folder / "run", folder / name)
            (copy / "config.json").write_text(json.dumps(change(config)))
        for name, content in {
            "config_of_bytes": b"\xff\xfe\x00",
            "config_half": b'{"format": 1, "rec',
            "config_deep": b"[" * 100_000,
            "config_empty": b"",
        }.items():
            (shutil.copytree(folder / "run", folder / name) / "config.json").write_bytes(content)
        weights = (folder / "run" / "checkpoint.safetensors").read_bytes()
        for name, content in {
            "weights_half": weights[: len(weights) // 2],
            "weights_none": b"",
            "weights_long_header": (2**62).to_bytes(8, "little") + weights[8:],
            "weights_of_text": b"no weights",
        }.items():
            (shutil.copytree(folder / "run", folder / name) / "checkpoint.safetensors").write_bytes(content)
        (shutil.copytree(folder / "run", folder / "weights_gone") / "checkpoint.safetensors").unlink()
        gone = shutil.copytree(folder / "run", folder / "weights_folder") / "checkpoint.safetensors"
        gone.unlink()
        gone.mkdir()
        (shutil.copytree(folder / "run", folder / "results_folder") / "results.jsonl").mkdir()
        (shutil.copytree(folder / "run", folder / "samples_folder") / "samples.npy").mkdir()
        yield folder


TRAIN = """
--data nowhere.csv
--data nowhere.npy
--data mnits
--data fashion
--data text.npy
--data empty.csv
--data words.csv
--data two.npy
--data a_folder.csv
--data ~nobody_of_this_name/x.csv
--data digits --kind counts
--data rows.npy --kind count
--data rows.npy --kind counts
--data rows.npy --kind categorical
--data counts.npy --kind unit
--data mnist
--data mnist --data-root nowhere
--data mnist --data-root rows.npy
--data binarized_mnist --data-root nowhere
--data freyfaces --data-root nowhere
--binarize dynamik
--binarize dynamic
--data counts.npy --binarize static
--model vea
--model VAE
--model generator
--model semi_supervised_vae
--model conditional_vae
--model state_space
--model two_stage_vae
--guide meanfield
--guide local
--guide exact
--guide bernoulli
--likelihood bernouli
--likelihood bernoulli
--likelihood poisson
--likelihood beta
--likelihood columns
--model linear_gaussian --likelihood gaussian
--prior vamp
--prior conditional_prior
--prior flow_prior --num-components 3
--prior vamp_prior --num-components 0
--prior vamp_prior --num-components -1
--prior gaussian_mixture --num-components HUGE
--num-components 3
--num-components x
--num-labels 5
--objective elbow
--objective generative_adversarial
--objective elbo --baseline neural
--objective elbo --gradient scores
--objective iwae --gradient stll
--objective cubo --num-samples 0
--baseline leave_one
--num-samples 0
--num-samples -1
--num-samples nan
--num-samples 1.5
--num-samples HUGE
--latent-dim 0
--latent-dim -3
--latent-dim two
--latent-dim 1000000000000000
--latent-dim HUGE
--hidden 0
--hidden ,
--hidden 16,,16
--hidden -5
--hidden 16;16
--hidden 1e3
--hidden 1000000000000000
--hidden HUGE
--epochs 0
--epochs -1
--epochs nan
--epochs 1e3
--batch-size 0
--batch-size -1
--batch-size all
--batch-size=all
--batch-size 2.5
--lr 0
--lr -1
--lr nan
--lr fast
--lr 1e-3x
--schedule cosin
--schedule linear
--kl-warmup -1
--kl-warmup half
--kl-warmup HUGE
--inference-steps 0
--inference-steps -1
--inference-steps aggresive
--inference-steps 1.5
--inference-steps HUGE
--step-mode fast
--step-mode graph
--seed one
--seed 1.5
--seed HUGE
--seed -HUGE
--device gpu
--device cuda:99
--device tpu
--device meta
--out run
--out rows.npy
--out rows.npy/run
--out /proc/nothing/run
--model own.py:
--model :model
--model own.py:nothing
--model own.py:number
--model own.py:text.real
--model own.py:number.real.imag
--model own.py:unnamed
--model own.py:divides
--model own.py:breaks_off
--model own.py:endless
--model own.py:wrong_type
--model own.py:wrong_shape
--model own.py:missing_key
--model own.py:of_two
--model own.py:lines
--model own.py:ok --guide own.py:unnamed
--model own.py:ok --guide own.py:of_two
--model own.py:ok --likelihood gaussian
--guide own.py:wrong_type
--model syntax.py:model
--model raises.py:model
--model exits.py:model
--model imports.py:model
--model names.py:model
--model zero.py:model
--model latin.py:model
--model a_folder.csv:model
--model nowhere.py:model
--model nowhere:model
--model ..:model
--model ..x:model
--model a..b:model
--model math:pi
--model math:sqrt
--model os:getcwd
--model rows.npy:model
--nope
--data
--json --nope
extra words
"""

OTHERS = """
trian
Train
--nope
-x
logp
logp nowhere
logp rows.npy
logp run extra
logp run --estimator importance
logp run --estimator guide_mixture
logp run --estimator enumeration
logp run --estimator enumeration --samples 3
logp run --samples 0
logp run --samples -1
logp run --samples nan
logp run --samples 1.5
logp run --samples HUGE
logp run --target-se 0
logp run --target-se -1
logp run --target-se nan
logp run --target-se small
logp run --target-se 0.1 --max-samples 0
logp run --target-se 0.1 --max-samples -1
logp run --target-se 0.1 --estimator quadrature
logp run --subset 0
logp run --subset -1
logp run --subset many
logp run --batch-size 0
logp run --batch-size -1
logp run --seed HUGE
logp run --device gpu
logp run --model own.py:ok
logp run --guide full_covariance
logp results_folder --samples 3
sample
sample nowhere
sample run --num 0
sample run --num -1
sample run --num 1.5
sample run --num 1000000000000000
sample run --seed HUGE
sample run --guide own.py:ok
sample samples_folder
compare
compare run
compare run nowhere
compare nowhere run
compare run run run
compare run run --samples 0
compare run run --estimator exact
compare run run --subset 0
compare run run --model-a own.py:ok
compare run run --guide-b delta
compare run run --batch-size 0
selfcheck --samples 10
selfcheck --samples 0
selfcheck --samples x
selfcheck --device gpu
selfcheck --seed HUGE
selfcheck extra
list everything
list --nope
list --json=yes
"""

DAMAGED = [
    *configs(),
    *("config_of_bytes", "config_half", "config_deep", "config_empty"),
    *("weights_half", "weights_none", "weights_long_header", "weights_of_text", "weights_gone", "weights_folder"),
]


def lines_of(table):
    return [line.replace("HUGE", HUGE) for line in table.strip().splitlines()]


COMMANDS = [
    *(f"train {line}" for line in lines_of(TRAIN)),
    *lines_of(OTHERS),
    *(f"logp {name}" for name in DAMAGED),
    *(f"sample {name}" for name in DAMAGED),
]


def words_of(command):
    """The words of a command line; training is small and on rows unless it says otherwise."""
    first, *words = command.split()
    return [first, *(["--data", "rows.npy", *TINY, "--out", "new"] if first == "train" else []), *words]


def test_there_are_more_than_109_of_them():
    assert len(COMMANDS) == len(set(COMMANDS)) > 250


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_command_ends_in_one_line(command):
    result = CliRunner().invoke(app, words_of(command))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    line, end = result.stderr[:-1], result.stderr[-1:]
    if "--json --nope" in command:
        assert (list(json.loads(result.stdout)), result.stderr) == (["error"], "")
        return
    assert end == "\n"
    assert "\n" not in line
    assert line.startswith("error: ")
    assert len(line) <= 300
    assert not any(word in line for word in ("Traceback", "Trace Shapes", "tensor(", "fault of pvae"))
    # Before it trains, a command says what it understood of the data.
    assert result.stdout.count("\n") <= command.startswith("train")
    assert not Path("new").exists() or not any(Path("new").iterdir())


# --- What came, and what to do


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train --epochs 1e3", "Input should be a valid integer, unable to parse string as an integer; got '1e3'"),
        ("train --epochs=1e3", "Input should be a valid integer, unable to parse string as an integer; got '1e3'"),
        ("train --model own.py:unnamed", "own.py, line 16: NameError: name 'undefined' is not defined"),
        ("train --model names.py:model", "names.py, line 1: cannot import names.py"),
        ("train --guide own.py:wrong_type", "own.py, line 32: the pair cannot run on a batch of shape (32, 5)"),
        (
            "train --latent-dim 1000000000000000",
            "the memory does not suffice; make --batch-size, the number of samples",
        ),
        ("train --model own.py:breaks_off", "the memory does not suffice; make --batch-size, "),
        ("train --out rows.npy/run", "rows.npy/run: Not a directory; check the path and its rights"),
        ("train --device meta", "it holds shapes and no numbers; give cpu, or cuda on a GPU"),
        ("logp shape_huge", "the memory does not suffice"),
        ("logp model_number", "model_number/config.json has 5 for the model of its recipe; restore it from a copy"),
        ("logp config_deep", "config_deep/config.json is not readable as JSON"),
    ],
)
def test_line_names_what_came_and_where(command, expected):
    assert expected in CliRunner().invoke(app, words_of(command)).stderr


def test_long_line_keeps_its_advice():
    result = CliRunner().invoke(app, ["train", "--data", "x" * 400 + ".csv", "--out", "y" * 400])
    assert len(result.stderr) <= 301
    result = CliRunner().invoke(app, ["train", "--data", "rows.npy", "--model", f"{'x' * 400}:model"])
    assert len(result.stderr) == 301
    assert result.stderr.endswith(" ...; give module:function or file.py:function\n")


def test_error_is_json_where_the_output_would_be():
    for command in ("logp nowhere --json", "train --json --epochs 0", "train --json --model own.py:lines"):
        result = CliRunner().invoke(app, words_of(command))
        assert (result.exit_code, result.stderr) == (2, "")
        assert list(found := json.loads(result.stdout)) == ["error"]
        assert 0 < len(found["error"]) <= 300
    assert json.loads(CliRunner().invoke(app, ["logp", "nowhere", "--json"]).stdout)["error"].startswith(
        "nowhere is not a run folder"
    )


def test_fault_of_pvaes_own_is_one_line_and_another_exit_code(monkeypatch):
    monkeypatch.setattr("pvae.cli.commands.catalogue", lambda: {}["of a bug"])
    result = CliRunner().invoke(app, ["list"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: KeyError: 'of a bug'; this is a fault of pvae's own: PVAE_TRACEBACK=1 shows where, please report it\n"
    )
    monkeypatch.setenv("PVAE_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(app, ["list"]).exception, KeyError)


def test_names_with_markup_are_shown_as_they_are():
    shutil.copytree("run", "run[", dirs_exist_ok=True)
    result = CliRunner().invoke(app, ["logp", "run[", "--samples", "3", "--subset", "2"])
    assert (result.exit_code, result.stderr) == (0, "")
    for name in ("run[/red]", "run[bold]"):
        shutil.copytree("run", name)
        result = CliRunner().invoke(app, ["sample", name, "--num", "2"])
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"{name}/samples.npy" in "".join(result.stdout.split())


# --- A process of its own


def process(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    # A run in the background ignores interrupts, and so would the processes that it starts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pvae.cli.main import app; app()"
    )
    return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stderr=subprocess.PIPE, **options)


# The help is written by rich, which has an exit code of its own.
@pytest.mark.parametrize(("word", "code"), [("--help", 1), ("list", 141)])
def test_reader_that_goes_away_ends_a_command_in_silence(word, code):
    with process(word, stdout=subprocess.PIPE) as running:
        running.stdout.close()
        assert (running.stderr.read(), running.wait()) == (b"", code)


def test_interrupt_ends_a_command_as_a_shell_expects():
    shutil.copy("rows.npy", "größe.npy")
    words = ["train", "--data", "größe.npy", "--epochs", "100000", "--out", "long"]
    # A terminal without these letters is no obstacle.
    with process(*words, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}) as running:
        assert running.stdout.readline() == b"gr\\xf6\\xdfe.npy: 40 rows x 5 columns, real; Gaussian\n"
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert (running.stdout.read(), running.stderr.read(), running.wait()) == (b"", b"error: interrupted\n", 130)


@pytest.mark.parametrize("as_json", [False, True])
def test_mistyped_word_needs_no_torch_to_be_refused(as_json):
    code = "import sys\nfrom pvae.cli.main import app\ntry:\n    app()\nfinally:\n    print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code, "train", "--epochs", "x" * 500, *(["--json"] if as_json else [])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    *found, has_torch = result.stdout.splitlines()
    line = json.loads(found[0])["error"] if as_json else result.stderr.removeprefix("error: ").removesuffix("\n")
    assert (result.returncode, has_torch, bool(result.stderr)) == (2, "False", not as_json)
    assert line.startswith("Invalid value for '--epochs': Input should be a valid integer")
    assert len(line) <= 300


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full, process("--help", stdout=full) as running:
        assert (running.stderr.read(), running.wait()) == (b"error: [Errno 28] No space left on device\n", 2)
