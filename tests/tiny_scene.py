"""One tiny object for whole-pipeline tests: a coloured box rendered at a few views, with ground truth, and settings for seconds."""

from pathlib import Path

from dataset.render import RenderSettings, render_object
from sap3d.mesh_load import load_mesh_normalised
from sap3d.scene import Scene
from tests.mesh_examples import write_cube

TYPE, OBJECT = "TINY", "box"
SETTINGS = {  # what makes each stage take seconds
    "relpose": ["candidates=24"],
    "booth": ["steps=6", "steps_per_extra_view=2", "batch_size=2", "regulariser=random", "regulariser_objects=2", "regulariser_batch=1", "nvs_steps=2", "output_size=64"],
    "recon": ["steps=24", "grid=[16,24]", "level_starts=[0.0,0.5]", "photo_sizes=[32,64]", "rays=256", "warm_start_rays=128", "sds_every=6", "render_size=32",
              "turntable_frames=4", "turntable_size=32", "mesh_cells=32", "mesh_faces=2000", "texture_size=128", "checkpoint_seconds=0"],
    "eval": ["size=32"],
}  # fmt: skip
ALL_SETTINGS = [f"{stage}.{setting}" for stage, settings in SETTINGS.items() for setting in settings]


def make_tiny_object(root: Path, views: int = 3) -> Scene:
    """Photos (128 px), true cameras, 84 test views (32 px) and the true mesh below ``root``."""
    mesh = load_mesh_normalised(write_cube(root / "source", scale=(1.0, 0.6, 0.4)))
    render_object(mesh, TYPE, OBJECT, root, RenderSettings(views=views, input_size=128, test_size=32))
    return Scene(TYPE, OBJECT, views, root)
