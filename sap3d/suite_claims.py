"""The comparisons that a suite claims, judged on its rows: differences over the objects that both sides have, with intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Mapping, Sequence

import numpy as np

from sap3d.intervals import mean_interval
from sap3d.results import FIGURE, Figure, markdown_table
from sap3d.suite import Claim

LEGEND = (
    "The first minus the second: mean over the objects that both have, its 95 % interval (paired bootstrap over objects), and on how many of them "
    "the first is better. The means of both sides, to the digits of this table, may also be **equal** or the first **worse**; *open*: the interval holds zero. "
    "Figures below 1 have a digit more than above: both sides share the object, mostly the cameras too, so that their difference is known better than either mean."
)

MARK = "†"
MARK_LEGEND = f"{MARK}: measured, in part or in whole, with weights or default settings other than those of the suite's latest row; in a comparison: the two sides differ in them too."


def select(rows: Sequence[dict], variant: str, views: int) -> list[dict]:
    """The results of one variant and number of views."""
    return [row["result"] for row in rows if row["variant"] == variant and row["result"]["views"] == views]


def latest_versions(rows: Sequence[dict]) -> dict[frozenset[bool], str]:
    """Weights and defaults (``made_by``) of the rows that were measured last, by whether they and what they share were made with --quick."""
    return {_quick(row): row.get("made_by", "") for row in sorted(rows, key=lambda row: row.get("finished", ""))}


def of_another_version(rows: Sequence[dict], variant: str, views: int, versions: Mapping[frozenset[bool], str]) -> bool:
    """Whether some row of a variant and number of views was measured with weights or defaults other than ``versions``."""
    return any(row.get("made_by", "") != versions[_quick(row)] for row in rows if row["variant"] == variant and row["result"]["views"] == views)


def _quick(row: dict) -> frozenset[bool]:
    return frozenset(one["quick"] for one in row.get("made_from", {}).get("lineage", []))


def mixed(claim: Claim, rows: Sequence[dict]) -> bool:
    """Whether the two sides of a claim differ in weights or defaults too, for some object that both have. With --quick and without are two versions of one time."""
    versions = latest_versions(rows)
    first, second = ({row["result"]["NAME"]: row for row in rows if f"{row['variant']}@{row['result']['views']}" == side} for side in (claim.better, claim.worse))
    pairs = [(first[name], second[name]) for name in first.keys() & second.keys()]
    made = lambda row: row.get("made_by", "")  # noqa: E731
    return any(made(a) != made(b) if _quick(a) == _quick(b) else any(made(row) != versions[_quick(row)] for row in (a, b)) for a, b in pairs)


def claims_table(claims: Sequence[Claim], rows: Sequence[dict]) -> str:
    """A line a claim, a column a figure; a figure that a claim does not name or that nobody has measured is left out ("-")."""
    keys = [key for key in FIGURE if any(key in claim.figures for claim in claims)]
    heading = [f"{FIGURE[key].heading} ({'more' if FIGURE[key].more_is_better else 'less'} is better)" for key in keys]
    lines = [[f"{claim.better} over {claim.worse}{f' {MARK}' if mixed(claim, rows) else ''}", *(claim_cell(claim, key, rows) if key in claim.figures else "-" for key in keys)] for claim in claims]
    return markdown_table(["claim", *heading], lines)


def claims_section(claims: Sequence[Claim], rows: Sequence[dict]) -> str:
    """The legend, and a table for each part of the claims under its name."""
    parts: list[tuple[str, list[Claim]]] = []
    for claim in claims:
        if claim.part or not parts:
            parts.append((claim.part, []))
        parts[-1][1].append(claim)
    return "\n\n".join([LEGEND, *(f"**{name}**\n\n{claims_table(group, rows)}" if name else claims_table(group, rows) for name, group in parts)])


def claim_cell(claim: Claim, key: str, rows: Sequence[dict]) -> str:
    """One claim in one figure, the verdict by the means as printed: "+1.22 [+0.80, +1.64], 14 of 16"; "-": not measured."""
    figure, pairs = finer(FIGURE[key]), paired(claim, key, rows)
    if not pairs:
        return "-"
    order = compare(figure, *np.mean(pairs, axis=0))
    verdict = {1: "", 0: "**equal** ", -1: "**worse** "}[order]
    interval = mean_interval([first - second for first, second in pairs])
    better = sum(compare(figure, *pair) == 1 for pair in pairs)
    doubt = ", *open*" if order and interval.holds(0.0) else ""
    return f"{verdict}{interval.text(figure.digits, '+')}, {better} of {len(pairs)}{doubt}"


def finer(figure: Figure) -> Figure:
    """The figure with the digits of a comparison: one more where it has three, as LPIPS and Chamfer distance do."""
    return replace(figure, digits=figure.digits + (figure.digits == 3))


def paired(claim: Claim, key: str, rows: Sequence[dict]) -> list[tuple[float, float]]:
    """(first, second) of every object that has the figure on both sides of the claim."""
    sides = []
    for text in (claim.better, claim.worse):
        variant, _, views = text.partition("@")
        values = {result["NAME"]: result.get(key) for result in select(rows, variant, int(views))}
        sides.append({name: value for name, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)})
    return [(sides[0][name], sides[1][name]) for name in sorted(sides[0].keys() & sides[1].keys())]


def compare(figure: Figure, first: float, second: float) -> int:
    """1 when ``first`` is better as printed, -1 when it is worse, 0 when both are printed alike."""
    difference = float(figure.text(first)) - float(figure.text(second))
    return int(np.sign(difference)) * (1 if figure.more_is_better else -1)
