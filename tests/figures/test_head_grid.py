"""Attention heads in a run's directory and report: what is written, read back, drawn and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin.callbacks.head_output import HEAVIEST, MOST_WEIGHTS, heads_file_of, token_names
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import write_report
from tests.figures.test_figures import HOSTILE, make_run

SHARE = "relative_margin/attention"


def heads_file(steps: int = 3, samples: int = 2, tokens: list[str] | None = None) -> dict[str, Any]:
    """Two layers of two heads; the last head has no certified SVM."""
    names = ["a/head0", "a/head1", "b/head0", "b/head1"]
    words = tokens or ["[CLS]", "fine", "dull", "[SEP]"]
    generator = torch.Generator().manual_seed(0)
    rows = [
        (step, {name: torch.rand(samples, len(words), generator=generator).softmax(1) for name in names})
        for step in range(steps)
    ]
    history = [{"step": s, **{f"{n}/{SHARE}": None if n == "b/head1" else 0.1 * s for n in names}} for s, _ in rows]
    return heads_file_of(rows, history, [words] * samples)


def head_run(folder: Path, found: Any, summary: dict[str, Any] | None = None) -> Path:
    own = {"name": "mine", "message": "2 heads are soft.", "val/accuracy": 0.75, "heads/certified": 3.0}
    own |= {f"a/head0/{SHARE}": 0.2, f"b/head1/{SHARE}": None, "train/loss": 0.5} | (summary or {})
    make_run(folder, own)
    (folder / "heads.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return folder


def test_the_selected_token_comes_first_and_weights_are_per_cent() -> None:
    attention = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = heads_file_of(
        [(7, {"head0": attention})], [{"step": 7, f"head0/{SHARE}": 0.25}], [["a", "b", "c", "d"]] * 2
    )
    assert found["seen"] == [[[[[1, 60], [2, 30], [0, 10]], [[3, 100]]]]]
    assert (found["numbers"], found["steps"], found["heads"]) == ([[0.25]], [7], ["head0"])


def test_a_head_that_was_left_out_and_fewer_samples_leave_a_page(tmp_path: Path) -> None:
    both = {"a/head0": torch.tensor([[0.25, 0.75], [0.5, 0.5]]), "a/head1": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
    rows = [(0, both), (3, {"a/head1": torch.tensor([[0.0, 1.0]])}), (5, {})]
    found = heads_file_of(rows, [{"step": 5, f"a/head1/{SHARE}": 0.5}], [["x", "y"], ["z", "w"]])
    assert found["heads"] == ["a/head0", "a/head1"]
    assert found["seen"] == [[[[[1, 75], [0, 25]]], [[[0, 100]]]], [[[]], [[[1, 100]]]], [[[]], [[]]]]
    assert found["tokens"] == [["x", "y"]]
    page = write_report(head_run(tmp_path / "run", found)).read_text()
    assert page.count("data-head=") == 2


def test_margins_shown_at_a_step_are_of_the_evaluation_before_it() -> None:
    rows = [(step, {"head0": torch.tensor([[0.25, 0.75]])}) for step in (0, 5, 9, 10)]
    history = [{"step": 5, f"head0/{SHARE}": 0.5}, {"step": 10, f"head0/{SHARE}": 0.7}]
    found = heads_file_of(rows, history, [["a", "b"]])
    assert found["measured"] == [5, 5, 5, 10]
    assert found["numbers"] == [[0.5], [0.5], [0.5], [0.7]]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 4))
def test_a_file_has_room_for_any_model_and_keeps_both_ends(steps: int, heads: int, samples: int) -> None:
    row = {f"head{h}": torch.full((samples, 4), 0.25) for h in range(heads * 8)}
    found = heads_file_of([(step, row) for step in range(steps)], [], [["a"]] * samples)
    weights = len(found["steps"]) * len(row) * samples * HEAVIEST
    assert found["steps"][0] == 0
    assert found["steps"][-1] == steps - 1
    assert len(found["steps"]) <= 2 or weights <= MOST_WEIGHTS


def test_tokens_are_named_up_to_the_padding() -> None:
    class Tokenizer:
        pad_token_id = 0

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"<{i}>" for i in ids]

    ids = torch.tensor([[5, 6, 0], [7, 0, 8]])
    assert token_names([{"input_ids": ids}], 2, Tokenizer()) == [["<5>", "<6>"], ["<7>", "<0>", "<8>"]]
    masked = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    assert token_names([masked], 2) == [["5", "6"], ["7"]]
    assert token_names([(ids, torch.tensor([0, 1]))], 1) == [["5", "6", "0"]]
    assert token_names([torch.randn(3, 4, 8)], 2) == []


def test_the_report_has_the_grid_the_message_and_no_warning(tmp_path: Path) -> None:
    page = write_report(head_run(tmp_path / "run", heads_file())).read_text()
    buttons = re.findall(r'<button type="button" data-head="(\d)" class="(\w*)"', page)
    assert buttons == [("0", ""), ("1", ""), ("2", ""), ("3", "none")]
    assert 'max="2"' in page
    assert "2 heads are soft." in page
    assert "<strong>Warning</strong>" not in page
    assert "3 of 4 heads have a certified SVM" in page
    assert page.index('<span class="value">75') < page.index('<h2 id="heads-title">')
    numbers = page[page.index("All numbers") :]
    assert f"a/median/{SHARE}" in numbers, "a layer's median stands for its heads"
    assert f"a/head0/{SHARE}" not in numbers


def test_hostile_tokens_and_names_are_text(tmp_path: Path) -> None:
    found = heads_file(tokens=HOSTILE)
    found["heads"] = ["<img src=x>/head0", "</script>/head0", "${x}/head0", "a/head1"]
    page = write_report(head_run(tmp_path / "run", found)).read_text()
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    data = re.search(r'id="data-heads">(.*?)</script>', page)
    assert data is not None
    assert json.loads(data[1])["tokens"][0][0] == HOSTILE[0]


DAMAGED: dict[str, Any] = {
    "no JSON": '{"heads": [',
    "no object": [],
    "no steps": {k: v for k, v in heads_file().items() if k != "steps"},
    "a step short": heads_file() | {"seen": heads_file()["seen"][:1]},
    "a head short": heads_file() | {"numbers": [[0.1]] * 3},
    "a sample short": heads_file() | {"seen": [[[[[0, 9]]]] * 4] * 3},
    "a measured step short": heads_file() | {"measured": [0]},
    "words for weights": heads_file() | {"seen": [[[[["a", 9]]] * 2] * 4] * 3},
    "words for numbers": heads_file() | {"numbers": [["much"] * 4] * 3},
    "numbers that are none": heads_file() | {"numbers": [[float("nan")] * 4] * 3},
    "tokens of no list": heads_file() | {"tokens": [1.5] * 2},
    "a weight beyond floats": heads_file() | {"seen": [[[[[0, 10**400]]] * 2] * 4] * 3},
    "nothing evaluated": {"heads": [], "steps": [], "tokens": [], "measured": [], "numbers": [], "seen": []},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_and_status_2(case: str, tmp_path: Path, maxmargin: Any) -> None:
    head_run(tmp_path / "run", DAMAGED[case])
    outcome = maxmargin("report", str(tmp_path / "run"))
    assert outcome.status == 2
    assert "heads.json" in outcome.error
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_page_of_no_evaluations_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluations in it"):
        write_report(head_run(tmp_path / "run", DAMAGED["nothing evaluated"]))


def test_curves_are_not_called_nothing_and_zero_is_written_as_zero(tmp_path: Path) -> None:
    """The grid stands for the figure of heads, so that a run may have curves and no picture."""
    run = head_run(tmp_path / "run", heads_file() | {"numbers": [[0.0] * 4] * 3})
    (run / "metrics.csv").write_text("step,train/loss\n1,0.7\n2,0.5\n")
    page = write_report(run).read_text()
    assert 'data-part="curves"' in page
    assert "logged nothing" not in page
    assert "0e+" not in page.split('<script type="application/json"')[0]
    (run / "metrics.csv").unlink()
    assert "logged nothing" in write_report(run).read_text()
