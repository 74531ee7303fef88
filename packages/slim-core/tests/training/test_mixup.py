from __future__ import annotations

import numpy as np
import pytest
import torch

from slim_core.tasks import ClassificationTask
from slim_core.training import mixup
from slim_core.training.mixup import mixup_batch, mixup_draw

PICTURES = torch.tensor(np.random.default_rng(0).normal(size=(5, 1, 2, 2)), dtype=torch.float32)
LABELS = torch.tensor([0, 2, 1, 2, 0])


def test_samples_and_targets_are_the_convex_combinations():
    partners = torch.tensor([3, 0, 4, 1, 2])
    inputs, targets = mixup((PICTURES,), LABELS, 0.3, partners, 3)
    pictures, labels, order = PICTURES.numpy(), np.eye(3)[LABELS.numpy()], partners.numpy()
    np.testing.assert_allclose(inputs[0].numpy(), 0.3 * pictures + 0.7 * pictures[order], rtol=1e-5)
    np.testing.assert_allclose(targets.numpy(), 0.3 * labels + 0.7 * labels[order], rtol=1e-5)


def test_a_share_of_one_changes_nothing():
    inputs, targets = mixup((PICTURES,), LABELS, 1.0, torch.tensor([1, 0, 3, 2, 4]), 3)
    assert torch.equal(inputs[0], PICTURES)
    assert torch.equal(targets, torch.eye(3)[LABELS])


def test_integers_are_not_mixed():
    ids = torch.arange(5)
    inputs, _ = mixup({"ids": ids}, LABELS, 0.5, torch.tensor([1, 0, 3, 2, 4]), 3)
    assert inputs["ids"] is ids


def test_the_mixed_loss_is_the_mix_of_the_losses():
    task = ClassificationTask()
    logits = torch.randn(5, 3)
    batch = mixup_batch(task, (PICTURES, LABELS), 0.4, seed=1, step=9, num_classes=3)
    share, partners = mixup_draw(0.4, 5, 1, 9)
    plain = task.loss(logits, (PICTURES, LABELS))
    other = task.loss(logits, (PICTURES, LABELS[partners]))
    assert task.loss(logits, batch).item() == pytest.approx((share * plain + (1 - share) * other).item(), rel=1e-5)


def test_the_draw_is_a_function_of_seed_and_step_and_follows_beta():
    assert mixup_draw(0.4, 5, 1, 9)[0] == mixup_draw(0.4, 5, 1, 9)[0]
    assert mixup_draw(0.4, 5, 1, 9)[0] != mixup_draw(0.4, 5, 1, 10)[0]
    shares = np.array([mixup_draw(0.4, 2, 0, step)[0] for step in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # variance of Beta(a, a)
