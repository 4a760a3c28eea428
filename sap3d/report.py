"""Collects every evaluated object into one table and one page.

    python -m sap3d.report [--type GSO_demo]

Reads results/<TYPE>/<OBJECT>/<N>/results.json below ROOT_DIR (or the repository) and writes
    results/summary.csv     a row an object and number of views, all figures
    results/summary.md      means by type and number of views beside SAP3D's released means, then a row an object
    results/index.html      the same with photos, views, turntable and the mesh in 3D, in one file that needs no network and can be sent around
"""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.report_page import minutes, page
from sap3d.results import FIGURE, FIGURES, find_results, markdown_table, mean_of, released_means
from sap3d.scene import atomic_path, root_dir, write_text

TABLE_KEYS = (
    *("2d_psnr_mean", "2d_ssim_mean", "2d_lpips_mean"),
    *("3d_psnr_mean", "3d_ssim_mean", "3d_lpips_mean"),
    *("CD", "IOU", "F1_01", "Rotation Error"),
)
_HEADINGS = [FIGURE[key].heading for key in TABLE_KEYS]


def collect(root: Path, type_: str | None = None) -> list[dict]:
    """All results below ``root``, of one dataset type if given; raises InputError when there are none."""
    found = [result for result in find_results(root) if type_ in (None, result["type"])]
    if not found:
        raise InputError(f"{root / 'results'}: no results{f' of type {type_}' if type_ else ''} yet; run the pipeline or sap3d.evaluate first")
    return found


def flat_row(result: dict) -> dict:
    """One flat dictionary of an object's figures: names, headline keys, ``corrected.*``, times and memory."""
    row = {"type": result["type"], "object": result["NAME"], "views": result["views"]}
    row.update({figure.key: result.get(figure.key) for figure in FIGURES})
    for group, values in result.get("corrected", {}).items():
        row.update({f"corrected.{group}.{key}": value for key, value in values.items()})
    row["seconds"], row["peak_memory_mb"] = result.get("seconds"), result.get("peak_memory_mb")
    if "energy_joules" in result:
        row["energy_joules"] = result["energy_joules"]
    for stage in result.get("stages", []):
        row[f"seconds.{stage['stage']}"] = stage["seconds"]
        row[f"peak_memory_mb.{stage['stage']}"] = stage.get("peak_memory_mb")
    return row


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows with the union of their keys as columns; None is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def figure_cells(values: dict) -> list[str]:
    return [FIGURE[key].text(values.get(key)) for key in TABLE_KEYS]


def mean_rows(results: list[dict]) -> list[tuple[list[str], bool]]:
    """Table rows (cells, is_released): means by type and number of views, each followed by SAP3D's for as many views."""
    rows = []
    for (type_, views), group in groupby(sorted(results, key=lambda r: (r["type"], r["views"])), lambda r: (r["type"], r["views"])):
        group = list(group)
        means = {key: mean_of(group, key) for key in TABLE_KEYS}
        rows.append(([f"{type_}, {views} view{'s' * (views != 1)}, mean of {len(group)}", *figure_cells(means), minutes(mean_of(group, "seconds"))], False))
        released = released_means(views)
        if released and any(value is not None for value in means.values()):
            rows.append(([f"SAP3D, {views} view{'s' * (views != 1)}, mean of {released['objects']} GSO objects", *figure_cells(released), ""], True))
    return rows


def markdown(results: list[dict]) -> str:
    """Means, then a row an object, as Markdown."""
    means = markdown_table(["", *_HEADINGS, "time"], [row for row, _ in mean_rows(results)])
    each = markdown_table(
        ["object", "views", *_HEADINGS, "time", "memory"],
        [[r["NAME"], r["views"], *figure_cells(r), minutes(r.get("seconds")), f"{(r.get('peak_memory_mb') or 0) / 1024:.1f} GB"] for r in results],
    )
    return f"{means}\n\n{each}\n"


def write_report(root: Path, type_: str | None = None) -> str:
    """Write summary.csv, summary.md and index.html below ``root``/results; returns the Markdown."""
    results = collect(root, type_)
    text = markdown(results)
    write_csv(root / "results" / "summary.csv", [flat_row(result) for result in results])
    write_text(root / "results" / "summary.md", text)
    write_text(root / "results" / "index.html", page(results, root, mean_rows(results), TABLE_KEYS))
    return text


def main() -> None:
    parser = ArgumentParser(prog="python -m sap3d.report", description="Collect every evaluated object into one table and one page.")
    parser.add_argument("--type", help="only this dataset type")
    arguments = parser.parse_args()
    root = root_dir()
    print(write_report(root, arguments.type))
    print(f"{root / 'results' / 'index.html'}\n{root / 'results' / 'summary.csv'}")


if __name__ == "__main__":
    cli(main)
