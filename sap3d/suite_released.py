"""A suite's means beside SAP3D's released ones, for docs/results.md: which are better, which worse, and what can be compared at all."""

from __future__ import annotations

from typing import Sequence

from sap3d.intervals import mean_interval
from sap3d.report import TABLE_KEYS
from sap3d.results import FIGURE, markdown_table, released_means
from sap3d.suite import Suite
from sap3d.suite_claims import compare, select

_TEXT = """## Beside SAP3D's released figures

Variant `{variant}` of suite `{name}`. Each cell: the mean here with its 95 % interval over objects, then SAP3D's released mean; bold: better than that; *open*: the released mean lies in the interval.

**The same**: the protocol (photos' directions, 84 test views, white ground, 256 pixels), the definitions of the headline figures, and that cameras are estimated. **Not the same**: the objects
({objects} Google Scanned Objects here, {released} other ones there, another set for each number of photos), their renderer and light, the diffusion model (a small one of this project, trained on 3,000 openly licensed objects at 128
pixels, beside Zero-1-to-3 at 256, trained on 800,000), the first guess of a view and the fields that guide and complete the views, which SAP3D has not, and the machine (two CPU cores beside a GPU of 38 GB and more). So a difference is one between systems on
objects of a kind, not between methods on the same objects. Nothing here was trained on these objects, but some settings were chosen while looking at them (docs/log.md): the means here are optimistic; by how much with two photos, variant second_seed tells.

{table}

**Where the means here are worse**: {losses}.
"""


def released_section(name: str, suite: Suite, rows: Sequence[dict]) -> str:
    """The section in Markdown; empty for a suite that names no variant to compare, or without rows of it."""
    variant, lines, losses, released_objects = suite.beside_released, [], [], set()
    for views in suite.views if variant else ():
        results, released = select(rows, variant, views), released_means(views)
        if not results or not released:
            continue
        released_objects.add(released["objects"])
        cells = []
        for key in TABLE_KEYS:
            figure, interval = FIGURE[key], mean_interval([result[key] for result in results if isinstance(result.get(key), (int, float))])
            if interval is None or key not in released:
                cells.append("-")
                continue
            order = compare(figure, interval.mean, released[key])
            text = interval.text(figure.digits)
            cells.append(f"{f'**{text}**' if order > 0 else text} / {figure.text(released[key])}{', *open*' if interval.holds(released[key]) else ''}")
            if order < 0:
                losses.append(f"{figure.heading} with {views} photos ({figure.text(interval.mean)}, released {figure.text(released[key])})")
        lines.append([views, *cells])
    if not lines:
        return ""
    table = markdown_table(["photos", *(FIGURE[key].heading for key in TABLE_KEYS)], lines)
    count = f"{min(released_objects)} to {max(released_objects)}" if len(released_objects) > 1 else str(min(released_objects))
    return _TEXT.format(variant=variant, name=name, objects=len(suite.objects), released=count, table=table, losses="; ".join(losses) or "nowhere")
