"""TensorBoard event files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bgetrain.types import Log


class Events:
    """Open event files."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds each figure as a scalar of its name."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def artifact(self, path: str) -> None:
        """Says where a file is, which TensorBoard itself cannot show."""
        self.writer.add_text(Path(path).stem, f"`{Path(path).absolute()}`")

    def close(self) -> None:
        self.writer.close()


def start(output_dir: str, config: Mapping[str, Any]) -> "Log":
    """Opens event files in `output_dir`/tensorboard and puts the config there as a text.

    A run that goes on from a checkpoint writes another file; steps between the checkpoint and the interruption are then
    there twice, with the same figures.

    Raises:
        ValueError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "logger=tensorboard needs tensorboard, which is not installed: pip install bgetrain[tensorboard]"
        ) from error
    writer = SummaryWriter(str(Path(output_dir) / "tensorboard"))
    # indented text is code to TensorBoard's Markdown
    writer.add_text("config", "".join(f"    {line}\n" for line in json.dumps(dict(config), indent=2).splitlines()))
    return Events(writer)
