import functools
import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights import detectron2
from mrcnn_lightning.weights.files import read_file
from mrcnn_lightning.weights.load import load_detector
from mrcnn_lightning.weights.own import DESCRIPTION_KEY
from tests.conftest import build_model
from tests.models.test_backbones import build

COCO_91 = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_80 = [name for name in COCO_91[1:] if name != "N/A"]


COCO_V1 = "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"


def torchvision_state(num_classes: int) -> dict[str, Any]:
    torch.manual_seed(num_classes)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    return torchvision.models.detection.MaskRCNN(backbone, num_classes).state_dict()


def old_names(state: dict[str, Any]) -> dict[str, Any]:
    """The names in torchvision's published file, which is older than its code."""
    renamed = {}
    for key, value in state.items():
        for new, old in [
            ("rpn.head.conv.0.0.", "rpn.head.conv."),
            *((f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.") for i in range(4)),
            *((f"inner_blocks.{i}.0.", f"inner_blocks.{i}.") for i in range(4)),
            *((f"layer_blocks.{i}.0.", f"layer_blocks.{i}.") for i in range(4)),
        ]:
            key = key.replace(new, old)
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def coco_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "coco.pth"
    torch.save(old_names(torchvision_state(91)), path)
    return path


def test_rows_of_91_classes_become_cocos_80(coco_file: Path) -> None:
    model = build_model(class_names=COCO_80)
    load_detector(model, str(coco_file))
    state, ours = torchvision_state(91), model.state_dict()
    zebra = COCO_91.index("zebra")
    row = COCO_80.index("zebra")
    expected = state["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(ours["box_head.branch.classifier.weight"][row + 1], expected[zebra])
    assert torch.equal(ours["box_head.branch.classifier.weight"][0], expected[0])
    expected = state["roi_heads.box_predictor.bbox_pred.bias"].view(91, 4)
    assert torch.equal(ours["box_head.branch.deltas.bias"].view(80, 4)[row], expected[zebra])
    expected = state["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    assert torch.equal(ours["mask_head.classifier.weight"][row], expected[zebra])
    expected = state["roi_heads.mask_head.2.0.weight"]
    assert torch.equal(ours["mask_head.trunk.convs.2.0.weight"], expected)


def test_other_classes_start_afresh_and_all_else_is_loaded(
    coco_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(class_names=["balloon"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level("INFO"):
        load_detector(model, str(coco_file))
    kept = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    kept -= {key for key in kept if "running" in key or "bn" in key or "downsample.1" in key}
    per_class = {"box_head.branch.classifier", "box_head.branch.deltas", "mask_head.classifier"}
    assert {f"{layer}.weight" for layer in per_class} <= kept
    assert {key.rpartition(".")[0] for key in kept} - per_class <= {
        key.rpartition(".")[0] for key in before if key.endswith("bias")
    }
    assert "start afresh" in caplog.text and "mask_head.classifier.weight" in caplog.text


def test_another_architecture_is_one_clear_error(coco_file: Path) -> None:
    model = build_model("backbone=resnet18")
    with pytest.raises(
        ValueError, match="is not of this architecture: .* left over .* of another shape"
    ):
        load_detector(model, str(coco_file))


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    state = torchvision_state(4)
    del state["rpn.head.cls_logits.bias"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"1 missing \(rpn.objectness.bias\)"):
        load_detector(build_model(), str(tmp_path / "partial.pth"))


def test_backbone_file_of_another_depth(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match="backbone.weights=.*resnet34.pth is not of this arch"):
        build(18, weights=str(tmp_path / "resnet34.pth"))


def test_unknown_weights_are_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="backbone.weights=IMAGENET is no weights .*IMAGENET1K_V1"):
        build(18, weights="IMAGENET")
    with pytest.raises(ValueError, match="weights=MaskRCNN_ResNet50_FPN_Weights.V9 is no weights"):
        load_detector(build_model(), "MaskRCNN_ResNet50_FPN_Weights.V9")
    with pytest.raises(ValueError, match="no such file: COCO_V1 .*MaskRCNN_ResNet50_FPN_Weights"):
        load_detector(build_model(), "COCO_V1")


def test_no_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no address for this host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ValueError, match=r"cannot download backbone.weights=.* no address.*fetch"):
        build(18, weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match="cannot download weights=MaskRCNN_.* from https://.*"):
        load_detector(build_model(), "MaskRCNN_ResNet50_FPN_Weights.COCO_V1")


def test_published_weights_are_loaded_by_name_with_their_epsilon(
    coco_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torch.load(coco_file, weights_only=True)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published
    )
    trained = build_model("backbone.norm=bn", class_names=COCO_80)
    with pytest.raises(ValueError, match="epsilon of 0, .*: set backbone.norm_eps=0"):
        load_detector(trained, COCO_V1)
    # A small variance is where an epsilon matters.
    for key in published:
        if key.startswith("backbone.") and key.endswith("running_var"):
            published[key] = torch.full_like(published[key], 1e-5)
    image = torch.randn(1, 3, 64, 64)
    maps = []
    for word in ("backbone.norm_eps=0", "backbone.norm_eps=1e-5"):
        model = build_model(word, class_names=COCO_80)
        load_detector(model, COCO_V1)
        maps.append(model.backbone.body.bn1(model.backbone.body.conv1(image)))
    torch.testing.assert_close(*maps, rtol=1e-6, atol=1e-6)
    by_alias = build_model(class_names=COCO_80)
    load_detector(by_alias, COCO_V1.replace("COCO_V1", "DEFAULT"))
    assert torch.equal(by_alias.backbone.body.bn1.weight, model.backbone.body.bn1.weight)
    by_file = build_model(class_names=COCO_80)
    torch.save(published, file := coco_file.with_name("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"))
    load_detector(by_file, str(file))
    assert torch.equal(by_file.backbone.body.bn1.weight, model.backbone.body.bn1.weight)


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("this code was run",)


def test_files_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such file: nothing.pth"):
        read_file("nothing.pth")
    path = tmp_path / "file.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match="is damaged"):
        read_file(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        read_file(path)
    path.write_text("weights")
    with pytest.raises(ValueError, match=r"is damaged, .* because they could run code$"):
        read_file(path)
    for content in ([1, 2], {1: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"holds a (list|dict), not weights by name"):
            read_file(path)
    torch.save({"conv1.weight": "x"}, path)
    with pytest.raises(
        ValueError, match=r"of another shape \(conv1.weight str for \(64, 3, 7, 7\)"
    ):
        build(18, weights=str(path))
    torch.save({"weight": Malicious()}, path)
    with pytest.raises(ValueError, match="could run code"):
        read_file(path)
    path.write_bytes(pickle.dumps({"weight": Malicious()}))
    with pytest.raises(ValueError, match="could run code"):
        read_file(path)
    assert "this code was run" not in capsys.readouterr().out


def test_a_pickle_of_arrays_is_read_and_one_of_code_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(3), "c": {"d": [1, "x"]}}
    path = tmp_path / "zoo.pkl"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
        content = read_file(path)
        assert (content["a"] == arrays["a"]).all() and content["c"] == {"d": [1, "x"]}
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        read_file(path)
    # Called by the file, numpy.ndarray would take any bytes for addresses of objects.
    for dtype in ("O", "V8", "f8,O"):
        path.write_bytes(
            b"\x80\x03cnumpy\nndarray\nK\x01\x85cnumpy\ndtype\n"
            + b"X" + len(dtype).to_bytes(4, "little") + dtype.encode()
            + b"\x85RC\x08AAAAAAAA\x87R."
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"could run code: numpy.dtype\('"):
            read_file(path)
    # Nor can it change what it may name: setattr(numpy.ndarray, "a", 1).
    path.write_bytes(b"\x80\x02cnumpy\nndarray\nN}X\x01\x00\x00\x00aK\x01s\x86b.")
    with pytest.raises(ValueError, match="is damaged, or holds objects other than arrays"):
        read_file(path)
    for trick in (Malicious(), np.array([Malicious()], dtype=object)):
        path.write_bytes(pickle.dumps({"model": {"weight": trick}}, protocol=2))
        with pytest.raises(ValueError, match="could run code: (builtins|__builtin__|numpy.dtype)"):
            read_file(path)
    assert "this code was run" not in capsys.readouterr().out


def test_91_rows_may_be_kept(coco_file: Path) -> None:
    names = COCO_91[1:]
    model = build_model(class_names=names)
    report = load_detector(model, str(coco_file))
    assert not report.replaced and len(names) == 90
    expected = torchvision_state(91)["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(model.state_dict()["box_head.branch.classifier.weight"], expected)


def test_fine_tuning_to_one_class_replaces_exactly_what_depends_on_classes(coco_file: Path) -> None:
    model = build_model(class_names=["balloon"])
    report = load_detector(model, str(coco_file))
    layers = ("box_head.branch.classifier", "box_head.branch.deltas", "mask_head.classifier")
    assert report.replaced == sorted(
        f"{name}.{kind}" for name in layers for kind in ("weight", "bias")
    )
    assert set(report.loaded) | set(report.replaced) == {
        key for key in model.state_dict() if "num_batches" not in key
    }
    # Boxes for all classes together do not depend on them.
    cascade = build_model("model=cascade_mask_rcnn", "backbone=resnet50", class_names=["a", "b"])
    torch.save(
        {
            "state_dict": {f"model.{key}": value for key, value in cascade.state_dict().items()},
            DESCRIPTION_KEY: {"class_names": ["a", "b"]},
        },
        coco_file.parent / "cascade.ckpt",
    )
    other = build_model("model=cascade_mask_rcnn", "backbone=resnet50", class_names=["c"])
    report = load_detector(other, str(coco_file.parent / "cascade.ckpt"))
    assert {key.rpartition(".")[0] for key in report.replaced} == {
        *(f"box_head.branches.{stage}.classifier" for stage in range(3)),
        "mask_head.classifier",
    }
    assert torch.equal(
        other.box_head.branches[2].deltas.weight, cascade.box_head.branches[2].deltas.weight
    )


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match="is no detector that is known .*encoder.weight.*Detectron2"
    ):
        load_detector(build_model(), str(tmp_path / "other.pth"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server on this machine, and an empty download folder."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "www").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_weights_of_an_address_are_fetched_once_and_checked(server: str, tmp_path: Path) -> None:
    file = tmp_path / "www" / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    Quiet.requests = 0
    for _ in range(2):
        build(18, weights=f"{server}/resnet18.pth#sha256={digest}")
    assert Quiet.requests == 1
    with pytest.raises(ValueError, match="should have a sha256 of 1234567.*is removed"):
        build(18, weights=f"{server}/resnet18.pth#sha256=1234567")
    # torchvision's and Detectron2's files say a part of their hash in their names.
    for name in (f"resnet18-{digest[:8]}.pth", "resnet18-00000000.pth"):
        (tmp_path / "www" / name).write_bytes(file.read_bytes())
    build(18, weights=f"{server}/resnet18-{digest[:8]}.pth")
    with pytest.raises(ValueError, match="should have a sha256 of 00000000"):
        build(18, weights=f"{server}/resnet18-00000000.pth")
    (tmp_path / "www" / "model_final_000000.pkl").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="should have a md5 of 000000"):
        load_detector(build_model(), f"{server}/model_final_000000.pkl")
    # A download that was cut off is not kept, even where there is no hash to tell.
    cut, whole = tmp_path / "www" / "cut.pth", file.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.pth is damaged .* the next try fetches it anew"):
        build(18, weights=f"{server}/cut.pth")
    cut.write_bytes(whole)
    build(18, weights=f"{server}/cut.pth")
    with pytest.raises(
        ValueError, match=r"cannot download backbone.weights=.*404.*fetch that file"
    ):
        build(18, weights=f"{server}/nothing.pth")


def test_detectron2s_short_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_network(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise URLError("no address for this host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(ValueError, match="cannot download weights=detectron2://.*fetch that file"):
        load_detector(build_model(), "detectron2://Misc/model_final_480dd8.pkl")
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/Misc/model_final_480dd8.pkl"]


def test_batch_norm_counters_may_be_missing_or_left_over(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    without = {key: value for key, value in state.items() if "num_batches" not in key}
    for name, content in (("with", state), ("without", without)):
        torch.save(content, tmp_path / name)
        for norm in ("bn", "frozen_bn"):
            build(18, norm=norm, weights=str(tmp_path / name))


def test_a_class_agnostic_head_does_not_go_into_another(tmp_path: Path) -> None:
    slim = ("backbone=resnet18_slim", "model=mask_rcnn_slim")
    agnostic = build_model(*slim, "model.box_head.class_agnostic=true", class_names=["a", "b"])
    state = {f"model.{key}": value for key, value in agnostic.state_dict().items()}
    content = {"state_dict": state, DESCRIPTION_KEY: {"class_names": ["a", "b"]}}
    torch.save(content, tmp_path / "agnostic.ckpt")
    with pytest.raises(UserError, match="2 of another shape .box_head.branch.deltas"):
        load_detector(build_model(*slim, class_names=["b", "a"]), f"{tmp_path}/agnostic.ckpt")


def test_detectron2s_weights_want_bgr(caplog: pytest.LogCaptureFixture) -> None:
    rgb = build_model("model=mask_rcnn_d2").backbone.pixels
    with pytest.raises(UserError, match="BGR images, and the backbone gets RGB: .*resnet50_caffe"):
        detectron2.require_pixels("detectron2://COCO/model.pkl", rgb)
    detectron2.require_pixels("own.pth", rgb)
    assert "whose models take BGR images" in caplog.text
