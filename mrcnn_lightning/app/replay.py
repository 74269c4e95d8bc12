"""A run that diverges leaves a file with which its last step can be run again and looked at."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from mrcnn_lightning.app.command_line import config_options, of_jobs, override
from mrcnn_lightning.app.ranks import own_rank
from mrcnn_lightning.app.resume import OF_A_STEP, last_checkpoint
from mrcnn_lightning.training.callbacks.first_not_finite import FirstNotFinite
from mrcnn_lightning.training.divergence import DivergedError
from mrcnn_lightning.user_error import UserError

FILE = "replay.json"
# Overrides that say where and how a run goes on; those of a replay are its own.
_HOW = ("ckpt_path=", "resume=", "run_dir=", "replay=", "hydra.")
_KEYS = {"step", "overrides", "options", "config", "checkpoint"}


@contextmanager
def kept_for_replay(cfg: DictConfig) -> Iterator[None]:
    """Write `replay.json` if training diverges, and say what to do with it.

    Args:
        cfg: of the whole run.
    """
    try:
        yield
    except DivergedError as error:
        if cfg.replay is not None:
            raise
        file = Path(cfg.run_dir, FILE)
        # Each rank writes the same, as the first that says its error ends the others.
        part = file.with_name(f".{FILE}.{own_rank()}")
        with contextlib.suppress(OSError):  # a full disk is not to hide what went wrong
            part.write_text(json.dumps(_content(cfg, error), indent=1))
            part.replace(file)
        raise UserError(f"{error}; where it began: mrcnn replay {file}") from error
    except RuntimeError as error:
        line = str(error).partition("\n")[0]
        if cfg.replay is None or not line.startswith("Function '"):  # torch's anomaly detection
            raise
        raise UserError(f"the backward pass: {line} The log has the call that it is of") from error


def _content(cfg: DictConfig, error: DivergedError) -> dict[str, Any]:
    hydra = HydraConfig.get()
    last = last_checkpoint(Path(cfg.run_dir))
    return {
        "step": error.step,
        "rank": error.rank,
        "image_ids": error.image_ids,
        "seeds": error.seeds,
        "error": str(error),
        "checkpoint": cfg.ckpt_path if last is None else str(last.absolute()),
        "overrides": [each for each in hydra.overrides.task if not each.startswith(_HOW)],
        "options": config_options(hydra),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }


def replay_arguments(file: Path) -> list[str]:
    """What behind `mrcnn train` runs the step of a file again.

    Raises:
        UserError: the file is none that a run left.
    """
    content = _read(file)
    arguments = [*content["options"], *of_jobs(content["overrides"]), "hydra.mode=RUN"]
    arguments.append(override("replay", str(file.absolute())))
    arguments.append(override("run_dir", str(file.parent / "replay")))
    if content["checkpoint"] is not None:
        arguments.append(override("ckpt_path", content["checkpoint"]))
    return arguments


def prepare_replay(cfg: DictConfig) -> None:
    """Let a run write no tables and evaluate nothing, and find where its step is not finite.

    Args:
        cfg: of the run, which is changed.

    Raises:
        UserError: the configuration is another by now.
    """
    content = _read(Path(cfg.replay))
    now: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in OF_A_STEP:
        if now.get(key) != content["config"].get(key):
            raise UserError(
                f"replay={cfg.replay} is of a run with another {key}: the files in conf/ have "
                "changed since then"
            )
    cfg.logger = {}
    cfg.task.compiled = False
    cfg.trainer.limit_val_batches = cfg.trainer.num_sanity_val_steps = 0
    finder = f"{FirstNotFinite.__module__}.{FirstNotFinite.__qualname__}"
    with open_dict(cfg.callbacks):
        cfg.callbacks.first_not_finite = {"_target_": finder, "step": content["step"]}


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no {FILE}, which a run that diverged leaves") from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise UserError(f"{file} is no {FILE}, which a run that diverged leaves")
    return content
