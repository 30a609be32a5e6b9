"""Fixtures that several test files share."""

import os
from pathlib import Path

# The nets of the tests are small: a second thread gains nothing, and waits long for a busy core. Torch reads these when
# it is loaded, and the processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pyro
import pytest
import torch

from pvae.pair import store

torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """The folder of real data files: PVAE_DATA_ROOT, or shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("PVAE_DATA_ROOT", beside))
    if not root.is_dir():
        pytest.skip(f"no real data in {root}: set PVAE_DATA_ROOT to the folder that holds them")
    return root


@pytest.fixture(autouse=True)
def own_param_store():
    """Each test starts with an empty Pyro param store, and where pvae trained no factory's pair, and leaves neither."""
    with pyro.get_param_store().scope():
        yield
    store._trained.clear()
