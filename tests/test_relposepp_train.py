"""Stage 1: training runs, resumes exactly and refuses what it cannot do."""

import numpy as np
import pytest
import torch

from relposepp.config import NetworkConfig, TrainConfig
from relposepp.data import TokenCache, augment
from relposepp.train import Trainer, soft_targets
from sap3d.errors import InputError

NETWORK = NetworkConfig(width=32, depth=2, heads=2, head_width=16, mlp_width=32, kept_tokens=6, alternate=True, energy_width=32, translation_widths=(16, 16))


class Corpus:
    """Two objects of random blobs, six views each."""

    def __init__(self):
        generator = np.random.default_rng(0)
        alpha = (generator.random((2, 6, 128, 128, 1)) > 0.5) * 255
        self.images = np.concatenate([np.minimum(generator.integers(0, 256, (2, 6, 128, 128, 3)), alpha), alpha], -1).astype(np.uint8)
        self.polar_rad = generator.uniform(1.0, 2.0, (2, 6))
        self.azimuth_rad = generator.uniform(0, 6.0, (2, 6))
        self.radius = generator.uniform(1.3, 1.8, (2, 6))


def config(tmp_path, **changes):
    values = dict(out=str(tmp_path), steps=4, batch_views=8, max_views=3, queries=32, variants=2, warmup_steps=1, validate_every=2, device="cpu")
    return TrainConfig(**(values | changes))


def test_two_iterations_and_exact_resume(tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    corpus = Corpus()
    whole = Trainer(config(tmp_path / "whole"), NETWORK, corpus, None)
    whole.run()
    first = Trainer(config(tmp_path / "cut"), NETWORK, corpus, None)
    for _ in range(2):
        parts = first.one_step()
    assert set(parts) == {"rotation", "translation", "elevation", "azimuth"} and all(np.isfinite(v) for v in parts.values())
    first.save()
    second = Trainer(config(tmp_path / "cut"), NETWORK, corpus, None)
    assert second.step == 2
    second.run()
    for name, value in whole.average.items():
        torch.testing.assert_close(second.average[name], value, atol=0, rtol=0, msg=name)
    assert (tmp_path / "whole" / "curves.csv").read_text().count("\n") == 3 and (tmp_path / "whole" / "curves.png").is_file()
    torch.use_deterministic_algorithms(False)

    with pytest.raises(InputError, match="other settings"):
        Trainer(config(tmp_path / "cut", learning_rate=1.0), NETWORK, corpus, None)


def test_a_mirrored_view_is_the_view_of_the_mirrored_object(tmp_path):
    corpus = Corpus()
    plain = augment(corpus.images[0], 0, np.random.default_rng(0))
    np.testing.assert_array_equal(augment(corpus.images[0], 1, np.random.default_rng(0)), plain[:, :, ::-1])
    trainer = Trainer(config(tmp_path), NETWORK, corpus, None)
    columns = np.array([[0, 3]])
    one, other = (trainer.train.take([v], [0], columns) for v in (0, 1))
    np.testing.assert_allclose(one.elevation_rad, other.elevation_rad)
    np.testing.assert_allclose(np.cos(one.azimuth_rad), -np.cos(other.azimuth_rad), atol=1e-9)
    np.testing.assert_allclose(np.sin(one.azimuth_rad), np.sin(other.azimuth_rad), atol=1e-9)


def test_recoloured_views_stay_premultiplied_and_keep_their_alpha():
    images = augment(Corpus().images[0], 3, np.random.default_rng(5))
    assert images.min() >= 0 and (images[..., :3] <= images[..., 3:] + 1e-6).all()


def test_soft_targets_prefer_the_near_rotation():
    queries = torch.stack([torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))])
    target = soft_targets(torch.eye(3)[None], queries, 10.0)
    assert target[0, 0] > 0.999 and float(target.sum()) == pytest.approx(1)


def test_cached_tokens_are_used_again(tmp_path):
    corpus, trainer = Corpus(), None
    trainer = Trainer(config(tmp_path), NETWORK, corpus, None)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "tokens").iterdir()}
    TokenCache(corpus, trainer.network.encoder, tmp_path / "tokens", 2)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "tokens").iterdir()} and len(files) == 2


def test_impossible_training_raises(tmp_path):
    with pytest.raises(InputError, match="steps"):
        Trainer(config(tmp_path, steps=0), NETWORK, Corpus(), None)
    with pytest.raises(InputError, match="frozen"):
        Trainer(config(tmp_path), NetworkConfig.published(), Corpus(), None)


def test_several_corpora_of_different_sizes_are_mixed(tmp_path):
    small = Corpus()
    small.images, small.polar_rad, small.azimuth_rad, small.radius = small.images[:1, :4], small.polar_rad[:1, :4], small.azimuth_rad[:1, :4], small.radius[:1, :4]
    trainer = Trainer(config(tmp_path), NETWORK, [Corpus(), small], None)
    assert [v.tokens.shape[:2] for v in trainer.train.versions] == [(2, 6), (2, 6), (1, 4), (1, 4)]
    assert trainer.train.batch(12, 3, np.random.default_rng(0)).tokens.shape[:2] == (12, 3)


def test_a_stretched_object_keeps_its_frame(tmp_path):
    from relposepp.stretch import SIZE, VIEWS, StretchedCorpus, stretched_views
    from sap3d.mesh_render import RenderMesh

    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.3, 0.3) for z in (-0.2, 0.2)], np.float32)
    faces = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]], np.int32)
    mesh = RenderMesh(corners, faces, np.zeros((12, 3, 2), np.float32), np.zeros(12, np.int32), [np.full((1, 1, 4), 200, np.uint8)])
    images, poses = stretched_views(mesh, np.random.default_rng(0))
    assert images.shape == (VIEWS, SIZE, SIZE, 4) and poses.shape == (VIEWS, 3)
    assert np.ptp(mesh.vertices, axis=0).max() == pytest.approx(1, abs=1e-5) and images[..., 3].max() == 255
    np.savez_compressed(tmp_path / "box.npz", images=images, poses=poses)
    assert StretchedCorpus(tmp_path).images.shape == (1, VIEWS, SIZE, SIZE, 4)
    with pytest.raises(InputError, match="no stretched"):
        StretchedCorpus(tmp_path / "nothing")
