"""People's labelled documents, from files, folders, packaged corpora, the Hugging Face hub or standard input."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.cache import cache_folder
from lightning_maxmargin.text.corpora import corpus_splits, is_corpus
from lightning_maxmargin.text.fields import Spans, label_names, plain_texts, rationale_spans
from lightning_maxmargin.text.loaders import Table, hub_tables
from lightning_maxmargin.text.plain import columns_of, objects, whole_text
from lightning_maxmargin.text.tables import KNOWN, format_of, read_table

#: The words that name a split, in the names of files, folders and splits of the hub.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.+-]+)?")


@dataclass(frozen=True)
class Documents:
    """n documents in the order given.

    Attributes:
        texts: as they came; blank ones too.
        labels: by name; None where they were not asked for or not every document has one.
        rationales: half-open spans of characters, None for a document without; None where no document has one.
        source: for messages.
        replaced: lone surrogates and bytes that are not UTF-8 in the texts, each replaced by one U+FFFD, so that
            spans stay where they are.
        whole: the documents that these were taken from; None where they are as read.
        rows: their numbers among those.
    """

    texts: list[str]
    labels: list[str] | None
    rationales: list[Spans | None] | None
    source: str
    replaced: int
    whole: Documents | None = None
    rows: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Documents:
        """The documents of these rows."""
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        rationales = None if self.rationales is None else [self.rationales[i] for i in rows]
        texts = [self.texts[i] for i in rows]
        replaced = sum("\ufffd" in text for text in texts)
        return Documents(texts, labels, rationales, self.source, replaced, self, rows)


class Columns(NamedTuple):
    """The names of the columns."""

    text: str
    label: str | None
    rationale: str


def read_documents(
    source: str,
    *,
    text: str = "text",
    label: str | None = "label",
    rationale: str = "rationale",
    split: str | None = None,
    need_labels: bool = True,
    cache_dir: str | Path | None = None,
) -> Documents:
    """The documents of a file, of one split of a folder or of the hub, or of standard input.

    Args:
        source: a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (also ``.gz``) or ``.parquet`` file; a folder of files named
            after their splits, or of sub-folders named by class with ``.txt`` files; a packaged corpus
            (``lightning_maxmargin.text.corpora`` names them); ``owner/name[:configuration]`` of the
            hub; ``-`` for standard input, a JSON object or a plain text per line.
        text: the column of the texts.
        label: the column of the labels: strings, numbers or truth values, kept by name (1.0 is "1"); None for none.
        rationale: the column of the marked spans, lists of ``[start, end)`` or their JSON; it may be absent.
        split: ``train``, ``val``, ``test`` or the hub's own name, where there are several.
        need_labels: whether a document without a label is an error.
        cache_dir: of ``datasets``' copies; else as ``cache_folder`` of ``lightning_maxmargin.text.cache`` says.

    Raises:
        InputError: one line says what is wrong with the source, its row or its column.

    Example:
        >>> import tempfile
        >>> from lightning_maxmargin.atomic import write_text
        >>> folder = tempfile.mkdtemp()
        >>> write_text(Path(folder, "new.jsonl"), '{"text": "a fine film", "label": 1.0, "rationale": [[2, 6]]}')
        >>> read_documents(f"{folder}/new.jsonl", cache_dir=folder).rationales
        [[(2, 6)]]
    """
    names = Columns(text, label, rationale)
    if source == "-":
        return _documents([_standard_input(text)], names, need_labels, "standard input")
    found = _found(source, names, cache_dir)
    parts = found[_chosen(list(found), split, source)]
    return _documents(_tables(parts, names, cache_dir), names, need_labels, source)


def read_splits(
    source: str,
    *,
    text: str = "text",
    label: str | None = "label",
    rationale: str = "rationale",
    need_labels: bool = True,
    cache_dir: str | Path | None = None,
) -> dict[str, Documents]:
    """The splits of a folder or of a data set of the hub, named among ``train``, ``val`` and ``test``.

    A file is a ``train`` split. Arguments are those of :func:`read_documents`. Where labels are needed, a ``val`` or
    ``test`` split without a single one (many test splits of the hub) is left out with a warning.

    Raises:
        InputError: as there, or there is no split to train on.
    """
    names = Columns(text, label, rationale)
    found = _found(source, names, cache_dir)
    known = {SPLITS[name]: parts for name, parts in found.items() if name in SPLITS}
    if "train" not in known:
        raise InputError(f"data: {source} has no split train; it has {', '.join(found)}")
    splits: dict[str, Documents] = {}
    for name in (name for name in ("train", "val", "test") if name in known):
        tables = _tables(known[name], names, cache_dir)
        if name != "train" and need_labels and all(_unlabelled(table, label) for table in tables):
            warnings.warn(f"data: the {name} split of {source} has no labels; it is left out", stacklevel=2)
        else:
            splits[name] = _documents(tables, names, need_labels, source)
    return splits


def split_of(source: str, use: str) -> str | None:
    """The split to read for ``train``, ``val``, ``test`` or ``predict``, as :func:`read_documents` takes it.

    Example:
        >>> split_of("imdb", "predict"), split_of("reviews.csv", "test")
        ('test', None)
    """
    if is_corpus(source):
        return "test" if use == "predict" else use
    return use if use != "predict" and Path(source).is_dir() else None


def _chosen(found: Sequence[str], split: str | None, source: str) -> str:
    """The split of this name or of one that means the same; the only one for None."""
    if split is None and len(found) > 1:
        raise InputError(f"data: {source} has the splits {', '.join(found)}; name one with split=")
    alike = [name for name in found if split in (None, name, SPLITS.get(name))]
    alike += [name for name in found if split in SPLITS and SPLITS[split] == SPLITS.get(name)]
    if not alike:
        raise InputError(f"data: {source} has no split {split}; it has {', '.join(found)}")
    return alike[0]


def _unlabelled(table: Table, label: str | None) -> bool:
    return label in table.columns and not any(label_names(table, label, needed=False))


def _found(source: str, names: Columns, cache_dir: str | Path | None) -> Mapping[str, Sequence[Path | Table]]:
    """The parts of each split: files not yet read, folders of classes, or tables of the hub."""
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # too long a name, no permission, a NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"data: {source[:200]!r} cannot be read ({reason})") from error
    if is_folder:
        return _splits_of(path)
    if is_file:
        return {"train": [path]}
    if is_corpus(source):
        return {split: [_table(*found, names, source)] for split, found in corpus_splits(source).items()}
    if format_of(path) is None and HUB_NAME.fullmatch(source):
        tables = hub_tables(source, [name for name in names if name is not None], _cache(cache_dir))
        return {split: [table] for split, table in tables.items()}
    raise InputError(f"data: there is no file or folder {source!r}")


def _splits_of(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by their split, or its sub-folders, or the folder itself where those are classes."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file() and format_of(path)]
    folders = [path for path in inside if path.is_dir()]
    splits: dict[str, list[Path]] = {}
    for path in files + folders:
        if (split := _split_in(path)) is not None and (path.is_file() or not files):
            splits.setdefault(split, []).append(path)
    if splits:
        return splits
    if len(files) == 1:
        return {"train": files}
    if files:
        raise InputError(f"data: no file of {folder} is named after a split; name them train, val and test")
    if any(next(path.glob("*.txt"), None) for path in folders):
        return {"train": [folder]}
    raise InputError(f"data: {folder} holds neither {KNOWN} files nor sub-folders of classes with .txt files")


def _split_in(path: Path) -> str | None:
    """By the first word of a file's name that names a split, and by all of a folder's name."""
    words = [path.name.lower()] if path.is_dir() else re.split(r"[^a-z]+", path.name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _tables(parts: Sequence[Path | Table], names: Columns, cache_dir: str | Path | None) -> list[Table]:
    wanted = [name for name in names if name is not None]
    tables = []
    for part in parts:
        if isinstance(part, Table):
            tables.append(part)
        elif part.is_file():
            tables.append(read_table(part, wanted, _cache(cache_dir)))
        elif files := [path for path in sorted(part.iterdir()) if path.is_file() and format_of(path)]:
            tables += [read_table(path, wanted, _cache(cache_dir)) for path in files]
        else:
            tables.append(_classes(part, names))
    return tables


def _classes(folder: Path, names: Columns) -> Table:
    """Sub-folders named by class hold a text per file."""
    paths = sorted(folder.glob("*/*.txt"))
    texts = [whole_text(path) if path.stat().st_size else "" for path in paths]
    return _table(texts, [path.parent.name for path in paths], names, str(folder))


def _table(texts: list[str], labels: list[str], names: Columns, where: str) -> Table:
    columns = {names.text: texts}
    if names.label is not None:
        columns[names.label] = labels
    return Table(columns, list(columns), where)


def _standard_input(text: str) -> Table:
    """JSON lines where the first line is an object, else a text per line."""
    characters = sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape")
    lines = [line.removesuffix("\r") for line in characters.removesuffix("\n").split("\n")] if characters else []
    is_json = characters.lstrip().startswith("{")
    columns = columns_of(objects(characters, "standard input")) if is_json else {text: lines}
    return Table(columns, list(columns), "standard input")


def _documents(tables: Sequence[Table], names: Columns, need_labels: bool, source: str) -> Documents:
    """Tables one after the other."""
    texts: list[str] = []
    labels: list[str | None] = []
    rationales: list[Spans | None] = []
    replaced = 0
    for table in tables:
        more, count = plain_texts(table, names.text)
        rationales += rationale_spans(table, names.rationale, more)
        labels += label_names(table, names.label, need_labels and names.label is not None)
        texts += more
        replaced += count
    named = [name for name in labels if name is not None]
    marked = any(spans is not None for spans in rationales)
    return Documents(
        texts, named if len(named) == len(texts) else None, rationales if marked else None, source, replaced
    )


def _cache(cache_dir: str | Path | None) -> Path:
    return cache_folder(cache_dir) / "datasets"
