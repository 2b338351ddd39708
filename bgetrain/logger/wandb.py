"""Weights & Biases."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bgetrain.types import Log


class Run:
    """A W&B run, what makes an artifact of a name and a kind, and what ends W&B's own process."""

    def __init__(self, run: Any, make: Callable[[str, str], Any], teardown: Callable[[], None]) -> None:
        self.run, self.make, self.teardown = run, make, teardown

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the figures of a step; several calls for one step come together in one row."""
        self.run.log(dict(metrics), step=step)

    def artifact(self, path: str) -> None:
        """Keeps a file with the run, as a version of the artifact `report-ID` for report.html."""
        kept = self.make(f"{Path(path).stem}-{self.run.id}", Path(path).stem)
        kept.add_file(path)
        self.run.log_artifact(kept)

    def close(self) -> None:
        """Returns when every figure is on disk or sent."""
        self.run.finish()
        # finish() does not wait for W&B's process to write what it holds: on a busy machine 6 of 25 files were short
        self.teardown()


def start(
    output_dir: str, config: Mapping[str, Any], project: str, name: str | None, mode: Literal["online", "offline"]
) -> "Log":
    """Starts a W&B run, or goes on with the one that this folder began online.

    Of the steps between a checkpoint and an interruption, which are done again, W&B keeps the first figures; the second
    are the same. Offline each start is a run of its own.

    Args:
        output_dir: W&B keeps its files in `output_dir`/wandb.
        config: shown with the run.
        project: W&B project.
        name: of the run; None: W&B chooses.
        mode: offline needs no account; `wandb sync` uploads the files later.

    Raises:
        ValueError: the package wandb is not installed, or W&B refuses, for example because nobody is logged in.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError("logger=wandb needs wandb, which is not installed: pip install bgetrain[wandb]") from error
    Path(output_dir, "wandb").mkdir(parents=True, exist_ok=True)
    same_run: dict[str, Any] = {"id": _run_id(Path(output_dir, "wandb", "run_id")), "resume": "allow"} if mode == "online" else {}
    # wandb would stand between the progress bar and the terminal to keep a copy of what is printed
    settings = wandb.Settings(console="off", silent=mode == "offline")
    try:
        run = wandb.init(
            project=project, name=name, mode=mode, dir=output_dir, config=dict(config), settings=settings, **same_run
        )
    except wandb.Error as error:
        raise ValueError(f"logger=wandb: {error} (logger.mode=offline needs no account)") from error
    return Run(run, wandb.Artifact, wandb.teardown)


def _run_id(path: Path) -> str:
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf8")
    return path.read_text(encoding="utf8")
