"""The first guess: what is projected where, opaque planes, gradients, and what the diffusion model does with it."""

import copy

import numpy as np
import pytest
import torch

from camerabooth.prior.calibrate import measure_gain
from sap3d.cameras import Camera, pose_condition
from sap3d.errors import InputError
from sap3d.zero123 import ConditionFeatures, load_zero123, tiny_random_model
from sap3d.zero123.multiplane import MultiplaneRenderer, shuffle, unshuffle
from sap3d.zero123.sampler import sample_views
from sap3d.zero123.sweep import pixel_centres, target_planes_in_condition, target_points_in_condition

CAMERAS = [Camera(1.2, 0.4, 1.5), Camera(1.4, 1.9, 1.6), Camera(1.0, 3.0, 1.4)]


def renderer(seed=0, planes=16):
    torch.manual_seed(seed)
    return MultiplaneRenderer(planes=planes, cells=16, features=4, widths=(8, 12, 16), condition_size=64, latent_channels=12).eval()


def poses(targets, conditions):
    return torch.tensor(np.stack([[pose_condition(t, c) for c in conditions] for t in targets]), dtype=torch.float32)


def ball(camera, size=64, radius=0.35, places=(-1, 1)):
    """Ink and coverage (4, S, S) of a ball about the origin: what of it lies at x > 0 is red, the rest blue (in ink, so complementary)."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = torch.meshgrid(line, -line, indexing="xy")
    direction = torch.stack([x * np.tan(camera.fov_rad / 2), y * np.tan(camera.fov_rad / 2), -torch.ones_like(x)], -1)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    pose = camera.camera_from_world()
    direction = direction.double() @ torch.from_numpy(pose[:, :3])
    center = torch.from_numpy(camera.center())
    half = direction @ center
    inside = half.square() - center.square().sum() + radius**2
    hit = center - (half + inside.clamp_min(0).sqrt())[..., None] * direction
    cover = (inside > 0).double()
    side = (hit[..., 0] > 0).double()
    return torch.stack([cover * (1 - side), cover, cover * side, cover]).float()


def test_shuffle_inverts_unshuffle():
    planes = torch.rand(2, 3, 4, 8, 6)
    assert torch.equal(shuffle(unshuffle(planes)), planes)
    assert torch.equal(unshuffle(planes)[:, :1, :, 0, 0], planes[:, :1, :, 0, 0])


def test_untrained_it_is_the_visual_hull_in_the_photos_colours():
    """Before training, opacity is little more than coverage in all photos: the outline of a ball is right, and from a photo's place
    so are its colours."""
    target = Camera(1.25, 0.5, 1.5)
    ink = torch.stack([ball(camera) for camera in CAMERAS])[None]
    with torch.no_grad():
        guess = renderer(planes=32)(ink, poses([target], CAMERAS))[0]
    truth = ball(target)
    assert float((guess[3] - truth[3]).abs().mean()) < 0.15  # 32 planes of nearly nothing add up to 0.12
    assert float(((guess[3] > 0.5) == (truth[3] > 0.5)).float().mean()) > 0.95
    moved = ball(Camera(1.25, 0.5 + np.pi / 2, 1.5))
    assert float((guess - truth).square().mean()) < 0.6 * float((guess - moved).square().mean())


def test_empty_photos_give_an_empty_view():
    with torch.no_grad():
        guess = renderer()(torch.zeros(1, 2, 4, 64, 64), poses(CAMERAS[2:], CAMERAS[:2]))
    assert float(guess[:, :3].abs().max()) < 0.2 and float(guess[:, 3].max()) < 0.2


def test_the_order_of_the_photos_does_not_matter():
    ink = torch.stack([ball(camera) for camera in CAMERAS])[None]
    pose, model = poses([Camera(1.1, 1.0)], CAMERAS), renderer()
    with torch.no_grad():
        guess, again = model(ink, pose), model(ink[:, [2, 0, 1]], pose[:, [2, 0, 1]])
        other_size = model(ink, pose, 32)
    assert torch.allclose(guess, again, atol=1e-5)
    assert float((torch.nn.functional.avg_pool2d(guess, 2) - other_size).abs().mean()) < 0.02


def test_learns_an_object_and_has_gradients_in_the_poses():
    """Fitted to one target from two photos, the error falls far below that of the hull."""
    model, target = renderer(), Camera(1.25, 1.0, 1.5)
    ink, truth = torch.stack([ball(c) for c in CAMERAS[:2]])[None], ball(target)[None]
    pose = poses([target], CAMERAS[:2]).requires_grad_()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    errors = []
    for _ in range(30):
        error = (model(ink, pose) - truth).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert np.mean(errors[-3:]) < 0.5 * errors[0]
    assert bool((pose.grad[..., :6].abs() > 0).all())


@pytest.mark.parametrize("count", [1, 3])
def test_reading_the_photos_only_where_it_matters_changes_nothing_to_speak_of(count):
    """Without gradients, large views are composited sparsely; the dense way is the reference."""
    model, target = renderer(planes=32), Camera(1.25, 1.0, 1.5)
    ink = torch.stack([ball(c, size=96) for c in CAMERAS[:count]])[None]
    pose, truth = poses([target], CAMERAS[:count]), ball(target, size=96)[None]
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):  # so that it is not all haze
        optimiser.zero_grad()
        (model(ink, pose, 32) - torch.nn.functional.avg_pool2d(truth, 3)).square().mean().backward()
        optimiser.step()
    dense = model(ink, pose, 96).detach()
    with torch.no_grad():
        sparse = model(ink, pose, 96)
    error = (sparse - dense).abs()
    assert float(error.mean()) < 2e-3 and float(error.max()) < 0.05
    assert float((dense - truth).abs().mean()) > 5 * float(error.mean())  # far smaller than what the guess is wrong by


def test_points_are_projected_as_planes_are():
    pose, offsets, size = poses(CAMERAS[2:], CAMERAS[:2])[0], torch.linspace(-0.5, 0.5, 5), 6
    where = target_planes_in_condition(pose, offsets, size)
    plane, row, column = torch.meshgrid(torch.arange(5), torch.arange(size), torch.arange(size), indexing="ij")
    line = pixel_centres(size, pose)
    points = target_points_in_condition(pose, offsets[plane.flatten()], line[column.flatten()], line[row.flatten()])
    assert torch.allclose(points, where.flatten(1, 3), atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return tiny_random_model(0, multiplane=8)


def features_of(model, count=2, seed=0):
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return model.encode_condition(images, (images.mean(1, keepdim=True) > 0.4).float())


def test_a_new_renderer_makes_the_model_return_the_guess(model):
    """The U-Net's last layer starts at 0: at the highest noise the prediction is the guess itself, and nothing where it is dropped."""
    features, pose = features_of(model), poses(CAMERAS[2:], CAMERAS[:2])
    sets = ConditionFeatures(features.concat[None], features.tokens[None])
    guess = model.first_guess(sets, pose)
    t = torch.tensor([model.num_timesteps - 1])
    noisy = torch.randn(1, model.latent_channels, model.latent_size, model.latent_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        clean = model.predicted_original(model.predict(noisy, t, sets, pose), noisy, t)
        dropped = model.predicted_original(model.predict(noisy, t, sets, pose, torch.zeros(1), torch.zeros(1)), noisy, t)
    assert torch.allclose(clean, model.encode_target(guess), atol=2e-3)
    assert float(dropped.abs().max()) < 2e-3
    assert torch.allclose(model.decode_beside(clean, guess), guess, atol=5e-3)  # also what the latents cannot hold


def test_little_noise_is_removed_by_the_guess_s_variance(model):
    """The linear guess is the posterior mean of a normal of the guess's mean and residual variance."""
    model.multiplane.residual_variance.fill_(0.01)
    features, pose = features_of(model), poses(CAMERAS[2:], CAMERAS[:2])
    sets = ConditionFeatures(features.concat[None], features.tokens[None])
    mean = model.encode_target(model.first_guess(sets, pose))
    t = torch.tensor([300])
    alpha = float(model.alphas_cumprod[300])
    noisy = alpha**0.5 * mean + torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        clean = model.predicted_original(model.predict(noisy, t, sets, pose), noisy, t)
    weight_prior, weight_seen = 1 / 0.01, alpha / (1 - alpha)
    expected = (weight_prior * mean + weight_seen * noisy / alpha**0.5) / (weight_prior + weight_seen)
    assert torch.allclose(clean, expected, atol=1e-4)
    model.multiplane.residual_variance.fill_(1.0)


class RandomViews:
    """Batches as camerabooth.prior.data draws them: two groups of two targets from two conditions."""

    def batch(self, step):
        generator = torch.Generator().manual_seed(100 + step)
        views = torch.nn.functional.interpolate(torch.rand(2, 4 * 4, 5, 5, generator=generator), (32, 32), mode="bicubic").clamp(0, 1).view(2, 4, 4, 32, 32)
        return {"condition": views[:, :2], "target": views[:, 2:], "pose": poses(CAMERAS[:2], CAMERAS[1:]).expand(2, -1, -1, -1)}


def test_the_measured_gain_takes_back_noise_and_keeps_what_is_right(tmp_path):
    """A U-Net whose output is what is left of the target plus noise of the same power is believed by half; one of noise alone not at all."""
    model, source = tiny_random_model(0, multiplane=8), RandomViews()
    assert bool((model.correction_gain == 1).all())
    state = {}

    def denoise(noisy, t, tokens, concat):
        return state["output"](noisy, t) + model.linear_guess(noisy, t, concat)

    plain_add, plain_target = model.add_noise, model.training_target
    model._denoise = denoise
    model.add_noise = lambda latents, noise, t: state.update(latents=latents, noise=noise) or plain_add(latents, noise, t)
    prepared = model.conditions

    def remember(*arguments):
        state["concat"] = prepared(*arguments)[1]
        return prepared(*arguments)

    model.conditions = remember

    def left(noisy, t):
        return plain_target(state["latents"], state["noise"], t) - model.linear_guess(noisy, t, state["concat"])

    def other(like):
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(int(1e6 * float(like.abs().sum())) % 2**31)) * like.square().mean((2, 3), keepdim=True).sqrt()

    for output, expected in ((left, 1.0), (lambda n, t: left(n, t) + other(left(n, t)), 0.5), (lambda n, t: 0.3 * other(left(n, t)), 0.0)):
        state["output"] = output
        measure_gain(model, source, batches=4)
        assert float((model.correction_gain.mean() - expected).abs()) < 0.1, expected
    del model._denoise, model.add_noise, model.conditions
    model.correction_gain[:, ::2] = 0.5
    model.save(tmp_path / "model", torch.float32)
    assert torch.equal(load_zero123(tmp_path / "model").correction_gain, model.correction_gain)


def test_the_gain_damps_the_correction_alone(model):
    """With factors of 0 the prediction is the guess again, whatever the U-Net says; where the condition is dropped, they do not count."""
    features, pose = features_of(model), poses(CAMERAS[2:], CAMERAS[:2])
    sets = ConditionFeatures(features.concat[None], features.tokens[None])
    t = torch.tensor([model.num_timesteps - 1])
    noisy = torch.randn(1, model.latent_channels, model.latent_size, model.latent_size, generator=torch.Generator().manual_seed(1))
    changed = copy.deepcopy(model)
    torch.nn.init.normal_(changed.unet.conv_out.weight, std=0.1)

    def clean(keep, gain):
        changed.correction_gain.fill_(gain)
        with torch.no_grad():
            return changed.predicted_original(changed.predict(noisy, t, sets, pose, torch.tensor([keep]), torch.tensor([keep])), noisy, t)

    assert torch.allclose(clean(1.0, 0.0), model.encode_target(model.first_guess(sets, pose)), atol=2e-3)
    assert float((clean(1.0, 1.0) - clean(1.0, 0.0)).abs().max()) > 0.01
    assert torch.equal(clean(0.0, 1.0), clean(0.0, 0.0))


def test_sampling_saving_and_loading(model, tmp_path):
    features = features_of(model)
    views = sample_views(model, features, CAMERAS[:2], CAMERAS, steps=2)
    assert views.shape == (3, 3, 32, 32)
    model.save(tmp_path / "model", torch.float32)
    again = load_zero123(tmp_path / "model")
    assert torch.equal(sample_views(again, features, CAMERAS[:2], CAMERAS, steps=2), views)
    assert again.unet.config.in_channels == model.unet.config.in_channels


def test_views_have_the_photos_size_where_those_are_larger(model):
    """The guess shows what the photos have of detail; the diffusion model works at its own size and changes it there."""
    images = torch.nn.functional.interpolate(torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(3)), (64, 64), mode="bicubic").clamp(0, 1)
    large = model.encode_condition(images, torch.ones(2, 1, 64, 64))
    small = model.encode_condition(torch.nn.functional.avg_pool2d(images, 2), torch.ones(2, 1, 32, 32))
    assert large.photos.shape[-1] == 64 and small.photos is None and large.concat.shape == small.concat.shape
    views, halves = (sample_views(model, features, CAMERAS[:2], CAMERAS[2:], steps=1) for features in (large, small))
    assert views.shape[-1] == 64 and halves.shape[-1] == 32
    assert float((torch.nn.functional.avg_pool2d(views, 2) - halves).abs().mean()) < 0.02
    assert model.first_guess(large[torch.tensor([[0, 1]])], poses(CAMERAS[2:], CAMERAS[:2])).shape[-1] == 32


def test_white_far_from_the_guess_stays_white(model):
    guess = torch.ones(1, 3, 64, 64)
    guess[:, :, 24:40, 24:40] = 0.3
    guess[:, :, :10] = 0.95  # haze is no object
    latents = model.encode_target(guess) + torch.randn(1, model.latent_channels, model.latent_size, model.latent_size, generator=torch.Generator().manual_seed(4))
    image = model.decode_beside(latents, guess)
    reach = 64 // 64
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[24 - reach : 40 + reach, 24 - reach : 40 + reach] = False
    assert bool((image == guess)[0, :, outside].all())
    assert float((image - guess)[0, :, 24:40, 24:40].abs().max()) > 0.1


# --- weights in 8 bits ------------------------------------------------------------------------------------------------
def test_weights_in_8_bits(model, tmp_path):
    model.save(tmp_path / "whole", torch.float32)
    model.save(tmp_path / "small", int8=True)
    size = lambda folder: sum(f.stat().st_size for f in (tmp_path / folder / "unet").iterdir())  # noqa: E731
    assert size("small") < 0.3 * size("whole")
    again = load_zero123(tmp_path / "small")
    for name, tensor in model.unet.state_dict().items():
        if tensor.ndim > 1:
            largest = tensor.flatten(1).abs().amax(1).view(-1, *[1] * (tensor.ndim - 1))
            assert bool(((again.unet.state_dict()[name] - tensor).abs() <= largest / 254 + 1e-7).all()), name


def test_8_bit_weights_that_do_not_fit_are_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save(tmp_path / "model", int8=True)
    file = next((tmp_path / "model" / "unet").glob("int8-*"))
    tensors = load_file(file)
    for change, expected in (
        (lambda t: t.pop("conv_in.bias"), "missing tensor conv_in.bias"),
        (lambda t: t.update(other=torch.zeros(1)), "unexpected tensor other"),
        (lambda t: t.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias has shape"),
        (lambda t: t.update({"conv_in.weight.int8_scale": torch.zeros(3)}), "conv_in.weight: scales"),
    ):
        damaged = dict(tensors)
        change(damaged)
        save_file(damaged, file)
        with pytest.raises(InputError, match=expected):
            load_zero123(tmp_path / "model")
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        load_zero123(tmp_path / "model")
    file.unlink()
    with pytest.raises(InputError, match="unet"):
        load_zero123(tmp_path / "model")
