"""The embedded default: scikit-learn's handwritten digits, which need no download."""

import torch

from pvae.data.dataset import DataSet
from pvae.data.split import fixed_split

__all__ = ["load_digits"]

_SIZES = (1297, 200, 300)


def load_digits() -> DataSet:
    """1,797 digits (1, 8, 8) in [0, 1] with labels, in a fixed 1297/200/300 split."""
    # Imported here: scikit-learn takes a second that no other data set should pay.
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.as_tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    targets = torch.as_tensor(bunch.target, dtype=torch.int64)
    labels = dict(zip(("train", "valid", "test"), fixed_split(targets, _SIZES), strict=True))
    return DataSet("digits", *fixed_split(images, _SIZES), kind="unit", labels=labels)
