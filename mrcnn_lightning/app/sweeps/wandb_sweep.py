"""W&B's sweeps: the yaml that `wandb sweep` takes, from the search space of a configuration."""

import math
from collections.abc import Sequence
from typing import Any

import hydra
import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mrcnn_lightning.app.command_line import CONF, of_jobs
from mrcnn_lightning.app.sweeps.search_space import as_override, first_value, grid, read_space
from mrcnn_lightning.user_error import UserError

_METRIC = "val/ap"
_METHODS = {"GridSampler": "grid", "RandomSampler": "random"}
_NUM_OF_LOG_INTEGERS = 16


def wandb_sweep(overrides: Sequence[str]) -> str:
    """The yaml.

    Args:
        overrides: as for training, with a `hparams_search` or ranges of their own.

    Raises:
        UserError: nothing is to be searched.
    """
    loggers = [] if any(each.startswith("logger=") for each in overrides) else ["logger=wandb"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader: ConfigLoader = GlobalHydra.instance().config_loader()
        words = [*read_space({}, overrides, loader).fixed.values(), *loggers]
        cfg = hydra.compose("train", [*words, "run_dir=unused"], return_hydra_config=True)
        sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
        space = read_space(sweeper["params"] or {}, [*overrides, *loggers], loader)
        first = [as_override(key, first_value(each)) for key, each in space.ranges.items()]
        hydra.compose("train", [*words, *first, "run_dir=unused"])  # before an agent fails of it
    if not space.ranges:
        raise UserError("nothing is to be searched: say hparams_search=NAME, or a range for a key")
    method = _METHODS.get(
        sweeper.get("sampler", {}).get("_target_", "Grid").split(".")[-1], "bayes"
    )
    if "sampler" not in sweeper:  # Hydra's own sweeper takes all combinations
        method = "grid"
    is_grid = method == "grid"
    values = grid(space.ranges) if is_grid else {}
    goal = sweeper.get("direction", "maximize")
    content = {
        "name": sweeper.get("study_name") or cfg.name,
        "project": cfg.logger.wandb.project if "wandb" in cfg.logger else "mrcnn_lightning",
        "program": "mrcnn_lightning",
        "method": method,
        "metric": {"name": _METRIC, "goal": goal},
        "parameters": {
            key: {"values": values[key]} if is_grid else _parameter(distribution)
            for key, distribution in space.ranges.items()
        },
        "command": [
            "${env}",
            "${interpreter}",
            "-m",
            "mrcnn_lightning",
            "train",
            *of_jobs(space.fixed.values()),
            "${args_no_hyphens}",
            "hydra.mode=RUN",
        ],
    }
    if "n_trials" in sweeper:
        content["run_cap"] = sweeper["n_trials"]
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text


def _parameter(distribution: BaseDistribution) -> dict[str, Any]:
    """A range in W&B's words."""
    if isinstance(distribution, CategoricalDistribution):
        return {"values": list(distribution.choices)}
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    limits = {"min": distribution.low, "max": distribution.high}
    if isinstance(distribution, IntDistribution) and distribution.log:
        return {"values": _log_integers(distribution.low, distribution.high)}
    if distribution.step not in (None, 1):  # W&B's steps start at zero
        return {"values": grid({"": distribution})[""]}
    if isinstance(distribution, IntDistribution):
        return {"distribution": "int_uniform"} | limits
    return {"distribution": "log_uniform_values" if distribution.log else "uniform"} | limits


def _log_integers(low: int, high: int) -> list[int]:
    """Integers that are about evenly spaced in their logarithm, for which W&B has no word."""
    step = (math.log(high) - math.log(low)) / (_NUM_OF_LOG_INTEGERS - 1)
    return sorted({round(low * math.exp(step * i)) for i in range(_NUM_OF_LOG_INTEGERS)})
