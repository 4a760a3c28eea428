"""One interactive scene of a reconstructed object: mesh, cameras, photos in their frusta.

    python -m app.viewer --type GSO_demo --object teddy_bear --views 5 [--port 8080]

Reads the outputs of the pipeline below ROOT_DIR and serves them on 127.0.0.1 with viser (requirements-app.txt). Initial cameras
(stage 1) are grey, refined ones (stage 2) blue, moved ones joined by a line; a click on a frustum takes its place.
"""

from __future__ import annotations

import time

import numpy as np

from app import check_port, not_installed
from sap3d.cameras import OPENCV_FROM_OPENGL, Camera
from sap3d.config import add_scene_arguments
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import composite_white, load_input_views, resize, to_uint8
from sap3d.mesh_load import Z_UP_FROM_Y_UP
from sap3d.scene import Scene, read_cameras


def pose_of(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(world_from_camera rotation (3, 3) with OpenCV axes, which viser's cameras have, centre (3,)) of a camera."""
    return camera.camera_from_world()[:, :3].T @ OPENCV_FROM_OPENGL, camera.center()


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix (3, 3)."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_matrix(rotation).as_quat(), 1)


def available(scene: Scene) -> tuple[dict[str, Camera], dict[str, Camera]]:
    """(initial, refined) cameras by view name; raises InputError when neither stage has written any."""
    found = [read_cameras(path) if path.is_file() else {} for path in (scene.initial_cameras, scene.refined_cameras)]
    if not any(found):
        raise InputError(f"{scene.initial_cameras}: there are no cameras to show; run sh run_pipeline.sh {scene.type} {scene.object} {scene.views} 0 first")
    return found[0], found[1]


def build(server, scene: Scene) -> int:
    """Put everything there is of ``scene`` into a viser server; the number of things shown."""
    initial, refined = available(scene)
    photos = load_input_views(scene)
    server.scene.set_up_direction("+z")
    server.scene.add_grid("/grid", width=4, height=4, cell_size=0.25, position=(0, 0, -0.5), cell_color=(225, 228, 232), section_color=(205, 210, 216))
    shown = 0
    mesh_path = scene.mesh_dir / "model.glb"
    mesh = None
    if mesh_path.is_file():
        mesh = server.scene.add_glb("/mesh", mesh_path.read_bytes(), wxyz=quaternion(Z_UP_FROM_Y_UP))
        shown += 1
    groups = {"initial": (initial, (150, 156, 164)), "refined": (refined, (28, 107, 220))}
    frusta: dict[str, list] = {kind: [] for kind in groups}
    for kind, (cameras, colour) in groups.items():
        for name, camera in cameras.items():
            rotation, centre = pose_of(camera)
            picture = to_uint8(composite_white(resize(photos[name], 128))) if name in photos and (kind == "refined" or not refined) else None
            frustum = server.scene.add_camera_frustum(
                f"/cameras/{kind}/{name}", fov=camera.fov_rad, aspect=1.0, scale=0.18, color=colour, image=picture, wxyz=quaternion(rotation), position=centre
            )

            @frustum.on_click
            def _(event, rotation=rotation, centre=centre):
                with event.client.atomic():
                    event.client.camera.wxyz, event.client.camera.position = quaternion(rotation), centre

            frusta[kind].append(frustum)
            shown += 1
    moved = [(pose_of(initial[name])[1], pose_of(refined[name])[1]) for name in refined if name in initial]
    if moved:
        server.scene.add_line_segments("/cameras/moved", points=np.array(moved, np.float32), colors=(240, 150, 40), thickness=2, thickness_units="screen")
    with server.gui.add_folder(f"{scene.object}, {scene.views} photos"):
        if mesh is not None:
            box = server.gui.add_checkbox("mesh", True)
            box.on_update(lambda _: setattr(mesh, "visible", box.value))
        for kind in groups:
            if frusta[kind]:
                switch = server.gui.add_checkbox(f"{kind} cameras", True)
                switch.on_update(lambda _, kind=kind, switch=switch: [setattr(f, "visible", switch.value) for f in frusta[kind]])
    server.initial_camera.position, server.initial_camera.look_at = (2.6, 1.6, 1.5), (0.0, 0.0, 0.0)
    return shown


def main() -> None:
    parser = ArgumentParser(prog="python -m app.viewer", description=__doc__.split("\n")[0])
    add_scene_arguments(parser)
    parser.add_argument("--port", type=int, default=8080, help="port on 127.0.0.1, or the next that is free (default 8080)")
    args = parser.parse_args()
    check_port(args.port)
    scene = Scene(args.type, args.object, args.views)
    available(scene)
    try:
        import viser
    except ModuleNotFoundError as error:
        raise not_installed(error.name) from None
    server = viser.ViserServer(host="127.0.0.1", port=args.port, verbose=False)
    count = build(server, scene)
    print(f"{count} things of {scene.type} {scene.object} on http://127.0.0.1:{server.get_port()}; Ctrl-C ends it", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    cli(main)
