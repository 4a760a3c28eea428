"""The ray-cast renderer against what geometry says it must show."""

import numpy as np
import pytest
from mesh_examples import CUBE_FACES, quadrants, write_cube, write_textured_square

from sap3d.cameras import FOV_RAD, Camera
from sap3d.errors import InputError
from sap3d.mesh_render import Lighting, MeshRenderer, RenderMesh, load_mesh, load_mesh_normalised, random_lighting, render_depth, render_rgba

FLAT = Lighting(ambient=1.0, directions=((0.0, 0.0, 1.0),), levels=(0.0,))  # shows albedo itself


def pose(elevation_deg, azimuth_deg, radius=1.5):
    return Camera.from_degrees(elevation_deg, azimuth_deg, radius).camera_from_world()


@pytest.fixture
def cube(tmp_path):
    return load_mesh_normalised(write_cube(tmp_path))


def test_cube_silhouette_has_the_analytic_area(cube):
    size = 128
    image = render_rgba(cube, [pose(0, 0, 2.0)], FOV_RAD, size, supersample=4, lighting=FLAT)[0]
    side = size / (2 * np.tan(FOV_RAD / 2) * 1.5)  # the near face is 1.5 away and hides the rest
    assert image[..., 3].sum() == pytest.approx(side**2, rel=0.01)
    covered = np.argwhere(image[..., 3] > 0.5) + 0.5
    assert covered.mean(0) == pytest.approx([size / 2, size / 2], abs=0.6)


def test_cube_depth_is_the_distance_to_the_near_face(cube):
    for radius in (1.8, 2.0, 2.5):  # nearer, a full cube fills the image
        depth = render_depth(cube, [pose(0, 90, radius)], FOV_RAD, 64)[0]
        centre = depth[24:40, 24:40]
        assert centre == pytest.approx(np.full_like(centre, radius - 0.5), abs=1e-4)
        assert depth[0, 0] == 0


@pytest.mark.parametrize(
    "elevation, azimuth, face",
    [(0, 0, "front"), (0, 90, "right"), (0, 180, "back"), (0, 270, "left"), (89.9, 0, "top"), (-89.9, 0, "bottom")],
)
def test_each_face_is_seen_from_its_own_side(cube, elevation, azimuth, face):
    image = render_rgba(cube, [pose(elevation, azimuth)], FOV_RAD, 32, lighting=FLAT)[0]
    assert image[16, 16] == pytest.approx([*CUBE_FACES[face][1], 1.0], abs=0.01)


def test_flipped_faces_render_alike(tmp_path):
    outward = load_mesh_normalised(write_cube(tmp_path / "a"))
    inward = load_mesh_normalised(write_cube(tmp_path / "b", flip=True))
    poses = [pose(30, 40), pose(-20, 200)]
    assert render_rgba(inward, poses, size=48) == pytest.approx(render_rgba(outward, poses, size=48), abs=1e-5)


def test_light_belongs_to_the_world_not_to_the_camera(cube):
    images = render_rgba(cube, [pose(0, azimuth) for azimuth in (-40, 0, 40)], FOV_RAD, 64)
    seen = [image[32, 32, :3] for image in images]
    reds = [image[..., :3][(image[..., 3] == 1) & (image[..., 1] < 0.02) & (image[..., 2] < 0.02)][:, 0].max() for image in images]
    assert np.ptp(reds) < 0.01, f"the front face's shade changes with the camera: {reds} {seen}"


def test_projection_agrees_with_the_camera_convention():
    point = np.array([0.21, -0.13, 0.3])
    offsets = 0.01 * np.array([[1, 0, 0], [-1, 1, 0], [-1, -1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 1, 2], [0, 1, 3], [1, 2, 3], [0, 2, 3]], np.int32)
    mesh = RenderMesh(
        (point + offsets - offsets.mean(0)).astype(np.float32), faces, np.zeros((4, 3, 2), np.float32),
        np.zeros(4, np.int32), [np.full((1, 1, 4), 255, np.uint8)],
    )  # fmt: skip
    renderer = MeshRenderer(mesh)
    for elevation, azimuth in ((0, 0), (30, 100), (-40, 250), (60, 179)):
        camera = pose(elevation, azimuth)
        x, y, z = camera[:, :3] @ point + camera[:, 3]
        expected = np.array([(1 - y / (-z * np.tan(FOV_RAD / 2))) * 128, (1 + x / (-z * np.tan(FOV_RAD / 2))) * 128])
        alpha = renderer.render(camera, size=256)[..., 3]
        rows, columns = np.mgrid[:256, :256] + 0.5
        found = np.array([(rows * alpha).sum(), (columns * alpha).sum()]) / alpha.sum()
        assert found == pytest.approx(expected, abs=0.6)


def test_normalisation_centres_and_scales_the_longest_side(tmp_path):
    mesh = load_mesh_normalised(write_cube(tmp_path, scale=(40, 20, 10), offset=(7, -300, 55)))
    assert mesh.vertices.min(0) == pytest.approx([-0.5, -0.25, -0.125], abs=1e-5)
    assert mesh.vertices.max(0) == pytest.approx([0.5, 0.25, 0.125], abs=1e-5)


def test_y_up_files_are_turned_upright(tmp_path):
    path = write_cube(tmp_path)  # as a y-up file its "right" face (+y) is on top
    mesh = load_mesh_normalised(path, up="y")
    image = render_rgba(mesh, [pose(89.9, 0)], FOV_RAD, 32, lighting=FLAT)[0]
    assert image[16, 16, :3] == pytest.approx(CUBE_FACES["right"][1], abs=0.01)
    front = render_rgba(mesh, [pose(0, 0)], FOV_RAD, 32, lighting=FLAT)[0]
    assert front[16, 16, :3] == pytest.approx(CUBE_FACES["front"][1], abs=0.01)  # x stays x: a rotation, not a reflection
    left = render_rgba(mesh, [pose(0, 270)], FOV_RAD, 32, lighting=FLAT)[0]
    assert left[16, 16, :3] == pytest.approx(CUBE_FACES["top"][1], abs=0.01)  # z goes to -y


def test_texture_is_upright_and_not_mirrored(tmp_path):
    mesh = load_mesh_normalised(write_textured_square(tmp_path, quadrants()))
    image = render_rgba(mesh, [pose(0, 0)], FOV_RAD, 64, lighting=FLAT)[0]
    assert image[22, 22, :3] == pytest.approx([1, 0, 0], abs=0.01)
    assert image[22, 41, :3] == pytest.approx([0, 1, 0], abs=0.01)
    assert image[41, 22, :3] == pytest.approx([0, 0, 1], abs=0.01)
    assert image[41, 41, :3] == pytest.approx([1, 1, 1], abs=0.01)


def test_transparent_texels_are_holes(tmp_path):
    mesh = load_mesh_normalised(write_textured_square(tmp_path, quadrants(alpha=(0, 255, 255, 255))))
    image = render_rgba(mesh, [pose(0, 0)], FOV_RAD, 64, lighting=FLAT)[0]
    assert image[22, 22, 3] == 0 and image[22, 41, 3] == 1
    depth = render_depth(mesh, [pose(0, 0)], FOV_RAD, 64)[0]
    assert depth[22, 22] == 0 and depth[22, 41] == pytest.approx(1.5, abs=1e-4)


def test_fine_textures_are_averaged_not_sampled(tmp_path):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 2, (1024, 1024, 1), np.uint8) * np.full((1, 1, 3), 255, np.uint8)
    mesh = load_mesh_normalised(write_textured_square(tmp_path, Image.fromarray(noise)))
    image = render_rgba(mesh, [pose(0, 0)], FOV_RAD, 32, lighting=FLAT)[0]
    assert image[10:22, 10:22, 0].std() < 0.06
    assert image[10:22, 10:22, 0].mean() == pytest.approx(0.5, abs=0.03)


def test_glb_with_vertex_colours_and_with_texture(tmp_path):
    import trimesh

    box = trimesh.creation.box((1, 1, 1))
    box.visual.vertex_colors = [200, 100, 50, 255]
    box.export(tmp_path / "colours.glb")
    image = render_rgba(load_mesh_normalised(tmp_path / "colours.glb", up="y"), [pose(0, 0)], FOV_RAD, 32, lighting=FLAT)[0]
    assert image[16, 16, :3] * 255 == pytest.approx([200, 100, 50], abs=3)

    square = trimesh.load_mesh(write_textured_square(tmp_path, quadrants()), process=False)
    square.export(tmp_path / "texture.glb")
    image = render_rgba(load_mesh_normalised(tmp_path / "texture.glb"), [pose(0, 0)], FOV_RAD, 64, lighting=FLAT)[0]
    assert image[22, 22, :3] == pytest.approx([1, 0, 0], abs=0.02) and image[22, 41, :3] == pytest.approx([0, 1, 0], abs=0.02)


def test_random_lighting_keeps_albedo_dominant(cube):
    for seed in range(20):
        lighting = random_lighting(np.random.default_rng(seed))
        assert 0.5 <= lighting.ambient <= 0.75
        assert lighting.ambient + max(lighting.levels) <= 1.0001
        assert np.linalg.norm(lighting.directions, axis=1) == pytest.approx(np.ones(3))


def test_missing_texture_is_noted_and_falls_back_to_the_plain_colour(tmp_path):
    mesh = load_mesh(write_textured_square(tmp_path, None))
    assert any("texture.png" in note for note in mesh.notes)
    (tmp_path / "model.mtl").unlink()
    assert any("model.mtl" in note for note in load_mesh(tmp_path / "model.obj").notes)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("empty.obj", "", "empty.obj"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", "no triangles"),
        ("range.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "range.obj"),
        ("garbage.obj", "\x00\x01 this is no mesh", "garbage.obj"),
        ("nan.obj", "v nan 0 0\nv nan 0 0\nv 0 nan 0\nf 1 2 3\n", "nan.obj"),
        ("point.obj", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "no extent"),
        ("broken.glb", "glTF and then nothing", "broken.glb"),
        ("picture.jpg", "", "unknown mesh type"),
    ],
)
def test_broken_meshes_give_one_clear_line(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        load_mesh_normalised(tmp_path / name)
    assert words in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_missing_file_and_bad_arguments(tmp_path, cube):
    with pytest.raises(InputError, match="no such mesh"):
        load_mesh(tmp_path / "none.obj")
    with pytest.raises(InputError, match="up axis"):
        load_mesh_normalised(write_cube(tmp_path), up="x")
    with pytest.raises(ValueError, match="pose"):
        render_rgba(cube, [np.eye(4)], size=8)
