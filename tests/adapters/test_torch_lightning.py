"""`TorchOptimizer` in Lightning's training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import portopt
from portopt_torch import TorchOptimizer

pytestmark = [
    # Lightning asks torch for a class that torch is about to rename.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    # Loading data in the same process is meant.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Regression(lightning.LightningModule):
    """A linear layer, trained with clipping and a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        loss = (self.layer(x) - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = TorchOptimizer(self.parameters(), portopt.Nadam(learning_rate=0.1, clipnorm=0.5))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=16)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(epochs: int, folder: Path, *, resumed_from: Path | None = None) -> tuple[Regression, lightning.Trainer]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, generator=generator)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    model = Regression()
    trainer.fit(model, loader, ckpt_path=resumed_from)
    return model, trainer


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, _ = fit(4, tmp_path)
    assert whole.losses[-1] < 0.5 * whole.losses[0]
    _, trainer = fit(2, tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, tmp_path, resumed_from=tmp_path / "half.ckpt")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert torch.equal(resumed.layer.bias, whole.layer.bias)
    assert resumed.losses == whole.losses[8:]
