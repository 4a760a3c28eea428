"""Stage 3: hull, score distillation in tiles, and whole tiny runs: resume, switches, bad input."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recon_scenes import CAMERAS, RADIUS, box, full_occupancy, random_field, sphere_image, write_sphere_scene

from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.errors import InputError
from sap3d.field import finish, photos, rendering, seeing as seeing_module, views
from sap3d.images import composite_white, load_rgb, save_image
from sap3d.scene import Scene, write_cameras
from sap3d.zero123 import tiny_random_model

config_module = importlib.import_module("3D_Recon.threestudio.config")
export = importlib.import_module("3D_Recon.threestudio.export")
launch = importlib.import_module("3D_Recon.threestudio.launch")
optimise = importlib.import_module("3D_Recon.threestudio.optimise")
prior = importlib.import_module("3D_Recon.threestudio.prior")

TINY = dict(
    steps=30, grid=[12, 20], level_starts=[0.0, 0.5], photo_sizes=[16, 32], rays=256, warm_start_rays=64, warm_start_size=16, occupancy_cells=16,
    render_size=16, turntable_frames=2, turntable_size=32, mesh_cells=32, mesh_faces=800, texture_size=64, sds_every=5, warm_start=True, device="cpu",
)  # fmt: skip


def tiny_config(**changes):
    return config_module.ReconConfig(**{**TINY, **changes})


PHOTOS = {name: sphere_image(camera) for name, camera in CAMERAS.items()}
NOVEL = {name: composite_white(sphere_image(camera, 16)) for name, camera in list(protocol_test_cameras().items())[::12]}


def reconstruction(**changes):
    return optimise.Reconstruction(PHOTOS, CAMERAS, tiny_config(**changes), NOVEL, tiny_random_model())


def test_hull_holds_the_object_and_little_else():
    silhouettes = photos.Silhouettes(list(PHOTOS.values()), photos.RayCameras(CAMERAS))
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 3, generator=generator) * 1.1 - 0.55
    excess = silhouettes.excess(points)
    inside = points.norm(dim=-1) < RADIUS
    assert excess[inside].max() < 0.01
    assert (excess[points.norm(dim=-1) > RADIUS + 0.25] > 0.03).float().mean() > 0.9
    bounds = photos.hull_bounds(silhouettes, 0.55, 0.01)
    assert (bounds[0] < -RADIUS).all() and (bounds[1] > RADIUS).all()


def test_margin_grows_with_camera_errors():
    margins = []
    for error in (0, 6, 12):
        cameras = {**CAMERAS, "001": Camera.from_degrees(30 + error, 90 + error, 1.5 + error / 60)}
        silhouettes = photos.Silhouettes(list(PHOTOS.values()), photos.RayCameras(cameras))
        margins.append(silhouettes.margin(box(0.55), 0.001, 0.15))
    assert margins[0] < margins[1] < margins[2] and margins[0] < 0.02


def test_photos_without_a_common_object_are_one_line():
    """One shows it at the top, the other at the bottom: whatever margin outlines are given, no point lies in both."""
    high, low = np.zeros((2, 64, 64, 4), np.float32)
    high[2:12, 24:40], low[52:62, 24:40] = 1, 1
    run = optimise.Reconstruction({"000": high, "001": low}, {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(0, 90)}, tiny_config(sds=False))
    with pytest.raises(InputError, match="000, 001 have no object in common"):
        run.one_step()


def test_a_fit_that_diverges_is_one_line(monkeypatch):
    run = reconstruction(sds=False)
    monkeypatch.setattr(run, "losses", lambda share: {"rgb": torch.tensor(float("nan"), requires_grad=True)})
    with pytest.raises(InputError, match="diverged by step 0"):
        run.one_step()


def test_cropped_photos_do_not_carve_outside_their_frame():
    whole, cropped = np.zeros((32, 32, 4), np.float32), np.zeros((32, 32, 4), np.float32)
    whole[8:24, 8:24] = 1
    cropped[:, 8:] = 1
    point = torch.tensor([[0.0, 1.2, 0.0]])  # right of the picture of a camera at azimuth 0
    for image, judged in ((whole, True), (cropped, False)):
        silhouettes = photos.Silhouettes([image], photos.RayCameras({"000": Camera.from_degrees(0, 0)}))
        assert (silhouettes.excess(point).item() > 0.1) == judged


@pytest.mark.parametrize("residual", ["latent", "image"])
@pytest.mark.parametrize("condition, multiplane", [("near", 0), ("mean", 0), ("mean", 4), ("all", 4)])
def test_tiled_distillation_equals_plain(residual, condition, multiplane):
    config = tiny_config(sds_residual=residual, sds_condition=condition)
    model = tiny_random_model(multiplane=multiplane)
    guidance = prior.Guidance(model, PHOTOS, CAMERAS, config)
    generator = torch.Generator().manual_seed(3)
    camera = guidance.random_camera(generator)
    origins, directions = photos.camera_rays(camera, model.image_size)
    occupancy = full_occupancy(box())
    gradients = []
    for tile in (None, 100):
        field = random_field()
        colour = rendering.render(field, occupancy, origins, directions).colour
        image = colour.T.reshape(1, 3, model.image_size, model.image_size)
        generator.manual_seed(4)
        gradient = guidance.gradient(image, camera, 0.5, generator)
        assert gradient.shape == image.shape and gradient.abs().max() > 0
        if tile is None:
            (image * gradient).sum().backward()
        else:
            rows = gradient.view(3, -1).T
            prior.backward_in_tiles(lambda o, d: rendering.render(field, occupancy, o, d), origins, directions, rows, tile)
        gradients.append(field.values.grad)
    assert torch.allclose(*gradients, atol=1e-5 * gradients[0].abs().max().item())


@pytest.mark.parametrize("residual", ["latent", "image"])
def test_the_encoder_keeps_a_graph_only_where_the_gradient_goes_through_it(residual, monkeypatch):
    model, graphs = tiny_random_model(), []
    encode = model.encode_target
    monkeypatch.setattr(model, "encode_target", lambda image: (encoded := encode(image), graphs.append(encoded.requires_grad))[0])
    guidance = prior.Guidance(model, PHOTOS, CAMERAS, tiny_config(sds_residual=residual))
    guidance.gradient(torch.rand(1, 3, model.image_size, model.image_size), Camera.from_degrees(10, 50), 0.3, torch.Generator().manual_seed(9))
    assert graphs == [residual == "latent"]


def test_a_model_without_a_sweep_is_shown_photos_of_its_own_size(monkeypatch):
    """As test-time training has shown them; a sweep uses what they have beyond that."""
    large = {name: np.repeat(np.repeat(photo, 4, 0), 4, 1) for name, photo in PHOTOS.items()}
    for planes in (0, 4):
        model, sizes = tiny_random_model(planes=planes), []
        encode = model.encode_condition
        monkeypatch.setattr(model, "encode_condition", lambda images, cover: sizes.append(images.shape[-1]) or encode(images, cover))  # noqa: B023
        prior.Guidance(model, large, CAMERAS, tiny_config())
        assert sizes == [model.image_size if planes == 0 else min(photo.shape[0] for photo in large.values())]


def test_latent_gradient_is_that_of_the_published_loss():
    config = tiny_config(sds_residual="latent", sds_condition="first")
    model = tiny_random_model()
    guidance = prior.Guidance(model, PHOTOS, CAMERAS, config)
    camera = Camera.from_degrees(10, 50)
    image = torch.rand(1, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    found = guidance.gradient(image, camera, 0.3, torch.Generator().manual_seed(9))

    generator = torch.Generator().manual_seed(9)
    low, high = (a + (b - a) * 0.3 for a, b in zip(config.sds_t_start, config.sds_t_end))
    t = torch.tensor([round((low + (high - low) * float(torch.rand(1, generator=generator))) * model.num_timesteps)])
    torch.multinomial(torch.tensor([1.0, 0, 0]), 1, generator=generator)
    image.requires_grad_(True)
    latent = model.encode_target(image)
    noise = torch.randn(latent.shape, generator=generator)
    noisy = model.add_noise(latent, noise, t).detach()
    pose = torch.from_numpy(prior.pose_condition(camera, CAMERAS["000"]))[None].float()
    with torch.no_grad():
        out = model.guided(noisy, t, *model.conditions(guidance.features[[0]], pose), config.guidance_scale)
        residual = model.predicted_noise(out, noisy, t) - noise
    loss = ((1 - model.alphas_cumprod[t]) * residual * latent).sum()
    (expected,) = torch.autograd.grad(loss, image)
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())


def test_a_step_against_the_image_gradient_comes_nearer_to_what_the_model_sees(monkeypatch):
    model = tiny_random_model()
    guidance = prior.Guidance(model, PHOTOS, CAMERAS, tiny_config(sds_residual="image", sds_condition="first"))
    wanted = torch.full((1, 3, model.image_size, model.image_size), 0.25)
    monkeypatch.setattr(model, "decode_beside", lambda clean, guess: wanted)
    image = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(0))
    gradient = guidance.gradient(image, Camera.from_degrees(10, 50), 0.5, torch.Generator().manual_seed(1))
    assert gradient.abs().max() > 0
    assert ((image - gradient) - wanted).abs().sum() < 0.9 * (image - wanted).abs().sum()


def test_distillation_looks_from_above_more_than_from_below():
    config = tiny_config(sds_elevations=[-45.0, 60.0])
    guidance, generator = prior.Guidance(tiny_random_model(), PHOTOS, CAMERAS, config), torch.Generator().manual_seed(0)
    elevations = [guidance.random_camera(generator).elevation_deg for _ in range(300)]
    assert -45 <= min(elevations) < -40 and 55 < max(elevations) <= 60


def test_distillation_goes_from_its_first_to_its_last_noise_levels(monkeypatch):
    run, progress = reconstruction(sds_start=0.25, sds_every=1), []
    monkeypatch.setattr(run, "_distil", lambda value: progress.append(value) or torch.zeros(()))
    assert [set(run.add_gradients(share)) for share in (0.2, 0.25, 0.625, 1.0)] == [set(), {"sds"}, {"sds"}, {"sds"}]
    assert progress == pytest.approx([0, 0.5, 1])


def test_novel_views_fade_and_count_less_with_every_photo():
    losses = {}
    for count in (1, 2):
        photos_given = dict(list(PHOTOS.items())[:count])
        dark = {name: np.zeros((16, 16, 3), np.float32) for name in list(NOVEL)}
        run = optimise.Reconstruction(photos_given, CAMERAS, tiny_config(sds=False, warm_start_final=0.25, prior_exponent=3.0, prior_where_seen=1.0), dark)
        run._enter(0, grow=False)
        for share in (0.0, 0.5, 1.0):
            run.generator.manual_seed(0)
            losses[count, share] = run._warm_start_loss(share).item()
        assert losses[count, 0.5] == pytest.approx(0.625 * losses[count, 0.0]) and losses[count, 1.0] == pytest.approx(0.25 * losses[count, 0.0])
    assert 0 < losses[2, 0.0] < 0.3 * losses[1, 0.0]  # an eighth, but for the hull, which is another one


def test_the_learning_rate_falls_to_its_final_share():
    run = reconstruction(sds=False, final_rate=0.2)
    run.guidance, rates = None, []
    for step in (0, run.config.steps // 2 - 1, run.config.steps - 1):
        run.step = step
        run.one_step()
        rates.append(run.optimiser.param_groups[0]["lr"] / run.optimiser.param_groups[0]["base"])
    assert rates == pytest.approx([0.2 ** (step / run.config.steps) for step in (0, run.config.steps // 2 - 1, run.config.steps - 1)])


def test_variation_counts_less_where_two_photos_see_and_in_the_end(monkeypatch):
    run, found = reconstruction(sds=False, variation_where_seen=0.1), []
    run.seeing[0], run.seeing[1], run.seeing[2] = 0, 1, 3
    monkeypatch.setattr(run.field, "add_variation_gradient", lambda density, colour, local, generator: found.append(local[:3, 0, 0].tolist()))
    for share in (0.0, 1.0):
        run._smooth(share)
    assert found[0] == pytest.approx([1, 1, 1]) and found[1] == pytest.approx([1, 0.1**0.5, 0.1])


def test_likeness_draws_patches_of_the_object_and_points_towards_the_view():
    """A patch is where its places say; a render that looks like it costs nothing; small steps along the gradient make others likelier."""
    views = {}
    for k, name in enumerate(("000", "001")):
        view = np.ones((96, 96, 3), np.float32)
        view[20:60, 30:80] = np.random.default_rng(k).random((8, 10, 3)).repeat(5, 0).repeat(5, 1)
        views[name] = view
    likeness, generator = prior.Likeness(views, 48), torch.Generator().manual_seed(0)
    for _ in range(5):
        view, patch, local = likeness.draw(generator)
        column, row = ((local[0, 0] + 1) * 48 - 0.5).round().int(), ((1 - local[0, 1]) * 48 - 0.5).round().int()
        expected = torch.from_numpy(list(views.values())[view]).permute(2, 0, 1)[:, row : row + 48, column : column + 48]
        assert torch.equal(patch[0], expected) and float((1 - patch).max()) > 0.05 and len(local) == 48 * 48
    same = patch[0].reshape(3, -1).T
    assert float(likeness.gradient(same, patch)[0]) < 1e-6
    other = (same * 0.5 + 0.3).contiguous()
    before, gradient = likeness.gradient(other, patch)
    assert gradient.shape == other.shape and torch.equal(gradient, gradient[:, :1].expand(-1, 3))  # brightness alone: hues are not the distance's to change
    after, _ = likeness.gradient(other - 0.05 * gradient / gradient.abs().max(), patch)
    assert float(after) < float(before)


@pytest.mark.parametrize("count, share", [(1, 1.0), (2, 1.0), (3, 8 / 27)])
def test_the_prior_counts_less_with_every_photo_beyond_two(count, share, monkeypatch):
    few = dict(list(PHOTOS.items())[:count])
    views = {name: composite_white(sphere_image(camera, 40)) for name, camera in list(protocol_test_cameras().items())[:3]}
    config = tiny_config(photos=False, likeness_weight=0.5, likeness_every=4, sds_weight=0.2, sds_every=8, sds_size=8)
    run = optimise.Reconstruction(few, CAMERAS, config, views, tiny_random_model())
    run._enter(0, grow=False)
    found = []
    monkeypatch.setattr(optimise, "backward_in_tiles", lambda render, origins, directions, gradient, tile: found.append(gradient))
    monkeypatch.setattr(run.likeness, "gradient", lambda colour, target: (torch.zeros(()), torch.ones_like(colour)))
    monkeypatch.setattr(run.guidance, "gradient", lambda image, *_: torch.ones_like(image))
    run._resemble()
    run._distil(0.5)
    assert torch.allclose(found[0], torch.full_like(found[0], 0.5 * 4 * share))
    side = run.guidance.size
    assert torch.allclose(found[1], torch.full_like(found[1], 0.2 * 8 * share / side**2))


def test_prior_counts_less_where_photos_see():
    run = reconstruction(sds=False, steps=60)
    run.guidance = None
    run.run()
    seeing = seeing_module.count_seeing(run.field, run.occupancy, run.cameras)
    weights = []
    for camera in (CAMERAS["001"], Camera.from_degrees(-60, 300)):
        origins, directions = photos.camera_rays(camera, 24)
        seen = rendering.render(run.field, run.occupancy, origins, directions)
        weight = seeing_module.prior_weight(seen, origins, directions, run.occupancy, seeing, 0.1)
        weights.append(weight[seen.opacity > 0.9].mean().item())
    assert weights[0] < 0.45 < 0.6 < weights[1]


@pytest.mark.parametrize("field, steps", [("dense", 120), ("hash", 60)])
def test_optimisation_learns_the_sphere(field, steps):
    run = reconstruction(steps=steps, field=field)
    run.run()
    for name in ("000", "036"):
        expected = composite_white(sphere_image(protocol_test_cameras()[name], 32))
        found = views.render_view(run.field, run.occupancy, protocol_test_cameras()[name], 32)
        assert np.mean((found.colour.numpy() - expected) ** 2) < 0.012


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "Permission denied")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_thrown_away(error, tmp_path, monkeypatch):
    run = reconstruction(sds=False)
    run.one_step()
    run.save(tmp_path / "checkpoint.pt")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        reconstruction(sds=False).load(tmp_path / "checkpoint.pt")
    monkeypatch.undo()
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    assert not reconstruction(sds=False).load(tmp_path / "checkpoint.pt")


def same_field(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state().values(), second.state().values(), strict=True))


@pytest.mark.parametrize("field", ["dense", "hash"])
def test_resume_equals_an_undisturbed_run(field, tmp_path):
    whole = reconstruction(refine_cameras=True, field=field)
    whole.run()

    class Killed(Exception):
        pass

    def kill(run):
        if run.step in (7, 22):
            run.save(tmp_path / "last.pt", "id")
        if run.step == stop:
            raise Killed

    for stop in (9, 24):
        run = reconstruction(refine_cameras=True, field=field)
        run.resume(tmp_path / "last.pt", "id")
        with pytest.raises(Killed):
            run.run(on_step=kill)
    last = reconstruction(refine_cameras=True, field=field)
    last.resume(tmp_path / "last.pt", "id")
    assert last.step == 22
    last.run(tmp_path / "last.pt", "id")
    assert same_field(last.field, whole.field) and torch.equal(last.cameras.delta, whole.cameras.delta)
    assert last.cameras.delta.abs().max() > 0 and last.cameras.delta[0, 1] == 0
    finished = reconstruction(refine_cameras=True, field=field)
    finished.resume(tmp_path / "last.pt", "id")
    finished.run()
    assert same_field(finished.field, whole.field) and torch.equal(finished.occupancy.occupied, whole.occupancy.occupied)


def test_it_ends_when_the_error_has_settled_on_the_last_level_and_is_finished_then(tmp_path):
    run = reconstruction(steps=400, grid=[8, 16], level_starts=[0.0, 0.1], photo_sizes=[24, 24], learning_rate=1e-6, patience=20, sds=False, likeness_weight=0.0)
    run.guidance = None
    run.run(tmp_path / "last.pt", "id")
    assert 40 + 39 <= run.step < 200 and run.level == 1  # nothing is learned at such a rate; two times 20 steps of the second level
    again = reconstruction(steps=400, grid=[8, 16], level_starts=[0.0, 0.1], photo_sizes=[24, 24], learning_rate=1e-6, patience=20, sds=False, likeness_weight=0.0)
    again.guidance = None
    again.resume(tmp_path / "last.pt", "id")
    again.run()
    assert again.step == run.step and same_field(again.field, run.field)


def test_foreign_and_damaged_checkpoints_are_not_used(tmp_path):
    run = reconstruction(steps=2)
    run.run(tmp_path / "last.pt", "one")
    other = reconstruction(steps=2)
    assert other.resume(tmp_path / "last.pt", "two") == 0 and other.step == 0
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:500])
    assert other.resume(tmp_path / "last.pt", "one") == 0 and other.step == 0


def test_stage_writes_its_outputs_and_is_then_skipped(tmp_path, capsys):
    scene = write_sphere_scene(tmp_path)
    config = tiny_config(sds=False)
    assert launch.main(scene, config) == scene.mesh_dir
    renders = sorted((scene.nerf_dir / "save" / "rgb_pred").iterdir())
    assert [p.stem for p in renders] == list(protocol_test_cameras()) and load_rgb(renders[0]).shape == (16, 16, 3)
    assert (scene.nerf_dir / "save" / "turntable.mp4").stat().st_size > 500
    record = json.loads((scene.mesh_dir / "record.json").read_text())
    assert record["faces"] <= 800 and record["extent"][2] == pytest.approx(2 * RADIUS, abs=0.2)
    before = (scene.mesh_dir / "model.obj").stat().st_mtime_ns
    capsys.readouterr()
    launch.main(scene, config)
    assert "done already" in capsys.readouterr().out and (scene.mesh_dir / "model.obj").stat().st_mtime_ns == before
    launch.main(scene, tiny_config(sds=False, texture="vertex"))  # another output, the same optimisation
    assert not list(scene.root.rglob(".*")), "temporary files were left behind"


def test_the_stage_hands_on_what_it_was_given(tmp_path, monkeypatch):
    """Mirror plane and novel views to the optimisation, the finish to everything that is shown, the shown views to the mesh."""
    scene, seen = write_sphere_scene(tmp_path), {}
    write_cameras(scene.refined_cameras, CAMERAS, mirror_plane_azimuth_rad=np.deg2rad(60))
    monkeypatch.setattr(finish, "finishing", lambda recon, size, detail, sharpness: ("finish", size, detail, sharpness))
    monkeypatch.setattr(export, "export_renders", lambda scene, config, recon, finish: seen.update(recon=recon, renders=finish) or "views")
    monkeypatch.setattr(export, "export_turntable", lambda scene, config, recon, finish: seen.update(turntable=finish))
    monkeypatch.setattr(export, "export_sheet", lambda scene, photos, views: seen.update(sheet=(list(photos), views)))
    monkeypatch.setattr(export, "export_mesh", lambda scene, config, recon, views: seen.update(mesh=views) or {})
    launch.main(scene, tiny_config(sds=False, steps=1, photo_detail=0.5, outline_sharpness=0.25))
    run = seen.pop("recon")
    assert run.mirrored_cameras.names == ["000~", "001~", "002~"] and run.novel_cameras.names == list(protocol_test_cameras())
    assert all(run.mirrored_cameras.current()[f"{n}~"].azimuth_deg == pytest.approx((120 - c.azimuth_deg) % 360, abs=1e-2) for n, c in CAMERAS.items())
    assert seen == dict(renders=("finish", 16, 0.5, 0.25), turntable=("finish", 16, 0.5, 0.25), sheet=(list(CAMERAS), "views"), mesh="views")


def test_what_the_optimisation_depends_on_is_known(tmp_path):
    scene, config = write_sphere_scene(tmp_path), tiny_config(sds=True, model="somewhere")
    save_image(scene.train_dir / "masks" / "001.png", np.ones((8, 8, 3), np.float32))
    write_cameras(scene.initial_cameras, CAMERAS, {name: np.full(3, 0.1) for name in CAMERAS})
    inputs = launch._inputs(scene, config, list(PHOTOS))
    images, masks = scene.train_dir / "images", scene.train_dir / "masks"
    assert inputs == {
        "cameras": scene.refined_cameras, "turns": scene.initial_cameras, "photo 000": images / "000.png", "photo 001": images / "001.png", "photo 002": images / "002.png",
        "mask 001": masks / "001.png", "novel views": scene.nvs_dir / "preds", "personal model": scene.personal_dir / "personal.safetensors", "base model": Path("somewhere"),
    }  # fmt: skip
    inputs.pop("base model")
    same = launch._fingerprint(config, inputs)
    assert {name for name in vars(config) if launch._fingerprint(config_module.ReconConfig(**vars(config) | {name: "other"}), inputs) == same} == {
        "device", "vae_slicing", "offload", "render_size", "photo_detail", "outline_sharpness", "turntable_frames", "turntable_size", "mesh_cells", "mesh_slack",
        "mesh_faces", "texture", "texture_from_photos", "texture_size", "checkpoint_seconds", "tile_rays",
    }  # fmt: skip
    assert launch._fingerprint(config, inputs | {"cameras": scene.initial_cameras}) != same


def test_renders_are_of_their_cameras_and_finished(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(export, "render_view", lambda field, occupancy, camera, size: ("raw", camera, size))
    monkeypatch.setattr(export, "save_image", lambda path, image: shown.append((path.stem, image)))
    finished = lambda raw, camera: SimpleNamespace(colour=torch.tensor([camera.polar_rad, camera.azimuth_rad]), raw=raw, camera=camera)  # noqa: E731
    views = export.export_renders(Scene("T", "o", 1, tmp_path), tiny_config(), SimpleNamespace(field=None, occupancy=None), finished)
    protocol = protocol_test_cameras()
    assert list(views) == [name for name, _ in shown] == list(protocol)
    for (name, image), camera in zip(shown, protocol.values()):
        assert views[name].raw == ("raw", camera, 16) and views[name].camera == camera and image == pytest.approx([camera.polar_rad, camera.azimuth_rad], abs=1e-5)


@pytest.mark.parametrize("changes, given", [({}, True), (dict(photos=False), False), (dict(texture_from_photos=False), False)])
def test_the_mesh_is_cut_from_the_depths_of_the_renders_and_coloured_by_the_photos(tmp_path, monkeypatch, changes, given):
    class Baked(Exception):
        pass

    def baked(field, occupancy, vertices, faces, size, kind, sources):
        raise Baked(sources)

    carved = []
    monkeypatch.setattr(export.meshes, "carve", lambda occupancy, depths, cameras, cells, slack: carved.append((depths, cameras, cells)) or (None, None, None))
    monkeypatch.setattr(export.meshes, "extract", lambda *_: (np.eye(4, 3), np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])))
    monkeypatch.setattr(export.meshes, "bake", baked)
    recon = SimpleNamespace(field=SimpleNamespace(voxel_size=lambda: 0.1), occupancy=None, photo_sources=lambda: ["photos", "mirrored photos"])
    with pytest.raises(Baked) as caught:
        export.export_mesh(Scene("T", "o", 1, tmp_path), tiny_config(**changes), recon, {name: SimpleNamespace(depth=name) for name in protocol_test_cameras()})
    assert list(caught.value.args[0]) == (["photos", "mirrored photos"] if given else [])
    assert carved == [({name: name for name in protocol_test_cameras()}, protocol_test_cameras(), 32)]


@pytest.mark.parametrize("changes", [dict(photos=False, sds=False), dict(warm_start=False, views=1), dict(warm_start=False, sds=False, views=1)])
def test_switches_and_a_single_photo(tmp_path, changes):
    views = changes.pop("views", 3)
    names = list(CAMERAS)[:views]
    config = tiny_config(steps=12, **changes)
    run = optimise.Reconstruction({n: PHOTOS[n] for n in names}, CAMERAS, config, NOVEL if config.warm_start else None, tiny_random_model() if config.sds else None)
    run.run()
    assert run.step == 12 and torch.isfinite(run.field.values).all()


def test_bad_inputs_are_one_line(tmp_path):
    scene = write_sphere_scene(tmp_path)
    config = tiny_config(sds=False)
    with pytest.raises(InputError, match="no such camera file"):
        launch.main(Scene("tiny", "ball", 2, tmp_path), config)
    with pytest.raises(InputError, match="no such camera file"):
        launch.main(scene, tiny_config(cameras=str(tmp_path / "absent.yaml")))
    (scene.nvs_dir / "preds" / "050.png").unlink()
    with pytest.raises(InputError, match="050.png is missing"):
        launch.main(scene, config)
    write_cameras(scene.refined_cameras, {"000": CAMERAS["000"]})
    with pytest.raises(InputError, match="no camera for view 001, 002"):
        launch.main(scene, tiny_config(sds=False, warm_start=False))
    with pytest.raises(InputError, match="4 views were asked for"):
        launch.main(Scene("tiny", "ball", 4, tmp_path), config)
    for changes in (dict(grid=[8]), dict(steps=0), dict(sds_condition="best"), dict(level_starts=[0.2, 0.5]), dict(photos=False, sds=False, warm_start=False)):
        with pytest.raises(InputError):
            launch.main(scene, tiny_config(**changes))
    assert not scene.nerf_dir.exists() or not (scene.nerf_dir / "record.json").exists()
