"""A small object with the outputs of all stages: stand-ins, but of the right form."""

from pathlib import Path

from PIL import Image

from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.scene import Scene, file_hash, write_cameras, write_json
from tests.malformed.files import disc

VIEWS = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(30, 90), "002": Camera.from_degrees(10, 200)}


def make_scene(root: Path) -> Scene:
    """Type T, object o: three photos, cameras, novel views, records, a mesh and results that must not be touched."""
    scene = Scene("T", "o", 3, root)
    for k in range(3):
        write(scene.root / f"dataset/data/train/T/o/images/{k:03d}.png", disc(k))
    write_cameras(scene.initial_cameras, VIEWS)
    write_cameras(scene.refined_cameras, VIEWS)
    for name in protocol_test_cameras():
        write(scene.nvs_dir / "preds" / f"{name}.png", disc()[..., :3])
    for path in (scene.initial_cameras.with_suffix(".record.json"), *(f / "record.json" for f in (scene.personal_dir, scene.nvs_dir, scene.nerf_dir, scene.mesh_dir, scene.results_dir))):
        write_json(path, {"stage": "earlier", "config": {}, "inputs": {}, "seconds": 1})
    for path in (scene.mesh_dir / "model.obj", scene.results_dir / "results.json"):
        path.write_text("finished earlier")
    return scene


def make_model(folder: Path, scene: Scene) -> None:
    """A small random Zero-1-to-3 in diffusers' format, and a personal model of it for ``scene``."""
    import torch  # takes seconds; most inputs are refused before it is needed

    from sap3d.zero123 import save_personal, tiny_random_model
    from sap3d.zero123.personal import weights_hash

    model = tiny_random_model(0)
    model.save(folder, torch.float32)
    save_personal(scene.personal_dir / "personal.safetensors", model, ["cc_projection.linear.bias"], weights_hash(model))


def write(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def contents(root: Path) -> dict[str, str]:
    """Hash of every file below ``root`` by its path; links and special files by their kind."""
    return {str(path.relative_to(root)): "link" if path.is_symlink() else file_hash(path) for path in sorted(root.rglob("*")) if path.is_symlink() or not path.is_dir()}
