import os
import subprocess
import sys

import pytest
import torch
import torchvision

from mrcnn_lightning.ops.nms import batched_nms, nms_at_once, nms_by_image
from tests.conftest import ROOT
from tests.ops.test_boxes import random_boxes


def test_batched_nms_is_torchvisions_for_each_image() -> None:
    boxes = random_boxes(3, 200).float()
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(3, 200, generator=generator)
    scores[0, 50:] = -torch.inf
    scores[1] = -torch.inf
    groups = torch.randint(0, 4, (200,), generator=generator)
    index, valid = batched_nms(boxes, scores, groups, iou_threshold=0.4, num=60)
    for image in range(3):
        there = scores[image] > -torch.inf
        kept = torchvision.ops.batched_nms(
            boxes[image, there], scores[image, there], groups[there], 0.4
        )[:60]
        expected = torch.nonzero(there)[:, 0][kept]
        assert torch.equal(index[image, valid[image]], expected)
        assert valid[image].sum() == len(expected)
    assert valid[2].sum() > 20


INTERPRETED = """
import torch
from mrcnn_lightning.ops.nms import nms_at_once, nms_by_image

torch.manual_seed(0)
for candidates, num, groups, side in [
    (300, 60, 3, 30.0), (300, 400, 1, 30.0), (70, 5, 80, 60.0), (1, 3, 1, 9.0)
]:
    corners = torch.rand(3, candidates, 2) * 100
    boxes = torch.cat([corners, corners + torch.rand(3, candidates, 2) * side], dim=2)
    boxes[0, ::7] = boxes[0, :1].clone()  # some are equal
    scores = torch.rand(3, candidates).round(decimals=4)  # some tie
    scores[1, candidates // 2 :] = -torch.inf
    scores[2] = -torch.inf
    group = torch.randint(0, groups, (3, candidates))
    ours, theirs = (
        nms(boxes, scores, group, iou_threshold=0.5, num=num) for nms in (nms_at_once, nms_by_image)
    )
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0], theirs[0])
    assert theirs[1][0].any() and not theirs[1][2].any()
print("equal")
"""


def test_the_kernel_is_torchvisions_operator() -> None:
    pytest.importorskip("triton", reason="no Triton here: torch's builds for CUDA bring it")
    done = subprocess.run(  # Triton runs kernels on the CPU only if it is told before its import
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr[-2000:]


def test_the_kernel_compiles_for_a_gpu() -> None:
    triton = pytest.importorskip(
        "triton", reason="no Triton here: torch's builds for CUDA bring it"
    )
    from triton.backends.compiler import GPUTarget

    from mrcnn_lightning.ops import nms_kernel

    pointers = {"boxes": "*fp32", "groups": "*i64", "num_candidates": "*i64"}
    results = {"kept": "*i64", "num_kept": "*i64"}
    sizes = {"size": "i32", "most": "i32", "threshold": "fp32"}
    source = triton.compiler.ASTSource(
        fn=nms_kernel._keep,
        signature=pointers | results | sizes | {"tile": "constexpr", "chunk": "constexpr"},
        constexprs={"tile": nms_kernel.TILE, "chunk": nms_kernel.CHUNK},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
    assert "div.rn.f32" in compiled.asm["ptx"] and "div.full.f32" not in compiled.asm["ptx"]


@pytest.mark.gpu
def test_the_kernel_on_a_gpu() -> None:
    boxes = random_boxes(2, 3000).float()
    scores, groups = torch.rand(2, 3000), torch.randint(0, 5, (2, 3000))
    options = {"iou_threshold": 0.7, "num": 1000}
    theirs = nms_by_image(boxes, scores, groups, **options)  # type: ignore[arg-type]
    inputs = [each.cuda() for each in (boxes, scores, groups)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = nms_at_once(*inputs, **options)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ours[0].cpu(), theirs[0]) and torch.equal(ours[1].cpu(), theirs[1])
