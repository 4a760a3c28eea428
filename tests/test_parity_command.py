"""The parity check as one command, on the committed outputs of the references (its own first half needs their checkouts)."""

import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import parity
from sap3d.errors import cli
from sap3d.scene import REPOSITORY
from tests.published_files import PARITY


def check(monkeypatch, work):
    monkeypatch.setattr(sys, "argv", ["parity", "--work", str(work)])
    cli(parity.main)


def test_status_says_whether_the_outputs_agree(tmp_path, monkeypatch, capsys):
    (tmp_path / "expected").mkdir()
    for path in PARITY.glob("relposepp.*"):
        shutil.copy(path, tmp_path / "expected")
    check(monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert "44,091,740 numbers" in printed and "ABOVE" not in printed and "largest relative error" in printed
    other = load_file(tmp_path / "expected/relposepp.safetensors")
    save_file(other | {"scores": other["scores"] * 1.001}, tmp_path / "expected/relposepp.safetensors")
    with pytest.raises(SystemExit) as ended:
        check(monkeypatch, tmp_path)
    assert ended.value.code == 1 and "scores           relative error 1.0e-03  ABOVE 1e-04" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.pth"))


def test_an_error_that_is_no_number_is_not_hidden(tmp_path, monkeypatch, capsys):
    (tmp_path / "expected").mkdir()
    shutil.copy(PARITY / "relposepp.json", tmp_path / "expected")
    monkeypatch.setattr(parity, "compare_relposepp", lambda folder, work: {"features": 1e-6, "scores": float("nan"), "translations": 1e-6})
    with pytest.raises(SystemExit) as ended:
        check(monkeypatch, tmp_path)
    assert ended.value.code == 1 and "largest relative error nan" in capsys.readouterr().out


def test_an_empty_folder_is_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        check(monkeypatch, tmp_path)
    assert ended.value.code == 2 and "give the checkouts of the references" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, says",
    (
        ((), "give --zero123 and --clip, --relposepp, or all three"),
        (("--zero123", "{}"), "--zero123 and --clip go together"),
        (("--clip", "{}"), "--zero123 and --clip go together"),
        (("--relposepp", "{}"), "the reference cannot be loaded (No module named "),
        (("--zero123", "{}", "--clip", "{}"), "/clip/model.py"),
    ),
)
def test_references_that_are_not_there_are_one_line(tmp_path, given, says):
    command = [sys.executable, "-m", "benchmarks.reference", *(part.format(tmp_path) for part in given), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ") and says in done.stderr
    assert not (tmp_path / "out").exists()
