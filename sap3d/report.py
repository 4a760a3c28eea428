"""Collects every evaluated object into one table and one page.

    python -m sap3d.report [--type GSO_demo]

Reads results/<TYPE>/<OBJECT>/<N>/results.json below ROOT_DIR (or the repository) and writes
    results/summary.csv     a row an object and number of views, all figures
    results/summary.md      means by type and number of views beside SAP3D's released means, then a row an object
    results/index.html      the same with pictures, in one file that can be sent around
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
from itertools import groupby
from pathlib import Path

from sap3d.errors import InputError, cli
from sap3d.results import FIGURE, FIGURES, dig, find_results, markdown_table, mean_of, released_means
from sap3d.scene import atomic_path, root_dir, write_text

TABLE_KEYS = (
    *("2d_psnr_mean", "2d_ssim_mean", "2d_lpips_mean"),
    *("3d_psnr_mean", "3d_ssim_mean", "3d_lpips_mean"),
    *("CD", "IOU", "F1_01", "Rotation Error"),
)
_HEADINGS = [FIGURE[key].heading for key in TABLE_KEYS]
_ANGLES = {
    "initial rotation": "corrected.initial_cameras.rotation_pairs",
    "refined rotation": "corrected.cameras.rotation_pairs",
    "elevation": "corrected.cameras.elevation",
}
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } tr.released td { color: #777; font-style: italic }
section { border-top: 2px solid #333; margin-top: 2em } img { max-width: 100%; height: auto } .note { color: #a04000 }
"""


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
        rows.append(([f"{type_}, {views} views, mean of {len(group)}", *figure_cells(means), _minutes(mean_of(group, "seconds"))], False))
        released = released_means(views)
        if released:
            rows.append(([f"SAP3D, {views} views, mean of {released['objects']} GSO objects", *figure_cells(released), ""], True))
    return rows


def markdown(results: list[dict]) -> str:
    """Means, then a row an object, as Markdown."""
    means = markdown_table(["", *_HEADINGS, "time"], [row for row, _ in mean_rows(results)])
    each = markdown_table(
        ["object", "views", *_HEADINGS, "time", "memory"],
        [[r["NAME"], r["views"], *figure_cells(r), _minutes(r.get("seconds")), f"{(r.get('peak_memory_mb') or 0) / 1024:.1f} GB"] for r in results],
    )
    return f"{means}\n\n{each}\n"


def page(results: list[dict], root: Path) -> str:
    """The HTML report; pictures are embedded."""
    rows = "".join(f"<tr{' class=released' if released else ''}>{_cells(row)}</tr>" for row, released in mean_rows(results))
    parts = [f"<table><tr>{_cells(['', *_HEADINGS, 'time'], 'th')}</tr>{rows}</table>"]
    for result in results:
        folder = Path(root, result["folder"])
        title = f"{result['type']} {result['NAME']}, {result['views']} view{'s' * (result['views'] > 1)}"
        released = released_means(result["views"])
        table = f"<tr>{_cells(['', *_HEADINGS], 'th')}</tr><tr>{_cells(['here', *figure_cells(result)])}</tr>"
        if released:
            table += f"<tr class=released>{_cells(['SAP3D, released mean', *figure_cells(released)])}</tr>"
        times = ", ".join(
            f"{html.escape(str(stage['stage']))} {stage['seconds']:.0f} s / {(stage.get('peak_memory_mb') or 0) / 1024:.1f} GB"
            for stage in result.get("stages", [])
        )
        angles = ", ".join(f"{label} error {dig(result, path):.1f}&deg;" for label, path in _ANGLES.items() if dig(result, path) is not None)
        notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in result.get("notes", []))
        pictures = "".join(_picture(folder / name) for name in ("contact_sheet.png", "cameras.png"))
        parts.append(f"<section><h2>{html.escape(title)}</h2><table>{table}</table><p>{angles}</p><p>{times}</p>{notes}{pictures}</section>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>SAP3D results</title><style>{_STYLE}</style>"
    return f"{head}<h1>Results</h1>{''.join(parts)}</html>\n"


def _picture(path: Path) -> str:
    from PIL import Image

    if not path.is_file():
        return ""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return f'<p><img alt="{path.stem}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def _cells(values, tag: str = "td") -> str:
    return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)


def _minutes(seconds: float | None) -> str:
    return "-" if not seconds else f"{seconds / 60:.1f} min"


def write_report(root: Path, type_: str | None = None) -> str:
    """Write summary.csv, summary.md and index.html below ``root``/results; returns the Markdown."""
    results = collect(root, type_)
    text = markdown(results)
    write_csv(root / "results" / "summary.csv", [flat_row(result) for result in results])
    write_text(root / "results" / "summary.md", text)
    write_text(root / "results" / "index.html", page(results, root))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sap3d.report", description="Collect every evaluated object into one table and one page.")
    parser.add_argument("--type", help="only this dataset type")
    arguments = parser.parse_args()
    root = root_dir()
    print(write_report(root, arguments.type))
    print(f"{root / 'results' / 'index.html'}\n{root / 'results' / 'summary.csv'}")


if __name__ == "__main__":
    cli(main)
