"""The Ensemble through Lightning: data, command line, checkpoints, two processes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from lightning_maxmargin import Ensemble
from lightning_maxmargin.core import LOSSES, Sequences
from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.losses import loss_by_instance
from lightning_maxmargin.core.stack import pack
from lightning_maxmargin.data import RandomInstances, SequenceData
from lightning_maxmargin.ensemble import train_ensemble
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import measured_by
from tests.conftest import config

RANDOM = ("fit", "--config", config("ensemble/random"), "--data.B", "30", "--trainer.precision", "64-true")


def fit(data: SequenceData, steps: int, devices: int = 1, **model: Any) -> Ensemble:
    module = Ensemble(dim=data.dim, query_dim=data.query_dim, **model)
    many: dict[str, Any] = {} if devices == 1 else {"strategy": "ddp_fork"}
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=devices, precision="64-true", logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, **many,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


# --- data ---------------------------------------------------------------------------------------------------------


def test_packing_keeps_every_sequence_and_its_order() -> None:
    data = RandomInstances(B=4, n=5, T=6, d=3, queries=True, ragged=True, seed=3).sequences("train")
    assert data is not None
    assert data.instance is not None
    assert data.mask is not None
    shuffled = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))]
    for d in (data, shuffled):
        packed = pack(d)
        assert packed.queries is not None
        assert packed.mask is not None
        for b in range(4):
            at = torch.nonzero(d.instance == b)[:, 0]
            live = packed.labels[b] != 0
            assert live.tolist() == [True] * len(at) + [False] * (packed.keys.shape[1] - len(at))
            assert torch.equal(packed.keys[b][live], d.keys[at])
            assert torch.equal(packed.queries[b][live], d.queries[at])  # type: ignore[index]
            assert torch.equal(packed.mask[b][live], d.mask[at])  # type: ignore[index]
            assert packed.mask[b].any(1).all()
            assert int(packed.mask[b][~live].sum()) == int((~live).sum())


def test_without_instances_all_sequences_are_of_one() -> None:
    packed = pack(Sequences(torch.randn(5, 3, 2), torch.ones(5)))
    assert packed.keys.shape == (1, 5, 3, 2)
    assert packed.mask is None
    assert packed.values is packed.keys


def test_the_draws_are_unit_and_repeats_are_copies() -> None:
    once, twice = (RandomInstances(B=3, n=4, T=5, d=6, seed=1, repeats=k) for k in (1, 2))
    a, b = once.sequences("train"), twice.sequences("train")
    assert a is not None
    assert b is not None
    assert torch.allclose(a.keys.norm(dim=-1), torch.ones(12, 5).double())
    x, y = pack(a), pack(b)
    assert torch.equal(x.keys.repeat_interleave(2, 0), y.keys)
    assert torch.equal(x.labels.repeat_interleave(2, 0), y.labels)
    assert once.head is not None
    assert twice.head is not None
    assert torch.equal(once.head.repeat_interleave(2, 0), twice.head)
    want = torch.where(torch.einsum("bntd,bd->bn", x.keys, once.head) >= 0, 1.0, -1.0)
    assert torch.equal(x.labels, want.double())


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [False, True])
def test_the_module_is_the_function(queries: bool) -> None:
    data = RandomInstances(B=8, n=3, T=4, d=5, queries=queries)
    module = fit(data, 130, train="attention", head_init="data")
    train = data.sequences("train")
    assert train is not None
    p = pack(train)
    want = train_ensemble(
        p.keys, p.labels, steps=130, queries=p.queries, head=data.head, dtype=torch.float64, train="attention",
        attention_lr=1.0, update="accelerated",
    )  # fmt: skip
    got = module.measure()
    assert torch.equal(got.selected, want.selected)
    assert torch.equal(got.direction_gap["strict"], want.direction_gap["strict"])
    assert module.state.steps == 130


def test_lists_are_assigned_cyclically() -> None:
    data = RandomInstances(B=4, n=3, T=4, d=5, repeats=2, labels="random")
    module = fit(data, 60, attention_lr=[0.1, 1.0], loss=["logistic", "correlation"], update="normalized", head_lr=0.2)
    one = RandomInstances(B=4, n=3, T=4, d=5, labels="random")
    for at, (rate, loss) in enumerate(((0.1, "logistic"), (1.0, "correlation"))):
        alone = fit(one, 60, attention_lr=rate, loss=loss, update="normalized", head_lr=0.2)
        torch.testing.assert_close(module.state.attention[..., at::2], alone.state.attention, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(module.state.head[..., at::2], alone.state.head, rtol=1e-10, atol=1e-12)
    assert module.assigned()["attention_lr"] == [0.1, 1.0] * 4
    assert set(module.assigned()) == {"attention_lr", "loss"}


def test_a_loss_by_instance_is_each_ones_loss() -> None:
    names = ["correlation", "logistic", "exponential", "logistic"]
    m = torch.linspace(-3, 60, 12, dtype=torch.float64).view(3, 4)
    mixed = loss_by_instance(names)
    for b, name in enumerate(names):
        assert torch.equal(mixed.value(m)[:, b], LOSSES[name].value(m)[:, b])  # type: ignore[union-attr]
        assert torch.equal(mixed.log_slope(m)[:, b], LOSSES[name].log_slope(m)[:, b])  # type: ignore[union-attr]
    assert loss_by_instance(["logistic"] * 2) is LOSSES["logistic"]
    with pytest.raises(InputError, match="cross_entropy"):
        loss_by_instance(["cross_entropy"])


def test_ragged_instances_are_what_they_are_alone() -> None:
    data = RandomInstances(B=6, n=4, T=5, d=6, ragged=True, labels="random", seed=2)
    train = data.sequences("train")
    assert train is not None
    module = fit(data, 200, attention_init="normal")
    result = module.measure()
    for b in range(6):
        rows = train[torch.nonzero(train.instance == b)[:, 0]]
        start = module._start("normal", (6,), 0)[b]
        alone = train_ensemble(
            rows.keys[None], rows.labels[None], steps=200, mask=rows.mask[None],  # type: ignore[index]
            dtype=torch.float64, attention_lr=1.0, head_lr=1.0, update="accelerated", attention=start[:, None],
        )  # fmt: skip
        assert result.selected[b, : len(rows)].tolist() == alone.selected[0].tolist()
        for limit, gap in alone.direction_gap.items():
            got, want = float(result.direction_gap[limit][b]), float(gap)
            assert (got != got and want != want) or abs(got - want) <= 1e-6 * max(1e-3, want), limit


@pytest.mark.slow
def test_two_processes_share_the_instances(tmp_path: Path, maxmargin: Any) -> None:
    words = (*RANDOM, "--trainer.max_steps", "300", "--model.train", "both", "--data.B", "31")
    one = maxmargin(*words)
    two = maxmargin(*words, "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork")
    assert two.status == 0, two.err
    for key in measured_by("ensemble"):
        if key not in ("monitor/seconds", "monitor/final_seconds"):
            assert two.summary[key] == one.summary[key], key
    assert (one.run_dir / "instances.csv").read_text() == (two.run_dir / "instances.csv").read_text()
    saved = [torch.load(o.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["ensemble"] for o in (one, two)]
    assert all(torch.equal(saved[0][k], saved[1][k]) for k in saved[0])


# --- the command line ---------------------------------------------------------------------------------------------


def test_from_the_config_to_the_report(maxmargin: Any) -> None:
    outcome = maxmargin(*RANDOM, "--trainer.max_steps", "2000", "--report", "true")
    assert outcome.status == 0, outcome.err
    s = outcome.summary
    assert s["ensemble/instances"] == 30
    assert s["ensemble/settled"] > 0.9
    assert s["ensemble/global"] + s["ensemble/local"] + s["ensemble/neither"] == pytest.approx(1)
    assert s["ensemble/certified"] == 1
    assert s["direction_gap/strict"] < 1e-6
    rows = list(csv.DictReader((outcome.run_dir / "instances.csv").read_text().splitlines()))
    assert len(rows) == 30
    settled = [float(r["direction_gap/strict"]) for r in rows if r["settled"] == "1"]
    # torch's median is the lower of the two in the middle.
    assert sorted(settled)[(len(settled) - 1) // 2] == s["direction_gap/strict"]
    page = (outcome.run_dir / "report.html").read_text()
    assert "Of 30 instances" in page
    assert (outcome.run_dir / "figures" / "ensemble.png").stat().st_size > 10_000
    assert "converged" in outcome.out
    metrics = (outcome.run_dir / "metrics.csv").read_text().splitlines()
    assert "ensemble/settled" in metrics[0]
    assert len(metrics) > 8


def test_a_resumed_ensemble_is_the_whole_one(maxmargin: Any) -> None:
    words = (*RANDOM, "--data.queries", "true", "--model.train", "both")
    whole = maxmargin(*words, "--trainer.max_steps", "250")
    part = maxmargin(*words, "--trainer.max_steps", "77")
    last = str(part.run_dir / "checkpoints" / "last.ckpt")
    resumed = maxmargin(*words, "--trainer.max_steps", "250", "--ckpt_path", last)
    assert resumed.status == 0, resumed.err
    a, b = (torch.load(o.run_dir / "checkpoints" / "last.ckpt", weights_only=True) for o in (whole, resumed))
    assert a["ensemble_steps"] == b["ensemble_steps"] == 250
    assert all(torch.equal(a["ensemble"][k], b["ensemble"][k]) for k in a["ensemble"])
    assert (whole.run_dir / "instances.csv").read_text() == (resumed.run_dir / "instances.csv").read_text()
    other = maxmargin(*words, "--data.B", "29", "--ckpt_path", last)
    assert other.status == 2
    assert "no such ensemble" in other.error
    assert not other.run_dir.exists()


def test_own_arrays(tmp_path: Path, maxmargin: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = {"keys": rng.normal(size=(9, 4, 6)), "labels": np.tile([1.0, -1.0, 1.0], 3)}
    np.savez(tmp_path / "data.npz", **arrays, instance=np.repeat([0, 1, 2], 3))
    outcome = maxmargin("fit", "--data", "TensorData", "--data.path", "data.npz", "--model", "Ensemble",
                        "--trainer.max_steps", "500")  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert outcome.summary["ensemble/instances"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.attention_lr", "[]"], "model.attention_lr"),
        (["--model.head_lr", "[1.0, -1.0]"], "model.head_lr"),
        (["--model.loss", "cross_entropy"], "model.loss"),
        (["--model.updat", "normalized"], "did you mean model.update"),
        (["--model.inner_steps", "0"], "model.inner_steps"),
        (["--data.B", "0"], "data.B"),
        (["--model.attention_lr", ".inf"], "model.attention_lr"),
        (["--model.init_std", ".nan"], "model.init_std"),
        (["--data.B", "2", "--model.attention_lr", "[1.0, 2.0, 3.0]"], "3 entries for 2 instances"),
        (["--data.T", "1", "--data.ragged", "true"], "data.T"),
        (["--data.class_path", "RandomData", "--data.seed", "0", "--data.num_classes", "3"], "classes"),
        (["--data.class_path", "PaperData", "--data.example", "joint_tight"], "head_init"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("ensemble/random"), *words)
    assert outcome.status == 2, outcome.err
    assert said in outcome.error
    assert not outcome.run_dir.exists()


def test_an_ensemble_is_fitted_and_nothing_else(maxmargin: Any) -> None:
    words = ("--config", config("ensemble/random"), "--data.B", "5")
    part = maxmargin("fit", *words, "--trainer.max_steps", "5")
    last = str(part.run_dir / "checkpoints" / "last.ckpt")
    outcome = maxmargin("predict", *words, "--ckpt_path", last)
    assert outcome.status == 2
    assert "by fit" in outcome.error


def test_no_steps_and_few_settled_are_said(maxmargin: Any) -> None:
    none = maxmargin(*RANDOM, "--trainer.max_steps", "0")
    assert none.status == 2
    assert "trainer.max_steps: 0 trains nothing" in none.error
    few = maxmargin(*RANDOM, "--trainer.max_steps", "2")
    assert "have converged after 2 steps" in few.summary["message"]


def test_weights_that_are_not_finite_end_the_fit(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_maxmargin.core.ensemble import EnsembleState

    real = EnsembleState.run

    def broken(self: EnsembleState, *args: Any, **options: Any) -> Any:
        self.attention[:, 3] = float("nan")
        return real(self, *args, **options)

    monkeypatch.setattr(EnsembleState, "run", broken)
    outcome = maxmargin(*RANDOM, "--trainer.max_steps", "50")
    assert outcome.status == 1
    assert "the weights of an ensemble are not finite at step" in outcome.error
    assert "instances 3" in outcome.error


def test_a_checkpoint_can_be_loaded_without_a_fit(maxmargin: Any) -> None:
    part = maxmargin(*RANDOM, "--trainer.max_steps", "5")
    loaded = Ensemble.load_from_checkpoint(part.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert loaded.hparams["dim"] == 10


def test_a_rate_that_overflows_is_refused(maxmargin: Any) -> None:
    run = maxmargin(*RANDOM, "--trainer.max_steps", "50", "--model.attention_lr", "1e308")
    assert run.status == 2
    assert "model.attention_lr: 1e+308 is too large for torch.float64" in run.error
    assert not run.run_dir.exists()


def test_rates_keep_their_digits() -> None:
    """.1 is not float32's .1000000015: the head's first step from zero is one rate long."""
    module = fit(RandomInstances(B=3, seed=0), 1, attention_lr=0.1, head_lr=0.1, update="normalized", train="both")
    torch.testing.assert_close(
        module.state.head.norm(dim=0), torch.full((3,), 0.1, dtype=torch.float64), rtol=1e-12, atol=0
    )


SPECTRAL = {"class_path": "lightning_maxmargin.core.updates.Spectral", "init_args": {"momentum": 0.9}}


@pytest.mark.parametrize("rule", [pytest.param("signum", marks=pytest.mark.slow), SPECTRAL], ids=["name", "class_path"])
def test_any_rule_trains_and_resumes_bit_by_bit(rule: object, tmp_path: Path, maxmargin: Any) -> None:
    text = yaml.safe_load(Path(config("ensemble/random")).read_text())
    text["model"]["init_args"]["update"] = rule
    text["model"]["init_args"]["attention_lr"] = 0.01
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(text))
    words = ("fit", "--config", str(tmp_path / "own.yaml"), "--data.B", "4", "--data.queries", "true")
    words += ("--model.query_dim", "10")
    whole = maxmargin(*words, "--trainer.max_steps", "40")
    assert whole.status == 0, whole.err
    part = maxmargin(*words, "--trainer.max_steps", "20")
    last = str(part.run_dir / "checkpoints" / "last.ckpt")
    resumed = maxmargin(*words, "--trainer.max_steps", "40", "--ckpt_path", last)
    assert resumed.status == 0, resumed.err
    paths = [run.run_dir / "checkpoints" / "last.ckpt" for run in (whole, resumed)]
    ends = [torch.load(path, weights_only=True)["ensemble"] for path in paths]
    assert set(ends[0]) == {"attention", "head", "attention/average"}
    for name, x in ends[0].items():
        assert torch.equal(x, ends[1][name]), name


def test_an_older_checkpoint_goes_on_where_it_was() -> None:
    """Averages of directions, which are minus the gradients: momentum_attention became attention/momentum."""
    model = Ensemble(dim=3, train="attention")
    keys = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    states = [EnsembleState(Instances.stack(keys, torch.ones(2, 3)), train="attention", update="accelerated",
                            head=torch.ones(3, 2)) for _ in range(2)]  # fmt: skip
    states[0].run(5)
    old = {"attention": states[0].attention, "head": states[0].head, "momentum_head": torch.zeros(3, 2)}
    old["momentum_attention"] = -states[0].remembered["attention"]["momentum"]
    model.state, model.count, model.at = states[1], 2, torch.arange(2)
    model.on_load_checkpoint({"ensemble": old, "ensemble_steps": 5})
    for state in states:
        state.run(5)
    assert torch.equal(states[0].attention, states[1].attention)
