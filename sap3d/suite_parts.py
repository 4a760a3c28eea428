"""Parts of the pipeline measured by themselves, for docs/results.md: the bundled prior with true cameras, and stage 1 alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Sequence

from sap3d.intervals import mean_interval
from sap3d.results import markdown_table
from sap3d.suite import ROWS

PRIOR, STAGE_1 = "prior_*.csv", "relposepp_*.json"  # a file a dataset type
_FIGURES = (("psnr", 2), ("ssim", 3), ("lpips", 3))
_SHARES = ("under_5", "under_10", "under_15", "under_30")


def parts_sections(folder: Path | None = None) -> list[str]:
    """A section in Markdown for each part that has rows in ``folder`` (None: that of the suites' rows)."""
    folder = folder or ROWS
    sections = []
    if found := sorted(folder.glob(PRIOR)):
        sections.append(
            "## The bundled prior by itself\n\n"
            "Zero-shot novel views from the first photos with their TRUE cameras, over the protocol's 84 views, no test-time training: `python -m camerabooth.prior.evaluate --type TYPE --guess --rows "
            f"docs/results_rows/prior_TYPE.csv --views 1 2`. First guess: the renderer alone, before diffusion. Repeated photo: the first photo in the place of every view. Autoencoder: the truth encoded "
            f"and decoded, which bounds what diffusion can add to a guess, not the guess's own detail. Means over objects with 95 % intervals. Rows: {_links(found)}.\n\n{prior_table(found)}\n"
        )
    if found := sorted(folder.glob(STAGE_1)):
        sections.append(
            "## Stage 1 by itself\n\n"
            "Relative rotations of the first photos, over pairs: `python -m relposepp.evaluate --type TYPE --views 2 3 4 5 --out docs/results_rows/relposepp_TYPE.json`, default effort (`--scenes 20` for CORPUS_test, "
            f"furniture for the most part). Best kept hypothesis: the mean over objects of the least median error among the alternatives that stage 1 keeps. Rows: {_links(found)}.\n\n{stage_1_table(found)}\n"
        )
    return sections


def prior_table(files: Sequence[Path]) -> str:
    """A line a dataset type, way and number of photos."""
    lines = []
    for path in files:
        groups: dict[tuple[str, int], list[dict]] = {}
        with open(path, newline="") as stream:
            for row in csv.DictReader(stream):
                groups.setdefault((row["way"], int(row["views"])), []).append(row)
        for (way, views), rows in groups.items():
            cells = [mean_interval([float(row[figure]) for row in rows]).text(digits) for figure, digits in _FIGURES]
            lines.append([_type(path), way, str(views or "-"), str(len(rows)), *cells])
    return markdown_table(["type", "novel views", "photos", "objects", "PSNR", "SSIM", "LPIPS"], lines)


def stage_1_table(files: Sequence[Path]) -> str:
    """A line a dataset type and number of photos."""
    lines = []
    for path in files:
        for views, found in json.loads(path.read_text()).items():
            figures = found["summary"]
            shares = " / ".join(f"{100 * figures[share]:.0f}" for share in _SHARES)
            lines.append([_type(path), views, str(len(found["scenes"])), f"{figures['mean_deg']:.1f} / {figures['median_deg']:.2f}", shares, f"{figures['best_of_hypotheses_deg']:.1f}",
                          f"{figures['elevation_error_deg']:.1f}", f"{figures['centre_error']:.3f}", f"{figures['seconds']:.0f}"])  # fmt: skip
    header = ["type", "photos", "objects", "rotation, mean / median (deg)", "% of pairs under 5 / 10 / 15 / 30 deg", "best kept hypothesis (deg)", "elevation (deg)", "centre (object lengths)", "seconds"]
    return markdown_table(header, lines)


def _type(path: Path) -> str:
    return path.stem.split("_", 1)[1]


def _links(files: Sequence[Path]) -> str:
    return ", ".join(f"[{path.name}]({ROWS.name}/{path.name})" for path in files)
