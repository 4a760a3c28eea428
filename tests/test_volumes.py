"""Dense volumes: reading at points is grid_sample whatever the number of threads; the penalty's gradient is that of automatic differentiation."""

import pytest
import torch
import torch.nn.functional as F

from sap3d.volumes import add_variation_gradient, sample_volume


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2047, 2049, 5003])
def test_values_and_gradients_are_those_of_one_batch(threads, align_corners, count):
    generator = torch.Generator().manual_seed(count)
    points = torch.rand(count, 3, generator=generator) * 2.4 - 1.2  # some beyond the border
    weights = torch.rand(4, count, generator=generator)
    volume = torch.randn(1, 4, 5, 6, 7, generator=generator)
    found = []
    for how_many in (1, 3):
        threads(how_many)
        own = volume.clone().requires_grad_()
        values = sample_volume(own, points, align_corners)
        (values * weights).sum().backward()
        found.append((values.detach(), own.grad))
    own = volume.clone().requires_grad_()
    reference = F.grid_sample(own, points.view(1, -1, 1, 1, 3), padding_mode="border", align_corners=align_corners)[0, :, :, 0, 0]
    (reference * weights).sum().backward()
    for values, gradient in found:
        assert values.shape == (4, count) and torch.equal(values, reference.detach())
        assert torch.allclose(gradient, own.grad, atol=1e-5)


def test_variation_gradient_equals_automatic_differentiation():
    weights, limits = torch.tensor([0.3, 0.7]), torch.tensor([0.5, 5.0])
    values = torch.nn.Parameter(torch.randn(1, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)))
    loss = 0.0
    for axis in (2, 3, 4):
        difference = torch.diff(values, dim=axis)
        for c in range(2):
            loss = loss + weights[c] * F.huber_loss(difference[:, c], torch.zeros_like(difference[:, c]), reduction="sum", delta=float(limits[c]))
    (expected,) = torch.autograd.grad(loss, values)
    values.grad = torch.zeros_like(values)
    add_variation_gradient(values, weights, limits)
    assert torch.allclose(values.grad, expected, atol=1e-6)
