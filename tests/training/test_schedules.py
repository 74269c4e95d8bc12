from bisect import bisect_right
from itertools import pairwise

import hydra
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from mrcnn_lightning.training.schedules import cosine, multistep
from tests.conftest import compose


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


@pytest.mark.parametrize(
    ("recipe", "warmup", "drops", "steps"),
    [
        ("mask_rcnn_r50_fpn_1x", (1000, 0.001), (60000, 80000), 90000),
        ("mask_rcnn_r50_fpn_3x", (1000, 0.001), (210000, 250000), 270000),
        ("mask_rcnn_r50_fpn_100ep_lsj", (500, 0.067), (163889, 177546), 184375),
    ],
)
def test_recipes_change_the_rate_at_detectron2s_steps(
    recipe: str, warmup: tuple[int, float], drops: tuple[int, int], steps: int
) -> None:
    """Of its configs COCO-InstanceSegmentation and new_baselines; rates from its definition."""
    cfg = compose(f"experiment={recipe}")
    assert cfg.trainer.max_steps == steps
    make = hydra.utils.instantiate(cfg.scheduler, _convert_="all")
    (factor,) = make(optimizer(), total_steps=steps).lr_lambdas
    length, start = warmup
    for step in [0, 1, length // 2, length - 1, length, length + 1]:
        done = min(step / length, 1)
        assert factor(step) == pytest.approx(start * (1 - done) + done, rel=1e-12)
    for step in [near for drop in drops for near in (drop - 1, drop)] + [steps - 1]:
        assert factor(step) == pytest.approx(0.1 ** bisect_right(drops, step), rel=1e-12)


def test_cosine_is_torchs_after_the_warm_up() -> None:
    ours = cosine(optimizer(), total_steps=100, warmup=0.2, warmup_factor=0.1, final_factor=0.05)
    peer = CosineAnnealingLR(optimizer(), T_max=80, eta_min=0.02 * 0.05)
    values = rates(ours, 100)
    assert values[20:] == pytest.approx(rates(peer, 80))
    assert values[0] == pytest.approx(0.002) and values[:21] == sorted(values[:21])
