"""The pictures, the video and the mesh of a finished reconstruction."""

from __future__ import annotations

from typing import Mapping

import numpy as np
import torch

from sap3d.cameras import FOV_RAD, protocol_test_cameras, turntable_cameras
from sap3d.field.finish import Finish
from sap3d.field.views import View, render_view
from sap3d.images import composite_white, contact_sheet, save_image, write_video
from sap3d.mesh_render import Lighting, load_mesh, render_rgba
from sap3d.progress import Progress
from sap3d.scene import Scene, atomic_dir

from . import mesh as meshes
from .config import ReconConfig
from .optimise import Reconstruction


def export_renders(scene: Scene, config: ReconConfig, recon: Reconstruction, finish: Finish) -> dict[str, View]:
    """save/rgb_pred/000..083.png; returns the views, whose depths the mesh is cut from."""
    cameras = protocol_test_cameras()
    views = {}
    with atomic_dir(scene.nerf_dir / "save" / "rgb_pred") as folder, Progress("3D_Recon renders", len(cameras)) as progress:
        for index, (name, camera) in enumerate(cameras.items()):
            views[name] = finish(render_view(recon.field, recon.occupancy, camera, config.render_size), camera)
            save_image(folder / f"{name}.png", views[name].colour.cpu().numpy())
            progress.update(index + 1)
    return views


def export_turntable(scene: Scene, config: ReconConfig, recon: Reconstruction, finish: Finish) -> None:
    """save/turntable.mp4: colour beside normals (world axes as red, green, blue), one turn in 2.5 seconds or so."""
    frames = []
    for camera in turntable_cameras(config.turntable_frames):
        view = finish(render_view(recon.field, recon.occupancy, camera, config.turntable_size, normals=True), camera)
        opacity = view.opacity[..., None]
        normal = (view.normal * 0.5 + 0.5) * opacity + (1 - opacity)
        frames.append(torch.cat([view.colour, normal], 1).clamp(0, 1).cpu().numpy())
    write_video(scene.nerf_dir / "save" / "turntable.mp4", frames, fps=24)


def export_sheet(scene: Scene, photos: Mapping[str, np.ndarray], views: Mapping[str, View]) -> None:
    """save/sheet.png: the photos above one turn at elevations 30, 0 and -30 degrees."""
    turns = [[views[f"{row * 12 + column:03d}"].colour.cpu().numpy() for column in range(0, 12, 2)] for row in (1, 3, 5)]
    sheet = contact_sheet([list(photos.values())[:6], *turns], ["photos", "elevation\n30", "elevation\n0", "elevation\n-30"], size=128)
    save_image(scene.nerf_dir / "save" / "sheet.png", sheet)


def export_mesh(scene: Scene, config: ReconConfig, recon: Reconstruction, views: Mapping[str, View]) -> dict:
    """model.obj, .mtl, .png, model.glb and a preview mesh.png; returns facts for the record."""
    import trimesh

    folder = scene.mesh_dir
    depths = {name: view.depth for name, view in views.items()}
    values, origin, spacing = meshes.carve(recon.occupancy, depths, protocol_test_cameras(), config.mesh_cells, config.mesh_slack * recon.field.voxel_size())
    vertices, faces = meshes.extract(values, origin, spacing, config.mesh_faces)
    solid = trimesh.Trimesh(vertices, faces, process=False)
    sources = recon.photo_sources() if config.photos and config.texture_from_photos else ()
    mesh = meshes.bake(recon.field, recon.occupancy, vertices, faces, config.texture_size, config.texture, sources)
    meshes.write_obj(folder, mesh)
    meshes.write_glb(folder / "model.glb", mesh)
    poses = [camera.camera_from_world() for camera in turntable_cameras(6)]
    unlit = Lighting(1.0, (), ())  # the texture holds the photos' light already
    preview = render_rgba(load_mesh(folder / "model.obj"), poses, FOV_RAD, 192, lighting=unlit)
    save_image(folder / "mesh.png", contact_sheet([[composite_white(image) for image in preview]], size=192))
    return {
        "vertices": len(vertices),
        "faces": len(faces),
        "watertight": bool(solid.is_watertight),
        "volume": round(float(abs(solid.volume)), 5),
        "extent": [round(float(x), 4) for x in vertices.max(0) - vertices.min(0)],
        "axes": "OBJ: z up; GLB: y up; 1 unit = the object's longest side",
    }
