"""Stage 3: volume rendering against closed forms, and the fast renderers against the plain one."""

import numpy as np
import pytest
import torch
from recon_scenes import box, full_occupancy, random_field, random_rays, solid_field

from sap3d.cameras import Camera, rays
from sap3d.field import fields, photos, regularisers, rendering, views


@pytest.mark.parametrize("density", [0.5, 3.0, 30.0])
def test_uniform_slab_follows_beer_lambert(density):
    colour = torch.tensor([0.2, 0.5, 0.8])
    field = fields.DenseGrid(box(), 8**3, density, colour)
    origin, direction = torch.tensor([[-1.5, 0.1, -0.2]]), torch.tensor([[1.0, 0.0, 0.0]])
    step = 1 / 512
    seen = rendering.render(field, full_occupancy(box()), origin, direction, step, stop=0)
    opacity = 1 - np.exp(-density)
    assert seen.opacity.item() == pytest.approx(opacity, abs=1e-4)
    assert torch.allclose(seen.colour[0], colour * opacity + (1 - opacity), atol=1e-4)
    mean = 1 + 1 / density - np.exp(-density) / (1 - np.exp(-density))  # of an exponential distribution cut off at length 1
    assert seen.depth.item() == pytest.approx(mean, abs=2e-3)


def test_rays_that_miss_the_box_are_white():
    field = random_field()
    origin = torch.tensor([[0.0, -1.5, 3.0], [0.0, -1.5, 0.0]])
    direction = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    seen = rendering.render(field, full_occupancy(box()), origin, direction)
    assert torch.equal(seen.colour, torch.ones(2, 3)) and torch.equal(seen.opacity, torch.zeros(2))


@pytest.mark.parametrize("jitter", [False, True])
def test_fast_equals_reference_in_values_and_gradients(jitter):
    origins, directions = random_rays(64)
    target = torch.rand(64, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for plain in (False, True):
        field = random_field()
        occupancy = full_occupancy(box(), 8)
        occupancy.allowed[2:5, 3:, :4] = False
        occupancy.occupied = occupancy.allowed.clone()
        generator = torch.Generator().manual_seed(5) if jitter else None
        if plain:
            seen = rendering.render_reference(field, origins, directions, 0.03, generator, occupancy)
        else:
            seen = rendering.render(field, occupancy, origins, directions, 0.03, generator, stop=0)
        everything = torch.cat([seen.colour, seen.opacity[:, None], seen.depth[:, None]], 1)
        (everything * target).sum().backward()
        results.append((everything.detach(), field.values.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=2e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=2e-5 * results[1][1].abs().max().item() + 1e-7)


def test_skipping_and_stopping_change_little():
    field = solid_field(lambda p: p.norm(dim=-1) - 0.35, 32**3)
    occupancy = full_occupancy(field.bounds, 24)
    occupancy.update(field)
    assert occupancy.occupied.float().mean() < 0.4
    origins, directions = random_rays(256)
    fast = rendering.render(field, occupancy, origins, directions, 0.01)
    plain = rendering.render_reference(field, origins, directions, 0.01)
    assert len(fast.ray) < 0.3 * len(plain.ray)
    assert torch.allclose(fast.colour, plain.colour, atol=4e-3) and torch.allclose(fast.opacity, plain.opacity, atol=4e-3)


def test_whole_view_equals_rays_and_sees_the_sphere():
    field = solid_field(lambda p: p.norm(dim=-1) - 0.35, 48**3)
    occupancy = full_occupancy(field.bounds, 24)
    occupancy.update(field)
    camera = Camera.from_degrees(20, 130)
    view = views.render_view(field, occupancy, camera, 48, normals=True)
    origins, directions = photos.camera_rays(camera, 48)
    expected = rendering.render(field, occupancy, origins, directions)
    assert torch.allclose(view.colour.view(-1, 3), expected.colour, atol=4e-3)
    assert torch.allclose(view.opacity.view(-1), expected.opacity, atol=4e-3)
    centre = (24, 24)
    assert view.depth[centre].item() == pytest.approx(1.5 - 0.35, abs=0.02)
    middle = slice(20, 28)
    along = (directions.view(48, 48, 3)[middle, middle] * torch.from_numpy(camera.center()).float()).sum(-1)
    surface = -along - (along.square() - 1.5**2 + 0.35**2).sqrt()
    assert (view.depth[middle, middle] - surface).std() < 0.15 * field.voxel_size()  # finer than the steps: half of that, were they samples
    assert torch.isinf(view.depth[0, 0]) and view.opacity[0, 0] == 0
    towards_camera = torch.from_numpy(camera.center() / camera.radius).float()
    assert (view.normal[centre] @ towards_camera).item() > 0.98


def test_view_of_an_empty_field_is_white():
    field = fields.DenseGrid(box(), 8**3, 1e-6)
    occupancy = full_occupancy(box())
    occupancy.update(field)
    assert not occupancy.occupied.any()
    view = views.render_view(field, occupancy, Camera.from_degrees(0, 0), 16, normals=True)
    assert torch.equal(view.colour, torch.ones(16, 16, 3)) and torch.isinf(view.depth).all()


def test_distortion_equals_the_double_sum():
    generator = torch.Generator().manual_seed(0)
    ray = torch.tensor([0, 0, 0, 2, 2, 3])
    weight = torch.rand(6, generator=generator)
    distance = torch.tensor([1.0, 1.2, 1.9, 0.3, 0.9, 2.0])
    empty = torch.zeros(4)
    found = regularisers.distortion(rendering.Rendering(torch.zeros(4, 3), empty, empty, ray, distance, weight), 4)
    pairs = weight[:, None] * weight[None] * (distance[:, None] - distance[None]).abs() * (ray[:, None] == ray[None])
    assert found.item() == pytest.approx(pairs.sum().item() / 4, rel=1e-5)


def test_entropy_is_least_where_rays_meet_the_object_or_miss_it():
    assert regularisers.opacity_entropy(torch.tensor([0.5])).item() == pytest.approx(np.log(2))
    assert 0 < regularisers.opacity_entropy(torch.tensor([0.0, 1.0])).item() < 2e-3


@pytest.mark.parametrize("axis", (0, 1, 2))
def test_local_weights_of_the_total_variation_lie_along_the_fields_axes(axis):
    field, local = random_field(voxels=8**3), torch.zeros(8, 8, 8)
    local.narrow(axis, 0, 4).fill_(1)  # the half of the box that is lower along the axis: x, y or z
    field.values.grad = torch.zeros_like(field.values)
    field.add_variation_gradient(1.0, 1.0, local)
    gradient = field.values.grad.abs().sum((0, 1)).movedim(2 - axis, 0)  # (Z, Y, X)
    assert gradient[:3].amin() > 0 and gradient[-3:].max() == 0


def test_growing_the_grid_keeps_the_function():
    field = random_field(3)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    before = field(points)
    count = field.values.shape[2] * 2 - 1  # every old vertex is a new one too
    field.refine(int(round((1 / (1 / (count - 1))) ** 3)))
    assert field.values.shape[2] == count
    after = field(points)
    assert torch.allclose(before[0], after[0], rtol=0.05, atol=2.0) and torch.allclose(before[1], after[1], atol=0.15)
    vertices = torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    assert torch.allclose(field.density(vertices), random_field(3).density(vertices), atol=1e-3)


def test_wrong_shapes_raise():
    with pytest.raises(ValueError, match="points must be"):
        random_field()(torch.zeros(4, 2))


@pytest.mark.parametrize("elevation,azimuth", [(0, 0), (30, 90), (-45, 200), (89, 300)])
def test_camera_table_agrees_with_the_conventions(elevation, azimuth):
    camera = Camera.from_degrees(elevation, azimuth, 1.3)
    table = photos.RayCameras({"000": camera})
    local = photos.pixel_grid(5)
    origins, directions = table.rays(local, torch.zeros(25, dtype=torch.long))
    expected = rays(camera.camera_from_world(), camera.fov_rad, 5, 5)
    assert np.allclose(origins.detach(), expected[0].reshape(-1, 3), atol=1e-5)
    assert np.allclose(directions.detach(), expected[1].reshape(-1, 3), atol=1e-5)


def test_camera_corrections_keep_the_gauge():
    table = photos.RayCameras({"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(30, 90)})
    assert table.current()["001"].azimuth_deg == pytest.approx(90, abs=1e-4)
    table.delta.data[:] = 0.1
    current = table.current()
    assert current["000"].azimuth_deg == pytest.approx(0, abs=1e-4)
    assert current["001"].azimuth_deg == pytest.approx(90 + np.rad2deg(0.1), abs=1e-3)
    assert current["000"].radius == pytest.approx(1.6, abs=1e-5)


# --- hashed grids -----------------------------------------------------------------------------------------------------
def hash_field(voxels: int = 16**3, **sizes):
    sizes = dict(levels=4, table=1 << 11, coarsest=4, finest=32, width=8) | sizes
    field = fields.HashGrid(box(), voxels, 20.0, torch.tensor([0.7, 0.4, 0.2]), **sizes)
    with torch.no_grad():
        field.table.copy_(torch.randn(field.table.shape, generator=torch.Generator().manual_seed(1)))
    return field


def test_a_hashed_grid_begins_as_what_it_is_told():
    field = fields.HashGrid(box(), 16**3, 20.0, torch.tensor([0.7, 0.4, 0.2]))
    density, colour = field(torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5)
    assert torch.allclose(density, torch.full_like(density, 20.0), rtol=0.02)
    assert torch.allclose(colour, torch.tensor([0.7, 0.4, 0.2]).expand(50, 3), atol=0.01)


def test_a_hashed_grid_interpolates_its_rows():
    """At a vertex a coarse level gives that vertex's own row; halfway along an edge, the mean of two."""
    field = hash_field(4**3, levels=1)
    vertices = torch.tensor([[0, 0, 0], [4, 4, 4], [1, 2, 3], [1, 2, 4]])
    rows = field._row(vertices, 4)
    assert len(set(field._row(torch.cartesian_prod(*[torch.arange(5)] * 3), 4).tolist())) == 125  # no two share one
    middle = (vertices[2:3] + vertices[3:4]) / 2
    found = field._features(torch.cat([vertices, middle]) / 4 - 0.5)
    assert torch.allclose(found[:4], field.table[0][rows], atol=1e-5)
    assert torch.allclose(found[4], field.table[0][rows[2:]].mean(0), atol=1e-5)


def test_finer_levels_of_a_hashed_grid_wait_for_their_turn():
    field, points = hash_field(8**3), torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    count = lambda: int((field._features(points).view(40, 4, 2).abs().amax((0, 2)) > 0).sum())  # noqa: E731
    assert field.resolutions.tolist() == [4, 8, 16, 32] and count() == 2 and field.voxel_size() == pytest.approx(1 / 8)
    field.refine(32**3)
    assert count() == 4 and field.voxel_size() == pytest.approx(1 / 32)


def test_total_variation_of_a_hashed_grid_is_the_dense_ones():
    """A field that rises linearly along x by a raw value of 1 over the box: the same penalty, so the same slope as it is scaled."""
    slopes = []
    dense = fields.DenseGrid(box(), 8**3)
    z, y, x = dense.values.shape[2:]
    ramp = torch.linspace(0, 1, x).expand(1, 1, z, y, x)
    dense.set_values(torch.cat([ramp, torch.zeros(1, 3, z, y, x)], 1))
    dense.values.grad = torch.zeros_like(dense.values)
    dense.add_variation_gradient(1e-3, 0.0)
    slopes.append(float((dense.values.grad * dense.values.detach()).sum()))
    hashed = hash_field(8**3)
    scale = torch.ones((), requires_grad=True)
    hashed._raw = lambda points: torch.cat([scale * (points[:, :1] + 0.5), torch.zeros(len(points), 3)], 1)
    hashed.add_variation_gradient(1e-3, 0.0)
    slopes.append(float(scale.grad))
    assert slopes[1] == pytest.approx(slopes[0], rel=0.25)  # 512 voxels against 8 x 9 x 9 differences


@pytest.mark.parametrize("axis", (0, 1, 2))
def test_local_weights_of_a_hashed_grids_total_variation_lie_along_its_axes(axis):
    field, local = hash_field(32**3), torch.zeros(8, 8, 8)
    local.narrow(axis, 0, 4).fill_(1)
    slopes = torch.ones(2, requires_grad=True)  # of the raw values below and above the middle
    field._raw = lambda points: (torch.stack([-points[:, axis], points[:, axis]], 1).relu() @ slopes)[:, None] * torch.tensor([1.0, 0, 0, 0])
    field.add_variation_gradient(1e-3, 0.0, local, torch.Generator().manual_seed(0))
    assert slopes.grad[0] > 0 and slopes.grad[1].abs() < 0.05 * slopes.grad[0]


def test_the_renderer_takes_any_field():
    field, (origins, directions) = hash_field(), random_rays(60)
    occupancy = full_occupancy(field.bounds)
    fast = rendering.render(field, occupancy, origins, directions, stop=0.0)
    slow = rendering.render_reference(field, origins, directions, field.voxel_size())
    assert torch.allclose(fast.colour, slow.colour, atol=1e-5) and torch.allclose(fast.opacity, slow.opacity, atol=1e-5)
