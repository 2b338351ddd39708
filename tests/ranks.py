"""Runs a function on several gloo ranks. The imports happen once, in a server from which every rank is forked."""

import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

IMPORTED_ONCE = ["preloaded"]


def spawn(size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 240.0) -> list[Any]:
    """Calls `function(world, *arguments)` on `size` ranks of a fresh process group; returns what each rank returned.

    `function` stands at the top of a test file. Fails with a rank's traceback, or when `seconds` have passed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = (function.__code__.co_filename, function.__name__)
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=work, args=(rank, size, port, place, pickle.dumps(arguments), pipe[1], folder), daemon=True)
            for rank, pipe in enumerate(pipes)
        ]
        for rank, (_, end) in zip(ranks, pipes, strict=True):
            rank.start()
            end.close()
        try:
            return collect([pipe[0] for pipe in pipes], Path(folder), time.monotonic() + seconds)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def collect(ends: list[Connection], folder: Path, deadline: float) -> list[Any]:
    results: dict[Connection, Any] = {}
    while len(results) < len(ends):
        ready = wait([end for end in ends if end not in results], max(0.0, deadline - time.monotonic()))
        said = "\n".join(path.read_text("utf8", "replace")[-3000:] for path in sorted(folder.iterdir()))
        if not ready:
            raise TimeoutError(f"ranks {[number for number, end in enumerate(ends) if end not in results]} hang\n{said}")
        for end in ready:
            try:
                result, fault = pickle.loads(end.recv_bytes())
            except EOFError:
                raise AssertionError(f"rank {ends.index(end)} died\n{said}") from None
            if fault:
                raise AssertionError(f"rank {ends.index(end)}:\n{fault}\n{said}")
            results[end] = result
    return [results[end] for end in ends]


def work(rank: int, size: int, port: int, place: tuple[str, str], arguments: bytes, end: Connection, folder: str) -> None:
    """What one rank does."""
    output = os.open(f"{folder}/{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    try:
        import torch

        from bgetrain import distributed

        world = distributed.start(rank, size, rank, size, 2.0)
        torch.set_num_threads(1)
        reply = (load(*place)(world, *pickle.loads(arguments)), "")
    except BaseException:
        reply = (None, traceback.format_exc())
    end.send_bytes(pickle.dumps(reply))
    os._exit(0)


def load(path: str, name: str) -> Any:
    """A function of a test file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def run_stage(world: Any, overrides: list[str], logged: list[dict[str, float]] | None = None) -> dict[str, Any]:
    """What the command line does on one rank; returns the figures of `result.json`, and adds the lines of the log to `logged`."""
    from omegaconf import OmegaConf

    from bgetrain import config, distributed, output
    from bgetrain.target import named

    cfg: Any = OmegaConf.to_container(config.compose(overrides), resolve=True)
    if world.rank == 0:
        output.claim(cfg)
    distributed.barrier(world)
    lines: list[dict[str, float]] = [] if logged is None else logged
    return named(cfg["stage"]["_target_"])(cfg, world, lambda step, metrics: lines.append(metrics))
