"""What trackers hold, read back through each one's own interface: values by name and step."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mrcnn_lightning.training.trackers.wandb_files import read_records

# All values that were given for a name at a step: one, if all is well.
Contents = dict[tuple[str, int], list[Any]]


def of_csv(run: Path) -> Contents:
    contents: Contents = defaultdict(list)
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    contents[name, int(row["step"])].append(float(value))
    return contents


def of_tensorboard(folder: Path) -> tuple[Contents, Contents]:
    """Metrics; and pictures with texts, as bytes."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    board.Reload()
    metrics: Contents = defaultdict(list)
    shown: Contents = defaultdict(list)
    tags: Any = board.Tags()
    for name in tags["scalars"]:
        for event in board.Scalars(name):
            metrics[name, event.step].append(event.value)
    for name in tags["images"]:
        for image in board.Images(name):
            shown[name, image.step].append(image.encoded_image_string)
    for name in tags["tensors"]:
        for text in board.Tensors(name):
            shown[name.removesuffix("/text_summary"), text.step].append(
                text.tensor_proto.string_val[0]
            )
    return without_epoch(metrics), shown


def of_mlflow(tracking_uri: str, run_id: str) -> tuple[Contents, Contents]:
    """Metrics; and paths of pictures and tables."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    metrics: Contents = defaultdict(list)
    for name in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, name):
            metrics[name, metric.step].append(metric.value)
    shown: Contents = defaultdict(list)
    for folder, ending in (("images", ".png"), ("tables", ".json")):
        for artifact in client.list_artifacts(run_id, folder):
            if artifact.path.endswith(ending):
                name, _, step, *_ = Path(artifact.path).stem.split("+")
                shown[name.replace("~", "/"), int(step)].append(artifact.path)
    return without_epoch(metrics), shown


def of_wandb(run: Path) -> tuple[Contents, Contents, set[str], dict[str, Any]]:
    """Metrics; pictures and tables; the ids of the runs; the configuration: of offline files."""
    metrics: Contents = defaultdict(list)
    shown: Contents = defaultdict(list)
    ids, config = set(), {}
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in read_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            for item in record.config.update:
                config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = row.pop("trainer/global_step", None)
            for name, value in row.items():
                if not name.startswith("_"):
                    (metrics if isinstance(value, int | float) else shown)[name, step].append(value)
    return without_epoch(metrics), shown, ids, config


def without_epoch(contents: Contents) -> Contents:
    return {key: values for key, values in contents.items() if key[0] != "epoch"}
