"""Images stored as bytes: items, crops, constants, splits, and learning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import clnp
from clnp.data import Images, Task
from clnp.data.batches import seeded
from clnp.data.images import CONSTANTS, channel_constants, constants_for, held_out, random_crops
from clnp.errors import DataError

ONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")


def random_images(n=12, channels=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, channels, side, side), generator=generator)
    return images.to(torch.uint8), torch.arange(n) % 3


def test_items_are_normalised_pixels():
    images, labels = random_images()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    data = Images(images, labels, (mean, std))
    x, y = data.batch(torch.tensor([5, 2]))
    wanted = images[[5, 2]].double() / 255
    wanted = (wanted - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(
        3, 1, 1
    )
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), wanted, atol=1e-6, rtol=1e-6)
    assert y.tolist() == [2, 2]
    assert torch.equal(data[5][0], x[0])
    assert torch.equal(data[-7][0], x[0])
    with pytest.raises(IndexError):
        data[12]
    # The loader's batches are the very same numbers.
    for order, (a, b) in zip(torch.arange(12).split(5), DataLoader(data, 5), strict=True):
        assert torch.equal(a, data.batch(order)[0])
        assert torch.equal(b, labels[order])


def test_images_are_not_changed_by_reading():
    images, labels = random_images()
    before = images.clone()
    data = Images(images, labels, ONE, augment=True)
    list(DataLoader(data, 4))
    assert torch.equal(images, before)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99)
)
def test_every_crop_is_a_window(height, width, more, padding, seed):
    """Each crop equals one of all windows of the padded image, mirrored or not."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (3, 2, height + more, width + more), generator=generator)
    images = images.to(torch.uint8)
    with seeded(seed, CPU):
        crops = random_crops(images, (height, width), padding)
    assert crops.shape == (3, 2, height, width)
    around = images if more else torch.nn.functional.pad(images, (padding,) * 4)
    for crop, image in zip(crops, around, strict=True):
        windows = image.unfold(1, height, 1).unfold(2, width, 1)
        windows = windows.permute(1, 2, 0, 3, 4).reshape(-1, 2, height, width)
        both = torch.cat([windows, windows.flip(-1)])
        assert (both == crop).flatten(1).all(1).any()


def test_crops_are_drawn_from_the_global_generator():
    images, labels = random_images(64)
    data = Images(images, labels, ONE, augment=True, padding=2)
    rows = torch.arange(64)
    with seeded(1, CPU):
        first, second = data.batch(rows)[0], data.batch(rows)[0]
    with seeded(1, CPU):
        assert torch.equal(data.batch(rows)[0], first)
    assert not torch.equal(first, second)


def test_images_on_a_device():
    data = Images(*random_images(), ONE, augment=True)
    meta = data.to("meta")
    x, y = meta.batch(torch.arange(5))
    assert (x.device.type, x.shape, y.device.type) == ("meta", (5, 3, 8, 8), "meta")
    assert data.images.device.type == "cpu"
    with seeded(1, CPU):
        one = data.to("cpu").batch(torch.arange(5))[0]
    with seeded(1, CPU):
        assert torch.equal(one, data.batch(torch.arange(5))[0])


def test_centre_without_augmentation():
    images, labels = random_images(side=9)
    data = Images(images, labels, ONE, size=(5, 7))
    assert torch.equal(
        (255 * data.batch(torch.arange(12))[0]).round().to(torch.uint8), images[:, :, 2:7, 1:8]
    )


def test_constants():
    images, _ = random_images(50, side=5)
    mean, std = channel_constants(images)
    reference = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean), reference.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(std), reference.std((0, 2, 3), unbiased=False).float())
    assert channel_constants(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)) == ((7 / 255,), (1,))
    assert constants_for("constants", "cifar10", images) == CONSTANTS["cifar10"]
    assert constants_for("train", "cifar10", images) == (mean, std)
    assert constants_for("none", "cifar10", images) == ONE
    assert constants_for([[0.5] * 3, [1] * 3], "cifar10", images) == ((0.5,) * 3, (1,) * 3)
    with pytest.raises(DataError, match=r"normalise: expected .* got 'all'"):
        constants_for("all", "cifar10", images)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.floats(0.05, 0.9), st.integers(0, 9))
def test_held_out_takes_the_same_share_of_every_class(sizes, fraction, seed):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    kept, aside = held_out(labels, fraction, (seed, 1))
    assert sorted([*kept.tolist(), *aside.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    for c, n in enumerate(sizes):
        taken = int((labels[aside] == c).sum())
        assert taken == min(max(1, round(fraction * n)), n - 1)
    again = held_out(labels, fraction, (seed, 1))
    assert torch.equal(again[1], aside)


def test_held_out_is_the_same_for_ever():
    labels = torch.arange(12) % 2
    assert held_out(labels, 0.34, (0, 0))[1].tolist() == [2, 3, 8, 11]
    with pytest.raises(DataError, match=r"class 2: expected at least 2 examples .* got 1"):
        held_out(torch.tensor([0, 0, 2]), 0.5, (0,))
    with pytest.raises(DataError, match=r"validation: expected .* got 1"):
        held_out(labels, 1, (0,))


BAD = {
    "float images": ((torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), ONE), "torch.uint8"),
    "flat": ((torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2).long(), ONE), r"\[N, C, H, W\]"),
    "empty": ((torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0).long(), ONE), "N of at"),
    "labels": ((random_images()[0], torch.zeros(3).long(), ONE), "one per image"),
    "negative": ((random_images()[0], torch.full((12,), -1), ONE), "labels from 0"),
    "channels": ((random_images(channels=1)[0], torch.zeros(12).long(), ONE), "1 channels.* got 3"),
    "std": ((*random_images(), ((0.0,) * 3, (0.0,) * 3)), "std above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    arguments, fragment = BAD[case]
    with pytest.raises(DataError, match=fragment):
        Images(*arguments)


def bright_or_dark(name, augment, seed):
    """Two classes that differ in brightness."""
    images, _ = random_images(60, 1, 6, seed)
    labels = torch.arange(60) % 2
    images = (images // 2 + 128 * labels.view(-1, 1, 1, 1).to(torch.uint8)).to(torch.uint8)

    def split(rows, augment=False):
        return Images(images[rows], labels[rows], ((0.5,), (0.3,)), augment=augment, padding=1)

    return Task(name, split(slice(40), augment), split(slice(40, 50)), split(slice(50, 60)), 2)


@pytest.mark.parametrize("augment", [False, True])
def test_a_learner_learns_from_them_and_resumes_bit_equal(tmp_path, augment):
    class KilledError(Exception):
        pass

    class Kill:
        def on_epoch_end(self, learner, record):
            if len(learner.reports) == 1 and record["epoch"] == 1:
                raise KilledError

    tasks = [bright_or_dark("a", augment, 1), bright_or_dark("b", augment, 2)]

    def fresh(folder, callbacks=()):
        with seeded(0, CPU):
            net = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 2))
        model = clnp.convert(net, torch.zeros(1, 1, 6, 6), verbose=False)
        learner = clnp.Learner(
            model,
            epochs=4,
            batch_size=8,
            lr=0.01,
            l1=1e-4,
            checkpoint_dir=folder,
            callbacks=callbacks,
            margin=0.1,
        )
        learner._progress.interval = 0.0
        return learner

    whole = fresh(tmp_path / "whole")
    for task in tasks:
        whole.learn(task)
    assert whole.reports[0].test > 0.8
    killed = fresh(tmp_path / "killed", [Kill()])
    killed.learn(tasks[0])
    with pytest.raises(KilledError):
        killed.learn(tasks[1])
    resumed = clnp.Learner.load(
        tmp_path / "killed", tasks=tasks, checkpoint_dir=tmp_path / "killed"
    )
    resumed.learn(tasks[1])
    assert [r.history for r in resumed.reports] == [r.history for r in whole.reports]
    for key, value in whole.model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(resumed.model.state_dict()[key], value), key
