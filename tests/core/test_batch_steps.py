"""Compiled steps of ensembles beside torch's: the same numbers to rounding, whatever is trained and how it is cut."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin.core import LOSSES, MarginLoss, batch_steps, compiler, ensemble
from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.batch_directions import MIN_WEIGHT_SUM, instance_directions
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.updates import UPDATES
from lightning_maxmargin.errors import InputError

SHAPES = {
    "a few": (3, 4, 5, 6),
    "more than lanes": (21, 3, 4, 7),
    # 40 sequences of 60 tokens of 33 numbers are 650 kB in float64: lanes are then sequences of one instance.
    "large": (2, 40, 60, 33),
}


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        compiler.library(batch_steps.HERE / "batch_steps.cpp", batch_steps.HERE / "lanes.h")
    except compiler.CompileError as error:
        pytest.skip(str(error))


def problem(
    shape: tuple[int, int, int, int], queries: bool = False, masked: bool = False, values: bool = False
) -> Instances:
    """Unit tokens, of another instance each; with a mask the last sequence of each only fills."""
    B, n, T, d = shape
    g = torch.Generator().manual_seed(sum(shape))

    def unit(*sizes: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*sizes, generator=g, dtype=torch.float64), dim=-1)

    keys, labels = unit(B, n, T, d), torch.randint(2, (B, n), generator=g).double() * 2 - 1
    mask = None
    if masked:
        mask = torch.rand(B, n, T, generator=g) < 0.7
        mask[:, -1] = False
        mask[..., 0] = True
        labels[:, -1] = 0
        keys[~mask] = 1e30
    return Instances.stack(
        keys, labels, values=unit(B, n, T, d - 2) if values else None, queries=unit(B, n, d - 1) if queries else None,
        mask=mask,
    )  # fmt: skip


def pair(data: Instances, **options: Any) -> tuple[EnsembleState, EnsembleState]:
    """The same ensemble by compiled steps and by torch alone."""
    g = torch.Generator().manual_seed(0)
    d, dv, B = len(data.keys), len(data.values), data.keys.shape[-1]
    shape = (d, B) if data.queries is None else (d, len(data.queries), B)
    start = {"attention": torch.randn(shape, generator=g).double(), "head": torch.randn(dv, B, generator=g).double()}
    made = [EnsembleState(data, **start, compile=x, **options) for x in (True, False)]
    return made[0], made[1]


def assert_same(ours: EnsembleState, theirs: EnsembleState, tolerance: float) -> None:
    assert ours.steps == theirs.steps
    for name in ("attention", "head", "loss_now"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=tolerance, atol=tolerance)
    for name, kept in theirs.remembered.items():
        for key, x in kept.items():
            torch.testing.assert_close(ours.remembered[name][key], x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("train", ["both", "attention", "head"])
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SHAPES)
def test_steps_are_those_of_torch(size: str, masked: bool, queries: bool, train: str) -> None:
    data = problem(SHAPES[size], queries, masked, values=masked)
    rates = torch.linspace(0.1, 1.0, data.keys.shape[-1], dtype=torch.float64)
    ours, theirs = pair(data, train=train, attention_lr=rates, head_lr=0.2)
    assert ours._compiled is not None
    assert ours._compiled._one == (size == "large")
    for state in (ours, theirs):
        state.run(30)
    assert_same(ours, theirs, 1e-11)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("loss", ["logistic", "exponential", ["logistic", "correlation", "exponential"]])
def test_every_rule_and_loss(update: str, loss: str | list[str]) -> None:
    if update in ("polyak", "adam") and not isinstance(loss, str):
        with pytest.raises(InputError, match="gradient of log L"):
            pair(problem(SHAPES["a few"], queries=True), update=update, loss=loss)
        return
    data = problem(SHAPES["a few"], queries=True)
    ours, theirs = pair(data, update=update, loss=loss, attention_lr=0.03, head_lr=0.05)
    scales = [(1 + step) ** -0.5 for step in range(20)]
    for state in (ours, theirs):
        state.run(20, rate_scales=scales)
    assert ours.rate_scale == theirs.rate_scale == scales[-1]
    assert_same(ours, theirs, 1e-9)


@pytest.mark.parametrize("update", ["normalized", "accelerated", "sign", "spectral"])
@pytest.mark.parametrize("size", SHAPES)
def test_cuts_and_neighbours_change_nothing(size: str, update: str) -> None:
    """A run that goes on from a checkpoint, or shares its instances with other processes, has the same bits."""
    data = problem(SHAPES[size]).to(torch.float32)
    whole, cut = (pair(data, update=update)[0] for _ in range(2))
    whole.run(ensemble.STEPS_A_CALL + 30)
    cut.run(7)
    cut.step()
    cut.run(ensemble.STEPS_A_CALL + 22)
    last = Instances(data.keys[..., -1:].clone(), data.values[..., -1:].clone(), data.labels[:, -1:].clone())
    start = pair(data, update=update)[0]
    alone = EnsembleState(last, start.attention[..., -1:], start.head[..., -1:], update=update, compile=True)
    alone.run(ensemble.STEPS_A_CALL + 30)
    for name in ("attention", "head"):
        assert torch.equal(getattr(whole, name), getattr(cut, name)), name
        # Other rules are torch's, whose sums depend on where an instance lies.
        if update != "spectral":
            assert torch.equal(getattr(whole, name)[..., -1:], getattr(alone, name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SHAPES)
def test_directions_where_weights_hide_in_rounding(dtype: torch.dtype, size: str) -> None:
    """Tokens as good as the selected one leave weights of 0 at large norms: the logarithms then decide."""
    data = problem(SHAPES[size]).to(dtype)
    # The second best token is worth what the best one is; only the third sets them apart.
    head = torch.zeros(len(data.keys), data.keys.shape[-1], dtype=dtype)
    head[0] = 1.0
    data.keys[0] = -1.0
    data.keys[0, :2] = 0.0
    data.keys[1] = torch.tensor([4.0, 3.0, *[0.0] * (data.keys.shape[1] - 2)], dtype=dtype)[:, None, None]
    data = Instances(data.keys, data.keys, data.labels.abs())
    attention = torch.zeros_like(head)
    attention[1] = 200.0 if dtype == torch.float32 else 2000.0
    made = [EnsembleState(data, attention, head, train="attention", compile=x) for x in (True, False)]
    a, gamma = (torch.einsum("dtnb,db->tnb", data.keys, w) for w in (attention, head))
    plain = (a - a.amax(0)).exp2()
    drift = (plain * (gamma - gamma[0])).sum(0)
    assert float((plain * (gamma - gamma[0] - drift)).abs().sum((0, 1)).amax()) < MIN_WEIGHT_SUM
    ours, theirs = (state.step() for state in made)
    assert float(theirs.attention.abs().amax()) > 0
    torch.testing.assert_close(ours.attention, theirs.attention, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.log_attention, theirs.log_attention, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("size", SHAPES)
def test_copies_of_the_selected_key(size: str, near: bool) -> None:
    data = problem(SHAPES[size], values=True)
    data.keys[:, 1] = data.keys[:, 0] * (1 + 1e-9 * near)
    attention = 1e3 * data.keys[:, 0, 0].clone()
    states = [EnsembleState(data, attention, torch.ones_like(data.values[:, 0, 0]), compile=x) for x in (True, False)]
    assert data.copies[1] == near
    ours, theirs = (state.step() for state in states)
    torch.testing.assert_close(ours.attention, theirs.attention, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.head, theirs.head, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.log_attention, theirs.log_attention, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_directions_are_as_exact_as_torchs(dtype: torch.dtype) -> None:
    """At norms from 1 to 1e4, beside torch's in float64 of the same scores' model."""
    data = problem((32, 6, 8, 10))
    errors = []
    for norm in (1.0, 30.0, 1e3, 1e4):
        # Of numbers that both dtypes have, so that rounding the input is no part of it.
        low = Instances.stack(*(x.permute(*reversed(range(x.ndim))).float() for x in (data.keys, data.labels)))
        w = (norm * torch.randn(10, 32, generator=torch.Generator().manual_seed(1))).float()
        true = EnsembleState(low.to(torch.float64), w, w, train="attention", compile=False, update="spectral").step()
        found = [
            EnsembleState(low.to(dtype), w, w, train="attention", compile=x, update="spectral").step()
            for x in (True, False)
        ]
        errors.append([float((g.attention.double() - true.attention).abs().max()) for g in found])
    for ours, torchs in errors:
        assert ours <= 2 * torchs + 64 * torch.finfo(dtype).eps


def test_weights_that_are_no_numbers_stay_so() -> None:
    ours, _ = pair(problem(SHAPES["more than lanes"]))
    ours.attention[0, 3] = float("nan")
    ours.run(5)
    bad = ~ours.attention.isfinite().all(0)
    assert bad.nonzero().flatten().tolist() == [3]


def test_a_copy_goes_its_own_way() -> None:
    ours, theirs = pair(problem(SHAPES["a few"]))
    other = copy.deepcopy(ours)
    ours.run(4)
    assert other.steps == 0
    for state in (other, theirs):
        state.run(9)
    assert_same(other, theirs, 1e-12)


def test_a_head_that_is_set_counts_from_refresh_on() -> None:
    ours, theirs = pair(problem(SHAPES["a few"]), train="attention")
    for state in (ours, theirs):
        state.run(3)
        state.head.neg_()
        state.refresh()
        state.run(3)
    assert_same(ours, theirs, 1e-12)


def test_without_a_compiler_torch_steps_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*paths: Path) -> None:
        raise compiler.CompileError("no C++ compiler (g++, clang++ or $CXX) was found")

    monkeypatch.setattr(batch_steps, "library", none)
    ensemble._say_once.cache_clear()
    data = problem(SHAPES["a few"])
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler") as said:
        states = [EnsembleState(data) for _ in range(2)]
    assert len(said) == 1
    states[0].run(2)
    with pytest.raises(InputError, match="compile: no C"):
        EnsembleState(data, compile=True)


def test_what_cannot_be_compiled() -> None:
    data = problem(SHAPES["a few"])
    smooth = LOSSES["logistic"]
    assert isinstance(smooth, MarginLoss)
    own = MarginLoss("own", smooth.value, smooth.log_slope, smooth.log_value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EnsembleState(data, loss=own)._compiled is None
    with pytest.raises(InputError, match="compile needs a CPU"):
        EnsembleState(data, loss=own, compile=True)
    with pytest.raises(InputError, match="compile 'yes' is none of"):
        EnsembleState(data, compile="yes")  # type: ignore[arg-type]


def test_a_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cpp").write_text("this is no C++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(compiler.CompileError, match=r"failed: .*error") as said:
        compiler.library(tmp_path / "broken.cpp")
    assert "\n" not in str(said.value)
    assert list((tmp_path / "cache").rglob("*.*o*")) == [], "nothing half made is left"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(compiler.CompileError, match="no C"):
        compiler.library(tmp_path / "another.cpp")


def test_the_library_is_kept_and_made_elsewhere_where_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiler.library(source).one() == 1
    compiler.library.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(compiler, "_compile", None)  # would fail if it were called
        assert compiler.library(source).one() == 1
    compiler.library.cache_clear()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler.library(source).one() == 1


def test_torch_alone_agrees_with_its_own_directions() -> None:
    """``compile=False`` is the road of other devices: no compiled code is asked."""
    _, state = pair(problem(SHAPES["a few"]))
    assert state._compiled is None
    g = state._directions()
    again = instance_directions(state.data, *(torch.einsum("dtnb,db->tnb", state.data.keys, w) * x for w, x in (
        (state.attention, 1.0), (state.head, state.data.labels))), state.loss)  # fmt: skip
    torch.testing.assert_close(g.attention, again.attention, rtol=1e-12, atol=1e-13)
