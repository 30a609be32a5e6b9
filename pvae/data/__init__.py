"""Data sets, their splits and their binarization."""

from pvae.data.binarize import binarized
from pvae.data.dataset import DataSet
from pvae.data.load import load, names
from pvae.data.missing import missing

__all__ = ["DataSet", "binarized", "load", "missing", "names"]
