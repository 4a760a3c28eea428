"""Parts of the pipeline by themselves in docs/results.md."""

import json

from sap3d import suite_parts
from sap3d.report import write_csv


def test_sections_of_the_parts_that_have_rows(tmp_path):
    assert suite_parts.parts_sections(tmp_path) == []
    rows = [{"object": name, "way": way, "views": views, "psnr": psnr, "ssim": 0.8, "lpips": 0.2, "seconds": 1.0}
            for name, psnr in (("a", 15.0), ("b", 17.0)) for way, views in (("autoencoder", 0), ("zero-shot", 1))]  # fmt: skip
    write_csv(tmp_path / "prior_TINY_set.csv", rows)
    (prior,) = suite_parts.parts_sections(tmp_path)
    assert "| TINY_set | zero-shot | 1 | 2 | 16.00 [15.00, 17.00] | 0.800 [0.800, 0.800] | 0.200 [0.200, 0.200] |" in prior and "| TINY_set | autoencoder | - | 2 |" in prior
    figures = {"mean_deg": 19.26, "median_deg": 8.143, "under_5": 0.4375, "under_10": 0.5625, "under_15": 0.75, "under_30": 0.875,
               "seconds": 5.61, "elevation_error_deg": 3.49, "centre_error": 0.2244, "best_of_hypotheses_deg": 12.94}  # fmt: skip
    (tmp_path / "relposepp_TINY.json").write_text(json.dumps({"2": {"summary": figures, "scenes": {"a": {}, "b": {}, "c": {}}}}))
    assert suite_parts.parts_sections(tmp_path)[0] == prior
    stage_1 = suite_parts.parts_sections(tmp_path)[1]
    assert "| TINY | 2 | 3 | 19.3 / 8.14 | 44 / 56 / 75 / 88 | 12.9 | 3.5 | 0.224 | 6 |" in stage_1 and "[relposepp_TINY.json](results_rows/relposepp_TINY.json)" in stage_1


def test_the_table_of_recoveries(tmp_path):
    def row(name, before, after, kept):
        return {"type": "TINY", "start": "one_wrong", "views": 3, "object": name, "before_deg": before, "after_deg": after, "seconds": 10.0, "moves": [{"kept": kept}]}

    rows = [row("a", 60.0, 2.0, True), row("b", 4.0, 40.0, True), row("c", 80.0, 80.0, False)]
    (tmp_path / "recovery.json").write_text(json.dumps(rows))
    (section,) = suite_parts.parts_sections(tmp_path)
    assert "| TINY | one_wrong | 3 | 3 | 48.0 -> 40.7 | 33 -> 33 | 1 / 1 | 10 |" in section
