"""Every yaml composes, and its keys are the arguments of what it names."""

import functools
import inspect
import re
from typing import Any

import hydra
import pytest
import torch
import yaml
from hydra.core.plugins import Plugins
from hydra.utils import get_object
from omegaconf import OmegaConf

from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.app.sweeps.search_space import as_override, first_value, read_space
from mrcnn_lightning.app.values import check_values
from mrcnn_lightning.models.backbones.backbone import Backbone
from tests.conftest import compose

# Arguments that a part gets from whoever completes it.
HEAD = {"strides", "num_classes", "roi_stage"}
MASKS = {"masks", "frames", "boxes", "size"}
SIZE = {"size", "min_size", "max_size"}
IMAGES = {"images", "labels", "num_images"}
COMPLETED = {
    "FPN": {"in_channels", "strides"},
    "SingleLevel": {"in_channels", "strides"},
    "RPN": {"in_channels", "strides"},
    "RoIAlign": {"strides"},
    "CropAndResize": {"strides"},
    "RoIPool": {"strides"},
    "TwoFC": {"in_channels", "size"},
    "Convs": {"in_channels", "size"},
    "ConvsFC": {"in_channels", "size"},
    "NormedTwoFC": {"in_channels", "size"},
    "Average": {"in_channels", "size"},
    "BoxHead": HEAD,
    "CascadeBoxHead": HEAD,
    "MaskHead": HEAD,
    "mask_targets": MASKS,
    "binary_mask_targets": MASKS,
    "cropped_mask_targets": MASKS,
    "resized_crops": MASKS - {"frames"},
    "sampled_crops": MASKS - {"frames"},
    "shorter_side": SIZE,
    "shorter_side_rounded": SIZE,
    "enlarged": SIZE,
    **dict.fromkeys(("uniform", "repeat_factor", "class_balanced"), IMAGES),
    "Detector": {"class_names"},
    "papers": {"detector"},
    "torchvision": {"detector"},
    "detectron2": {"detector"},
    "vgg": {"detector"},
    "matterport": {"detector"},
    "DetectionTask": {"description"},
    "COCODataModule": {"with_masks"},
    "MLflow": {"earlier"},
    "TensorBoard": {"earlier"},
    "Wandb": {"earlier"},
    "multistep": {"optimizer", "total_steps"},
    "cosine": {"optimizer", "total_steps"},
}


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


OPTIONS = {
    **{
        group: options(group)
        for group in (
            "backbone",
            "backbone/pixels",
            "model/neck",
            "model/mask_head",
            "data",
            "optimizer",
            "scheduler",
            "trainer",
            "callbacks",
            "logger",
        )
    },
    "model/box_head": [name for name in options("model/box_head") if name != "roi_pool"],
    "model/box_loss@model.rpn.box_loss": options("model/box_loss"),
    "model/pooler@model.mask_head.pooler": options("model/pooler")[:2],
    "data/files@data": options("data/files"),
}
# One of each group together: what a group composes does not depend on the others.
CHOICES = [
    *(
        tuple(f"{group}={names[number % len(names)]}" for group, names in OPTIONS.items())
        for number in range(max(map(len, OPTIONS.values())))
    ),
    *((f"data/canvas={name}",) for name in options("data/canvas")),
    *((f"data/windows={name}",) for name in options("data/windows")),
    *((f"data/sampling={name}",) for name in options("data/sampling")),
    *((f"model={name}",) for name in options("model")),
    *((f"experiment={name}",) for name in options("experiment")),
]


def nodes(config: Any) -> Any:
    """All dictionaries with a `_target_`, wherever they are."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in config.values():
            yield from nodes(value)
    if isinstance(config, list):
        for value in config:
            yield from nodes(value)


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: choices[0])
def test_keys_are_the_arguments(choices: tuple[str, ...]) -> None:
    cfg = compose(*choices)
    check_values(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    for node in nodes(config):
        target = get_object(node["_target_"])
        arguments = inspect.signature(target).parameters
        keys = set(node) - {"_target_", "_partial_"}
        if node["_target_"].startswith("mrcnn_lightning"):
            name = node["_target_"].rpartition(".")[2]
            assert keys == set(arguments) - COMPLETED.get(name, set()), node["_target_"]
        else:
            assert keys <= set(arguments), node["_target_"]


def test_every_group_was_looked_at() -> None:
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    looked_at = {choice.partition("=")[0] for choices in CHOICES for choice in choices}
    assert groups - looked_at <= {"hparams_search", "hydra", "launcher", "local"}


# Whose files may set what is not theirs: a recipe chooses groups, the others are the user's.
GLOBAL = {"experiment", "hparams_search", "launcher", "local"}


def test_only_recipes_touch_other_groups() -> None:
    for file in CONF.rglob("*.yaml"):
        parts, text = file.relative_to(CONF).parts, file.read_text()
        if parts[0] not in GLOBAL:
            content = yaml.safe_load(text) or {}
            assert "# @package" not in text or set(content) == {parts[0]}, file
            choices = content.get("defaults", [])
            for choice in choices if len(parts) > 1 else []:
                name = next(iter(choice)) if isinstance(choice, dict) else choice
                absolute = re.match(r"(?:override )?/(\w+)", name)
                assert absolute is None or absolute[1] == parts[0], (file, choice)


def test_a_recipe_only_chooses() -> None:
    """Values are in the groups' files, so that what is chosen instead is whole."""
    for name in options("experiment"):
        values = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
        allowed = {"defaults", "name", "data_root", "show_score", "task", "phases", "weights"}
        assert set(values) <= allowed, name


# One of each kind; the others choose less.
RECIPES = [
    None,
    "balloon",
    "faster_rcnn_vgg16",
    "mask_rcnn_r50_c4_3x",
    "mask_rcnn_r50_fpn_100ep_lsj",
    "matterport",
    "shapes",
]
GROUPS = ("model", "backbone", "optimizer", "scheduler", "data", "trainer")


@functools.cache
def alone(group: str, option: str) -> Any:
    """A group's option, composed with the defaults of all others, references as they are."""
    return OmegaConf.to_container(compose(f"{group}={option}")[group])


def test_what_a_file_says_is_what_is_composed() -> None:
    for group in ("optimizer", "scheduler"):
        for option in options(group):
            said = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
            base = said.pop("defaults", [None])[0]
            whole = (alone(group, base) if base else {}) | said
            assert alone(group, option) == whole


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_chosen_wins_whole(recipe: str | None) -> None:
    """In every recipe, each group that the command line chooses equals its file."""
    number = RECIPES.index(recipe)
    chosen = {group: options(group)[number % len(options(group))] for group in GROUPS}
    words = [f"{group}={option}" for group, option in chosen.items()]
    cfg = compose(*([f"experiment={recipe}"] if recipe else []), *words)
    for group, option in chosen.items():
        assert OmegaConf.to_container(cfg[group]) == alone(group, option), words


@pytest.mark.slow
def test_every_pair_of_model_and_backbone_composes_whole() -> None:
    """With optimizers and schedulers dealt out so that each meets each model and each backbone."""
    optimizers, schedulers = options("optimizer"), options("scheduler")
    for i, model in enumerate(options("model")):
        for k, backbone in enumerate(options("backbone")):
            chosen = {
                "model": model,
                "backbone": backbone,
                "optimizer": optimizers[(i + k) % len(optimizers)],
                "scheduler": schedulers[(2 * i + k) % len(schedulers)],
            }
            cfg = compose(*(f"{group}={option}" for group, option in chosen.items()))
            for group, option in chosen.items():
                assert OmegaConf.to_container(cfg[group]) == alone(group, option), chosen


# One backbone of each kind that a model can tell apart, and the maps that it hands out.
KINDS = {
    "mobilenet_v2": "pyramid",
    "mobilenet_v3_large_c5": "two maps",
    "resnet50_caffe_c4": "a stage for RoIs",
    "resnet50_caffe_dc5": "one map",
    "vgg16_conv5": "one map",
}
BELONG = {
    "faster_rcnn_mobilenet_v3": {"two maps"},
    "mask_rcnn_d2_c4": {"a stage for RoIs"},
    "mask_rcnn_d2_dc5": {*KINDS.values()},
    "faster_rcnn_vgg16": {*KINDS.values()},
}


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    with torch.device("meta"):
        return {
            name: hydra.utils.instantiate(compose(f"backbone={name}").backbone, _convert_="all")
            for name in KINDS
        }


@pytest.mark.parametrize("model", options("model"))
def test_a_backbone_of_another_kind_is_one_sentence(
    model: str, backbones: dict[str, Backbone]
) -> None:
    cfg = compose(f"model={model}")
    cfg.model.backbone = None
    with torch.device("meta"):
        make = hydra.utils.instantiate(cfg.model, _convert_="all")
        for name, kind in KINDS.items():
            parts = {"backbone": backbones[name], "class_names": ["object"]}
            if kind in BELONG.get(model, {"pyramid"}):
                make(**parts)
                continue
            with pytest.raises(ValueError, match=r"levels, but the neck gives|stage") as caught:
                make(**parts)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words", ["model=matterport", "experiment=matterport", "experiment=shapes"]
)
def test_adamw_has_its_own_learning_rate_everywhere(words: str) -> None:
    cfg = compose(words, "optimizer=adamw")
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 0.05)
    assert compose(words, "optimizer=adamw", "optimizer.lr=3e-4").optimizer.lr == 3e-4


def test_the_compositions_that_once_surprised() -> None:
    cfg = compose("model=mask_rcnn_d2_gn", "backbone=resnet101")
    assert (cfg.backbone.depth, cfg.backbone.weights) == (101, "IMAGENET1K_V1")
    assert cfg.backbone.pixels.channel_order == "RGB"
    cfg = compose("model=faster_rcnn_vgg16", "backbone=resnet50")
    assert cfg.backbone.outputs == ["layer1", "layer2", "layer3", "layer4"]
    cfg = compose("model=matterport", "data=shapes")
    assert cfg.data.canvas.multiple == 32 and cfg.data.resize.max_size == 128
    assert cfg.phases == [] and cfg.trainer.gradient_clip_val is None


def test_recipes_take_ones_own_files() -> None:
    for name in ("matterport", "mask_rcnn_r50_fpn_100ep_lsj", "balloon"):
        cfg = compose(f"experiment={name}", "data/files@data=custom", "data_root=DIR")
        assert cfg.data.train_json == "DIR/annotations/instances_train.json"


def test_items_of_lists_can_be_overridden() -> None:
    cfg = compose("data.train_transforms.0.min_size=[640]")
    assert cfg.data.train_transforms[0].min_size == [640]


def test_published_recipes_sample_a_quarter_of_positives() -> None:
    assert compose().model.roi_sampler.positive_fraction == 0.33
    for experiment in options("experiment"):
        if "rcnn" in experiment:
            cfg = compose(f"experiment={experiment}")
            assert cfg.name == experiment
            if experiment == "faster_rcnn_vgg16":  # py-faster-rcnn's, not Detectron2's
                continue
            assert cfg.callbacks.early_stopping is None
            assert cfg.model.roi_sampler.positive_fraction == 0.25
            # Detectron2 decays biases, and leaves images without objects out.
            assert cfg.task.decay_biases and cfg.data.skip_empty
            lsj = "lsj" in experiment
            assert cfg.data.batch_size == (64 if lsj else 16)
            assert cfg.optimizer.lr == (0.1 if lsj else 0.02)
            steps = 270000 if "3x" in experiment else 90000
            assert cfg.trainer.max_steps == (184375 if lsj else steps)


def test_every_form_of_detectron2s_has_a_recipe() -> None:
    recipes = "".join(file.read_text() for file in (CONF / "experiment").glob("*rcnn*.yaml"))
    for model in options("model"):
        if "d2" in model or "cascade" in model:
            assert f"override /model: {model}\n" in recipes, model


@pytest.mark.parametrize("name", options("hparams_search"))
def test_searches(name: str) -> None:
    """Each sweeps what its configuration has, with the keys that the sweeper takes."""
    words = ["experiment=shapes", f"hparams_search={name}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [*words, "run_dir=x"], return_hydra_config=True)
        assert cfg.hydra.mode.name == "MULTIRUN"
        sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
        ranges = read_space(sweeper["params"] or {}, words).ranges
        first = [as_override(key, first_value(each)) for key, each in ranges.items()]
        check_values(hydra.compose("train", [*words, *first, "run_dir=x"]))
    assert bool(ranges) == (name != "optuna")
    if name != "lr":
        target = Plugins.instance().class_name_to_class[sweeper.pop("_target_")]
        assert set(sweeper) == set(inspect.signature(target).parameters)
        assert cfg.hydra.sweep.dir == f"runs/shapes/{sweeper['study_name']}"


def test_the_local_launcher_has_the_keys_that_it_takes() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", ["launcher.n_jobs=3"], return_hydra_config=True)
    launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    target = Plugins.instance().class_name_to_class[launcher.pop("_target_")]
    assert launcher == {"n_jobs": 3, "gpus_per_job": None}
    assert set(launcher) == set(inspect.signature(target).parameters)


@pytest.mark.parametrize("name", options("hydra/sweeper/sampler"))
def test_samplers(name: str) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["hparams_search=optuna", f"hydra/sweeper/sampler={name}"]
        cfg = hydra.compose("train", words, return_hydra_config=True)
    sampler: Any = OmegaConf.to_container(cfg.hydra.sweeper.sampler)
    arguments = inspect.signature(get_object(sampler["_target_"])).parameters
    assert set(sampler) - {"_target_", "_partial_"} <= set(arguments)


def test_experiments_say_their_command_first() -> None:
    for file in (CONF / "experiment").glob("*.yaml"):
        lines = file.read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert lines[1].startswith(f"# python train.py experiment={file.stem}")
