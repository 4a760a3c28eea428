"""Stage 3: meshes of shapes with known size, and their files."""

import importlib
import json

import numpy as np
import pytest
import torch
import trimesh
from recon_scenes import full_occupancy, solid_field

from sap3d.cameras import FOV_RAD, Camera, protocol_test_cameras
from sap3d.errors import InputError
from sap3d.field import views
from sap3d.mesh_render import load_mesh, load_mesh_normalised, render_rgba

mesh = importlib.import_module("3D_Recon.threestudio.mesh")


def carved(solid, cells=48, size=96, colour=None, slack=0.0):
    field = solid_field(solid, 48**3, colour=colour)
    occupancy = full_occupancy(field.bounds, 32)
    occupancy.update(field)
    cameras = {name: camera for k, (name, camera) in enumerate(protocol_test_cameras().items()) if k % 2 == 0}
    depths = {name: views.render_view(field, occupancy, camera, size).depth for name, camera in cameras.items()}
    return field, occupancy, mesh.carve(occupancy, depths, cameras, cells, slack)


@pytest.fixture(scope="module")
def sphere():
    return carved(lambda p: p.norm(dim=-1) - 0.35, colour=lambda p: (p * torch.tensor([1.0, 1.0, 1.4]) + 0.5).clamp(0, 1))


@pytest.fixture(scope="module")
def sphere_mesh(sphere):
    field, occupancy, (values, origin, spacing) = sphere
    vertices, faces = mesh.extract(values, origin, spacing, 3000)
    return mesh.bake(field, occupancy, vertices, faces, 256)


def test_sphere_has_its_radius_and_is_watertight(sphere):
    _, _, (values, origin, spacing) = sphere
    vertices, faces = mesh.extract(values, origin, spacing, 3000)
    radius = np.linalg.norm(vertices, axis=1)
    assert radius.mean() == pytest.approx(0.35, abs=0.012) and radius.std() < 0.015
    assert np.abs(vertices.min(0) + vertices.max(0)).max() < 0.01
    solid = trimesh.Trimesh(vertices, faces, process=False)
    assert solid.is_watertight and solid.volume > 0
    assert len(faces) <= 3000


def test_shape_is_upright_and_not_mirrored(sphere):
    def three_balls(p):  # large below, small ones above towards +x and, smaller, +y
        centres = torch.tensor([[0.0, 0.0, -0.15], [0.2, 0.0, 0.25], [0.0, 0.25, 0.1]])
        return ((p[:, None] - centres).norm(dim=-1) - torch.tensor([0.25, 0.15, 0.1])).amin(1)

    _, _, (values, origin, spacing) = carved(three_balls)
    vertices, faces = mesh.extract(values, origin, spacing, 5000)
    extent = np.stack([vertices.min(0), vertices.max(0)])
    assert np.allclose(extent, [[-0.25, -0.25, -0.4], [0.35, 0.35, 0.4]], atol=0.04)


def test_floaters_go_and_cavities_are_filled():
    axis = np.linspace(-0.5, 0.5, 40)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    values = np.clip((0.3 - radius) * 20, -1, 1)
    values[radius < 0.1] = -1  # a cavity
    values[1:3, 1:3, 1:3] = 1  # a floater
    vertices, faces = mesh.extract(values, np.full(3, -0.5), axis[1] - axis[0], 10**6)
    distances = np.linalg.norm(vertices, axis=1)
    assert distances.min() > 0.25 and distances.max() < 0.35


def test_nothing_solid_is_an_input_error():
    with pytest.raises(InputError, match="nothing solid"):
        mesh.extract(np.full((8, 8, 8), -1.0), np.zeros(3), 0.1, 100)


def test_files_reload_with_texture_and_axes(sphere_mesh, tmp_path):
    mesh.write_obj(tmp_path, sphere_mesh)
    mesh.write_glb(tmp_path / "model.glb", sphere_mesh)
    assert {p.name for p in tmp_path.iterdir()} == {"model.obj", "model.mtl", "model.png", "model.glb"}
    obj = load_mesh(tmp_path / "model.obj")
    assert not obj.notes and len(obj.faces) == len(sphere_mesh.faces)
    assert np.allclose(obj.vertices.max(0), sphere_mesh.vertices.max(0), atol=1e-4)
    camera = Camera.from_degrees(10, 40).camera_from_world()
    as_obj = render_rgba(load_mesh_normalised(tmp_path / "model.obj"), [camera], FOV_RAD, 64)[0]
    as_glb = render_rgba(load_mesh_normalised(tmp_path / "model.glb", up="y"), [camera], FOV_RAD, 64)[0]
    assert np.abs(as_obj - as_glb).mean() < 4e-3


def test_glb_is_valid_and_carries_its_texture(sphere_mesh, tmp_path):
    mesh.write_glb(tmp_path / "model.glb", sphere_mesh)
    raw = (tmp_path / "model.glb").read_bytes()
    assert raw[:4] == b"glTF" and int.from_bytes(raw[8:12], "little") == len(raw)
    header = json.loads(raw[20 : 20 + int.from_bytes(raw[12:16], "little")])
    material = header["materials"][0]["pbrMetallicRoughness"]
    assert "baseColorTexture" in material and material["metallicFactor"] == 0
    assert "bufferView" in header["images"][0]  # inside the file, not beside it


@pytest.mark.parametrize("kind", ["uv", "vertex"])
def test_surface_has_the_fields_colours(sphere, sphere_mesh, kind, tmp_path):
    field, occupancy, (values, origin, spacing) = sphere
    coloured = sphere_mesh
    if kind == "vertex":
        coloured = mesh.bake(field, occupancy, *mesh.extract(values, origin, spacing, 3000), 64, "vertex")
    mesh.write_obj(tmp_path, coloured)
    loaded = load_mesh(tmp_path / "model.obj")
    if kind == "vertex":
        colours, points = loaded.corner_colour.reshape(-1, 3), loaded.vertices[loaded.faces].reshape(-1, 3)
    else:
        uv = coloured.uv
        size = len(coloured.texture)
        colours = coloured.texture[((1 - uv[:, 1]) * size).astype(int).clip(0, size - 1), (uv[:, 0] * size).astype(int).clip(0, size - 1)]
        points = coloured.vertices
    expected = np.clip(points * [1, 1, 1.4] + 0.5, 0, 1)
    assert np.abs(colours - expected).mean() < 0.02


def test_slack_puts_the_surface_further_out():
    solid = lambda p: p.norm(dim=-1) - 0.35  # noqa: E731
    radii = [np.linalg.norm(mesh.extract(*carved(solid, slack=slack)[2], 3000)[0], axis=1).mean() for slack in (0.0, 0.02)]
    assert 0.005 < radii[1] - radii[0] < 0.02  # less than the slack: rays that miss the object still carve
