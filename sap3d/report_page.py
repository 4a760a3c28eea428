"""The report as one HTML file that needs no network: pictures, videos, meshes, styles and the 3D viewer lie in it."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import numpy as np

from sap3d.cameras import Camera
from sap3d.errors import InputError
from sap3d.images import SUFFIXES
from sap3d.results import FIGURE, dig, released_means
from sap3d.scene import Scene, read_cameras

PAGE = Path(__file__).parent / "page"
STRIP_VIEWS = ("024", "026", "028", "030", "032", "034", "013", "016", "019", "022", "050", "056")  # of the 84: elevation 15, then 30, then -15
MAX_EMBEDDED_MB = 24  # a larger mesh or video is named, not embedded
_ANGLES = {
    "initial rotation": "corrected.initial_cameras.rotation_pairs",
    "refined rotation": "corrected.cameras.rotation_pairs",
    "elevation": "corrected.cameras.elevation",
}


def page(results: list[dict], root: Path, means: list[tuple[list[str], bool]], keys: tuple[str, ...]) -> str:
    """The whole page. ``means``: rows of the first table and whether they are SAP3D's; ``keys``: the figures shown for an object."""
    headings = [FIGURE[key].heading for key in keys]
    rows = "".join(f"<tr{' class=released' if released else ''}>{_cells(row)}</tr>" for row, released in means)
    scenes = [Scene(r["type"], r["NAME"], r["views"], Path(root)) for r in results]
    parts = [
        "<main><h1>Results</h1>",
        f"<p class=lead>{len(results)} reconstruction{'s' * (len(results) != 1)}, each from a few photos without poses. Grey rows: SAP3D's released means, on other objects.</p>",
        f"<section class=card><h2>Means</h2><div class=scroll><table><tr>{_cells(['', *headings, 'time'], 'th')}</tr>{rows}</table></div></section>",
        *(_object(index, result, scene, keys) for index, (result, scene) in enumerate(zip(results, scenes))),
        "</main>",
    ]
    script = (PAGE / "mesh_viewer.js").read_text() + (PAGE / "report.js").read_text()
    head = f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><title>SAP3D results</title><style>{(PAGE / "report.css").read_text()}</style>'
    return f"{head}{''.join(parts)}<script>{script}</script></html>\n"


def _object(index: int, result: dict, scene: Scene, keys: tuple[str, ...]) -> str:
    """One object's card: photos, novel views, renders, figures and times beside turntable and mesh."""
    photos = sorted(path for path in (scene.train_dir / "images").glob("*") if path.suffix.lower() in SUFFIXES)[: scene.views]
    left = _strip("Photos", photos, 118, "photos")
    left += _strip("Novel views of the personal diffusion model", [scene.nvs_dir / "preds" / f"{name}.png" for name in STRIP_VIEWS], 92)
    left += _strip("The same views of the NeRF", [scene.nerf_dir / "save" / "rgb_pred" / f"{name}.png" for name in STRIP_VIEWS], 92)
    left += _figures(result, keys) + _times(result)
    judged = any(result.get(key) is not None for key in keys)  # without ground truth one line has said so already
    left += "".join(f"<p class=note>{html.escape(note)}</p>" for note in result.get("notes", []) if judged or not (note.startswith("no true ") and note.endswith(" is missing")))
    for name, label in (("contact_sheet.png", "All views beside the true ones" if judged else "All views"), ("cameras.png", "Cameras from above and aside")):
        if (scene.results_dir / name).is_file():
            left += f"<details><summary>{label}</summary>{_picture(scene.results_dir / name)}</details>"
    right = _mesh(f"glb{index}", scene) + _turntable(scene)
    views = f"{result['views']} photo{'s' * (result['views'] > 1)}"
    memory = f"{(result.get('peak_memory_mb') or 0) / 1024:.1f} GB"
    header = f"<h2>{html.escape(result['NAME'])}</h2><span class=soft>{html.escape(result['type'])}, {views}</span><span class=soft>{minutes(result.get('seconds'))}, {memory}</span>"
    return f'<section class=card id="{html.escape(result["type"])}-{html.escape(result["NAME"])}-{result["views"]}"><header>{header}</header><div class=parts><div>{left}</div><div>{right}</div></div></section>'


def _strip(label: str, paths: list[Path], size: int, kind: str = "") -> str:
    pictures = "".join(_picture(path, 2 * size) for path in paths)
    return f'<h3>{label}</h3><div class="strip {kind}">{pictures}</div>' if pictures else ""


def _figures(result: dict, keys: tuple[str, ...]) -> str:
    if all(result.get(key) is None for key in keys):
        return "<p class=soft>No ground truth, so there are no figures.</p>"
    rows = f"<tr>{_cells(['', *(FIGURE[key].heading for key in keys)], 'th')}</tr><tr>{_cells(['here', *(FIGURE[key].text(result.get(key)) for key in keys)])}</tr>"
    released = released_means(result["views"])
    if released:
        rows += f"<tr class=released>{_cells(['SAP3D, released mean', *(FIGURE[key].text(released.get(key)) for key in keys)])}</tr>"
    angles = ", ".join(f"{label} error {dig(result, path):.1f}&deg;" for label, path in _ANGLES.items() if dig(result, path) is not None)
    return f"<div class=scroll><table>{rows}</table></div><p class=key>{angles}</p>"


def _times(result: dict) -> str:
    stages = [stage for stage in result.get("stages", []) if stage.get("seconds")]
    if not stages:
        return ""
    bars = "".join(f'<i style="flex:{stage["seconds"]:.2f}"></i>' for stage in stages)
    names = ", ".join(f"{html.escape(str(stage['stage']))} {stage['seconds']:.0f} s, {(stage.get('peak_memory_mb') or 0) / 1024:.1f} GB" for stage in stages)
    return f"<div class=times aria-hidden=true>{bars}</div><p class=key>{names}</p>"


def _mesh(identifier: str, scene: Scene) -> str:
    path = scene.mesh_dir / "model.glb"
    data = _embedded(path)
    if data is None:
        return f"<h3>Mesh</h3><p class=soft>{_missing(path)}</p>"
    cameras = html.escape(json.dumps(viewer_cameras(scene)))
    switches = '<label><input type=checkbox name=shape> shape only</label><label><input type=checkbox name=cameras checked> cameras</label>'
    return (
        f'<h3>Mesh and cameras</h3><div class=mesh data-glb="{identifier}" data-cameras="{cameras}"><canvas tabindex=0 role=img aria-label="3D view of the mesh; drag to turn, scroll to zoom"></canvas>'
        f'<div class=bar>{switches}<a download="{html.escape(scene.object)}.glb">GLB</a></div><div class="hint key"></div></div><script type="text/plain" id="{identifier}">{data}</script>'
    )


def viewer_cameras(scene: Scene) -> list[dict]:
    """The photos' cameras (refined ones, else those of stage 1) for page/mesh_viewer.js: centre, right and up in the world, tangent."""
    for path in (scene.refined_cameras, scene.initial_cameras):
        try:
            return [_viewer_camera(name, camera) for name, camera in read_cameras(path).items()]
        except InputError:
            continue
    return []


def _viewer_camera(name: str, camera: Camera) -> dict:
    pose = camera.camera_from_world()
    rounded = lambda values: [round(float(v), 5) for v in values]  # noqa: E731
    return {"name": name, "centre": rounded(camera.center()), "right": rounded(pose[0, :3]), "up": rounded(pose[1, :3]), "tangent": round(float(np.tan(camera.fov_rad / 2)), 5)}


def _turntable(scene: Scene) -> str:
    path = scene.nerf_dir / "save" / "turntable.mp4"
    data = _embedded(path)
    if data is None:
        return f"<h3>Turntable</h3><p class=soft>{_missing(path)}</p>"
    return f'<h3>Turntable of the NeRF</h3><video muted loop autoplay playsinline controls src="data:video/mp4;base64,{data}"></video>'


def _missing(path: Path) -> str:
    return f"{path.name} is larger than {MAX_EMBEDDED_MB} MB and is not part of this page" if path.is_file() else f"no {path.name}"


def _embedded(path: Path) -> str | None:
    if not path.is_file() or path.stat().st_size > MAX_EMBEDDED_MB << 20:
        return None
    return base64.b64encode(path.read_bytes()).decode()


def _picture(path: Path, size: int = 0) -> str:
    """A picture over white as an embedded JPEG, at most ``size`` pixels large; nothing where the file is missing or damaged."""
    from PIL import Image

    if not path.is_file():
        return ""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image = image.convert("RGBA")
            if size:
                image.thumbnail((size, size))
            Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").save(buffer, format="JPEG", quality=85)
    except (OSError, SyntaxError, ValueError):
        return ""
    return f'<img alt="{html.escape(path.stem)}" title="{html.escape(path.stem)}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def minutes(seconds: float | None) -> str:
    return "-" if not seconds else f"{seconds / 60:.1f} min"


def _cells(values, tag: str = "td") -> str:
    return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)
