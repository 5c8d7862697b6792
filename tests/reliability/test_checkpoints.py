"""Damaged checkpoints: one clear error before any work, and nothing in one is ever run."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maxmargin.run.checkpoints import newest_checkpoint, verify_checkpoint
from lightning_maxmargin.run.content import SUM, content_sum
from tests.conftest import config, fit_once

WORDS = ("fit", "--config", config("joint/tight"), "--trainer.max_steps", "20")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_once(tmp_path_factory.mktemp("sound"), *WORDS[1:]).run_dir / "checkpoints"


@pytest.fixture
def saved(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(checkpoints, tmp_path / "saved") / "last.ckpt"


def refused(outcome: Any, *said: str) -> None:
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert all(words in outcome.error for words in said), outcome.error
    assert not outcome.run_dir.exists()


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_seen(seed: int, saved: Path, maxmargin: Any) -> None:
    content = bytearray(saved.read_bytes())
    rng = random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    saved.write_bytes(content)
    refused(maxmargin(*WORDS, "--ckpt_path", str(saved)), "last.ckpt", "damaged")


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_weights_that_are_not_finite(number: float, command: str, saved: Path, maxmargin: Any, tmp_path: Path) -> None:
    """Also where its sum is right: whoever saved it had no guard."""
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["selector.W"].fill_(number)
    del content[SUM]
    torch.save({**content, SUM: content_sum(content)}, saved)
    Path(f"{saved}.sha256").unlink()
    refused(maxmargin(command, *WORDS[1:3], "--ckpt_path", str(saved)), "last.ckpt", "not finite (selector.W)")
    assert not (tmp_path / "predictions.jsonl").exists()


def test_of_several_the_newest_with_finite_weights(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    before, last = (Path(shutil.copy(saved, folder / name)) for name in ("before.ckpt", "last.ckpt"))
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["selector.W"].fill_(torch.nan)
    del content[SUM]
    torch.save({**content, SUM: content_sum(content)}, last)
    assert newest_checkpoint(tmp_path / "run") == before
    before.unlink()
    assert newest_checkpoint(tmp_path / "run") == last


@pytest.mark.parametrize("checksum", ["kept", "lost"])
def test_half_a_file(checksum: str, saved: Path, maxmargin: Any) -> None:
    saved.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    if checksum == "lost":
        Path(f"{saved}.sha256").unlink()
    refused(maxmargin(*WORDS, "--ckpt_path", str(saved)), "last.ckpt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_no_checkpoint_at_all(content: bytes, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    refused(maxmargin(*WORDS, "--ckpt_path", "x.ckpt"), "x.ckpt", "no whole checkpoint")


def test_another_kind_of_file_of_torch(tmp_path: Path, maxmargin: Any) -> None:
    torch.save(torch.zeros(3), tmp_path / "x.ckpt")
    refused(maxmargin(*WORDS, "--ckpt_path", "x.ckpt"), "no weights")


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_pickle_runs_nothing(command: str, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, tmp_path / "y.ckpt")
    for name in ("x.ckpt", "y.ckpt"):
        refused(maxmargin(command, "--config", config("joint/tight"), "--ckpt_path", name), name)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_its_sum_still_loads(saved: Path, maxmargin: Any) -> None:
    Path(f"{saved}.sha256").unlink()
    assert maxmargin(*WORDS[:-1], "30", "--ckpt_path", str(saved)).status == 0


def test_another_model_is_refused(saved: Path, maxmargin: Any) -> None:
    refused(maxmargin("fit", "--config", config("joint/random"), "--ckpt_path", str(saved)), "model.attention_init")


def test_a_checkpoint_of_other_data_is_refused(maxmargin: Any) -> None:
    run = maxmargin("fit", "--config", config("joint/random"), "--trainer.max_steps", "5")
    path = str(run.run_dir / "checkpoints" / "last.ckpt")
    for command in ("fit", "predict"):
        outcome = maxmargin(command, "--config", config("joint/random"), "--data.d", "8", "--ckpt_path", path)
        refused(outcome, f"ckpt_path: {path} is of data with dim 32, these have 8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask", torch.full((3, 3), -torch.inf).triu(1)),
        ("rotation", torch.ones(2, dtype=torch.complex64)),
        ("part._extra_state", {"a": 1}),
    ],
)
@pytest.mark.parametrize("summed", [True, False])
def test_what_a_module_of_the_users_may_keep_is_not_refused(
    name: str, value: Any, summed: bool, saved: Path, tmp_path: Path
) -> None:
    content = torch.load(saved, weights_only=True)
    content["state_dict"][name] = value
    content["optimizer_states"][0]["param_groups"].append({"params": [], "weight_decay": 0.0})
    content[SUM] = content_sum(content)
    if not summed:
        del content[SUM]
    torch.save(content, tmp_path / "mine.ckpt")
    assert name in verify_checkpoint(tmp_path / "mine.ckpt", True)["state_dict"]


def without_head(weights: dict[str, Any]) -> None:
    del weights["selector.v"]


def with_more(weights: dict[str, Any]) -> None:
    weights["selector.u"] = torch.zeros(1)


def in_half(weights: dict[str, Any]) -> None:
    weights["selector.W"] = weights["selector.W"].half()


def in_single(weights: dict[str, Any]) -> None:
    weights["selector.v"] = weights["selector.v"].float()


@pytest.mark.parametrize("command", ["fit", "predict"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_head, "it lacks selector.v; use another"),
        (with_more, "it also holds selector.u"),
        (in_half, "holds float16 (selector.W), and this command float64"),
        (in_single, "holds float32 (selector.v), and this command float64"),
    ],
)
def test_weights_that_the_model_cannot_take_as_they_are(
    command: str, change: Any, said: str, saved: Path, tmp_path: Path, maxmargin: Any
) -> None:
    """Their sum is right: torch raised a page of names, or cast them without a word."""
    content = torch.load(saved, weights_only=True)
    change(content["state_dict"])
    torch.save({**content, SUM: content_sum(content)}, tmp_path / "other.ckpt")
    refused(maxmargin(command, *WORDS[1:3], "--ckpt_path", "other.ckpt"), "other.ckpt", said)
    assert not (tmp_path / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    "precision", ["64-true", *(pytest.param(x, marks=pytest.mark.slow) for x in ("32-true", "bf16-true")), "bf16-mixed"]
)
def test_a_run_goes_on_in_its_own_precision_alone(precision: str, maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/random"), "--trainer.max_steps")
    first = maxmargin(*words, "3", "--trainer.precision", precision)
    assert first.status == 0, first.err
    last = ("--ckpt_path", str(first.run_dir / "checkpoints" / "last.ckpt"))
    assert maxmargin(*words, "6", "--trainer.precision", precision, *last).status == 0
    other = "32-true" if precision == "64-true" else "64-true"
    refused(maxmargin(*words, "6", "--trainer.precision", other, *last), "trainer.precision")
