"""Masked layers and AdamL1 in a LightningModule."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import clnp
from clnp_kernels.optim import AdamL1
from tests.clnp.cases import blobs, convert, mlp

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning itself warns of


class Classifier(lightning.LightningModule):
    def __init__(self, model: clnp.Model) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AdamL1(clnp.parameter_groups(self.model, 1e-4), lr=0.01)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # Under mixed precision the trainer's own way refuses optimizers that unscale gradients
        # themselves, as torch's fused ones and ours do.
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)


def trainer(folder: Path, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 10, "enable_checkpointing": False, **options},
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}],
    ids=["plain", "bf16, accumulation"],
)
def test_tasks_are_learned_by_a_trainer(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(convert(mlp([32, 24])))
    model, certificate = classifier.model, clnp.Certificate()
    frozen: dict[str, torch.Tensor] = {}
    for k in range(2):
        task = blobs(k)
        clnp.begin_task(model)
        loader = DataLoader(TensorDataset(*task.tensors("train")), batch_size=16, shuffle=True)
        trainer(tmp_path, **options).fit(classifier, loader)
        now = dict(model.named_buffers())
        assert all(torch.equal(now[name], value) for name, value in frozen.items())
        clnp.prune(model, task.train, task.validation, margin=0.02)
        clnp.consolidate(model, name=task.name)
        x, y = task.tensors("test")
        certificate.record(model, x)
        assert (model(x, task=k).argmax(-1) == y).float().mean() > 0.9
        frozen = {n: b.clone() for n, b in model.named_buffers() if "active_" in n}
    assert [v.identical for v in certificate.verify(model)] == [True, True]


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    """Lightning's checkpoint of the second task restores network and optimizer."""

    def second_task() -> Classifier:
        torch.manual_seed(0)
        classifier = Classifier(convert(mlp([32, 24])))
        clnp.begin_task(classifier.model)
        clnp.prune(classifier.model, blobs(0).train, blobs(0).validation)
        clnp.consolidate(classifier.model)
        clnp.begin_task(classifier.model)
        return classifier

    loader = DataLoader(TensorDataset(*blobs(1).tensors("train")), batch_size=16)
    whole, half = second_task(), second_task()
    trainer(tmp_path).fit(whole, loader)
    first = trainer(tmp_path, max_epochs=5, enable_checkpointing=True)
    first.fit(half, loader)
    first.save_checkpoint(tmp_path / "half.ckpt")
    fresh = second_task()
    trainer(tmp_path).fit(fresh, loader, ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(whole.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(a, b)
