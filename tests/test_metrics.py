"""Metrics against independent implementations and closed forms."""

import numpy as np
import pytest

import sap3d.compat  # noqa: F401  (before lpips)
import torch
import trimesh
from scipy.spatial.transform import Rotation
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sap3d.cameras import Camera, camera_centers, look_at_origin
from sap3d.metrics import image, pose, shape


# --- images -----------------------------------------------------------------------------------------------------------
def pictures(seed: int, count: int = 3, size: int = 64) -> torch.Tensor:
    """Smooth random pictures with structure, (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    fine = torch.rand((count, 3, size, size), generator=generator)
    return (0.8 * torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) + 0.2 * fine).float()


def test_psnr_matches_scikit_image():
    a, b = pictures(0), pictures(1)
    ours = image.psnr(image.mean_squared_error(a, b))
    theirs = [peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=1) for x, y in zip(a, b)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_ssim_matches_scikit_image_inside_and_a_plain_convolution_at_the_border():
    a, b = pictures(2), pictures(3)
    window = torch.exp(-torch.arange(-5.0, 6.0).square() / (2 * 1.5**2))
    window = (window / window.sum())[:, None] * (window / window.sum())[None, :]
    kernel = window.expand(3, 1, 11, 11)

    def blur(x):
        return torch.nn.functional.conv2d(x, kernel, padding=5, groups=3)

    va, vb, cov = blur(a * a) - blur(a) ** 2, blur(b * b) - blur(b) ** 2, blur(a * b) - blur(a) * blur(b)
    plain = (2 * blur(a) * blur(b) + 1e-4) * (2 * cov + 9e-4) / ((blur(a) ** 2 + blur(b) ** 2 + 1e-4) * (va + vb + 9e-4))
    torch.testing.assert_close(image.ssim(a, b), plain.mean(dim=(1, 2, 3)), atol=1e-5, rtol=1e-5)
    _, theirs = structural_similarity(
        a[0].permute(1, 2, 0).numpy(), b[0].permute(1, 2, 0).numpy(), data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True, truncate=3.5,
    )  # fmt: skip
    np.testing.assert_allclose(plain[0].permute(1, 2, 0)[6:-6, 6:-6], theirs[6:-6, 6:-6], atol=2e-4)


@pytest.fixture(scope="module")
def lpips_alex():
    return image.LpipsAlex()


def test_lpips_matches_the_package(lpips_alex):
    """The package's own network, with this repository's trunk put in, on odd and even sizes."""
    import lpips

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    for part in range(1, 6):
        for name, module in getattr(network.net, f"slice{part}").named_children():
            module.load_state_dict(lpips_alex.trunk[int(name)].state_dict())
    for size in (64, 75):
        a, b = pictures(4, size=size) * 2 - 1, pictures(5, size=size) * 2 - 1
        with torch.no_grad():
            theirs = network(a, b).flatten()
        torch.testing.assert_close(lpips_alex.distance(lpips_alex.features(a), lpips_alex.features(b)), theirs, atol=1e-5, rtol=1e-4)


def test_lpips_has_the_value_of_the_imagenet_weights(lpips_alex):
    """A drawn pair, with the distance that the published weights give: guards the weight file itself.

    On the lpips repository's ex_ref.png with ex_p0.png and ex_p1.png (not kept here) the same code gives the published
    0.722 and 0.138.
    """
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64))
    first = np.stack([x, y, (np.hypot(x - 0.5, y - 0.5) < 0.3) * 1.0])
    second = np.stack([x, 1 - y, (np.abs(x - 0.5) + np.abs(y - 0.5) < 0.3) * 1.0])
    a, b = (torch.from_numpy(p).float()[None] * 2 - 1 for p in (first, second))
    assert float(lpips_alex.distance(lpips_alex.features(a), lpips_alex.features(b))) == pytest.approx(0.34059, abs=2e-4)


def test_pooled_and_mean_psnr_differ_as_they_should(lpips_alex):
    truth = {f"{k:03d}": np.full((32, 32, 3), 0.5, np.float32) for k in range(2)}
    predicted = {"000": truth["000"] + np.float32(0.1), "001": truth["001"] + np.float32(0.01)}
    scores = image.score_images(truth, {"2d": predicted, "3d": truth}, size=32)
    assert scores["2d"].corrected()["psnr"] == pytest.approx(30.0, abs=1e-3)
    assert scores["2d"].compat()["psnr"] == pytest.approx(-10 * np.log10((0.01 + 0.0001) / 2), abs=1e-3)
    assert scores["3d"].corrected() == pytest.approx({"psnr": 100.0, "ssim": 1.0, "lpips": 0.0}, abs=1e-4)


def test_image_metrics_refuse_wrong_shapes_and_missing_views():
    with pytest.raises(ValueError, match="one shape"):
        image.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(image.InputError, match="1 of 2 views are missing, the first is 001"):
        picture = np.zeros((8, 8, 3), np.float32)
        image.score_images({"000": picture, "001": picture}, {"2d": {"000": picture}})


# --- shapes -----------------------------------------------------------------------------------------------------------
def as_pair(mesh: trimesh.Trimesh):
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


SPHERE = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
CUBE = trimesh.creation.box((0.8, 0.8, 0.8))


def test_a_mesh_equals_itself():
    scores = shape.score_shape(as_pair(SPHERE), as_pair(SPHERE))
    assert scores.chamfer == pytest.approx(0, abs=1e-6) and scores.iou == 1.0 and scores.f_scores == (1.0, 1.0, 1.0)


def test_chamfer_and_f_of_concentric_spheres():
    small = trimesh.creation.icosphere(subdivisions=5, radius=0.455)
    scores = shape.score_shape(as_pair(small), as_pair(SPHERE), shape.all_round_views())
    assert scores.chamfer == pytest.approx(0.045, abs=0.002)
    assert scores.f_scores[0] == 0.0 and scores.f_scores[1] > 0.95 and scores.f_scores[2] > 0.99
    assert scores.iou == pytest.approx((0.455 / 0.5) ** 3, abs=0.02)


def test_volume_and_iou_of_moved_cubes():
    cell = (2 / 64) ** 3
    assert shape.solid_grid(shape.RaySurface(*as_pair(CUBE))).sum() * cell == pytest.approx(0.8**3, rel=0.08)
    assert shape.solid_grid(shape.RaySurface(*as_pair(SPHERE))).sum() * cell == pytest.approx(np.pi / 6, rel=0.02)
    moved = CUBE.copy().apply_translation((0.25, 0, 0))
    assert shape.score_shape(as_pair(moved), as_pair(CUBE)).iou == pytest.approx(0.55 / 1.05, abs=0.03)


def test_solid_does_not_need_closed_or_consistent_faces():
    reference = shape.solid_grid(shape.RaySurface(*as_pair(SPHERE)))
    generator = np.random.default_rng(0)
    vertices, faces = as_pair(SPHERE)
    flipped = np.where(generator.random(len(faces))[:, None] < 0.5, faces, faces[:, ::-1])
    open_ = flipped[generator.random(len(faces)) > 0.005]  # a hundred small holes
    inner = trimesh.creation.icosphere(subdivisions=3, radius=0.3)
    faces_with_inner = np.concatenate([open_, np.asarray(inner.faces) + len(vertices)])
    grid = shape.solid_grid(shape.RaySurface(np.concatenate([vertices, inner.vertices]), faces_with_inner))
    assert shape.intersection_over_union(grid, reference) > 0.98


def test_a_cup_is_hollow():
    outer = trimesh.creation.annulus(0.36, 0.5, 0.8)
    bottom = trimesh.creation.cylinder(0.5, 0.1, transform=trimesh.transformations.translation_matrix((0, 0, -0.4)))
    cup = trimesh.util.concatenate([outer, bottom])
    grid = shape.solid_grid(shape.RaySurface(*as_pair(cup)))
    assert not grid[32, 32, 24:].any() and grid[32, 32, 18:20].any() and grid[32 + 14, 32, 32]


def test_chamfer_sees_only_what_the_views_see():
    """SAP3D's ring at 30 degrees never sees the underside; the all-round set does."""
    without_bottom = CUBE.copy()
    without_bottom.update_faces(CUBE.face_normals[:, 2] > -0.5)
    ring = shape.score_shape(as_pair(without_bottom), as_pair(CUBE), shape.ring_of_views())
    around = shape.score_shape(as_pair(without_bottom), as_pair(CUBE), shape.all_round_views())
    assert ring.chamfer < 0.001 < 0.01 < around.chamfer


def test_points_match_a_plain_nearest_neighbour_search():
    generator = np.random.default_rng(1)
    a, b = generator.random((200, 3)), generator.random((150, 3))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    chamfer, f = shape.chamfer_and_f(a, b, (0.1,))
    assert chamfer == pytest.approx((distances.min(1).mean() + distances.min(0).mean()) / 2)
    precision, recall = (distances.min(1) < 0.1).mean(), (distances.min(0) < 0.1).mean()
    assert f[0] == pytest.approx(2 * precision * recall / (precision + recall))
    assert shape.chamfer_and_f(np.zeros((0, 3)), b) == (np.inf, (0.0, 0.0, 0.0))


def test_voxel_downsample_takes_means():
    points = np.array([[0, 0, 0], [0.004, 0, 0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(shape.voxel_downsample(points), [[0.002, 0, 0], [0.5, 0.5, 0.5]])


def test_rotate_about_up_is_the_azimuth():
    turned = shape.rotate_about_up(Camera.from_degrees(20, 10).center()[None], np.deg2rad(100))
    np.testing.assert_allclose(turned[0], Camera.from_degrees(20, 110).center(), atol=1e-12)


# --- cameras ----------------------------------------------------------------------------------------------------------
def views(*angles, radius=1.5):
    return {f"{k:03d}": Camera.from_degrees(elevation, azimuth, radius) for k, (elevation, azimuth) in enumerate(angles)}


def poses(cameras):
    return {name: camera.camera_from_world() for name, camera in cameras.items()}


@pytest.mark.parametrize("angle_deg", [0, 1e-4, 30, 90, 135, 179.999, 180])
def test_umeyama_recovers_any_rotation(angle_deg):
    generator = np.random.default_rng(int(angle_deg))
    for _ in range(5):
        axis = generator.normal(size=3)
        rotation = Rotation.from_rotvec(np.deg2rad(angle_deg) * axis / np.linalg.norm(axis)).as_matrix()
        points = generator.normal(size=(6, 3))
        found = pose.umeyama(points, 2.5 * points @ rotation.T + [1, -2, 3])
        np.testing.assert_allclose(found.rotation, rotation, atol=1e-9)
        assert found.scale == pytest.approx(2.5)
        np.testing.assert_allclose(found.apply(points), 2.5 * points @ rotation.T + [1, -2, 3], atol=1e-9)


def test_umeyama_never_mirrors():
    points = np.random.default_rng(2).normal(size=(8, 3))
    found = pose.umeyama(points, points * [1, 1, -1])
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)
    flat = points * [1, 1, 0]
    turned = flat @ Rotation.from_euler("x", 180, degrees=True).as_matrix().T
    np.testing.assert_allclose(pose.umeyama(flat, turned).apply(flat), turned, atol=1e-9)


def test_perfect_cameras_have_no_error():
    cameras = views((0, 0), (30, 90), (10, 270), (30, 135), (0, 225))
    assert pose.compat_errors(cameras, poses(cameras)) == pytest.approx(dict.fromkeys(("Rotation Error", "Elevation", "Azimuth", "Radius"), 0.0), abs=1e-6)
    errors = pose.corrected_errors(cameras, poses(cameras))
    assert all(errors[key] == pytest.approx(0, abs=1e-6) for key in ("rotation_pairs", "rotation_aligned", "elevation", "azimuth", "radius", "center_aligned", "center_umeyama"))
    assert errors["rotation_pairs_under_5"] == 1.0


@pytest.mark.parametrize("error_deg", [3, 95, 150, 180])
def test_azimuth_error_past_90_and_at_180(error_deg):
    true, predicted = views((0, 0), (0, 40)), views((0, 0), (0, 40 + error_deg))
    compat, corrected = pose.compat_errors(predicted, poses(true)), pose.corrected_errors(predicted, poses(true))
    assert compat["Rotation Error"] == pytest.approx(error_deg, abs=1e-6)  # on the equator azimuth is the angle
    assert corrected["rotation_pairs"] == pytest.approx(error_deg, abs=1e-6)
    assert corrected["azimuth"] == pytest.approx(error_deg, abs=1e-6)
    assert corrected["rotation_pairs_under_5"] == float(error_deg < 5)


def test_compat_is_blind_to_signs_and_to_a_common_elevation():
    """A mirrored guess (azimuth -90 for 90) passes SAP3D's azimuth error, and a constant elevation error its rotation error."""
    true = views((0, 0), (0, 90))
    assert pose.compat_errors(views((0, 0), (0, 270)), poses(true))["Azimuth"] == pytest.approx(0, abs=1e-9)
    assert pose.corrected_errors(views((0, 0), (0, 270)), poses(true))["azimuth"] == pytest.approx(180, abs=1e-6)
    raised = views((20, 0), (20, 90))
    assert pose.compat_errors(raised, poses(true))["Rotation Error"] == pytest.approx(0, abs=1e-6)
    corrected = pose.corrected_errors(raised, poses(true))
    assert corrected["rotation_pairs"] > 9 and corrected["elevation"] == pytest.approx(20) and corrected["elevation_bias"] == pytest.approx(20)


def test_azimuths_wrap():
    true, predicted = views((0, 0), (0, 359)), views((0, 0), (0, 1))
    assert pose.compat_errors(predicted, poses(true))["Azimuth"] == pytest.approx(0, abs=1e-6)
    assert pose.corrected_errors(predicted, poses(true))["azimuth"] == pytest.approx(2)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("turn_deg", [0, 60, 180])
def test_alignment_undoes_a_turn_and_a_scale(count, turn_deg):
    """The predicted world is the true one turned about z and scaled: any number of cameras tells both."""
    true = dict(list(views((10, 0), (30, 90), (0, 200), (45, 300)).items())[:count])
    predicted = {name: Camera(c.polar_rad, c.azimuth_rad - np.deg2rad(turn_deg), c.radius / 1.2) for name, c in true.items()}
    found = pose.align_cameras(predicted, poses(true))
    point = np.array([[0.3, -0.2, 0.4]])
    assert found.scale == pytest.approx(1.2)
    np.testing.assert_allclose(found.apply(point), 1.2 * shape.rotate_about_up(point, np.deg2rad(turn_deg)), atol=1e-9)
    errors = pose.corrected_errors(predicted, poses(true))
    if count > 1:
        assert errors["center_aligned"] == pytest.approx(0, abs=1e-6) and errors["rotation_aligned"] == pytest.approx(0, abs=1e-6)
    assert errors["radius"] == pytest.approx(1.5 - 1.5 / 1.2)


def test_alignment_uses_stored_poses_that_are_not_look_at():
    """True poses come from files and may look past the centre; centres and rotations are read as they are."""
    pose_matrix = look_at_origin(np.array([1.0, 1.0, 0.5]))
    shifted = np.concatenate([pose_matrix[:, :3], -pose_matrix[:, :3] @ (np.array([[1.0], [1.0], [0.5]]) + 0.1)], axis=1)
    np.testing.assert_allclose(camera_centers(shifted), [1.1, 1.1, 0.6])
    errors = pose.corrected_errors(views((20, 45), (0, 0)), {"000": shifted, "001": Camera.from_degrees(0, 0).camera_from_world()})
    assert errors["center_aligned"] > 0 and errors["center_umeyama"] is None


def test_one_view_has_no_pairs():
    true = views((30, 0))
    assert pose.compat_errors(views((10, 0)), poses(true)) == dict.fromkeys(("Rotation Error", "Elevation", "Azimuth", "Radius"))
    corrected = pose.corrected_errors(views((10, 0)), poses(true))
    assert corrected["elevation"] == pytest.approx(20) and corrected["rotation_pairs"] is None


def test_umeyama_refuses_too_few_points():
    with pytest.raises(ValueError, match="N >= 3"):
        pose.umeyama(np.zeros((2, 3)), np.zeros((2, 3)))
