"""Curves and pictures for TensorBoard, where its package is installed (requirements-tensorboard.txt); nothing at all where it is not.

    with EventLog(folder, start=step) as log:     # 0: a new run, whose older curves go; above: the first step to come of a resumed one, which adds to them
        if log:                                   # before work that only serves the log
            log.scalars(step, {"loss": 0.1})
            log.picture(step, "render", image)    # (H, W, 3) in [0, 1]

A stage's log lies in ``scene_log_folder``, outside of its outputs: ``tensorboard --logdir ROOT_DIR/tensorboard`` shows all objects.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Mapping

import numpy as np

from sap3d.scene import Scene


def scene_log_folder(scene: Scene, stage: str) -> Path:
    return scene.root / "tensorboard" / scene.type / f"{scene.object}_view_{scene.views}" / stage


class EventLog:
    """One run's event files. Written every half minute and at ``close``; a killed run loses what came after."""

    def __init__(self, folder: Path, start: int = 0):
        self._writer = None
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        if start == 0:
            for old in Path(folder).glob("events.out.tfevents.*"):
                old.unlink(missing_ok=True)
        # What a killed run wrote after its last checkpoint comes again: TensorBoard leaves the old points out.
        self._writer = SummaryWriter(str(folder), purge_step=start or None, flush_secs=30)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __bool__(self) -> bool:
        return self._writer is not None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name.replace(" ", "_"), float(value), step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """image: (H, W, 3) in [0, 1]."""
        if self._writer is not None:
            self._writer.add_image(name, np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
