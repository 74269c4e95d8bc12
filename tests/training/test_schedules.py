from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from mrcnn_lightning.training.schedules import cosine, multistep


def rates(scheduler: LambdaLR | MultiStepLR | CosineAnnealingLR, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return values


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1)], lr=0.02)


def test_multistep_is_torchs_after_the_warm_up() -> None:
    ours = multistep(
        optimizer(),
        total_steps=90,
        warmup=0.1,
        warmup_factor=0.001,
        milestones=[2 / 3, 8 / 9],
        gamma=0.1,
    )
    expected = rates(MultiStepLR(optimizer(), [60, 80], 0.1), 90)
    values = rates(ours, 90)
    assert values[9:] == pytest.approx(expected[9:])
    assert values[0] == pytest.approx(0.02 * 0.001)
    assert values[:10] == sorted(values[:10])
    steps = [b - a for a, b in pairwise(values[:10])]
    assert max(steps) == pytest.approx(min(steps))


def test_cosine_is_torchs_after_the_warm_up() -> None:
    ours = cosine(optimizer(), total_steps=100, warmup=0.2, warmup_factor=0.1, final_factor=0.05)
    peer = CosineAnnealingLR(optimizer(), T_max=80, eta_min=0.02 * 0.05)
    values = rates(ours, 100)
    assert values[20:] == pytest.approx(rates(peer, 80))
    assert values[0] == pytest.approx(0.002) and values[:21] == sorted(values[:21])
