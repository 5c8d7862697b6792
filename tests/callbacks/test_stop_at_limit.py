"""A run ends by itself at its limit, or says why it has none."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_maxmargin.callbacks import MarginMonitor, StopAtLimit
from lightning_maxmargin.callbacks.stop_at_limit import farthest
from lightning_maxmargin.errors import InputError
from tests.conftest import config

STOP = "--trainer.callbacks={class_path: lightning_maxmargin.callbacks.StopAtLimit, init_args: {gap: 1e-6}}"
RUN = ("fit", "--config", config("joint/random"), STOP)


def rows(*gaps: float | None, first: int = 1000) -> list[dict[str, Any]]:
    return [{"step": first + 100 * i, "direction_gap/attention": gap} for i, gap in enumerate(gaps)]


def after(callback: StopAtLimit, history: list[dict[str, Any]]) -> str | None:
    """What it says when it has looked at these."""
    monitor = MarginMonitor()
    monitor.history = history
    trainer: Any = SimpleNamespace(callbacks=[monitor], should_stop=False)
    callback.on_train_batch_end(trainer)
    assert trainer.should_stop == (callback.stopping_reason_message is not None)
    return callback.stopping_reason_message


def test_a_run_stops_where_both_are_near_enough(maxmargin: Any) -> None:
    outcome = maxmargin(*RUN, "--trainer.max_steps", "100000")
    assert outcome.status == 0, outcome.err
    s = outcome.summary
    assert s["steps"] < 20_000
    assert s["message"].startswith(f"Stopped early at step {s['steps']:,} of 100,000: converged: the direction gap is")
    assert max(s["direction_gap/rate_coupled"], s["direction_gap/head"]) <= 1e-6
    # It stops at the step that was measured, not a batch later: the numbers said are those of the end.
    told = f"is {s['direction_gap/rate_coupled']:.1e} of the attention and {s['direction_gap/head']:.1e} of the head"
    assert told in s["message"]


def test_a_run_without_a_hard_selection_says_so(maxmargin: Any) -> None:
    sizes = ("--data.n", "30", "--data.T", "6", "--data.d", "32", "--data.seed", "1")
    # Ten evaluations, as by default, take six seconds.
    impatient = STOP.replace("gap: 1e-6", "gap: 1e-6, patience: 3")
    outcome = maxmargin(*RUN[:3], impatient, *sizes, "--trainer.max_steps", "200000")
    assert outcome.status == 0, outcome.err
    s = outcome.summary
    assert s["steps"] < 200_000
    assert "not converged: from step" in s["message"]


def test_what_it_says() -> None:
    assert (
        after(StopAtLimit(patience=3), rows(1e-2, 1e-3, 1e-7))
        == "converged: the direction gap is 1.0e-07 of the attention"
    )
    told = after(StopAtLimit(patience=3), rows(1e-2, 9e-3, 8e-3, 7e-3))
    assert told is not None
    assert told.startswith("not converged: from step 1,000 to 1,300 it has come no nearer by half")
    assert after(StopAtLimit(patience=3), rows(1e-2, 9e-3, 4e-3, 3e-3, 3e-3)) is None
    assert after(StopAtLimit(patience=3), rows(*[1e-2] * 9, first=100)) is None  # of which one is past min_steps
    told = after(StopAtLimit(patience=2), [{"step": 2000 + i} for i in range(4)])
    assert told is not None
    assert "no limit is certified" in told


def test_a_run_that_had_too_few_steps_says_so(maxmargin: Any) -> None:
    s = maxmargin(*RUN, "--trainer.max_steps", "300").summary
    assert s["message"].startswith(
        "Ended at step 300 of 300: not converged in as many steps as it was given; the direction gap is"
    )


def test_one_evaluation_is_counted_once() -> None:
    callback = StopAtLimit(patience=2)
    history = rows(1e-2, 1e-2)
    for _ in range(5):
        assert after(callback, history) is None
    assert after(callback, [*history, *rows(1e-2)]) is not None


@pytest.mark.parametrize(
    ("row", "far"),
    [
        ({"direction_gap/attention": 1e-3, "status/head": None}, 1e-3),
        ({"direction_gap/attention": 1e-9, "direction_gap/rate_coupled": 1e-3}, 1e-3),
        ({"direction_gap/attention": 1e-9, "status/attention": "certified", "status/head": "certified",
          "direction_gap/head": 1e-2}, 1e-2),
        ({"relative_margin/attention": 0.9, "status/attention": "certified", "status/head": "certified",
          "relative_margin/head": 0.5}, 0.5),
        ({"status/attention": "certified", "status/head": "certified", "direction_gap/head": 1e-2}, math.inf),
        ({"direction_gap/strict": 1.0, "direction_gap/attention": 1e-4, "status/head": "infeasible"}, 1e-4),
        ({"status/attention": None, "status/head": "certified", "direction_gap/head": 1e-5}, 1e-5),
    ],
)  # fmt: skip
def test_the_farther_part_decides(row: dict[str, Any], far: float) -> None:
    assert farthest(row) == pytest.approx(far)


def test_where_it_was_is_kept() -> None:
    first, history = StopAtLimit(patience=3), rows(1e-2, 1e-2, 1e-2)
    assert after(first, history) is None
    again = StopAtLimit(patience=3)
    again.load_state_dict(first.state_dict())
    assert after(again, history) is None
    assert after(again, [*history, *rows(1e-2, first=1300)]) is not None
    with pytest.raises(InputError, match="has not counted evaluations"):
        again.load_state_dict({"seen": "x"})


@pytest.mark.parametrize("options", [{"gap": 0}, {"gap": 2}, {"patience": 0}, {"min_steps": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="StopAtLimit: "):
        StopAtLimit(**options)


def test_without_a_monitor_there_is_nothing_to_look_at() -> None:
    trainer: Any = SimpleNamespace(callbacks=[])
    with pytest.raises(InputError, match="there is no MarginMonitor"):
        StopAtLimit().setup(trainer, trainer, "fit")
