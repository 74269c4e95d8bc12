"""`resume=auto`: the same command starts a run, goes on with it, or gives back its result."""

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from mrcnn_lightning.app.record import CONFIG, read_record
from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

# Keys that say where and how a run goes on, not what it trains.
_HOW = ("ckpt_path", "resume", "run_dir")
# What decides what a step is.
OF_A_STEP = ("seed", "weights", "phases", "backbone", "model", "data", "optimizer", "scheduler")
# But for these.
_ANY_TIME = ("num_workers", "cache_dir", "eval_batch_size")


class Outcome(NamedTuple):
    """What a run that ended well came to."""

    ap: float | None


def go_on(cfg: DictConfig) -> Outcome | None:
    """Set `ckpt_path` to the last checkpoint of the run's folder, if it has one.

    Args:
        cfg: of the run, with `resume`.

    Returns:
        The run's outcome, if it ended as it was configured now; there is nothing left to do then.

    Raises:
        UserError: `resume` is neither null nor auto, there is nothing to train, or the folder has
            a run that trained something else.
    """
    if cfg.resume != "auto":
        raise UserError(f"resume={cfg.resume} is neither null nor auto; a file is ckpt_path=FILE")
    if cfg.stage != "fit":
        raise UserError(f"resume=auto goes on with a training, stage={cfg.stage} is none")
    record = read_record(cfg.run_dir) or {}
    if record.get("status") in ("finished", "pruned") and _is_same(cfg):
        log.info("%s is %s: AP %s", cfg.run_dir, record["status"], record.get("ap"))
        return Outcome(record.get("ap"))
    last = last_checkpoint(Path(cfg.run_dir))
    if last is not None:
        _require_same_steps(cfg)
        log.info("going on from %s", last)
        cfg.ckpt_path = str(last)
    return None


def refuse_used_folder(cfg: DictConfig) -> None:
    """Refuse to begin a training where another would lose its checkpoints and its table.

    Raises:
        UserError: there are some, and this run does not go on with them.
    """
    folder = Path(cfg.run_dir).absolute()
    goes_on = folder in Path(cfg.ckpt_path or "").absolute().parents
    if cfg.stage == "fit" and not goes_on and last_checkpoint(folder) is not None:
        raise UserError(
            f"run_dir={cfg.run_dir} has a training, which this one would replace: say resume=auto "
            "to go on with it, or give another folder"
        )


def _is_same(cfg: DictConfig) -> bool:
    """Whether the run in the folder had this configuration."""
    now: Any = OmegaConf.to_container(cfg, resolve=True)
    return bool(_trained(now) == _trained(_before(cfg)))


def _before(cfg: DictConfig) -> dict[str, Any]:
    """The configuration of the run in the folder; nothing if it cannot be read."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(Path(cfg.run_dir, CONFIG)))
    except (OSError, ValueError, YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _require_same_steps(cfg: DictConfig) -> None:
    """Refuse to go on with other steps: their optimizer's state would win over what is said now."""
    now: Any = OmegaConf.to_container(cfg, resolve=True)
    before = _before(cfg)
    for key in before.keys() & set(OF_A_STEP):
        if _step_of(now.get(key)) != _step_of(before[key]):
            raise UserError(
                f"resume=auto: run_dir={cfg.run_dir} has a run with another {key} (`{CONFIG}` "
                "there): give another folder, or go on with the same configuration"
            )


def _step_of(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: value for key, value in config.items() if key not in _ANY_TIME}


def _trained(config: Any) -> Any:
    """A configuration without what says how to go on, also where other keys refer to it."""
    if not isinstance(config, dict):
        return config
    return {key: _trained(value) for key, value in config.items() if key not in _HOW}


def last_checkpoint(folder: Path) -> Path | None:
    """Of a run's folder: that of the last phase that wrote one, or of a run without phases."""
    files = [folder / "checkpoints" / "last.ckpt", *folder.glob("phase_*/checkpoints/last.ckpt")]
    return max((file for file in files if file.is_file()), key=_phase, default=None)


def _phase(checkpoint: Path) -> int:
    number = re.fullmatch(r"phase_(\d+)", checkpoint.parent.parent.name)
    return int(number[1]) if number else 0
