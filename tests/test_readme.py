"""README and tree stay together; links of the documentation lead somewhere; its commands exist."""

import re
import subprocess

import pytest

from sap3d.scene import REPOSITORY

PAGES = ["README.md", *(str(p.relative_to(REPOSITORY)) for folder in ("docs", "relposepp", "camerabooth", "3D_Recon", "results") for p in sorted((REPOSITORY / folder).glob("*.md")))]


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


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    text = (REPOSITORY / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((REPOSITORY / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_in_commands(page):
    for module in re.findall(r"python -m ([\w.]+)", (REPOSITORY / page).read_text()):
        if module.split(".")[0] in ("sap3d", "dataset", "relposepp", "camerabooth", "3D_Recon"):
            assert (REPOSITORY / (module.replace(".", "/") + ".py")).is_file(), f"{page}: {module}"
