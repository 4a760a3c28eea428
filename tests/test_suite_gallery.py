"""The gallery of a suite's worst objects, from contact sheets whose cells have one colour each."""

import numpy as np
import pytest
from PIL import Image

from sap3d import suite, suite_gallery, suite_tables
from sap3d.errors import InputError
from sap3d.evaluation_pictures import SHEET_VIEWS, write_contact_sheet
from sap3d.scene import Scene, write_json

COLOURS = {"true": (1.0, 0.0, 0.0), "2D": (0.0, 1.0, 0.0), "3D": (0.0, 0.0, 1.0)}


def picture(colour):
    return np.full((8, 8, 3), colour, np.float32)


def make_object(root, name, lpips, with_2d=True, finished="2026-01-01 00:00", folder=""):
    """A row, and below ``root`` the results and the sheet behind it: columns get darker to the right."""
    result = {"NAME": name, "type": "TINY", "views": 3, "3d_lpips_mean": lpips, "3d_psnr_mean": 20.0, "2d_psnr_mean": 19.0 if with_2d else None}
    results_dir = Scene("TINY", name, 3, root / folder).results_dir
    rows = {
        label: {view: picture(np.array(colour) * (1 - index / 20)) for index, view in enumerate(SHEET_VIEWS)}
        for label, colour in COLOURS.items()
        if with_2d or label != "2D"
    }
    write_contact_sheet(results_dir / "contact_sheet.png", {str(k): picture((0.5, 0.5, 0.5)) for k in range(3)}, rows, None)
    write_json(results_dir / "results.json", [result])
    return {"variant": "full", "commit": "abc", "cores": 2, "load_before": 0.1, "finished": finished, "result": result}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """(suite, rows): five objects, the runs of the suite's own root, of another suite's and of ROOT_DIR."""
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    own = ".work/suites/small/full"
    rows = [
        make_object(tmp_path, "good", 0.01, folder=own),
        make_object(tmp_path, "bad", 0.40, folder=own),
        make_object(tmp_path, "flat", 0.30, with_2d=False, folder=own),
        make_object(tmp_path, "taken", 0.20, folder=".work/suites/other/full") | {"taken_from": "other"},
        make_object(tmp_path, "plain", 0.10),
    ]
    gallery = suite.Gallery("full", 3, count=4, causes={"bad": "Its two sides\nlook alike.", "good": "Nothing."})
    loaded = suite.Suite(type="TINY", objects=[row["result"]["NAME"] for row in rows], views=[3], variants={"full": suite.Variant()}, gallery=gallery)
    return loaded, rows


def test_gallery_shows_the_worst_objects_with_their_causes(made, tmp_path, capsys):
    loaded, rows = made
    text = suite_gallery.write_gallery("small", loaded, rows, tmp_path)
    assert text.splitlines()[-4:] == ["* **bad** (3D LPIPS 0.400): Its two sides look alike.", *(f"* **{n}** (3D LPIPS {v})" for n, v in (("flat", "0.300"), ("taken", "0.200"), ("plain", "0.100")))]
    assert "](images/small_worst.jpg)" in text and "Nothing" not in text and "good is not among the 4 worst" in capsys.readouterr().out
    path = tmp_path / "images" / "small_worst.jpg"
    assert path.stat().st_size <= 60_000
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    tops = 16 + 33 + 66 * np.arange(3)  # middles of an object's rows of cells of 64 + 2 pixels below its title
    for start, labels in ((0, ("true", "2D", "3D")), (214, ("true", "3D")), (214 + 148, ("true", "2D", "3D"))):
        for top, label in zip(tops, labels):
            for column, source in enumerate(suite_gallery._COLUMNS):
                seen = pixels[start + top, 44 + 66 * column + 32]
                np.testing.assert_allclose(seen, np.array(COLOURS[label]) * (1 - source / 20), atol=0.06)


def test_picture_outlives_its_runs_while_it_shows_what_the_rows_name(made, tmp_path, monkeypatch, capsys):
    loaded, rows = made
    suite_gallery.write_gallery("small", loaded, rows, tmp_path)
    before = (tmp_path / "images" / "small_worst.jpg").read_bytes()
    monkeypatch.setenv("ROOT_DIR", str(tmp_path / "elsewhere"))
    assert "small_worst.jpg" in suite_gallery.write_gallery("small", loaded, rows, tmp_path)
    rows[1]["finished"] = "2026-02-02 00:00"  # measured again, on another machine
    capsys.readouterr()
    text = suite_gallery.write_gallery("small", loaded, rows, tmp_path)
    assert "small_worst.jpg" not in text and "**bad**" in text and "no contact sheet of bad with 3 photos" in capsys.readouterr().out
    assert (tmp_path / "images" / "small_worst.jpg").read_bytes() == before and not (tmp_path / "elsewhere").exists()


def test_sheet_of_other_figures_is_not_taken(made, tmp_path):
    _, rows = made
    assert suite_gallery.sheet_of("small", rows[4]) == tmp_path / "results/TINY/plain/3/contact_sheet.png"
    rows[4]["result"] = rows[4]["result"] | {"3d_psnr_mean": 21.0}
    assert suite_gallery.sheet_of("small", rows[4]) is None


def test_worst_follows_the_figure_and_suites_without_a_gallery_have_none(made, tmp_path):
    loaded, rows = made
    rows[0]["result"]["3d_psnr_mean"] = 5.0
    loaded.gallery = suite.Gallery("full", 3, "3d_psnr_mean", 1)
    assert [row["result"]["NAME"] for row in suite_gallery.worst(loaded, rows)] == ["good"]
    loaded.gallery = suite.Gallery("full", 5)
    assert suite_gallery.write_gallery("small", loaded, rows, tmp_path) == ""
    loaded.gallery = suite.Gallery()
    assert suite_gallery.write_gallery("small", loaded, rows, tmp_path) == "" and "worst" not in suite_tables.suite_section("small", loaded, rows, tmp_path)


@pytest.mark.parametrize(
    "gallery, message",
    [
        ("{variant: full, views: 3, causes: {cart: Why.}}", "a cause for cart, which is not an object of the suite"),
        ("{variant: fuller, views: 3}", "gallery needs a variant of the suite"),
        ("{variant: full, views: 3, figure: psnr}", "a figure of results.json, not full and psnr"),
    ],
)
def test_mistakes_in_a_gallery_are_named(tmp_path, gallery, message):
    path = tmp_path / "small.yaml"
    path.write_text(f"type: TINY\nobjects: [car]\nviews: [3]\nvariants: {{full: {{quick: true}}}}\ngallery: {gallery}\n")
    with pytest.raises(InputError, match=message):
        suite.load_suite(str(path))
