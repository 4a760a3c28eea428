"""Sets docs/results.md from the rows in docs/results_rows: every figure in it comes from there, none is typed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sap3d.intervals import Interval, mean_interval
from sap3d.metrics.pose import ANGLE_THRESHOLDS_DEG
from sap3d.report import TABLE_KEYS, figure_cells
from sap3d.results import FIGURE, dig, markdown_table, mean_of, released_means
from sap3d.scene import REPOSITORY, write_text
from sap3d.suite import ROWS, SUITES, Suite, load_rows, load_suite
from sap3d.suite_baselines import structure_from_motion_section
from sap3d.suite_claims import MARK, MARK_LEGEND, claims_section, latest_versions, of_another_version, select
from sap3d.suite_gallery import write_gallery
from sap3d.suite_parts import parts_sections
from sap3d.suite_plots import write_plots
from sap3d.suite_released import released_section

PAGE = REPOSITORY / "docs" / "results.md"
_HEADINGS = [FIGURE[key].heading for key in TABLE_KEYS]
_MOST_LINES = 40  # a longer table is folded
_INTRODUCTION = """# Results

Made by `python -m sap3d.suite --render` from the rows in `docs/results_rows/`; do not edit. A suite is a file in
`docs/suites/`; `python -m sap3d.suite NAME` runs it and measures again what has changed.

Headline figures follow SAP3D's evaluation (2D: the diffusion model's 84 novel views; 3D: the NeRF's 84 renders; PSNR pooled
over the views, LPIPS-AlexNet fed [0, 1]; Chamfer, IoU and F-score without alignment). "Strict" figures: mean PSNR of the
images, LPIPS fed [-1, 1], mesh aligned by the cameras and seen from all sides, rotation error with absolute elevation.
`results/README.md` defines each. SAP3D's released means are over other sets of Google Scanned Objects, with its full-size
models on a GPU. Time is the sum of the stages' wall times, memory the largest resident size of any stage.
"""


def write_results_page(page: Path = PAGE) -> Path:
    """Write the page with every suite that has rows, first those that are set beside SAP3D's figures; returns its path."""
    suites = sorted((load_suite(str(path)) for path in SUITES.glob("*.yaml")), key=lambda item: (not item[1].beside_released, item[0]))
    measured = [(name, suite, rows) for name, suite in suites if (rows := load_rows(name))]
    everything = [row for _, _, rows in measured for row in rows]
    released = [released_section(name, suite, rows) for name, suite, rows in measured]
    sections = [*released, *(suite_section(*one, page.parent) for one in measured), *parts_sections(), structure_from_motion_section(everything)]
    sections = [section for section in sections if section]
    write_text(page, "\n".join([_INTRODUCTION, contents(sections), *sections]))
    return page


def contents(sections: list[str]) -> str:
    """A list of links to the sections' headings, by GitHub's rule for anchors."""
    headings = [section.split("\n")[0].removeprefix("## ") for section in sections]
    return "".join(f"* [{heading}](#{re.sub(r'[^a-z0-9_ -]', '', heading.lower()).replace(' ', '-')})\n" for heading in headings)


def suite_section(name: str, suite: Suite, rows: list[dict], folder: Path) -> str:
    """One suite in Markdown: means, claims, plots (in ``folder``/images), strict figures, a row an object, time and memory."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows if row["commit"]))
    dates = sorted(row["finished"] for row in rows)
    cores = ", ".join(dict.fromkeys(str(row["cores"]) for row in rows))
    parts = [
        f"## {suite.title or name}\n",
        *([suite.about.strip() + "\n"] if suite.about else []),
        f"`python -m sap3d.suite {name}`; {suite.type}, {len(suite.objects)} objects; measured {dates[0]} to {dates[-1]}, {cores} cores, "
        f"code {commits or 'unknown'}; rows: [{name}.csv]({ROWS.name}/{name}.csv).\n",
        "\n".join(f"* **{key}**: {variant.about}" for key, variant in suite.variants.items() if variant.about) + "\n",
        means_table(suite, rows) + "\n",
    ]
    versions = latest_versions(rows)
    if any(of_another_version(rows, key, n, versions) for n, key, _ in groups(suite, rows)):
        parts.append(f"{MARK_LEGEND}\n")
    if suite.claims:
        parts.append(f"{claims_section(suite.claims, rows)}\n")
    for caption, path in write_plots(name, suite, rows, folder / "images").items():
        parts.append(f"![{caption}]({path.relative_to(folder).as_posix()})\n\n*{caption}.*\n")
    gallery = write_gallery(name, suite, rows, folder)
    parts += [f"### The worst objects\n\n{gallery}"] if gallery else []
    for heading, table in _TABLES.items():
        text = table(suite, rows)
        if text:
            lines = text.count("\n") - 1
            parts.append(f"### {heading}\n\n{f'<details><summary>{lines} rows</summary>{chr(10) * 2}{text}{chr(10) * 2}</details>' if lines > _MOST_LINES else text}\n")
    return "\n".join(parts)


def groups(suite: Suite, rows: list[dict]) -> list[tuple[int, str, list[dict]]]:
    """(views, variant, results) of every combination that has rows, by number of views."""
    counts = sorted({row["result"]["views"] for row in rows})
    return [(n, key, found) for n in counts for key in suite.variants if (found := select(rows, key, n))]


def means_table(suite: Suite, rows: list[dict]) -> str:
    lines, last = [], None
    found, versions = groups(suite, rows), latest_versions(rows)
    for index, (n, key, results) in enumerate(found):
        mark = f" {MARK}" if of_another_version(rows, key, n, versions) else ""
        lines.append([n, key + mark, len(results), *figure_cells({k: mean_of(results, k) for k in TABLE_KEYS})])
        last = index + 1 == len(found) or found[index + 1][0] != n
        released = released_means(n)
        if last and released:
            lines.append([n, "*SAP3D, released*", released["objects"], *(f"*{cell}*" if cell != "-" else cell for cell in figure_cells(released))])
    return markdown_table(["views", "variant", "objects", *_HEADINGS], lines)


def intervals_table(suite: Suite, rows: list[dict]) -> str:
    """95 % intervals of the means over objects; groups of one object are left out. Empty when that leaves nothing."""
    lines = []
    for n, key, results in groups(suite, rows):
        values = [[value for result in results if isinstance(value := result.get(k), (int, float))] for k in TABLE_KEYS]
        found = [mean_interval(column) for column in values]
        if any(interval and interval.low is not None for interval in found):
            lines.append([n, key, *(_span(FIGURE[k].digits, interval) for k, interval in zip(TABLE_KEYS, found))])
    return markdown_table(["views", "variant", *_HEADINGS], lines) if lines else ""


def _span(digits: int, interval: Interval | None) -> str:
    return "-" if interval is None or interval.low is None else f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def strict_table(suite: Suite, rows: list[dict]) -> str:
    columns = {
        "2D PSNR": ("corrected.2d.psnr", 2),
        "2D LPIPS": ("corrected.2d.lpips", 3),
        "3D PSNR": ("corrected.3d.psnr", 2),
        "3D LPIPS": ("corrected.3d.lpips", 3),
        "Chamfer, aligned": ("corrected.shape.chamfer", 3),
        "IoU, aligned": ("corrected.shape.iou", 3),
        "elevation (deg)": ("corrected.cameras.elevation", 1),
        "azimuth (deg)": ("corrected.cameras.azimuth", 1),
        "centre error": ("corrected.cameras.center_aligned", 3),
        "stage 1 rotation (deg)": ("corrected.initial_cameras.rotation_pairs", 1),
    }
    lines = []
    for n, key, results in groups(suite, rows):
        values = [(mean_of(results, path), digits) for path, digits in columns.values()]
        errors = np.array([e for result in results if (e := dig(result, "corrected.cameras.rotation_pairs")) is not None])
        cells = ["-" if value is None else f"{value:.{digits}f}" for value, digits in values]
        if len(errors):
            shares = " / ".join(f"{100 * np.mean(errors < d):.0f}" for d in ANGLE_THRESHOLDS_DEG)
            cells += [f"{errors.mean():.1f} / {np.median(errors):.1f}", shares]
        lines.append([n, key, *cells, *["-"] * (len(columns) + 2 - len(cells))])
    return markdown_table(["views", "variant", *columns, "rotation mean / median (deg)", "% of objects under 5 / 10 / 15 / 30 deg"], lines)


def camera_steps_table(suite: Suite, rows: list[dict]) -> str:
    """Errors of the cameras after stage 1 and after test-time training; variants that take another one's training are left out."""
    lines = []
    for n, key, results in groups(suite, rows):
        if "camerabooth" in suite.variants[key].share:
            continue
        steps = [("stage 1", "initial_cameras", "relposepp"), ("test-time training", "cameras", "camerabooth training")]
        for step, cameras, stage in steps[: 1 if "train=false" in suite.variants[key].settings.get("camerabooth", []) else 2]:
            found = [result for result in results if dig(result, f"corrected.{cameras}.rotation_pairs") is not None]
            if not found:
                continue
            value = lambda name: mean_of(found, f"corrected.{cameras}.{name}")  # noqa: B023, E731
            errors = [dig(result, f"corrected.{cameras}.rotation_pairs") for result in found]
            shares = " / ".join(f"{100 * value(f'rotation_pairs_under_{d}'):.0f}" for d in ANGLE_THRESHOLDS_DEG)
            seconds = [s["seconds"] for result in found for s in result.get("stages", []) if s["stage"] == stage]
            lines.append([n, key, step, f"{np.mean(errors):.2f} / {np.median(errors):.2f}", shares, f"{value('elevation'):.1f}", f"{value('center_aligned'):.3f}",
                          f"{np.mean(seconds):.0f}" if seconds else "-"])  # fmt: skip
    if not lines:
        return ""
    header = ["views", "variant", "after", "rotation, mean / median of objects (deg)", "% of pairs under 5 / 10 / 15 / 30 deg", "elevation (deg)", "centre (object lengths)", "seconds"]
    return markdown_table(header, lines)


def object_table(suite: Suite, rows: list[dict]) -> str:
    order = {key: place for place, key in enumerate(suite.variants)}
    ordered = sorted(rows, key=lambda r: (r["result"]["NAME"], r["result"]["views"], order.get(r["variant"], len(order))))
    lines = [[row["result"]["NAME"], row["result"]["views"], row["variant"], *figure_cells(row["result"])] for row in ordered]
    return markdown_table(["object", "views", "variant", *_HEADINGS], lines)


def time_table(suite: Suite, rows: list[dict]) -> str:
    """Mean seconds of each stage, mean and longest total, largest memory, and energy where machines told; shared outputs count with the time they took."""
    energy_known = any("energy_joules" in row["result"] for row in rows)
    stages = list(dict.fromkeys(stage["stage"] for row in rows for stage in row["result"].get("stages", [])))
    lines = []
    for n, key, results in groups(suite, rows):
        timed = [result for result in results if result.get("stages")]
        if not timed:
            continue
        per_stage = [[s["seconds"] for result in timed for s in result["stages"] if s["stage"] == stage] for stage in stages]
        totals = [result["seconds"] for result in timed]
        loads = [row["load_before"] for row in rows if row["variant"] == key and row["result"]["views"] == n]
        cells = [f"{np.mean(seconds):.0f}" if seconds else "-" for seconds in per_stage]
        memory = max(result["peak_memory_mb"] for result in timed) / 1024
        lines.append([n, key, *cells, f"{np.mean(totals):.0f} / {max(totals):.0f}", f"{memory:.1f}", f"{np.mean(loads):.1f}"])
        if energy_known:
            joules = [result["energy_joules"] for result in timed if "energy_joules" in result]
            lines[-1].append(f"{np.mean(joules) / 1000:.1f}" if joules else "-")
    header = ["views", "variant", *(f"{stage} (s)" for stage in stages), "total mean / longest (s)", "peak memory (GB)", "load before"] + ["energy (kJ)"] * energy_known
    return markdown_table(header, lines)


_TABLES = {
    "Intervals of the means (95 %, bootstrap over objects)": intervals_table,
    "Strict figures": strict_table,
    "Cameras, step by step": camera_steps_table,
    "Each object": object_table,
    "Time and memory": time_table,
}
