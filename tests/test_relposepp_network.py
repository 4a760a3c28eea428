"""Stage 1: the network's shapes, invariances and files."""

import dataclasses

import numpy as np
import pytest
import torch

from relposepp.config import NetworkConfig
from relposepp.network import RelPose, harmonic_embedding, load_network, save_network
from sap3d.errors import InputError

SMALL = NetworkConfig(width=32, depth=2, heads=2, head_width=16, mlp_width=32, kept_tokens=6, alternate=True, energy_width=32, translation_widths=(16, 16))
PUBLISHED = dataclasses.replace(NetworkConfig.published(), depth=1, mlp_width=64, image_size=64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return RelPose(SMALL).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    rgba = torch.rand(1, 3, 4, 128, 128, generator=generator)
    return torch.cat([rgba[:, :, :3] * rgba[:, :, 3:], rgba[:, :, 3:]], 2)


def test_shapes_of_the_tiny_network(network, images):
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (1, 3, 32)
        assert network.scores(features, [(0, 1), (1, 2)], torch.eye(3).expand(7, 3, 3)).shape == (1, 2, 7)
        assert network.translations(features).shape == (1, 3, 3)
        assert network.elevation_logits(features).shape == (1, 3, SMALL.elevation_bins)
        assert network.features(images[:, :1]).shape == (1, 1, 32)


def test_shapes_of_the_published_network():
    torch.manual_seed(0)
    published = RelPose(PUBLISHED).eval()
    with torch.no_grad():
        features = published.features(torch.rand(1, 2, 4, 64, 64), torch.zeros(1, 2, 3))
        assert features.shape == (1, 2, 2048 + 48)
        assert published.scores(features, [(0, 1)], torch.eye(3).expand(5, 3, 3)).shape == (1, 1, 5)
        assert published.translations(features).shape == (1, 2, 3)
    with pytest.raises(ValueError, match="elevation"):
        published.elevation_logits(features)
    with pytest.raises(ValueError, match="crop"):
        published.features(torch.rand(1, 2, 4, 64, 64))


@torch.no_grad()
@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_half_precision_finds_the_same_rotations(precision):
    """The published form: scores close to those of fp32 (and not equal: half precision is used), the same best rotation for every pair."""
    torch.manual_seed(0)
    network = RelPose(PUBLISHED).eval()
    images, crop = torch.rand(1, 3, 4, 64, 64), torch.zeros(1, 3, 3)
    queries = torch.linalg.qr(torch.randn(2000, 3, 3))[0]
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = {}
    for name in ("fp32", precision):
        network.precision = name
        features = network.features(images, crop)
        found[name] = network.scores(features, pairs, queries), network.translations(features)
        assert all(value.dtype == torch.float32 for value in (features, *found[name]))
    scores, expected = found[precision][0], found["fp32"][0]
    spread = expected.std(-1).mean()
    assert 0 < (scores - expected).abs().max() < 0.2 * spread
    assert torch.equal(scores.argmax(-1), expected.argmax(-1))
    assert torch.unique(scores).numel() > 0.99 * torch.unique(expected).numel()  # no ties by rounding
    torch.testing.assert_close(found[precision][1], found["fp32"][1], atol=0.02, rtol=0.02)


def test_views_keep_their_identity_and_follow_their_order(network, images):
    with torch.no_grad():
        features = network.features(images)
        assert (features[0, 1] - features[0, 2]).abs().max() > 1e-3  # two other photos are not the same to it
        swapped = network.features(images[:, [0, 2, 1]])
    torch.testing.assert_close(swapped[0, [0, 2, 1]], features[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 3, 128, 128), (1, 3, 4, 64, 64), (3, 4, 128, 128)])
def test_wrong_image_shapes_raise(network, shape):
    with pytest.raises(ValueError, match="images must be"):
        network.features(torch.zeros(shape))


def test_wrong_tokens_rotations_and_pairs_raise(network):
    with pytest.raises(ValueError, match="tokens must be"):
        network.encoder(torch.zeros(1, 2, 49, 5))
    with pytest.raises(ValueError, match="rotations"):
        network.scores(torch.zeros(1, 2, 32), [(0, 1)], torch.zeros(4, 9))
    with pytest.raises(ValueError, match="i < j"):
        network.scores(torch.zeros(1, 2, 32), [(1, 0)], torch.eye(3)[None])


def test_harmonic_embedding():
    out = harmonic_embedding(torch.tensor([[0.5, -1.0]]), 2)
    expected = np.concatenate([np.sin([0.5, 1.0, -1.0, -2.0]), np.cos([0.5, 1.0, -1.0, -2.0])])
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-6)


def test_the_scores_of_both_forms_see_the_rotation(network):
    queries = torch.from_numpy(np.stack([np.eye(3), np.diag([-1.0, -1, 1])])).float()
    for config in (SMALL, dataclasses.replace(SMALL, energy="additive")):
        torch.manual_seed(1)
        scores = RelPose(config).scores(torch.randn(1, 2, 32), [(0, 1)], queries)
        assert scores[0, 0, 0] != scores[0, 0, 1]


def test_weights_round_trip_and_damaged_files_are_refused(network, images, tmp_path):
    save_network(tmp_path / "net", network, half=False)
    again = load_network(tmp_path / "net")
    with torch.no_grad():
        torch.testing.assert_close(again.features(images), network.features(images))
    with pytest.raises(InputError, match="config.json"):
        load_network(tmp_path / "nothing")
    (tmp_path / "net" / "config.json").write_text('{"width": 64, "translation_widths": [16, 16]}')
    with pytest.raises(InputError, match="not weights"):
        load_network(tmp_path / "net")
    save_network(tmp_path / "net", network)
    (tmp_path / "net" / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="cannot be read"):
        load_network(tmp_path / "net")


@pytest.mark.parametrize("change", [{"backbone": "vgg"}, {"width": 0}, {"energy": "x"}, {"kept_tokens": 50}, {"energy_layers": 2}])
def test_impossible_configurations_raise(change):
    with pytest.raises(InputError, match=next(iter(change))):
        RelPose(dataclasses.replace(SMALL, **change))


def test_bundled_weights_are_small_and_load():
    from relposepp.network import TINY_WEIGHTS

    assert (TINY_WEIGHTS / "model.safetensors").stat().st_size < 12e6
    network = load_network()
    assert not network.training and network.config.backbone == "alexnet"


def test_compact_weights_are_near_the_full_ones(images, tmp_path):
    torch.manual_seed(0)
    full = RelPose(dataclasses.replace(SMALL, width=96)).eval()  # its first matrix is a large one
    save_network(tmp_path, full)
    compact = load_network(tmp_path)
    with torch.no_grad():
        a, b = full.features(images), compact.features(images)
    assert (a - b).abs().max() < 0.05 and (tmp_path / "model.safetensors").stat().st_size < 2.5e6
