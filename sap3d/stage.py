"""The command line that every stage has: settings, dry run and lock."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Sequence

from sap3d.config import Config, stage_arguments
from sap3d.lock import run_lock
from sap3d.scene import Scene, WouldRun, dry_run

WOULD_RUN = 10  # exit status of a dry run that found something to do


def run_stage(
    description: str, config_class: type[Config], main: Callable[[Scene, Config], Path], report: Callable[[Scene, Path], None], argv: Sequence[str] | None = None
) -> None:
    """Parse the command line, hold the object's lock, run ``main(scene, config)`` and ``report(scene, its result)``.

    With ``--dry-run`` nothing is written: what is wrong with photos, files and settings is said as ever, else whether the
    stage would run and why (status 10) or is finished (status 0).
    """
    arguments, config = stage_arguments(description, config_class, argv)
    scene = Scene(arguments.type, arguments.object, arguments.views)
    if not dry_run():
        with run_lock(scene):
            report(scene, main(scene, config))
        return
    try:
        main(scene, config)
    except WouldRun as reason:
        print(f"would run: {reason}")
        raise SystemExit(WOULD_RUN) from None
    print("finished already")
