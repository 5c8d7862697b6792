"""An experiment from its YAML to table, page and exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.command import FOLDER
from lightning_maxmargin.reproduce.draw import draw_panels
from lightning_maxmargin.reproduce.experiment import Claim, read_experiment
from lightning_maxmargin.reproduce.panel import Line, Panel, ray

GOOD = (FOLDER / "joint_relaxed.yaml").read_text()


@pytest.mark.parametrize(
    ("bounds", "x", "holds"),
    [
        ({"value": 1.0, "within": 0.1}, 1.05, True),
        ({"value": 1.0, "within": 0.1}, 1.2, False),
        ({"at_least": 2.0}, 2.0, True),
        ({"at_least": 2.0}, 1.9, False),
        ({"at_most": 2.0, "at_least": 1.0}, 0.5, False),
        ({"at_most": 2.0}, float("nan"), False),
        ({"at_most": 2.0}, float("inf"), False),
    ],
)
def test_a_claim_is_decided_by_its_bounds(bounds: dict[str, float], x: float, holds: bool) -> None:
    assert Claim("c", "x", **bounds).holds({"x": x}) is holds
    assert not Claim("c", "y", **bounds).holds({"x": x})


@pytest.mark.parametrize("bounds", [{}, {"value": 1.0}, {"within": 1.0}])
def test_a_claim_without_a_bound_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Claim("c", "x", **bounds)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_experiment_can_be_read(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.claims
    for quick in (True, False):
        experiment.chosen(quick)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: 1000", "stepps: 1000", "stepps"),
        ("title:", "titel:", "titel"),
        ("joint.joint", "joint.nothing", "nothing"),
        ("lightning_maxmargin.reproduce.joint.joint", "os.system", "--trust-config"),
        ("    key: cos/strict\n", "    kee: cos/strict\n", "kee"),
        ("at_most: .985", "at_mots: .985", "at_mots"),
        ("settings:", "settings: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_before_any_work(
    old: str, new: str, words: str, tmp_path: Path, maxmargin: Any
) -> None:
    assert old in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new))
    found = maxmargin("reproduce", str(path), "--out", str(tmp_path / "out"))
    assert found.status == 2
    assert words in found.error
    assert not (tmp_path / "out").exists()


def test_from_the_command_to_the_page(tmp_path: Path, maxmargin: Any) -> None:
    out = tmp_path / "out"
    found = maxmargin("reproduce", "joint_relaxed", "--out", str(out))
    assert found.status == 0, found.err
    assert "11 of 11 claims hold" in found.out
    folder = out / "joint_relaxed"
    assert {p.name for p in folder.iterdir()} == {"figure.png", "figure.pdf", "claims.csv", "numbers.json"}
    numbers = json.loads((folder / "numbers.json").read_text())["numbers"]
    # math.md's gold values along the way, and the artefact of the public run.
    assert numbers["cos/relaxed/200"] == pytest.approx(0.99986, abs=1e-5)
    assert numbers["naive/cos/strict"] > 0.9999
    page = (out / "reproduction.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    again = maxmargin("reproduce", "joint_relaxed", "--out", str(out))
    assert again.status == 2
    assert "never overwritten" in again.error


def test_a_failed_claim_is_exit_status_1(tmp_path: Path, maxmargin: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("at_most: .985", "at_most: .5"))
    found = maxmargin("reproduce", str(path))
    assert found.status == 1
    assert "10 of 11 claims hold" in found.out
    assert "NO" in found.out


def test_without_names_it_lists(maxmargin: Any) -> None:
    found = maxmargin("reproduce")
    assert found.status == 0
    assert "joint_relaxed" in found.out
    assert maxmargin("reproduce", "nothing").status == 2
    assert maxmargin("reproduce", "--quik").status == 2


def test_every_kind_of_panel_is_drawn(tmp_path: Path) -> None:
    x = np.arange(1.0, 30)
    kinds = ("line", "dashed", "dotted", "dots", "arrows")
    lines = [Line(x, x * (i + 1), k, kind=k, low=x, high=x * 3) for i, k in enumerate(kinds)]  # type: ignore[arg-type]
    panels = [
        Panel("lines", "x", "y", [*lines, ray(np.array([1.0, 2.0]), "svm", "strict")]),
        Panel("logs", lines=lines, log="xy", xlim=(1, 10)),
        Panel("map", image=np.eye(3), rows=["a", "b", "c"], columns=["d", "e", "f"]),
        Panel("picture", image=np.eye(3), digits=False),
    ]
    written = draw_panels(panels, "title", tmp_path / "figure")
    assert [p.suffix for p in written] == [".png", ".pdf"]
    assert all(p.stat().st_size > 5000 for p in written)
    assert written[0].read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]
