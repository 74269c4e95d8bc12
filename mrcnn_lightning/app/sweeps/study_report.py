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
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

log = logging.getLogger(__name__)

_SHOWN = 10
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
    table = Table(box=box.SIMPLE_HEAD, title="best trials")
    for column in ("trial", "AP", "seconds", *names):
        table.add_column(escape(column), overflow="fold")
    for trial in trials:
        values = [
            f"{trial.params[name]:.4g}"
            if isinstance(trial.params.get(name), float)
            else str(trial.params.get(name, ""))
            for name in names
        ]
        row = [str(trial.number), f"{trial.value:.3f}", f"{_seconds(trial) or 0:.0f}", *values]
        table.add_row(*map(escape, row))
    if trials:
        Console(highlight=False).print(table)


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
                getattr(optuna.visualization.matplotlib, function)(study)
            pyplot.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        except (ValueError, RuntimeError, OSError) as error:
            log.warning("%s.png is not drawn: %s", name, error)
        finally:
            pyplot.close("all")
