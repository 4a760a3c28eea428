"""Parts of the pipeline measured by themselves, for docs/results.md: the bundled prior with true cameras, its autoencoders, stage 1 alone, and recovery."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Sequence

from sap3d.errors import InputError
from sap3d.intervals import mean_interval
from sap3d.results import markdown_table
from sap3d.scene import read_json
from sap3d.suite import ROWS

PRIOR, STAGE_1, AUTOENCODERS, RECOVERY = "prior_*.csv", "relposepp_*.json", "autoencoders.json", "recovery.json"  # the first two: a file a dataset type
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
    if (rows := folder / AUTOENCODERS).is_file():
        sections.append(
            "## Autoencoders\n\n"
            "The truth encoded and decoded, 256 pixels, every eighth view of sixteen scans, means over objects with 95 % intervals: `python -m benchmarks.autoencoders --corpus dataset/corpus_cache dataset/corpus_cache_procedural --minutes 0.7 "
            "--type GSO_dev --every 8 --ways none pca_4 pca_8 pca_8_decoder vae pca_8_both --rows docs/results_rows/autoencoders.json`, on one GPU that other trainings shared. none: only reduced to the model's 128 pixels and enlarged "
            "again, which bounds all others; pca_8: the bundled one; the last three were trained (a correction of its decoding, a convolutional VAE from nothing, corrections of both sides), for as many pictures as the table says. "
            f"Rows: {_links([rows])}.\n\n{autoencoder_tables(rows)}\n"
        )
    if found := sorted(folder.glob(STAGE_1)):
        sections.append(
            "## Stage 1 by itself\n\n"
            "Relative rotations of the first photos, over pairs: `python -m relposepp.evaluate --type TYPE --views 2 3 4 5 8 --out docs/results_rows/relposepp_TYPE.json`, default effort (`--scenes 20` for CORPUS_test, "
            f"furniture of which every third looks alike from two or four sides: the best kept hypothesis tells more there). Best kept hypothesis: the mean over objects of the least median error among the alternatives that stage 1 keeps. Rows: {_links(found)}.\n\n{stage_1_table(found)}\n"
        )
    if (rows := folder / RECOVERY).is_file():
        sections.append(
            "## Recovery by re-rendering\n\n"
            "Views that the others contradict, looked for anew (`python -m camerabooth.recovery`, which the pipeline does without): `python -m benchmarks.recovery --type TYPE --views 3 4 5 --rows "
            "docs/results_rows/recovery.json`. stage_1: from the cameras of stage 1; one_wrong: from the true cameras, one of them turned away by 60 to 300 degrees. Errors of an object: mean over its pairs of photos. "
            f"Rows: {_links([rows])}.\n\n{recovery_table(rows)}\n"
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


def autoencoder_tables(path: Path) -> str:
    """The rows of ``benchmarks.autoencoders`` in Markdown: means over objects with 95 % intervals, then PSNR / LPIPS object by object."""
    rows = read_json(path)
    if not rows:
        raise InputError(f"{path}: no rows of benchmarks.autoencoders there")
    times = any("cpu_decode_ms" in row for row in rows)
    lines = []
    for row in rows:
        seen = f"{row['samples']:,}" if row["samples"] else "-"
        speed = f"{row['images_per_second']:.0f}" if row["samples"] else "-"
        figures = [mean_interval([found[key] for found in row["objects"].values()]).text(digits) for key, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3))]
        spent = [f"{row['cpu_encode_ms']:.1f} / {row['cpu_decode_ms']:.1f}" if "cpu_decode_ms" in row else "-"] if times else []
        lines.append([row["autoencoder"], row["latent"], f"{row['parameters']:,}", seen, speed, *figures, *spent])
    header = ["autoencoder", "latents", "numbers stored", "images seen", "a second", "PSNR", "SSIM", "LPIPS"] + ["CPU ms, encode / decode"] * times
    by_object = [[name] + [f"{row['objects'][name]['psnr']:.2f} / {row['objects'][name]['lpips']:.3f}" for row in rows] for name in rows[0]["objects"]]
    return markdown_table(header, lines) + "\n\n" + markdown_table(["PSNR / LPIPS", *(row["autoencoder"] for row in rows)], by_object)


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


def recovery_table(path: Path) -> str:
    """The rows of ``benchmarks.recovery`` in Markdown, a line a dataset type, start and number of photos."""
    groups: dict[tuple[str, str, int], list[dict]] = {}
    for row in read_json(path):
        groups.setdefault((row["type"], row["start"], row["views"]), []).append(row)
    lines = []
    for (type_, start, views), rows in groups.items():
        before, after = ([row[key] for row in rows] for key in ("before_deg", "after_deg"))
        moved = [row for row in rows if any(move["kept"] for move in row["moves"])]
        better = sum(row["after_deg"] < row["before_deg"] for row in moved)
        shares = " -> ".join(f"{100 * sum(error < 15 for error in errors) / len(rows):.0f}" for errors in (before, after))
        lines.append([type_, start, str(views), str(len(rows)), " -> ".join(f"{sum(errors) / len(rows):.1f}" for errors in (before, after)), shares,
                      f"{better} / {len(moved) - better}", f"{sum(row['seconds'] for row in rows) / len(rows):.0f}"])  # fmt: skip
    header = ["type", "start", "photos", "objects", "mean error (deg)", "% of objects under 15 deg", "objects with a move: nearer / farther", "seconds"]
    return markdown_table(header, lines)


def _type(path: Path) -> str:
    return path.stem.split("_", 1)[1]


def _links(files: Sequence[Path]) -> str:
    return ", ".join(f"[{path.name}]({ROWS.name}/{path.name})" for path in files)
