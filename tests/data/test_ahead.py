"""Batches made ahead, by a thread or by workers, are those of the training thread, and memory is never taken back."""

from __future__ import annotations

import gc
import time
import weakref
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_maxmargin import JointSelection
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.core.ahead import by_thread
from lightning_maxmargin.data import RandomData, TensorData, base
from lightning_maxmargin.data.buffers import REUSED_FROM_BYTES, Buffers
from lightning_maxmargin.data.sampling import BatchLoader, Reading
from lightning_maxmargin.errors import InputError

READINGS = [Reading(prefetch=0), Reading(prefetch=1), Reading(prefetch=3), Reading(num_workers=1), Reading(2, 3)]
ids = [f"{r.num_workers} workers, {r.prefetch} ahead" for r in READINGS]


def data(n: int = 23, d: int = 3) -> Sequences:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(n, 4, d, generator=g, dtype=torch.float64)
    keys[3, 1] = keys[3, 0]
    mask = torch.rand(n, 4, generator=g) < 0.8
    mask[:, :2] = True
    return Sequences(keys, torch.ones(n), values=torch.randn(n, 4, 2, generator=g), mask=mask)


def fields(batch: Sequences) -> dict[str, Tensor]:
    return {name: x for name in Sequences.FIELDS if (x := getattr(batch, name)) is not None}


@pytest.mark.parametrize("reading", READINGS, ids=ids)
def test_batches_are_the_same_however_they_are_made(reading: Reading) -> None:
    whole = data()
    plain = list(BatchLoader(whole, 5, shuffle=True, seed=1))
    whole.copies()
    loader = BatchLoader(whole, 5, shuffle=True, seed=1, reading=reading)
    for _ in range(2):  # workers stay for the second epoch
        for got, want in zip(loader, plain, strict=True):
            assert fields(got).keys() == fields(want).keys()
            assert all(torch.equal(x, fields(want)[name]) for name, x in fields(got).items())
            # What is known of the keys comes along, across processes too.
            assert got._copies is not None
            assert got._copies[0] == got._stamp()
            assert got.copies().equal


@pytest.mark.parametrize("reading", READINGS, ids=ids)
@pytest.mark.parametrize("done", [0, 2, 4])
def test_an_epoch_goes_on_behind_what_was_handed_over(reading: Reading, done: int) -> None:
    """Not behind what was made ahead."""
    whole = [b.index.tolist() for b in BatchLoader(data(), 5, shuffle=True)]
    stopped = BatchLoader(data(), 5, shuffle=True, reading=reading)
    seen = [b.index.tolist() for b in islice(iter(stopped), done)]
    resumed = BatchLoader(data(), 5, shuffle=True, reading=reading)
    resumed.load_state_dict(stopped.state_dict())
    assert seen + [b.index.tolist() for b in resumed] == whole


def test_a_draw_from_the_global_generator_does_not_depend_on_workers() -> None:
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    next(iter(BatchLoader(data(), 5, reading=Reading(num_workers=1))))
    assert torch.equal(torch.rand(3), want)


def test_workers_end_by_word_where_the_collector_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once torch's wait for them is over, here 30 s for each: a trainer is a cycle that holds its loader."""
    for module in (torch.utils.data._utils, torch.utils.data._utils.worker):
        monkeypatch.setattr(module, "MP_STATUS_CHECK_INTERVAL", 30.0)
    loader = BatchLoader(data(), 5, reading=Reading(num_workers=2))
    next(iter(loader))
    assert loader._workers is not None
    processes = loader._workers[1]._loader._iterator._workers
    cycle: dict[str, Any] = {"loader": loader}
    cycle["itself"] = cycle
    del loader, cycle
    start = time.monotonic()
    gc.collect()
    assert time.monotonic() - start < 30.0
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_loader_that_is_dropped_is_freed() -> None:
    loader = BatchLoader(data(), 5)
    assert loader.sampler is loader
    freed = weakref.ref(loader)
    del loader
    assert freed() is None


def test_batches_come_in_the_dtype_of_training() -> None:
    loader = BatchLoader(data(), 5, reading=Reading(dtype=torch.float32))
    for batch, want in zip(loader, BatchLoader(data(), 5), strict=True):
        assert batch.keys.dtype == torch.float32
        assert torch.equal(batch.keys, want.keys.float())
        assert batch.index.dtype == torch.int64


def test_an_error_is_raised_at_its_batch() -> None:
    def make(rows: Tensor) -> int:
        if int(rows) == 2:
            raise ValueError("two")
        return int(rows)

    made = by_thread(make, [torch.tensor(i) for i in range(5)], prefetch=2)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(made)


def test_a_thread_works_while_the_batch_in_hand_is_trained_on() -> None:
    made: list[int] = []
    batches = by_thread(lambda rows: made.append(int(rows)), [torch.tensor(i) for i in range(9)], prefetch=2)
    next(batches)
    deadline = time.monotonic() + 30
    while made != [0, 1, 2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_who_keeps_a_batch_keeps_its_numbers(ahead: int) -> None:
    """Also who keeps a view of it alone."""
    whole = data(n=60, d=2048)
    loader = BatchLoader(whole, 5, reading=Reading(prefetch=ahead))
    assert 5 * whole.keys[0].nbytes >= REUSED_FROM_BYTES
    views = [batch.keys[1:, 2] for batch in loader]
    assert len(views) == 12
    for at, view in enumerate(views):
        assert torch.equal(view, whole.keys[5 * at + 1 : 5 * at + 5, 2])


def test_memory_is_used_again_and_no_more_is_kept() -> None:
    buffers = Buffers(most=2)
    shape = (REUSED_FROM_BYTES // 4,)
    held = [buffers.empty(shape, torch.float32) for _ in range(4)]
    assert len({x.data_ptr() for x in held}) == 4
    places = {x.data_ptr() for x in held[:2]}
    del held
    assert {buffers.empty(shape, torch.float32).data_ptr()} <= places


class Trained:
    """Weights of a short run."""

    def __init__(self, **options: Any) -> None:
        self.model = JointSelection(dim=4, attention_lr=0.1, head_lr=0.1)
        source = RandomData(n=23, T=5, d=4, batch_size=5, seed=2, **options)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_steps=12, max_epochs=-1, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(self.model, datamodule=source)

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self.model.parameters()]


def test_the_weights_do_not_depend_on_who_makes_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    want = Trained(prefetch=0).weights
    monkeypatch.setattr(base, "PREFETCH_NUMBERS", 0)
    for options in ({}, {"prefetch": 1}, {"num_workers": 2}):
        assert all(map(torch.equal, Trained(**options).weights, want)), options


@pytest.mark.parametrize(("options", "message"), [
    ({"num_workers": -1}, "data.num_workers: -1; expected zero or more"),
    ({"prefetch": -2}, "data.prefetch: -2; expected zero or more"),
    ({"num_workers": 1, "prefetch": 0}, "data.prefetch: 0 leaves workers nothing to do"),
])  # fmt: skip
def test_wrong_numbers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RandomData(**options)


# --- arrays that stay in their file --------------------------------------------------------------------------------


def written(folder: Path, kind: str, arrays: dict[str, Any]) -> str:
    if kind == "folder":
        path = folder / "arrays"
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    elif kind == "npz":
        path = folder / "arrays.npz"
        np.savez(path, **arrays)
    else:
        from safetensors.numpy import save_file

        path = folder / "arrays.safetensors"
        save_file(arrays, path)
    return str(path)


def arrays(n: int = 7) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(n, 4, 3)).astype(np.float32)
    return {"keys": keys, "labels": rng.choice([-1.0, 1.0], n), "values": keys[..., ::-1].copy()}


@pytest.mark.parametrize("kind", ["folder", "npz", "safetensors"])
def test_mapped_arrays_are_those_in_memory(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, arrays())
    mapped, memory = (TensorData(path, mapped=m, batch_size=3, shuffle=False) for m in (True, False))
    assert mapped.splits["train"].mapped
    assert not memory.splits["train"].mapped
    for a, b in zip(mapped.train_dataloader(), memory.train_dataloader(), strict=True):
        assert all(torch.equal(x, fields(b)[name]) for name, x in fields(a).items())
    # The file itself is what lies behind the tensor.
    assert path in Path("/proc/self/maps").read_text()


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    good = arrays()
    np.savez_compressed(tmp_path / "small.npz", **good)
    whole = {**good, "keys": (10 * good["keys"]).astype(np.int32)}
    padded = {**good, "mask": np.arange(4) < np.full((7, 1), 3)}
    padded["keys"] = np.where(padded["mask"][..., None], good["keys"], np.nan).astype(np.float32)
    for name, content in (("whole", whole), ("padded", padded)):
        (tmp_path / name).mkdir()
        for key, array in content.items():
            np.save(tmp_path / name / f"{key}.npy", array)
    cases = [("small.npz", "it is compressed"), ("whole", "keys are int32 and stay"), ("padded", "stands on padding")]
    for name, message in cases:
        with pytest.raises(InputError, match=message):
            TensorData(str(tmp_path / name), mapped=True)
        TensorData(str(tmp_path / name), mapped=False)


def test_the_full_batch_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.batch_size: the arrays stay in their file"):
        TensorData(written(tmp_path, "npz", arrays()), mapped=True).train_dataloader()
