"""The command line: compose, check, start the ranks, call the stage. No training logic, and no torch before the check."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import hydra
from omegaconf import OmegaConf

from bgetrain import config, lock, output, overrides, planning, recipe, selection, steps, sweep, trust, usage
from bgetrain.cluster import slurm, srun
from bgetrain.cluster.local import INTERRUPTED, USER_ERROR, complain, end_here, is_first, launched, say, told
from bgetrain.cluster.place import Command, Place
from bgetrain.cluster.wire import AbandonedError
from bgetrain.engine import interrupts
from bgetrain.target import call, named

CRASH = 1  # exit status
NOTHING_LOST = "interrupted: what is done is kept, the same command goes on"


class Flags(argparse.ArgumentParser):
    """What begins with a dash; a wrong one is the user's to mend, in one line."""

    def error(self, message: str) -> NoReturn:
        """Answers like any other mistake, in place of argparse's own page."""
        raise ValueError(f"{message}; `bgetrain --help` lists the flags")


def flags() -> Flags:
    parser = Flags(prog="bgetrain", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit status: 0 done, 2 for what the user can mend, 75 interrupted (the same command goes on), 1 a crash.
    """
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = CRASH
    try:
        with interrupts.heeded(leave_deaf):
            status = answer(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        status = interrupted(NOTHING_LOST)
    except BrokenPipeError:  # `bgetrain --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        status = refuse(error)
    if status == 0 and "bgetrain.distributed" in sys.modules:  # the steps of a recipe share one group of ranks
        sys.modules["bgetrain.distributed"].stop()  # which others may have left where this one has failed
    return status


def leave_deaf() -> None:
    """Ends this process where its main thread, in a long call of another language, does not hear that it is to stop."""
    interrupted(NOTHING_LOST)
    if "bgetrain.cluster.pulse" in sys.modules:
        sys.modules["bgetrain.cluster.pulse"].say_left(INTERRUPTED)
    end_here(INTERRUPTED)


def answer(arguments: list[str]) -> int:
    """Does what the arguments ask for; returns the exit status."""
    given, rest = flags().parse_known_args(arguments)
    if given.shell_completion:
        return complete_words(arguments)
    if given.help or not arguments:
        print(usage.text([each for each in rest if "=" in each]))
        return 0 if arguments else USER_ERROR
    if given.version:
        print(usage.version_line())
        return 0
    if given.cfg:
        shown = OmegaConf.to_container(config.compose(rest, missing=True), resolve=given.resolve)
        print(OmegaConf.to_yaml(trust.masked(shown)), end="")
        return 0
    if given.multirun:
        rest, dry_run = without_dry_run(rest)
        return sweep.run(rest, run, refuse, dry_run=dry_run)
    return run(rest)


def run(arguments: Sequence[str]) -> int:
    """Runs a recipe or a stage; returns the exit status."""
    if "stage=plan" in arguments:
        return planning.run(arguments)
    srun.adopt()
    if any(each.startswith("recipe=") for each in arguments):
        return recipe.run(arguments, run_stage)
    return run_stage(arguments)


def refuse(error: ValueError) -> int:
    """Answers an error of the user's in one line; what other packages raise is a crash, with its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not frames[-1].filename.startswith(str(selection.PACKAGE)):
        complain(trust.masked_text("".join(traceback.format_exception(error)).rstrip()))
        return CRASH
    complain(trust.masked_text(f"bgetrain: {' '.join(str(error).split())}"))
    return USER_ERROR


def interrupted(line: str) -> int:
    """Says that the run was interrupted, unless it is because of another rank, which has said why."""
    if not told():
        complain(line)
    return INTERRUPTED


def complete_words(arguments: list[str]) -> int:
    """Leaves shell completion to Hydra, which composes the words typed so far."""
    sys.argv[1:] = arguments
    hydra.main(config_path=str(selection.CONF.resolve()), config_name="config", version_base="1.3")(lambda cfg: None)()
    return 0


def run_stage(arguments: Sequence[str]) -> int:
    """Runs the stage that the overrides select, on all its ranks; returns the exit status.

    Raises:
        ValueError: a fault in the config, seen before anything is started.
    """
    arguments, dry_run = without_dry_run(arguments)
    cfg = config.plain(arguments)
    command = Command(list(arguments), cfg["stage"]["name"], cfg["output_dir"], cfg["num_processes"], dry_run)
    if cfg["stage"].get("answers"):  # on ranks: it starts them by itself, for a part of what it does
        on_ranks = [command] if cfg["stage"]["answers"] == "on ranks" else []
        return int(named(cfg["stage"]["_target_"])(cfg, *on_ranks) or 0)
    cfg["output_dir"] = os.path.expanduser(cfg["output_dir"])

    def on_this_rank(place: Place) -> int:
        with lock.held(cfg["output_dir"]) if place.rank == 0 else contextlib.nullcontext():
            return run_rank(cfg, place)

    if is_first() and slurm.runs_here(cfg["cluster"]):  # the other ranks come when the first one may have the lock
        lock.check(cfg["output_dir"])
    if output.standing(cfg) == "done":
        say(f"already done: {cfg['output_dir']}/result.json (resume=never runs it anew)")
        metrics = output.result(cfg["output_dir"]).get("metrics", {})
        if metrics:
            say("  " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        return 0
    if not slurm.runs_here(cfg["cluster"]) and not dry_run and not slurm.waiting(cfg["output_dir"]):
        lock.check(cfg["output_dir"])  # which a job of its own in the queue may hold
    command = command._replace(output_dir=cfg["output_dir"])
    status = int(call(cfg["cluster"], on_this_rank, command))
    if status == 0 and is_first() and not dry_run:
        conclude(cfg["output_dir"])
    return status


def conclude(output_dir: str) -> None:
    """Writes the recipe's result where this was its last step; what goes wrong there does not undo the step, and is told."""
    try:
        steps.conclude(output_dir)
    except Exception as error:  # whatever it is: the step's own result is there
        what = trust.masked_text(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        line = f"WARNING: the step is done, and the recipe's result.json was not written ({what})"
        print(line, file=sys.stderr, flush=True)  # a complaint would be told where a run fails alone


def without_dry_run(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Takes `dry_run=...` from the arguments of a stage: it is the launcher's, and no part of a run."""
    rest = [each for each in arguments if not each.startswith("dry_run=")]
    given = [overrides.value_of(each) for each in arguments if each not in rest]
    if any(not isinstance(each, bool) for each in given) or len(given) > 1:
        raise ValueError(f"dry_run must be given once, true or false, got {' and '.join(map(str, given))}")
    return rest, given == [True]


def run_rank(cfg: dict[str, Any], place: Place) -> int:
    """Runs the stage on this rank; returns the exit status."""
    from pathlib import Path

    from bgetrain import distributed
    from bgetrain.cluster import pulse

    try:
        world = distributed.start(
            place.rank, place.size, place.local_rank, place.local_size, place.timeout_minutes,
            threads=place.threads, has_own_gpus=place.has_own_gpus, meet=place.meet,
        )  # fmt: skip
    except ValueError as error:
        return refuse(error)
    except AbandonedError:
        return CRASH
    limits = {"heartbeat_seconds": place.heartbeat_seconds, "timeout_minutes": place.timeout_minutes}
    with pulse.beating(world, folder=Path(cfg["output_dir"]) / "stacks", **limits) as beat:
        status, together = watched(cfg, world, beat)
        if beat:
            beat.leave("ended" if together else "left", status)
        return status


def watched(cfg: dict[str, Any], world: Any, beat: Any) -> tuple[int, bool]:
    """Runs the stage; returns the exit status, and whether all ranks have it."""
    from pathlib import Path

    from bgetrain import distributed
    from bgetrain.report import sessions
    from bgetrain.report.leave import leave
    from bgetrain.report.safely import safely
    from bgetrain.types import Interrupted

    try:
        state = distributed.from_first(output.claim(cfg) if world.rank == 0 else None, world)
        if state == "done":
            return 0, True
        if world.rank == 0:
            safely("provenance.json", lambda folder: sessions.note(folder, world), Path(cfg["output_dir"]))
        with logs(cfg, world.rank) as log:
            figures = named(cfg["stage"]["_target_"])(cfg, world, log)
            if world.rank == 0:
                output.finish(cfg["output_dir"], cfg["stage"]["name"], figures)
                leave(Path(cfg["output_dir"]))  # which loggers keep before they close
        distributed.barrier(world)  # a rank that left earlier might have the others ended
        return 0, True
    except Interrupted as reason:
        return interrupted(f"{reason}: the same command goes on from there") if world.rank == 0 else INTERRUPTED, True
    except KeyboardInterrupt:
        return interrupted(NOTHING_LOST), False
    except FloatingPointError as error:
        complain(f"bgetrain: {error}")
        return CRASH, False
    except ValueError as error:
        return refuse(error), False
    except Exception as error:
        why = beat.explain(error) if beat and distributed.is_lost_contact(error) else None
        if why is None and told():  # another rank has left, and this one met a closed connection
            return INTERRUPTED if launched() else CRASH, False
        if why is None:
            complain(trust.masked_text("".join(traceback.format_exception(error)).rstrip()))
        elif why.line and not told():
            complain(f"bgetrain: {why.line}")
        return why.status if why else CRASH, False


@contextlib.contextmanager
def logs(cfg: dict[str, Any], rank: int) -> Iterator[Any]:
    """Opens the progress bar, metrics.jsonl and the chosen logger on rank 0, which keeps the report; other ranks log nothing."""
    opened: list[Any] = []
    if rank == 0:
        from pathlib import Path

        from bgetrain.engine import checkpoint
        from bgetrain.logger import console, jsonl

        folder = Path(cfg["output_dir"])
        done = next(iter(checkpoint.candidates(folder / "checkpoints")), 0)
        opened += [console.start(), jsonl.start(folder / "metrics.jsonl", done + 1)]
        if cfg["logger"].get("_target_"):
            opened.append(call(cfg["logger"], output_dir=str(folder), config=trust.masked(cfg)))

    bar = opened[0] if opened else None

    def log(step: int, metrics: dict[str, float]) -> None:
        steps = "progress_ratio" in metrics  # figures that are no step's stand in a table of their own
        for each in [each for each in opened if steps or each is not bar]:
            survive(opened, each, partial(each, step, metrics))

    try:
        yield log
        report = f"{cfg['output_dir']}/report.html"
        for each in [each for each in opened if hasattr(each, "artifact") and os.path.isfile(report)]:
            survive(opened, each, partial(each.artifact, report))
    finally:
        for each in list(opened):
            survive(opened, each, each.close)


def survive(opened: list[Any], each: Any, use: Callable[[], Any]) -> None:
    """Hands something to a logger, or closes it; one that fails is left out from then on, which is said."""
    try:
        use()
    except Exception as error:  # whatever it is, figures are no reason to end a run
        opened.remove(each)
        what = trust.masked_text(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        name = type(each).__module__.rpartition(".")[2]
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            print(f"WARNING: the logger {name} failed ({what}) and is left out from here on", file=sys.stderr, flush=True)
