"""Every shipped config runs, says what each key is for, and reaches its limit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_maxmargin.keys import measured_by
from lightning_maxmargin.text.packages import MINILM
from tests.conftest import ROOT, config

CONFIGS = sorted(str(p.relative_to(ROOT / "configs"))[:-5] for p in (ROOT / "configs").rglob("*.yaml"))
# Of the selector; these fill their run directory where they reach their limit.
REACHED = ("joint/tight", "attention/single_local", "attention/losses")
TASKS = [c for c in CONFIGS if c.startswith(("joint/", "attention/")) and c not in REACHED]
# As long as the config says, for one of each kind: ten seconds. scripts/claims.py measures all of them (of attention/
# visual1 alone: the others are trained by maxmargin reproduce). The same bounds hold after fewer steps.
FULL = pytest.param((), marks=pytest.mark.slow, id="full length")


MISSING = [name for name in ("transformers", MINILM) if find_spec(name) is None]
needs_text = pytest.mark.skipif(bool(MISSING), reason=f"the text extra is missing: {', '.join(MISSING)}")


def short(number: int) -> tuple[str, ...]:
    return ("--trainer.max_steps", str(number))


def slow(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


def steps(number: int, *words: str) -> Any:
    return pytest.param(("--trainer.max_steps", str(number), *words), id=f"{number} steps")


def test_there_are_configs_for_the_whole_contract() -> None:
    named = {
        *(f"joint/{x}" for x in ("tight", "relaxed", "random")),
        *(f"attention/{x}" for x in ("single_global", "single_local", "multi", "losses", "visual1", "visual2")),
        "tensor",
        *(f"text/{x}" for x in ("planted", "planted_sentences", "reviews", "finetune", "rationale")),
        *(f"text/symptoms/{x}" for x in ("stuck", "too_long", "too_much_decay", "too_short")),
        *(f"text/symptoms/{x}" for x in ("spurious_cue", "rare_label", "truncated")),
    }
    assert named <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_commented(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    if name.startswith("reproduce/"):
        # A claim says in its own words what it is.
        text = text[text.index("settings:") : text.index("claims:")]
    for number, line in enumerate(text.splitlines(), 1):
        holds_a_value = ":" in line.split("#")[0] and not line.split("#")[0].rstrip().endswith(":")
        assert not holds_a_value or "#" in line, f"{name}.yaml line {number} has no comment: {line}"


def assert_fills_the_run_directory(outcome: Any) -> None:
    assert outcome.status == 0, outcome.err
    assert set(outcome.summary) == set(measured_by("selector", "ensemble", "run"))
    assert all(v is None or isinstance(v, int | float | str) for v in outcome.summary.values())
    for file in ("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt", "report.html"):
        assert (outcome.run_dir / file).is_file(), file
    assert "run_dir" not in yaml.safe_load((outcome.run_dir / "config.yaml").read_text())


# Two of them reach their limit in a slow test, as attention/visual1 does.
@pytest.mark.parametrize(
    "name", [slow(c) if c in ("attention/single_global", "attention/visual2") else c for c in TASKS]
)
def test_config_runs_and_fills_the_run_directory(name: str, maxmargin: Any) -> None:
    words = ("--config", config(name), "--trainer.max_steps", "30", "--report", "true")
    assert_fills_the_run_directory(maxmargin("fit", *words))


def of_text(name: str) -> Any:
    """Those of a symptom are text/finetune with other numbers."""
    return pytest.param(name, marks=pytest.mark.slow) if "symptoms" in name and "stuck" not in name else name


@needs_text
@pytest.mark.parametrize("name", [of_text(c) for c in CONFIGS if c.startswith("text/") and "planted" not in c])
def test_config_of_text_runs(name: str, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "own.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 10)
    words = ("--data.train", "own.csv", "--data.test", "own.csv", "--trainer.max_epochs", "1")
    outcome = maxmargin("fit", "--config", config(name), *words, "--data.cache_dir", str(tmp_path))
    assert outcome.status == 0, outcome.err
    assert "test/accuracy" in outcome.summary
    assert (outcome.run_dir / "model" / "config.json").is_file()


@pytest.mark.parametrize("length", [steps(500), FULL])
def test_tight_reaches_the_strict_limit(length: tuple[str, ...], maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/tight"), "--report", "true", *length)
    assert_fills_the_run_directory(outcome)
    s = outcome.summary
    assert s["direction_gap/strict"] <= 1e-6
    assert s["direction_gap/head"] <= 1e-6
    assert (s["status/attention"], s["status/head"]) == ("certified", "certified")


# At ten times the rates of the config the norm is as large after a tenth of its steps.
FASTER = (*short(1200), "--model.attention_lr", "1.0", "--model.head_lr", "1.0")


@pytest.mark.parametrize(
    ("precision", "length"),
    [("64-true", FASTER), ("32-true", FASTER), ("bf16-mixed", FASTER), slow("64-true", ())],
    ids=["64-true", "32-true", "bf16-mixed", "64-true, full length"],
)
def test_relaxed_reaches_the_relaxed_limit_in_every_precision(
    precision: str, length: tuple[str, ...], maxmargin: Any
) -> None:
    s = maxmargin("fit", "--config", config("joint/relaxed"), "--trainer.precision", precision, *length).summary
    assert s["norm/attention"] > 1000
    assert s["direction_gap/relaxed"] <= (1e-6 if precision == "64-true" else 1e-3)
    assert s["direction_gap/strict"] > 1e-2
    assert s["relative_margin/attention"] == pytest.approx(1, abs=1e-3)
    assert s["message"] == ""


# Saturated at step 631 in float64, earlier in float32: nothing moves afterwards.
@pytest.mark.parametrize(
    ("precision", "length"),
    [("64-true", short(1000)), ("32-true", short(1000)), slow("64-true", ())],
    ids=["64-true", "32-true", "64-true, full length"],
)
def test_naive_gradient_stalls_and_the_summary_says_so(precision: str, length: tuple[str, ...], maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/relaxed"), "--model.gradient", "naive", "--trainer.precision", precision)
    s = maxmargin(*words, *length).summary
    assert s["direction_gap/relaxed"] > 1e-2
    assert s["direction_gap/strict"] < 1e-4, "the artefact: the wrong limit"
    assert "stalled" in s["message"]


@pytest.mark.parametrize(
    "length",
    [steps(400, "--monitor.per_decade", "20"), pytest.param(short(3000), marks=pytest.mark.slow, id="3000 steps")],
)
def test_p_and_W_walk_the_same_path(length: tuple[str, ...], maxmargin: Any) -> None:
    words = ("fit", "--config", config("joint/relaxed"), *length)
    p = np.load(maxmargin(*words, "--model.parametrization", "p").run_dir / "paths.npz")
    assert len(p["step"]) > 30
    for prompt in ("[1.0, 0.0]", "[0.3, -0.7]"):
        W = np.load(maxmargin(*words, "--model.prompt", prompt).run_dir / "paths.npz")
        np.testing.assert_array_equal(W["step"], p["step"])
        # W(0) = p(0) z' and a unit prompt: p = W z at every logged step.
        np.testing.assert_allclose(W["attention"], p["attention"], rtol=1e-10, atol=1e-10, err_msg=prompt)
        np.testing.assert_allclose(W["head"], p["head"], rtol=1e-10, atol=1e-10, err_msg=prompt)


@pytest.mark.parametrize(
    ("seed", "length"),
    [(0, short(1300)), (6, short(600)), slow(9, short(600)), slow(12, short(600)), slow(0, ())],
    ids=["0", "6", "9", "12", "0, full length"],
)
def test_random_settles_at_the_rate_coupled_limit(seed: int, length: tuple[str, ...], maxmargin: Any) -> None:
    s = maxmargin("fit", "--config", config("joint/random"), "--data.seed", str(seed), *length).summary
    assert s["direction_gap/rate_coupled"] <= 1e-5
    assert s["direction_gap/strict"] > 10 * s["direction_gap/rate_coupled"]
    assert s["direction_gap/relaxed"] > 10 * s["direction_gap/rate_coupled"]
    assert s["svm/limit"] == "rate_coupled"


@pytest.mark.parametrize(
    ("name", "selected", "length"),
    [
        ("single_local", "1", short(1000)),
        slow("multi", "0 0 0", short(2000)),
        ("losses", "1 1", short(500)),
        slow("single_global", "0", short(2000)),
        slow("visual1", "0 2", short(4500)),
        slow("visual2", "0 0", short(2000)),
        slow("single_local", "1", ()),
    ],
)
def test_attention_reaches_its_svm(name: str, selected: str, length: tuple[str, ...], maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config(f"attention/{name}"), "--report", "true", *length)
    assert_fills_the_run_directory(outcome)
    s = outcome.summary
    assert s["selection/tokens"] == selected
    assert s["direction_gap/attention"] <= 1e-4
    assert s["status/attention"] == "certified"


def test_own_arrays(tmp_path: Path, maxmargin: Any) -> None:
    rng = np.random.default_rng(0)
    keys, labels = rng.normal(size=(6, 4, 5)), np.array([1, -1, 1, -1, 1, -1])
    np.savez(tmp_path / "data.npz", keys=keys, labels=labels)
    np.savez(tmp_path / "test.npz", keys=keys[:3], labels=labels[:3])
    paths = ("--data.path", "data.npz", "--data.test_path", "test.npz")
    outcome = maxmargin("fit", "--config", config("tensor"), *paths, "--trainer.max_steps", "500")
    assert outcome.status == 0, outcome.err
    assert outcome.summary["test/accuracy"] == 1.0
    assert outcome.summary["status/attention"] == "certified"


def test_three_classes(tmp_path: Path, maxmargin: Any) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", keys=rng.normal(size=(6, 4, 12)), labels=np.array([0, 1, 2, 0, 1, 2]))
    words = ["--data.num_classes", "3", "--model.loss", "cross_entropy", "--model.gradient", "centred"]
    words += ["--model.optimizer", "NormalizedGD", "--trainer.max_steps", "500"]
    outcome = maxmargin("fit", "--config", config("tensor"), "--data.path", "data.npz", *words)
    assert outcome.status == 0, outcome.err
    assert outcome.summary["status/head"] == "certified"
    assert outcome.summary["direction_gap/head"] < 0.05
