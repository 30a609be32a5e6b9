"""A data set in one line, for a person to see what was understood."""

import math

from pvae.data.dataset import DataSet

__all__ = ["in_words"]


def in_words(dataset: DataSet) -> str:
    """Such as "cells.csv: 144 rows x 13 columns, counts, without its index column"."""
    num_data = sum(len(values) for values in dataset.splits.values())
    if len(dataset.shape) < 2:
        num_columns = math.prod(dataset.shape)
        size = f"{num_data:,} rows x {num_columns:,} column{'' if num_columns == 1 else 's'}"
    else:
        size = f"{num_data:,} data of {' x '.join(map(str, dataset.shape))}"
    binarize = "" if dataset.binarize is None else f"binarize {dataset.binarize}"
    return f"{dataset.name}: " + ", ".join(filter(None, (size, dataset.kind, dataset.note, binarize)))
