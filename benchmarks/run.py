"""All benchmarks in one table: what `make bench` runs. A few minutes; give --data-root for the MNIST rows."""

from __future__ import annotations

import sys

import mnist_burda
import step_modes
from common import add_data_root, arguments, show, write_json

COLUMNS = ("benchmark", "time", "vs hand-written", "result")


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    options = parser.parse_args()
    lines: list[tuple[str, ...]] = []

    print("step_modes ...", file=sys.stderr, flush=True)
    rows = step_modes.measure(options.smoke)
    for row in rows:
        name, milliseconds, quartiles, ratio = step_modes.cells(row)
        lines.append((f"step, {name}", f"{milliseconds} ms", ratio, f"quartiles {quartiles}"))
    for row in rows:
        row["benchmark"] = "step_modes"

    notes: list[str] = []
    about = None
    if options.data_root is None and not options.smoke:
        skipped = "skipped: no MNIST; give --data-root or set PVAE_DATA_ROOT"
        lines.append(("MNIST, Burda's net", "-", "-", skipped))
    else:
        print("mnist_burda ...", file=sys.stderr, flush=True)
        trained, about = mnist_burda.measure(options.data_root, epochs=2 if options.smoke else 20, smoke=options.smoke)
        for row in trained:
            name, train, train_ratio, _, _, nll, evaluation, evaluation_ratio = mnist_burda.cells(row)
            lines.append((f"train Burda's net, {name}", f"{train} s", train_ratio, f"NLL {nll} nats"))
            lines.append((f"its log p(x), {name}", f"{evaluation} s", evaluation_ratio, "the same number, its time"))
            rows.append({"benchmark": "mnist_burda", **row})
        notes = [mnist_burda.title(about), *mnist_burda.notes(trained, about)]

    show("pvae benchmarks", COLUMNS, lines, notes)
    write_json(options.json, "run", rows, smoke=options.smoke, mnist_burda=about)


if __name__ == "__main__":
    main()
