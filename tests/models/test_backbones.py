from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.backbones.backbone import Backbone
from mrcnn_lightning.models.backbones.classifiers import torchvision_features
from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.models.backbones.resnets import resnet
from mrcnn_lightning.models.backbones.timm_backbone import timm as timm_network
from mrcnn_lightning.weights.load import load_backbone

PIXELS = Pixels(channel_order="RGB", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def build(depth: int = 18, **changes: object) -> Backbone:
    arguments = {
        "depth": depth,
        "pixels": PIXELS,
        "width": 64,
        "groups": 1,
        "width_per_group": 64,
        "form": "torchvision",
        "dilate_last": False,
        "outputs": ["layer1", "layer2", "layer3", "layer4"],
        "roi_layer": None,
        "norm": "bn",
        "norm_eps": 1e-5,
        "trainable_stages": 5,
        "weights": None,
    }
    return loaded(resnet(**(arguments | changes)))  # type: ignore[arg-type]


def loaded(backbone: Backbone) -> Backbone:
    """With the weights that it was made for."""
    if backbone.pretrained is not None:
        load_backbone(backbone)
    return backbone


def torchvision_backbone(**arguments: Any) -> Backbone:
    return loaded(torchvision_features(**arguments))


def timm_backbone(**arguments: Any) -> Backbone:
    return loaded(timm_network(**arguments))


def shake(model: nn.Module) -> None:
    """Batch-norm statistics that are not trivial."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnet_is_torchvisions(depth: int, tmp_path: Path) -> None:
    peer = getattr(torchvision.models, f"resnet{depth}")()
    shake(peer)
    torch.save(peer.state_dict(), tmp_path / "resnet.pth")
    backbone = build(depth, norm="frozen_bn", weights=str(tmp_path / "resnet.pth")).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    peer.double()
    features = peer.eval().maxpool(peer.relu(peer.bn1(peer.conv1(image))))
    for ours, layer in zip(
        backbone(image), (peer.layer1, peer.layer2, peer.layer3, peer.layer4), strict=True
    ):
        features = layer(features)
        assert (ours - features).abs().max() <= 1e-9 * features.abs().max()
    shapes = [(feature.shape[1], 64 // feature.shape[2]) for feature in backbone(image)]
    assert shapes == list(zip(backbone.out_channels, backbone.strides, strict=True))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnext50_32x4d", {"groups": 32, "width_per_group": 4}),
        ("wide_resnet50_2", {"width_per_group": 128}),
    ],
)
def test_wider_resnets_are_torchvisions(
    name: str, settings: dict[str, int], tmp_path: Path
) -> None:
    peer = torchvision.models.get_model(name)
    shake(peer)
    torch.save(peer.state_dict(), tmp_path / "resnet.pth")
    backbone = build(50, norm="frozen_bn", weights=str(tmp_path / "resnet.pth"), **settings)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    peer.double().eval()
    features = peer.maxpool(peer.relu(peer.bn1(peer.conv1(image))))
    expected = peer.layer4(peer.layer3(peer.layer2(peer.layer1(features))))
    ours = backbone.double()(image)[-1]
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


FEATURES = {
    "mobilenet_v2": ([3, 6, 13, 18], "frozen_bn"),
    "mobilenet_v3_large": ([3, 6, 12, 16], "bn"),
    "efficientnet_b0": ([2, 3, 5, 8], "frozen_bn"),
    "vgg16": ([15, 22, 29, 30], None),
    "convnext_tiny": ([1, 3, 5, 7], None),
    "swin_t": ([1, 3, 5, 7], None),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_torchvisions(name: str, tmp_path: Path) -> None:
    outputs, norm = FEATURES[name]
    options = {} if norm is None else {"norm_layer": torch.nn.BatchNorm2d}
    peer = torchvision.models.get_model(name, **options)
    shake(peer)
    torch.save(peer.state_dict(), tmp_path / "weights.pth")
    backbone = torchvision_backbone(
        name=name,
        pixels=PIXELS,
        norm=norm,
        norm_eps=None if norm is None else 1e-5,
        outputs=outputs,
        trainable_stages=3,
        weights=str(tmp_path / "weights.pth"),
    )
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    maps = backbone.double().eval()(image)
    features, expected = image, []
    for number, layer in enumerate(peer.double().eval().features):
        features = layer(features)
        if number in outputs:
            expected.append(features.permute(0, 3, 1, 2) if name == "swin_t" else features)
    for ours, theirs in zip(maps, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    shapes = [(feature.shape[1], 64 // feature.shape[2]) for feature in maps]
    assert shapes == list(zip(backbone.out_channels, [4, 8, 16, 32], strict=True))
    assert backbone.strides == [4, 8, 16, 32]


def test_norms_that_do_more_are_left_whole() -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    backbone = timm_backbone(
        name="densenet121",  # its norms are followed by ReLUs of their own
        pixels=PIXELS,
        out_indices=[1, 2],
        trainable_stages=1,
        weights=None,
    ).eval()
    assert any(isinstance(layer, timm.layers.BatchNormAct2d) for layer in backbone.body)
    features = image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for layer in backbone.body:
            features = layer(features)
        assert torch.equal(backbone(image)[-1], features)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timms_features_are_timms(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    peer = timm.create_model(name, num_classes=7).eval()
    shake(peer)
    torch.save(peer.state_dict(), tmp_path / "weights.pth")
    indices = [0, 1, 2, 3] if name != "resnet18" else [1, 2, 3, 4]
    backbone = timm_backbone(
        name=name,
        pixels=PIXELS,
        out_indices=indices,
        trainable_stages=2,
        weights=str(tmp_path / "weights.pth"),
    ).eval()
    assert backbone.strides == [4, 8, 16, 32]
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features, maps = peer.forward_features(image), backbone(image)
    last = features.permute(0, 3, 1, 2) if name.startswith("swin") else features
    assert last.shape[1] == backbone.out_channels[-1]
    if name == "resnet18":  # the others end in a norm that is the classifier's
        torch.testing.assert_close(maps[-1], last, rtol=1e-4, atol=1e-4)
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    assert 0 < len(frozen) < len(list(backbone.parameters()))


def test_timm_without_network_and_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an extra")

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no address for this host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    common = {"pixels": PIXELS, "out_indices": [1, 2, 3, 4], "trainable_stages": 3}
    with pytest.raises(ValueError, match="backbone.name=resnet999 .*timm cannot make it"):
        timm_backbone(name="resnet999", weights=None, **common)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backbone.weights=pretrained: timm cannot make it"):
        timm_backbone(name="resnet18", weights="pretrained", **common)  # type: ignore[arg-type]


def test_timms_own_weights_want_their_own_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)
    backbone = {"out_indices": [1, 2, 3, 4], "trainable_stages": 3, "weights": "pretrained"}
    timm_backbone(name="resnet18", pixels=PIXELS, **backbone)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trained with backbone.pixels.mean=\[127.5, 127.5,"):
        timm_backbone(name="resnetv2_50x1_bit", pixels=PIXELS, **backbone)  # type: ignore[arg-type]


TIMMS_OWN_WRAPPERS = {  # stem, first stage that is trained, for trainable_stages=2
    "efficientnet_lite0": ("conv_stem", "blocks_3"),
    "mobilenetv3_small_050": ("conv_stem", "blocks_2"),
    "mobilenetv4_conv_small_050": ("conv_stem", "blocks_2"),
    "hrnet_w18_small": ("branches.conv1", "branches.transition2"),
}


@pytest.mark.parametrize("name", TIMMS_OWN_WRAPPERS)
def test_networks_that_timm_wraps_itself(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=7)
    shake(whole)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    peer = timm.create_model(name, features_only=True, out_indices=[1, 2, 3, 4]).double().eval()
    shared = {key: whole.state_dict()[key] for key in peer.state_dict() if "classifier" not in key}
    peer.load_state_dict(shared, strict=False)
    backbone = timm_backbone(
        name=name,
        pixels=PIXELS,
        out_indices=[1, 2, 3, 4],
        trainable_stages=2,
        weights=str(tmp_path / "weights.pth"),
    ).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for ours, theirs in zip(backbone.eval()(image), peer(image), strict=True):
            assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    assert backbone.strides == peer.feature_info.reduction() == [4, 8, 16, 32]
    assert backbone.out_channels == peer.feature_info.channels()

    stem, first = TIMMS_OWN_WRAPPERS[name]
    fixed = backbone.body.get_submodule(stem)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    learns = backbone.body.get_submodule(first)
    assert all(parameter.requires_grad for parameter in learns.parameters())
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    sum(map_.sum() for map_ in backbone.train()(torch.cat([image, image + 1]))).backward()
    trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    for key, parameter in backbone.named_parameters():  # DDP waits for each one's gradient
        assert (parameter.grad is not None) == (key in trained), key
    for key, value in backbone.named_buffers():  # the frozen stages' statistics stay
        if key.endswith("running_mean"):
            moved = f"{key.removesuffix('running_mean')}weight" in trained
            assert torch.equal(value, before[key]) != moved, key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "does not give its maps layer by layer"),
        ("vit_small_patch14_dinov2", "does not give its maps layer by layer"),
        ("hiera_tiny_224", "does not give its maps layer by layer"),
        ("xception41", "does not give its maps layer by layer"),
        ("maxvit_pico_rw_256", r"cannot take an image of 64 x 96 .*divisible by window"),
        ("coatnet_nano_rw_224", "cannot take an image of 64 x 96 pixels"),
        ("sequencer2d_s", "9 cells of 64 pixels, which is no whole stride"),
    ],
)
def test_timms_networks_that_are_no_backbones(name: str, message: str) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    # CoAtNet's first stages are convolutions, which take any image.
    indices = [0, 1, 2, 3] if name.startswith("coatnet") else [0, 1, 2]
    with pytest.raises(ValueError, match=message) as caught, torch.device("meta"):
        timm_backbone(
            name=name, pixels=PIXELS, out_indices=indices, trainable_stages=1, weights=None
        )
    assert "\n" not in str(caught.value)


def test_hrnets_maps_come_together_and_names_are_plain() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    given = {"pixels": PIXELS, "trainable_stages": 3, "weights": None}
    with pytest.raises(ValueError, match=r"set backbone.out_indices=\[1,2,3,4\]"):
        timm_backbone(name="hrnet_w18_small", out_indices=[1, 2], **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hf-hub:timm/resnet18 is no plain name .*weights=FILE"):
        timm_backbone(name="hf-hub:timm/resnet18", out_indices=[1], **given)  # type: ignore[arg-type]


def wrappings(state: dict[str, Tensor]) -> dict[str, dict[str, object]]:
    """What training programs make of a network's weights."""
    in_ddp = {f"module.{key}": value for key, value in state.items()}
    older = {key: torch.zeros_like(value) for key, value in state.items()}
    return {
        "plain": dict(state),
        "DDP": dict(in_ddp),
        "torchvision's scripts": {"model": state, "optimizer": {"lr": 1}, "epoch": 3},
        "torchvision's averaged": {
            "model": older,
            "model_ema": in_ddp | {"n_averaged": torch.tensor(5)},
        },
        "timm's scripts": {"epoch": 3, "arch": "x", "state_dict": older, "state_dict_ema": state},
        "Lightning's": {"state_dict": {f"model._orig_mod.{key}": state[key] for key in state}},
    }


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_files_of_training_programs_are_unwrapped_and_others_refused(
    kind: str, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    path = tmp_path / "weights.pth"

    def load() -> Backbone:
        if kind == "torchvision":
            return build(18, weights=str(path))
        return timm_backbone(
            name="resnet18",
            pixels=PIXELS,
            out_indices=[1, 2, 3, 4],
            trainable_stages=3,
            weights=str(path),
        )

    state = torchvision.models.resnet18().state_dict()  # timm's has the same names
    for kind_of_file, content in wrappings(state).items():
        torch.save(content, path)
        for key, value in load().body.state_dict().items():
            assert torch.equal(value, state[key]), kind_of_file
    smaller = {key: state[key] for key in list(state)[:50]}
    others = timm.create_model("convnext_atto").state_dict()
    nonsense = {"a": torch.zeros(3), "b": torch.ones(2)}
    for content in (others, nonsense, smaller, {}, state | nonsense):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"backbone.weights=.* is not of this arch") as caught:
            load()
        assert "\n" not in str(caught.value)


def test_timms_authors_files_and_wrong_ones(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    path = tmp_path / "weights.pth"
    given = {"pixels": PIXELS, "out_indices": [0, 1, 2, 3], "trainable_stages": 1}
    given |= {"name": "convnext_atto", "weights": str(path)}
    state = timm.create_model("convnext_atto").state_dict()
    authors = {}
    for key, value in state.items():  # Meta's names
        for timms, theirs in [
            ("stem.", "downsample_layers.0."),
            *((f"stages.{i}.downsample.", f"downsample_layers.{i}.") for i in (1, 2, 3)),
            (".blocks.", "."),
            ("head.norm.", "norm."),
            ("head.fc.", "head."),
            ("conv_dw", "dwconv"),
            ("mlp.fc", "pwconv"),
        ]:
            key = key.replace(timms, theirs)
        authors[key] = value
    torch.save({"model": authors}, path)
    body = timm_backbone(**given).body.state_dict()  # type: ignore[arg-type]
    key = "stages_2.blocks.1.conv_dw.weight"
    assert torch.equal(body[key], state[key.replace("stages_", "stages.")])
    for content in (timm.create_model("resnet18").state_dict(), {"a": "x"}, {"a": torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"backbone.weights=.* is not of this architecture"):
            timm_backbone(**given)  # type: ignore[arg-type]


def test_files_want_the_pixels_that_their_names_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("efficientnet_es").state_dict(), path)
    odd = Pixels(channel_order="RGB", mean=[127.5] * 3, std=[127.5] * 3)
    given = {"out_indices": [1, 2, 3, 4], "trainable_stages": 3, "weights": str(path)}
    with pytest.raises(ValueError, match=r"efficientnet_es.ra_in1k: .*trained with .*\[123.675, "):
        timm_backbone(name="efficientnet_es.ra_in1k", pixels=odd, **given)  # type: ignore[arg-type]
    timm_backbone(name="efficientnet_es.ra_in1k", pixels=PIXELS, **given)  # type: ignore[arg-type]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    timm_backbone(name="efficientnet_es", pixels=odd, **given)  # type: ignore[arg-type]
    assert "if the file has these, set these" in caplog.text

    # torchvision's file by its own name, and a network whose weights differ in what they expect.
    published = tmp_path / "resnet18-f37072fd.pth"
    torch.save(torchvision.models.resnet18().state_dict(), published)
    build(18, weights=str(published))
    bgr = Pixels(channel_order="BGR", mean=PIXELS.mean, std=PIXELS.std)
    for wrong in (odd, bgr):
        with pytest.raises(ValueError, match=r"ResNet18_Weights.IMAGENET1K_V1, .*=\[123.675, "):
            build(18, weights=str(published), pixels=wrong)
    with pytest.raises(ValueError, match=r"ResNet18_Weights.IMAGENET1K_V1, .*=\[123.675, "):
        build(18, weights="DEFAULT", pixels=bgr)
    with pytest.raises(ValueError, match=r"VGG16_Weights.IMAGENET1K_FEATURES, .*std=\[1.0, 1.0"):
        torchvision_backbone(
            name="vgg16",
            pixels=PIXELS,
            norm=None,
            norm_eps=None,
            outputs=[30],
            trainable_stages=3,
            weights="IMAGENET1K_FEATURES",
        )


def test_forms_of_a_resnet() -> None:
    image = torch.randn(1, 3, 64, 96)
    caffe, tensorflow = build(50, form="caffe"), build(50, form="tensorflow")
    for backbone in (caffe, tensorflow):
        block = backbone.body.layer2[0]
        assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1)
        assert block.downsample[0].stride == (2, 2)
        assert [64 // feature.shape[2] for feature in backbone(image)] == [4, 8, 16, 32]
    assert caffe.body.layer2[0].conv1.bias is None
    assert tensorflow.body.layer2[0].conv1.bias is not None


def test_a_dilated_last_stage_keeps_its_stride() -> None:
    backbone = build(50, dilate_last=True, outputs=["layer4"], trainable_stages=3)
    assert backbone.strides == [16] and backbone.out_channels == [2048]
    assert all(block.conv2.dilation == (2, 2) for block in backbone.body.layer4)
    assert not backbone.body.layer1[0].conv1.weight.requires_grad
    assert backbone.body.layer2[0].conv1.weight.requires_grad


def test_the_last_stage_may_be_for_rois() -> None:
    backbone = build(50, outputs=["layer3"], roi_layer="layer4", trainable_stages=0)
    (feature,) = backbone(torch.randn(1, 3, 64, 96))
    assert feature.shape == (1, 1024, 4, 6)
    pooled = torch.randn(3, 1024, 14, 14)
    assert backbone.roi_stage is not None and backbone.roi_stage.out_channels == 2048
    assert backbone.roi_stage(pooled).shape == (3, 2048, 7, 7) and backbone.roi_stage.size(14) == 7
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert build(18, outputs=["layer2"]).body.__len__() == 6  # what comes after is left out


def test_slim_resnet_has_its_own_widths() -> None:
    maps = build(width=24)(torch.randn(1, 3, 64, 64))
    assert [feature.shape[1] for feature in maps] == [24, 48, 96, 192]


@pytest.mark.parametrize("trainable", [0, 3, 5])
def test_frozen_stages_neither_learn_nor_move_their_statistics(trainable: int) -> None:
    backbone = build(trainable_stages=trainable).train()
    stages = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    for number, stage in enumerate(stages):
        for name in stage:
            layer = backbone.body.get_submodule(name)
            learns = number >= 5 - trainable
            assert all(parameter.requires_grad == learns for parameter in layer.parameters())
            assert layer.training == learns

    def statistics() -> Tensor:
        return torch.cat([buffer.flatten().float() for buffer in backbone.buffers()]).clone()

    before = statistics()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, statistics()) == (trainable == 0)


def test_frozen_batch_norm_everywhere() -> None:
    backbone = build(norm="frozen_bn")
    kinds = {type(layer) for layer in backbone.modules() if "Norm" in type(layer).__name__}
    assert kinds == {FrozenBatchNorm2d}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 42}, "backbone.depth=42 is not one of"),
        ({"norm": "batch"}, "norm=batch is not known: it is one of frozen_bn, bn"),
        ({"trainable_stages": 6}, "backbone.trainable_stages=6 is not between 0 and 5"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)  # type: ignore[arg-type]
