"""Ranks that die, freeze or hang on purpose: each ends by itself, and leaves its exit status and what it said."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

from ranks import IMPORTED_ONCE, load


class Outcome(NamedTuple):
    """statuses: of each rank, None where it had to be killed; said: lines on stderr and stdout; pids; seconds of each rank."""

    statuses: list[int | None]
    said: list[list[str]]
    pids: list[int]
    seconds: float


class Run:
    """`size` ranks in which the command line's `run_rank` calls `function(cfg, world, log)`, as under srun: no launcher."""

    def __init__(self, function, size: int, folder: Path, *, heartbeat_seconds: float, timeout_minutes: float) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.began, self.seconds = folder, time.monotonic(), 0.0
        folder.mkdir()
        place = (function.__code__.co_filename, function.__name__)
        limits = (timeout_minutes, heartbeat_seconds)
        self.ranks = [
            context.Process(target=work, args=(rank, size, port, place, limits, str(folder)), daemon=True) for rank in range(size)
        ]
        for rank in self.ranks:
            rank.start()

    def wait(self, frozen: tuple[int, ...] = (), seconds: float = 120.0) -> Outcome:
        """Waits for all ranks but the `frozen` ones, which are then killed."""
        deadline = time.monotonic() + seconds
        for number, rank in enumerate(self.ranks):
            if number not in frozen:
                rank.join(max(0.0, deadline - time.monotonic()))
        statuses = [rank.exitcode for rank in self.ranks]
        pids = [rank.pid for rank in self.ranks]
        for rank in self.ranks:
            rank.kill()
            rank.join()
        said = [(self.folder / f"said_{number}").read_text().splitlines() for number in range(len(self.ranks))]
        return Outcome(statuses, said, pids, time.monotonic() - self.began)


def work(rank: int, size: int, port: int, place: tuple[str, str], limits: tuple[float, float], folder: str) -> None:
    output = os.open(f"{folder}/said_{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    from omegaconf import OmegaConf

    from bgetrain import cli, config
    from bgetrain.cluster.local import Place

    load(*place)
    cfg = OmegaConf.to_container(
        config.compose(["stage=tokenizer", "data=text", "data.files=[x]", f"output_dir={folder}/out"]), resolve=True
    )
    cfg["stage"]["_target_"] = f"{Path(place[0]).stem}.{place[1]}"
    whole = Place(rank, size, rank, size, *limits)
    cli.answer = lambda _: cli.run_rank(cfg, whole)  # what the command line does once it knows its ranks
    status = cli.main([])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def signal_later(number: int, seconds: float) -> None:
    """Sends this process a signal while its main thread is elsewhere."""
    import subprocess

    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -{int(number)} {os.getpid()}"], start_new_session=True)
