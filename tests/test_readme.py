"""README and tree stay together; links of the documentation lead somewhere; its commands exist; the Docker image gets what the repository has."""

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sap3d.scene import REPOSITORY

FOLDERS = ("docs", "relposepp", "camerabooth", "3D_Recon", "results")
PATHS = [REPOSITORY / "README.md", *(p for folder in FOLDERS for p in sorted((REPOSITORY / folder).glob("*.md"))), *sorted(REPOSITORY.glob("*/weights/**/*.md"))]
PAGES = [str(path.relative_to(REPOSITORY)) for path in PATHS]
CHECKED = ("sap3d", "dataset", "relposepp", "camerabooth", "3D_Recon", "app", "benchmarks", "tests")  # folders of modules that commands may name


def tree_entries() -> list[str]:
    """Paths of the README's tree, from its indentation."""
    block = next(b for b in re.findall(r"```\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S) if "run_pipeline.sh  " in b)
    found, folder = [], ""
    for line in block.splitlines():
        name = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            found.append(name)
        else:
            found.append(folder + name)
    return found


def tracked() -> list[str]:
    """Files under version control, and new ones that are not ignored."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_everything_in_the_tree_exists():
    entries = tree_entries()
    assert len(entries) > 30 and "sap3d/cameras.py" in entries
    assert [entry for entry in entries if not (REPOSITORY / entry).exists()] == []


def test_everything_that_exists_is_in_the_tree():
    entries = {entry.rstrip("/") for entry in tree_entries()}
    tops = {path.split("/")[0] for path in tracked()} - {".ci"}
    assert tops - entries == set()
    for folder, endings in (("sap3d", (".py",)), ("dataset", (".py",)), ("docs", (".md",))):
        files = {path for path in tracked() if path.startswith(f"{folder}/") and path.count("/") == 1 and path.endswith(endings)}
        generated = {"sap3d/__init__.py", "dataset/__init__.py", "docs/results.md"}
        assert files - entries - generated == set()


def anchors(text: str) -> set[str]:
    """What ``#...`` of a link may name on a page: its headings as GitHub writes them, the second of a name with -1, and so on."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w -]", "", plain).replace(" ", "-"))
    return {name + (f"-{found[:place].count(name)}" if name in found[:place] else "") for place, name in enumerate(found)}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files that are not there, or to headings that their page does not have."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
                broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    assert broken_links(REPOSITORY / page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# The `b`, with *one*\n```\n# no heading\n```\n## Twice\n## Twice\n")
    (tmp_path / "a.md").write_text("# Here\n" + " ".join(f"[x]({target})" for target in
        ("b.md", "b.md#the-b-with-one", "#here", "b.md#twice-1", "c.md", "b.md#no-heading", "#there", "b.md#twice-2", "https://nowhere.invalid/#x")))  # fmt: skip
    assert broken_links(tmp_path / "a.md") == ["c.md", "b.md#no-heading", "#there", "b.md#twice-2"]


def missing_modules(text: str) -> list[str]:
    """Modules of the project that commands of a page start and that are not there."""
    named = [module.rstrip(".") for module in re.findall(r"python3? -m ([\w.]+)", text)]
    path = {module: REPOSITORY / module.replace(".", "/") for module in named if module.split(".")[0] in CHECKED}
    return [module for module in path if not path[module].with_suffix(".py").is_file() and not (path[module] / "__main__.py").is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_modules_in_commands(page):
    assert missing_modules((REPOSITORY / page).read_text()) == []


@pytest.mark.parametrize("page", (*(f"docs/{name}.md" for name in ("DATASET", "FAQ", "FULL_PRESET", "PHOTOS", "batches", "pipeline")), "results/README.md"))
def test_pages_with_commands_say_where_and_by_which_python(page):
    assert (REPOSITORY / page).read_text().split("\n\n")[1] == "Run commands in the repository's folder; `python` is `.venv/bin/python`."


def test_a_command_that_is_not_there_is_found():
    text = "python -m app; .venv/bin/python -m benchmarks.parity. python3 -m relposepp.train, python -m pip, python -m app.page_of_old, python -m benchmarks.gone, python -m tests"
    assert missing_modules(text) == ["app.page_of_old", "benchmarks.gone", "tests"]


def in_image(path: str, rules: list[str]) -> bool:
    """Whether Docker takes a file: the last rule that fits the path or a folder above it counts."""
    parts, taken = path.split("/"), True
    for rule in rules:
        wanted = rule.removeprefix("!").split("/")
        for end in range(1, len(parts) + 1):
            head = parts[:end]
            if wanted[0] == "**":
                head, pattern = head[-len(wanted) + 1 :], wanted[1:]
            else:
                pattern = wanted
            if len(head) == len(pattern) and all(map(fnmatchcase, head, pattern)):
                taken = rule.startswith("!")
    return taken


def test_the_image_gets_what_is_under_version_control_and_no_private_data():
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert [path for path in tracked() if (REPOSITORY / path).is_file() and not in_image(path, rules)] == []
    private = ("weights/zero123/model.safetensors", "dataset/data/train/MINE/my_toy/images/000.png", "dataset/data/test/my_toy/images/000.png", "dataset/data/objaverse/mine.npz",
               "dataset/3d_models/MINE/my_toy/meshes/model.obj", "dataset/corpus_cache_procedural/index.json", ".venv/bin/python", ".work/app/a", "sap3d/__pycache__/a.pyc", ".git/HEAD",
               "results/GSO_demo/cactus/5/results.json", "camerabooth/experiments_nvs/T/o_view_5/preds/000.png", "tensorboard/a")  # fmt: skip
    assert [path for path in private if in_image(path, rules)] == []
