"""What a training stage leaves: `model/`, and `adapter/` where adapters were trained."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bgetrain import distributed
from bgetrain.engine import checkpoint
from bgetrain.engine.commit import disk_errors
from bgetrain.engine.deepspeed import Engine
from bgetrain.logger import console
from bgetrain.model import folder, lora
from bgetrain.model.body import Body
from bgetrain.sources import Source
from bgetrain.stage import build
from bgetrain.types import World


def save_model(cfg: build.Config, running: Engine, made: Body, prefix: str, opened: Source, world: World) -> None:
    """Writes `model/`, and `adapter/` where adapters were trained; all ranks call it, rank 0 writes."""
    write_weights(cfg, weights_to_keep(cfg, running), made, prefix, opened, world)


def weights_to_keep(cfg: build.Config, running: Engine) -> dict[str, Tensor]:
    """What `model/` gets, as `Engine.weights` has it: the best step's weights where steps were compared, else the last ones."""
    if cfg["evaluate"]["every"] is not None and cfg["evaluate"]["model"] == "best":
        checkpoints = Path(cfg["output_dir"]) / "checkpoints"
        found = checkpoint.best_step(checkpoints, console.say) if running.world.rank == 0 else 0
        step = distributed.from_first(found, running.world)
        if step:
            return checkpoint.weights(checkpoints, step)
    return running.weights()


def write_weights(cfg: build.Config, trained: dict[str, Tensor], made: Body, prefix: str, opened: Source, world: World) -> None:
    """As `save_model`, with the weights that `Engine.weights` gave."""
    weights = {name.removeprefix(prefix): each for name, each in trained.items() if name.startswith(prefix)}
    if made.adapters and world.rank == 0:
        with written(cfg, "adapter") as path:
            lora.save(path, made.adapters, weights)
        weights = lora.merged(made.adapters, weights)
    write_model(cfg, made, {**weights, **made.unused}, opened, world)


def write_model(cfg: build.Config, made: Body, weights: dict[str, Tensor], opened: Source, world: World) -> None:
    if world.rank == 0:
        with written(cfg, "model") as path:
            folder.save(
                path,
                made.backbone,
                weights,
                made.tokenizer,
                pooling=made.pooling,
                max_len=opened.passage_max_len,
                query_instruction=opened.query_instruction,
            )
    distributed.barrier(world)


@contextlib.contextmanager
def written(cfg: build.Config, name: str) -> Iterator[Path]:
    """Where a folder of the results is to be written.

    Raises:
        ValueError: the output folder is no longer there, or the disk refuses.
    """
    path = Path(cfg["output_dir"]) / name
    if not (path.parent / "config.yaml").exists():  # another place may show under its name, a mount's for one
        raise ValueError(f"output_dir={path.parent} is no longer there: {name}/ is not written; bring it back and go on")
    try:
        with disk_errors():
            yield path
    except OSError as error:
        raise ValueError(f"{path} could not be written ({error}): make room there, and the same command goes on") from error
