"""Text on several processes: every document once and in its order, and the numbers and weights of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.loops.utilities as loops
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.conftest import QUIET
from tests.reliability.forked import run_together, started, told, wait
from tests.text.conftest import reviews, tiny_encoder, write_rows  # noqa: F401  (a fixture)

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork")


def words(folder: Path, encoder: Path, *more: str) -> tuple[str, ...]:
    """``fit`` on documents whose numbers no count of processes divides."""
    train = write_rows(folder / "train.jsonl", reviews(46, 1))
    test = write_rows(folder / "test.jsonl", reviews(14, 2)[:13])
    return (
        "fit", "--config", "text/finetune", "--data.train", str(train), "--data.test", str(test),
        "--data.encoder", str(encoder), "--data.cache_dir", str(folder), "--data.batch_size", "7",
        "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu", *more,
    )  # fmt: skip


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same_weights(run_dir: Path, other: Path, rtol: float) -> None:
    a, b = weights(run_dir), weights(other)
    assert a.keys() == b.keys()
    # A key's bias moves no attention: its gradient is rounding alone, which Adam makes a step of.
    for name, x in ((name, x) for name, x in a.items() if not name.endswith("key.bias")):
        torch.testing.assert_close(b[name], x, rtol=rtol, atol=rtol * float(x.abs().max()), msg=lambda m, n=name: n + m)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuned", [(), ("--model.finetune_layers", "1", "--model.finetune_epochs", "1")], ids=["frozen", "tuned"]
)
def test_two_processes_leave_what_one_leaves(
    tuned: tuple[str, ...], tiny_encoder: Path, tmp_path: Path, maxmargin: Any  # noqa: F811
) -> None:  # fmt: skip
    # In 64-true the sums of two processes differ from one's by rounding alone, which Adam keeps small.
    fit = words(tmp_path, tiny_encoder, *tuned, "--trainer.precision", "64-true")
    # This encoder lacks weights, which are drawn: a run that encodes draws more before the start than another.
    assert maxmargin(*fit, "--trainer.max_steps", "1").status == 0
    one, two = maxmargin(*fit), maxmargin(*fit, *TWO)
    assert (one.status, two.status) == (0, 0), two.err
    same_weights(one.run_dir, two.run_dir, 1e-5)
    for key in ("test/accuracy", "rationale/auprc", "rationale/r_precision", "rationale/documents"):
        assert two.summary[key] == pytest.approx(one.summary[key], abs=1e-6), key
    for name in ("tokens.jsonl", "corpus.json", "test.json", "model/model.safetensors"):
        assert (two.run_dir / name).is_file(), name
    assert (
        json.loads((two.run_dir / "test.json").read_text())["confusion"]
        == (json.loads((one.run_dir / "test.json").read_text())["confusion"])
    )
    again = ("--config", str(one.run_dir / "config.yaml"), "--ckpt_path", str(one.run_dir / "checkpoints/last.ckpt"))
    found = []
    for name, more in (("one.jsonl", ()), ("two.jsonl", TWO)):
        done = maxmargin("predict", *again, "--data.predict", str(tmp_path / "test.jsonl"), "--output", name, *more)
        assert done.status == 0, done.err
        assert f"{name} (13 documents)" in done.out
        found.append(lines(tmp_path / name))
    assert [row["index"] for row in found[1]] == list(range(13))
    assert [row["label"] for row in found[0]] == [row["label"] for row in found[1]]
    for command in ("validate", "test"):
        done = maxmargin(command, *again, "--data.val", str(tmp_path / "test.jsonl"), *TWO)
        assert done.status == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("layers", [0, 1], ids=["frozen", "tuned"])
def test_a_sharded_encoder_trains_as_a_whole_one(
    processes: int, layers: int, tiny_encoder: Path, tmp_path: Path, maxmargin: Any  # noqa: F811
) -> None:  # fmt: skip
    """FSDP2: the weights of one process, in a checkpoint and a model that one process loads."""
    tuned = ("--model.finetune_layers", str(layers), "--model.finetune_epochs", "2")
    fit = words(tmp_path, tiny_encoder, *tuned, *QUIET)
    sharded = ("--config", "trainer/fsdp2", "--trainer.accelerator", "cpu", "--trainer.devices", str(processes))
    size = ("--trainer.strategy.data_parallel_size", str(processes), "--run_dir", str(tmp_path / "sharded"))
    assert maxmargin(*fit, "--trainer.max_steps", "1").status == 0  # encodes
    assert not any(run_together((*fit, *sharded, *size), tmp_path, processes)), told(tmp_path)
    one = maxmargin(*fit)
    # float32, and Adam divides by the root of gradients that are nearly 0.
    same_weights(one.run_dir, tmp_path / "sharded", 1e-2)
    again = ("--config", str(one.run_dir / "config.yaml"))
    checkpoint = ("--ckpt_path", str(tmp_path / "sharded" / "checkpoints" / "last.ckpt"))
    predicted = maxmargin(
        "predict", *again, *checkpoint, "--data.predict", str(tmp_path / "test.jsonl"), "--output", "p.jsonl"
    )
    assert predicted.status == 0, predicted.err
    assert len(lines(tmp_path / "p.jsonl")) == 13
    gone_on = maxmargin(*fit, *checkpoint, "--trainer.max_epochs", "4")
    assert gone_on.status == 0, gone_on.err
    from lightning_maxmargin.text.saving import load_model

    saved = load_model(tmp_path / "sharded" / "model").state_dict()
    name = next(n for n in weights(tmp_path / "sharded") if "selectors" in n)
    torch.testing.assert_close(saved[name.removeprefix("model.")], weights(tmp_path / "sharded")[name])


class LikeNccl:
    """torch.distributed, whose backend says that it is NCCL."""

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: "nccl") if name == "get_backend" else getattr(dist, name)


def like_nccl() -> None:
    """What Lightning does under NCCL and not under Gloo, in inference mode."""
    loops.dist = LikeNccl()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "meanwhile"), [(1, like_nccl), (2, None)], ids=["as under NCCL", "two"])
def test_a_sharded_run_is_evaluated_by_its_own_config(
    processes: int, meanwhile: Any, tiny_encoder: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """Each command that takes its checkpoint, sharded again; under NCCL, where Lightning would take inference mode."""
    fit = words(tmp_path, tiny_encoder, "--model.finetune_layers", "1", *QUIET)
    size = ("--trainer.devices", str(processes), "--trainer.strategy.data_parallel_size", str(processes))
    sharded = ("--config", "trainer/fsdp2", "--trainer.accelerator", "cpu", *size, "--run_dir", str(tmp_path / "run"))
    again = ("--config", str(tmp_path / "run/config.yaml"), "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"))
    test = str(tmp_path / "test.jsonl")
    if processes == 2:
        # As a user does: Lightning starts the second.
        assert wait(started((*fit, *sharded), tmp_path)) == 0, (tmp_path / "errors.txt").read_text()
    else:
        assert run_together((*fit, *sharded), tmp_path, 1, meanwhile) == [0], told(tmp_path)
    for words_of_command in (
        ("test", *again), ("validate", *again, "--data.val", test),
        ("predict", *again, "--data.predict", test, "--output", str(tmp_path / "p.jsonl")),
        ("fit", *again, "--run_dir", str(tmp_path / "on"), "--trainer.max_epochs", "4", *QUIET),
    ):  # fmt: skip
        assert not any(run_together(words_of_command, tmp_path, processes, meanwhile)), told(tmp_path)
    assert [row["index"] for row in lines(tmp_path / "p.jsonl")] == list(range(13))
    # What it has gone on to, whole.
    on = load_file(tmp_path / "on" / "model" / "model.safetensors")
    for name, x in weights(tmp_path / "on").items():
        assert torch.equal(on[name.removeprefix("model.")], x), name
