"""Runs on images, folders, arrays and trained networks, from the command line to the files."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn

from clnp import models
from clnp.cli.run_folder import RunFolder
from clnp.data import Folders
from clnp.learner.learner import Learner
from tests.clnp.commands import clnp, run_clnp

Image = pytest.importorskip("PIL.Image")


def short(epochs: int = 2, margin: float = 0.2) -> list[object]:
    """Options of a run that takes little time."""
    return ["--threads", 1, "--epochs", epochs, "--batch-size", 16, "--margin", margin]


SHORT = short()


def coloured(classes: int, number: int, seed: int):
    """Images [N, 32, 32, 3] uint8 whose classes differ in colour, and their labels."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(30, 225, (classes, 1, 1, 3))
    labels = np.arange(classes * number) % classes
    noise = rng.integers(-30, 30, (classes * number, 32, 32, 3))
    return (colours[labels] + noise).astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A data root with a small CIFAR-10 and 20 classes of CIFAR-100."""
    root = tmp_path_factory.mktemp("cifar")
    for name, classes in (("cifar10", 10), ("cifar100", 20)):
        train, test = coloured(classes, 8, 1), coloured(classes, 4, 2)
        np.savez(
            root / f"{name}.npz",
            train_images=train[0],
            train_labels=train[1],
            test_images=test[0],
            test_labels=test[1],
        )
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of images: three classes, then two."""
    root = tmp_path_factory.mktemp("folders")
    for task, classes in (("fruit", 3), ("sky", 2)):
        images, labels = coloured(classes, 12, 3)
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = root / task / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{k}.png")
    return root / "fruit", root / "sky"


def test_split_cifar(cifar, tmp_path, capsys):
    words = ["run", "split-cifar", "--data-root", cifar, "--out", tmp_path / "a", "--tasks", 2]
    words += ["--net-scale", 0.125, "--validation", 0.25, "--augment", *SHORT]
    code, out, _ = clnp(capsys, *words)
    assert code == 0
    assert out.count("certificate: 2/2 tasks bit-identical") == 1
    metrics = RunFolder(tmp_path / "a").read_metrics()
    assert [r["name"] for r in metrics["reports"]] == ["cifar10", "cifar100-0-9"]
    assert list(metrics["reports"][0]["capacity"]) == ["conv1", "conv2", "conv3", "conv4", "dense"]
    assert metrics["config"]["head"] == "multi"
    assert metrics["cost"]["examples"] == 2 * (60 + 60)
    assert metrics["cost"]["flops"] > 0
    costs = RunFolder(tmp_path / "a").read_table("cost.csv")
    assert sum(row["flops"] for row in costs) == metrics["cost"]["flops"]
    assert all(row["peak_memory"] > 0 and row["seconds"] > 0 for row in costs)
    # The same again, from the settings in the folder.
    code, out, _ = clnp(capsys, "run", "--resume", "--out", tmp_path / "a")
    assert code == 0
    assert "going on after 2 of 2 tasks" in out
    assert RunFolder(tmp_path / "a").read_metrics()["cost"] == metrics["cost"]


def test_a_killed_run_on_augmented_images_goes_on_bit_equal(cifar, tmp_path, monkeypatch):
    words = ["run", "split-cifar", "--data-root", cifar, "--split", "cifar10", "--tasks", 2]
    words += ["--net-scale", 0.0625, "--validation", 0.25, "--augment", *SHORT]
    assert run_clnp(*words, "--out", tmp_path / "whole") == 0
    learn = Learner.learn

    def once(learner, task):
        if learner.reports:
            raise KeyboardInterrupt
        return learn(learner, task)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", once)
        assert run_clnp(*words, "--out", tmp_path / "killed") == 130
    assert run_clnp("run", "--resume", "--out", tmp_path / "killed") == 0
    for name in ("metrics.json", "history.csv", "capacity.csv"):
        whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name


def test_splits_of_cifar_and_networks(cifar, tmp_path):
    """Settings only: which stream, which network, which head."""
    from clnp.cli import build_config
    from clnp.cli.arguments import parse

    def settings(*words):
        options = parse(["run", "split-cifar", "--data-root", str(cifar), *words])
        return build_config.settings(options, tmp_path)[0]

    assert (settings().tasks, settings().net, settings().head) == (6, "narrow", "multi")
    wide = settings("--net", "wide")
    assert (wide.tasks, wide.head, wide.dropout) == (10, "single", None)
    assert settings("--split", "cifar10").tasks == 5
    assert settings("--split", "cifar100", "--tasks", "3").tasks == 3
    assert settings("--net", "resnet18").net == "resnet18_small"
    assert settings("--model", "mobilenet_v2").net == "mobilenet_v2"
    mlp = settings("--net", "mlp", "--width", "9")
    assert (mlp.width, mlp.depth, mlp.dropout) == (9, 2, 0.0)


def test_words_may_stand_anywhere(folders, tmp_path):
    from clnp.cli.arguments import parse

    a, b = map(str, folders)
    for words in (
        ["folder", a, b, "--out", "x"],
        ["folder", "--out", "x", a, b],
        ["--out", "x", "folder", a, "--seed", "1", b],
    ):
        options = parse(["run", *words])
        assert (options.stream, options.paths) == ("folder", (a, b))


NARROW = ["--image-size", 16, "--net", "narrow", "--net-scale", 0.125]
FOLDER = [*NARROW, *SHORT]


def test_folders_of_images(folders, tmp_path, capsys):
    code, out, _ = clnp(capsys, "run", "folder", *folders, "--out", tmp_path / "a", *FOLDER)
    assert code == 0
    assert "certificate: 2/2 tasks bit-identical" in out
    reports = RunFolder(tmp_path / "a").read_metrics()["reports"]
    assert [r["name"] for r in reports] == ["fruit", "sky"]
    assert str(folders[0].parent) not in (tmp_path / "a" / "metrics.json").read_text()
    config, places = RunFolder(tmp_path / "a").read_config()
    assert config.tasks == 2
    assert places.paths == tuple(map(str, folders))
    assert clnp(capsys, "verify", tmp_path / "a")[0] == 0


def trained(folder, classes=3):
    """A network that tells the classes of `folders` apart by their colours."""
    net = models.narrow(classes, (3, 16, 16), scale=0.125, dropout=0.0, seed=5)
    task = Folders([folder], image_size=16)[0]
    x, y = task.train.batch(torch.arange(len(task.train)))
    optimizer = torch.optim.Adam(net.parameters(), 0.003)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def test_adopt_a_trained_network(folders, tmp_path, capsys):
    net = trained(folders[0])
    torch.save(net.state_dict(), tmp_path / "net.pt")
    words = ["run", "folder", *folders, *NARROW, "--pretrained", tmp_path / "net.pt", "--adopt"]
    words += ["--dropout", 0, "--no-augment", *short(margin=0)]
    code, _, err = clnp(capsys, *words, "--out", tmp_path / "a")
    assert code == 0, err
    metrics = RunFolder(tmp_path / "a").read_metrics()
    first, second = metrics["reports"]
    assert first["epochs"] == 0
    assert first["history"] == []
    test = Folders([folders[0]], image_size=16)[0].test
    x, y = test.batch(torch.arange(len(test)))
    own = float((net.eval()(x).argmax(1) == y).double().mean())
    assert own == 1.0
    assert first["validation_before"] == first["validation"] == 1.0
    assert first["test"] > 0.8
    assert second["epochs"] == 2
    assert metrics["cost"]["examples"] == sum(
        int(r["examples"]) for r in RunFolder(tmp_path / "a").read_table("cost.csv")
    )
    # Other weights are another run.
    torch.save({k: v + 1 for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    code, _, err = clnp(
        capsys, "run", "--resume", "--out", tmp_path / "a", "--pretrained", tmp_path / "net.pt"
    )
    assert code == 2
    assert "begun with other settings: --pretrained" in err
    torch.save(trained(folders[0], 5).state_dict(), tmp_path / "five.pt")
    words[words.index(tmp_path / "net.pt")] = tmp_path / "five.pt"
    code, _, err = clnp(capsys, *words, "--out", tmp_path / "b")
    assert code == 2
    assert "expected the weights of the network" in err
    assert not (tmp_path / "b").exists()


def test_pretrained_weights_of_other_classes_begin_a_run(folders, tmp_path, capsys):
    torch.save(trained(folders[0], 5).state_dict(), tmp_path / "five.pt")
    words = ["run", "folder", folders[0], *FOLDER, "--pretrained", tmp_path / "five.pt"]
    assert clnp(capsys, *words, "--out", tmp_path / "a")[0] == 0


@pytest.mark.parametrize("images", [True, False])
def test_arrays(tmp_path, capsys, images):
    for name, seed in (("a", 1), ("b", 2)):
        x, y = coloured(3, 20, seed)
        x = x[:, ::4, ::4] if images else x.mean((1, 2), dtype=np.float32) / 255
        np.savez(tmp_path / f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x, y_test=y)
    words = ["run", "arrays", tmp_path / "a.npz", tmp_path / "b.npz", "--width", 24]
    words += [*short(epochs=15), "--lr", 0.01]
    code, out, _ = clnp(capsys, *words, "--out", tmp_path / "run")
    assert code == 0
    assert "certificate: 2/2" in out
    assert RunFolder(tmp_path / "run").read_metrics()["reports"][0]["test"] > 0.6
    assert clnp(capsys, "run", "--resume", "--out", tmp_path / "run")[0] == 0
    (tmp_path / "b.npz").unlink()
    code, _, err = clnp(capsys, "run", "--resume", "--out", tmp_path / "run")
    assert code == 2
    assert "b.npz: no such file" in err


def test_identity_first_and_validation(tmp_path, capsys):
    words = ["run", "permuted-digits", "--identity-first", "--tasks", 1, "--width", 16, *SHORT]
    assert clnp(capsys, *words, "--out", tmp_path)[0] == 0
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config"]["identity_first"] is True


def test_few_examples(tmp_path, capsys):
    words = ["run", "permuted-digits", "--examples", 40, "--tasks", 1, "--width", 16, *SHORT]
    assert clnp(capsys, *words, "--out", tmp_path)[0] == 0
    assert json.loads((tmp_path / "config.json").read_text())["config"]["examples"] == 40
    code, _, err = clnp(capsys, "run", "permuted-digits", "--examples", 0, "--out", tmp_path / "b")
    assert code == 2
    assert "--examples: expected an integer" in err


def test_export_of_a_convolutional_network(cifar, tmp_path, capsys):
    words = ["run", "split-cifar", "--data-root", cifar, "--tasks", 1, "--net", "wide"]
    words += ["--net-scale", 0.04, "--validation", 0.25, *SHORT, "--out", tmp_path]
    assert run_clnp(*words) == 0
    capsys.readouterr()
    code, out, _ = clnp(capsys, "export", tmp_path, "--task", 0)
    assert code == 0
    assert "3 x 32 x 32 -> " in out
    assert "logits differ by at most 0 from" in out
    code, out, _ = clnp(
        capsys, "export", tmp_path, "--task", 0, "--fold-batch-norm", "--out", tmp_path / "f.pt2"
    )
    assert code == 0
    folded, whole = (torch.export.load(tmp_path / n).module() for n in ("f.pt2", "task-0.pt2"))
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(folded(x), whole(x), rtol=1e-3, atol=1e-4)
    assert len(list(folded.parameters())) < len(list(whole.parameters()))
    if importlib.util.find_spec("onnx") is None:
        code, _, err = clnp(capsys, "export", tmp_path, "--task", 0, "--format", "onnx")
        assert code == 2
        assert ".onnx: expected onnx" in err
        assert not list(tmp_path.glob("*.onnx"))
    for words, fragment in (
        (["--format", "onnx", "--out", tmp_path / "a.pt2"], "expected a file that ends in .onnx"),
        (["--out", tmp_path / "a.txt"], "expected a file that ends in .pt2 or .onnx"),
    ):
        code, _, err = clnp(capsys, "export", tmp_path, "--task", 0, *words)
        assert code == 2
        assert fragment in err
