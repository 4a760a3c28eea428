"""The import rule: a stage imports sap3d only, sap3d imports no stage, and requirements.txt names all that is imported."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sap3d.scene import REPOSITORY

STAGES = {"relposepp": "relposepp.run", "camerabooth": "camerabooth.run", "3D_Recon": "3D_Recon.threestudio.launch"}
OWN = {"sap3d", "dataset", "app", *STAGES}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "PyYAML", "skimage": "scikit-image"}  # where the names differ


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too; ``from a import b`` gives ``a`` and ``a.b``."""
    found = set()
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__") and isinstance(node.args[0], ast.Constant):
            found.add(node.args[0].value)
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def reachable(module: str) -> set[str]:
    """Own modules that ``module`` can import, directly or through others."""
    paths = {module_name(path): path for path in sources(*OWN)}
    found, todo = set(), {module}
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= {other for other in imports_of(paths[name]) if other in paths} - found
    return found


def tops(names) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", sources("sap3d"), ids=module_name)
def test_sap3d_imports_no_stage(path):
    assert not tops(imports_of(path)) & (OWN - {"sap3d"})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage):
    for path in sources(stage):
        others = tops(imports_of(path)) & (set(STAGES) - {stage})
        assert not others, f"{module_name(path)} imports {others}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_without_the_dataset_tools(stage):
    """Training code may read the corpus through them; what runs for an object must not."""
    assert not [name for name in reachable(STAGES[stage]) if tops([name]) & (OWN - {"sap3d", stage})]


def test_dataset_imports_no_stage():
    for path in sources("dataset"):
        assert not tops(imports_of(path)) & set(STAGES), module_name(path)


def test_the_app_imports_no_stage():
    for path in sources("app"):
        assert not tops(imports_of(path)) & set(STAGES), module_name(path)


def test_the_rule_sees_violations(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "camerabooth" / "deep" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from relposepp.run import main\n    from .. import b\n    import importlib\n    importlib.import_module('3D_Recon.x')\n")
    assert {"relposepp", "relposepp.run", "camerabooth.b", "3D_Recon.x"} <= imports_of(path) | tops(imports_of(path))


def test_command_lines_complain_in_one_line():
    """argparse's own parser prints its usage first; sap3d.errors has the project's."""
    for path in [*sources(*OWN, "benchmarks"), REPOSITORY / "run_pipeline.py"]:
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "argparse.ArgumentParser" not in calls and "argparse.ArgumentParser" not in imports_of(path), f"{path}: take sap3d.errors.ArgumentParser"


def pinned_in(*names: str) -> set[str]:
    lines = [line for name in names for line in (REPOSITORY / name).read_text().splitlines() if "==" in line]
    return {line.split("==")[0].lower().replace("-", "_") for line in lines}


@pytest.mark.parametrize("module", ["app.viewer", "app.jobs", "sap3d.report_page"])
def test_the_apps_environment_has_what_it_imports(module):
    code = f"import sys, {module}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    needed = {DISTRIBUTIONS.get(name, name).lower() for name in loaded} & pinned_in("requirements.txt")
    assert needed <= pinned_in("requirements-app.txt", "requirements-photos.txt") | {"pillow"}  # which gradio brings, of the version that it wants


def test_requirements_are_pinned_and_complete():
    texts = [path.read_text() for path in sorted(REPOSITORY.glob("requirements*.txt"))]  # the others are for optional parts
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith(("#", "-r "))]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("-", "_") for line in lines}
    local = OWN | {"tests", "benchmarks", "run_pipeline"} | {path.stem for path in sources("tests")}
    for path in [*sources(*OWN, "tests"), REPOSITORY / "run_pipeline.py"]:
        for name in tops(imports_of(path)) - set(sys.stdlib_module_names) - local - {""}:
            assert DISTRIBUTIONS.get(name, name).lower().replace("-", "_") in pinned, f"{path} imports {name}"


@pytest.mark.parametrize("module", [*STAGES.values(), "sap3d.evaluate"])
def test_command_lines_are_quick_to_start(module):
    """Usage and bad input must not wait for PyTorch."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--type" in done.stdout and "device" in done.stdout
