"""JSON files of measured rows: what is there stays, a row takes the place of its like, and a damaged file is never written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

from sap3d.errors import InputError
from sap3d.scene import write_json


def stored(path: Path, kind: type):
    """The content of a JSON file, a list or a dict as ``kind`` says; an empty one where there is no file. Raises InputError where it is damaged."""
    if not path.exists():
        return kind()
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); restore it, or move it away to begin a new one") from None
    if not isinstance(found, kind):
        raise InputError(f"{path}: holds no {kind.__name__} of rows; restore it, or move it away to begin a new one")
    return found


def replace_row(path: Path, row: dict, key: Sequence[str], ordered: bool = False) -> list[dict]:
    """Put ``row`` into the list of a JSON file, in the place of the row with the same values of ``key``, else at the end; ordered: sorted by ``key``.
    Returns all rows. Raises InputError where the file is damaged."""
    rows = stored(path, list)
    if not all(isinstance(other, dict) and set(key) <= set(other) for other in rows):
        raise InputError(f"{path}: a row has no {', '.join(key)}; restore it, or move it away to begin a new one")
    value = lambda other: tuple(other[name] for name in key)  # noqa: E731
    place = next((k for k, other in enumerate(rows) if value(other) == value(row)), len(rows))
    rows = [*rows[:place], row, *(other for other in rows[place + 1 :] if value(other) != value(row))]
    rows = sorted(rows, key=value) if ordered else rows
    write_json(path, rows)
    return rows
