"""All benchmarks in one table: what `make bench` runs. Some ten minutes; give --data-root for the MNIST rows."""

from __future__ import annotations

import sys
from typing import Any

import epoch_overhead
import first_look
import log_marginal
import memory
import mnist_burda
import scaling
import startup
import summing_out
import train_step
from common import COLUMNS, Rows, add_data_root, arguments, cells, one, show, write_json

QUESTIONS = (startup, first_look, memory, train_step, epoch_overhead, log_marginal, scaling, summing_out)
# Case, contestant, what its figure is compared with (nothing: the figure itself), and where it should be: at most, or
# for a speed-up at least.
TARGETS = (
    ("step: 784-200-200-50, batch 100", "pvae compiled", "by hand", "<=", 0.88),
    ("step: 784-200-200-50, batch 100", "pvae compiled", "Pyro SVI.step", "<=", 0.45),
    ("step: 784-200-200-50, batch 100", "pvae compiled", "pythae", "<=", 0.60),
    ("step: 64-64-2, batch 64", "pvae compiled", "by hand", "<=", 0.65),
    ("step: 64-64-2, batch 64", "pvae compiled", "Pyro SVI.step", "<=", 0.22),
    ("step: IWAE 50, 784-200-200-50, batch 20", "pvae compiled", "by hand", "<=", 0.80),
    ("step: conv 32-64-256-16, batch 128", "pvae compiled", "by hand", "<=", 1.0),
    ("log p(x): 784-200-200-50, K = 5000", "by hand", "pvae compiled", ">=", 1.6),
    ("log p(x): 784-200-200-50, K = 5000", "pythae get_nll", "pvae compiled", ">=", 4.0),
    ("log p(x): 784-200-200-50, K = 5000", "bound: the products by torch.mm", "pvae compiled", ">=", 0.58),
    ("epoch over its steps: 784-200-200-50, batch 100", "pvae traced", None, "<=", 1.05),
    ("peak memory against K", "K = 100,000", "the smallest", "<=", 1.05),
    ("summing out: 40 words of 8 topics, K = 200", "pvae ELBO", "Pyro TraceEnum_ELBO", "<=", 2.0),
    ("first look: 784-200-200-50", "first look", None, "<=", 200),
    ("start-up", "pvae --help", None, "<=", 0.5),
    ("step: 784-200-200-50, batch 100, GPU", "pvae graph", "by hand", "<=", 0.30),
    ("log p(x): 10000 images, K = 5000, GPU", "pvae auto", None, "<=", 2.0),
)


def verdicts(rows: Rows) -> list[tuple[str, ...]]:
    """Each target with what was found; a row that was not run (no GPU, no pythae) says so."""
    found = {(row["case"], row["contestant"]): row for row in rows}
    lines: list[tuple[str, ...]] = []
    for case, contestant, other, sign, bound in TARGETS:
        row = found.get((case, contestant), {"ratios": {}})
        value = row.get("value") if other is None else row["ratios"].get(other)
        versus = contestant if other is None else f"{contestant} / {other}"
        if value is None:
            lines.append((case, versus, f"{sign} {bound:g}", "-", "not run here"))
        else:
            met = value <= bound if sign == "<=" else value >= bound
            lines.append((case, versus, f"{sign} {bound:g}", f"{value:.3g}", "met" if met else "MISSED"))
    return lines


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    options = parser.parse_args()
    rows: Rows = []
    for question in QUESTIONS:
        print(f"{question.__name__} ...", file=sys.stderr, flush=True)
        rows += [{"benchmark": question.__name__, **row} for row in question.measure(options.smoke)]

    notes: list[str] = []
    about: dict[str, Any] | None = None
    if options.data_root is None and not options.smoke:
        notes = ["MNIST, Burda's net: skipped, no MNIST; give --data-root or set PVAE_DATA_ROOT"]
    else:
        print("mnist_burda ...", file=sys.stderr, flush=True)
        trained, about = mnist_burda.measure(options.data_root, epochs=2 if options.smoke else 20, smoke=options.smoke)
        for row in trained:
            train = one(
                "MNIST, 20 epochs", row["contestant"], row["train_seconds"], "s", **{"by hand": row["train_ratio"]}
            )
            estimate = one(
                "its log p(x)", row["contestant"], row["eval_seconds"], "s", **{"by hand": row["eval_ratio"]}
            )
            rows += [{"benchmark": "mnist_burda", **train, **row}, {"benchmark": "mnist_burda", **estimate}]
        notes = [mnist_burda.title(about), *mnist_burda.notes(trained, about)]

    show("pvae benchmarks", COLUMNS, [cells(row) for row in rows], notes)
    targets = verdicts(rows)
    show("targets", ("case", "contestant", "target", "found", ""), targets)
    write_json(options.json, "run", rows, smoke=options.smoke, mnist_burda=about, targets=targets)


if __name__ == "__main__":
    main()
