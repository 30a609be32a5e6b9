"""Data sets, their splits and their binarization."""

from pvae.data.binarize import binarized
from pvae.data.dataset import DataSet
from pvae.data.load import load, names

__all__ = ["DataSet", "binarized", "load", "names"]
