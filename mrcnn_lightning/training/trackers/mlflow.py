"""MLflow."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image

# MLflow's own: minutes before it gives a server up.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
# MLflow's pages show charts of training first, not of language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_MOST_METRICS = 1000  # of one request
_MOST_PARAMS = 100


class MLflow(MLFlowLogger):
    """Lightning's MLFlowLogger, with pictures and tables, and patience for seconds, not minutes.

    Args:
        project: MLflow's experiment.
        name: of the run, as shown.
        tracking_uri: of a server or a store; None is MLFLOW_TRACKING_URI, or a store in `folder`.
        folder: for the store and the artifacts, where there is no server.
        log_model: whether checkpoints are sent at the end, or `all` of them at once.
        earlier: the `identity` of a run to go on with; None starts one.
    """

    def __init__(
        self,
        *,
        project: str,
        name: str,
        tracking_uri: str | None,
        folder: str,
        log_model: bool | str,
        earlier: dict[str, str] | None,
    ) -> None:
        for key, value in _PATIENCE.items():
            os.environ.setdefault(key, value)
        # Each attempt would be a warning.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if tracking_uri is None:
            place = Path(folder).expanduser().absolute()
            place.mkdir(parents=True, exist_ok=True)
            tracking_uri, artifacts = f"sqlite:///{place}/mlflow.db", (place / "artifacts").as_uri()
        super().__init__(
            experiment_name=project,
            run_name=name,
            tracking_uri=tracking_uri,
            log_model=log_model,  # type: ignore[arg-type]
            artifact_location=artifacts,
        )
        self._files: list[str] | None = None
        self._begin(None if earlier is None else earlier["id"])
        self.identity = {"id": str(self.run_id)}
        self._monitor = self._watch_machine(goes_on=earlier == self.identity)

    def _begin(self, run_id: str | None) -> None:
        """Find the run, or start one."""
        from mlflow.exceptions import MlflowException

        client = self._mlflow_client
        if client.get_experiment_by_name(self._experiment_name) is None:
            client.create_experiment(self._experiment_name, self._artifact_location, tags=_KIND)
        if run_id is not None:
            try:
                client.update_run(run_id, status="RUNNING")
                self._run_id = run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        before = os.environ.get("MLFLOW_TRACKING_URI")
        _ = self.experiment
        # Which tells all of the process of its own, the next run of a sweep included.
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before

    def _watch_machine(self, *, goes_on: bool) -> Any:
        """MLflow's own thread that logs what the machine does, if its variable asks for it."""
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            return None
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=goes_on, tracking_uri=self._tracking_uri
        )
        monitor.start()
        return monitor

    def close(self) -> None:
        """End what runs beside the training."""
        if self._monitor is not None:
            self._monitor.finish()

    def steps_given(self, name: str) -> set[int]:
        """Steps at which MLflow has a metric, a picture or a table of this name."""
        if self._files is None:
            self._files = [
                file.path
                for folder in ("images", "tables")
                for file in self.experiment.list_artifacts(self.run_id, folder)
            ]
        key = _key(name)
        steps = {each.step for each in self.experiment.get_metric_history(self.run_id, key)}
        # MLflow has written # and % in the names of pictures, and ~ and + since.
        pattern = re.compile(rf"\w+/{re.escape(key).replace('/', '[~#]')}[+%]step[+%](\d+)[+%.]")
        return steps | {int(found[1]) for file in self._files if (found := pattern.match(file))}

    def log_config(self, params: dict[str, Any]) -> None:
        """Give the configuration as a file, and what the command line said as parameters.

        All of it as parameters would be hundreds, which MLflow shows above each picture.
        Parameters cannot be changed later.
        """
        from mlflow.entities import Param

        old = self.experiment.get_run(self.run_id).data.params
        said = {_key(name): value for name, value in params.get("overrides", {}).items()}
        new = [Param(name, value) for name, value in said.items() if value and name not in old]
        for first in range(0, len(new), _MOST_PARAMS):
            self.experiment.log_batch(self.run_id, params=new[first : first + _MOST_PARAMS])
        self.experiment.log_dict(self.run_id, json.loads(json.dumps(params)), "config.yaml")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Give metrics; a request takes so many only."""
        items = list(metrics.items())
        for first in range(0, len(items), _MOST_METRICS):
            super().log_metrics(dict(items[first : first + _MOST_METRICS]), step)

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture."""
        self.experiment.log_image(self.run_id, picture, key=_key(name), step=step)

    def log_rows(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Give a table, a file a step."""
        table = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
        file = f"tables/{_key(name).replace('/', '~')}+step+{step}.json"
        self.experiment.log_table(self.run_id, table, artifact_file=file)


def _key(name: str) -> str:
    """A name as Lightning gives it to MLflow, which takes few kinds of characters."""
    return re.sub("[^a-zA-Z0-9_/. -]+", "", name)
