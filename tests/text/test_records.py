"""Documents from every kind of file, and one line for every kind of bad input."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import loaders, tables
from lightning_maxmargin.text.plain import plain_csv, plain_json, plain_parquet
from lightning_maxmargin.text.records import Documents, read_documents, read_splits
from lightning_maxmargin.text.splits import check_labels, stratified

datasets = pytest.importorskip("datasets", reason="the text extra is missing: datasets")

ROWS = [
    {"text": "a fine film", "label": "pos", "rationale": [[2, 6]]},
    {"text": "", "label": "neg", "rationale": None},
    {"text": 'dull, "long"\nand NA', "label": "neg", "rationale": []},
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAXMARGIN_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, content: str | bytes) -> str:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_parquet(path: Path, columns: dict[str, list[Any]], features: Any = None) -> str:
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    if "parquet" in name:
        source = as_parquet(tmp_path / name, {key: [row[key] for row in ROWS] for key in ROWS[0]})
    elif "sv" in name:
        source = write(tmp_path / name, as_csv(ROWS, "\t" if "tsv" in name else ","))
    else:
        source = write(tmp_path / name, json.dumps(ROWS, indent=1) if name == "a.json" else as_lines(ROWS))
    texts = [str(row["text"]) for row in ROWS]
    assert read_documents(source) == Documents(texts, ["pos", "neg", "neg"], [[(2, 6)], None, None], source, 0)


def test_columns_have_the_names_given_and_may_be_absent(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "review,stars,why\ngood,5.0,\nbad,1,\n")
    assert read_documents(source, text="review", label="stars").labels == ["5", "1"]
    documents = read_documents(source, text="review", label=None)
    assert documents.labels is None
    assert documents.rationales is None
    assert read_documents(source, text="review", need_labels=False).labels is None


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 0, 1], ["1", "0", "1"]),
        ([1.0, 0.5, -2.0], ["1", "0.5", "-2"]),
        ([True, False, True], ["True", "False", "True"]),
        ([1, "x", 2.0], ["1", "x", "2"]),
        (["2020-01-01", "2020-01-02", " a "], ["2020-01-01", "2020-01-02", "a"]),
        (["2020-01-01T00:00:00", "2020-01-02T00:00:00", "2020-01-02T00:00:00"], None),
        ([2**70, 1, 2], [str(2**70), "1", "2"]),
    ],
)
def test_labels_of_any_kind_are_kept_by_name(tmp_path: Path, values: list[Any], names: list[str] | None) -> None:
    rows = [{"text": "a", "label": value} for value in values]
    names = names or values
    assert read_documents(write(tmp_path / "a.jsonl", as_lines(rows))).labels == names
    assert read_documents(write(tmp_path / "a.csv", as_csv(rows))).labels == names


def test_class_numbers_become_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    source = as_parquet(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [1, 0]}, features)
    assert read_documents(source).labels == ["yes", "no"]


@pytest.mark.parametrize(
    ("name", "content", "texts", "replaced"),
    [
        ("a.jsonl", '{"text": "a \\ud83d b", "rationale": [[2, 3]]}\n', ["a \ufffd b"], 1),
        ("a.jsonl", '{"text": "\\ud83d\\ude00"}\n', ["\U0001f600"], 0),
        ("a.json", '[{"text": "\\ude00\\ud83d"}]', ["\ufffd\ufffd"], 2),
        ("a.jsonl", '{"text": "a\\u0000b"}\n', ["a\0b"], 0),
        ("a.csv", 'text,x\n"a\0b",\n', ["a\0b"], 0),
        ("a.csv", "text,x\nun caf\xe9 noir,\n".encode("latin-1"), ["un caf\ufffd noir"], 1),
        ("a.csv", "\ufefftext,x\nnull,\nNA,\n1.0,\n", ["null", "NA", "1.0"], 0),
        ("a.csv", ',text\n0,"a"\n', ["a"], 0),  # pandas writes its index like this
        ("a.csv", 'text\na\n""\n \n', ["a", "", " "], 0),
        ("a.csv", "text,x\n" + "word " * 200_000 + ",\n", ["word " * 200_000], 0),
        ("a.csv", "text\n" + "word " * 200_000, ["word " * 200_000], 0),
        ("a.jsonl", "\ufeff" + as_lines([{"text": "2020-01-01 00:00:00"}]), ["2020-01-01 00:00:00"], 0),
        ("a[1].csv", "text,x\nhere,\n", ["here"], 0),
    ],
)
def test_what_datasets_cannot_represent_is_read_all_the_same(
    tmp_path: Path, name: str, content: str | bytes, texts: list[str], replaced: int
) -> None:
    write(tmp_path / "a1.csv", "text,x\nanother file,\n")
    documents = read_documents(write(tmp_path / name, content), need_labels=False)
    assert (documents.texts, documents.replaced) == (texts, replaced)


def test_an_undecodable_parquet_string_is_replaced(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    raw = pa.array([b"a \xff b"]).view(pa.string())
    parquet.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    documents = read_documents(str(tmp_path / "a.parquet"), need_labels=False)
    assert (documents.texts, documents.replaced) == (["a \ufffd b"], 1)


# A file of many other control characters is refused as one that holds no text.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n\r\f\x1b\x85"), max_size=12)
NUMBER = st.one_of(st.integers(), st.booleans(), st.floats())
LABEL = st.one_of(
    st.sampled_from(["a", "1.0", "NA", "2020-01-01T00:00:00"]), TEXT, st.integers(), st.booleans(), st.floats()
)
SPANS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, LABEL, st.none() | SPANS), min_size=1, max_size=4))
@example([("", float("inf"), None)])
@example([("", float("nan"), None), ("", "a", None)])
def test_plain_readers_and_datasets_agree(tmp_path: Path, given: list[tuple[str, Any, Any]]) -> None:
    rows = [{"text": text, "label": label, "rationale": spans} for text, label, spans in given]
    wanted, there = ["text", "label", "rationale"], tmp_path / "datasets"
    for name, content in (("a.jsonl", as_lines(rows)), ("a.json", json.dumps(rows)), ("a.csv", as_csv(rows))):
        path = Path(write(tmp_path / name, content))
        plain = plain_csv(path, ",") if name == "a.csv" else plain_json(path)
        plain = {name: plain[name] for name in wanted}
        assert plain["text"] == [text for text, _, _ in given]
        read = loaders.by_datasets(path, "csv" if name == "a.csv" else "json", wanted, there)
        assert read is None or repr(read.columns) == repr(plain)
        path.unlink()


def test_it_is_datasets_that_reads(tmp_path: Path) -> None:
    for name, content in (("a.csv", as_csv(ROWS)), ("a.jsonl", as_lines(ROWS)), ("b.csv.gz", as_csv(ROWS))):
        path = Path(write(tmp_path / name, content))
        table = loaders.by_datasets(path, str(tables.format_of(path)), ["text"], tmp_path / "datasets")
        assert table is not None
        assert table.columns == {"text": [row["text"] for row in ROWS]}
    path = Path(as_parquet(tmp_path / "a.parquet", {"text": ["a", None], "label": [1, 2]}))
    table = loaders.by_datasets(path, "parquet", ["text", "why"], tmp_path / "datasets")
    assert table is not None
    assert table.columns == {"text": ["a", None]} == {"text": plain_parquet(path, ["text"])["text"]}
    assert table.names == list(plain_parquet(path, ["text"]))
    assert not datasets.are_progress_bars_disabled()


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    for i in range(3):
        for name in ("a.csv", "a.csv.gz"):
            assert read_documents(write(tmp_path / name, f"text,label\nno {i},1\n")).texts == [f"no {i}"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    blocked = write(tmp_path / "blocked", "a file")
    assert len(read_documents(write(tmp_path / "a.csv", as_csv(ROWS)), cache_dir=blocked)) == 3


BAD = [
    ("a.csv", "body,label\nx,1\n", r"there is no column 'text'; the columns are 'body', 'label'$"),
    ("a.csv", "text,stars\nx,1\n", r"there is no column 'label'; the columns are 'text', 'stars'$"),
    ("a.csv", "", "the file is empty$"),
    ("a.csv", "text,label\n", "there are no rows; expected documents$"),
    ("a.jsonl", "\n\n", "there are no rows; expected documents$"),
    ("a.csv", bytes(range(256)) * 9, "no text in UTF-8, but binary data or another encoding; save it as UTF-8$"),
    ("a.csv", "text,label\nэто фильм,1\n".encode("cp1251"), "no text in UTF-8, but binary data or another"),
    ("a.csv", "text,label\nx,1\n".encode("utf-16"), "no text in UTF-8, but binary data or another encoding"),
    ("a.csv", b"PAR1" + b"text" * 99, "no text in UTF-8, but binary data"),
    ("a.csv", "text,label\nx,1\ny,2,3\n", "a.csv, line 3: 3 fields where the header has 2; put a field that holds a c"),
    ("a.csv", "text,label\nx,1,\ny,2,\n", "a.csv, line 2: 3 fields where the header has 2"),
    ("a.csv", 'text,label\n"x,1\n', "a.csv, line 2: unexpected end of data; are the quotes in pairs"),
    ("a.csv", "text,text\nx,1\n", "two columns have the name 'text'; rename one$"),
    ("a.csv", "text,label\nx,1\ny,\n", "a.csv, row 2: there is no label; give every document one, or drop it$"),
    ("a.csv.gz", None, "a.csv.gz: a damaged gzip file"),
    ("a.parquet", "text,label\nx,1\n", "a.parquet: not a whole Parquet file"),
    ("a.jsonl", '{"text": "a"}\n{"text":\n', r"a.jsonl, line 2: not JSON \(Expecting value at character 9\); mend or"),
    ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2: a list; expected an object with a key per column$"),
    ("a.json", '[{"text": "a"},\n{"text" 1}]', "a.json, line 2: not JSON"),
    ("a.json", "[" * 100_000, "a.json, line 1: not JSON"),
    ("a.jsonl", as_lines([{"text": "a", "label": 1}, {"label": 1}]), "row 2: text is null; expected a text$"),
    ("a.jsonl", as_lines([{"text": 5, "label": 1}]), "row 1: text is 5; expected a text$"),
    ("a.jsonl", as_lines([{"text": ["a"], "label": 1}]), r"row 1: text is \['a'\]; expected a text$"),
    ("a.jsonl", as_lines([{"text": "a", "label": 1}, {"text": "b", "label": None}]), "row 2: there is no label;"),
    ("a.jsonl", as_lines([{"text": "a", "label": [1, 2]}]), r"row 1: label is \[1, 2\]; expected one name or number$"),
    ("a.docx", "x", r"a.docx: not a kind of file that can be read; expected .csv, .tsv"),
    ("a.parquet.gz", "x", "not a kind of file that can be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    source = write(tmp_path / name, "text,label\nx,1\n" * 50 if content is None else content)
    if content is None:
        Path(source).write_bytes(Path(source).read_bytes()[:-12])
    with pytest.raises(InputError, match=message) as caught:
        read_documents(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spans", [[[2, 9]], [[2, 1]], [[1, 1]], [[-1, 2]], [[0, 1, 2]], [0, 1], [["a", "b"]], [[0, 1.5]], [[True, 2]], 7]
)
def test_bad_spans_are_one_line(tmp_path: Path, spans: Any) -> None:
    rows = [{"text": "abcd", "label": 1, "rationale": [[0, 4]]}, {"text": "abcd", "label": 1, "rationale": spans}]
    for source in (write(tmp_path / "a.jsonl", as_lines(rows)), write(tmp_path / "a.csv", as_csv(rows))):
        with pytest.raises(InputError, match=r"row 2: rationale (holds .*; expected \[start, end\] with 0|is 7; )"):
            read_documents(source)
    rows[1]["rationale"] = "[[0,"
    with pytest.raises(InputError, match=r"row 2: rationale is .*; expected a JSON list of \[start, end\]$"):
        read_documents(write(tmp_path / "b.jsonl", as_lines(rows)))


def test_a_rationale_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.rationale: .*there is no column 'why'"):
        read_documents(write(tmp_path / "a.csv", "text,label\nx,1\n"), rationale="why")


@pytest.mark.parametrize("source", ["none.csv", "./none", "a/b/c", "a" * 5000, "https://x.org/a b"])
def test_what_is_not_there_is_one_line(source: str) -> None:
    with pytest.raises(InputError, match="data: ") as caught:
        read_documents(source)
    assert "\n" not in str(caught.value)


def test_a_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.csv", "text,label\na,1\n")
    write(tmp_path / "train-00001-of-00002.jsonl", as_lines([{"text": "b", "label": 2, "rationale": [[0, 1]]}]))
    write(tmp_path / "dev.csv", "text,label\nc,1\n")
    write(tmp_path / "reviews_test.csv", "text,label\nd,\n")
    write(tmp_path / "README.md", "about")
    with pytest.warns(UserWarning, match="the test split of .* has no labels; it is left out"):
        splits = read_splits(str(tmp_path))
    assert {name: documents.texts for name, documents in splits.items()} == {"train": ["a", "b"], "val": ["c"]}
    assert splits["train"].rationales == [None, [(0, 1)]]
    assert list(read_splits(str(tmp_path), need_labels=False)) == ["train", "val", "test"]
    assert read_documents(str(tmp_path), split="validation").texts == ["c"]
    with pytest.raises(InputError, match=r"has the splits .*; name one with split="):
        read_documents(str(tmp_path))
    with pytest.raises(InputError, match="has no split extra; it has val, test, train"):
        read_documents(str(tmp_path), split="extra")
    (tmp_path / "val.csv").write_text("text,label\n")
    with pytest.raises(InputError, match=r"val.csv: there are no rows"):
        read_documents(str(tmp_path), split="val")


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for split, name, text in (("train", "pos", "good"), ("train", "neg", ""), ("test", "neg", "caf\xe9 ou bar noir")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "1.txt").write_bytes(text.encode("latin-1"))
    splits = read_splits(str(tmp_path))
    assert (splits["train"].texts, splits["train"].labels) == (["", "good"], ["neg", "pos"])
    assert (splits["test"].texts, splits["test"].replaced) == (["caf\ufffd ou bar noir"], 1)
    assert read_splits(str(tmp_path / "train"))["train"].labels == ["neg", "pos"]
    assert read_documents(str(tmp_path / "train")).labels == ["neg", "pos"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds neither .csv, .*files nor sub-folders of classes with .txt files"),
        (["a.csv", "b.csv"], "no file of .* is named after a split; name them train, val and test"),
        (["test.csv"], "has no split train; it has test"),
    ],
)
def test_a_folder_of_something_else_is_one_line(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        write(tmp_path / name, "text,label\na,1\n")
    with pytest.raises(InputError, match=message):
        read_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("raw", "texts", "replaced"),
    [
        (b'{"text": "a"}\n\n{"text": "b\\ud800"}', ["a", "b\ufffd"], 1),
        (b"a line\r\n\ncaf\xe9\n", ["a line", "", "caf\ufffd"], 1),
    ],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, raw: bytes, texts: list[str], replaced: int) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    documents = read_documents("-", need_labels=False)
    assert (documents.texts, documents.labels, documents.replaced) == (texts, None, replaced)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "standard input: there are no rows"),
        (b'{"text": 1}', "standard input, row 1: text is 1"),
        (b'{"text"', "standard input, line 1: not JSON"),
        (b'{"texts": "a"}', "standard input: there is no column 'text'; the columns are 'texts'"),
    ],
)
def test_bad_standard_input_is_one_line(monkeypatch: pytest.MonkeyPatch, raw: bytes, message: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    with pytest.raises(InputError, match=message):
        read_documents("-", need_labels=False)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = {
        name: datasets.Dataset.from_dict({"text": ["a"], "label": [label]}, features=features)
        for name, label in (("train", 1), ("validation", 0), ("test", -1), ("unsupervised", -1))
    }
    asked: list[Any] = []
    monkeypatch.setattr(loaders, "_answers", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **more: asked.append(given) or made)
    with pytest.warns(UserWarning, match="the test split of someone/set:plain has no labels"):
        splits = read_splits("someone/set:plain")
    assert {name: documents.labels for name, documents in splits.items()} == {"train": ["yes"], "val": ["no"]}
    assert asked == [("someone/set", "plain")]
    assert read_documents("someone/set", split="unsupervised", need_labels=False).labels is None
    assert read_documents("someone/set", split="val").labels == ["no"]
    with pytest.raises(InputError, match="someone/set, split test, row 1: there is no label"):
        read_documents("someone/set", split="test")


def test_a_hub_that_is_silent_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(loaders, "_answers", lambda endpoint: False)
    for offline, reason in ((False, "does not answer"), (True, "Couldn't reach 'someone/set' on the Hub")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(InputError, match=f"^data: someone/set is no file .*{reason}.*") as caught:
            read_documents("someone/set")
        assert "\n" not in str(caught.value)
        assert offline == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["a", "a"],), "2 training documents have 1 label, 'a'; expected two or more$"),
        (([],), "0 training documents have 0 label; expected two or more$"),
        ((["a", "b"], None, ["a", "c"]), "test document 2 has the label 'c', which no training .* have 'a', 'b'$"),
        ((["a", "b"], ["d"]), "validation document 1 has the label 'd'"),
        ((["a", "b", "a"], None, None, True), r"the label 'b' has one document alone \(number 2\)"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_one_line(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_labels(*given)


def test_names_are_sorted_as_numbers_where_they_are() -> None:
    assert check_labels(["10", "9", "-1.5"]) == ["-1.5", "9", "10"]
    assert check_labels(["10", "9", "x"]) == ["10", "9", "x"]
    assert check_labels(["nan", "9", "1"]) == ["1", "9", "nan"]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_stratified_split_has_every_label_on_both_sides(more: list[str], share: float, seed: int) -> None:
    labels = ["a", "a", "b", "b", "c", "c", *more]
    train, val = stratified(labels, share, seed)
    assert sorted(train + val) == list(range(len(labels)))
    assert (train, val) == stratified(labels, share, seed)
    assert train == sorted(train)
    for name in "abc":
        count, chosen = labels.count(name), [labels[i] for i in val].count(name)
        assert 1 <= chosen < count
        assert abs(chosen - share * count) <= 1


def test_a_split_depends_on_its_seed_and_takes_a_share() -> None:
    labels = np.array(["a", "b"]).repeat(50).tolist()
    assert stratified(labels, 0.2, 0) != stratified(labels, 0.2, 1)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="a validation share of"):
            stratified(labels, share, 0)
    with pytest.raises(InputError, match=r"the label 'b' has one document alone \(number 1\)"):
        stratified(["b", "a", "a"], 0.5, 0)
