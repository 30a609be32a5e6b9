"""Data sets: what is loaded, what a model sees of it, and what every mistake is told."""

import gzip
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pvae import data
from pvae.data import DataSet
from pvae.data.amat import read_amat
from pvae.data.split import fixed_split, split_indices, tenths

UNIT = torch.linspace(0, 1, 24).reshape(6, 1, 2, 2)
BITS = (UNIT > 0.3).float()


def error_of(call, *args, **kwargs):
    """The message of the ValueError that a call must raise, which must be one line."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        call(*args, **kwargs)
    return str(caught.value)


# --- DataSet


def test_dataset_keeps_and_describes():
    labels = {"train": torch.arange(6)}
    dataset = DataSet("mine", UNIT, UNIT[:2], kind="unit", labels=labels)
    assert dataset.shape == (1, 2, 2)
    assert dataset.observed_kind == "unit"
    assert dataset.observe(UNIT) is UNIT
    assert list(dataset.splits) == ["train", "valid"]
    assert json.loads(json.dumps(dataset.describe())) == {
        "name": "mine",
        "kind": "unit",
        "binarize": None,
        "shape": [1, 2, 2],
        "sizes": {"train": 6, "valid": 2, "test": 0},
    }
    assert "tensor" not in repr(dataset)
    with pytest.raises(FrozenInstanceError):
        dataset.name = "yours"


@pytest.mark.parametrize(
    ("dtype", "kind", "stored"),
    [
        (torch.uint8, "counts", torch.float32),
        (torch.bool, "binary", torch.float32),
        (torch.int32, "categorical", torch.int64),
        (torch.float64, "real", torch.float64),
    ],
)
def test_dataset_dtypes(dtype, kind, stored):
    dataset = DataSet("mine", torch.tensor([[0], [1]]).to(dtype), kind=kind)
    assert dataset.train.dtype == stored
    assert dataset.train.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": None}, ["train: data must be a tensor, an array of numpy", "got None", "as_tensor"]),
        ({"train": torch.tensor(1.0)}, ["train: empty data", "shape ()"]),
        ({"train": UNIT[:0]}, ["train: empty data", "(0, 1, 2, 2)"]),
        ({"valid": UNIT[:0]}, ["valid: empty data", "at least one datum"]),
        ({"valid": UNIT[:0].numpy()}, ["valid: empty data", "at least one datum"]),
        ({"train": UNIT.to(torch.complex64)}, ["train", "complex64", "convert"]),
        ({"train": UNIT.to(torch.float8_e4m3fn)}, ["train", "float8_e4m3fn", "convert"]),
        ({"test": UNIT.to("meta")}, ["test: data must be dense tensors", "without values (meta)"]),
        ({"name": 3}, ["name must be the name of the data, got 3"]),
        ({"labels": [0] * 6}, ["labels must be a dict by split, or None", "{'train': labels}"]),
        ({"beside": UNIT}, ["beside must be a dict by split, or None", "a tensor (6, 1, 2, 2)"]),
        ({"valid": UNIT.flatten(1)}, ["valid must match", "(1, 2, 2)", "(4,)"]),
        ({"test": UNIT.double()}, ["test must match", "float32", "float64"]),
        ({"train": UNIT / UNIT}, ["train", "1 values", "NaN", "row 0"]),
        ({"test": UNIT.where(UNIT < 0.9, torch.inf)}, ["test", "3 values", "infinite", "row 5"]),
        ({"valid": UNIT * 2, "kind": "unit"}, ["valid", "[0, 1]", "'real'", "12 others such as 1.04"]),
        ({"train": UNIT, "kind": "binary"}, ["0s and 1s", "0.0434", "row 0", "binarized"]),
        ({"train": UNIT - 1, "kind": "counts"}, ["non-negative integers", "-1"]),
        ({"train": UNIT, "kind": "categorical"}, ["integer dtype", "float32", ".long()"]),
        ({"train": torch.tensor([[-1]]), "kind": "categorical"}, ["non-negative", "-1", "from 0"]),
        ({"kind": "binry"}, ["unknown kind 'binry'", "did you mean 'binary'?", "counts"]),
        ({"binarize": "dynamik"}, ["unknown binarize 'dynamik'", "did you mean 'dynamic'?", "static"]),
        ({"binarize": "dynamic"}, ["'unit'", "'real'", "binarized(dataset, 'dynamic')"]),
        ({"binarize": "static", "kind": "unit"}, ["'binary'", "'unit'", "binarized(dataset, 'static')"]),
        ({"labels": {"train": torch.zeros(5).long()}}, ["train labels", "(6,)", "(5,)"]),
        ({"labels": {"train": torch.zeros(6)}}, ["train labels", "int64", "float32"]),
        ({"labels": {"train": [0] * 6}}, ["train labels", "Tensor", "list"]),
        ({"labels": {"test": torch.zeros(6).long()}}, ["labels", "train", "'test'", "drop"]),
    ],
)
def test_dataset_refuses(change, words):
    message = error_of(DataSet, **{"name": "mine", "train": UNIT} | change)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("given", ["float64 array", "float32 array", "sparse", "big-endian", "read-only"])
def test_arrays_and_sparse_layouts_come_through_the_door(given):
    rows, counts = torch.rand(6, 3), torch.arange(6)
    as_given = {
        "float64 array": lambda x: x.double().numpy(),
        "float32 array": lambda x: x.numpy(),
        "sparse": lambda x: x.to_sparse(),
        "big-endian": lambda x: x.numpy().astype(">f4"),
        "read-only": lambda x: np.broadcast_to(x.numpy(), x.shape),
    }[given]
    dataset = DataSet(
        "mine",
        as_given(rows),
        as_given(rows[:2]),
        labels={"train": counts.numpy().astype("int32"), "valid": counts[:2]},
        beside={"train": (as_given(rows), counts.numpy()), "valid": (as_given(rows[:2]), counts[:2])},
    )
    assert dataset.train.equal(rows)
    assert dataset.valid.equal(rows[:2])
    assert dataset.train.dtype == torch.float32
    assert dataset.labels["train"].equal(counts)
    assert dataset.beside["train"][0].equal(rows)
    assert dataset.beside["train"][1].equal(counts)


# --- Binarization


def test_dynamic_draws_have_the_intensities_as_means():
    dataset = data.binarized(DataSet("mine", UNIT, kind="unit"), "dynamic")
    assert (dataset.kind, dataset.observed_kind, dataset.binarize) == ("unit", "binary", "dynamic")
    assert torch.equal(dataset.train, UNIT)
    num = 20_000
    generator = torch.Generator().manual_seed(0)
    mean = dataset.observe(UNIT.expand(num, *UNIT.shape), generator).mean(0)
    standard_error = (UNIT * (1 - UNIT) / num).sqrt()
    assert ((mean - UNIT).abs() <= 5 * standard_error).all()


def test_dynamic_draws_are_fresh_and_follow_the_generator():
    dataset = data.binarized(DataSet("mine", UNIT, kind="unit"), "dynamic")
    generator = torch.Generator().manual_seed(1)
    x = UNIT.repeat(20, 1, 1, 1)
    first, second = dataset.observe(x, generator), dataset.observe(x, generator)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0, 1}
    assert torch.equal(first, dataset.observe(x, generator.manual_seed(1)))
    global_state = torch.get_rng_state()
    dataset.observe(x, generator)
    assert torch.equal(global_state, torch.get_rng_state())


def test_static_draws_once_by_seed():
    labels = {"train": torch.arange(6)}
    grey = DataSet("mine", UNIT, UNIT.flip(0), kind="unit", labels=labels)
    static = data.binarized(grey, "static")
    assert (static.kind, static.observed_kind, static.binarize) == ("binary", "binary", "static")
    assert static.observe(static.train) is static.train
    assert static.test is None
    assert static.labels["train"] is labels["train"]
    for split in ("train", "valid"):
        assert torch.equal(static.splits[split], data.binarized(grey, "static", seed=0).splits[split])
        assert not torch.equal(static.splits[split], data.binarized(grey, "static", seed=1).splits[split])
    assert not torch.equal(static.train, static.valid.flip(0))
    # The draw itself is part of the record: this pattern may never change.
    assert static.train.flatten().int().tolist() == [int(bit) for bit in "000000000100001110100111"]


def test_static_means_match_intensities_across_blocks():
    num = 10_000
    grey = DataSet("mine", UNIT.expand(num, *UNIT.shape), kind="unit")
    mean = data.binarized(grey, "static").train.mean(0)
    assert ((mean - UNIT).abs() <= 5 * (UNIT * (1 - UNIT) / num).sqrt()).all()


def test_threshold_and_what_is_left_alone():
    grey = DataSet("mine", UNIT, kind="unit")
    cut = data.binarized(grey, "threshold")
    assert (cut.kind, cut.binarize) == ("binary", "threshold")
    assert torch.equal(cut.train, (UNIT > 0.5).float())
    bits = DataSet("bits", BITS, kind="binary")
    assert data.binarized(bits, "threshold") is bits
    assert data.binarized(bits, None) is bits
    assert data.binarized(grey, None) is grey


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_binary_data_are_not_drawn_from(how):
    assert "already binary" in error_of(data.binarized, DataSet("bits", BITS, kind="binary"), how)


@pytest.mark.parametrize("kind", ["real", "counts", "categorical"])
@pytest.mark.parametrize("how", ["dynamic", "static", "threshold"])
def test_only_intensities_are_binarized(kind, how):
    message = error_of(data.binarized, DataSet("mine", torch.arange(6).reshape(3, 2), kind=kind), how)
    assert all(word in message for word in [f"'{kind}'", "[0, 1]", "rescale", "leave binarize out"])


def test_binarized_takes_a_data_set_and_a_seed():
    grey = DataSet("mine", UNIT, kind="unit")
    assert "dataset must be a pvae.data.DataSet, got 'digits'" in error_of(data.binarized, "digits", "static")
    for seed in (-1, 1.5, True, None, 2**32):
        assert "seed must be" in error_of(data.binarized, grey, "static", seed=seed)


@pytest.mark.parametrize(
    ("x", "observed", "words"),
    [
        ([[1.0]], None, ["data must be a tensor", "got [[1.0]]", "torch.as_tensor"]),
        (UNIT, [[True]], ["data must be a tensor", "got [[True]]", "torch.as_tensor"]),
        (UNIT, UNIT[:2] > 0, ["the shape of x, (6, 1, 2, 2), got (2, 1, 2, 2)", "one entry for each"]),
        (UNIT, UNIT, ["observed must hold True and False, or 1 and 0", "~x.isnan()"]),
    ],
)
def test_missing_refuses(x, observed, words):
    message = error_of(data.missing, x, observed)
    assert all(word in message for word in words), message


def test_missing_takes_arrays_of_numpy():
    x = torch.where(UNIT > 0.5, torch.nan, UNIT)
    for found, expected in zip(data.missing(x.numpy(), (UNIT > 0.1).numpy()), data.missing(x, UNIT > 0.1), strict=True):
        assert torch.equal(found, expected)


# --- Splits


def test_fixed_split_is_a_partition_that_never_changes():
    rows = split_indices((6, 2, 2))
    assert sorted(torch.cat(rows).tolist()) == list(range(10))
    assert torch.cat(rows).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    train, valid, test = fixed_split(torch.arange(10), (6, 2, 2))
    assert torch.equal(torch.cat([train, valid, test]), torch.cat(rows))
    assert tenths(1797, "x") == (1439, 179, 179)
    assert tenths(3, "x") == (1, 1, 1)


# --- Data sets by name


def test_names_and_unknown_names():
    assert list(data.names()) == [
        "digits",
        "mnist",
        "fashion_mnist",
        "kmnist",
        "binarized_mnist",
        "freyfaces",
    ]
    assert all(text and "\n" not in text for text in data.names().values())
    message = error_of(data.load, "Fashion-MNST")
    for word in ["'Fashion-MNST'", "did you mean 'fashion_mnist'?", *data.names(), ".npy", ".npz", ".csv"]:
        assert word in message
    assert "did you mean" not in error_of(data.load, "weights.pt")
    assert "did you mean 'static'?" in error_of(data.load, "digits", binarize="statik")


def test_import_stays_light():
    code = "import sys, pvae.data; print([m for m in ('sklearn', 'torchvision') if m in sys.modules])"
    repository = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits():
    dataset = data.load("digits")
    assert dataset.describe() == {
        "name": "digits",
        "kind": "unit",
        "binarize": None,
        "shape": [1, 8, 8],
        "sizes": {"train": 1297, "valid": 200, "test": 300},
    }
    sums = {split: x.double().sum().item() * 16 for split, x in dataset.splits.items()}
    assert sums == {"train": 405824, "valid": 62289, "test": 93605}
    assert dataset.train.max() == 1
    assert {split: int(x.sum()) for split, x in dataset.labels.items()} == {
        "train": 5824,
        "valid": 876,
        "test": 1370,
    }
    assert [int(x) for x in dataset.labels["test"][:8]] == [8, 8, 2, 2, 2, 9, 8, 8]
    assert torch.equal(dataset.test, data.load("digits").test)
    static = data.load("digits", binarize="static")
    assert (static.kind, static.binarize) == ("binary", "static")
    assert torch.equal(static.train, data.load("digits", binarize="static").train)


KIN = [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]


def write_idx(path, values):
    header = (0x0800 + values.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.fixture(scope="module")
def kin_root(tmp_path_factory):
    """Idx files of the right sizes for all three sets: image i is full of i % 256, its label is i % 10."""
    root = tmp_path_factory.mktemp("kin")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, num in (("train", 60_000), ("t10k", 10_000)):
        fill = np.arange(num).astype(np.uint8)
        images = np.broadcast_to(fill[:, None, None], (num, 28, 28))
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", (np.arange(num) % 10).astype(np.uint8))
    for _, folder in KIN[1:]:
        (root / folder).symlink_to(root / "MNIST")
    return root


@pytest.mark.parametrize(("name", "folder"), KIN)
def test_mnist_kin(kin_root, name, folder):
    dataset = data.load(name, kin_root)
    assert dataset.describe()["sizes"] == {"train": 58_000, "valid": 2_000, "test": 10_000}
    assert (dataset.name, dataset.kind, dataset.shape) == (name, "unit", (1, 28, 28))
    assert dataset.valid[0, 0, 5, 5].item() == pytest.approx(58_000 % 256 / 255)
    assert dataset.test[255].unique().tolist() == [1]
    assert dataset.labels["valid"][3] == 3


@pytest.mark.parametrize(("name", "folder"), KIN)
def test_mnist_kin_not_found(tmp_path, name, folder):
    message = error_of(data.load, name)
    assert all(word in message for word in [name, "root", f"{folder}/raw", "download=True", "--download"])
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte").touch()
    message = error_of(data.load, name, tmp_path)
    assert all(word in message for word in [str(raw), "train-images-idx3-ubyte", "--download", "put those"])
    assert "train-labels" not in message


def test_mnist_without_a_network(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/again/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    message = error_of(data.load, "mnist", tmp_path, download=True)
    assert all(word in message for word in ["could not be downloaded", str(tmp_path), "network", "by hand"])
    (tmp_path / "file").touch()
    assert "could not be downloaded" in error_of(data.load, "mnist", tmp_path / "file", download=True)
    (tmp_path / "MNIST" / "processed").mkdir()
    message = error_of(data.load, "mnist", tmp_path, download=True)
    assert "pickles are never loaded" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["file of 0", "cannot be read"]),
        (
            b"\0\0\x08\x03" + b"\0\0\xea\x60" + b"\0\0\0\x1c" * 2 + b"cut short",
            ["file of 25", "cannot be read"],
        ),
        (b"\0\0\x08\x03" + b"\0\0\0\1" * 3 + b"x", ["60000x28x28", "got 1x1x1"]),
    ],
)
def test_mnist_damaged(tmp_path, kin_root, content, words):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (kin_root / "MNIST" / "raw").iterdir():
        (raw / file.name).symlink_to(file)
    images = raw / "train-images-idx3-ubyte"
    images.unlink()
    images.write_bytes(content)
    message = error_of(data.load, "mnist", tmp_path)
    assert all(word in message for word in [str(images), "60000x28x28", "delete it", *words])


# --- .amat files

LINES = np.random.RandomState(0).randint(0, 2, (5, 4))
AMAT = b"".join(b" ".join(b"%d" % v for v in row) + b"\n" for row in LINES)


@pytest.mark.parametrize("text", [AMAT, AMAT[:-1], AMAT.replace(b"\n", b" \n"), AMAT.replace(b"\n", b"\r\n")], ids=repr)
def test_amat_line_ends(tmp_path, text):
    plain, zipped = tmp_path / "x.amat", tmp_path / "x.amat.gz"
    plain.write_bytes(text)
    zipped.write_bytes(gzip.compress(text))
    for path in (plain, zipped):
        values = read_amat(path, num=5, width=4)
        assert values.dtype == torch.float32
        assert values.tolist() == LINES.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AMAT[:32], ["got 4 lines"]),
        (AMAT[:-4], ["got 5 lines", "line 5 with 2 values"]),
        (AMAT.replace(b"\n", b" 1\n"), ["got 5 lines", "line 1 with 5 values"]),
        (AMAT[:8] + b"0 1 2 0\n" + AMAT[16:], ["got 5 lines", "line 2 with other values"]),
        (AMAT[:8] + b"0 1 - 0\n" + AMAT[16:], ["line 2 with other values"]),
        (AMAT.replace(b" ", b","), ["line 1 with 1 values"]),
        (AMAT.replace(b" ", b"\t"), ["single spaces", "got 5 lines"]),
        (b"", ["line 1 with 0 values"]),
    ],
    ids=range(8),
)
def test_amat_refuses(tmp_path, text, words):
    path = tmp_path / "x.amat"
    path.write_bytes(text)
    message = error_of(read_amat, path, num=5, width=4)
    assert all(word in message for word in [str(path), "5 lines of 4", "get the file again", *words]), message


def test_amat_damaged_archive(tmp_path):
    path = tmp_path / "x.amat.gz"
    for content in (gzip.compress(AMAT)[:-9], gzip.compress(AMAT)[:12] + b"noise", b"not gzip"):
        path.write_bytes(content)
        assert "damaged file" in error_of(read_amat, path, num=5, width=4)


@pytest.mark.parametrize("folder", ["", "binarized_mnist"])
def test_binarized_mnist_names_the_wrong_file(tmp_path, folder):
    base = tmp_path / folder
    base.mkdir(exist_ok=True)
    (base / "binarized_mnist_train.amat").write_bytes(b"0 1\n")
    (base / "binarized_mnist_valid.amat.gz").write_bytes(b"")
    message = error_of(data.load, "binarized_mnist", tmp_path)
    assert all(word in message for word in ["binarized_mnist_test.amat", ".gz", str(tmp_path), "cannot download"])
    (base / "binarized_mnist_test.amat").write_bytes(b"")
    message = error_of(data.load, "binarized_mnist", tmp_path)
    assert all(word in message for word in ["binarized_mnist_train.amat", "50000 lines of 784", "got 1 lines"])


# --- Frey faces


@pytest.mark.parametrize("folder", ["", "freyfaces"])
def test_freyfaces(tmp_path, folder):
    base = tmp_path / folder
    base.mkdir(exist_ok=True)
    frames = np.random.RandomState(0).randint(0, 256, (1965, 28, 20)).astype(np.uint8)
    np.save(base / "freyfaces.npy", frames)
    dataset = data.load("freyfaces", str(tmp_path))
    assert (dataset.kind, dataset.shape) == ("unit", (1, 28, 20))
    assert dataset.describe()["sizes"] == {"train": 1565, "valid": 200, "test": 200}
    _, _, test = split_indices((1565, 200, 200))
    assert torch.equal((dataset.test[:, 0] * 255).round().byte(), torch.from_numpy(frames)[test])


def test_freyfaces_refuses(tmp_path):
    assert "root=FOLDER" in error_of(data.load, "freyfaces")
    assert str(tmp_path / "freyfaces") in error_of(data.load, "freyfaces", tmp_path)
    path = tmp_path / "freyfaces.npy"
    np.save(path, np.zeros((1965, 560), np.uint8))
    assert "got (1965, 560) of uint8" in error_of(data.load, "freyfaces", tmp_path)
    path.write_bytes(b"nothing")
    assert "not a readable .npy" in error_of(data.load, "freyfaces", tmp_path)


# --- The user's own files

ROWS = np.arange(40.0).reshape(20, 2)


@pytest.mark.parametrize(
    ("array", "kind", "shape"),
    [
        (np.arange(40).reshape(20, 2) % 2, "binary", (2,)),
        (np.arange(40).reshape(20, 2) % 2 == 1, "binary", (2,)),
        (ROWS / 39, "unit", (2,)),
        (ROWS - 3, "real", (2,)),
        (ROWS.astype(">f4"), "counts", (2,)),
        (ROWS.astype(np.uint8), "counts", (2,)),
        (np.full((20, 4, 3), 255, np.uint8) - np.arange(3, dtype=np.uint8), "unit", (1, 4, 3)),
        (np.full((20, 3, 4, 4), 7, np.uint8), "unit", (3, 4, 4)),
        (np.full((20, 4, 3), 255, np.uint8), "binary", (1, 4, 3)),
        (np.full((20, 4, 3), 1, np.uint8), "binary", (1, 4, 3)),
        (np.full((20, 4, 3), 0.5), "unit", (4, 3)),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_user_arrays(tmp_path, array, kind, shape, suffix):
    path = tmp_path / f"mine{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, array)
    dataset = data.load(path)
    assert (dataset.name, dataset.kind, dataset.shape) == (path.name, kind, shape)
    assert dataset.train.dtype == torch.float32
    assert dataset.describe()["sizes"] == {"train": 16, "valid": 2, "test": 2}
    assert torch.equal(dataset.test, data.load(str(path)).test)


def test_user_split_has_every_row_once(tmp_path):
    np.save(tmp_path / "mine.npy", ROWS)
    dataset = data.load(tmp_path / "mine.npy")
    rows = torch.cat(list(dataset.splits.values()))
    assert sorted(rows[:, 0].tolist()) == ROWS[:, 0].tolist()
    assert torch.equal(rows, torch.from_numpy(ROWS).float()[torch.cat(split_indices((16, 2, 2)))])


def test_user_npz_with_its_own_splits(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, train=np.ones((5, 4, 4), np.uint8), test=np.full((3, 4, 4), 51, np.uint8))
    dataset = data.load(path)
    assert dataset.describe()["sizes"] == {"train": 5, "valid": 0, "test": 3}
    # The scale and the kind are those of all splits together.
    assert dataset.kind == "unit"
    assert dataset.train.unique().item() == pytest.approx(1 / 255)
    assert dataset.test.unique().item() == pytest.approx(0.2)
    assert data.load(path, binarize="dynamic").observed_kind == "binary"
    np.savez(path, train=ROWS)
    assert data.load(path).describe()["sizes"] == {"train": 20, "valid": 0, "test": 0}


@pytest.mark.parametrize("header", ["", "a,b\n", '"a","b"\n', "label,0\n", "\ufeff", "\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_user_csv(tmp_path, header, newline):
    path = tmp_path / "mine.csv"
    text = header + "\n".join(f"{a},{b}" for a, b in ROWS) + "\n"
    path.write_bytes(text.replace("\n", newline).encode())
    rows = torch.cat(list(data.load(path).splits.values()))
    assert sorted(rows[:, 1].tolist()) == ROWS[:, 1].tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no rows of numbers"]),
        ("a,b\n", ["no rows of numbers"]),
        ("1,2\n3,4,5\n6,7\n", ["3 fields at row 1", "rows of 2"]),
        ("1,\n2,3\n4,5\n", ["''", "row 0"]),
        ("a,b\n1,2\n3,x\n5,6\n", ["'x'", "row 1"]),
        ("7,2\n3,nan\n5,6\n", ["1 values NaN", "row 1"]),
        ("7,2\n3,4\n", ["at least 3 rows", "got 2"]),
    ],
)
def test_user_csv_refuses(tmp_path, text, words):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    message = error_of(data.load, path)
    assert all(word in message for word in [str(path), *words]), message


def with_bad(value, *rows):
    array = ROWS.copy()
    array[list(rows), 1] = value
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (with_bad(np.nan, 7, 12), ["2 values NaN", "row 7", "drop those rows"]),
        (with_bad(np.inf, 4), ["1 values", "infinite", "row 4"]),
        (with_bad(1e300, 9), ["1 values", "infinite in torch.float32", "row 9"]),
        (np.array([["a"], [None]], dtype=object), ["dtype object", "pickles are never loaded", "numpy.save"]),
        (np.array([["a", "b"]]), ["real numbers", "<U1"]),
        (ROWS.astype(complex), ["real numbers", "complex128"]),
        (np.zeros((0, 3)), ["not empty", "(0, 3)"]),
        (np.float64(3), ["2-D or more", "()"]),
        (np.arange(10), ["2-D or more", "(10,)", "not labels"]),
        (ROWS[:2], ["at least 3 rows", "got 2", "train, valid and test"]),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_user_arrays_refused(tmp_path, array, words, suffix):
    path = tmp_path / f"mine{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, array)
    message = error_of(data.load, path)
    assert all(word in message for word in [str(path), *words]), message


def test_user_npz_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, train=ROWS, labels=np.arange(20))
    message = error_of(data.load, path)
    assert all(word in message for word in [str(path), "train, labels", "one array, or train"])
    np.savez(path, train=ROWS, test=with_bad(np.nan, 3))
    assert all(word in error_of(data.load, path) for word in ["mine.npz test", "row 3"])
    np.savez(path, train=ROWS, test=ROWS[:, :1])
    assert "test must match train's (2,)" in error_of(data.load, path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_user_files_that_are_none(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    assert f"expected a file at {path}" in error_of(data.load, path)
    np.savez(tmp_path / "whole.npz", ROWS)
    np.save(tmp_path / "whole.npy", ROWS)
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    for content in (b"", b"some text", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        message = error_of(data.load, path)
        assert all(word in message for word in [str(path), "damaged or another format", "numpy.save"])


def test_user_pickle_is_not_run(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "mine.npy"
    path.write_bytes(pickle.dumps(Trap()))
    assert "pickles are never loaded" in error_of(data.load, path)
    np.save(path, np.array([[Trap()]], dtype=object), allow_pickle=True)
    assert "pickles are never loaded" in error_of(data.load, path)
    assert not (tmp_path / "sprung").exists()


def test_user_intensities_are_binarized(tmp_path):
    np.save(tmp_path / "mine.npy", ROWS / 39)
    assert data.load(tmp_path / "mine.npy", binarize="threshold").kind == "binary"
    np.save(tmp_path / "mine.npy", ROWS)
    assert "'counts'" in error_of(data.load, tmp_path / "mine.npy", binarize="dynamic")


# --- Real files, where there are any


def real(root, name, folder):
    if not (root / folder).is_dir():
        pytest.skip(f"no {folder} in {root}")
    return data.load(name, root)


def byte_sums(dataset):
    return [int((x * 255).round().double().sum()) for x in dataset.splits.values()]


def test_real_mnist(data_root):
    dataset = real(data_root, "mnist", "MNIST")
    assert byte_sums(dataset) == [1514582730, 52715815, 264923200]
    assert dataset.labels["train"][:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.labels["test"][:5].tolist() == [7, 2, 1, 0, 4]
    dynamic = replace(dataset, binarize="dynamic")
    x = dynamic.test
    drawn = dynamic.observe(x, torch.Generator().manual_seed(0))
    standard_error = (x.double() * (1 - x.double())).sum().sqrt()
    assert (drawn.double().sum() - x.double().sum()).abs() <= 5 * standard_error


def test_real_binarized_mnist(data_root):
    dataset = real(data_root, "binarized_mnist", "binarized_mnist")
    assert (dataset.kind, dataset.shape, dataset.labels) == ("binary", (1, 28, 28), None)
    assert dataset.describe()["sizes"] == {"train": 50_000, "valid": 10_000, "test": 10_000}
    assert [int(x.double().sum()) for x in dataset.splits.values()] == [5118041, 1028036, 1038896]


def test_real_freyfaces(data_root):
    dataset = real(data_root, "freyfaces", "freyfaces")
    assert dataset.train.min().item() * 255 == pytest.approx(8)
    assert byte_sums(dataset) == [135402763, 17307281, 17258697]
