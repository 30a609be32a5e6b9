"""Everything that needs a GPU, in one command: whether the numbers are those of the CPU, the tests, and what it costs.

In this order: numbers on the GPU against the CPU's and against closed forms; the tests that skip without a GPU beside
`pvae selfcheck` on it; milliseconds per training step (train_step.py says how); log p(x), and the GPU's memory as K
grows; a whole training run on MNIST if `--data-root` has it. A part that fails is named in the end and does not stop
the others; one that has not begun after `--seconds` is left out and named, too. The exit status is 1 if a part or a
test failed or a number was off.

Without a GPU nothing runs but `--smoke`, which is tiny, on the CPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import log_marginal
import mnist_burda
import torch
import train_step
from common import BURDA, COLUMNS, Net, Rows, add_data_root, arguments, cells, one, pair, show, write_json
from torch import Tensor, nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Exact
from pvae.models import LinearGaussian
from pvae.pair.contexts import seeded
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store

ROOT = Path(__file__).resolve().parents[1]
NUM_SAMPLES, NUM_DATA = 7, 40
# Units of rounding of a sum of a few hundred terms, relative to it; losses add what 30 steps of training make of it.
OF_WEIGHTS = {torch.float32: 1e-5, torch.float64: 1e-13}
OF_LOG_P = {torch.float32: 1e-4, torch.float64: 1e-10}
OF_LOSSES = 1e-4
_SECONDS_OF_TESTS = 160


def numbers(device: str, smoke: bool) -> Rows:
    """Log weights at given draws, log p(x) where every weight is p(x), and the losses of every step mode."""
    net = Net((6,), (5,), 2) if smoke else BURDA
    rows: Rows = []
    for dtype in (torch.float32, torch.float64):
        word = str(dtype).removeprefix("torch.")
        off = _weights_apart(net, device, dtype)
        rows.append(_held("log weights at given draws, GPU / CPU - 1", word, off, OF_WEIGHTS[dtype], ""))
        off = _log_p_apart(device, dtype)
        rows.append(_held("log p(x) of a linear Gaussian model, error", word, off, OF_LOG_P[dtype], "nats"))
    # So few steps would not pay for a trace, and "auto" would leave them eager.
    modes = ["traced"] if smoke else ["traced", "compiled", "graph"]
    expected = _losses(net, device, "eager")
    for mode in modes:
        off = (_losses(net, device, mode) / expected - 1).abs().max().item()
        rows.append(_held("losses of 30 steps from one seed, / eager - 1", f"pvae {mode}", off, OF_LOSSES, ""))
    return rows


def _weights_apart(net: Net, device: str, dtype: torch.dtype) -> float:
    torch.manual_seed(0)
    model, guide = (part.to(dtype) for part in pair(net))
    x = torch.bernoulli(torch.full((NUM_DATA, *net.x_shape), 0.2, dtype=dtype))
    expected, draws = _weights(model, guide, x, None)
    there = {name: value.to(device) for name, value in draws.items()}
    found, _ = _weights(model.to(device), guide.to(device), x.to(device), there)
    return (found.cpu() / expected - 1).abs().max().item()


@torch.no_grad()
def _weights(
    model: nn.Module, guide: nn.Module, x: Tensor, draws: dict[str, Tensor] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    with private_store(model, guide), seeded(0, x.device):
        layout = read_layout(model, guide, (x,), NUM_SAMPLES)
        run = run_pair(model, guide, (x,), NUM_SAMPLES, layout, given=draws)
        return run.log_weights().values, run.latents


def _log_p_apart(device: str, dtype: torch.dtype) -> float:
    torch.manual_seed(0)
    model = LinearGaussian(8, 3).double()
    x = torch.randn(NUM_DATA, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model.log_prob(x)
    model = model.to(device, dtype)
    found = pvae.log_marginal(model, Exact(model), x.to(dtype), ImportanceSampling(NUM_SAMPLES))
    return (found.values - expected).abs().max().item()


def _losses(net: Net, device: str, mode: Any) -> Tensor:
    torch.manual_seed(0)
    model, guide = (part.to(device) for part in pair(net))
    x = torch.bernoulli(torch.full((200, *net.x_shape), 0.2))
    result = pvae.fit(model, guide, x, steps=30, batch_size=50, step_mode=mode, progress=False)
    if result.step_mode not in (mode, "graph"):
        raise RuntimeError(f"fit(step_mode={mode!r}) ran {result.step_mode!r} steps")
    return result.losses


def _held(case: str, contestant: str, off: float, limit: float, unit: str) -> dict[str, Any]:
    return {**one(case, contestant, off, unit), "limit": limit, "met": off <= limit}


def tests(device: str, smoke: bool) -> Rows:
    """The tests that skip without a GPU, and `pvae selfcheck` on it, side by side: neither is timed."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "cuda.is_available" in path.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        report, answers = Path(folder, "tests.xml"), Path(folder, "selfcheck.json")
        # What another torch warns of is not what is asked here.
        words = ["-m", "pytest", "-q", "-k", "cuda or gpu or captured", "-W", "default", "-p", "no:cacheprovider"]
        workers = [] if smoke else ["-n", str(min(12, os.cpu_count() or 1))]
        pytest = _start([*words, *workers, f"--junitxml={report}", *map(str, files)])
        check = ["selfcheck", "--device", device, "--json", *(["--samples", "1000"] if smoke else [])]
        until = time.perf_counter() + _SECONDS_OF_TESTS
        with answers.open("w") as out:
            selfcheck = _start(["-c", "from pvae.cli.main import app; app()", *check], out)
            for process in (pytest, selfcheck):
                try:
                    process.wait(max(1.0, until - time.perf_counter()))
                except subprocess.TimeoutExpired:
                    # Interrupted, pytest still says what it found.
                    process.send_signal(signal.SIGINT)
                    process.wait(20)
        return [*_of_tests(report), *_of_selfcheck(answers)]


def _start(words: list[str], out: Any = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
    # Inductor's worker processes would outlive the tests, and hold up those who wait for them.
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=out or sys.stderr)


def _of_tests(report: Path) -> Rows:
    if not report.exists():
        return [{**one("tests that need a GPU", "not through in time", 1, "runs"), "limit": 0, "met": False}]
    failed, counts = [], {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error")), None)
        counts["failed" if bad is not None else "skipped" if case.find("skipped") is not None else "passed"] += 1
        if bad is not None:
            failed.append(f"{case.get('name')}: {' '.join((bad.get('message') or bad.text or '').split())[:600]}")
    rows = [one("tests that need a GPU", name, count, "tests") for name, count in counts.items()]
    rows[1] |= {"limit": 0, "met": not failed, "names": failed}
    return rows


def _of_selfcheck(answers: Path) -> Rows:
    text = answers.read_text()
    if not text:
        return [{**one("pvae selfcheck", "not through in time", 1, "runs"), "limit": 0, "met": False}]
    found = json.loads(text)
    case = f"pvae selfcheck, {found['num_rows']} rows"
    off = [row for row in found["rows"] if row["verdict"] in ("off", "failed")]
    bad = {**one(case, "off or failed", found["num_off"], "rows"), "limit": 0, "met": found["passed"], "names": off}
    return [bad, one(case, "largest error", found["largest_error"], "standard errors")]


def log_p(device: str, smoke: bool) -> Rows:
    """Everybody's samples per second."""
    return log_marginal.measure(smoke=True) if smoke else log_marginal.on_gpu()


def memory(device: str, smoke: bool) -> Rows:
    """What log p(x) takes on the GPU at its peak, against K: Burda's net, 20 images; torch's own count."""
    if smoke:
        return []
    model, guide = (part.to(device) for part in pair(BURDA))
    x = torch.bernoulli(torch.full((20, *BURDA.x_shape), 0.2, device=device))
    rows: Rows = []
    held = torch.cuda.memory_allocated()
    for num_samples in (100, 10_000, 100_000, 1_000_000):
        torch.cuda.reset_peak_memory_stats()
        pvae.log_marginal(model, guide, x, ImportanceSampling(num_samples, step_mode="traced"))
        peak = (torch.cuda.max_memory_allocated() - held) / 2**20
        ratios = {"the smallest": peak / rows[0]["value"]} if rows else {}
        rows.append(one("peak GPU memory against K", f"K = {num_samples:,}", peak, "MiB", **ratios))
    return rows


def whole_run(data_root: Path | None, device: str, smoke: bool) -> Rows:
    """Burda's VAE on MNIST, with pvae and by hand."""
    if data_root is None and not smoke:
        raise ValueError("no MNIST; give --data-root or set PVAE_DATA_ROOT")
    trained, about = mnist_burda.measure(data_root, epochs=2 if smoke else 20, smoke=smoke, device=device)
    rows: Rows = []
    for row in trained:
        ratios = {"by hand": row["train_ratio"]}
        rows += [
            {**one(f"MNIST, {about['epochs']} epochs", row["contestant"], row["train_seconds"], "s", **ratios), **row},
            one("its epoch", row["contestant"], row["epoch_seconds"], "s", **{"by hand": row["epoch_ratio"]}),
            one("its log p(x)", row["contestant"], row["eval_seconds"], "s", **{"by hand": row["eval_ratio"]}),
            one("its NLL", row["contestant"], row["nll"], f"+- {row['nll_standard_error']:.2f} nats"),
        ]
    return rows


def about(device: str) -> dict[str, Any]:
    """The card and what drives it."""
    if device == "cpu":
        return {"device": "cpu"}
    card = torch.cuda.get_device_properties(0)
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {"device": card.name, "memory_gib": card.total_memory / 2**30, "cuda": torch.version.cuda, "driver": driver}


def markdown(rows: Rows) -> str:
    """The rows as a table for RESULTS.md."""
    lines = [" | ".join(["", *COLUMNS, ""]).strip(), "|---" * len(COLUMNS) + "|"]
    lines += [" | ".join(["", *cells(row), ""]).strip().replace("\n", ", ") for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the rows as a Markdown table, too")
    parser.add_argument("--parts", nargs="+", metavar="WORD", help="only parts whose name has one of these words in it")
    parser.add_argument("--seconds", type=float, default=280, help="begin no part later than this (280)")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        parser.exit(2, f"{parser.prog}: no CUDA device here; run it on a machine that has one, or give --smoke\n")
    device = "cpu" if options.smoke else "cuda"
    step_tasks = train_step.TINY[:1] if options.smoke else train_step.GPU_TASKS
    parts: dict[str, Callable[[], Rows]] = {
        "numbers": partial(numbers, device, options.smoke),
        "tests": partial(tests, device, options.smoke),
        **{str(task): partial(train_step.rows_of, task, 2 if options.smoke else 3) for task in step_tasks},
        "log p(x)": partial(log_p, device, options.smoke),
        "memory": partial(memory, device, options.smoke),
        "MNIST": partial(whole_run, options.data_root, device, options.smoke),
    }
    started, rows, notes = time.perf_counter(), [], []
    seconds: dict[str, float] = {}
    for name, part in parts.items():
        if options.parts and not any(word in name for word in options.parts):
            continue
        begun = time.perf_counter()
        if begun - started > options.seconds:
            notes.append(f"{name}: not begun within {options.seconds:g} s")
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += [{"benchmark": name, **row} for row in part()]
        except Exception as error:  # the other parts still tell something
            notes.append(f"{name} failed: {' '.join(f'{type(error).__name__}: {error}'.split())[:600]}")
        seconds[name] = time.perf_counter() - begun
        # After each part, so that a run that is cut short leaves what it found.
        write_json(options.json, "gpu", rows, smoke=options.smoke, about=about(device), notes=notes, seconds=seconds)
        if options.markdown is not None:
            options.markdown.write_text(markdown(rows))
    off = [
        f"{row['case']}, {row['contestant']}: {row['value']:.3g}, at most {row['limit']:g} allowed"
        for row in rows
        if not row.get("met", True)
    ]
    show(f"pvae on {about(device)['device']}", COLUMNS, [cells(row) for row in rows], [*notes, *off])
    write_json(options.json, "gpu", rows, smoke=options.smoke, about=about(device), notes=notes, seconds=seconds)
    sys.exit(1 if notes or off else 0)


if __name__ == "__main__":
    main()
