"""The report of a run: read, drawn and written from small run directories."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import RunFiles, draw_figures, write_report
from lightning_maxmargin.figures.diagnosis import degrees, diagnosis
from lightning_maxmargin.figures.ensemble import ensemble_figure
from lightning_maxmargin.figures.examples import MAX_EXAMPLES, choose, show
from lightning_maxmargin.figures.read import Example, Metrics
from lightning_maxmargin.figures.style import near_one

from .pages import read_page

SUMMARY: dict[str, Any] = {
    "name": "joint", "message": "", "gradient": "exact", "status/attention": "certified", "status/head": "certified",
    "svm/limit": "relaxed", "direction_gap/attention": 1e-8, "direction_gap/strict": 0.02,
    "direction_gap/relaxed": 1e-8,
    "direction_gap/rate_coupled": None, "direction_gap/head": 0.0, "relative_margin/attention": 0.9999999,
    "seconds": 1.5, "versions": {"torch": "2.6"},
}  # fmt: skip
HOSTILE = ["<script>alert(1)</script>", '"><img src=http://evil.example/x onerror=y>', "שלום", "", "a b", "{{ 7*7 }}"]


def make_run(folder: Path, summary: dict[str, Any] | None = None, metrics: str | None = None, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(files.get("config", "trainer:\n  max_steps: 5\n"))
    (folder / "summary.json").write_text(json.dumps(SUMMARY if summary is None else summary))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)
    if "paths" in files:
        np.savez(folder / "paths.npz", **files["paths"])
    if "tokens" in files:
        (folder / "tokens.jsonl").write_text("".join(json.dumps(t) + "\n" for t in files["tokens"]))
    return folder


def curves(steps: int = 60) -> str:
    """Sparse rows: two of each step, the gap of the head reaching zero, the margin starting below it."""
    names = ["direction_gap/strict", "direction_gap/relaxed", "direction_gap/head", "norm/attention", "norm/head"]
    names += ["relative_margin/attention", "attention/selected_mass", "attention/entropy", "step", "train/loss"]
    lines = [",".join(names)]
    for t in range(steps):
        norm = 0.5 * t * t
        gap = ["", ""] if t == 0 else [0.02, 0.3 / norm**2]
        lines.append(
            ",".join(map(str, [*gap, 10.0 ** (-t * 6), norm, norm, 1 - 1.5 / (t + 1), 1 - 2.0**-t, 2.0**-t, t, ""]))
        )
        lines.append("," * 8 + f"{t},{2.0**-t}")
    return "\n".join(lines) + "\n"


def plane(q: int = 1, head: bool = True) -> dict[str, Any]:
    t = np.arange(0.0, 40.0)
    path = np.stack([np.stack([t * (-1) ** i, 0.3 * np.sqrt(t)], 1) for i in range(q)], 1) * 100.0
    arrays: dict[str, Any] = {"step": t, "attention": path, "keys": np.arange(12.0).reshape(2, 3, 2) / 9}
    arrays |= {"labels": np.array([1, -1]), "selected": np.array([1, 2]), "mask": np.ones((2, 3), bool)}
    arrays["svm/strict"] = np.array([[(-1.0) ** i, 0.2] for i in range(q)])
    if head:
        arrays |= {"head": path[:, 0, ::-1], "svm/head": np.array([0.0, 1.0])}
    return arrays


def example(**changes: Any) -> dict[str, Any]:
    base = {
        "index": 0,
        "label": 1,
        "prediction": 2.5,
        "tokens": ["a", "b"],
        "attention": [0.1, 0.9],
        "selected": 1,
        "planted": 1,
    }
    return base | changes


def assert_not_blank(path: Path) -> None:
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[1] == 1280
    assert pixels[..., :3].std() > 0.05


def assert_self_contained(page: str) -> None:
    read_page(page)


@pytest.mark.parametrize(
    ("q", "head"),
    [pytest.param(1, True, marks=pytest.mark.slow), pytest.param(2, False, marks=pytest.mark.slow), (9, False)],
    ids=["joint", "queries", "many queries"],
)
def test_all_figures(tmp_path: Path, q: int, head: bool) -> None:
    run = make_run(tmp_path, metrics=curves(), paths=plane(q, head))
    drawn = draw_figures(RunFiles.load(run), tmp_path / "figures")
    assert [p.stem for p in drawn] == ["paths", "direction_gap", "relative_margin", "selected_mass"]
    for path in drawn:
        assert_not_blank(path)
    assert sorted((tmp_path / "figures").iterdir()) == sorted(drawn)


def test_report_is_self_contained_and_the_same_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run", metrics=curves(), paths=plane())
    page = write_report(run)
    first = page.read_bytes()
    text = first.decode()
    assert_self_contained(text)
    assert text.count("data:image/png;base64,") == 4
    assert "converged in direction to the relaxed SVM" in text
    assert "max_steps: 5" in text
    assert re.search(r"maxmargin fit --config &#39;.*a run/config.yaml&#39; --run_dir NEW", text)
    assert write_report(run).read_bytes() == first
    assert not list(run.rglob("*.part"))


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    tokens = [example(index=i, tokens=HOSTILE, attention=[1 / 6] * 6, selected=i % 6, planted=0) for i in range(3)]
    tokens.append(example(index=3, tokens=["\ud800", "x"], prediction=None, planted=None))
    summary = SUMMARY | {"message": "<b>stall</b> at step 3", "name": "<i>run</i>", "versions": {"<u>": "</style>"}}
    config = "a: '</pre><script>x</script>'\n"
    page = write_report(make_run(tmp_path, summary, tokens=tokens, config=config)).read_text()
    assert_self_contained(page)
    for raw in ("<b>", "<i>", "<u>", "<img src=http", "49", "</pre><script"):
        assert raw not in re.sub(r"<script>.*?</script>", "", page.split("</style>", 1)[1], flags=re.DOTALL)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    words = read_page(page).data["data-documents"]["rows"][0][1][0]
    assert words == HOSTILE
    assert "(empty)" in page
    assert "שלום" in page
    assert "read this with the warning above" in page
    assert "another token selected" in page
    assert "no prediction" in page


def test_missing_columns_draw_less(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics="step,norm/head,direction_gap/head\n0,1,0.5\n5,2,0.1\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "paths.png").write_bytes(b"of an earlier run")
    assert [p.stem for p in draw_figures(RunFiles.load(run), tmp_path / "figures")] == ["direction_gap"]
    assert not (tmp_path / "figures" / "paths.png").exists()


@pytest.mark.parametrize(
    "metrics", [None, "", "step,norm/head\n", "step,direction_gap/strict,norm/attention\n0,,\n1,nan,inf\n"]
)
def test_nothing_to_draw(tmp_path: Path, metrics: str | None) -> None:
    page = write_report(make_run(tmp_path, dict.fromkeys(SUMMARY), metrics)).read_text()
    assert "nothing that could be drawn" in page
    assert "was not compared with an SVM" in page
    assert tmp_path.name in page


def test_one_row_only(tmp_path: Path) -> None:
    paths = {k: v[:1] if k in ("step", "attention", "head") else v for k, v in plane().items()}
    drawn = draw_figures(RunFiles.load(make_run(tmp_path, metrics=curves(1), paths=paths)), tmp_path)
    # At norm 0 no gap is defined, so there is nothing to draw against the norm.
    assert [p.stem for p in drawn] == ["paths", "relative_margin", "selected_mass"]
    run = RunFiles.load(
        make_run(tmp_path / "b", metrics="step,norm/attention,direction_gap/strict,relative_margin/head\n7,3,0,1\n")
    )
    for path in draw_figures(run, tmp_path / "b"):
        assert_not_blank(path)


def test_rows_of_a_step_are_merged(tmp_path: Path) -> None:
    m = RunFiles.load(make_run(tmp_path, metrics="a,step,b\n1,5,\n,5,2\n3,5,\n,,9\n4,2,\n")).metrics
    assert m.step.tolist() == [2, 5]
    assert m.series("a")[1].tolist() == [4, 3]
    assert [x.tolist() for x in m.series("b", against="a")] == [[3.0], [2.0]]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("summary.json", None, "no summary.json"),
        ("config.yaml", None, "no config.yaml"),
        ("summary.json", b"{", "is damaged"),
        ("summary.json", b"[1]", "not an object"),
        ("config.yaml", b"a: [1", "is damaged"),
        ("config.yaml", b"\xff\xfe\x00", "is damaged"),
        ("metrics.csv", b"a,b\n1,2\n", "no column `step`"),
        ("metrics.csv", b"step,b\n1,tensor\n", "line 2"),
        ("metrics.csv", b"step,b\n1,2,3\n", "3 cells"),
        ("paths.npz", b"PK\x03\x04 torn", "is damaged"),
        ("tokens.jsonl", b'{"index": 1}\n', "line 1"),
        ("tokens.jsonl", b"[1]\n", "line 1"),
        ("tokens.jsonl", json.dumps(example(selected=9)).encode(), "selected 9"),
        ("tokens.jsonl", json.dumps(example(prediction="x")).encode(), "no number"),
        ("tokens.jsonl", json.dumps(example(lead="x")).encode(), "`lead` is no number"),
        ("tokens.jsonl", json.dumps(example(size=[1])).encode(), "`size` is no number"),
        ("tokens.jsonl", json.dumps(example(rationale=[2])).encode(), "`rationale` is no list of numbers"),
        ("tokens.jsonl", json.dumps(example(rationale="all")).encode(), "`rationale` is no list of numbers"),
        ("tokens.jsonl", json.dumps(example(evidence=0.5)).encode(), "`evidence` is no list of numbers"),
        ("tokens.jsonl", json.dumps(example(evidence=["x"] * 2)).encode(), "`evidence` is no list of numbers"),
        ("tokens.jsonl", json.dumps(example(index={"a": 1})).encode(), "`index` is no whole number"),
        ("tokens.jsonl", json.dumps(example(label=10**400)).encode(), "a whole number of 401 digits"),
        ("tokens.jsonl", json.dumps(example(selected=float("inf"))).encode(), "cannot convert float infinity"),
        ("summary.json", b'{"steps": ' + b"9" * 400 + b"}", "a whole number of 400 digits"),
        ("summary.json", b"[" * 200_000, "nested too deeply"),
        ("metrics.csv", b"step,b\n1e300,2\n", "no whole number"),
        ("evaluate.json", b'{"rows": 1}', "`rows` is missing"),
    ],
)
def test_damaged_directory(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    run = make_run(tmp_path / "r")
    path = run / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert str(run) in str(error.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("selected", [1, 7]), ("head", np.zeros((3, 2))), ("keys", np.zeros((2, 3, 5)))]
)
def test_damaged_paths(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"`{key}`"):
        RunFiles.load(make_run(tmp_path, paths=plane() | {key: value}))


def test_evidence_near_the_largest_float(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "tokens.jsonl").write_text(json.dumps(example(evidence=[1e308, -1e308])))
    assert write_report(run).is_file()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no directory"):
        write_report(tmp_path / "none")
    with pytest.raises(InputError, match=r"no config\.yaml"):
        write_report(tmp_path)


def test_examples_are_mixed() -> None:
    def one(i: int) -> Example:
        return Example(i, 1, -1.0 if i >= 990 else 1.0, ["a", "b"], [0.5, 0.5], 0, 1 if 980 <= i < 990 else 0)

    shown = choose([one(i) for i in range(1000)])
    assert len(shown) == MAX_EXAMPLES
    assert sum(e.right is False for e in shown) == 7
    assert sum(e.planted != e.selected for e in shown) == 7
    assert [e.index for e in shown] == sorted(e.index for e in shown)


def test_long_example_keeps_the_selected_token_in_view() -> None:
    row = show(Example(0, -1, -0.5, ["w"] * 1000, [0.001] * 1000, 700, None))
    assert row.before + len(row.tokens) + row.after == 1000
    assert row.before <= 700 < row.before + len(row.tokens)
    assert row.outcome == "right"


def test_class_predictions() -> None:
    assert Example(0, 2, 2, ["a"], [1.0], 0, None).right is True
    assert Example(0, 0, 2, ["a"], [1.0], 0, None).right is False
    assert Example(0, -1, 3.0, ["a"], [1.0], 0, None).right is False


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"direction_gap/attention": 0.02}, "has not converged"),
        ({"direction_gap/attention": 1e-4}, "is close to the relaxed SVM"),
        ({"direction_gap/strict": 1.5e-8}, "The strict SVM cannot be told apart"),
        ({"status/attention": "infeasible", "direction_gap/attention": None}, "no max-margin direction to converge to"),
        ({"status/head": "unverified"}, "estimates"),
        ({"relative_margin/attention": float("nan")}, "certified as well"),
        ({"test/accuracy": 0.5}, "50\u00a0% of the test examples"),
    ],
)
def test_verdict(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    words = " ".join(diagnosis(RunFiles.load(make_run(tmp_path, SUMMARY | changes))))
    assert says in words
    assert "nan" not in words.replace("cannot", "")


def test_numbers_in_words() -> None:
    assert degrees(0.5) == "60°"
    assert near_one(1 - 8e-9) == "1 − 8e-9"
    assert near_one(0.786) == "0.786"
    assert near_one(1.0) == "1 (rounded)"


def test_shares_of_one_evaluation_are_points() -> None:
    metrics = Metrics(np.array([6000]), {f"ensemble/{k}": np.array([0.5]) for k in ("settled", "global", "local")})
    lines = ensemble_figure(metrics, {}).axes[0].lines
    assert [line.get_marker() for line in lines] == ["o"] * 3
