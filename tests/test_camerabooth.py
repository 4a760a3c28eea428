"""Stage 2 on a very small random model: cameras as parameters, pairs, schedule, resume, one view, the stage on disk."""

import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from camerabooth import nvs, run, training, view
from camerabooth.camera_table import CameraTable, freedom_of
from camerabooth.config import BoothConfig
from camerabooth.nvs import novel_views
from camerabooth.regulariser import choose_regularisers
from camerabooth.training import PhotoPairs, fit, min_snr_weight, total_steps, trained_parameters
from sap3d.cameras import Camera, pose_condition, protocol_test_cameras
from sap3d.errors import InputError
from sap3d.images import load_rgb
from sap3d.scene import Scene, file_hash, read_cameras, read_json, read_mirror_plane, write_cameras
from sap3d.zero123 import load_personal, load_zero123, tiny_random_model
from sap3d.zero123.photos import photos_over_white

VIEWS = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(30, 90), "002": Camera.from_degrees(10, 275, 1.7), "003": Camera.from_degrees(-20, 180)}
FAST = dict(steps=6, steps_per_extra_view=1, batch_size=4, regulariser="random", regulariser_objects=2, regulariser_batch=2, precision="fp32", nvs_steps=2, output_size=32)


def photo(k, size=48):
    """A disc with a coloured wedge that turns with k, RGBA."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.zeros((size, size, 4), np.float32)
    image[..., 3] = x**2 + y**2 < 0.14
    image[..., 0] = (np.arctan2(y, x) + 1.7 * k) % (2 * np.pi) / (2 * np.pi)
    image[..., 2] = 0.2 * k
    return image


PHOTOS = {name: photo(k) for k, name in enumerate(VIEWS)}


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "models" / "tiny"
    tiny_random_model(0).save(folder, torch.float32)
    return folder


@pytest.fixture
def make_scene(tmp_path, model_folder):
    def make(views: int, root="root") -> tuple[Scene, BoothConfig]:
        scene = Scene("T", "o", views, tmp_path / root)
        for name in list(VIEWS)[:views]:
            path = scene.root / "dataset/data/train/T/o/images" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((PHOTOS[name] * 255).astype(np.uint8)).save(path)
        write_cameras(scene.initial_cameras, {name: VIEWS[name] for name in list(VIEWS)[:views]})
        return scene, BoothConfig(model=str(model_folder), **FAST)

    return make


def pairs_of(model, count, mirror=True, regularisers=()):
    return PhotoPairs(model, photos_over_white({n: PHOTOS[n] for n in list(VIEWS)[:count]}, 64), list(regularisers), mirror,
                      list(VIEWS.values())[:count])  # fmt: skip


# --- cameras as parameters --------------------------------------------------------------------------------------------
def test_zero_delta_is_the_identity():
    table = CameraTable(VIEWS)
    for name, camera in table.cameras().items():
        assert camera.center() == pytest.approx(VIEWS[name].center(), abs=1e-12) and camera.fov_rad == VIEWS[name].fov_rad
    assert float(table.anchor_loss().detach()) == 0


def test_table_gives_the_same_condition_as_the_contract():
    table = CameraTable(VIEWS)
    index = torch.tensor([(i, j) for i in range(4) for j in range(4)]).T
    pose = table.pose(index[0], index[1]).detach().numpy()
    cameras = list(VIEWS.values())
    assert pose == pytest.approx(np.stack([pose_condition(cameras[i], cameras[j]) for i, j in index.T]), abs=1e-6)


def test_mirrored_pairs_have_the_other_azimuth():
    """A mirror image of a scene is seen by mirrored cameras: azimuth negated, elevation and radius as they were."""
    table = CameraTable(VIEWS)
    target, condition = torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2])
    pose = table.pose(target, condition, torch.ones(3, dtype=torch.bool)).detach().numpy()
    mirrored = [Camera(c.polar_rad, -c.azimuth_rad, c.radius) for c in VIEWS.values()]
    assert pose == pytest.approx(np.stack([pose_condition(mirrored[t], mirrored[c]) for t, c in zip(target, condition)]), abs=1e-6)
    mixed = table.pose(target, condition, torch.tensor([True, False, True])).detach().numpy()
    assert mixed[0] == pytest.approx(pose[0]) and mixed[1, 1] == pytest.approx(-pose[1, 1])


def test_every_parameter_moves_its_camera_but_for_the_gauge():
    for row in range(4):
        for column in range(3):
            table = CameraTable(VIEWS)
            with torch.no_grad():
                table.delta[row, column] = 0.1
            before, after = list(VIEWS.values())[row], list(table.cameras().values())[row]
            if (row, column) == (0, 1):
                assert after.center() == pytest.approx(before.center())  # the first view's azimuth stays
                continue
            change = (after.polar_rad - before.polar_rad, np.angle(np.exp(1j * (after.azimuth_rad - before.azimuth_rad))), np.log(after.radius / before.radius))
            assert change == pytest.approx([0.1 * (k == column) for k in range(3)], abs=1e-9)


def test_cameras_never_pass_a_pole():
    table = CameraTable(VIEWS)
    with torch.no_grad():
        table.delta[:, 0] = torch.tensor([9.0, -9.0, 3.0, -3.0])
    assert all(0 < camera.polar_rad < np.pi for camera in table.cameras().values())
    above = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(89.7, 10), "002": Camera.from_degrees(-89.7, 20)}
    for name, camera in CameraTable(above).cameras().items():
        assert camera.polar_rad == above[name].polar_rad  # as near to it as they were given


# --- pairs and schedule -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", (2, 3, 4))
@pytest.mark.parametrize("batch", (1, 3, 4, 16))
def test_every_ordered_pair_is_used_before_any_repeats(count, batch):
    data = pairs_of(tiny_random_model(0), count)
    seen = []
    for step in range(40):
        _, _, target, condition, _ = data.photo_batch(np.random.default_rng(step), batch, step)
        seen += list(zip(target.tolist(), condition[:, 0].tolist()))
    every = {(i, j) for i in range(count) for j in range(count) if i != j}
    for start in range(0, len(seen) - len(every) + 1, len(every)):
        assert set(seen[start : start + len(every)]) == every


def test_batches_hold_the_views_they_name():
    model = tiny_random_model(0)
    photos = photos_over_white(PHOTOS, 64)
    data = pairs_of(model, 4)
    features, latents, target, condition, mirrored = data.photo_batch(np.random.default_rng(0), 12, 0)
    assert mirrored.any() and not mirrored.all()
    for row in range(12):
        turn = (lambda x: x.flip(-1)) if mirrored[row] else (lambda x: x)
        expected_features, expected_latents = training._encode(model, turn(photos[torch.stack([target[row], condition[row, 0]])]))
        assert torch.allclose(latents[row], expected_latents[0], atol=1e-5)
        assert torch.allclose(features.concat[row, 0], expected_features.concat[1], atol=1e-5)


def test_sets_of_conditions_never_hold_the_target_or_a_photo_twice():
    data = pairs_of(tiny_random_model(0), 4)
    for conditions in (1, 2, 3):
        features, _, target, condition, _ = data.photo_batch(np.random.default_rng(0), 12, 0, conditions)
        assert condition.shape == (12, conditions) == features.tokens.shape[:2]
        assert all(len({t, *c}) == conditions + 1 for t, c in zip(target.tolist(), condition.tolist()))
    sizes = {data.set_size(np.random.default_rng(k)) for k in range(40)}
    assert sizes == {1, 2, 3}
    published = pairs_of(tiny_random_model(0, planes=0), 4)
    assert {published.set_size(np.random.default_rng(k)) for k in range(40)} == {1}


@pytest.mark.parametrize("count", (2, 3, 4, 5, 20))
def test_schedule_falls_to_nearly_zero_for_every_number_of_views(count):
    for config in (BoothConfig(), BoothConfig(steps=30, steps_per_extra_view=5)):
        steps = total_steps(config, count)
        rates = [training._schedule(step, steps) for step in range(steps)]
        assert rates[-1] < 0.01 and max(rates) == pytest.approx(1, abs=0.01) and min(rates) >= 0
        assert np.argmax(rates) <= steps // 10 and (np.diff(rates[np.argmax(rates) :]) <= 0).all()
        assert np.mean(rates) > 0.4  # most steps do something


def test_more_views_get_more_steps():
    assert [total_steps(BoothConfig(), n) for n in (2, 3, 5)] == [32, 39, 53]


def test_min_snr_weights():
    model = tiny_random_model(0)
    t = torch.tensor([0, 100, 500, 900])
    snr = model.snr(t)
    assert torch.allclose(min_snr_weight(model, t, 5.0), snr.clamp_max(5) / (snr + 1)) and (min_snr_weight(model, t, 0.0) == 1).all()


# --- training ---------------------------------------------------------------------------------------------------------
def trained_run(folder, interrupt_at=None, monkeypatch=None, multiplane=0, **changes):
    """``fit`` on three photos; returns (model, table, what fit returned or None)."""
    config = BoothConfig(**FAST | changes)
    model, table = tiny_random_model(0, multiplane=multiplane), CameraTable({n: VIEWS[n] for n in list(VIEWS)[:3]})
    regularisers = choose_regularisers(Scene("T", "o", 3), None, "random", 2, 0)
    folder.mkdir(parents=True, exist_ok=True)
    if interrupt_at is None:
        return model, table, fit(model, table, pairs_of(model, 3, True, regularisers), config, folder / "checkpoint.pt")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)

        def update(self, step, note=""):
            if step == interrupt_at:
                raise KeyboardInterrupt

        patch.setattr(training.Progress, "update", update)
        with pytest.raises(KeyboardInterrupt):
            fit(model, table, pairs_of(model, 3, True, regularisers), config, folder / "checkpoint.pt")
    return model, table, None


@pytest.mark.parametrize("choice", ("unet", "attention", "projection"))
def test_the_choice_of_trained_tensors_reaches_the_optimiser(tmp_path, choice):
    model, table, fitted = trained_run(tmp_path, trained=choice)
    before = dict(tiny_random_model(0).named_parameters())
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed <= set(fitted["trained"]) == set(trained_parameters(model, choice))
    assert len(changed) > 0.9 * len(fitted["trained"])  # all but what happens to have no gradient
    assert {"cc_projection.linear.weight", "cc_projection.linear.bias"} <= changed
    assert (choice != "projection") == any(name.startswith("unet.") for name in changed)
    assert (choice == "unet") == any("resnets" in name for name in changed)
    assert not any(name.startswith(("vae.", "image_encoder.")) for name in changed)
    assert len(fitted["losses"]) == 7 and np.isfinite(fitted["losses"]).all()
    assert (table.delta.detach()[1:].abs() > 0).all()


def test_unknown_choice_is_refused():
    with pytest.raises(InputError, match="use one of unet, attention, lora, projection"):
        trained_parameters(tiny_random_model(0), "all")


def test_camera_learning_rate_zero_keeps_the_cameras(tmp_path):
    _, table, _ = trained_run(tmp_path, camera_learning_rate=0.0)
    assert float(table.delta.detach().abs().max()) == 0


def test_the_anchor_holds_cameras_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_step_loss", lambda model, table, *_: {"photos": table.delta.sum(), "regulariser": torch.zeros(())})  # they are drawn one way
    model, moved = tiny_random_model(0), []
    for anchor in (0.0, 1e4):
        table, config = CameraTable(dict(list(VIEWS.items())[:3])), BoothConfig(**FAST | {"steps": 30, "trained": "projection", "camera_learning_rate": 1e-2, "camera_anchor": anchor})
        fit(model, table, SimpleNamespace(count=3), config, tmp_path / f"{anchor}.pt")
        moved.append(table.delta.detach()[1:].abs().mean().item())
    assert 0 < moved[1] < 0.3 * moved[0]


def test_confident_cameras_stay_where_they_are():
    views = {n: VIEWS[n] for n in list(VIEWS)[:3]}
    assert freedom_of(dict.fromkeys(views, 0.9)) == pytest.approx(dict.fromkeys(views, 0.1))
    assert freedom_of({"000": 1.0, "001": 1.0}) == {"000": 1.0, "001": 1.0}  # outlines do not determine two cameras
    table = CameraTable(views, dict(zip(views, (1.0, 0.0, 0.5))))
    with torch.no_grad():
        table.delta += 0.1
    moved = [abs(c.polar_rad - v.polar_rad) for c, v in zip(table.cameras().values(), views.values())]
    assert moved == pytest.approx([0.1, 0.0, 0.05], abs=1e-9)
    table.values()[:, 0].sum().backward()
    assert table.delta.grad[1].abs().max() == 0 and table.delta.grad[0, 0] == 1


@pytest.mark.parametrize("moment, multiplane", ((1, 0), (2, 0), (5, 0), (7, 0), (5, 4)))
def test_resumed_run_equals_an_undisturbed_one(tmp_path, monkeypatch, moment, multiplane):
    model, table, fitted = trained_run(tmp_path / "a", multiplane=multiplane)
    trained_run(tmp_path / "b", moment, monkeypatch, multiplane=multiplane)
    assert (tmp_path / "b/checkpoint.pt").is_file() == (moment > 1)
    again, table_again, fitted_again = trained_run(tmp_path / "b", multiplane=multiplane)
    assert fitted_again["losses"] == fitted["losses"] and torch.equal(table.delta, table_again.delta)
    for (name, parameter), other in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(parameter, other), name


def test_a_signal_in_the_last_step_leaves_a_checkpoint(tmp_path, monkeypatch):
    class Stop:
        requested = False

        def leave(self):
            raise KeyboardInterrupt

    stop = Stop()
    monkeypatch.setattr(training, "finish_step_first", lambda: nullcontext(stop))
    model, config = tiny_random_model(0), BoothConfig(**FAST | {"regulariser": "none"})
    steps = total_steps(config, 3)

    def requested(step, loss, rate):
        stop.requested = step + 1 == steps

    with pytest.raises(KeyboardInterrupt):
        fit(model, CameraTable(dict(list(VIEWS.items())[:3])), pairs_of(model, 3), config, tmp_path / "checkpoint.pt", on_step=requested)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == steps


@pytest.mark.parametrize("part", ["photos", "regulariser"])
def test_a_loss_that_is_no_number_ends_training_before_the_step(tmp_path, monkeypatch, part):
    losses = training._step_loss
    monkeypatch.setattr(training, "_step_loss", lambda *arguments: (found := losses(*arguments)) | {part: found[part] * float("nan")})
    model = tiny_random_model(0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(InputError, match="diverged at step 0"):
        fit(model, CameraTable(dict(list(VIEWS.items())[:3])), pairs_of(model, 3), BoothConfig(**FAST), tmp_path / "checkpoint.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_every_regulariser_object_is_drawn(monkeypatch):
    item = choose_regularisers(Scene("T", "o", 3), None, "random", 1, 0)[0]
    model = tiny_random_model(0, multiplane=4)
    data = pairs_of(model, 3, regularisers=[item])
    few = len(data.regulariser_cameras[0])
    data.regulariser_cameras, data.regulariser_starts = data.regulariser_cameras * 40, np.zeros(41, int)
    drawn = set()
    monkeypatch.setattr(data, "_guess", lambda key, features, pose: drawn.add(key[1]) or torch.zeros(3, 32, 32))
    data.regulariser_batch(np.random.default_rng(0), 400)
    assert few > 1 and drawn == set(range(40))


def test_the_prior_is_preserved_by_a_loss_on_other_objects():
    model, table = tiny_random_model(0), CameraTable(dict(list(VIEWS.items())[:3]))
    regularisers = choose_regularisers(Scene("T", "o", 3), None, "random", 2, 0)
    found = {}
    for items, batch in ((regularisers, 2), (regularisers, 0), ([], 2)):
        losses = training._step_loss(model, table, pairs_of(model, 3, regularisers=items), BoothConfig(**FAST | {"regulariser_batch": batch}), 0)
        found[len(items), batch] = losses["regulariser"].item()
        assert losses["photos"].item() > 0
    assert found[2, 2] > 0 and found[2, 0] == found[0, 2] == 0


def test_training_ends_when_the_loss_has_settled():
    config = BoothConfig(**FAST | {"steps": 60, "learning_rate": 0.0, "camera_learning_rate": 0.0, "patience": 8})
    model = tiny_random_model(0)
    result = fit(model, CameraTable(dict(list(VIEWS.items())[:3])), pairs_of(model, 3), config, Path("none/checkpoint.pt"))
    assert 16 <= len(result["losses"]) < 60


@pytest.mark.parametrize("losses, patience, expected", (([1.0] * 8, 4, True), ([1.0] * 7, 4, False), ([1.0] * 8, 0, False), ([1.0] * 4 + [0.98] * 4, 4, False), ([1.0] * 4 + [0.995] * 4, 4, True)))
def test_a_loss_settles_when_it_falls_by_less_than_a_hundredth(losses, patience, expected):
    from sap3d.plateau import settled

    assert settled(losses, patience) is expected


def test_first_guesses_are_made_once_and_are_those_of_the_pair():
    model = tiny_random_model(0, multiplane=4)
    data = pairs_of(model, 3)
    rng = np.random.default_rng(0)
    assert {data.set_size(rng) for _ in range(50)} == {1, 2}
    for step in range(6):
        features, latents, target, condition, mirrored = data.photo_batch(rng, 4, step, 2)
        found = data.photo_guesses(target, condition, mirrored)
        pose = CameraTable({n: VIEWS[n] for n in list(VIEWS)[:3]}).pose(target[:, None], condition)
        plain = data.features[condition]
        expected = model.first_guess(plain, pose.detach())
        expected = torch.where(mirrored[:, None, None, None], expected.flip(-1), expected)
        assert torch.allclose(found, expected, atol=1e-4)
    assert len(data._guesses) == 3


def test_training_fits_the_photos(tmp_path):
    """The loss at fixed noise falls, so that gradients point the right way through the whole chain."""
    changes = dict(steps=60, learning_rate=3e-3, regulariser="none", regulariser_batch=0, drop_condition=0.0)
    _, _, fitted = trained_run(tmp_path, **changes)
    assert np.mean(fitted["losses"][-12:]) < 0.8 * np.mean(fitted["losses"][:12])


@pytest.mark.parametrize("content", (b"", b"half", pickle.dumps({"step": 1})))
def test_damaged_checkpoint(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint.pt: damaged checkpoint"):
        trained_run(tmp_path)


@pytest.mark.parametrize("error", (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")))
def test_too_little_memory_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch, error):
    def load(*_, **__):
        raise error

    (tmp_path / "checkpoint.pt").write_bytes(b"good")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        trained_run(tmp_path)


@pytest.mark.parametrize("native", (True, False))
def test_a_gpu_that_would_emulate_bf16_works_in_fp32(monkeypatch, native):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: seen.append((device, dtype, enabled)) or nullcontext())
    with training.compute_context("auto", torch.device("cuda"))():
        pass
    assert seen == [("cuda", torch.bfloat16, native)]


class Hostile:
    def __reduce__(self):
        return (open, ("stolen.txt", "w"))


def test_hostile_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Hostile()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged checkpoint"):
        trained_run(tmp_path)
    assert not (tmp_path / "stolen.txt").exists()


# --- novel views ------------------------------------------------------------------------------------------------------
def test_condition_features_are_computed_once(monkeypatch):
    model = tiny_random_model(0)
    calls = []
    original = model.encode_condition
    monkeypatch.setattr(model, "encode_condition", lambda images, cover: calls.append(len(images)) or original(images, cover))
    config = BoothConfig(**FAST | {"nvs_batch_size": 10})
    targets = protocol_test_cameras()
    found = novel_views(model, photos_over_white(PHOTOS, 64), VIEWS, targets, config)
    assert calls == [4] and list(found) == list(targets)
    assert found["083"].shape == (32, 32, 3) and all(0 <= v.min() and v.max() <= 1 for v in found.values())


# --- regularisers -----------------------------------------------------------------------------------------------------
def test_regularisers_resemble_the_photos():
    from sap3d.regularisers import list_regularisers, load_regularisers

    scene = Scene("T", "o", 1)
    uid = list_regularisers(scene.regulariser_dir)[7]
    itself = load_regularisers(scene.regulariser_dir, [uid], 128)[0]
    photos = torch.from_numpy(itself.over_white()[[3, 9]].copy()).permute(0, 3, 1, 2).float() / 255
    chosen = choose_regularisers(scene, photos, "similar", 5, 0)
    assert uid in [item.uid for item in chosen[:2]] and len(chosen) == 5
    assert choose_regularisers(scene, photos, "none", 5, 0) == []
    assert [i.uid for i in choose_regularisers(scene, photos, "random", 3, 1)] == [i.uid for i in choose_regularisers(scene, photos, "random", 3, 1)]
    with pytest.raises(InputError, match="similar"):
        choose_regularisers(scene, photos, "best", 5, 0)
    assert choose_regularisers(scene, photos, "similar", 1, 0, 256)[0].images.shape[1:] == (256, 256, 4)


def test_a_list_of_regularisers_beside_the_photos_decides(tmp_path):
    from sap3d.regularisers import list_regularisers

    scene = Scene("T", "o", 1, tmp_path)
    uids = list_regularisers(scene.regulariser_dir)[3:5]
    path = tmp_path / "dataset/data/train/T/o/query_class/query_match_paths.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.array(uids))
    assert [item.uid for item in choose_regularisers(scene, None, "similar", 8, 0)] == uids
    np.save(path, np.array(["nobody"]))
    with pytest.raises(InputError, match="nobody"):
        choose_regularisers(scene, None, "similar", 8, 0)
    np.save(path, np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="query_match_paths.npy"):
        choose_regularisers(scene, None, "similar", 8, 0)


def test_the_choice_by_similarity_can_be_kept_and_is_an_input_then(make_scene, monkeypatch, capsys):
    from camerabooth import regulariser

    scene, config = make_scene(2)
    config = BoothConfig(**vars(config) | {"regulariser": "similar"})
    monkeypatch.setenv("ROOT_DIR", str(scene.root))
    run.main(scene, config)
    monkeypatch.setattr(sys, "argv", ["regulariser", "--type", "T", "--object", "o", "--views", "2", "--count", str(config.regulariser_objects)])
    regulariser.main()
    kept = np.load(scene.regulariser_list).tolist()
    assert kept == read_json(scene.personal_dir / "regularisers.json") and len(kept) == config.regulariser_objects
    np.save(scene.regulariser_list, np.array(kept[::-1]))
    capsys.readouterr()
    run.main(scene, config)
    assert "skipped" not in capsys.readouterr().out and read_json(scene.personal_dir / "regularisers.json") == kept[::-1]


def test_a_list_that_counts_for_nothing_is_said(tmp_path, monkeypatch, capsys):
    scene = Scene("T", "o", 1, tmp_path)
    (tmp_path / "dataset/data/objaverse").mkdir(parents=True)  # in the place of the bundled objects
    matches = tmp_path / "dataset/data/train/T/o/query_class/query_match_paths.npy"
    matches.parent.mkdir(parents=True)
    np.save(matches, np.array(["a"]))
    assert choose_regularisers(scene, None, "similar", 8, 0) == []
    printed = capsys.readouterr().out
    assert "query_match_paths.npy counts for nothing" in printed and "objaverse holds no regulariser objects" in printed and printed.count("\n") == 1
    assert choose_regularisers(scene, None, "random", 8, 0) == [] and not capsys.readouterr().out  # which ignores the list anyway


# --- the stage on disk ------------------------------------------------------------------------------------------------
def test_stage(make_scene, capsys):
    scene, config = make_scene(3)
    assert run.main(scene, config) == scene.nvs_dir
    assert sorted(p.name for p in (scene.nvs_dir / "preds").iterdir()) == [f"{k:03d}.png" for k in range(84)]
    assert sorted(p.name for p in (scene.nvs_dir / "conds").iterdir()) == ["000.png", "001.png", "002.png"]
    refined = read_cameras(scene.refined_cameras)
    assert list(refined) == ["000", "001", "002"] and refined["000"].azimuth_deg == pytest.approx(0, abs=1e-6)
    changes = read_json(scene.personal_dir / "camera_changes.json")
    assert 0 < changes["001"]["rotation_change_deg"] < 5
    load_personal(scene.personal_dir, load_zero123(config.model))
    assert not (scene.personal_dir / "checkpoint.pt").exists()
    records = [read_json(folder / "record.json") for folder in (scene.personal_dir, scene.nvs_dir)]
    assert [r["config"]["steps"] for r in records] == [6, 6] and all(r["seconds"] > 0 for r in records)
    capsys.readouterr()

    before = file_hash(scene.nvs_dir), file_hash(scene.personal_dir)
    run.main(scene, config)
    assert capsys.readouterr().out.count("skipped") == 2 and before == (file_hash(scene.nvs_dir), file_hash(scene.personal_dir))
    run.main(scene, BoothConfig(**vars(config) | {"nvs_steps": 3}))  # a setting of the second half only
    assert capsys.readouterr().out.count("skipped") == 1 and file_hash(scene.personal_dir) == before[1] != file_hash(scene.nvs_dir)
    run.main(scene, BoothConfig(**vars(config) | {"steps": 7}))
    assert "skipped" not in capsys.readouterr().out
    for lost in (scene.personal_dir / "personal.safetensors", scene.nvs_dir / "preds" / "050.png"):  # outputs that others need are made again
        lost.unlink()
        run.main(scene, BoothConfig(**vars(config) | {"steps": 7}))
        assert lost.is_file()
    capsys.readouterr()
    tiny_random_model(1).save(Path(config.model), torch.float32)  # another base model in the same place
    run.main(scene, BoothConfig(**vars(config) | {"steps": 7}))
    assert "skipped" not in capsys.readouterr().out


def test_novel_views_are_made_from_the_refined_cameras_and_the_personal_model(make_scene, monkeypatch):
    """And from what stage 1 says of the object: confident cameras stay, photos are mirrored at its plane, which is passed on."""
    scene, config = make_scene(3)
    views, seen = {name: VIEWS[name] for name in list(VIEWS)[:3]}, {}

    def fitted(model, table, *_):
        with torch.no_grad():
            table.delta += 0.1
            model.cc_projection.linear.bias += 1
        return {"trained": ["cc_projection.linear.bias"], "losses": [1.0], "resumed_seconds": 0.0}

    def made(model, photos, cameras, targets, config, field=None):
        seen.update(bias=model.cc_projection.linear.bias.min().item(), photos=len(photos), cameras=cameras, field=field)
        return {name: np.ones((8, 8, 3), np.float32) for name in targets}

    monkeypatch.setattr(training, "fit", fitted)
    monkeypatch.setattr(nvs, "novel_views", made)
    monkeypatch.setattr(nvs, "photo_field", lambda model, images, cameras, config: ("field of", list(images), cameras))
    for trust, moved in ((True, 0.0), (False, 0.1)):
        write_cameras(scene.initial_cameras, views, mirror_plane_azimuth_rad=0.3, confidence={"000": 0.0, "001": 0.0, "002": 1.0})
        run.main(scene, BoothConfig(**vars(config) | {"trust_confident": trust, "regulariser": "none"}))
        refined = read_cameras(scene.refined_cameras)
        assert [refined[name].polar_rad - views[name].polar_rad for name in views] == pytest.approx([0.1, 0.1, moved], abs=1e-6)
        assert read_mirror_plane(scene.refined_cameras) == pytest.approx(0.3, abs=1e-5)
        assert {name: seen["cameras"][name] for name in views} == refined and {"000~", "001~", "002~"} < set(seen["cameras"]) and seen["photos"] == 6
        assert seen["field"] == ("field of", list(views), scene.refined_cameras) and seen["bias"] > 0.9


def test_other_photos_cameras_and_settings_make_the_stage_run_again(make_scene, monkeypatch):
    scene, config = make_scene(2)
    views, done = dict(list(VIEWS.items())[:2]), []

    def trained(scene, config, images, initial, *_):
        done.append("training")
        write_cameras(scene.refined_cameras, initial)
        (scene.personal_dir / "personal.safetensors").write_bytes(b"made")

    def rendered(scene, *_):
        done.append("views")
        (scene.nvs_dir / "preds").mkdir(parents=True, exist_ok=True)
        for name in protocol_test_cameras():
            (scene.nvs_dir / "preds" / f"{name}.png").write_bytes(b"made")

    def runs(changed=None) -> list[str]:
        done.clear()
        run.main(scene, changed or config)
        return list(done)

    monkeypatch.setattr(run, "train", trained)
    monkeypatch.setattr(run, "render", rendered)
    assert runs() == ["training", "views"] and runs() == []
    for change in (dict(seed=1), dict(camera_anchor=2.0), dict(trust_confident=False)):
        assert runs(BoothConfig(**vars(config) | change)) == runs() == ["training", "views"], change
    write_cameras(scene.refined_cameras, {name: camera.with_azimuth_offset(0.2) for name, camera in views.items()})
    assert runs() == ["views"]
    (scene.personal_dir / "personal.safetensors").write_bytes(b"other")
    assert runs() == ["views"] and runs() == []
    write_cameras(scene.initial_cameras, {"000": VIEWS["000"], "001": VIEWS["001"].with_azimuth_offset(0.2)})
    assert runs() == ["training", "views"]
    image = scene.train_dir / "images" / "001.png"
    Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
    assert runs() == ["training", "views"] and runs() == []


def test_what_does_not_change_training_is_known():
    assert set(vars(BoothConfig())) - set(run._TRAINING) == {
        "condition_strategy", "ddim_eta", "device", "field_steps", "gradient_checkpointing", "guidance_scale", "nvs_batch_size", "nvs_steps", "offload", "output_size", "symmetry", "vae_slicing",
    }  # fmt: skip


def test_views_at_any_cameras_are_those_of_the_stage(make_scene, tmp_path, monkeypatch, capsys):
    """From stage 2's outputs; a camera of the protocol gives the stage's own view, where it has the same place in the list."""
    scene, config = make_scene(2)
    run.main(scene, config)
    monkeypatch.setenv("ROOT_DIR", str(scene.root))
    settings = [f"model={config.model}", f"nvs_steps={config.nvs_steps}", f"guidance_scale={config.guidance_scale}", f"output_size={config.output_size}"]
    common = ["view", "--type", "T", "--object", "o", "--views", "2"]
    monkeypatch.setattr(sys, "argv", [*common, "--elevation", "45", "--azimuth", "0,30", *settings])
    view.main()
    first = scene.results_dir / "views" / "000.png"
    stage = load_rgb(scene.nvs_dir / "preds" / "000.png")
    assert np.abs(load_rgb(first) - stage).max() <= 1 / 255 + 1e-6  # batches of other sizes: rounding
    assert np.abs(load_rgb(first.with_name("001.png")) - stage).max() > 0.02 and (first.parent / "contact_sheet.png").is_file()

    write_cameras(tmp_path / "mine.yaml", {"top": Camera.from_degrees(80, 10, 1.4), "side": Camera.from_degrees(0, 200)})
    monkeypatch.setattr(sys, "argv", [*common, "--cameras", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out"), *settings])
    view.main()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "side.png", "top.png"]


@pytest.mark.parametrize("elevation, azimuth, radius", [([0.0, 1.0], [0.0, 1.0, 2.0], [1.5]), ([95.0], [0.0], [1.5]), ([0.0], [float("nan")], [1.5]), ([0.0], [0.0], [0.1])])
def test_impossible_views_are_refused(elevation, azimuth, radius):
    with pytest.raises(InputError):
        view.cameras_at(elevation, azimuth, radius)


def test_one_view_uses_the_base_model(make_scene, capsys):
    scene, config = make_scene(1)
    run.main(scene, config)
    assert "base model" in capsys.readouterr().out
    assert not (scene.personal_dir / "personal.safetensors").exists()
    assert read_cameras(scene.refined_cameras)["000"].center() == pytest.approx(VIEWS["000"].center(), abs=1e-5)
    assert len(list((scene.nvs_dir / "preds").iterdir())) == 84


def test_stage_needs_the_cameras_of_stage_1(make_scene):
    scene, config = make_scene(3)
    write_cameras(scene.initial_cameras, {"000": VIEWS["000"]})
    with pytest.raises(InputError, match="no camera for view 001"):
        run.main(scene, config)
    scene.initial_cameras.unlink()
    with pytest.raises(InputError, match="no such camera file"):
        run.main(scene, config)


def test_checkpoint_of_other_settings_is_not_resumed(make_scene, monkeypatch):
    """A kill, then another call: the outputs must be those of the second call's settings and photos alone."""
    scene, config = make_scene(3)
    wanted = BoothConfig(**vars(config) | {"learning_rate": 3e-4})
    undisturbed, _ = make_scene(3, "other")
    run.main(undisturbed, wanted)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)

        def update(self, step, note=""):
            if step == 5:
                raise KeyboardInterrupt

        patch.setattr(training.Progress, "update", update)
        with pytest.raises(KeyboardInterrupt):
            run.main(scene, config)
    run.main(scene, wanted)
    assert file_hash(scene.personal_dir / "personal.safetensors") == file_hash(undisturbed.personal_dir / "personal.safetensors")
    assert file_hash(scene.nvs_dir / "preds") == file_hash(undisturbed.nvs_dir / "preds")
