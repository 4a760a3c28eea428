"""Pictures of an evaluated object: the contact sheet of all that was made, and the cameras seen from above and aside."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from PIL import Image

from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.images import contact_sheet, save_image
from sap3d.mesh_load import RenderMesh
from sap3d.mesh_render import Lighting, MeshRenderer, render_rgba
from sap3d.scene import atomic_path

# One of the 84 views a column: azimuths in steps of 30 degrees, elevations that alternate between level, above and below.
_SHEET_ELEVATIONS_DEG = (15, 30, -15, 0, 45, 15, -30, 0, 30, 15, -15, 0)
SHEET_VIEWS = tuple(f"{(45 - elevation) // 15 * 12 + column:03d}" for column, elevation in enumerate(_SHEET_ELEVATIONS_DEG))
_CELL, _LABEL_WIDTH = 144, 110  # pixels
_UNLIT = Lighting(ambient=1.0, levels=(0.0, 0.0, 0.0))  # a reconstructed texture holds the light of the photos already


def write_contact_sheet(
    path: Path,
    inputs: Mapping[str, np.ndarray],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    mesh: RenderMesh | None,
    size: int = _CELL,
) -> None:
    """Inputs, then a row for each set of views in ``rows`` (label -> images by view name), then renders of the mesh.

    Columns below the inputs are the same 12 of the 84 protocol views; a view that a set lacks is left white.
    """
    blank = np.ones((8, 8, 3), np.float32)
    labels, pictures = [f"{len(inputs)} input\nphoto{'s' * (len(inputs) > 1)}"], [list(inputs.values())[:12]]
    for label, images in rows.items():
        labels.append(label)
        pictures.append([images.get(name, blank) for name in SHEET_VIEWS])
    if mesh is not None:
        cameras = protocol_test_cameras()
        poses = [cameras[name].camera_from_world() for name in SHEET_VIEWS]
        labels += ["mesh,\ntextured", "mesh,\nshape"]
        pictures += [list(render_rgba(mesh, poses, size=size, lighting=_UNLIT)), list(render_rgba(_grey(mesh), poses, size=size))]
    save_image(path, contact_sheet(pictures, labels, size, _LABEL_WIDTH))


def sheet_cells(sheet: Image.Image, row: int, columns: Sequence[int], size: int = _CELL) -> list[Image.Image]:
    """Single pictures out of a contact sheet that ``write_contact_sheet`` has made; row 0 is that of the photos."""
    lefts = (_LABEL_WIDTH + column * (size + 2) for column in columns)
    return [sheet.crop((left, row * (size + 2), left + size, row * (size + 2) + size)) for left in lefts]


def _grey(mesh: RenderMesh) -> RenderMesh:
    texel = np.array([[[190, 190, 196, 255]]], np.uint8)
    return RenderMesh(mesh.vertices, mesh.faces, mesh.corner_uv, np.zeros_like(mesh.face_material), [texel])


def silhouette_agreement(mesh: RenderMesh, alphas: Mapping[str, np.ndarray]) -> float:
    """Mean IoU of the mesh's silhouette with masks (S, S) in [0, 1] of protocol test views, by view name."""
    cameras, renderer, scores = protocol_test_cameras(), MeshRenderer(mesh), []
    for name, alpha in alphas.items():
        seen = renderer.depth(cameras[name].camera_from_world(), cameras[name].fov_rad, alpha.shape[0]) > 0
        union = np.count_nonzero(seen | (alpha > 0.5))
        scores.append(np.count_nonzero(seen & (alpha > 0.5)) / union if union else 0.0)
    return float(np.mean(scores))


def write_camera_plot(path: Path, sets: Mapping[str, Mapping[str, Camera]], title: str) -> None:
    """Camera sets (label -> cameras by view name) from above (x, y) and from the side (distance from the axis, z)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {"true": ("o", "#222222"), "initial": ("^", "#d98c00"), "refined": ("s", "#1f6fb4")}
    figure, (above, side) = plt.subplots(1, 2, figsize=(9, 4.6), dpi=110)
    for label, cameras in sets.items():
        marker, colour = styles.get(label, ("x", "#888888"))
        centers = np.array([camera.center() for camera in cameras.values()])
        across = np.hypot(centers[:, 0], centers[:, 1])
        hollow = {"facecolors": "none", "edgecolors": colour} if label == "true" else {"color": colour}
        above.scatter(centers[:, 0], centers[:, 1], marker=marker, s=90 if label == "true" else 36, label=label, **hollow)
        side.scatter(across, centers[:, 2], marker=marker, s=90 if label == "true" else 36, **hollow)
        if label == "true" or "true" not in sets:
            for axis, points in ((above, centers[:, :2]), (side, np.stack([across, centers[:, 2]], axis=-1))):
                places: dict[tuple, list[str]] = {}  # views that fall on one point share a label
                for name, point in zip(cameras, points):
                    places.setdefault(tuple(np.round(point, 2)), []).append(name)
                for point, names in places.items():
                    axis.annotate("\n".join(names), point, xytext=(7, -3), textcoords="offset points", fontsize=8)
    limit = max([2.0, *(1.1 * camera.radius for cameras in sets.values() for camera in cameras.values())])
    for axis, name, low in ((above, "from above", -limit), (side, "from the side", -0.3)):
        axis.set(title=name, aspect="equal", xlim=(low, limit), ylim=(-limit, limit))
        axis.grid(alpha=0.3)
    above.add_patch(plt.Rectangle((-0.5, -0.5), 1, 1, fill=False, color="#bbbbbb"))
    side.add_patch(plt.Rectangle((0, -0.5), 0.5, 1, fill=False, color="#bbbbbb"))
    above.set(xlabel="x (azimuth 0)", ylabel="y (azimuth 90 degrees)")
    side.set(xlabel="distance from the up axis", ylabel="z (up)")
    figure.legend(*above.get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)
