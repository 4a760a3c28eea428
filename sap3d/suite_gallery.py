"""The worst objects of a suite in one small picture, made from the contact sheets of their runs, with causes written by hand.

The picture (docs/images/<suite>_worst.jpg) remembers which rows it shows: without the runs' outputs at hand it is kept as
long as the stored rows name the same, and left out of the page when they name others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sap3d.errors import InputError
from sap3d.evaluation_pictures import sheet_cells
from sap3d.results import FIGURE, load_results
from sap3d.scene import Scene, atomic_path, fingerprint, root_dir
from sap3d.suite import Suite, suite_root

_STYLE = 1  # raise when the drawing changes, so that pictures are made again
_COLUMNS = (0, 1, 3, 4, 6, 7, 9, 10)  # of the 12 views of a contact sheet
_CELL, _LEFT, _TITLE = 64, 44, 16  # pixels
_MOST_BYTES = 60_000


def worst(suite: Suite, rows: Sequence[dict]) -> list[dict]:
    """The rows of the gallery's variant and number of photos with the worst values of its figure, the worst first."""
    chosen = suite.gallery
    found = [row for row in rows if row["variant"] == chosen.variant and row["result"]["views"] == chosen.views]
    found = [row for row in found if isinstance(row["result"].get(chosen.figure), (int, float))]
    return sorted(found, key=lambda row: row["result"][chosen.figure], reverse=not FIGURE[chosen.figure].more_is_better)[: chosen.count]


def sheet_of(name: str, row: dict) -> Path | None:
    """The contact sheet behind a row: below its suite's root or, made outside of a suite, below ROOT_DIR; None if neither has its figures."""
    result = row["result"]
    for root in (suite_root(row.get("taken_from", name), row["variant"]), root_dir()):
        folder = Scene(result["type"], result["NAME"], result["views"], root).results_dir
        try:
            measured = load_results(folder / "results.json")
        except InputError:
            continue
        if all(measured.get(key) == result.get(key) for key in FIGURE) and (folder / "contact_sheet.png").is_file():
            return folder / "contact_sheet.png"
    return None


def write_gallery(name: str, suite: Suite, rows: Sequence[dict], folder: Path) -> str:
    """Markdown of the gallery, its picture below ``folder``/images; empty where the suite has none or nothing is measured.

    A cause for an object that is not among the worst any more is left out, and said on the standard output.
    """
    chosen, figure = suite.gallery, FIGURE.get(suite.gallery.figure)
    found = worst(suite, rows) if chosen.views else []
    if not found:
        return ""
    names = [row["result"]["NAME"] for row in found]
    for stale in (object_ for object_ in chosen.causes if object_ not in names):
        print(f"note: {name}: {stale} is not among the {len(found)} worst objects; its cause in the suite's file is left out")
    values = [figure.text(row["result"][chosen.figure]) for row in found]
    path = folder / "images" / f"{name}_worst.jpg"
    caption = f"True views, novel views (2D) and renders (3D) of the {len(found)} worst objects by {figure.heading}: {chosen.variant} with {chosen.views} photos"
    parts = []
    if _write_picture(path, name, found, [f"{object_}, {figure.heading} {value}" for object_, value in zip(names, values)]):
        parts.append(f"![{caption}]({path.relative_to(folder).as_posix()})\n\n*{caption}.*\n")
    causes = (f"{' '.join(chosen.causes[object_].split())}" if object_ in chosen.causes else "" for object_ in names)
    parts.append("\n".join(f"* **{object_}** ({figure.heading} {value}){': ' * bool(cause)}{cause}" for object_, value, cause in zip(names, values, causes)) + "\n")
    return "\n".join(parts)


def _write_picture(path: Path, name: str, rows: Sequence[dict], titles: Sequence[str]) -> bool:
    """Whether ``path`` shows ``rows``: it does already, or their sheets are at hand to make it from."""
    mark = fingerprint({"style": _STYLE, "rows": [[row["variant"], row["finished"], title] for row, title in zip(rows, titles)]}, {})
    if path.is_file() and shown(path) == mark:
        return True
    sheets = [sheet_of(name, row) for row in rows]
    if None in sheets:
        missing = rows[sheets.index(None)]["result"]
        print(f"note: {name}: no contact sheet of {missing['NAME']} with {missing['views']} photos is left here; the gallery goes without a picture")
        return False
    picture = gallery_picture([_rows_of(sheet, row["result"]) for sheet, row in zip(sheets, rows)], titles)
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in (80, 70, 60, 45):
        with atomic_path(path) as temporary:
            picture.save(temporary, format="JPEG", quality=quality, optimize=True, comment=mark.encode())
        if path.stat().st_size <= _MOST_BYTES:
            break
    return True


def shown(path: Path) -> str:
    """The mark of a picture that this module has written; empty for another."""
    with Image.open(path) as picture:
        return picture.info.get("comment", b"").decode(errors="replace")


def _rows_of(sheet: Path, result: dict) -> dict[str, list[Image.Image]]:
    """Label -> cells of the sheet's rows of views that this evaluation had (sap3d.evaluate draws no row for a set that was missing)."""
    labels = ["true", *(["2D"] if result.get("2d_psnr_mean") is not None else []), *(["3D"] if result.get("3d_psnr_mean") is not None else [])]
    with Image.open(sheet) as picture:
        return {label: sheet_cells(picture.convert("RGB"), index + 1, _COLUMNS) for index, label in enumerate(labels)}  # row 0: the photos


def gallery_picture(objects: Sequence[dict[str, list[Image.Image]]], titles: Sequence[str]) -> Image.Image:
    """A block an object: its title, then a labelled row of small views a set."""
    heights = [_TITLE + len(rows) * (_CELL + 2) for rows in objects]
    picture = Image.new("RGB", (_LEFT + len(_COLUMNS) * (_CELL + 2), sum(heights)), "white")
    draw = ImageDraw.Draw(picture)
    for top, rows, title in zip(np.cumsum([0, *heights]).tolist(), objects, titles):
        draw.text((2, top + 2), title, fill="black")
        for index, (label, cells) in enumerate(rows.items()):
            y = top + _TITLE + index * (_CELL + 2)
            draw.text((6, y + _CELL // 2 - 6), label, fill="black")
            for column, cell in enumerate(cells):
                picture.paste(cell.resize((_CELL, _CELL), Image.Resampling.LANCZOS), (_LEFT + column * (_CELL + 2), y))
    return picture
