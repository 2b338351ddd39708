"""MLflow."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bgetrain.types import Log

PARAMS = 100  # in one request, mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH
LETTERS = 500  # of a parameter: what servers of every version since 1.0 take
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": 2, "MLFLOW_HTTP_REQUEST_TIMEOUT": 15}  # seconds; where the user has not said
REFUSED = re.compile(r"[^\w\-. :/]")  # in names, mlflow.utils.validation


class Run:
    """An MLflow run."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the figures of a step; `@`, which MLflow has not in names, becomes `_at_`: ndcg_at_10."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(allowed(name), float(value), now, step) for name, value in metrics.items()])

    def artifact(self, path: str) -> None:
        """Keeps a file with the run."""
        self.client.log_artifact(self.run_id, path)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def start(output_dir: str, config: Mapping[str, Any], tracking_uri: str | None, experiment: str, name: str | None) -> "Log":
    """Starts an MLflow run, or goes on with the one that this folder began.

    Of the steps between a checkpoint and an interruption, which are done again, MLflow keeps both figures, which are the same.

    Args:
        output_dir: its id is kept in `output_dir`/mlflow/run_id.
        config: its keys are the run's parameters, e.g. optim.lr; values are cut to 500 letters.
        tracking_uri: of a server or a database; None: files in `output_dir`/mlflow/runs, which
            `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri OUT/mlflow/runs` of the whole package shows.
        experiment: the run is one of; made where there is none of this name.
        name: of the run; None: that of the folder.

    Raises:
        ValueError: the package mlflow is not installed, or the server refuses.
    """
    try:
        from mlflow import environment_variables
        from mlflow.entities import Param, RunStatus
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ValueError("logger=mlflow needs mlflow, which is not installed: pip install bgetrain[mlflow]") from error
    folder = Path(output_dir, "mlflow").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "run_id"
    for patience, value in PATIENCE.items():  # a server that is gone holds up all ranks: its own is minutes
        variable = getattr(environment_variables, patience, None)
        if variable is not None and not variable.is_set():
            variable.set(value)
    if tracking_uri is None and hasattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE"):
        environment_variables.MLFLOW_ALLOW_FILE_STORE.set(True)  # a database would need more packages than mlflow-skinny has
    try:
        client = MlflowClient(tracking_uri or (folder / "runs").as_uri())
        if kept.is_file():
            run_id = kept.read_text("utf8")
            client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            return Run(client, run_id)
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        run_id = client.create_run(experiment_id, run_name=name or Path(output_dir).absolute().name).info.run_id
        params = [Param(allowed(key), str(value)[:LETTERS]) for key, value in flat(config)]
        for first in range(0, len(params), PARAMS):
            client.log_batch(run_id, params=params[first : first + PARAMS])
    except MlflowException as error:
        raise ValueError(f"logger=mlflow: {' '.join(str(error).split())} (logger.tracking_uri=null keeps files)") from error
    kept.write_text(run_id, "utf8")
    return Run(client, run_id)


def flat(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with the names of the nodes that it is in, e.g. optim.lr."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def allowed(name: str) -> str:
    return REFUSED.sub("_", name.replace("@", "_at_"))[:250]
