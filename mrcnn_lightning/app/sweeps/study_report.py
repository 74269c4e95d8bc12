"""What a study has found: a table, a csv, Hydra's yaml of the best, and pictures."""

import csv
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from omegaconf import OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mrcnn_lightning.app.runs import print_table

log = logging.getLogger(__name__)

_SHOWN = 10
_INCHES = 3.0  # of a picture's width for each parameter
_PICTURES = {
    "history": "plot_optimization_history",
    "importances": "plot_param_importances",
    "parallel_coordinates": "plot_parallel_coordinate",
}


def report(study: optuna.Study, folder: Path, command: Callable[[Mapping[str, Any]], str]) -> None:
    """Write what a study has found so far to the sweep's folder, and print the best trials.

    Args:
        study: with trials or none.
        folder: of the sweep.
        command: the command line that trains with some parameters.
    """
    trials = study.get_trials(deepcopy=False)
    _write_csv(trials, folder / "trials.csv")
    done = [each for each in trials if each.state is TrialState.COMPLETE]
    _print_best(done, is_descending=study.direction is StudyDirection.MAXIMIZE)
    counts = {state: sum(each.state is state for each in trials) for state in TrialState}
    log.info(", ".join(f"{num} {_name(state)}" for state, num in counts.items() if num))
    for each in trials:
        if each.state is TrialState.FAIL:
            log.warning("trial %d failed: %s", each.number, each.user_attrs.get("error", "unknown"))
    if not done:
        return
    best = {"best_params": study.best_params, "best_value": study.best_value}
    OmegaConf.save(
        OmegaConf.create({"name": "optuna"} | best), folder / "optimization_results.yaml"
    )
    _draw(study, folder)
    log.info("the best is trial %d: %s", study.best_trial.number, command(study.best_params))


def _name(state: TrialState) -> str:
    names = {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed"}
    return names.get(state, state.name.lower())


def _write_csv(trials: list[FrozenTrial], file: Path) -> None:
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["number", "state", "value", "seconds", *params, "pruned_at", "error"])
        for trial in trials:
            value = trial.value
            writer.writerow(
                [trial.number, _name(trial.state), value, _seconds(trial)]
                + [trial.params.get(name) for name in params]
                + [trial.user_attrs.get(name) for name in ("pruned_at", "error")]
            )


def _print_best(trials: list[FrozenTrial], *, is_descending: bool) -> None:
    trials = sorted(trials, key=lambda each: each.value or 0.0, reverse=is_descending)[:_SHOWN]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [str(trial.number), f"{trial.value:.4f}", f"{_seconds(trial) or 0:.0f}"]
        + [_text(trial.params.get(name, "")) for name in names]
        for trial in trials
    ]
    if rows:
        print("best trials")
        print_table(["trial", "ap", "seconds", *names], rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seconds(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None else round(trial.duration.total_seconds(), 1)


def _draw(study: optuna.Study, folder: Path) -> None:
    """Draw; what cannot be drawn of so few trials is left out."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, function in _PICTURES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(optuna.visualization.matplotlib, function)(study, target_name="AP")
            width = _INCHES * max(3, 1 + len(study.best_params))
            pyplot.gcf().set_size_inches(width, 2 * _INCHES)
            pyplot.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        except (ValueError, RuntimeError, OSError) as error:
            log.warning("%s.png is not drawn: %s", name, error)
        finally:
            pyplot.close("all")
