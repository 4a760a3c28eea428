"""Running one object: the lock, dry runs, single stages, interrupts, a killed driver."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import run_pipeline
from sap3d.batch.board import Board
from sap3d.batch.jobs import Job
from sap3d.batch.local import run_local
from sap3d.errors import InputError, one_line
from sap3d.interrupt import Terminated, finish_step_first
from sap3d.lock import lock_file, run_lock
from sap3d.scene import REPOSITORY, Scene
from tests.malformed.scene import contents, make_scene


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path)


def start(scene, *options, cwd=None, **variables):
    command = ["sh", str(REPOSITORY / "run_pipeline.sh"), "T", "o", "3", "cpu", *options]
    given = {**os.environ, "PYTHON": sys.executable, "ROOT_DIR": str(scene.root), **variables}
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=cwd,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


# --- lock -------------------------------------------------------------------------------------------------------------
def test_one_run_at_a_time(scene):
    other = Scene("T", "o", 2, scene.root)
    with run_lock(scene):
        with pytest.raises(InputError, match=f"another run works on this object .process {os.getpid()} on .* since .*; wait for it or end it"):
            with run_lock(scene):
                pass
        with run_lock(other):  # another number of views has folders of its own
            pass
        done = start(scene, "--only-stage", "eval")
        _, errors = done.communicate()
        assert done.returncode == 2 and errors.startswith("error: ") and "another run works on this object" in errors and len(errors.splitlines()) == 1
    assert not lock_file(scene).exists()


def test_lock_of_a_killed_run_is_taken_over(scene):
    lock_file(scene).write_text("process 1 on elsewhere")
    with run_lock(scene):
        assert f"process {os.getpid()}" in lock_file(scene).read_text()
    assert not lock_file(scene).exists()


def test_waiting_for_the_lock(scene, monkeypatch):
    monkeypatch.setenv("SAP3D_LOCK_WAIT", "30")
    order, held = [], threading.Event()

    def first():
        with run_lock(scene):
            held.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with run_lock(scene):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setenv("SAP3D_LOCK_WAIT", "long")
    with pytest.raises(InputError, match="SAP3D_LOCK_WAIT"):
        with run_lock(scene):
            pass


def test_no_lock_where_nothing_can_be_written(scene, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))  # root may write anywhere
    with run_lock(scene):
        pass


# --- dry runs and single stages ---------------------------------------------------------------------------------------
def test_dry_run_writes_nothing_and_says_why(scene):
    before = contents(scene.root)
    done = start(scene, "--dry-run", "--seed", "7", "booth.steps=9")
    output, errors = done.communicate()
    assert done.returncode == 0 and errors == "" and contents(scene.root) == before
    first, second, third, last = output.split("== ")[1:]
    assert "would run: changed since it ran: setting weights, device" in first  # its record is of other settings
    assert "would run after that: python -m camerabooth.run --type T --object o --views 3 seed=7 steps=9" in second
    assert "3D_Recon.threestudio.launch --type T --object o --views 3 seed=7" in third and "sap3d.evaluate" in last


def test_relative_paths_count_from_where_the_command_is_given_and_presets_are_two_words_too(scene, tmp_path):
    (tmp_path / "mine").mkdir()
    process = start(scene, "--dry-run", "relpose.cameras=mine.yaml", cwd=tmp_path / "mine")
    assert process.wait() == 2 and process.stderr.read().startswith(f"error: relpose.cameras={tmp_path}/mine/mine.yaml: no such camera file")
    output, errors = start(scene, "--dry-run", "--preset", "tiny", "--seed", "3", "relpose.starts=500").communicate()
    assert not errors and "camerabooth.run --type T --object o --views 3 seed=3 --preset=tiny" in output


def test_stages_can_be_chosen(scene):
    for options, expected in ((("--from-stage", "recon"), ["stage 3 of 3", "evaluation"]), (("--only-stage=booth",), ["stage 2 of 3"])):
        output, errors = start(scene, "--dry-run", *options).communicate()
        assert [line[3:].split(":")[0] for line in output.splitlines() if line.startswith("== ")] == expected, errors


def test_a_dry_run_makes_no_root(scene):
    process = start(scene, "--dry-run", cwd=scene.root, ROOT_DIR="later")
    errors = process.communicate()[1]
    assert process.returncode == 2 and "unknown dataset type 'T'" in errors and not (scene.root / "later").exists()
    given = {**os.environ, "PYTHON": sys.executable, "ROOT_DIR": "later"}
    done = subprocess.run(["sh", str(REPOSITORY / "run_pipeline.sh"), "GSO_demo", "cactus", "2", "cpu", "--dry-run"], cwd=scene.root, env=given, capture_output=True, text=True)
    assert done.returncode == 0 and "would run after that: python -m sap3d.evaluate" in done.stdout, done.stderr
    assert not (scene.root / "later").exists()


def test_zeros_before_a_seed_mean_nothing(scene):
    for seed, expected in ((("--seed", "010"), "10"), (("--seed=000",), "0"), (("--seed", "00000000000007"), "7")):
        output, errors = start(scene, "--dry-run", "--from-stage=booth", *seed).communicate()
        assert not errors and f"--views 3 seed={expected}\n" in output, output


def test_usage_wherever_it_is_asked_for(scene):
    for options in (("-h",), ("--quick", "--help"), ("booth.steps=9", "-h", "--nothing")):
        process = start(scene, *options)
        output, errors = process.communicate()
        assert process.returncode == 0 and output.startswith("usage: sh run_pipeline.sh TYPE OBJECT VIEWS GPU") and not errors


# --- paths and models in the settings -----------------------------------------------------------------------------------
def test_paths_that_are_not_there_are_found_before_the_first_stage(scene, tmp_path):
    for setting, what in (("recon.cameras=mine.yaml", "camera file"), ("recon.model=mine", "folder"), ("booth.model=mine", "folder"), ("relpose.weights=mine", "folder")):
        process = start(scene, "--dry-run", setting, cwd=tmp_path)
        output, errors = process.communicate()
        key, _, name = setting.partition("=")
        assert process.returncode == 2 and errors == f"error: {key}={tmp_path}/{name}: no such {what}; correct the path or leave {key} out\n" and "== " not in output
    command = [sys.executable, str(REPOSITORY / "run_pipeline.py"), "--object_type", "T", "--dry-run", "--set", "recon.cameras=mine.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "ROOT_DIR": str(scene.root)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: recon.cameras={tmp_path}/mine.yaml: no such camera file") and done.stdout == ""
    output, errors = start(scene, "--dry-run", "--only-stage", "eval", "recon.cameras=mine.yaml", cwd=tmp_path).communicate()
    assert not errors and "== evaluation" in output  # nobody reads it


def test_one_model_for_both_stages(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    model, half = f"model={tmp_path}/model", ["booth.weights_dtype=fp16", "booth.precision=fp16", "booth.trained=lora"]
    for settings, key in (([f"booth.{model}"], "model"), ([f"recon.{model}"], "model"), (half, "weights_dtype"), ([*half, "recon.weights_dtype=bf16"], "weights_dtype")):
        with pytest.raises(InputError, match=f"booth.{key}=.* and recon.{key}=.* differ"):
            run_pipeline.check_settings(settings)
        for only in ("booth", "recon"):
            run_pipeline.check_settings(settings, "", run_pipeline.stages_to_run(None, only))
        run_pipeline.check_settings(settings, "", run_pipeline.stages_to_run("recon", None))
        run_pipeline.check_settings([*settings, "recon.sds=false"])  # the model is not asked
    run_pipeline.check_settings([f"booth.{model}", f"recon.model={tmp_path}/link"])
    run_pipeline.check_settings([*half, "recon.weights_dtype=fp16"])


def test_options_that_take_several_values_may_be_repeated(monkeypatch):
    given = "run_pipeline.py --object_type T --set booth.steps=9 booth.seed=1 --objects a --views 3 --set recon.steps=8 --views 5 --objects b c --views 2"
    monkeypatch.setattr(sys, "argv", given.split())
    found = run_pipeline.parse()
    assert found.settings == ["booth.steps=9", "booth.seed=1", "recon.steps=8"] and found.objects == ["a", "b", "c"] and found.views == [3, 5, 2]
    monkeypatch.setattr(sys, "argv", given.split()[:3])
    assert run_pipeline.parse().views == [5] and run_pipeline.parse().settings == []


# --- the first run ------------------------------------------------------------------------------------------------------
# Stands for python3.11 and for .venv/bin/python: notes what it is told to make, and takes its time for it.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *"-m venv "*) echo venv >> "$NOTES"; sleep 1; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *"-m pip "*) echo pip >> "$NOTES"; sleep 1 ;;
esac
"""


def first_runs(folder, number, search=None):
    """``number`` runs at once of ``--setup`` in a repository without .venv; what they noted and said."""
    folder.mkdir()
    for name in ("run_pipeline.sh", "requirements.txt"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3.11").write_text(FAKE_PYTHON)
    (folder / "bin" / "python3.11").chmod(0o755)
    given = {"PATH": f"{folder}/bin:{search or os.environ['PATH']}", "NOTES": str(folder / "notes")}
    runs = [subprocess.Popen([shutil.which("sh"), str(folder / "run_pipeline.sh"), "--setup"], env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(number)]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * number, said
    return (folder / "notes").read_text().split(), said


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_two_first_runs_make_one_environment(tmp_path):
    notes, said = first_runs(tmp_path / "repository", 2)
    assert notes == ["venv", "pip"] and sorted("waiting for another run" in text for text in said) == [False, True]


def test_a_first_run_without_flock(tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "cksum", "cat", "sleep", "mkdir", "cp", "rm", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    assert first_runs(tmp_path / "repository", 1, tmp_path / "bin")[0] == ["venv", "pip"]


def test_called_through_a_link(scene, tmp_path):
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "run_pipeline.sh")
    given = {**os.environ, "PYTHON": sys.executable, "ROOT_DIR": str(scene.root)}
    done = subprocess.run(["sh", "pipeline", "T", "o", "3", "cpu", "--dry-run", "--only-stage=eval"], cwd=tmp_path, env=given, capture_output=True, text=True)
    assert done.returncode == 0 and "== evaluation" in done.stdout, done.stderr


# --- output that nobody reads -------------------------------------------------------------------------------------------
def unread(code):
    """Status and complaints of a program whose standard output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    given = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # with it every print is tried at once
    done = subprocess.run([sys.executable, "-c", f"from sap3d.errors import InputError, cli\n{code}"], cwd=REPOSITORY, env=given, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    return done.returncode, done.stderr


def test_output_that_nobody_reads():
    assert unread("cli(lambda: print('hello'))") == (141, "")
    assert unread("cli(lambda: print('hello' * 100000, flush=True))") == (141, "")
    assert unread("cli(lambda: 0)") == (0, "")
    status, errors = unread("def main():\n  print('hello')\n  raise InputError('no such file')\ncli(main)")
    assert (status, errors) == (2, "error: no such file\n")
    status, errors = unread("def main():\n  print('hello')\n  raise SystemExit(1)\ncli(main)")
    assert (status, errors) == (1, "")


def test_a_broken_pipe_that_is_not_the_output_is_a_fault():
    code = "import sys, os\nfrom sap3d.errors import cli\ndef main():\n  raise BrokenPipeError(32, 'Broken pipe')\ncli(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_batch_ends_when_nobody_reads_it(tmp_path, monkeypatch):
    jobs = [Job(name, 1, name, ["sleep", "60"], tmp_path / name / "log", tmp_path / name / "results.json") for name in "abc"]
    board, said = Board(jobs), []

    def say(text):
        if said:
            raise BrokenPipeError(32, "Broken pipe")
        said.append(text)

    monkeypatch.setattr(board, "say", say)
    began = time.time()
    with pytest.raises(BrokenPipeError):
        run_local(jobs, ["0", "1"], 0, board)
    assert time.time() - began < 30 and not jobs[2].attempts


NOTING_PYTHON = """#!/bin/sh
case "$*" in
    *is_available*) exit 0 ;;
    "-m sap3d.lock"*) exit 0 ;;
    "-m "*) echo "called $CUDA_VISIBLE_DEVICES $*"; exit 0 ;;
esac
exec "$REAL_PYTHON" "$@"
"""


def test_options_reach_the_stages(scene, tmp_path):
    """The GPU's index, --quick and the seed; and settings the stage that they are of, and no other."""
    for name, text in (("python", NOTING_PYTHON), ("nvidia-smi", "#!/bin/sh\necho 5\n")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    given = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "bin" / "python"), "REAL_PYTHON": sys.executable, "ROOT_DIR": str(scene.root)}
    done = subprocess.run(["sh", str(REPOSITORY / "run_pipeline.sh"), "T", "o", "3", "5", "--quick", "--seed", "7", "recon.steps=9"], env=given, capture_output=True, text=True)
    expected = [("relposepp.run", "seed=7"), ("camerabooth.run", "seed=7"), ("3D_Recon.threestudio.launch", "seed=7", "steps=9"), ("sap3d.evaluate",)]
    calls = [line.split() for line in done.stdout.splitlines() if line.startswith("called")]
    assert [sorted(call) for call in calls] == [sorted([*"called 5 -m --type T --object o --views 3 --quick".split(), *words]) for words in expected], done.stdout + done.stderr


# --- interrupts -------------------------------------------------------------------------------------------------------
@pytest.fixture
def heard():
    """SIGINT as Python handles it, also where the tests themselves were started in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number, error", ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)))
def test_a_signal_lets_the_step_finish(heard, number, error):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    steps = []
    with pytest.raises(error):
        with finish_step_first() as stop:
            for step in range(5):
                if step == 2:
                    os.kill(os.getpid(), number)
                steps.append(step)
                if stop.requested:
                    stop.leave()
    assert steps == [0, 1, 2]
    with pytest.raises(error):  # the second signal does not wait
        with finish_step_first():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            time.sleep(5)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def wait_for(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


def is_free(scene) -> bool:
    try:
        with run_lock(scene):
            return True
    except InputError:
        return False


SLOW = "relpose.search=so3 relpose.queries=1000 relpose.iterations=100000000".split()  # a stage that would take hours


@pytest.mark.parametrize("number, status", ((signal.SIGTERM, 143), (signal.SIGINT, 130)))
def test_a_signal_to_the_driver_reaches_the_stage(scene, number, status):
    process = start(scene, *SLOW)
    for line in process.stdout:
        if line.startswith("== stage 1"):
            break
    time.sleep(1)
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == status and "Traceback" not in errors
    assert not lock_file(scene).exists() and is_free(scene)


def test_a_killed_driver_takes_its_stage_along(scene):
    process = start(scene, *SLOW)
    for line in process.stdout:
        if line.startswith("== stage 1"):
            break
    assert not is_free(scene)
    time.sleep(1)
    process.kill()
    process.wait()
    wait_for(lambda: is_free(scene))
    process.communicate()


# --- what the system refuses --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error, says",
    (
        (OSError(28, "No space left on device", "/a/b"), "no space left on the disk while writing /a/b"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), "no space left"),
        (OSError(27, "File too large", "/a/b"), "ulimit -f"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b cannot be read or written (Permission denied)"),
        (NotADirectoryError(20, "Not a directory", "/a/b"), "/a/b cannot be used"),
        (MemoryError(), "out of memory: lower booth.batch_size"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."), "out of memory: lower booth.batch_size"),
    ),
)
def test_one_line(error, says):
    assert says in one_line(error, "booth.batch_size")
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("something else") from cause
    except ValueError as wrapped:
        assert says in one_line(wrapped, "booth.batch_size")


def test_faults_of_the_program_keep_their_traceback():
    assert one_line(ValueError("shape mismatch")) is None and one_line(FileNotFoundError(2, "No such file", "x")) is None
