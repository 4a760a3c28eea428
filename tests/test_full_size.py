"""The program that measures the full size, end to end with the same classes at a small size."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import full_size, novel_views, prior_step
from benchmarks.full_size import PUBLISHED, STAGES, keep, seconds_a_step, whole_object
from benchmarks.rows import replace_row
from sap3d.errors import InputError, cli
from sap3d.published.convert import PUBLISHED_PARAMETERS, build_part
from sap3d.scene import REPOSITORY


def measure(*options):
    command = [sys.executable, "-m", "benchmarks.full_size", "--size", "small", "--device", "cpu", "--photos", "2", "--batch", "2", *options]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("full_size") / "rows.json"
    done = measure("--preset", "full-11gb", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert all(f"[full_size] {stage}: making random weights" in done.stderr for stage in STAGES)  # progress
    assert [json.loads(line)["stage"] for line in done.stdout.splitlines()] == [*STAGES, "object"]
    return json.loads(path.read_text())


def test_rows_and_the_estimate_of_an_object(rows):
    assert [(row["preset"], row["stage"]) for row in rows] == [("full-11gb", stage) for stage in (*STAGES, "object")]
    by_stage = {row["stage"]: row for row in rows}
    for stage in STAGES:
        row = by_stage[stage]
        assert 0.2 < row["peak_gb"] < 3 and row["seconds_an_object"] > 0 and row["size"] == "small"
    train, views, sds, whole = (by_stage[name] for name in ("train", "novel_views", "sds", "object"))
    assert train["seconds_an_object"] == pytest.approx(train["steps_an_object"] * train["seconds_a_step"] + train["views_encoded_an_object"] * train["seconds_encoding_a_view"], rel=1e-2)
    assert views["ratio"] == pytest.approx(views["extrapolated_seconds_84_views_one_at_a_time"] / views["seconds_an_object"], rel=1e-2)
    expected = sds["steps_an_object"] * sds["seconds_a_step_without_sds"] + sds["sds_steps_an_object"] * (sds["seconds_a_step"] - sds["seconds_a_step_without_sds"])
    assert sds["seconds_an_object"] == pytest.approx(expected + sds["renders_an_object"] * sds["seconds_a_render"], rel=2e-2) and sds["gradient_finite"]
    assert whole["extrapolated"] and whole["seconds"] == pytest.approx(sum(by_stage[stage]["seconds_an_object"] for stage in STAGES), rel=1e-3)
    assert whole["minutes"] == pytest.approx(whole["seconds"] / 60, rel=1e-3) and whole["peak_gb"] == max(by_stage[stage]["peak_gb"] for stage in STAGES)


def test_a_stage_cannot_take_more_memory_than_allowed(tmp_path):
    done = measure("--stages", "nvs", "--memory-gb", "0.25", "--out", str(tmp_path / "rows.json"))
    assert done.returncode == 2 and "out of memory: lower --batch, or raise --memory-gb" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "rows.json").exists()


def test_a_row_is_kept_at_once_and_replaces_its_like(rows, tmp_path):
    path = tmp_path / "rows.json"
    for row in rows[:-1]:
        keep(path, row)
        assert row in json.loads(path.read_text())
    assert json.loads(path.read_text())[-1] == rows[-1]  # the object's, when all are there
    keep(path, rows[2] | {"seconds_an_object": 1000.0})
    again = json.loads(path.read_text())
    assert len(again) == len(rows) and again[-1]["seconds_novel_views"] == 1000 and again[-1]["seconds"] > 1000
    keep(path, rows[2] | {"preset": "full"})  # of another preset: nothing to add up
    assert len(json.loads(path.read_text())) == len(rows) + 1


@pytest.mark.parametrize("options, message", (
    (("--photos", "1"), "no pairs to train on"), (("--size", "small", "--record"), "no measurement"), (("--steps", "0"), "--steps and --batch must be at least 1"),
    (("--batch", "0"), "--steps and --batch must be at least 1"), (("--device", "cpu", "--record"), "--record: checks of cards"), (("--device", "cuda"), "no CUDA GPU can be used"),
    (("--device", "tpu"), "device 'tpu' is unknown"),
))  # fmt: skip
def test_bad_options_are_one_line(options, message, monkeypatch, capsys):
    monkeypatch.setattr(full_size.subprocess, "run", lambda *_, **__: pytest.fail("a stage was begun"))
    monkeypatch.setattr(sys, "argv", ["full_size", *options])
    with pytest.raises(SystemExit) as ended:
        cli(full_size.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_peaks_of_another_batch_are_not_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["full_size", "--device", "cuda", "--batch", "1", "--record"])
    with pytest.raises(InputError, match="--record: .*leave --batch out"):
        full_size.main()


def test_a_damaged_file_is_named_and_stays_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text('[{"stage": "train"')
    with pytest.raises(InputError, match="rows.json: not valid JSON"):
        keep(tmp_path / "rows.json", {"stage": "train", "preset": "full", "size": "full", "photos": 2, "device": "a"})
    assert (tmp_path / "rows.json").read_text() == '[{"stage": "train"'
    monkeypatch.setattr(full_size, "FOLDER", tmp_path)
    (tmp_path / "measured.json").write_text("[]")
    with pytest.raises(InputError, match="measured.json: holds no dict of rows"):
        full_size.record({"stage": "train", "preset": "full", "peak_gb": 1.0, "device": "a"})
    monkeypatch.setattr(full_size.subprocess, "run", lambda *_, **__: pytest.fail("a stage was begun"))
    monkeypatch.setattr(sys, "argv", ["full_size", "--device", "cpu", "--out", str(tmp_path / "rows.json")])
    with pytest.raises(InputError, match="rows.json: not valid JSON"):
        full_size.main()


def test_a_row_takes_the_place_of_its_like(tmp_path):
    path = tmp_path / "new" / "rows.json"
    for row in ({"a": 2, "b": 1, "x": 0}, {"a": 1, "b": 1, "x": 0}, {"a": 2, "b": 1, "x": 1}):
        rows = replace_row(path, row, ("a", "b"))
    assert rows == json.loads(path.read_text()) == [{"a": 2, "b": 1, "x": 1}, {"a": 1, "b": 1, "x": 0}]
    assert [row["a"] for row in replace_row(path, {"a": 0, "b": 1}, ("a", "b"), ordered=True)] == [0, 1, 2]
    with pytest.raises(InputError, match="rows.json: a row has no a, c"):
        replace_row(path, {"a": 0, "c": 1}, ("a", "c"))


def test_the_device_that_is_measured_is_the_one_that_was_asked_for(monkeypatch):
    """Of several GPUs, PyTorch's functions take the first where they are told of none."""
    asked = []
    for name in ("synchronize", "max_memory_reserved", "max_memory_allocated", "reset_peak_memory_stats", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None, name=name: asked.append((name, device)) or 0)
    monkeypatch.setattr(full_size, "train", lambda task: {})
    full_size.clock("cuda:1")
    full_size.one("train", full_size.Task("full", "cuda:1", None, 1, 2, "small"))
    monkeypatch.setattr(prior_step, "step", lambda *_: asked.append(("step", "cuda:1")))
    prior_step.timed(None, {}, None, "cuda:1", 1)
    before = len(asked)
    novel_views.timed(lambda: asked.append(("work", "cuda:1")), "cuda:1")
    assert {device for _, device in asked} == {"cuda:1"}
    assert [name for name, _ in asked[before:]] == ["synchronize", "work", "synchronize"]  # what was still on its way is nobody's time


def test_the_full_size_is_the_published_one():
    with torch.device("meta"):
        for name, config in PUBLISHED.items():
            assert sum(p.numel() for p in build_part(name, config).parameters()) == PUBLISHED_PARAMETERS[name], name


def test_first_steps_are_left_out_where_there_are_others():
    assert seconds_a_step([0.0, 9.0]) == 9 and seconds_a_step([0.0, 9.0, 10.0, 12.0]) == 1.5
    assert whole_object([{"stage": "train"}]) is None
