"""Plots of a suite from its stored rows: figures against the number of photos, and quality against seconds.

Small palette PNGs in docs/images, named <suite>_views.png and <suite>_seconds.png. A picture remembers what it shows
and is written again only when that changes, so that a clone does not grow with every rendering of the page.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image, ImageColor, PngImagePlugin

from sap3d.intervals import Interval, mean_interval
from sap3d.results import FIGURE, released_means
from sap3d.scene import atomic_path, fingerprint
from sap3d.suite import Suite
from sap3d.suite_claims import select

VIEW_KEYS = ("2d_psnr_mean", "2d_lpips_mean", "3d_psnr_mean", "3d_lpips_mean", "CD", "IOU", "Rotation Error")
COST_KEYS = ("3d_psnr_mean", "3d_lpips_mean")
_STYLE = 2  # raise when the drawing changes, so that pictures are made again
_COLOURS = ("#1f6fb4", "#c8501e", "#3a8f4a", "#8a56a8", "#8b6d1c", "#3d8f93", "#b3477d")
_GREYS = ("#000000", "#555555", "#999999", "#bbbbbb", "#dddddd", "#ffffff")
_MARKERS = "os^Dv"  # one for every round through the colours


@dataclass
class Curve:
    """One figure of one variant against the number of photos."""

    means: dict[int, Interval] = field(default_factory=dict)  # over one set of objects at every number of photos
    objects: dict[str, dict[int, float]] = field(default_factory=dict)  # object -> value by number of photos
    released: dict[int, float] = field(default_factory=dict)  # SAP3D's means, over other objects


@dataclass
class Cost:
    """One variant at one number of photos: mean seconds of all stages, and means of ``COST_KEYS``, over the same objects."""

    variant: str
    views: int
    seconds: float
    quality: dict[str, Interval]


def view_curve(rows: Sequence[dict], variant: str, key: str) -> Curve:
    """Points of one figure. Means are over the objects that have every number of photos that is averaged.

    Numbers of photos that fewer than half as many objects have as the most frequent one are not averaged: their mean would
    be one of other objects. Such objects' own lines are drawn all the same.
    """
    objects: dict[str, dict[int, float]] = {}
    for views in sorted({row["result"]["views"] for row in rows}):
        for result in select(rows, variant, views):
            if isinstance(value := result.get(key), (int, float)):
                objects.setdefault(result["NAME"], {})[views] = float(value)
    counts = {views: sum(views in line for line in objects.values()) for line in objects.values() for views in line}
    averaged = sorted(views for views, count in counts.items() if 2 * count >= max(counts.values()))
    complete = [line for line in objects.values() if all(views in line for views in averaged)]
    means = {views: interval for views in averaged if (interval := mean_interval([line[views] for line in complete]))}
    released = {views: float(found[key]) for views in sorted(counts) if (found := released_means(views)) and isinstance(found.get(key), (int, float))}
    return Curve(means, objects, released)


def cost_points(suite: Suite, rows: Sequence[dict]) -> list[Cost]:
    """A point a variant and number of photos, over the objects that all variants in it have at that number.

    Variants with fewer than half as many objects as the one with most are left out, and so are numbers of photos, as in ``view_curve``.
    """
    points = []
    for views in sorted({row["result"]["views"] for row in rows}):
        found = {key: {result["NAME"]: result for result in select(rows, key, views) if _has_costs(result)} for key in suite.variants}
        enough = max(len(results) for results in found.values()) / 2
        found = {key: results for key, results in found.items() if results and len(results) >= enough}
        common = set.intersection(*(set(results) for results in found.values())) if found else set()
        for key, results in found.items():
            chosen = [results[name] for name in sorted(common)]
            quality = {k: mean_interval([result[k] for result in chosen]) for k in COST_KEYS}
            if chosen:
                points.append(Cost(key, views, float(np.mean([result["seconds"] for result in chosen])), quality))
    most = max((point.quality[COST_KEYS[0]].count for point in points), default=0)
    return [point for point in points if 2 * point.quality[COST_KEYS[0]].count >= most]


def _has_costs(result: dict) -> bool:
    return bool(result.get("stages")) and all(isinstance(result.get(key), (int, float)) for key in COST_KEYS)


def write_plots(name: str, suite: Suite, rows: Sequence[dict], folder: Path) -> dict[str, Path]:
    """Draw what the rows allow below ``folder``; returns caption -> picture. The first plot needs means at three numbers of photos."""
    made: dict[str, Path] = {}
    variant, *others = suite.variants
    curves = {key: view_curve(rows, variant, key) for key in VIEW_KEYS}
    if _enough(curves):
        path = folder / f"{name}_views.png"
        beside = {other: found for other in others if _enough(found := {key: view_curve(rows, other, key) for key in VIEW_KEYS})}
        data = {"": curves} | beside
        _write_once(path, {key: {k: vars(curve) for k, curve in found.items()} for key, found in data.items()}, lambda: _draw_views(curves, beside))
        count = max(interval.count for curve in curves.values() for interval in curve.means.values())
        caption = f"{variant}: means of {count} objects with 95 % intervals (blue), each object (thin), SAP3D's released means over other objects (dashed)"
        made[f"{caption}; means of the variants {', '.join(beside)}" if beside else caption] = path
    points = cost_points(suite, rows)
    if len(points) > 1:
        path = folder / f"{name}_seconds.png"
        _write_once(path, [vars(point) for point in points], lambda: _draw_costs(points))
        made["Quality against seconds of all stages, a line a variant; the digits are numbers of photos, the bars 95 % intervals over objects"] = path
    return made


def _enough(curves: dict[str, Curve]) -> bool:
    return any(len(curve.means) > 2 for curve in curves.values())


def _write_once(path: Path, data: object, draw) -> None:
    """Write ``draw()``, a matplotlib figure, as a palette PNG marked with ``data``; leave a picture that shows the same alone."""
    mark = fingerprint({"style": _STYLE, "data": repr(data)}, {})
    if path.is_file() and shown(path) == mark:
        return
    import matplotlib.pyplot as plt

    figure, buffer = draw(), io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    colours = [ImageColor.getrgb(colour) for colour in (*_GREYS, *_COLOURS)]
    colours += [tuple((part + 255) // 2 for part in colour) for colour in colours[len(_GREYS) : len(_GREYS) + 3]]  # edges of the lines that are most frequent
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    picture = Image.open(buffer).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    information = PngImagePlugin.PngInfo()
    information.add_text("shows", mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True, bits=4, pnginfo=information)


def shown(path: Path) -> str:
    """The mark of a picture that this module has written; empty for another."""
    with Image.open(path) as picture:
        return picture.info.get("shows", "")


def _figure(rows: int, columns: int, width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), dpi=72, squeeze=False, layout="constrained")


def _label(axis, key: str, x: str) -> None:
    figure = FIGURE[key]
    axis.set_title(f"{figure.heading} ({'more' if figure.more_is_better else 'less'} is better)", fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_views(curves: dict[str, Curve], beside: dict[str, dict[str, Curve]]):
    styles = {other: {"color": _COLOURS[2 + index % 5], "marker": _MARKERS[1 + index % 4], "markersize": 3.5, "linewidth": 1} for index, other in enumerate(beside)}
    figure, axes = _figure(2, 4, 11, 5)
    for axis, (key, curve) in zip(axes.flat, curves.items()):
        for line in curve.objects.values():
            axis.plot(list(line), list(line.values()), color="#bbbbbb", linewidth=0.7)
        if curve.released:
            axis.plot(list(curve.released), list(curve.released.values()), color="#c8501e", linestyle="--", marker="s", markersize=4)
        for other, found in beside.items():
            means = found[key].means
            if any(n not in curve.means or interval.mean != curve.means[n].mean for n, interval in means.items()):  # it may share the stage
                axis.plot(list(means), [interval.mean for interval in means.values()], **styles[other])
        _draw_means(axis, list(curve.means), list(curve.means.values()), _COLOURS[0])
        axis.set_xticks(sorted({views for line in curve.objects.values() for views in line}))
        _label(axis, key, "photos")
    legend = axes.flat[-1]
    legend.axis("off")
    for label, style in (("here, mean and 95 % interval", {"color": _COLOURS[0], "marker": "o"}), ("here, each object", {"color": "#bbbbbb", "linewidth": 0.7}),
                         ("SAP3D, released means\n(other objects, full size)", {"color": "#c8501e", "linestyle": "--", "marker": "s"}),
                         *((f"here, variant {other}, mean", style) for other, style in styles.items())):  # fmt: skip
        legend.plot([], [], label=label, **style)
    legend.legend(loc="center", frameon=False, fontsize=9)
    return figure


def _draw_means(axis, x: list, intervals: list[Interval], colour: str, label: str | None = None, marker: str = "o") -> None:
    bars = np.array([(i.mean - i.low, i.high - i.mean) if i.low is not None else (0.0, 0.0) for i in intervals]).reshape(-1, 2).T
    axis.errorbar(x, [i.mean for i in intervals], yerr=bars, color=colour, marker=marker, markersize=4, capsize=3, linewidth=1.4, label=label)


def _draw_costs(points: Sequence[Cost]):
    figure, axes = _figure(1, len(COST_KEYS), 10, 3.6)
    for axis, key in zip(axes.flat, COST_KEYS):
        for index, variant in enumerate(dict.fromkeys(point.variant for point in points)):
            colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index // len(_COLOURS) % len(_MARKERS)]
            line = [point for point in points if point.variant == variant]
            _draw_means(axis, [point.seconds for point in line], [point.quality[key] for point in line], colour, variant, marker)
            for point in line:
                axis.annotate(str(point.views), (point.seconds, point.quality[key].mean), xytext=(4, 4), textcoords="offset points", fontsize=8, color=colour)
        _label(axis, key, "seconds")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure
