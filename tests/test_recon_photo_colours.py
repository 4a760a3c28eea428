"""Stage 3: the photos' own colours on meshes and in renders."""

import importlib

import numpy as np
import pytest
import torch
from recon_scenes import sphere_image
from test_recon_mesh import carved

from sap3d.cameras import Camera
from sap3d.field import photo_colours, views

mesh = importlib.import_module("3D_Recon.threestudio.mesh")
CAMERAS = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(0, 60)}


@pytest.fixture(scope="module")
def sphere():
    return carved(lambda p: p.norm(dim=-1) - 0.35, colour=lambda p: (p * torch.tensor([1.0, 1.0, 1.4]) + 0.5).clamp(0, 1))


def stripes(points: np.ndarray) -> np.ndarray:
    """Along z, finer than the field of these tests can hold."""
    return 0.5 + 0.4 * np.sin(points[..., 2] * 150)


def striped(camera: Camera) -> np.ndarray:
    return sphere_image(camera, 256, 0.35, lambda points: stripes(points)[..., None].repeat(3, -1))


def as_tensors(*arrays):
    return tuple(torch.from_numpy(array).float() for array in arrays)


def test_texture_comes_from_the_photos_where_they_see_the_surface(sphere):
    field, occupancy, (values, origin, spacing) = sphere
    vertices, faces = mesh.extract(values, origin, spacing, 20000)
    vertices = vertices * (0.35 / np.linalg.norm(vertices, axis=1, keepdims=True))
    photos = {name: striped(camera) for name, camera in CAMERAS.items()}
    normals = vertices / 0.35
    find = photo_colours.PhotoColours([(photos, CAMERAS)], photo_colours.mesh_hits(vertices, faces))
    colours, belief = (found.numpy() for found in find(*as_tensors(vertices, normals)))
    seen = belief == 1
    assert 0.2 < seen.mean() < 0.6 and np.abs(colours[seen, 0] - stripes(vertices[seen])).mean() < 0.05
    away = normals @ CAMERAS["000"].center() < -0.2
    away &= normals @ CAMERAS["001"].center() < -0.2
    assert away.mean() > 0.2 and belief[away].max() == 0  # what no photo sees is left to the field
    coloured = mesh.bake(field, occupancy, vertices, faces, 64, "vertex", [(photos, CAMERAS)])
    plain = mesh.bake(field, occupancy, vertices, faces, 64, "vertex")
    assert np.allclose(coloured.colours[away], plain.colours[away]) and np.abs(coloured.colours[seen] - colours[seen]).max() < 0.05


def test_a_photo_colours_nothing_behind_something_else_or_beside_its_mask():
    """Two squares, one before the other: the far one is hidden; and a photo with an empty mask colours nothing."""
    square = np.array([[0, -0.2, -0.2], [0, 0.2, -0.2], [0, 0.2, 0.2], [0, -0.2, 0.2]])
    hits = photo_colours.mesh_hits(np.concatenate([square + [0.2, 0, 0], square - [0.2, 0, 0]]), np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]))
    camera = {"000": Camera.from_degrees(0, 0)}  # on the x axis
    points, normals = as_tensors(np.array([[0.2, 0.05, 0.05], [-0.2, 0.05, 0.05]]), np.array([[1.0, 0, 0]] * 2))
    whole = np.ones((64, 64, 4), np.float32)
    assert photo_colours.PhotoColours([({"000": whole}, camera)], hits)(points, normals)[1].tolist() == [1, 0]
    empty = whole * [1, 1, 1, 0]
    assert photo_colours.PhotoColours([({"000": empty}, camera)], hits)(points, normals)[1].tolist() == [0, 0]


def test_a_second_set_of_photos_colours_only_what_the_first_leaves_open():
    square = np.array([[0, -0.2, -0.2], [0, 0.2, -0.2], [0, 0.2, 0.2], [0, -0.2, 0.2]])
    hits = photo_colours.mesh_hits(square, np.array([[0, 1, 2], [0, 2, 3]]))
    camera = {"000": Camera.from_degrees(0, 0)}
    dark, light = (np.concatenate([np.full((64, 64, 3), value, np.float32), np.ones((64, 64, 1), np.float32)], -1) for value in (0.2, 0.8))
    tilted = np.array([np.cos(1.3), np.sin(1.3), 0])  # seen at a cosine between the two of GRAZING
    points, normals = as_tensors(np.array([[0, 0.05, 0.05]] * 2), np.array([[1.0, 0, 0], tilted]))
    colours, belief = photo_colours.PhotoColours([({"000": dark}, camera), ({"000": light}, camera)], hits)(points, normals)
    assert colours[0, 0].item() == pytest.approx(0.2, abs=1e-5) and belief[0] == 1
    assert 0.25 < colours[1, 0] < 0.75 and 0.3 < belief[1] < 0.9


def test_renders_get_back_the_detail_that_the_field_cannot_hold(sphere):
    field, occupancy, _ = sphere
    between = Camera.from_degrees(0, 30)
    photos = {name: striped(camera) for name, camera in CAMERAS.items()}
    detail = photo_colours.PhotoDetail(field, occupancy, [(photos, CAMERAS)], 256)
    view = views.render_view(field, occupancy, between, 256)
    painted = detail.add(view, between)
    truth = torch.from_numpy(striped(between))
    middle = slice(90, 166)
    error = lambda colour: (colour[middle, middle] - truth[middle, middle, :3]).square().mean().sqrt().item()  # noqa: E731
    assert error(painted.colour) < 0.4 * error(view.colour)
    assert torch.equal(painted.opacity, view.opacity) and torch.equal(painted.colour[0, 0], view.colour[0, 0])
    behind = Camera.from_degrees(0, 210)
    unseen = views.render_view(field, occupancy, behind, 128)
    assert torch.allclose(detail.add(unseen, behind).colour[32:96, 32:96], unseen.colour[32:96, 32:96])
    half = photo_colours.PhotoDetail(field, occupancy, [(photos, CAMERAS)], 256, 0.5).add(view, between)
    inside = painted.colour[middle, middle] - view.colour[middle, middle]
    free = (painted.colour[middle, middle] > 0) & (painted.colour[middle, middle] < 1)  # not cut off
    assert torch.allclose((half.colour[middle, middle] - view.colour[middle, middle])[free], 0.5 * inside[free], atol=1e-5)


def test_a_field_that_explains_its_photos_is_left_as_it_is(sphere):
    field, occupancy, _ = sphere
    photos = {}
    for name, camera in CAMERAS.items():
        view = views.render_view(field, occupancy, camera, 256)
        photos[name] = torch.cat([((view.colour - 1 + view.opacity[..., None]) / view.opacity[..., None].clamp_min(1e-6)).clamp(0, 1), view.opacity[..., None]], -1).numpy()
    between = Camera.from_degrees(0, 30)
    view = views.render_view(field, occupancy, between, 256)
    painted = photo_colours.PhotoDetail(field, occupancy, [(photos, CAMERAS)], 256).add(view, between)
    assert (painted.colour - view.colour).abs().mean() < 1e-3


def test_normals_of_an_image_of_points_look_at_the_camera(sphere):
    field, occupancy, _ = sphere
    camera = Camera.from_degrees(20, 40)
    view = views.render_view(field, occupancy, camera, 128)
    from sap3d.cameras import rays

    origins, directions = (torch.from_numpy(array).float() for array in rays(camera.camera_from_world(), camera.fov_rad, 128, 128))
    points = origins + directions * view.depth[..., None]
    normals = photo_colours.surface_normals(points)
    assert normals[0, 0].tolist() == [0, 0, 0]
    middle = slice(48, 80)
    expected = torch.nn.functional.normalize(points[middle, middle], dim=-1)
    cosine = (normals[middle, middle] * expected).sum(-1)
    assert cosine.min() > 0.8 and cosine.mean() > 0.98
