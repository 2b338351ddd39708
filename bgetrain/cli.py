"""The command line: compose, check, start the ranks, call the stage. No training logic, and no torch before the check."""

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bgetrain import config, output, recipe, usage
from bgetrain.cluster.local import INTERRUPTED, Place, complain
from bgetrain.target import call, named

USER_ERROR, CRASH = 2, 1
HYDRA_FLAGS = ("--cfg", "-c", "--multirun", "-m", "--shell-completion", "-sc", "--info", "-i", "--resolve", "--package", "-p")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit status: 0 done, 2 for what the user can mend, 75 interrupted (the same command goes on), 1 a crash.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        if not arguments or {"--help", "-h"} & set(arguments):
            print(usage.text([each for each in arguments if "=" in each]))
            return 0 if arguments else USER_ERROR
        if "--version" in arguments:
            print(usage.version_line())
            return 0
        if any(each.split("=")[0] in HYDRA_FLAGS for each in arguments):
            return run_hydra(arguments)
        if any(each.startswith("recipe=") for each in arguments):
            return recipe.run(arguments, run_stage)
        return run_stage(arguments)
    except KeyboardInterrupt:
        complain("interrupted: nothing was lost, the same command starts again")
        return INTERRUPTED
    except ValueError as error:
        return refuse(error)


def refuse(error: ValueError) -> int:
    """Answers an error of the user's in one line; what other packages raise is a crash, with its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not frames[-1].filename.startswith(str(config.PACKAGE)):
        complain("".join(traceback.format_exception(error)))
        return CRASH
    complain(f"bgetrain: {' '.join(str(error).split())}")
    return USER_ERROR


def run_hydra(arguments: list[str]) -> int:
    """Leaves `--cfg job`, shell completion and `-m` sweeps to Hydra, having checked what it would answer with a traceback."""
    flags = [each for each in arguments if each.startswith("-")]
    sweep = bool({"-m", "--multirun"} & set(flags))
    if not any(each.startswith(("-sc", "--shell-completion")) for each in flags):
        config.compose([first_of_sweep(each) for each in arguments if "=" in each and not each.startswith("-")])
    statuses = []

    def task(cfg: DictConfig) -> None:
        job = HydraConfig.get()
        overrides = list(job.overrides.task)
        if sweep:
            overrides = [each for each in overrides if not each.startswith("output_dir=")]
            overrides.append(f"output_dir={cfg.output_dir}/{job.job.num}")
        try:
            statuses.append(run_stage(overrides))
        except ValueError as error:
            statuses.append(refuse(error))

    sys.argv[1:] = arguments
    hydra.main(config_path=str(config.CONF.resolve()), config_name="config", version_base="1.3")(task)()
    return next((status for status in statuses if status), 0)


def first_of_sweep(override: str) -> str:
    """`lr=1,2` -> `lr=1`: one job of a sweep, to check the keys by."""
    parsed = config.parse_overrides([override])[0]
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


def run_stage(overrides: Sequence[str]) -> int:
    """Runs the stage that `overrides` select, on all its ranks; returns the exit status.

    Raises:
        ValueError: a fault in the config, seen before anything is started.
    """
    cfg: Any = OmegaConf.to_container(config.compose(overrides), resolve=True)

    def on_this_rank(place: Place) -> int:
        return run_rank(cfg, place)

    if output.standing(cfg) == "done" and cfg["resume"] != "never":
        print(f"already done: {cfg['output_dir']}/result.json (resume=never runs it anew)")
        return 0
    command = [sys.executable, "-m", "bgetrain", *overrides]
    return int(call(cfg["cluster"], on_this_rank, command, cfg["num_processes"]))


def run_rank(cfg: dict[str, Any], place: Place) -> int:
    """Runs the stage on this rank; returns the exit status."""
    from bgetrain import distributed
    from bgetrain.types import Interrupted

    cfg = {**cfg, "resume": "auto"} if cfg["resume"] == "never" and place.rank else cfg
    try:
        world = distributed.start(*place)
        state = distributed.from_first(output.claim(cfg) if world.rank == 0 else None, world)
        if state == "done":
            return 0
        with logs(cfg, place.rank) as log:
            figures = named(cfg["stage"]["_target_"])(cfg, world, log)
        if world.rank == 0:
            output.finish(cfg["output_dir"], cfg["stage"]["name"], figures)
        distributed.barrier(world)
        return 0
    except Interrupted as interrupted:
        if place.rank == 0:
            complain(f"{interrupted}: the same command goes on from there")
        return INTERRUPTED
    except FloatingPointError as error:
        complain(f"bgetrain: {error}")
        return CRASH
    except ValueError as error:
        return refuse(error)
    finally:
        if place.size > 1:
            distributed.stop()


@contextlib.contextmanager
def logs(cfg: dict[str, Any], rank: int) -> Iterator[Any]:
    """Opens the progress bar, metrics.jsonl and the chosen logger on rank 0; other ranks log nothing."""
    opened: list[Any] = []
    if rank == 0:
        from pathlib import Path

        from bgetrain.engine.checkpoint import latest_step
        from bgetrain.logger import console, jsonl

        folder = Path(cfg["output_dir"])
        opened += [console.start(), jsonl.start(folder / "metrics.jsonl", latest_step(folder / "checkpoints") + 1)]
        if cfg["logger"].get("_target_"):
            opened.append(call(cfg["logger"], output_dir=str(folder), config=cfg))

    def log(step: int, metrics: dict[str, float]) -> None:
        for each in opened:
            each(step, metrics)

    try:
        yield log
    finally:
        for each in opened:
            each.close()
