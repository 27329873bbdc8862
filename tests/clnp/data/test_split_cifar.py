"""CIFAR on disk in all formats, and the streams made of it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from clnp.data import (
    CIFAR10Then100,
    Images,
    SplitCIFAR10,
    SplitCIFAR100,
    SuperclassCIFAR100,
    streams,
)
from clnp.data.cifar import KINDS, read_cifar, read_pickle
from clnp.data.images import CONSTANTS
from clnp.errors import DataError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def arrays(classes: int, train: int = 40, test: int = 10, seed: int = 0):
    """Random images with every class in both halves: {name: array}, channels last."""
    rng = np.random.default_rng(seed)
    found = {}
    for half, per_class in (("train", train // 10), ("test", test // 10)):
        labels = np.repeat(np.arange(classes), per_class)
        rng.shuffle(labels)
        found[f"{half}_labels"] = labels.astype(np.uint8)
        found[f"{half}_images"] = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return found


def flat(images):
    """[N, 32, 32, 3] -> [N, 3072], channels first, as the original files have them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_npz(root, name, data):
    np.savez(root / f"{name}.npz", **data, train_index=np.arange(3))


def write_npy(root, name, data):
    (root / name).mkdir()
    for key, value in data.items():
        np.save(root / name / f"{key}.npy", value)


def pieces(data, half, number):
    return zip(
        np.array_split(flat(data[f"{half}_images"]), number),
        np.array_split(data[f"{half}_labels"], number),
        strict=True,
    )


def write_pickles(root, name, data):
    kind = KINDS[name]
    (root / kind.pickles).mkdir()
    for half, stems in kind.files.items():
        for stem, (pixels, labels) in zip(stems, pieces(data, half, len(stems)), strict=True):
            content = {"data": pixels, kind.label: labels.tolist(), "filenames": ["a.png"]}
            # Protocol 2 is that of the original files.
            (root / kind.pickles / stem).write_bytes(pickle.dumps(content, protocol=2))


def write_binaries(root, name, data):
    kind = KINDS[name]
    (root / kind.binaries).mkdir()
    for half, stems in kind.files.items():
        for stem, (pixels, labels) in zip(stems, pieces(data, half, len(stems)), strict=True):
            coarse = np.zeros((len(labels), kind.label_bytes - 1), np.uint8)
            rows = np.concatenate([coarse, labels[:, None], pixels], axis=1)
            rows.astype(np.uint8).tofile(root / kind.binaries / f"{stem}.bin")


WRITERS = {"npz": write_npz, "npy": write_npy, "pickles": write_pickles, "binary": write_binaries}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", WRITERS)
def test_every_form_is_the_same_data(tmp_path, name, form):
    data = arrays(KINDS[name].classes)
    WRITERS[form](tmp_path, name, data)
    below = next(tmp_path.iterdir())
    for root in (tmp_path, below):
        halves = read_cifar(root, name)
        for half, (images, labels) in halves.items():
            assert images.dtype == np.uint8
            assert labels.dtype == np.int64
            np.testing.assert_array_equal(images, data[f"{half}_images"].transpose(0, 3, 1, 2))
            np.testing.assert_array_equal(labels, data[f"{half}_labels"])


def test_pickles_as_python_2_wrote_them(tmp_path):
    """Python 2 pickled an array with its bytes as str and with an old module name."""
    raw = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x03\x07\x80\xfftb."
    )
    (tmp_path / "old").write_bytes(raw)
    array = read_pickle(tmp_path / "old")
    assert array.dtype == np.uint8
    assert array.tolist() == [7, 128, 255]


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def test_pickles_run_no_code(tmp_path, capsys):
    write_pickles(tmp_path, "cifar10", arrays(10))
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps({"data": Evil(), "labels": [0]}))
    with pytest.raises(
        DataError, match=r"data_batch_3: can't be read .*builtins.print is not allowed"
    ):
        read_cifar(tmp_path, "cifar10")
    assert capsys.readouterr().out == ""
    for content in (b"", b"hello", file.read_bytes()[:-3]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="data_batch_3"):
            read_cifar(tmp_path, "cifar10")
    file.unlink()
    with pytest.raises(DataError, match="data_batch_3"):
        read_cifar(tmp_path, "cifar10")
    file.write_bytes(pickle.dumps({"data": np.zeros((1, 5), np.uint8), "labels": [0]}))
    with pytest.raises(DataError, match=r"data: expected an array \[N, 3072\]"):
        read_cifar(tmp_path, "cifar10")
    file.write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match="expected a dictionary with data and labels"):
        read_cifar(tmp_path, "cifar10")


def test_damaged_arrays_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"expected cifar10 as one of cifar10\.npz, cifar10, cifar-10"
    ):
        read_cifar(tmp_path, "cifar10")
    good = arrays(10)
    for change, fragment in (
        ({"train_labels": good["train_labels"].astype(np.float32)}, "float32"),
        ({"train_labels": good["train_labels"] + 10}, "labels: expected 0 to 9, got 10"),
        ({"test_labels": good["test_labels"][1:]}, r"labels: expected \[10\]"),
        ({"test_images": good["test_images"][:, :16]}, "16, 32"),
        ({"test_images": good["test_images"].astype(np.int16)}, "int16"),
    ):
        write_npz(tmp_path, "cifar10", {**good, **change})
        with pytest.raises(DataError, match=fragment):
            read_cifar(tmp_path, "cifar10")
    np.savez(tmp_path / "cifar10.npz", **{k: v for k, v in good.items() if k != KEYS[1]})
    with pytest.raises(DataError, match="got no train_labels"):
        read_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar10.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cifar10\.npz: can't be read"):
        read_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar10.npz").unlink()
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(DataError, match=r"a multiple of 3073 bytes \(1 of label"):
        read_cifar(tmp_path, "cifar10")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Make both data sets; CIFAR-100 with its first 30 classes."""
    folder = tmp_path_factory.mktemp("cifar")
    write_npz(folder, "cifar10", arrays(10))
    write_npz(folder, "cifar100", arrays(30, seed=1))
    return folder


def test_split_cifar10(root):
    stream = SplitCIFAR10(root, validation=0.25, normalise="none")
    whole = read_cifar(root, "cifar10")
    assert [t.name for t in stream] == [f"cifar10-{2 * k}-{2 * k + 1}" for k in range(5)]
    task = stream[3]
    assert task.num_classes == 2
    assert task.sample_shape == (3, 32, 32)
    assert (task.size("train"), task.size("validation"), task.size("test")) == (6, 2, 2)
    images, labels = whole["test"]
    for c in (6, 7):
        pixels = (255 * task.test.batch((task.test.labels == c - 6).nonzero()[:, 0])[0]).round()
        assert torch.equal(pixels.to(torch.uint8), torch.from_numpy(images[labels == c]))
    # Training and validation images are those of the two classes, each once.
    both = torch.cat([task.train.images, task.validation.images]).flatten(1).tolist()
    chosen = whole["train"][0][np.isin(whole["train"][1], (6, 7))].reshape(8, -1).tolist()
    assert sorted(both) == sorted(chosen)


def test_seed_draws_the_validation_split_only(root):
    a, b = (
        SplitCIFAR10(root, 1, seed=0, validation=0.25),
        SplitCIFAR10(root, 1, seed=1, validation=0.25),
    )
    again = SplitCIFAR10(root, 5, seed=0, validation=0.25)
    assert torch.equal(a[0].test.images, b[0].test.images)
    assert torch.equal(a[0].train.images, again[0].train.images)
    assert not torch.equal(a[0].validation.images, b[0].validation.images)


def test_cifar10_then_100(root):
    stream = CIFAR10Then100(root, 4, augment=True)
    assert [t.name for t in stream] == [
        "cifar10",
        "cifar100-0-9",
        "cifar100-10-19",
        "cifar100-20-29",
    ]
    assert [t.num_classes for t in stream] == [10] * 4
    for task in stream:
        assert isinstance(task.train, Images)
        assert task.train.augment
        assert not task.validation.augment
        assert not task.test.augment
        assert torch.equal(task.train.mean, stream[0].train.mean)
    first = stream[0].train
    assert (first.mean / 255).flatten().tolist() == pytest.approx(CONSTANTS["cifar10"][0])
    assert (first.std / 255).flatten().tolist() == pytest.approx(CONSTANTS["cifar10"][1])
    assert len(CIFAR10Then100(root, 1)) == 1


def test_superclasses_are_twenty_times_five_classes(tmp_path):
    """Every fine label is in one superclass; two are those of the paper of the data set."""
    from clnp.data.split_cifar import SUPERCLASSES

    assert sorted(c for group in SUPERCLASSES.values() for c in group) == list(range(100))
    assert {len(group) for group in SUPERCLASSES.values()} == {5}
    images = np.zeros((200, 32, 32, 3), np.uint8)
    labels = np.arange(200) % 100
    arrays = {
        f"{half}_{k}": v
        for half in ("train", "test")
        for k, v in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "cifar100.npz", **arrays)
    stream = SuperclassCIFAR100(tmp_path, validation=0.5)
    assert len(stream) == 20
    assert stream[1].name == "fish"
    assert stream[1].num_classes == 5
    assert sorted(stream[1].test.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(SuperclassCIFAR100(tmp_path, 3)) == 3
    with pytest.raises(DataError, match="tasks: expected at most 20"):
        SuperclassCIFAR100(tmp_path, 21)


def test_normalisation_by_the_training_split(root):
    task = SplitCIFAR100(root, 3, normalise="train")[2]
    x, _ = task.train.batch(torch.arange(len(task.train)))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5, rtol=0)


def test_what_is_refused(root, tmp_path):
    for call, fragment in (
        (lambda: SplitCIFAR100(root, 4), "expected at most 3 .* has 30 classes, got 4"),
        (lambda: CIFAR10Then100(root, 5), "10 classes each, since the data of cifar100 .* got 4"),
        (lambda: SplitCIFAR10(root, 0), "tasks: expected .* got 0"),
        (lambda: CIFAR10Then100(root, 0), "tasks: expected .* got 0"),
        (lambda: SplitCIFAR10(root, classes_per_task=0), "classes_per_task: expected .* got 0"),
        (lambda: SplitCIFAR10(root, seed=-1), "seed: expected .* got -1"),
        (lambda: SplitCIFAR10(root, validation=0.0)[0], "validation: expected .* got 0.0"),
        (lambda: SplitCIFAR10(root, normalise="white")[0], "normalise: expected .* got 'white'"),
        (lambda: SplitCIFAR10(tmp_path), "expected cifar10 as one of"),
    ):
        with pytest.raises(DataError, match=fragment):
            call()


def test_a_class_without_test_images(tmp_path):
    data = arrays(10)
    data["test_labels"][data["test_labels"] == 3] = 2
    write_npz(tmp_path, "cifar10", data)
    with pytest.raises(
        DataError, match=r"'cifar10-2-3': expected test images .* got none of class 3"
    ):
        SplitCIFAR10(tmp_path)


def test_cache_and_failing_download(root, tmp_path, monkeypatch):
    monkeypatch.setenv("CLNP_DATA", str(root))
    assert len(SplitCIFAR10()) == 5
    monkeypatch.setenv("CLNP_DATA", str(tmp_path))
    with pytest.raises(DataError, match="expected cifar10 as one of"):
        SplitCIFAR10(download=False)

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.__init__", fail)
    with pytest.raises(DataError, match=r"download into .* failed \(no network\); pass a folder"):
        SplitCIFAR10()
    assert streams.cache_folder() == tmp_path
