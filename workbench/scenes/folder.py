"""A labelled cut-out pack in a folder: index.csv with objects/ and backgrounds/ (format: docs/data.md)."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workbench.images import ImageError, open_rgba, read_image
from workbench.scenes.library import BACKGROUND, Background, ClassName, Cutout, Library

REQUIRED_COLUMNS = ("file", "kind", "category", "label", "label_zh", "identity")

_CATEGORY_ZH = {
    "bird": "鸟类", "energy": "能源", "flower": "花卉", "fruit": "水果", "grain": "谷物", "household": "家居用品",
    "insect": "昆虫", "legume": "豆类", "mammal": "哺乳动物", "medical": "医疗用品", "monument": "古迹",
    "music": "乐器", "natural": "自然物", "nut-spice": "坚果香料", "person": "人物", "plant": "植物",
    "prepared-food": "熟食", "reptile-amphibian": "爬行两栖动物", "sea-life": "海洋生物",
    "space": "天体航天", "sport": "体育用品", "street": "街道设施", "tool": "工具",
    "vegetable": "蔬菜", "vehicle": "交通工具",
}  # fmt: skip


@dataclass(frozen=True)
class _CutoutFile:
    path: Path
    max_pixels: int

    def __call__(self) -> Tensor:
        return open_rgba(self.path, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class _PhotoFile:
    path: Path
    max_pixels: int

    def __call__(self) -> Tensor:
        return read_image(self.path, max_pixels=self.max_pixels)


def folder_library(
    path: str | os.PathLike[str],
    *,
    by: str = "category",
    with_subject: bool = False,
    skip_licences: Sequence[str] = (),
    max_pixels: int = 50_000_000,
) -> Library:
    """The library in folder `path`: cut-outs of kind `object`, backgrounds of kind `background` of its index.csv.

    `by="category"` or `"label"` says which column is the class. Backgrounds flagged `subject` (a salient object of
    their own) are left out unless `with_subject`. Files whose licence begins with one of `skip_licences` are left out.
    Every file is decoded once; those that cannot be used are skipped and listed in `Library.bad` as (path, reason).

    Errors: `ValueError` for a missing folder, index or column, an unknown `by`, or no usable file of a kind.
    """
    if by not in ("category", "label"):
        raise ValueError(f"by={by!r} is not known. Values: 'category', 'label' (columns of index.csv).")
    root = Path(path)
    rows = [row for row in _read_index(root) if not row["licence"].startswith(tuple(skip_licences) or ("\0",))]
    objects = [row for row in rows if row["kind"] == "object"]
    grounds = [row for row in rows if row["kind"] == "background" and (with_subject or "subject" not in _flags(row))]
    classes = _classes(objects, by)
    index = {name.en: i for i, name in enumerate(classes)}
    bad: list[tuple[str, str]] = []
    cutouts = [_cutout(row, root, max_pixels, index[row[by]]) for row in _usable(objects, root, max_pixels, bad)]
    backgrounds = [_background(row, root, max_pixels) for row in _usable(grounds, root, max_pixels, bad)]
    if not cutouts or not backgrounds:
        first = f" First bad file: {bad[0][0]} ({bad[0][1]})." if bad else ""
        raise ValueError(
            f"{root / 'index.csv'} yields {len(cutouts)} usable cut-outs (kind 'object') and {len(backgrounds)} usable "
            f"backgrounds (kind 'background'), {len(bad)} files were bad; at least one of each is needed.{first}"
        )
    return Library(
        name=root.resolve().name,
        classes=classes,
        cutouts=tuple(cutouts),
        backgrounds=tuple(backgrounds),
        bad=tuple(bad),
    )


def _read_index(root: Path) -> list[dict[str, str]]:
    """Rows of index.csv; every required column is there, optional ones default to ''."""
    index = root / "index.csv"
    if not root.is_dir():
        raise ValueError(f"Cut-out folder {root} does not exist or is no folder. Check the path (docs/data.md).")
    if not index.is_file():
        raise ValueError(
            f"{root} has no index.csv, so its pictures have no labels. Add one (format: docs/data.md), or use the "
            "folder as plain images."
        )
    try:
        with index.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = tuple(reader.fieldnames or ())
            rows = [{key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{index} is not a UTF-8 CSV file ({error}). Save it as UTF-8, comma separated.") from error
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        raise ValueError(
            f"{index} lacks the columns {missing}. Needed: {', '.join(REQUIRED_COLUMNS)}; found: {', '.join(columns)}."
        )
    return [{"flags": "", "licence": "", **row} for row in rows]


def _flags(row: dict[str, str]) -> list[str]:
    return row["flags"].replace(",", " ").replace(";", " ").split()


def _classes(objects: list[dict[str, str]], by: str) -> tuple[ClassName, ...]:
    """Background, then every class of the index in alphabetical order, also those whose files turn out bad."""
    chinese = {row[by]: row["label_zh"] if by == "label" else _CATEGORY_ZH.get(row[by], row[by]) for row in objects}
    return (BACKGROUND, *(ClassName(en, chinese[en] or en) for en in sorted(chinese)))


def _usable(
    rows: list[dict[str, str]], root: Path, max_pixels: int, bad: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """Rows whose file can be decoded; the others go to `bad`."""
    good = []
    for row in rows:
        reason = _fault(row, root, max_pixels)
        if reason is None:
            good.append(row)
        else:
            bad.append((row["file"], reason))
    return good


def _fault(row: dict[str, str], root: Path, max_pixels: int) -> str | None:
    path = root / row["file"]
    if not path.resolve().is_relative_to(root.resolve()):
        return "lies outside the folder"
    try:
        if row["kind"] == "background":
            read_image(path, max_pixels=max_pixels)
        elif not bool((open_rgba(path, max_pixels=max_pixels)[3] >= 128).any()):
            return "is wholly transparent"
    except ImageError as error:
        return str(error)
    return None


def _cutout(row: dict[str, str], root: Path, max_pixels: int, class_index: int) -> Cutout:
    return Cutout(
        load=_CutoutFile(root / row["file"], max_pixels),
        name=row["file"],
        class_index=class_index,
        label=row["label"],
        label_zh=row["label_zh"] or row["label"],
        category=row["category"],
        identity=row["identity"] or row["file"],
        licence=row["licence"],
    )


def _background(row: dict[str, str], root: Path, max_pixels: int) -> Background:
    return Background(
        load=_PhotoFile(root / row["file"], max_pixels),
        name=row["file"],
        label=row["label"],
        label_zh=row["label_zh"] or row["label"],
        category=row["category"],
        identity=row["identity"] or row["file"],
        licence=row["licence"],
    )
