"""Baselines of docs/results.md that are not variants of a suite: rows of other programs, set beside the suites' own."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from sap3d.results import dig, markdown_table
from sap3d.scene import read_json
from sap3d.suite import ROWS

STRUCTURE_FROM_MOTION = "structure_from_motion.json"
RIGHT_DEG = 15  # as in the released evaluation's share of right cameras


def structure_from_motion_section(suite_rows: Sequence[dict]) -> str:
    """COLMAP on the same photos in Markdown, beside the rows of all suites; empty without its rows."""
    rows = read_json(ROWS / STRUCTURE_FROM_MOTION)
    if not isinstance(rows, list) or not rows:
        return ""
    objects = len({row["object"] for row in rows})
    return (
        f"## Classical structure from motion on the same photos\n\n"
        f"`python -m benchmarks.structure_from_motion --type {rows[0]['type']}`: {rows[0]['program']} on the first photos of {objects} objects over white, "
        f"field of view given; its default thresholds, and lenient ones (in that program). A photo that it cannot register is a failure. Rotation errors: "
        f"relative rotations of pairs, over registered photos alone. Beside it the same error (each object's mean over its pairs) of the full method on the "
        f"objects that a suite has measured, all photos placed. Rows: [{STRUCTURE_FROM_MOTION}]({ROWS.name}/{STRUCTURE_FROM_MOTION}).\n\n"
        f"{structure_from_motion_table(rows, suite_rows)}\n"
    )


def structure_from_motion_table(rows: Sequence[dict], suite_rows: Sequence[dict]) -> str:
    """A line a number of photos and setting; ``suite_rows``: of all suites, where variant ``full`` of the same objects is looked for."""
    lines = []
    for views, settings in dict.fromkeys((row["views"], row["settings"]) for row in rows):
        chosen = [row for row in rows if (row["views"], row["settings"]) == (views, settings)]
        errors = [error for row in chosen for error in row["rotation_errors_deg"].values()]
        objects = {(row["type"], row["object"]) for row in chosen}
        ours = {}
        for row in suite_rows:
            result = row["result"]
            error = dig(result, "corrected.cameras.rotation_pairs")
            if row["variant"] == "full" and result["views"] == views and (result["type"], result["NAME"]) in objects and error is not None:
                ours[result["NAME"]] = error
        count = sum(len(row["registered"]) for row in chosen)
        whole = [row for row in chosen if len(row["registered"]) == views]
        right = sum(max(row["rotation_errors_deg"].values(), default=0.0) < RIGHT_DEG for row in whole)
        lines.append([
            views, settings, f"{len(whole)} of {len(chosen)}", str(right), f"{count} of {views * len(chosen)}", _spread(errors), f"{np.mean([row['seconds'] for row in chosen]):.0f}",
            f"{_spread(list(ours.values()))}{f' of {len(ours)} objects' if ours else ''}",
        ])  # fmt: skip
    header = [
        "photos", "thresholds", "objects with all photos registered", f"and all pairs under {RIGHT_DEG} deg", "photos registered",
        "rotation error mean / median (deg)", "seconds an object", "full method here: mean / median (deg)",
    ]  # fmt: skip
    return markdown_table(header, lines)


def _spread(errors: Sequence[float]) -> str:
    return f"{np.mean(errors):.1f} / {np.median(errors):.1f}" if len(errors) else "-"
