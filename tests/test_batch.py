"""Batches on this machine: what a job's command is, on which device it runs, and how often."""

import sys

import run_pipeline
from sap3d.batch.board import Board
from sap3d.batch.jobs import DEVICE, Job
from sap3d.batch.local import run_local

SCRIPT = """
echo "$1" >> "$2.calls"; sleep 0.2
[ $(wc -l < "$2.calls") -gt "$3" ] || { echo "error: attempt lost"; exit "$4"; }
touch "$2.json"
"""


def test_jobs_are_repeated_as_often_as_asked_and_bad_input_never(tmp_path):
    def job(name: str, failures: int, status: int) -> Job:
        place = tmp_path / name
        return Job(name, 1, name, ["sh", "-c", SCRIPT, "sh", DEVICE, str(place), str(failures), str(status)], place.with_suffix(".log"), place.with_suffix(".json"))

    jobs = [job("good", 0, 1), job("once", 1, 1), job("twice", 2, 1), job("bad", 9, 2), job("finished", 0, 0)]
    jobs[-1].command = ["true"]
    jobs[-1].results.write_text("{}")
    run_local(jobs, ["3", "5"], 1, Board(jobs))
    assert [(j.outcome, j.attempts) for j in jobs] == [("done", 1), ("done", 2), ("failed", 2), ("failed", 1), ("already finished", 1)]
    assert jobs[1].lost == ["attempt lost"] and jobs[2].cause == jobs[3].cause == "attempt lost"
    used = [(tmp_path / f"{j.name}.calls").read_text().split() for j in jobs[:-1]]
    assert [len(devices) for devices in used] == [1, 2, 2, 1] and {device for devices in used for device in devices} == {"3", "5"}
    assert all(j.place.endswith(f", GPU {devices[-1]}") for j, devices in zip(jobs, used))


def test_a_device_has_one_job_at_a_time(tmp_path):
    log, script = tmp_path / "order", 'echo "begin $1" >> "$2"; sleep 0.1; echo "end $1" >> "$2"'
    jobs = [Job(f"o{k}", 1, f"o{k}", ["sh", "-c", script, "sh", DEVICE, str(log)], tmp_path / f"{k}.log", tmp_path / f"{k}.json") for k in range(4)]
    run_local(jobs, ["0", "cpu"], 0, Board(jobs))
    for device in ("0", "cpu"):
        events = [line.split()[0] for line in log.read_text().splitlines() if line.endswith(f" {device}")]
        assert events == ["begin", "end"] * (len(events) // 2) and len(events) >= 2


def test_options_of_a_batch_reach_every_object(tmp_path, monkeypatch):
    for name in ("b", "a"):
        (tmp_path / "dataset" / "data" / "train" / "T" / name / "images").mkdir(parents=True)
    options = "--type T --views 3 1 --quick --preset full --seed 0 --from-stage recon --set booth.steps=9 eval.size=32"
    monkeypatch.setattr(sys, "argv", ["run_pipeline.py", *options.split()])
    jobs = run_pipeline.make_jobs(run_pipeline.parse(), tmp_path)
    assert [(j.name, j.views, j.label) for j in jobs] == [("a", 3, "[1/4] a, 3 views"), ("a", 1, "[2/4] a, 1 view"), ("b", 3, "[3/4] b, 3 views"), ("b", 1, "[4/4] b, 1 view")]
    passed = ["--quick", "--preset=full", "--seed=0", "--from-stage=recon", "booth.steps=9", "eval.size=32"]
    for job in jobs:
        assert job.command == ["sh", str(run_pipeline.DRIVER), "T", job.name, str(job.views), DEVICE, *passed]
        assert job.log == tmp_path / "results" / "T" / job.name / str(job.views) / "pipeline.log" and job.results == job.log.with_name("results.json")
    monkeypatch.setattr(sys, "argv", ["run_pipeline.py", "--type", "T", "--objects", "b"])
    (job,) = run_pipeline.make_jobs(run_pipeline.parse(), tmp_path)
    assert job.command == ["sh", str(run_pipeline.DRIVER), "T", "b", "5", DEVICE]
