"""The judge of pairs (relposepp/judge.py): shapes, symmetries, hard negatives, weights on disk, training that goes on where it was."""

import numpy as np
import pytest
import torch

from relposepp.judge import KNOWN_RADIUS, JudgeConfig, PairJudge, SceneJudge, at_field_of_view, load_judge, save_judge
from relposepp.judge_data import APART_DEG, AWAY_DEG, DeviceCorpus, agreeing, angle_deg, hard_hypotheses, outline_cost, outline_gaps, relative_rotations, support_points
from relposepp.judge_train import HypothesisSource, JudgeTrainConfig, JudgeTrainer
from relposepp.tangency import Tangency, outline_rays
from sap3d.cameras import FOV_RAD
from sap3d.errors import InputError

SMALL = JudgeConfig(image_size=64, planes=8, cells=8, features=8, encoder_widths=(8, 8, 16, 16), widths=(8, 8, 16), head_width=16)
SPHERES = [  # centre, radius and colour of an object that no turn maps onto itself
    ((0.0, 0.0, -0.2), 0.22, (0.8, 0.2, 0.1)), ((0.3, 0.0, -0.1), 0.15, (0.1, 0.7, 0.2)), ((0.05, 0.28, 0.1), 0.13, (0.2, 0.3, 0.9)), ((-0.1, -0.1, 0.3), 0.12, (0.9, 0.8, 0.2)),
]  # fmt: skip


def picture(elevation, azimuth, radius, size=64, spheres=SPHERES):
    """Premultiplied RGBA (size, size, 4) uint8 of coloured spheres, four samples a pixel."""
    fine = size * 4
    line = ((np.arange(fine) + 0.5) / fine * 2 - 1) * np.tan(FOV_RAD / 2)
    ce, se, ca, sa = np.cos(elevation), np.sin(elevation), np.cos(azimuth), np.sin(azimuth)
    axes = np.array([[-sa, ca, 0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]])
    direction = np.stack(np.broadcast_arrays(line[None, :], -line[:, None], -1.0), -1)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    image, nearest = np.zeros((fine, fine, 4)), np.full((fine, fine), np.inf)
    for centre, r, colour in spheres:
        c = axes @ np.array(centre) - np.array([0, 0, radius])
        along = direction @ c
        inside = r**2 - (c @ c - along**2)
        depth = np.where(inside > 0, along - np.sqrt(np.maximum(inside, 0)), np.inf)
        front = depth < nearest
        image[front], nearest[front] = (*colour, 1.0), depth[front]
    return np.round(image.reshape(size, 4, size, 4, 4).mean((1, 3)) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def corpus():
    """Three objects (the same spheres, in other proportions), eight views each."""
    rng = np.random.default_rng(0)
    poses = np.stack([np.pi / 2 - rng.uniform(-0.6, 0.9, (3, 8)), rng.uniform(0, 2 * np.pi, (3, 8)), np.full((3, 8), 1.5)], -1).astype(np.float32)
    stretched = [[(tuple(np.array(c) * s), r, colour) for c, r, colour in SPHERES] for s in rng.uniform(0.6, 1.1, (3, 3))]
    images = np.array([[picture(np.pi / 2 - polar, azimuth, radius, spheres=s) for polar, azimuth, radius in views] for s, views in zip(stretched, poses)])
    return DeviceCorpus(images, poses, "cpu")


def awake(judge):
    """With the branches that begin at zero at work too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return judge.eval()


def some_poses(pairs, hypotheses):
    generator = torch.Generator().manual_seed(2)
    u = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return u(pairs, hypotheses, 2) - 0.3, 6 * u(pairs, hypotheses) - 3, 1.4 + 0.2 * u(pairs, hypotheses, 2)


def test_shapes_size_and_swap(corpus):
    judge = PairJudge()
    assert sum(p.numel() for p in judge.parameters()) < 0.9e6
    judge = awake(PairJudge(SMALL))
    photos = corpus.photos(corpus.draw(2, np.random.default_rng(0)))
    elevation, delta, radius = some_poses(2, 3)
    with torch.no_grad():
        scores = judge(photos[:, 0], photos[:, 1], elevation, delta, radius)
        swapped = judge(photos[:, 1], photos[:, 0], elevation.flip(-1), -delta, radius.flip(-1))
    assert scores.shape == (2, 3) and scores.std() > 1e-4
    torch.testing.assert_close(scores, swapped, atol=1e-4, rtol=1e-4)


def test_configurations_do_not_depend_on_where_azimuth_is_counted_from(corpus):
    straight = corpus.photos(corpus.draw(2, np.random.default_rng(3))).flatten(0, 1)[:3].permute(0, 2, 3, 1).numpy()
    scene = SceneJudge(awake(PairJudge(SMALL)), list(straight))
    rng = np.random.default_rng(0)
    elevation, azimuth, radius = rng.uniform(-0.3, 0.8, (30, 3)), rng.uniform(-3, 3, (30, 3)), np.full((30, 3), 1.5)
    scores = scene.scores(elevation, azimuth, radius)
    assert scores.shape == (30,)
    np.testing.assert_allclose(scores, scene.scores(elevation, azimuth + 1.0, radius), atol=1e-4)
    pair = scene.scores(elevation[:, [0, 2]], azimuth[:, [0, 2]], radius[:, :2])
    assert pair.shape == (30,) and not np.allclose(pair, scores)


def test_cells_are_read_where_the_source_shows_them():
    """A point of the world on a plane of the target is found at its place in the source."""
    from sap3d.cameras import Camera

    judge = PairJudge(SMALL)
    first, second = Camera.from_degrees(20, 0, 1.4), Camera.from_degrees(-10, 70, 1.6)
    angles = torch.tensor([[[np.deg2rad(20), np.deg2rad(-10)]]]).float()
    where, _, cell = judge._cells(angles, torch.tensor([[np.deg2rad(70)]]).float(), torch.tensor([[[1.4, 1.6]]]))
    k, row, column = 5, 2, 6
    depth = 1.4 + float(judge.offsets[k])
    camera = np.array([float(judge.line[column]), -float(judge.line[row]), 0]) * np.tan(FOV_RAD / 2) * depth - [0, 0, depth]
    pose = first.camera_from_world()
    world = pose[:, :3].T @ (camera - pose[:, 3])
    there = second.camera_from_world() @ [*world, 1]
    expected = np.array([there[0], -there[1]]) / -there[2] / np.tan(FOV_RAD / 2)
    np.testing.assert_allclose(where[0, 0, k, row, column], expected, atol=1e-5)
    np.testing.assert_allclose(cell[0, 0, k, row, column], [depth - 1.4, world[2], -there[2] - 1.6], atol=1e-5)


def test_outlines_as_in_the_search(corpus):
    pairs = corpus.draw(4, np.random.default_rng(1))
    elevation, delta, radius = corpus.poses(pairs)
    pose = torch.cat([elevation, delta[:, None]], 1)[:, None] + torch.tensor([0.1, -0.05, 0.2])
    gap, counts = outline_gaps(corpus.outlines(pairs), radius, pose)
    for p in range(4):
        tangency = Tangency.of_rays([r.numpy() for r in corpus.outlines(pairs)[p]])
        azimuth = torch.stack([torch.zeros(1), pose[p, :, 2]], -1)
        residual, count = tangency.residuals(pose[p, :, :2], azimuth, radius[p : p + 1], [0, 1])
        torch.testing.assert_close(gap[p], residual, atol=1e-5, rtol=1e-3)
        assert count[0, 0] == counts[p, 0]
    image = corpus.images[0, 0].numpy() / 255.0
    points = support_points(torch.from_numpy(image[None, ..., 3]).float())[0].numpy()
    hull = outline_rays(image)
    for angle in np.linspace(0, 6, 7):  # the same outermost points as the hull's corners, to a fraction of a pixel
        direction = np.array([np.cos(angle), np.sin(angle)])
        assert abs((points @ direction).max() - (hull[:, :2] / -hull[:, 2:] / np.tan(FOV_RAD / 2) @ direction).max()) < 0.01


def test_hard_negatives_agree_and_are_away(corpus):
    pairs = corpus.draw(6, np.random.default_rng(4))
    elevation, delta, radius = corpus.poses(pairs)
    truth, rays = torch.cat([elevation, delta[:, None]], 1), corpus.outlines(pairs)
    found = hard_hypotheses(rays, radius, truth, 8, torch.Generator().manual_seed(0), random=300, refined=60)
    assert found.pose.shape == (6, 8, 3) and found.valid.all()
    angle = angle_deg(relative_rotations(found.pose), relative_rotations(truth)[:, None])
    assert (angle[:, 0] < 8).all() and (angle[:, 1:] > AWAY_DEG).all()
    torch.testing.assert_close(angle, found.angle_deg, atol=0.1, rtol=1e-3)
    cost = outline_cost(*outline_gaps(rays, radius, found.pose))
    assert cost[:, 1:].median() < 1 and (cost[:, 1:] < 3).float().mean() > 0.8
    between = angle_deg(relative_rotations(found.pose)[:, 1:, None], relative_rotations(found.pose)[:, None, 1:])
    between = between[:, ~torch.eye(7, dtype=torch.bool)]
    assert between.min() > 2 and (between > APART_DEG).float().mean() > 0.8  # nearer ones only where there were no others
    moved = agreeing(rays, radius, truth[:, None] + 0.05)
    assert outline_cost(*outline_gaps(rays, radius, moved)).median() < 0.5
    again = hard_hypotheses(rays, radius, truth, 8, torch.Generator().manual_seed(0), random=300, refined=60)
    assert torch.equal(found.pose, again.pose)


def quick(tmp_path, **settings):
    return JudgeTrainConfig(
        **{"out": str(tmp_path), "device": "cpu", "steps": 4, "pairs": 3, "hypotheses": 4, "ahead": 2, "random_poses": 60, "refined_poses": 20, "warmup_steps": 1, "bf16": False,
           "learning_rate": 3e-3, "max_minutes": 1.0, "report_seconds": 1e9, "validation_pairs": 32, "validation_hypotheses": 4, **settings}
    )  # fmt: skip


def test_training_learns_a_toy_and_gradients_flow(corpus, tmp_path):
    trainer = JudgeTrainer(quick(tmp_path, steps=25, pairs=6), SMALL, corpus, None)
    loss = [float(trainer.one_step()[0]) for _ in range(25)]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainer.judge.parameters())
    assert not [name for name, p in trainer.judge.named_parameters() if p.grad.abs().max() == 0]
    assert np.mean(loss[-6:]) < np.mean(loss[:3]) - 0.05, loss


def test_a_continued_run_ends_as_an_uninterrupted_one(corpus, tmp_path):
    whole = JudgeTrainer(quick(tmp_path / "whole"), SMALL, corpus, corpus).run()
    JudgeTrainer(quick(tmp_path / "parts", stop_at=1), SMALL, corpus, None).run()
    trainer = JudgeTrainer(quick(tmp_path / "parts"), SMALL, corpus, None)
    assert trainer.step == 1
    parts = trainer.run()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert "val_under_15" in (tmp_path / "whole" / "curve.csv").read_text()
    with pytest.raises(InputError, match="other settings"):
        JudgeTrainer(quick(tmp_path / "parts", pairs=4), SMALL, corpus, None)
    assert (tmp_path / "parts" / "export" / "model.safetensors").is_file()


def test_a_run_starts_from_given_weights(corpus, tmp_path):
    first = JudgeTrainer(quick(tmp_path / "first"), SMALL, corpus, None)
    first.run()
    for init in (first.checkpoint, first.out / "export"):
        begun = JudgeTrainer(quick(tmp_path / init.name, init=str(init)), SMALL, corpus, None)
        assert begun.step == 0
        for judge in (begun.judge, begun.averaged):
            for name, value in judge.state_dict().items():
                torch.testing.assert_close(value, first.averaged.state_dict()[name], atol=2e-3, rtol=2e-2, msg=name)  # a folder's are in 8 bits
    with pytest.raises(InputError, match="not weights of a judge with these settings"):
        JudgeTrainer(quick(tmp_path / "other", init=str(first.out / "export")), JudgeConfig(), corpus, None)


def test_a_step_in_parts_is_the_same_step(corpus, tmp_path):
    one, two = (JudgeTrainer(quick(tmp_path, pairs=4), SMALL, corpus, None) for _ in range(2))
    two.microbatches = 2
    figures = one.one_step(), two.one_step()
    torch.testing.assert_close(figures[0], figures[1], atol=1e-4, rtol=1e-4)
    for a, b in zip(one.judge.parameters(), two.judge.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-2)


def test_batches_follow_from_seed_and_step(corpus, tmp_path):
    source = HypothesisSource(corpus, 3, 4, quick(tmp_path))
    third = source.batch(3)
    source.batch(0)
    again = source.batch(3)
    assert torch.equal(third.photos, again.photos) and torch.equal(third.pose, again.pose)
    assert third.photos.min() >= 0 and (third.photos[:, :, :3] <= third.photos[:, :, 3:] + 1e-6).all()


def test_weights_on_disk(tmp_path, corpus):
    judge = awake(PairJudge(SMALL))
    save_judge(tmp_path / "judge", judge)
    loaded = load_judge(tmp_path / "judge")
    photos = corpus.photos(corpus.draw(2, np.random.default_rng(0)))
    with torch.no_grad():
        a, b = (j(photos[:, 0], photos[:, 1], *some_poses(2, 6)) for j in (judge, loaded))
    assert (a - b).abs().max() < 0.1 * a.std() + 1e-3
    with pytest.raises(InputError, match="no config.json"):
        load_judge(tmp_path)
    weights = tmp_path / "judge" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        load_judge(tmp_path / "judge")
    (tmp_path / "judge" / "config.json").write_text('{"planes": "many"}')
    with pytest.raises(InputError, match="not weights of this judge"):
        load_judge(tmp_path / "judge")


def test_the_choice_asks_the_judge_about_few_photos(monkeypatch, corpus):
    """With two and three photos, of those taken by hand up to four, and of the configurations that are best by the other terms only."""
    import relposepp.rerank as rerank
    from relposepp.tangency import Solution

    photos = list(corpus.photos(corpus.draw(3, np.random.default_rng(3))).flatten(0, 1)[:5].permute(0, 2, 3, 1).numpy())
    monkeypatch.setattr(rerank, "load_judge", lambda: awake(PairJudge(SMALL)))
    with_judge = lambda n, **settings: rerank.Reranker.of(None, None, photos[:n], None, 10, **settings)  # noqa: E731
    assert with_judge(2).judge and not with_judge(2, judged=False).judge and not with_judge(4).judge
    assert with_judge(4, handheld_fov_rad=[0.8] * 4).judge and not with_judge(5, handheld_fov_rad=[0.8] * 5).judge
    generator = torch.Generator().manual_seed(0)
    pose = [torch.rand(150, 3, generator=generator) for _ in range(2)]
    solution, score = Solution(*pose, torch.full((150, 3), 1.5), torch.zeros(150)), np.random.default_rng(0).normal(size=150)
    judge = with_judge(3)
    asked, others = np.split(np.argsort(-score), [rerank.JUDGED_PAIRS // 3])
    found = judge._judged(solution, score)
    np.testing.assert_allclose(found[asked], judge.judge.scores(*(x[asked] for x in (*pose, solution.radius))), atol=1e-5)
    assert len(others) and (found[others] == found[asked].min()).all()


@pytest.mark.parametrize("fov_rad", [0.5, 1.1])
def test_photos_of_other_fields_of_view_are_brought_to_the_protocols(fov_rad):
    """A disc of a known angle is as large in the judge's photo as the protocol's camera would show it."""
    line = (np.arange(401) + 0.5 - 200.5) / 200.5 * np.tan(fov_rad / 2)  # tangents across the photo
    photo = np.repeat((np.hypot(*np.meshgrid(line, line)) < 0.2)[..., None], 4, -1).astype(np.float32)
    seen = at_field_of_view(photo, fov_rad)
    line = np.linspace(-1, 1, 2 * len(seen) + 1)[1::2] * np.tan(FOV_RAD / 2)
    truth = np.hypot(*np.meshgrid(line, line)) < 0.2
    assert seen.shape[0] == seen.shape[1] and abs(seen[..., 3].mean() - truth.mean()) < 0.03 * truth.mean()
    np.testing.assert_array_equal(at_field_of_view(photo, FOV_RAD), photo)


def test_an_object_from_far_away_is_judged_at_the_size_it_has_in_the_photo():
    """The same pictures, said to be taken with a longer lens from so far away that they look alike but for perspective."""
    boxes = [((0.0, 0.0, -0.1), 0.2, (0.7, 0.3, 0.2)), ((0.25, 0.12, -0.3), 0.1, (0.2, 0.2, 0.2))]
    far, fov = 2.7, 2 * np.arctan(np.tan(FOV_RAD / 2) / 1.8)
    photos = [picture(0.2, a, 1.5, 128, boxes).astype(np.float32) / 255 for a in (0.0, 1.0)]
    pose = np.tile([0.2, 0.2], (3, 1)), np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]])
    judge = load_judge()
    seen = SceneJudge(judge, photos, [fov, fov])
    np.testing.assert_allclose(seen.scale * far, KNOWN_RADIUS[1], atol=1e-6)
    small = [at_field_of_view(photo, FOV_RAD, KNOWN_RADIUS[1] / 1.5) for photo in photos]  # as small as from the farthest known distance
    expected = SceneJudge(judge, small).scores(*pose, np.full((3, 2), KNOWN_RADIUS[1]))
    np.testing.assert_allclose(seen.scores(*pose, np.full((3, 2), far)), expected, atol=1e-3)


def test_the_bundled_judge_tells_the_true_pose():
    """Of a chair-like thing that it was never shown."""
    boxes = [((0.0, 0.0, -0.1), 0.2, (0.7, 0.3, 0.2)), ((-0.15, 0.0, 0.2), 0.18, (0.7, 0.3, 0.2)), ((0.25, 0.12, -0.3), 0.1, (0.2, 0.2, 0.2)), ((0.2, -0.2, 0.1), 0.12, (0.2, 0.6, 0.3))]
    elevation, azimuth = np.deg2rad([20.0, 10.0]), np.deg2rad([0.0, 70.0])
    photos = [picture(e, a, 1.5, 128, boxes).astype(np.float32) / 255 for e, a in zip(elevation, azimuth)]
    for photo in photos:
        photo[..., :3] /= np.maximum(photo[..., 3:], 1e-3)
    turned = np.deg2rad(np.arange(0, 360, 30.0))
    scores = SceneJudge(load_judge(), photos).scores(np.tile(elevation, (12, 1)), np.stack([np.zeros(12), azimuth[1] + turned], 1), np.full((12, 2), 1.5))
    assert np.argmax(scores) == 0 and scores[0] > np.sort(scores)[-2] + 1
