"""Many instances on a device: the module, one call, and what measures them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import Ensemble
from lightning_maxmargin.callbacks import EnsembleMonitor
from lightning_maxmargin.core.updates import UPDATES
from lightning_maxmargin.data import RandomInstances
from lightning_maxmargin.ensemble import EnsembleResult, measure, train_ensemble
from tests.device.compare import agree, close, covers
from tests.device.pretend import GPU, Gpu

Make = Callable[..., pl.Trainer]


def problems(queries: bool = False, mask: bool = False) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(5, 4, 6, 8, generator=g, dtype=torch.float64), dim=-1)
    v = torch.randn(5, 8, generator=g, dtype=torch.float64)
    found: dict[str, Any] = {"keys": keys, "labels": torch.einsum("bntd,bd->bn", keys, v).sign(), "head": v}
    if queries:
        found["queries"] = torch.randn(5, 4, 3, generator=g, dtype=torch.float64)
    if mask:
        found["mask"] = torch.arange(6).expand(5, 4, 6) < 6 - torch.arange(4)[:, None]
    return found


@pytest.mark.parametrize("train", ["both", "attention", "head"])
@pytest.mark.parametrize("shape", [{}, {"queries": True}, {"mask": True}], ids=str)
@covers("ensemble.train_ensemble", "ensemble.EnsembleResult")
def test_keys_on_the_device(gpu: Gpu, train: str, shape: dict[str, bool]) -> None:
    options = {"steps": 40, "dtype": torch.float64, "train": train, "attention_lr": 1.0}
    found = agree(lambda **given: train_ensemble(**given, **options), **problems(**shape), rtol=1e-6)
    assert isinstance(found, EnsembleResult)


@covers("ensemble.measure")
def test_trained_there_measured_here(gpu: Gpu) -> None:
    given = problems()
    found = train_ensemble(**given, steps=20, device=GPU, dtype=torch.float64)
    assert found.state is not None
    assert found.state.attention.device == GPU
    inputs = [given[k] for k in ("keys", "labels")]
    close(measure(found.state, *(x.to(GPU) for x in inputs)), measure(found.state, *inputs))


@pytest.mark.parametrize("update", UPDATES)
def test_every_rule(gpu: Gpu, update: str) -> None:
    options = {"steps": 5, "dtype": torch.float64, "update": update, "attention_lr": torch.arange(1.0, 6.0) / 10}
    agree(lambda **given: train_ensemble(**given, **{**options, **_there(options, given)}), **problems(True), rtol=1e-6)


def _there(options: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return {"attention_lr": options["attention_lr"].to(given["keys"].device)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"train": "attention", "head_init": "data"},
        {"loss": ["logistic", "exponential"]},
    ],
    ids=str,
)
@covers("Ensemble", "callbacks.EnsembleMonitor", "data.RandomInstances")
def test_the_module(trainer: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    ended, seen = [], []
    for device in (False, True):
        module, monitor = Ensemble(dim=10, attention_init="normal", inner_steps=7, **options), EnsembleMonitor()
        run = trainer(device, max_steps=20, callbacks=[monitor], precision="64-true")
        run.fit(module, datamodule=RandomInstances(B=6, ragged=True))
        run.save_checkpoint(tmp_path / f"{device}.ckpt")
        ended.append([module.state.attention, module.state.head])
        seen.append([{k: x for k, x in row.items() if not k.startswith("monitor/")} for row in monitor.history])
    close(ended[1], ended[0], 1e-7)
    close(seen[1], seen[0], 1e-5)
    again = Ensemble(dim=10, attention_init="normal", inner_steps=7, **options)
    run = trainer(True, max_steps=21, precision="64-true")
    run.fit(again, datamodule=RandomInstances(B=6, ragged=True), ckpt_path=tmp_path / "False.ckpt")
    assert again.state.steps == 21
