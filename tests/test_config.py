"""Settings: defaults < YAML < command line; whatever is not understood is one clear error."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from sap3d.config import as_dict, load_config, resolve_device, stage_arguments
from sap3d.errors import InputError, cli, one_line


@dataclass
class Settings:
    steps: int = 10
    rate: float = 0.5
    mode: str = "fast"
    on: bool = True
    span: tuple[float, float] = (0.0, 1.0)

    QUICK: ClassVar[tuple[str, ...]] = ("steps=2", "rate=0.1")


def test_order_of_sources(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("steps: 20\nrate: 2\n")
    assert load_config(Settings) == Settings()
    assert load_config(Settings, path) == Settings(steps=20, rate=2.0)
    assert load_config(Settings, path, ["steps=30", "on=false", "span=[1, 2]"]) == Settings(30, 2.0, on=False, span=(1.0, 2.0))
    assert as_dict(Settings())["mode"] == "fast" and "QUICK" not in as_dict(Settings())


@pytest.mark.parametrize("bad", ("stepz=3", "steps=many", "steps", "=3", "steps.deep=1", "steps=[1", "steps=1.5", "on=perhaps"))
def test_bad_settings(bad):
    with pytest.raises(InputError) as caught:
        load_config(Settings, None, [bad])
    line = one_line(caught.value)
    assert "\n" not in line and len(line) < 400


def test_nothing_behind_the_sign_is_the_empty_text():
    assert load_config(Settings, None, ["mode=slow", "mode="]).mode == ""


def test_unknown_key_names_the_known_ones():
    with pytest.raises(InputError, match="stepz.*known keys: steps, rate, mode"):
        load_config(Settings, None, ["stepz=3"])


@pytest.mark.parametrize("bad, default", (("steps=many", "10"), ("mode={a: 1}", "'fast'"), ("span=[a]", "(0.0, 1.0)"), ("span=[a, b]", "(0.0, 1.0)")))
def test_a_wrong_value_names_the_default_and_no_keys(bad, default):
    with pytest.raises(InputError) as caught:
        load_config(Settings, None, [bad])
    assert str(caught.value).endswith(f"; give {bad.split('=')[0]} a value like its default, {default}") and "known keys" not in str(caught.value)


@pytest.mark.parametrize("text", ("stepz: 3\n", "steps: [\n", "- a\n- b\n", "steps: {a: 1}\n", "\0"))
def test_bad_files(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="settings.yaml"):
        load_config(Settings, path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such configuration file"):
        load_config(Settings, tmp_path / "none.yaml")


def test_stage_arguments():
    arguments, config = stage_arguments("A stage", Settings, ["--type", "T", "--object", "o", "--views", "3", "--quick", "steps=5"])
    assert (arguments.type, arguments.object, arguments.views) == ("T", "o", 3)
    assert config == Settings(steps=5, rate=0.1)  # the command line is above --quick
    _, config = stage_arguments("A stage", Settings, ["mode=slow", "--type", "T", "--object", "o", "--views", "3", "steps=5", "--quick", "on=false"])
    assert config == Settings(steps=5, rate=0.1, mode="slow", on=False)  # settings between options


@pytest.mark.parametrize("views", ("abc", "1.5", ""))
def test_views_must_be_a_whole_number(views, capsys):
    with pytest.raises(SystemExit) as caught:
        stage_arguments("A stage", Settings, ["--type", "T", "--object", "o", "--views", views])
    assert caught.value.code == 2 and "is not a whole number" in capsys.readouterr().err


def test_devices():
    assert resolve_device("cpu") == "cpu"
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError):
            resolve_device(name)


def test_cli_statuses(capsys):
    def ending(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as caught:
            cli(main)
        return caught.value.code, capsys.readouterr().err

    assert ending(InputError("a file\n is bad")) == (2, "error: a file is bad\n")
    assert ending(KeyboardInterrupt())[0] == 130
    status, line = ending(OSError(28, "No space left on device", "results/x"))
    assert status == 2 and "no space left" in line and "results/x" in line
    status, line = ending(PermissionError(13, "Permission denied", "results/x"))
    assert status == 2 and "ROOT_DIR" in line
    assert "--quick" in ending(MemoryError())[1]
    with pytest.raises(ZeroDivisionError):  # a fault of the program keeps its traceback
        cli(lambda: 1 / 0)
