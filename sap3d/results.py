"""The figures of results.json: their names, how they are read, and how tables of them are set.

results.json is a list with one dictionary, as SAP3D's own summary script reads it. ``FIGURES`` are its headline keys;
everything measured the strict way is under ``"corrected"``. Fields: results/README.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import yaml

from sap3d.errors import InputError
from sap3d.scene import Scene, read_json


@dataclass(frozen=True)
class Figure:
    """One headline figure: its key in results.json, a heading, decimals, and whether more is better."""

    key: str
    heading: str
    digits: int
    more_is_better: bool = False

    def text(self, value: float | None) -> str:
        return "-" if value is None or not np.isfinite(value) else f"{value:.{self.digits}f}"


FIGURES = (
    Figure("2d_psnr_mean", "2D PSNR", 2, True),
    Figure("2d_ssim_mean", "2D SSIM", 3, True),
    Figure("2d_lpips_mean", "2D LPIPS", 3),
    Figure("3d_psnr_mean", "3D PSNR", 2, True),
    Figure("3d_ssim_mean", "3D SSIM", 3, True),
    Figure("3d_lpips_mean", "3D LPIPS", 3),
    Figure("CD", "Chamfer", 3),
    Figure("IOU", "IoU", 3, True),
    Figure("F1_01", "F@.04", 3, True),
    Figure("F1_02", "F@.05", 3, True),
    Figure("F1_03", "F@.06", 3, True),
    Figure("Rotation Error", "rotation error (deg)", 1),
    Figure("Elevation", "elevation error (deg)", 1),
    Figure("Azimuth", "azimuth error (deg)", 1),
    Figure("Radius", "radius error", 3),
)
FIGURE = {figure.key: figure for figure in FIGURES}
_GROUPS = (
    ("novel views (2D)  PSNR / SSIM / LPIPS", ("2d_psnr_mean", "2d_ssim_mean", "2d_lpips_mean")),
    ("renders (3D)      PSNR / SSIM / LPIPS", ("3d_psnr_mean", "3d_ssim_mean", "3d_lpips_mean")),
    ("mesh              Chamfer / IoU / F@.04", ("CD", "IOU", "F1_01")),
    ("cameras           rotation error, deg", ("Rotation Error",)),
)


@functools.lru_cache(maxsize=1)
def _released_table() -> dict[int, dict]:
    return yaml.safe_load(Path(__file__).with_name("metrics").joinpath("released.yaml").read_text())


def released_means(views: int) -> dict | None:
    """SAP3D's released means for a number of views, under the keys of results.json; None for a number it has not."""
    return _released_table().get(views)


def load_results(path: Path) -> dict:
    """The dictionary in a results.json; raises InputError when there is none."""
    found = read_json(path)
    found = found[0] if isinstance(found, list) and found else found
    if not isinstance(found, dict) or "NAME" not in found:
        raise InputError(f"{path}: not a results.json of this program; delete it and evaluate the object again")
    return found


def find_results(root: Path) -> list[dict]:
    """All results below ``root``/results, by type, object and number of views; files that are not results, or not those of their folder, are left out.

    What tables and pages read has the form in which ``sap3d.evaluate`` writes it: a figure that is no number counts as missing.
    """
    found = []
    for path in sorted(Path(root, "results").glob("*/*/*/results.json")):
        try:
            result = load_results(path)
            if Scene(result.get("type"), result["NAME"], result.get("views"), Path(root)).results_dir != path.parent:
                continue
        except (InputError, RecursionError):  # the second: nested without end
            continue
        found.append(_in_form(result) | {"folder": str(path.parent.relative_to(root))})
    return sorted(found, key=lambda r: (r["type"], r["NAME"], r["views"]))


def _in_form(result: dict) -> dict:
    """``result`` with numbers, or None, where numbers belong, and with groups, stages and notes that can be gone through."""
    result = result | {key: _number(result[key]) for key in (*FIGURE, "seconds", "peak_memory_mb", "energy_joules") if key in result}
    if result.get("energy_joules") is None:  # most machines do not measure it, and tables then have no column for it
        result.pop("energy_joules", None)
    groups, stages, notes = result.get("corrected"), result.get("stages"), result.get("notes")
    groups = groups.items() if isinstance(groups, dict) else ()
    result["corrected"] = {group: {key: _number(value) for key, value in values.items()} for group, values in groups if isinstance(values, dict)}
    stages = [stage for stage in (stages if isinstance(stages, list) else []) if isinstance(stage, dict) and isinstance(stage.get("stage"), str)]
    result["stages"] = [{"seconds": None} | {key: value if key == "stage" else _number(value) for key, value in stage.items()} for stage in stages]
    result["notes"] = [note for note in (notes if isinstance(notes, list) else []) if isinstance(note, str)]
    return result


def _number(value) -> float | None:
    try:
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def dig(result: dict, path: str):
    """A nested value by a dotted path, None where a step is missing: ``dig(r, "corrected.cameras.elevation")``."""
    for step in path.split("."):
        result = result.get(step) if isinstance(result, dict) else None
    return result


def summary_lines(result: dict) -> list[str]:
    """The headline figures of one object beside SAP3D's released means for as many views, aligned."""
    released = released_means(result["views"]) or {}
    beside = f"SAP3D, mean of {released['objects']} GSO objects" if released else ""
    rows = [(f"{result['type']} {result['NAME']}, {result['views']} view{'s' * (result['views'] > 1)}", "here", beside)]
    for label, keys in _GROUPS:
        rows.append((label, *(" / ".join(FIGURE[key].text(values.get(key)) for key in keys) for values in (result, released))))
    if result.get("stages"):
        energy = f", {result['energy_joules'] / 1000:.1f} kJ" if "energy_joules" in result else ""
        rows.append(("time, peak memory" + ", energy" * bool(energy), f"{result['seconds']:.0f} s, {result['peak_memory_mb'] / 1024:.1f} GB{energy}", ""))
    return text_table([row if released else row[:2] for row in rows])


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def mean_of(results: Sequence[dict], key: str) -> float | None:
    """Mean of a (dotted) figure over the results that have it."""
    values = [value for value in (dig(result, key) if "." in key else result.get(key) for result in results) if isinstance(value, (int, float))]
    return float(np.mean(values)) if values else None
