"""JointSelection and its callbacks through a Trainer on a device: the run of the CPU."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import AttentionSource, HeadMonitor, JointSelection, MarginMonitor
from lightning_maxmargin.callbacks import FiniteGuard, Interrupt, RunSummary, StepProgress, TokenMonitor
from lightning_maxmargin.callbacks.later import ASK_EVERY
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import PaperData, RandomData, SequenceData, TensorData
from lightning_maxmargin.errors import NonFiniteError
from lightning_maxmargin.optim import AcceleratedMargin, SpectralDescent
from lightning_maxmargin.run.checkpoints import CheckedCheckpointIO
from lightning_maxmargin.run.last_checkpoint import LastCheckpoint
from tests.callbacks.test_guard import Poisoned
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from tests.device.compare import close, covers
from tests.device.pretend import GPU, Gpu

Make = Callable[..., pl.Trainer]


def both(trainer: Make, make: Callable[[], pl.LightningModule], data: Callable[[], Any], **options: Any) -> list[Any]:
    """The modules trained on the CPU and on the device, which are to be equal."""
    modules = []
    for device in (False, True):
        torch.manual_seed(0)
        module, run = make(), trainer(device, **{"max_steps": 6, "precision": "64-true", **options})
        run.fit(module, datamodule=data())
        modules.append(module)
    close(dict(modules[1].named_parameters()), dict(modules[0].named_parameters()), 1e-8)
    return modules


FORMS: list[dict[str, Any]] = [
    {"parametrization": parametrization, "gradient": gradient}
    for parametrization in ("p", "W", "KQ")
    for gradient in ("exact", "centred", "naive")
]
FORMS += [{"loss": loss, "gradient": "exact"} for loss in ("exponential", "correlation")]
FORMS += [
    {"query": "own", "gradient": "exact"}, {"query": "separate", "gradient": "centred"}, {"head": "mlp"},
    {"num_classes": 3, "loss": "cross_entropy"}, {"train": "attention", "head_init": "normal"}, {"train": "head"},
    {"optimizer": AcceleratedMargin}, {"optimizer": SpectralDescent}, {"optimizer": torch.optim.SGD, "head_lr": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@covers("JointSelection")
def test_every_form_of_joint_selection(trainer: Make, form: dict[str, Any]) -> None:
    options = {"attention_init": "normal", "attention_lr": 0.1, **form}
    both(
        trainer, lambda: JointSelection(dim=5, **options),
        lambda: RandomData(n=6, d=5, queries=form.get("query") == "separate", num_classes=form.get("num_classes", 2)),
    )  # fmt: skip


@covers("data.SequenceData", "data.RandomData", "data.PaperData", "data.TensorData")
def test_every_data_module(trainer: Make, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", keys=g.normal(size=(6, 4, 5)), labels=[1.0, -1.0] * 3, mask=g.random((6, 4)) < 2)

    class Own(SequenceData):
        def load(self) -> dict[str, Sequences]:
            return RandomData(n=6, d=5).splits

    for data in (lambda: RandomData(n=7, d=5, batch_size=3), lambda: TensorData(str(tmp_path / "data.npz")), Own):
        both(trainer, lambda: JointSelection(dim=5), data)
    both(trainer, lambda: JointSelection(dim=2), lambda: PaperData("joint_tight"))


def test_validation_test_and_prediction(trainer: Make, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    for name in ("train", "val", "test"):
        keys, labels = g.normal(size=(6, 4, 5)), [1.0, -1.0] * 3
        np.savez(tmp_path / f"{name}.npz", keys=keys, labels=labels, planted=np.zeros(6, np.int64))
    paths = {"path": "train", "val_path": "val", "test_path": "test"}
    found = []
    for device in (False, True):
        data = TensorData(**{k: str(tmp_path / f"{v}.npz") for k, v in paths.items()})
        module, run = JointSelection(dim=5), trainer(device, max_steps=4, precision="64-true")
        run.fit(module, datamodule=data)
        numbers = [run.validate(module, data, verbose=False), run.test(module, data, verbose=False)]
        found.append([numbers, run.predict(module, data)])
    close(found[1], found[0], 1e-8)


# --- callbacks ------------------------------------------------------------------------------------------------------


@covers("MarginMonitor", "callbacks.MarginMonitor", "callbacks.StepProgress", "callbacks.Interrupt",
        "callbacks.RunSummary")  # fmt: skip
def test_a_watched_run(trainer: Make, tmp_path: Path) -> None:
    seen = []
    for device in (False, True):
        monitor, folder = MarginMonitor(per_decade=3), tmp_path / str(device)
        callbacks = [
            monitor,
            StepProgress(),
            Interrupt(),
            RunSummary(folder, "a"),
            LastCheckpoint(folder / "checkpoints"),
        ]
        run = trainer(device, max_steps=20, callbacks=callbacks, precision="64-true", enable_progress_bar=True,
                      enable_checkpointing=True)  # fmt: skip
        run.fit(JointSelection(dim=2), datamodule=PaperData("joint_relaxed"))
        for row in monitor.history:
            for name in [name for name in row if name.startswith("monitor/")]:
                del row[name]
        seen.append(monitor.history)
        assert (folder / "summary.json").exists()
        assert (folder / "checkpoints" / "last.ckpt").exists()
    close(seen[1], seen[0], 1e-6)


def test_a_signal_stops_a_run(trainer: Make, tmp_path: Path) -> None:
    class Raise(pl.Callback):
        def on_train_batch_end(self, run: pl.Trainer, *_: Any) -> None:
            if run.global_step == 3:
                signal.raise_signal(signal.SIGTERM)

    stop = Interrupt()
    run = trainer(max_steps=20, callbacks=[Raise(), stop])
    run.fit(JointSelection(dim=5, inner_steps=1), datamodule=RandomData(n=4, d=5))
    assert (stop.stopped, run.global_step) == (True, 3)


@pytest.mark.parametrize("sources", [SEPARATE, "auto"], ids=["named", "auto"])
@covers("HeadMonitor", "callbacks.HeadMonitor", "AttentionSource", "callbacks.AttentionSource")
def test_attention_heads_of_another_module(trainer: Make, sources: Any) -> None:
    assert isinstance(SEPARATE, AttentionSource)
    seen = []
    for device in (False, True):
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(some_data(), batch_size=5)
        module, monitor = Foreign(), HeadMonitor(sources, loader, samples=10)
        trainer(device, max_steps=2, callbacks=[monitor], precision="64-true").fit(module.double(), loader)
        seen.append({k: v for k, v in monitor.last.items() if not k.startswith("monitor/")})
    close(seen[1], seen[0], 1e-5)


@covers("callbacks.TokenMonitor")
def test_tokens_of_examples(trainer: Make, tmp_path: Path) -> None:
    class Spoken(RandomData):
        def texts(self, split: str) -> list[list[str]]:
            data = self.sequences(split)
            assert data is not None
            return [[str(t) for t in range(data.keys.shape[1])] for _ in range(len(data))]

    run = trainer(max_steps=2, callbacks=[TokenMonitor(examples=3)])
    run.fit(JointSelection(dim=5), datamodule=Spoken(n=6, d=5))
    assert len((tmp_path / "tokens.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("gradient", ["exact", "centred"])
@covers("callbacks.FiniteGuard")
def test_the_guard_keeps_the_weights_without_waiting(
    gpu: Gpu, trainer: Make, tmp_path: Path, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = JointSelection(dim=32, gradient=gradient)
    run = trainer(max_steps=100, callbacks=[FiniteGuard()])
    with pytest.raises(NonFiniteError, match=r"selector\.\w is not finite at step 2 \(samples 9\)"):
        run.fit(model, datamodule=Poisoned(at=2, n=120, batch_size=4, shuffle=False))
    assert run.global_step <= 2 + 2 * ASK_EVERY
    kept = torch.load(tmp_path / "checkpoints" / "last_good.ckpt", weights_only=True)["state_dict"]
    assert kept
    assert all(x.isfinite().all() for x in kept.values())


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_on_the_other_device(trainer: Make, tmp_path: Path, first: bool) -> None:
    def fit(device: bool, steps: int, **options: Any) -> JointSelection:
        module = JointSelection(dim=5, optimizer=AcceleratedMargin, inner_steps=1)
        save = LastCheckpoint(tmp_path / str(steps) / "checkpoints")
        plugins: Any = [CheckedCheckpointIO()]
        run = trainer(
            device, max_steps=steps, precision="64-true", plugins=plugins, callbacks=[save], enable_checkpointing=True
        )
        run.fit(module, datamodule=RandomData(n=8, d=5, batch_size=3), **options)
        return module

    whole = fit(first, 7)
    fit(first, 4)
    resumed = fit(not first, 7, ckpt_path=tmp_path / "4" / "checkpoints" / "last.ckpt", weights_only=True)
    close(dict(resumed.named_parameters()), dict(whole.named_parameters()), 1e-8)


def test_a_checkpoint_of_the_device_loads_on_the_cpu_and_goes_back(trainer: Make, tmp_path: Path) -> None:
    run, data = trainer(max_steps=3), RandomData(n=6, d=5)
    module = JointSelection(dim=5)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = JointSelection.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    batch = data.splits["train"]
    loaded.selector.float()  # as setup does, at this precision
    before = loaded(batch)
    close(dict(loaded.state_dict()), dict(module.state_dict()))
    close(loaded.to(GPU)(batch.to(GPU)), before, 1e-5)
