"""Tasks and streams: contents and refusals."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from clnp.data import Arrays, Limited, PermutedDigits, PermutedMNIST, Task, streams
from clnp.errors import DataError


def xy(n: int = 6, features: int = 4, classes: int = 3):
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, features, generator=generator), torch.arange(n) % classes


class Items(Dataset):
    """A Dataset that makes its items on access."""

    def __init__(self, n: int = 5, x: object = None, y: object = 1):
        self.n, self.x, self.y = n, torch.zeros(4) if x is None else x, y

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.x, self.y


def broken(x=None, y=None):
    good = xy()
    return (good[0] if x is None else x, good[1] if y is None else y)


def with_nan():
    x = torch.zeros(6, 4)
    x[5, 2] = float("nan")
    return x


BAD_SPLITS = {
    "None": (None, "expected (x, y)"),
    "one array": ((torch.zeros(3, 4),), "expected two arrays, (x, y), got 1"),
    "list x": (([[0.0]], torch.zeros(1).long()), "torch tensor or a numpy array"),
    "flat x": (broken(x=torch.zeros(6)), "[B, ...]"),
    "half x": (broken(x=torch.zeros(6, 4).half()), "got float16"),
    "integer x": (broken(x=torch.zeros(6, 4).int()), "x.float()"),
    "uint8 images": (broken(x=torch.zeros(6, 4, dtype=torch.uint8)), "/ 255"),
    "string x": ((np.array([["a"]]), np.array([0])), "numpy dtype"),
    "one-hot y": (broken(y=torch.eye(3).repeat(2, 1).long()), "argmax"),
    "column y": (broken(y=torch.zeros(6, 1).long()), "y.squeeze(1)"),
    "float y": (broken(y=torch.zeros(6)), "y.long()"),
    "bool y": (broken(y=torch.zeros(6).bool()), "integer labels"),
    "lengths": (broken(y=torch.zeros(5).long()), "got 6 in x and 5 in y"),
    "devices": (broken(y=torch.zeros(6, device="meta").long()), "one device"),
    "empty": ((torch.zeros(0, 4), torch.zeros(0).long()), "at least one sample, got shape [0, 4]"),
    "no features": ((torch.zeros(3, 0), torch.zeros(3).long()), "one sample, got shape [3, 0]"),
    "negative label": (broken(y=torch.tensor([0, 1, -2, 0, 0, 0])), "got -2 at index 2"),
    "NaN": (broken(x=with_nan()), "nan at index [5, 2]"),
    "Inf": (broken(x=1 / torch.zeros(6, 4)), "inf at index [0, 0]"),
    "empty Dataset": (Items(0), "empty"),
    "Dataset of images": (Items(x="image"), "ToTensor"),
    "Dataset of float labels": (Items(y=1.5), "integer class label"),
    "Dataset of NaN": (Items(x=torch.full((4,), torch.nan)), "nan at index"),
    "Dataset of triples": (TensorDataset(*xy(), torch.zeros(6)), "(x, y), got 3"),
}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_split_is_refused(case, split):
    data, fragment = BAD_SPLITS[case]
    with pytest.raises(DataError) as caught:
        Task("t", **{**dict.fromkeys(("train", "validation", "test"), xy()), split: data})
    assert fragment in str(caught.value)
    assert f"task 't', {split}" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("", xy(), xy(), xy()), "name"),
        (("t", xy(), xy(), xy(), 0), "classes"),
        (("t", xy(), xy(), xy(), 2), "labels from 0 to 1, since classes=2, got 2"),
        (
            ("t", xy(), xy(features=5), xy()),
            "expected samples [4] float32 as in the train split, got [5] float32",
        ),
        (
            ("t", xy(), xy(), (xy()[0].double(), xy()[1])),
            "expected samples [4] float32 as in the train split, got [4] float64",
        ),
    ],
)
def test_bad_task_is_refused(arguments, fragment):
    with pytest.raises(DataError) as caught:
        Task(*arguments)
    assert fragment in str(caught.value)


def test_first_bad_index_is_found_beyond_the_first_piece(monkeypatch):
    monkeypatch.setattr("clnp.data.inputs.PIECE", 8)
    with pytest.raises(DataError, match=r"nan at index \[5, 2\]"):
        Task("t", (with_nan(), xy()[1]), xy(), xy())


def test_task_takes_arrays_without_a_copy():
    x, y = xy()
    array = x.numpy().copy()
    task = Task("t", (x, y), TensorDataset(x, y), (array, y.numpy().astype(np.int32)))
    assert task.tensors("train")[0].data_ptr() == x.data_ptr()
    assert task.tensors("validation")[0].data_ptr() == x.data_ptr()
    assert task.tensors("test")[0].data_ptr() == array.ctypes.data
    assert task.tensors("test")[1].dtype == torch.int64
    assert (task.num_classes, task.sample_shape, task.dtype, task.size("test")) == (
        3,
        (4,),
        torch.float32,
        6,
    )
    with pytest.raises(DataError, match="expected one of train, validation, test, got 'dev'"):
        task.tensors("dev")


def test_read_only_and_reversed_arrays_are_taken():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = False
    y = np.array([2, 1, 0])
    task = Task("t", (array, y), (array[::-1], y[::-1]), (array.astype(">f4"), y))
    assert torch.equal(task.tensors("validation")[0].flip(0), task.tensors("train")[0])
    assert torch.equal(task.tensors("test")[0], task.tensors("train")[0])


def test_dataset_stays_a_dataset():
    data = Items()
    task = Task("t", data, xy(), xy(), classes=3)
    assert task.tensors("train") is None
    assert task.split("train") is data
    assert (task.size("train"), task.sample_shape, task.num_classes) == (5, (4,), 3)
    assert Task("t", data, xy(), xy()).num_classes == 3  # items are counted


def test_digits_are_what_the_readme_says():
    stream = PermutedDigits(tasks=3, seed=1)
    task = stream[0]
    assert [task.size(s) for s in ("train", "validation", "test")] == [1100, 297, 400]
    x = torch.cat([task.tensors(s)[0] for s in ("train", "validation", "test")])
    assert x.dtype == torch.float32
    assert x.min() == 0
    assert x.max() == 1
    assert x.shape == (1797, 64)
    for split in ("train", "validation", "test"):
        counts = torch.bincount(task.tensors(split)[1], minlength=10)
        assert counts.max() - counts.min() <= 5
    assert task.num_classes == 10


def test_stream_is_a_lazy_sequence():
    stream = PermutedDigits(tasks=3)
    assert len(stream) == 3
    assert [t.name for t in stream] == ["digits-0", "digits-1", "digits-2"]
    assert stream[-1].name == "digits-2"
    assert [t.name for t in stream[1:]] == ["digits-1", "digits-2"]
    with pytest.raises(IndexError):
        stream[3]


def test_permutations_depend_on_seed_and_index_alone():
    short, long, other = PermutedDigits(2), PermutedDigits(5), PermutedDigits(2, seed=1)
    assert torch.equal(short[1].tensors("test")[0], long[1].tensors("test")[0])
    assert not torch.equal(short.permutation(1), other.permutation(1))
    assert not torch.equal(short.permutation(0), short.permutation(1))
    # The first pixels of seed 0, task 0: a change here would make every published run unrepeatable.
    assert short.permutation(0)[:4].tolist() == FIRST_PIXELS
    assert torch.equal(short.permutation(0).sort().values, torch.arange(64))
    assert torch.equal(PermutedDigits(1, identity_first=True).permutation(0), torch.arange(64))
    x = short.splits["test"][0]
    assert torch.equal(short[1].tensors("test")[0], x[:, short.permutation(1)])


FIRST_PIXELS = [11, 3, 20, 13]


@pytest.mark.parametrize(
    ("arguments", "name"), [((0,), "tasks"), ((2, -1), "seed"), ((1.5,), "tasks")]
)
def test_bad_stream_arguments(arguments, name):
    with pytest.raises(DataError, match=name):
        PermutedDigits(*arguments)


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = (
        b"\0\0\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def mnist_arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (20, 3, 2), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (7, 3, 2), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(7, dtype=np.uint8),
    }


@pytest.mark.parametrize("folder", [".", "MNIST/raw", "raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_files_are_read(tmp_path, mnist_arrays, folder, ending):
    for name, array in mnist_arrays.items():
        write_idx(tmp_path / folder / (name + ending), array)
    stream = PermutedMNIST(tmp_path, tasks=2, validation=4, identity_first=True)
    x, y = stream[0].tensors("train")
    images = mnist_arrays["train-images-idx3-ubyte"].reshape(20, 6)
    assert torch.equal(x, torch.from_numpy(images[:16]).float() / 255)
    assert y.tolist() == [i % 10 for i in range(16)]
    assert torch.equal(
        stream[0].tensors("validation")[0], torch.from_numpy(images[16:]).float() / 255
    )
    assert stream[1].size("test") == 7
    assert len(stream) == 2


def test_missing_mnist_files_are_listed(tmp_path, mnist_arrays):
    with pytest.raises(DataError) as caught:
        PermutedMNIST(tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)
    assert "t10k-labels-idx1-ubyte" in str(caught.value)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", mnist_arrays["train-images-idx3-ubyte"])
    with pytest.raises(
        DataError,
        match=r"lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
    ):
        PermutedMNIST(tmp_path)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "idx file"),
        (b"\0\0\x0d\x01\0\0\0\1", "idx file"),
        (b"\0\0\x08\x03\0", "bytes of sizes in the header, got fewer"),
        (b"\0\0\x08\x01\0\0\0\5ab", "expected 5 bytes after the header for shape [5], got 2"),
    ],
)
def test_damaged_mnist_file(tmp_path, mnist_arrays, content, fragment):
    for name, array in mnist_arrays.items():
        write_idx(tmp_path / name, array)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DataError) as caught:
        PermutedMNIST(tmp_path, validation=4)
    assert fragment in str(caught.value)
    assert "t10k-labels-idx1-ubyte" in str(caught.value)


def test_damaged_gzip_and_lengths(tmp_path, mnist_arrays):
    for name, array in mnist_arrays.items():
        write_idx(tmp_path / f"{name}.gz", array)
    with pytest.raises(DataError, match="validation: expected 1 to 19 of the 20 images, got 20"):
        PermutedMNIST(tmp_path, validation=20)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(3, dtype=np.uint8))
    with pytest.raises(DataError, match=r"labels \[N\], got \[20, 3, 2\] and \[3\]"):
        PermutedMNIST(tmp_path, validation=4)
    labels.write_bytes(labels.read_bytes()[:-9])
    with pytest.raises(DataError, match="can't be read"):
        PermutedMNIST(tmp_path, validation=4)


def test_without_root_the_cache_is_used(tmp_path, mnist_arrays, monkeypatch):
    monkeypatch.setenv("CLNP_DATA", str(tmp_path))
    with pytest.raises(DataError, match="expected the MNIST files"):
        PermutedMNIST(download=False)
    for name, array in mnist_arrays.items():
        write_idx(tmp_path / "MNIST" / "raw" / name, array)
    assert len(PermutedMNIST(tasks=3, validation=4)) == 3


def test_missing_torchvision_says_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CLNP_DATA", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="--data-root"):
        streams.PermutedMNIST()


def test_tasks_and_streams_in_one_line():
    assert repr(Task("t", xy(), xy(4), xy(3))) == (
        "Task('t', train=6, validation=4, test=3, x=[4] float32)"
    )
    assert repr(Task("t", xy(), xy(), xy(), 7)).endswith("x=[4] float32, classes=7)")
    assert repr(PermutedDigits(3)) == "<PermutedDigits: 3 tasks>"


def test_own_arrays():
    stream = Arrays([(xy(), xy(4), xy(3)), (xy(9), xy(4), xy(3))], names=["a", "b"])
    assert [t.name for t in stream] == ["a", "b"]
    assert stream[1].size("train") == 9
    assert Arrays([(xy(), xy(), xy())], classes=7)[0].num_classes == 7
    with pytest.raises(DataError, match="names"):
        Arrays([(xy(), xy(), xy())], names=["a", "b"])
    with pytest.raises(DataError, match=r"expected at least one .*got none"):
        Arrays([])
    with pytest.raises(DataError, match="task 'task-0'"):
        _ = Arrays([(xy(), xy())])[0]


@pytest.mark.parametrize("kind", ["tensors", "data set"])
def test_limited_takes_some_examples_of_each_task(kind):
    whole = PermutedDigits(tasks=2)
    tasks = list(whole)
    if kind == "data set":

        class Digits(torch.utils.data.Dataset):
            def __init__(self, x, y):
                self.x, self.y = x, y

            def __len__(self):
                return len(self.y)

            def __getitem__(self, i):
                return self.x[i], self.y[i]

        tasks = [Task(t.name, Digits(*t.train), t.validation, t.test, classes=10) for t in tasks]
    few = Limited(tasks, 50, seed=3)
    assert len(few) == 2
    for original, task in zip(whole, few, strict=True):
        assert (task.name, task.num_classes) == (original.name, 10)
        x = torch.stack([a for a, _ in task.train]) if kind == "data set" else task.train[0]
        assert len(x) == task.size("train") == 50
        rows = {tuple(row.tolist()) for row in original.train[0]}
        assert all(tuple(row.tolist()) in rows for row in x)
        torch.testing.assert_close(task.test[0], original.test[0], rtol=0, atol=0)
    again, other = Limited(tasks, 50, seed=3)[1], Limited(tasks, 50, seed=4)[1]
    pixels = [
        t.train[0] if kind == "tensors" else torch.stack([x for x, _ in t.train])
        for t in (few[1], again, other)
    ]
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])


def test_limited_leaves_small_tasks_and_refuses_nonsense():
    tasks = list(PermutedDigits(tasks=1))
    assert Limited(tasks, 10**6)[0] is tasks[0]
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(
            DataError, match=rf"examples: expected an int of at least 1, got {wrong}"
        ):
            Limited(tasks, wrong)
