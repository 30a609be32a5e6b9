"""A user's own files, odd ones too: each is read rightly, or refused in one line that names what it could be."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pvae
from pvae.cli.main import app
from pvae.data.unzipped import most_bytes
from pvae.data.words import in_words

# Three rows of three real numbers, in which no row or column counts anything.
REAL = [[1.5, 2.0, -3.0], [0.25, 7.0, 1.0], [4.0, 5.5, 6.0]]
COUNTS = [[4, 0, 7], [1, 9, 2], [3, 3, 5]]


def text(rows, separator=",", header="", end="\n"):
    return header + end.join(separator.join(map(str, row)) for row in rows) + end


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(compressed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in members.items():
            opened.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy_of(header, data=b""):
    """An .npy file of version 1.0 with any text for a header."""
    padded = header + " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + data


def declared(shape, data=b"", dtype="<f8"):
    return npy_of(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", data)


def bomb():
    """A zip of a few bytes whose directory says that it opens to almost 4 GiB."""
    content = bytearray(archive(arr_0=npy(np.zeros((4, 3)))))
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    return bytes(content)


def encrypted():
    content = bytearray(npz(x=np.array(REAL)))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    return bytes(content)


R = np.array(REAL)
C = np.array(COUNTS)
PIXELS = np.random.RandomState(0).randint(0, 256, (5, 28, 28)).astype(np.uint8)
PIXELS[0, 0, 0] = 255
COUNTS_TEXT = text(COUNTS)
REAL_TEXT = text(REAL)
ONE_COLUMN = "2.5\n0.5\n1\n"
HUGE = 2**24 + 1

# Each with the rows that it holds, the kind of values, and what is noted of it.
READ = {
    "plain.csv": (REAL_TEXT, REAL, "real", "1 column of whole numbers"),
    "counts.csv": (COUNTS_TEXT, COUNTS, "counts", ""),
    "counts_as_floats.csv": (text(np.array(COUNTS, float)), COUNTS, "counts", ""),
    "binary.csv": ("1,0\n1,1\n0,0\n", [[1, 0], [1, 1], [0, 0]], "binary", ""),
    "unit.csv": ("0.5,1\n0.25,0\n0,0.75\n", [[0.5, 1], [0.25, 0], [0, 0.75]], "unit", ""),
    "negative.csv": ("3,-1\n0,2\n5,7\n", [[3, -1], [0, 2], [5, 7]], "real", "whole numbers, some negative"),
    "no_last_end.csv": (COUNTS_TEXT[:-1], COUNTS, "counts", ""),
    "windows.csv": (text(COUNTS, end="\r\n"), COUNTS, "counts", ""),
    "old_mac.csv": (text(COUNTS, end="\r"), COUNTS, "counts", ""),
    "blank_lines.csv": ("\n\n" + COUNTS_TEXT.replace("\n", "\n\n"), COUNTS, "counts", ""),
    "spaces.csv": ("a, b, c\n 4 , 0, 7\n1, 9 ,2\n3,3 , 5 \n", COUNTS, "counts", ""),
    "header.csv": (text(COUNTS, header="a,b,c\n"), COUNTS, "counts", ""),
    "header_in_quotes.csv": (text(COUNTS, header='"a, with a comma","b",""\n'), COUNTS, "counts", ""),
    "header_with_numbers.csv": (text(COUNTS, header="label,1x1,2\n"), COUNTS, "counts", ""),
    "header_of_comment.csv": (text(COUNTS, header="# made by hand\n# 0,1,2\n"), COUNTS, "counts", ""),
    "all_in_quotes.csv": ('"4","0","7"\n"1","9","2"\n"3","3","5"\n', COUNTS, "counts", ""),
    "utf8_mark.csv": (b"\xef\xbb\xbf" + COUNTS_TEXT.encode(), COUNTS, "counts", ""),
    "utf16.csv": (text(COUNTS, header="größe,b,c\n").encode("utf-16"), COUNTS, "counts", ""),
    "utf16_big.csv": (b"\xfe\xff" + COUNTS_TEXT.encode("utf-16-be"), COUNTS, "counts", ""),
    "utf32.csv": (COUNTS_TEXT.encode("utf-32"), COUNTS, "counts", ""),
    "latin1.csv": (text(COUNTS, header="größe,\x85,c\n").encode("latin-1"), COUNTS, "counts", ""),
    "semicolons.csv": (text(REAL, ";"), REAL, "real", "separated by semicolons, 1 column of whole numbers"),
    "tabs.csv": (text(COUNTS, "\t", "a\tb\tc\n"), COUNTS, "counts", "separated by tabs"),
    "blanks.csv": (text(COUNTS, "  ", "a b  c\n"), COUNTS, "counts", ""),
    "one_column.csv": (ONE_COLUMN, [[2.5], [0.5], [1]], "real", ""),
    "one_column_that_counts.csv": ("3\n4\n5\n", [[3], [4], [5]], "counts", ""),
    "exponents.csv": (
        "1e2,-.5\n+3,2E-3\n0,1\n",
        [[100, -0.5], [3, 0.002], [0, 1]],
        "real",
        "1 column of whole numbers",
    ),
    "index_of_pandas.csv": (",a,b\n0,4,7\n1,1,2\n2,3,5\n", [[4, 7], [1, 2], [3, 5]], "counts", "without its index"),
    "index_below_numbers.csv": (",0,1\n0,4,7\n1,1,2\n2,3,5\n", [[4, 7], [1, 2], [3, 5]], "counts", "without its index"),
    "index_read_twice.csv": (
        "Unnamed: 0,a,b\n0,4.5,7\n1,1,2\n2,3,5\n",
        [[4.5, 7], [1, 2], [3, 5]],
        "real",
        "without its index column, 1 column of whole numbers",
    ),
    "index_of_r.csv": ('"","a","b"\n"1",4,7\n"2",1,2\n"3",3,5\n', [[4, 7], [1, 2], [3, 5]], "counts", "without"),
    "time.csv": ("time,a\n0,4\n1,9\n2,5\n", [[0, 4], [1, 9], [2, 5]], "counts", ""),
    "spaced_everywhere.csv": ("2,4,6,8\n3,5,7,9\n0,2,4,6\n", [[2, 4, 6, 8], [3, 5, 7, 9], [0, 2, 4, 6]], "counts", ""),
    "large_and_exact.csv": (f"{2**24},1\n5,2\n7,9\n", [[2**24, 1], [5, 2], [7, 9]], "counts", ""),
    "large_and_real.csv": (f"{HUGE}.5,1\n5,2\n7,9\n", [[HUGE + 1, 1], [5, 2], [7, 9]], "real", "1 column"),
    "packed.csv.gz": (gzip.compress(COUNTS_TEXT.encode()), COUNTS, "counts", ""),
    "größe und 数.csv": (COUNTS_TEXT, COUNTS, "counts", ""),
    "UPPER.CSV": (COUNTS_TEXT, COUNTS, "counts", ""),
    "counts.npy": (npy(C), COUNTS, "counts", ""),
    "counts_of_bytes.npy": (npy(C.astype(np.uint8)), COUNTS, "counts", ""),
    "counts_as_floats.npy": (npy(C.astype(np.float64)), COUNTS, "counts", ""),
    "big_endian.npy": (npy(C.astype(">i4")), COUNTS, "counts", ""),
    "columns_first.npy": (npy(np.asfortranarray(R)), REAL, "real", "1 column of whole numbers"),
    "halves.npy": (npy(R.astype(np.float16)), REAL, "real", "1 column of whole numbers"),
    "booleans.npy": (npy(C > 3), [[1, 0, 1], [0, 1, 0], [0, 0, 1]], "binary", ""),
    "negative.npy": (npy(C - 1), (C - 1).tolist(), "real", "whole numbers, some negative"),
    "packed.npy.gz": (gzip.compress(npy(C)), COUNTS, "counts", ""),
    "one.npz": (npz(anything=C), COUNTS, "counts", ""),
    "packed.npz": (npz(compressed=True, x=R), REAL, "real", "1 column of whole numbers"),
    "large.npy": (npy(np.array([[1e20, 0.5], [2.5, 3], [4, 5]])), [[1e20, 0.5], [2.5, 3], [4, 5]], "real", ""),
}

# Each with words of its refusal: what it is, or both things that it could be, and what to do.
REFUSED = {
    "empty.csv": ("", ["no rows of numbers"]),
    "blank.csv": (" \n\n", ["no rows of numbers"]),
    "only_header.csv": ("a,b\n", ["no rows of numbers"]),
    "only_comment.csv": ("# 1,2\n", ["no rows of numbers"]),
    "one_row.csv": ("7,3,9\n", ["at least 3 rows", "got 1"]),
    "ragged.csv": ("7,2\n3,4,5\n6,7\n", ["3 fields at row 1 after rows of 2"]),
    "short_last.csv": ("7,2\n3,4\n6\n", ["1 fields at row 2 after rows of 2"]),
    "gap.csv": ("7,\n2,3\n4,5\n", ["''", "row 0"]),
    "missing_in_first.csv": ("NA,2\n2,3\n4,5\n", ["'NA'", "row 0"]),
    "words.csv": ("a,b\n7,2\n3,x\n5,6\n", ["'x'", "row 1"]),
    "two_headers.csv": ("a,b\nm,kg\n7,2\n3,1\n", ["'m'", "row 0"]),
    "title.csv": ("My table\n7,2\n3,1\n5,6\n", ["a name for each of 2 columns", "first line of 1", "is a title"]),
    "row_names_of_r.csv": ("a,b\n7,2,9\n3,1,4\n5,6,0\n", ["each of 3", "line of 2", "row names stand first, as R"]),
    "booleans.csv": ("a,b\nTrue,False\nTrue,True\nFalse,True\n", ["'True'", "row 0"]),
    "decimal_commas.csv": (text([["1,5", "2,5"]] * 3, ";"), ["'1,5;2,5'", "decimal comma", "two numbers?", "points"]),
    "decimal_quotes.csv": ('"1,5","2,5"\n' * 3, ["decimal comma", "thousands", "two numbers?", "decimal points"]),
    "thousands.csv": ('a,b\n"1,500",2\n3,4\n5,6\n', ["thousands (1,500)", "decimal comma", "two numbers?"]),
    "two_separators.csv": ("7\t2;1\n3\t4;5\n6\t1;2\n", ["two separators", "one separator"]),
    "header_0_1_2.csv": (text(COUNTS, header="0,1,2\n"), ["row 0,1,2: names of columns, or a datum?", "Delete it"]),
    "header_1_2_3.csv": (text(REAL, header="1,2,3\n"), ["row 1,2,3: names of columns, or a datum?", "a header row"]),
    "header_of_years.csv": (text(COUNTS, header="2019,2020,2021\n"), ["names of columns, or a datum?"]),
    "header_of_waves.csv": (
        "400,410,420,430\n5,9,2,1\n3,3,8,2\n",
        ["400,410,420,430: names of columns, or a datum"],
    ),
    "header_of_quotes.csv": (text(COUNTS, header='"7","9","4"\n'), ['row "7","9","4": names of columns, or a datum?']),
    "typo_in_first.csv": ("1.5,2.O\n7,2\n3,1\n", ["row 1.5,2.O: names of columns, or a datum?"]),
    "gap_word_in_first.csv": ("<NA>,2\n3,1\n4,9\n", ["'<NA>'", "row 0"]),
    "index_without_header.csv": (
        "0,7\n1,5\n2,9\n",
        ["counts the rows from 0: an index, or data?", "Delete"],
    ),
    "index_from_1.csv": ("1,7.5\n2,5\n3,9\n", ["counts the rows from 1: an index, or data?", "such as time"]),
    "index_called_id.csv": ("id,a\n1,7\n2,5\n3,9\n", ["first column named 'id' that counts", "an index, or data?"]),
    "index_of_others.csv": (",a\n3,7\n8,5\n9,9\n", ["without a name", "an index", "or data?", "give it a name"]),
    "nan.csv": ("7,2\n3,nan\n5,6\n", ["must be finite", "1 values NaN", "row 1", "fill the values in"]),
    "infinite.csv": ("7,2\n3,4\n5,inf\n", ["must be finite", "row 2"]),
    "beyond_float32.csv": ("7,2\n3,1e300\n5,6\n", ["infinite in torch.float32", "row 1"]),
    "large.csv": (f"5,1\n{HUGE},2\n7,9\n", ["up to 2**24", f"got {HUGE} in row 1", "subtract an offset", "float64"]),
    "larger_than_float64.csv": (f"5,1\n7,2\n{2**53 + 1},9\n", ["up to 2**24", "in row 2"]),
    "two_values.csv": (
        "1,2\n2,1\n2,2\n".replace("1,2", "2,1", 1),
        ["holds 1 and 2 only: binary data so coded, or num"],
    ),
    "bytes.csv": ("255,0\n17,3\n0,99\n", ["from 0 to 255: intensities of 8 bits, or counts?", "--kind counts"]),
    "utf16_without_mark.csv": (COUNTS_TEXT.encode("utf-16-le"), ["a zero byte", "UTF-16 without a byte-order mark"]),
    "false_mark.csv": (b"\xff\xfe" + COUNTS_TEXT.encode()[:-1], ["utf-16, as its first bytes say"]),
    "workbook.csv": (npz(x=R), ["a zero byte: a binary file"]),
    "html.csv": ("<html>\n<body>\n</body>\n", ["must hold rows of numbers"]),
    "not_packed.csv.gz": (COUNTS_TEXT, ["a whole .gz file", "damaged file", "get it again"]),
    "cut.csv.gz": (gzip.compress(COUNTS_TEXT.encode())[:-9], ["a whole .gz file", "damaged file"]),
    "empty.npy": (b"", ["damaged or another format"]),
    "text.npy": (COUNTS_TEXT, ["damaged or another format", "numpy.save"]),
    "cut_in_header.npy": (npy(R)[:50], ["damaged or another format"]),
    "cut_in_data.npy": (npy(R)[:-8], ["damaged or another format", "64 bytes for a float64 array of shape (3, 3)"]),
    "two_arrays.npy": (npy(R) + npy(C), ["more than one array"]),
    "newer_version.npy": (b"\x93NUMPY\x09\x00" + npy(R)[8:], ["damaged or another format"]),
    "code_in_header.npy": (npy_of("__import__('os').getcwd()"), ["damaged or another format"]),
    "deep_header.npy": (npy_of("(" * 5000), ["damaged or another format"]),
    "terabytes.npy": (declared((10**6, 10**6), b"12345678"), ["damaged or another format", "8 bytes for a float64"]),
    "negative_shape.npy": (declared((-1, 8), b"12345678"), ["must hold"]),
    "objects.npy": (npy(np.array([[1, None]] * 3), allow_pickle=True), ["dtype object", "pickles are never loaded"]),
    "words.npy": (npy(np.array([["a", "b"]] * 3)), ["real numbers", "<U1", "convert it"]),
    "complex.npy": (npy(R + 1j), ["real numbers", "complex128"]),
    "fields.npy": (npy(np.zeros(3, dtype=[("a", "f4"), ("b", "i4")])), ["real numbers", "dtype [('a'"]),
    "dates.npy": (npy(np.array([["2020-01-01"]] * 3, "M8[D]")), ["real numbers", "datetime64[D]"]),
    "no_dims.npy": (npy(np.float64(3)), ["2-D or more", "got shape ()"]),
    "labels.npy": (npy(np.arange(9)), ["2-D or more", "not labels"]),
    "no_rows.npy": (npy(R[:0]), ["not empty", "(0, 3)"]),
    "nan.npy": (npy(np.where(R == 7, np.nan, R)), ["must be finite", "row 1"]),
    "large_integers.npy": (npy(C + HUGE - 4), ["up to 2**24", f"got {HUGE} in row 0", "float64 tensor"]),
    "large_floats.npy": (npy((C + HUGE - 4).astype(float)), ["up to 2**24", f"got {HUGE} in row 0"]),
    "largest.npy": (npy(np.array([[2**64 - 1], [3], [9]], np.uint64)), [f"got {2**64 - 1} in row 0"]),
    "spins.npy": (npy(np.sign(C - 3.5)), ["holds -1 and 1 only: binary data so coded, or numbers?", "--kind"]),
    "bytes_flat.npy": (npy(PIXELS.reshape(5, -1)), ["to 255: intensities of 8 bits, or counts?", "Divide"]),
    "channels_last.npy": (npy(np.stack([PIXELS] * 3, -1)), ["28 x 28 with 3 channels last, or 28 channels of 28 x 3?"]),
    "one_channel_last.npy": (
        npy(PIXELS[..., None] / 255),
        ["with 1 channels last, or 28 channels", "moveaxis"],
    ),
    "one_picture.npy": (
        npy(np.stack([PIXELS[0]] * 3, -1)),
        ["one picture with 3 channels last, or 28 images"],
    ),
    "empty.npz": (archive(), ["damaged or another format"]),
    "cut.npz": (npz(x=R)[:-30], ["damaged or another format"]),
    "flipped.npz": (npz(x=R).replace(R.tobytes()[:8], b"x" * 8), ["damaged or another format"]),
    "encrypted.npz": (encrypted(), ["damaged or another format"]),
    "bomb.npz": (bomb(), ["would open to 4,294,967,294", "numpy.savez"]),
    "terabytes.npz": (archive(x=declared((10**6, 10**6), b"12345678")), ["8 bytes for a float64 array"]),
    "no_array.npz": (archive(readme=b"hello"), ["damaged or another format"]),
    "objects.npz": (archive(x=npy(np.array([[1, None]] * 3), allow_pickle=True)), ["dtype object"]),
    "labels.npz": (npz(train=R, labels=np.arange(3)), ["one array, or train with valid and test", "train, labels"]),
    "no_train.npz": (npz(valid=R, test=R), ["one array, or train with valid and test, got valid, test"]),
    "floats_and_bytes.npz": (
        npz(train=PIXELS[:3] / 255, test=PIXELS[3:]),
        ["splits of one dtype, got train of floats, test of uint8"],
    ),
    "integers_and_floats.npz": (npz(train=C, test=R), ["splits of one dtype, got train of integers, test of floats"]),
    "two_scales.npz": (npz(train=R / 10 % 1, test=R * 50), ["one scale, got train in [0, 1] and test as far as 350"]),
    "two_shapes.npz": (npz(train=R, test=R[:, :2]), ["test must match train's (3,)"]),
    "weights.pt": (b"", ["unknown data set", ".npy, .npz or .csv"]),
}


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(dataset):
    return sorted(torch.cat(list(dataset.splits.values())).tolist())


@pytest.mark.parametrize("name", READ)
def test_odd_file_is_read(name, tmp_path):
    content, rows, kind, note = READ[name]
    dataset = pvae.data.load(written(tmp_path, name, content))
    assert rows_of(dataset) == sorted(np.array(rows, np.float32).tolist())
    assert (dataset.name, dataset.kind, dataset.train.dtype) == (name, kind, torch.float32)
    assert dataset.note.startswith(note)
    assert bool(dataset.note) == bool(note)


@pytest.mark.parametrize("name", REFUSED)
def test_odd_file_is_refused(name, tmp_path, monkeypatch):
    content, words = REFUSED[name]
    written(tmp_path, name, content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\A[^\n]{20,300}\Z") as caught:
        pvae.data.load(name)
    assert name in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_there_are_more_than_60_of_each():
    assert len(READ) >= 45
    assert len(REFUSED) >= 60


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    cases = {"folder.csv": "found a folder", "nowhere.npy": "found none", "x" * 300 + ".csv": "cannot be read"}
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words):
            pvae.data.load(name)
    for name in (None, 3, b"rows.npy", ["rows.npy"]):
        with pytest.raises(
            ValueError, match=r"name must be the name of a data set or a path, got .*; give for example"
        ):
            pvae.data.load(name)


# --- Doubt that a word settles


def test_kind_settles_what_the_values_leave_open(tmp_path):
    path = written(tmp_path, "two.npy", npy(np.sign(C - 3.5)))
    assert pvae.data.load(path, kind="real").kind == "real"
    path = written(tmp_path, "flat.npy", npy(PIXELS.reshape(5, -1)))
    dataset = pvae.data.load(path, kind="counts")
    assert (dataset.kind, dataset.train.max()) == ("counts", 255)
    # Counts in the shape of images stay as they are.
    path = written(tmp_path, "maps.npy", npy(PIXELS))
    assert (pvae.data.load(path).kind, pvae.data.load(path).shape) == ("unit", (1, 28, 28))
    assert pvae.data.load(path).note == "divided by 255"
    counts = pvae.data.load(path, kind="counts")
    assert (counts.kind, counts.shape, counts.train.max()) == ("counts", (28, 28), 255)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("count", "unknown kind 'count': did you mean 'counts'"),
        ("categorical", "unknown kind 'categorical': the choices are binary, unit, counts, real"),
        ("unit", "must hold values in"),
        ("binary", "must hold 0s and 1s"),
    ],
)
def test_kind_that_does_not_fit_is_refused(kind, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        pvae.data.load(written(tmp_path, "counts.npy", npy(C)), kind=kind)


def test_named_data_have_a_kind_of_their_own():
    with pytest.raises(ValueError, match="'digits' has a kind of its own, got kind='real' besides; leave kind out"):
        pvae.data.load("digits", kind="real")


def test_dark_images_say_how_dark(tmp_path):
    dataset = pvae.data.load(written(tmp_path, "dark.npy", npy(PIXELS // 16)))
    assert dataset.note == "divided by 255, the largest value being 15"
    assert dataset.train.max().item() == pytest.approx(15 / 255)


def test_images_of_all_splits_have_one_scale(tmp_path):
    path = written(tmp_path, "splits.npz", npz(train=PIXELS[:3], test=PIXELS[3:] // 128))
    dataset = pvae.data.load(path)
    assert (dataset.train.max(), dataset.test.max().item()) == (1, pytest.approx(1 / 255))


def test_channels_first_are_accepted(tmp_path):
    for shape in ((5, 3, 28, 28), (5, 1, 9, 9), (5, 4, 28, 3), (5, 8, 8, 8)):
        x = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
        assert pvae.data.load(written(tmp_path, "x.npy", npy(x))).shape == shape[1:]


def test_integers_that_float32_rounds_are_refused_from_python_too():
    for dtype in (torch.int32, torch.int64):
        with pytest.raises(ValueError, match=r"up to 2\*\*24, which float32 keeps, got 16777217 in row 1"):
            pvae.data.DataSet("mine", torch.tensor([[1], [HUGE]]).to(dtype), kind="counts")
    kept = pvae.data.DataSet("mine", torch.tensor([[1], [HUGE]]).double(), kind="counts")
    assert kept.train[1, 0].item() == HUGE
    assert pvae.data.DataSet("mine", torch.tensor([[HUGE]]), kind="categorical").train.item() == HUGE


def test_nothing_opens_to_more_than_honest_data(tmp_path, monkeypatch):
    assert most_bytes(10) == 2**30
    assert most_bytes(2**30) == 200 * 2**30
    monkeypatch.setattr("pvae.data.unzipped._FREE", 1000)
    monkeypatch.setattr("pvae.data.unzipped._FOLD", 5)
    zeros = np.zeros((2000, 2))
    for name, content in (("x.npy.gz", gzip.compress(npy(zeros))), ("x.npz", npz(compressed=True, x=zeros))):
        with pytest.raises(ValueError, match=r"has \d+ bytes and (would open|opens) to"):
            pvae.data.load(written(tmp_path, name, content))


# --- What is said of it


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("cells.csv", text(COUNTS * 48), "cells.csv: 144 rows x 3 columns, counts"),
        ("cells.csv", ",a\n0,7\n1,5\n2,9\n", "cells.csv: 3 rows x 1 column, counts, without its index column"),
        ("x.npy", npy(PIXELS), "x.npy: 5 data of 1 x 28 x 28, unit, divided by 255"),
    ],
)
def test_set_is_said_in_one_line(name, content, line, tmp_path):
    assert in_words(pvae.data.load(written(tmp_path, name, content))) == line


def test_counts_are_negative_binomial_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "cells.csv", text(COUNTS * 48))
    words = ["train", "--data", "cells.csv", "--epochs", "1", "--hidden", "8", "--step-mode", "eager"]
    shown = CliRunner().invoke(app, [*words, "--out", "a"])
    assert shown.stdout.splitlines()[0] == "cells.csv: 144 rows x 3 columns, counts; NegativeBinomial"
    printed = json.loads(CliRunner().invoke(app, [*words, "--out", "b", "--json"]).stdout)
    assert printed["understood"] == "cells.csv: 144 rows x 3 columns, counts; NegativeBinomial"
    recipe = json.loads((tmp_path / "a" / "config.json").read_text())["recipe"]
    assert (recipe["likelihood"], "kind" in recipe) == ("negative_binomial", False)


def test_kind_said_once_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "flat.npy", npy(np.tile(PIXELS.reshape(5, -1)[:, :4], (8, 1)) | 1 << 7))
    words = ["--data", "flat.npy", "--epochs", "1", "--hidden", "8", "--step-mode", "eager", "--out", "run"]
    trained = CliRunner().invoke(app, ["train", *words, "--kind", "counts"])
    assert trained.stdout.splitlines()[0] == "flat.npy: 40 rows x 4 columns, counts; NegativeBinomial"
    result = CliRunner().invoke(app, ["logp", "run", "--samples", "5", "--json"])
    assert json.loads(result.stdout)["mean"] < 0


def test_model_with_a_likelihood_of_its_own_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model", "linear_gaussian", "--guide", "exact", "--epochs", "1", "--step-mode", "eager", "--out", "run"]
    shown = CliRunner().invoke(app, ["train", "--data", "digits", *words])
    assert shown.stdout.splitlines()[0] == "digits: 1,797 data of 1 x 8 x 8, unit; LinearGaussian"
