"""Zero-1-to-3 on a very small random model: conditioning, diffusion arithmetic, sampling, and strict loading."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sap3d.cameras import FOV_RAD, Camera, pose_condition
from sap3d.errors import InputError
from sap3d.zero123 import Zero123, load_personal, load_zero123, save_personal, tiny_random_model
from sap3d.zero123.autoencoder import PatchPCAAutoencoder
from sap3d.zero123.model import CameraProjection, at_protocol_fov
from sap3d.zero123.personal import FILE, weights_hash
from sap3d.zero123.sampler import condition_probabilities, ddim_step, sample_views, sampling_timesteps

TARGETS = [Camera.from_degrees(e, a) for e, a in ((0, 0), (30, 100), (-20, 200), (10, 300), (45, 179))]
CONDITIONS = [Camera.from_degrees(0, 0), Camera.from_degrees(30, 90), Camera.from_degrees(0, 270, 1.7)]


def poses(targets, conditions):
    return torch.tensor(np.array([pose_condition(t, c) for t, c in zip(targets, conditions)]), dtype=torch.float32)


POSES = poses([Camera.from_degrees(10, 40)] * 2, [Camera.from_degrees(15, 0)] * 2)
OTHER_POSES = poses([Camera.from_degrees(30, -50, 1.7)] * 2, [Camera.from_degrees(5, 0)] * 2)


def smooth_images(count, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def model():
    return tiny_random_model(0)


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        return model.encode_condition(smooth_images(3, 64))


def published_form() -> Zero123:
    """The parts of the published model (AutoencoderKL, CLIP on pixels, one pooled token, epsilon) at a very small size."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4)
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, projection_dim=24)
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    return Zero123(unet, vae, clip, CameraProjection(24, 24, "pooled"), scheduler).eval()


# --- the closed-form autoencoder --------------------------------------------------------------------------------------
def test_patch_autoencoder_round_trip():
    train, held_out = smooth_images(32) * 2 - 1, smooth_images(4, seed=9) * 2 - 1
    errors = []
    for channels in (3, 12, 48):
        vae = PatchPCAAutoencoder(patch_size=4, latent_channels=channels).fit(train)
        latents = vae.encode(held_out).latent_dist.mode()
        assert latents.shape == (4, channels, 8, 8)
        errors.append(float((vae.decode(latents).sample - held_out).square().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[1] < 1e-3 and errors[2] < 1e-9  # all components: exact


def test_patch_autoencoder_scales_its_latents():
    train = smooth_images(32) * 2 - 1
    vae = PatchPCAAutoencoder().fit(train)
    again = PatchPCAAutoencoder().fit(train.flip(0))
    latents = vae.encode(train).latent_dist.mode()
    assert float(latents.square().mean().sqrt()) == pytest.approx(0.5, abs=0.01) and latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(latents.var((0, 2, 3)), vae.latent_variance, rtol=0.02)
    assert torch.allclose(again.encode(train).latent_dist.mode(), latents, atol=1e-3)  # a refit gives the same signs
    assert torch.allclose(vae.basis @ vae.basis.T, torch.eye(12), atol=1e-4)
    with pytest.raises(ValueError, match="at most 48"):
        PatchPCAAutoencoder(4, 49)


def test_encoding_targets_is_differentiable(model):
    images = smooth_images(1).requires_grad_(True)
    model.encode_target(images).square().sum().backward()
    assert (images.grad.abs().amax(1) > 0).float().mean() > 0.9  # of all pixels
    assert torch.equal(model.encode_target(smooth_images(2, 64)), model.encode_target(torch.nn.functional.interpolate(smooth_images(2, 64), (32, 32), mode="bilinear", antialias=True)))


def test_wrong_shapes_raise(model, features):
    noisy, t = torch.zeros(2, 12, 8, 8), torch.zeros(2, dtype=torch.long)
    for call in (
        lambda: model.encode_target(torch.zeros(3, 32, 32)),
        lambda: model.encode_condition(torch.zeros(1, 4, 64, 64)),
        lambda: model.predict(noisy, t, features[[0, 1]], torch.zeros(1, 8)),
        lambda: model.predict(noisy, t, features[[0, 1]], torch.zeros(2, 4)),
        lambda: model.predict(noisy, t, features[[[0, 1], [1, 2]]], torch.zeros(2, 3, 8)),
    ):
        with pytest.raises(ValueError):
            call()


# --- conditioning -----------------------------------------------------------------------------------------------------
def test_camera_projection_starts_as_the_identity_on_tokens():
    projection = CameraProjection(8, 8)
    tokens = torch.randn(2, 5, 8)
    assert torch.equal(projection(tokens, torch.zeros(2, 8)), tokens)
    tangent = np.tan(FOV_RAD / 2)
    moved = projection(tokens, torch.tensor([[0.1, 0.2, 0.3, 0.4, 1.0, 1.5, tangent, tangent]] * 2)) - tokens
    assert torch.allclose(moved[0], projection.linear.weight[:, 8:] @ torch.tensor([0.1, 0.2, 0.3, 0.4]) + torch.zeros(5, 8), atol=1e-6)
    with pytest.raises(ValueError):
        CameraProjection(tokens="all")


def test_the_published_condition_counts_radii_at_its_own_field_of_view():
    """A camera that shows the object as large as another from the same side is at the same place to a model that has seen one field of view."""
    condition = Camera.from_degrees(10, 40)
    for fov_deg in (25, 44.6, 60):
        tangent = np.tan(np.deg2rad(fov_deg) / 2)
        same = Camera.from_degrees(10, 40, condition.radius * np.tan(FOV_RAD / 2) / tangent, fov_deg)
        for pose in poses([same, condition], [condition, same]):
            assert abs(float(pose[3])) > 0.1 and at_protocol_fov(pose).tolist() == pytest.approx([0, 0, 1, 0], abs=1e-6)
    for target in TARGETS:
        pose = poses([target], CONDITIONS[2:])
        torch.testing.assert_close(at_protocol_fov(pose), pose[:, :4], atol=1e-6, rtol=0)


@torch.no_grad()
def test_dropping_conditions(model, features):
    noisy, t, pose = torch.randn(2, 12, 8, 8), torch.tensor([100, 900]), POSES
    other = OTHER_POSES
    on, off = torch.ones(2), torch.zeros(2)
    predict = lambda which, pose, tokens, concat: model.predict(noisy, t, features[which], pose, tokens, concat)  # noqa: E731
    assert torch.allclose(predict([0, 0], pose, off, off), predict([1, 2], other, off, off), atol=1e-5)  # nothing of the condition is left
    for tokens, concat in ((on, on), (on, off), (off, on)):
        assert not torch.allclose(predict([0, 0], pose, tokens, concat), predict([1, 2], pose, tokens, concat), atol=1e-4)
    assert not torch.allclose(predict([0, 0], pose, on, off), predict([0, 0], other, on, off), atol=1e-5)  # the pose comes with the tokens
    assert not torch.allclose(predict([0, 0], pose, off, on), predict([0, 0], other, off, on), atol=1e-5)  # and with the sweep
    plain = tiny_random_model(0, planes=0)
    concatenated = plain.encode_condition(smooth_images(3, 64))[[0, 0]]
    assert torch.allclose(plain.predict(noisy, t, concatenated, pose, off, on), plain.predict(noisy, t, concatenated, other, off, on), atol=1e-5)


@torch.no_grad()
def test_guidance_extrapolates_from_the_unconditional_prediction(model, features):
    noisy, t, pose = torch.randn(2, 12, 8, 8), torch.tensor([100, 900]), POSES
    conditional = model.predict(noisy, t, features[[0, 1]], pose)
    unconditional = model.predict(noisy, t, features[[0, 1]], pose, torch.zeros(2), torch.zeros(2))
    for scale in (0.0, 1.0, 3.0, 7.5):
        expected = unconditional + scale * (conditional - unconditional)
        assert torch.allclose(model.guided(noisy, t, *model.conditions(features[[0, 1]], pose), scale), expected, atol=1e-4)


@torch.no_grad()
def test_published_form_goes_through_the_same_code(tmp_path):
    model = published_form()
    assert (model.image_size, model.latent_size, model.latent_channels, model.num_timesteps) == (64, 8, 4, 1000)
    images = smooth_images(2, 64)
    condition = model.encode_condition(images)
    assert condition.tokens.shape == (2, 1, 24)  # the single cross-attention token
    mode = model.vae.encode(images * 2 - 1).latent_dist.mode()
    assert torch.allclose(condition.concat, mode) and torch.allclose(model.encode_target(images), 0.18215 * mode)  # only targets are scaled
    assert model.alphas_cumprod[0] == pytest.approx(1 - 0.00085) and model.alphas_cumprod[-1] == pytest.approx(0.0047, abs=1e-4)
    views = sample_views(model, condition, CONDITIONS[:2], TARGETS[:2], steps=2)
    assert views.shape == (2, 3, 64, 64) and torch.isfinite(views).all()
    model.save(tmp_path / "m", torch.float32)
    again = load_zero123(tmp_path / "m")
    assert torch.equal(sample_views(again, again.encode_condition(images), CONDITIONS[:2], TARGETS[:2], steps=2), views)


# --- diffusion arithmetic ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ("epsilon", "v_prediction"))
def test_targets_invert(model, kind):
    other = tiny_random_model(0)
    other.scheduler.register_to_config(prediction_type=kind)
    if kind == "epsilon":
        other.alphas_cumprod.copy_(published_form().alphas_cumprod)
    x0, noise, t = torch.randn(4, 12, 8, 8), torch.randn(4, 12, 8, 8), torch.tensor([0, 300, 700, 999])
    noisy = other.add_noise(x0, noise, t)
    target = other.training_target(x0, noise, t)
    assert torch.allclose(other.predicted_original(target, noisy, t), x0, atol=1e-3)
    assert torch.allclose(other.predicted_noise(target, noisy, t), noise, atol=1e-3)
    assert (other.snr(t).diff() < 0).all()


def test_linear_guess_leaves_nothing_that_a_line_could_find(model):
    generator = torch.Generator().manual_seed(0)
    variance = model.vae.latent_variance[:, None, None]
    x0 = torch.randn(20000, 12, 1, 1, generator=generator) * variance.sqrt()
    noise = torch.randn(x0.shape, generator=generator)
    for step in (0, 200, 600, 999):
        t = torch.full((len(x0),), step)
        noisy = model.add_noise(x0, noise, t)
        left = model.training_target(x0, noise, t) - model.linear_guess(noisy, t)
        slope = (left * noisy).mean(0) / noisy.square().mean(0)
        assert slope.abs().max() < 0.05 and (left.square().mean(0) <= 1.05 * model.training_target(x0, noise, t).square().mean(0)).all()


def test_small_model_ends_in_pure_noise(model):
    assert float(model.alphas_cumprod[-1]) < 1e-6 and int(sampling_timesteps(model, 10)[0]) == 999  # zero terminal SNR, trailing spacing
    steps = sampling_timesteps(model, 10)
    assert len(steps) == 10 and (steps.diff() < 0).all()


# --- sampling ---------------------------------------------------------------------------------------------------------
def test_condition_probabilities():
    for strategy in ("nearest", "near", "random", "first"):
        p = condition_probabilities(TARGETS, CONDITIONS, strategy)
        assert p.shape == (5, 3) and p.sum(1) == pytest.approx(np.ones(5)) and (p >= 0).all()
    assert condition_probabilities(TARGETS, CONDITIONS, "nearest").argmax(1).tolist() == [0, 1, 2, 2, 1]
    assert condition_probabilities([Camera.from_degrees(0, 350)], CONDITIONS, "nearest").argmax() == 0  # through the wrap-around
    assert condition_probabilities(TARGETS, CONDITIONS, "near").argmax(1).tolist() == [0, 1, 2, 2, 1]
    assert (condition_probabilities(TARGETS, CONDITIONS, "first")[:, 0] == 1).all()
    with pytest.raises(ValueError):
        condition_probabilities(TARGETS, CONDITIONS, "best")


def test_batch_size_does_not_change_the_views(model, features):
    views = [sample_views(model, features, CONDITIONS, TARGETS, steps=3, batch_size=size, seed=5) for size in (1, 2, 5, 28)]
    for other in views[1:]:
        assert torch.allclose(views[0], other, atol=1e-3)
    assert torch.equal(views[2], views[3])
    again = sample_views(model, features, CONDITIONS, TARGETS, steps=3, seed=6)
    assert not torch.allclose(views[0], again, atol=1e-2)


def recorded_conditions(model, monkeypatch):
    seen, original = [], model.conditions
    monkeypatch.setattr(model, "conditions", lambda f, pose, guess: seen.append((f, pose)) or original(f, pose, guess))
    return seen


def test_sampler_gives_the_pose_of_target_minus_condition(model, features, monkeypatch):
    seen = recorded_conditions(model, monkeypatch)
    sample_views(model, features, CONDITIONS, TARGETS, steps=4, strategy="near", seed=1)
    assert len(seen) == 4
    used = set()
    for chosen, found in seen:
        for row, pose in enumerate(found):
            which = next(k for k in range(3) if torch.equal(chosen.concat[row, 0], features.concat[k]))
            used.add(which)
            assert pose[0].numpy() == pytest.approx(pose_condition(TARGETS[row], CONDITIONS[which]), abs=1e-6)
    assert len(used) > 1  # stochastic conditioning


def test_all_photos_condition_every_step_and_are_prepared_once(model, features, monkeypatch):
    seen = recorded_conditions(model, monkeypatch)
    sample_views(model, features, CONDITIONS, TARGETS, steps=4, batch_size=5)
    assert len(seen) == 1 and torch.equal(seen[0][0].concat[4], features.concat)
    assert seen[0][1][4].numpy() == pytest.approx(np.stack([pose_condition(TARGETS[4], c) for c in CONDITIONS]), abs=1e-6)
    with pytest.raises(InputError, match="plane sweep"):
        sample_views(published_form(), features, CONDITIONS, TARGETS, strategy="all")


@pytest.mark.parametrize("eta", (0.0, 0.4, 1.0))
@torch.no_grad()
def test_a_step_is_that_of_the_scheduler_s_own_sampler(eta):
    model = published_form()
    timesteps = sampling_timesteps(model, 8)
    generator = torch.Generator().manual_seed(0)
    latents, out, fresh = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    model.guided = lambda *_: out
    for step in (0, 5, 7):
        expected = model.scheduler.step(out, timesteps[step], latents, eta=eta, variance_noise=fresh if eta else None).prev_sample
        torch.testing.assert_close(ddim_step(model, latents, timesteps, step, None, None, 1.0, eta, fresh), expected, atol=1e-5, rtol=1e-5)


def test_fresh_noise_depends_on_seed_and_view_alone(model, features):
    views = sample_views(model, features, CONDITIONS, TARGETS, steps=3, seed=5, eta=1.0)
    for size in (1, 2):
        assert torch.allclose(views, sample_views(model, features, CONDITIONS, TARGETS, steps=3, seed=5, eta=1.0, batch_size=size), atol=1e-3)
    assert not torch.allclose(views, sample_views(model, features, CONDITIONS, TARGETS, steps=3, seed=5), atol=1e-2)
    assert torch.equal(sample_views(model, features, CONDITIONS, TARGETS, steps=1, seed=5), sample_views(model, features, CONDITIONS, TARGETS, steps=1, seed=5))


def test_sampler_finds_what_a_perfect_model_knows(model, features, monkeypatch):
    """With predictions that point at known latents, DDIM must arrive there from any noise and with any number of steps."""
    known = model.encode_target(smooth_images(5, seed=3))

    def perfect(noisy, t, tokens, concat, scale):
        alpha = model.alphas_cumprod[t][:, None, None, None]
        noise = (noisy - alpha.sqrt() * known[: len(noisy)]) / (1 - alpha).sqrt()
        return model.training_target(known[: len(noisy)], noise, t)

    monkeypatch.setattr(model, "guided", perfect)
    for steps in (1, 2, 7):
        views = sample_views(model, features, CONDITIONS, TARGETS, steps=steps, batch_size=5)
        assert torch.allclose(views, model.decode(known), atol=1e-2)


# --- files ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save(folder, torch.float32)
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "model")


def test_save_and_load(model, folder, features):
    again = load_zero123(folder)
    assert not again.training and weights_hash(again) == weights_hash(model)
    assert torch.equal(sample_views(again, features, CONDITIONS, TARGETS[:2], steps=2), sample_views(model, features, CONDITIONS, TARGETS[:2], steps=2))
    assert torch.equal(again.encode_condition(smooth_images(1, 64)).tokens, model.encode_condition(smooth_images(1, 64)).tokens)
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    model.save(folder)  # half precision, as the bundled weights
    assert load_zero123(folder).unet.dtype == torch.float32


def change(path, action):
    tensors = load_file(path)
    action(tensors)
    save_file(tensors, path)


def first(tensors):
    return sorted(tensors)[0]


BROKEN = {
    "no index": lambda f: (f / "model_index.json").unlink(),
    "missing tensor": lambda f: change(f / "unet/diffusion_pytorch_model.safetensors", lambda t: t.pop(first(t))),
    "surplus tensor": lambda f: change(f / "unet/diffusion_pytorch_model.safetensors", lambda t: t.update(extra=torch.zeros(2))),
    "other shape": lambda f: change(f / "vae/diffusion_pytorch_model.safetensors", lambda t: t.update(basis=torch.zeros(3, 3))),
    "projection of another size": lambda f: change(f / "cc_projection/diffusion_pytorch_model.safetensors", lambda t: t.update(weight=torch.zeros(4, 4))),
    "projection without bias": lambda f: change(f / "cc_projection/diffusion_pytorch_model.safetensors", lambda t: t.pop("bias")),
    "encoder without a tensor": lambda f: change(f / "image_encoder/diffusion_pytorch_model.safetensors", lambda t: t.pop(first(t))),
    "cut off": lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes((f / "unet/diffusion_pytorch_model.safetensors").read_bytes()[:1000]),
    "no weights": lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
    "no scheduler": lambda f: shutil.rmtree(f / "scheduler"),
    "unknown autoencoder": lambda f: (f / "model_index.json").write_text(json.dumps(json.loads((f / "model_index.json").read_text()) | {"vae": "os.system"})),
    "index that is no index": lambda f: (f / "model_index.json").write_text("[]"),
    "index that is not JSON": lambda f: (f / "model_index.json").write_text("{"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_loading_is_strict(folder, case):
    BROKEN[case](folder)
    with pytest.raises(InputError) as caught:
        load_zero123(folder)
    assert str(folder) in str(caught.value)


class Hostile:
    def __reduce__(self):
        return (open, ("stolen.txt", "w"))


def test_pickles_are_never_executed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"):
        (folder / "unet" / name).write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(InputError):
            load_zero123(folder)
    (tmp_path / FILE).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match="damaged"):
        load_personal(tmp_path, base=tiny_random_model(0))
    assert not (tmp_path / "stolen.txt").exists()


def test_personal_weights(tmp_path):
    base, trained = tiny_random_model(0), tiny_random_model(0)
    names = [n for n, _ in trained.named_parameters() if n.startswith("cc_projection.") or "mid_block" in n]
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name in names:
                parameter += 0.01 * torch.randn(parameter.shape)
    save_personal(tmp_path / FILE, trained, names, weights_hash(base))
    loaded = load_personal(tmp_path, base=tiny_random_model(0))
    for (name, parameter), expected in zip(loaded.named_parameters(), trained.parameters()):
        assert torch.allclose(parameter, expected, atol=2e-3), name
    assert weights_hash(loaded) != weights_hash(base)
    assert (tmp_path / FILE).stat().st_size < 0.5 * sum(p.numel() for p in base.parameters()) * 4  # only what has changed
    assert weights_hash(load_personal(tmp_path / "none", base=base)) == weights_hash(base)  # nothing trained: the base model


def test_personal_weights_are_bound_to_their_base(tmp_path):
    base = tiny_random_model(0)
    save_personal(tmp_path / FILE, base, ["cc_projection.linear.bias"], weights_hash(base))
    with pytest.raises(InputError, match="another base model"):
        load_personal(tmp_path, base=tiny_random_model(1))
    save_file({"unet.none": torch.zeros(2)}, tmp_path / FILE, metadata={"base": weights_hash(base)})
    with pytest.raises(InputError, match="does not fit"):
        load_personal(tmp_path, base=base)
    (tmp_path / FILE).write_bytes(b"half a file")
    with pytest.raises(InputError, match="damaged"):
        load_personal(tmp_path, base=base)
