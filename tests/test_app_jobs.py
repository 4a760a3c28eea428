"""The app's queue without its page: order, cancelling, restarts, limits; a small script takes the pipeline's place."""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from app import jobs
from app.jobs import Job, Queue
from dataset.photos import find_photos
from sap3d.errors import InputError
from sap3d.scene import file_hash, read_json

SCRIPT = """
echo "== stage 1 of 3: cameras"; echo "[relposepp] 3/12  1 s, about 3 s left"
echo "$2" >> "$ORDER"; while [ ! -e "$ORDER.go" ]; do sleep 0.05; done
[ "$2" != bad ] || { echo "error: it is bad"; exit 2; }
mkdir -p "$ROOT_DIR/results"; echo done > "$ROOT_DIR/results/out"
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    (tmp_path / "script.sh").write_text(SCRIPT)
    monkeypatch.setenv("ORDER", str(tmp_path / "order"))
    made = []

    def make():
        made.append(Queue(tmp_path / "home", "python3", command=("sh", str(tmp_path / "script.sh"))))
        threading.Thread(target=made[-1].run_forever, args=(0.05,), daemon=True).start()
        return made[-1]

    yield make
    (tmp_path / "order.go").write_text("")
    for one in made:
        one.stop()
        for job in one.jobs():
            one.cancel(job)


def photo(tmp_path, k=0):
    y, x = np.mgrid[:200, :200]
    inside = (x - 100) ** 2 + (y - 100) ** 2 < 70**2
    path = tmp_path / f"photo{k}.png"
    Image.fromarray(np.dstack([*[np.full((200, 200), 30 + 40 * k, np.uint8)] * 3, inside * np.uint8(255)])).save(path)
    return path


def until(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "took too long"
        time.sleep(0.05)


def test_one_at_a_time_in_order_and_a_restart_changes_nothing(queue, tmp_path):
    first = queue()
    a, b, c = (first.add(name, [photo(tmp_path, 1)]) for name in ("a", "bad", "c"))
    assert (a.state, a.scene.train_dir.is_relative_to(a.folder)) == ("masks", True) and (a.scene.train_dir / "preview.png").is_file()
    for job in (a, b, c):
        first.start(job, quick=True)
        time.sleep(0.02)
    until(lambda: a.state == "running" and a.progress()[1] == 0.25)
    assert b.state == c.state == "waiting" and first.position(c) == 2
    first.stop()
    time.sleep(0.2)
    second = queue()  # a new server on the same folder: the run goes on and is not started twice
    (tmp_path / "order.go").write_text("")
    until(lambda: c.state == "done")
    assert (a.state, b.state) == ("done", "failed") and b.cause() == "error: it is bad"
    assert (tmp_path / "order").read_text().split() == ["a", "bad", "c"]
    assert [job.id for job in second.jobs()] == [job.id for job in first.jobs()]


@pytest.mark.parametrize("quick", (True, False))
def test_the_pipeline_is_told_the_photos_the_gpu_and_whether_to_be_quick(tmp_path, quick):
    one = Queue(tmp_path / "home", "mine", "3", command=("sh", "-c", 'echo "$PYTHON $ROOT_DIR $@"', "sh"))
    job = one.add("toy", [photo(tmp_path, 0), photo(tmp_path, 1)])
    one.start(job, quick)
    threading.Thread(target=one.run_forever, args=(0.05,), daemon=True).start()
    until(lambda: job.state == "done")
    one.stop()
    assert job.log().split() == ["mine", str(job.folder / "root"), "APP", "toy", "2", "3", *(["--quick"] if quick else [])]


def test_a_run_whose_process_died_waits_again(queue, tmp_path):
    idle = Queue(tmp_path / "home", "python3")
    job = idle.add("a", [photo(tmp_path)])
    idle.start(job, quick=False)
    (job.folder / "pid").write_text("1")  # another program has the number
    assert job.pid is None and job.state == "waiting"
    (tmp_path / "order.go").write_text("")
    queue()
    until(lambda: job.state == "done")


def test_cancel_stops_it_and_start_resumes(queue, tmp_path):
    one = queue()
    job = one.add("a", [photo(tmp_path)])
    one.start(job, quick=True)
    until(lambda: job.state == "running" and (tmp_path / "order").is_file())
    one.cancel(job)
    until(lambda: job.pid is None)
    assert job.state == "cancelled"
    (tmp_path / "order.go").write_text("")
    one.start(job, quick=True)
    until(lambda: job.state == "done")
    one.delete(job)
    assert not job.folder.exists() and one.jobs() == []


def test_two_starts_at_the_same_time_run_it_once(queue, tmp_path, monkeypatch):
    one, real, calls = queue(), jobs.write_json, iter((0, 1))
    job = one.add("a", [photo(tmp_path)])
    monkeypatch.setattr(jobs, "write_json", lambda *arguments: (time.sleep(next(calls, 0)), real(*arguments)))  # the second start is slow after its look at the state
    together = threading.Barrier(2)
    starts = [threading.Thread(target=lambda: (together.wait(), one.start(job, True))) for _ in range(2)]
    [start.start() for start in starts]
    [start.join() for start in starts]
    until(lambda: job.state == "running" and (tmp_path / "order").is_file())
    time.sleep(0.5)
    (tmp_path / "order.go").write_text("")
    until(lambda: job.state == "done")
    assert (tmp_path / "order").read_text().split() == ["a"]


def test_a_cancelled_run_that_still_writes_its_checkpoint_is_not_started_again(queue, tmp_path):
    (tmp_path / "script.sh").write_text("trap 'sleep 1; exit 143' TERM\n" + SCRIPT)
    one = queue()
    job = one.add("a", [photo(tmp_path)])
    one.start(job, quick=True)
    until(lambda: job.state == "running" and (tmp_path / "order").is_file())
    one.cancel(job)
    with pytest.raises(InputError, match="still stopping"):
        one.start(job, quick=True)
    until(lambda: job.pid is None)
    (tmp_path / "order.go").write_text("")
    one.start(job, quick=True)
    until(lambda: job.state == "done")


def test_a_deleted_run_is_gone_at_once(queue, tmp_path, monkeypatch):
    """Not file after file: without `cancelled` it would look as if it waited."""
    one, real, seen = queue(), jobs.shutil.rmtree, []
    job = one.add("a", [photo(tmp_path)])
    one.start(job, quick=True)
    until(lambda: job.state == "running" and (tmp_path / "order").is_file())

    def not_yet(path, **options):
        if job.id in os.path.basename(path):
            seen.append(([j.id for j in one.jobs()], job.folder.exists()))
        else:
            real(path, **options)

    monkeypatch.setattr(jobs.shutil, "rmtree", not_yet)
    one.delete(job)
    assert seen == [([], False)] and job.pid is None
    monkeypatch.setattr(jobs.shutil, "rmtree", real)
    with pytest.raises(InputError, match="was deleted"):  # from a page that still shows it
        one.start(job, quick=True)
    one.delete(job)
    assert one.jobs() == [] and len(list(one.home.glob(".*.tmp-*"))) == 1  # as a killed server would leave it
    assert list(queue().home.iterdir()) == []


def test_a_run_that_vanishes_while_it_is_looked_at_does_not_end_the_worker(tmp_path, monkeypatch):
    one = Queue(tmp_path / "home", "python3")
    gone, kept = (one.add(name, [photo(tmp_path)]) for name in ("gone", "kept"))
    one.start(kept, quick=True)
    monkeypatch.setattr(Job, "state", "waiting")  # as it was a moment ago
    assert one._waiting() == [kept] and one.position(gone) == 0


@pytest.mark.parametrize("fails", ("start", "number"))
def test_a_run_that_cannot_be_started_fails_and_the_next_one_runs(queue, tmp_path, monkeypatch, fails):
    (tmp_path / "order.go").write_text("")
    real, writes, errors = jobs.subprocess.Popen, jobs.write_text, [OSError(12, "Cannot allocate memory")]

    def once(function):
        def instead(*arguments, **options):
            if (function is real or arguments[0].name == "pid") and errors:
                raise errors.pop()
            return function(*arguments, **options)

        return instead

    one = Queue(tmp_path / "home", "python3")
    a, b = (one.add(name, [photo(tmp_path)]) for name in ("a", "b"))
    monkeypatch.setattr(*((jobs.subprocess, "Popen", once(real)) if fails == "start" else (jobs, "write_text", once(writes))))
    for job in (a, b):
        one.start(job, quick=True)
        time.sleep(0.02)
    one = queue()
    until(lambda: b.state == "done")
    assert (a.state, a.status, a.pid) == ("failed", 1, None) and a.cause().startswith("error: cannot be started (Cannot allocate memory)")
    one.start(a, quick=True)
    until(lambda: a.state == "done")
    assert (tmp_path / "order").read_text().split()[-2:] == ["b", "a"]


def test_runs_that_cannot_be_looked_at_for_a_moment_do_not_end_the_worker(queue, tmp_path, monkeypatch):
    (tmp_path / "order.go").write_text("")
    real, errors = Queue.jobs, [OSError(5, "Input/output error")]
    job = Queue(tmp_path / "home", "python3").add("a", [photo(tmp_path)])

    def listed(self):
        if errors:
            raise errors.pop()
        return real(self)

    monkeypatch.setattr(Queue, "jobs", listed)
    one = queue()
    until(lambda: not errors)
    one.start(job, quick=True)
    until(lambda: job.state == "done")


def test_photos_are_used_in_the_importers_order_not_the_uploads(tmp_path):
    names = ["IMG_10.png", "img_2.png", "b.png", "IMG_9.png", "9.png", "IMG_9b3.png", "a 10 2.png"]
    (tmp_path / "photos").mkdir()
    for k, name in enumerate(names):
        photo(tmp_path, k / 8).rename(tmp_path / "photos" / name)
    job = Queue(tmp_path / "home", "python3").add("a", [tmp_path / "photos" / name for name in names])
    used = [entry["sha256"] for entry in read_json(job.scene.train_dir / "photos.json")["inputs"]]
    assert used == [file_hash(path) for path in find_photos(tmp_path / "photos")]


@pytest.mark.parametrize("when", ("looked at", "copied"))
def test_an_upload_that_is_gone_is_said_to_be(tmp_path, monkeypatch, when):
    """Two windows share what Gradio keeps of equal photos, and the first import removes it."""
    one, path = Queue(tmp_path / "home", "python3"), photo(tmp_path)
    if when == "looked at":
        path.unlink()
    else:
        monkeypatch.setattr(one, "jobs", lambda: path.unlink() or [])
    with pytest.raises(InputError, match="^an uploaded photo is gone .* add the photos again$"):
        one.add("a", [path])
    assert list(one.home.iterdir()) == []


def test_one_server_for_a_folder(tmp_path):
    first = jobs.claim(tmp_path)
    with pytest.raises(InputError, match="another app"):
        jobs.claim(tmp_path)
    first.close()
    jobs.claim(tmp_path).close()


def test_limits_leave_nothing_behind(tmp_path, monkeypatch):
    one = Queue(tmp_path / "home", "python3")
    good = photo(tmp_path)
    monkeypatch.setattr(jobs, "MAX_BYTES", good.stat().st_size)
    for files, message in (
        ([], "no photos yet"),
        ([good] * 13, "at most 12"),
        ([good, good], "same picture"),
        ([tmp_path / "x.png"], "25|MB"),
    ):
        (tmp_path / "x.png").write_bytes(good.read_bytes() + b"x")
        with pytest.raises(InputError, match=message) as caught:
            one.add("a", files)
        assert str(tmp_path) not in str(caught.value)  # a page shows it
    with pytest.raises(InputError, match="plain name"):
        one.add("../../etc", [good])
    assert one.jobs() == [] and list(one.home.iterdir()) == []
    monkeypatch.setattr(jobs, "MAX_RUNS", 1)
    one.add("a", [good])
    with pytest.raises(InputError, match="delete some"):
        one.add("b", [good])


@pytest.mark.parametrize("identifier", ("..", "../home", "20200101-000000-00000000/../x", "/etc", "", None, "20200101-000000-0000000g"))
def test_only_ids_lead_to_runs(tmp_path, identifier):
    assert Queue(tmp_path / "home", "python3").get(identifier) is None
    assert Job(tmp_path).asked == {}
