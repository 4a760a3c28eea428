"""Plots of a suite: the points that are drawn, and pictures that are written once."""

import pytest
from PIL import Image

from sap3d import suite, suite_plots, suite_tables
from sap3d.results import released_means


def row(name, views, variant="full", seconds=60.0, **figures):
    return {
        "variant": variant, "commit": "abc", "cores": 2, "load_before": 0.1, "finished": "2026-01-01 00:00",
        "result": {"NAME": name, "type": "TINY", "views": views, "stages": [{"stage": "relposepp", "seconds": seconds}], "seconds": seconds, "peak_memory_mb": 1024} | figures,
    }  # fmt: skip


def curve_rows():
    """Three objects with 1, 2 and 3 photos; a fourth without 2, and one of them with 4 photos too."""
    rows = [row(f"o{k}", n, CD=0.1 * k / n, IOU=0.2 * n, **{"3d_psnr_mean": 10.0 * n + k, "3d_lpips_mean": 0.5 / n}) for k in (1, 2, 3) for n in (1, 2, 3)]
    return [*rows, row("late", 1, CD=9.0), row("late", 3, CD=9.0), row("o1", 4, CD=0.02), row("o1", 2, "other", CD=7.0)]


def test_means_are_over_one_set_of_objects_at_every_number_of_photos():
    curve = suite_plots.view_curve(curve_rows(), "full", "CD")
    assert {n: interval.mean for n, interval in curve.means.items()} == pytest.approx({1: 0.2, 2: 0.1, 3: 0.2 / 3})  # neither "late" nor 4 photos
    assert all(interval.count == 3 and interval.low < interval.mean < interval.high for interval in curve.means.values())
    assert curve.objects["o1"] == pytest.approx({1: 0.1, 2: 0.05, 3: 0.1 / 3, 4: 0.02}) and curve.objects["late"] == {1: 9.0, 3: 9.0}
    assert curve.released == {n: released_means(n)["CD"] for n in (2, 3, 4)}  # there are none for one photo


def test_figures_that_nobody_measured_give_no_points():
    curve = suite_plots.view_curve([row("a", 1, CD=None), row("a", 2)], "full", "CD")
    assert not curve.means and not curve.objects and not curve.released
    assert not suite_plots.view_curve(curve_rows(), "full", "Rotation Error").means


def test_costs_compare_variants_on_the_objects_that_they_share():
    def made(name, views, variant, seconds, psnr):
        return row(name, views, variant, seconds, **{"3d_psnr_mean": psnr, "3d_lpips_mean": 0.1})

    rows = [made("a", 5, "full", 100.0, 20.0), made("b", 5, "full", 200.0, 30.0), made("a", 5, "base", 50.0, 10.0), row("a", 2, "full")]
    loaded = suite.Suite(variants={"full": suite.Variant(), "base": suite.Variant(), "later": suite.Variant()})
    points = {(point.variant, point.views): point for point in suite_plots.cost_points(loaded, rows)}
    assert set(points) == {("full", 5), ("base", 5)}  # figures are missing with 2 photos
    assert (points["full", 5].seconds, points["full", 5].quality["3d_psnr_mean"].mean) == (100.0, 20.0)
    rows += [made("b", 5, "base", 70.0, 12.0), *(made("a", 1, variant, 10.0, 5.0) for variant in ("full", "base"))]
    points = {(point.variant, point.views): point for point in suite_plots.cost_points(loaded, rows)}
    assert (points["base", 5].seconds, points["base", 5].quality["3d_psnr_mean"].mean) == (60.0, 11.0) and points["full", 5].seconds == 150.0
    assert ("full", 1) in points  # half as many objects as with 5 photos; with a third object there it would be too few
    rows += [made("c", 5, variant, 10.0, 5.0) for variant in ("full", "base")]
    assert {point.views for point in suite_plots.cost_points(loaded, rows)} == {5}
    rows.append(made("a", 5, "later", 10.0, 5.0))  # one object of three: it would leave the others one, too
    assert {(point.variant, point.quality["3d_psnr_mean"].count) for point in suite_plots.cost_points(loaded, rows)} == {("full", 3), ("base", 3)}


def test_pictures_are_small_embedded_and_written_only_when_they_change(tmp_path):
    rows = curve_rows()
    loaded = suite.Suite(title="Small", type="TINY", objects=["o1"], variants={"full": suite.Variant(), "other": suite.Variant()})
    page = suite_tables.suite_section("small", loaded, rows, tmp_path)
    picture = tmp_path / "images" / "small_views.png"
    assert "](images/small_views.png)" in page and "means of 3 objects" in page and "](images/small_seconds.png)" in page
    with Image.open(picture) as image:
        assert image.mode == "P" and image.width > 600 and len(image.getcolors()) > 5
    assert picture.stat().st_size < 25_000
    picture.write_bytes(picture.read_bytes() + b"untouched")  # a reader of PNG ignores what follows the picture
    suite_tables.suite_section("small", loaded, rows, tmp_path)
    assert picture.read_bytes().endswith(b"untouched")
    rows[0]["result"]["CD"] = 0.11
    suite_tables.suite_section("small", loaded, rows, tmp_path)
    assert not picture.read_bytes().endswith(b"untouched")


def test_long_tables_are_folded(tmp_path):
    loaded = suite.Suite(type="TINY", objects=["a"], variants={"full": suite.Variant()})
    section = suite_tables.suite_section("small", loaded, [row(f"o{k:02d}", 5) for k in range(40)], tmp_path)
    assert "<details>" not in section
    section = suite_tables.suite_section("small", loaded, [row(f"o{k:02d}", 5) for k in range(41)], tmp_path)
    assert section.count("<details><summary>41 rows</summary>\n\n| object |") == 1 == section.count("|\n\n</details>\n") and "### Each object" in section


def test_two_numbers_of_photos_are_a_table_and_no_curve(tmp_path):
    loaded = suite.Suite(variants={"full": suite.Variant()})
    rows = [row("a", n, CD=0.1, **{"3d_psnr_mean": 20.0, "3d_lpips_mean": 0.1}) for n in (2, 5)]
    assert [path.name for path in suite_plots.write_plots("small", loaded, rows, tmp_path).values()] == ["small_seconds.png"]
