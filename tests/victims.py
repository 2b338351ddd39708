"""Ranks that may be killed at any instant: forked from a server with the imports done, each does what `cli.run_rank` does."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ranks import IMPORTED_ONCE

DOWN_SECONDS = 15.0  # that the others have to come down by themselves when one is killed
PACE = 0.0005  # seconds between two looks at a run


class Ranks(NamedTuple):
    """The ranks of one start of a run.

    Attributes:
        processes: in the order of the ranks.
        folder: holds what each rank said, `said_R`, the step it is in, `step_R`, and the rows of each step, `rows_R.jsonl`.
        began: time.monotonic() before they were started.
    """

    processes: Sequence[Any]
    folder: Path
    began: float

    def step(self) -> int:
        """The step that every rank has begun, 0 before the first."""
        return min(int((self.folder / f"step_{rank}").read_bytes() or b"0") for rank in range(len(self.processes)))

    def running(self) -> bool:
        """Whether no rank has ended."""
        return all(process.is_alive() for process in self.processes)

    def said(self) -> str:
        """What the ranks said, for messages."""
        paths = [*(self.folder / f"said_{rank}" for rank in range(len(self.processes))), *(self.folder / "complaints").iterdir()]
        return "\n".join(path.read_text("utf8", "replace") for path in paths)

    def statuses(self) -> list[int]:
        """Waits for all ranks; their exit statuses, those that a signal ended below 0."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]


def start(size: int, cfg: dict[str, Any], folder: Path, *, stop_after: int | None = None) -> Ranks:
    """Starts the run of `cfg` on `size` ranks.

    Args:
        size: ranks.
        cfg: resolved, as the command line hands it over.
        folder: new; receives what `Ranks.folder` holds.
        stop_after: a step in which every rank is asked to stop, as a scheduler does; None: no step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    (folder / "complaints").mkdir(parents=True)
    for rank in range(size):
        (folder / f"step_{rank}").touch()
        (folder / f"said_{rank}").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    processes = [
        context.Process(target=work, args=(rank, size, port, cfg, str(folder), stop_after), daemon=True) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return Ranks(processes, folder, began)


def work(rank: int, size: int, port: int, cfg: dict[str, Any], folder: str, stop_after: int | None) -> None:
    """What one rank does: `bgetrain` behind the launcher, with its steps and their rows written down."""
    said = os.open(f"{folder}/said_{rank}", os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in here.items()})
    # as behind the launcher: who loses another rank that has said why adds nothing to it
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BGETRAIN_COMPLAINTS": f"{folder}/complaints"})
    from bgetrain import cli
    from bgetrain.cluster.local import Place
    from bgetrain.stage import contrastive

    contrastive.update_once = watched(contrastive.update_once, rank, Path(folder), stop_after)
    os._exit(cli.run_rank(cfg, Place(rank, size, rank, size, 2.0, 6.0)))


def watched(update: Callable[..., Any], rank: int, folder: Path, stop_after: int | None) -> Callable[..., Any]:
    """`update_once` that leaves the step it is in, and its rows, where a kill cannot take them."""
    step_file = os.open(folder / f"step_{rank}", os.O_WRONLY)
    rows_file = os.open(folder / f"rows_{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watching(*arguments: Any) -> Any:
        step, batch = arguments[-2:]
        rows = list(zip(batch.sources.tolist(), batch.rows.tolist(), strict=True))
        os.write(rows_file, (json.dumps({"step": step, "rows": rows, "at": time.monotonic()}) + "\n").encode())
        os.pwrite(step_file, b"%08d" % step, 0)
        if step == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return update(*arguments)

    return watching


def kill(ranks: Ranks, victims: Sequence[int]) -> int:
    """Kills some ranks and waits for the others to come down; how many of these had to be killed as well."""
    for rank in victims:
        ranks.processes[rank].kill()
    deadline, ended = time.monotonic() + DOWN_SECONDS, 0
    for process in ranks.processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
            ended += 1
    return ended


def rows_of(ranks: Ranks) -> dict[int, list[Any]]:
    """Step -> the rows of all ranks, in their order, for each step that every rank has begun."""
    found: list[dict[int, list[Any]]] = []
    for rank in range(len(ranks.processes)):
        path = ranks.folder / f"rows_{rank}.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found.append({line["step"]: line["rows"] for line in map(json.loads, lines)})
    return {step: [row for rows in found for row in rows[step]] for step in found[0] if all(step in rows for rows in found)}


def times_of(ranks: Ranks) -> list[float]:
    """When the first rank began each of its steps, in seconds of a clock that does not jump."""
    return [json.loads(line)["at"] for line in (ranks.folder / "rows_0.jsonl").read_text("utf8").splitlines()]
