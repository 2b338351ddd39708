"""What is checked on all ranks before the first step of training, and what the longest rows of a stage are."""

import hashlib
import json
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data.files import fingerprint
from bgetrain.data.tokenize import chunk, contents
from bgetrain.engine import diagnosis, exchange, memory, trial
from bgetrain.engine.ahead import DEPTH
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.findings import Finding, merged
from bgetrain.engine.machine import free_bytes
from bgetrain.logger import console
from bgetrain.stage import build, masked
from bgetrain.types import Ragged, WordChunk, World

PAGE = 4096  # bytes that a tensor in /dev/shm takes at the least
EXTRA = re.compile(r";.*\bextra\b")  # of a requirement that no one need have
FIGURES = ("collectives", "disk")  # findings whose figures stand in the announcement


class Start(NamedTuple):
    """What is about to be trained.

    Attributes:
        running: the engine, resumed where there is something to resume.
        tokenizer: of the model.
        files: of the data.
        steps: to be done.
        batch: this rank's of the first of them.
        forward: one forward pass of the longest rows to a scalar, past the engine (`trial.Bare`).
    """

    running: Engine
    tokenizer: Any
    files: Sequence[str]
    steps: range
    batch: Any
    forward: Callable[[], Tensor]


def checked(cfg: build.Config, start: Start, world: World) -> dict[str, str]:
    """Checks all that can be known to fail before the first step; all ranks call it together.

    Args:
        cfg: of a training stage; nothing is checked where its `preflight` is false.
        start: what is about to be trained; left as it is.
        world: all ranks.

    Returns:
        A line to announce; warnings have been said by then.

    Raises:
        ValueError: what failed, of all checks and ranks in one line.
    """
    if not cfg["preflight"]:
        return {}
    began = time.perf_counter()
    found = together(environment(cfg, world) + training(cfg, start, world), world)
    if world.rank == 0:
        for each in found:
            if each.level == "warning":
                console.say(f"warning: {each.line}")
    refuse(found, "preflight=false trains all the same")
    own = FIGURES if world.size > 1 else FIGURES[1:]
    figures = [each.line for name in own for each in found if each.name == name and each.level == "ok"]
    ranks = f"{world.size} rank{'s' * (world.size > 1)}"
    return {"checked": ", ".join([f"{len(found)} checks in {time.perf_counter() - began:.1f} s", ranks, *figures])}


def together(found: Sequence[Finding], world: World) -> list[Finding]:
    """The findings of all ranks as one list, the same on every rank."""
    everyone = distributed.gather_objects((list(found), socket.gethostname()), world)
    return merged([each for each, _ in everyone], [host for _, host in everyone])


def refuse(found: Sequence[Finding], otherwise: str = "") -> None:
    """Raises what failed.

    Raises:
        ValueError: the lines of all errors in one.
    """
    lines = [each.line for each in found if each.level == "error"]
    if lines:
        raise ValueError(" | ".join(lines) + (f" ({otherwise})" if otherwise else ""))


def environment(cfg: build.Config, world: World) -> list[Finding]:
    """This rank's findings about machine, software and network; all ranks call it together."""
    installed = versions()
    hosts = distributed.gather_objects(socket.gethostname(), world)
    several = len(set(hosts)) > 1
    seen = exchange.common_folder(Path(cfg["output_dir"]), world)
    links, paces = exchange.links(world), exchange.paces(world)
    before = (world.rank - 1) % world.size
    return [
        diagnosis.versions(installed, required()),
        diagnosis.same_versions(installed, distributed.from_first(installed, world)),
        diagnosis.driver(torch.__version__, torch.version.cuda, torch.cuda.is_available(), driver_version()),
        diagnosis.output_folder(str(cfg["output_dir"]), *seen),
        diagnosis.host_name(
            hosts[world.rank], addresses(hosts[world.rank]) if several else [], len(set(hosts)), distributed.meeting_place(world)
        ),
        diagnosis.collectives(*exchange.traffic(world)),
        diagnosis.link(*apart(links, world), f"rank {before} ({hosts[before]})"),
        diagnosis.pace(*apart(paces, world)),
        diagnosis.clock(exchange.clock_offset(world)),
    ]


def apart(values: Sequence[float], world: World) -> tuple[float, list[float]]:
    """This rank's value and those of the others."""
    return (values[world.rank], [each for rank, each in enumerate(values) if rank != world.rank]) if values else (0.0, [])


def training(cfg: build.Config, start: Start, world: World) -> list[Finding]:
    """This rank's findings about what is about to be trained; all ranks call it together."""
    own, faults = prints(start.files) if world.size > 1 else (dict.fromkeys(start.files, ""), {})
    words = tokenizer_hash(start.tokenizer) if world.size > 1 else ""
    weights = trial.checksums(start.running) if world.size > 1 else {}
    return [
        disk(cfg, start, world),
        shared_memory(cfg, start.batch, world),
        free_memory(start.running, world),
        diagnosis.same_files(own, distributed.from_first(own, world), faults),
        diagnosis.same_tokenizer(words, distributed.from_first(words, world)),
        diagnosis.same_weights(weights, distributed.from_first(weights, world)),
        trial.run(start.running, start.forward),
    ]


def disk(cfg: build.Config, start: Start, world: World) -> Finding:
    """Room for what rank 0 counts: checkpoints to come beside those that lie there, and `model/`."""
    folder = Path(cfg["output_dir"])
    saves = -(-len(start.steps) // cfg.get("save_every", 1))
    there = len(list((folder / "checkpoints").glob("step_*")))
    count = max(min(1, saves), min(saves, cfg["keep"] + 2 - there))
    sizes = trial.checkpoint_bytes(start.running), count, trial.model_bytes(start.running)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())  # it may not be writable
    return diagnosis.disk(str(folder), shutil.disk_usage(place).free, quota(place), *sizes)


def quota(folder: Path) -> int | None:
    """Bytes that the user may still write below `folder`; None where no quota is known."""
    program = shutil.which("quota")
    if program is None:
        return None
    try:
        told = subprocess.run([program, "-w", "-p"], capture_output=True, text=True, timeout=5, check=False).stdout
        mounts = [line.split()[:2] for line in Path("/proc/mounts").read_text().splitlines()]
    except (OSError, subprocess.TimeoutExpired):
        return None
    within = [each for each in mounts if folder.absolute().is_relative_to(each[1])]
    return quota_left(told, max(within, key=lambda each: len(each[1]))[0]) if within else None


def quota_left(told: str, device: str) -> int | None:
    """Reads what `quota -w -p` prints: device, KiB used, soft and hard limit (0: none), ...; bytes left, None without limit."""
    for line in told.splitlines():
        name, *numbers = line.split() or [""]
        if name == device and len(numbers) > 2:
            used, *limits = (int(each.rstrip("*")) for each in numbers[:3])
            most = max(limits)
            return max(0, most - used) * 1024 if most else None
    return None


def shared_memory(cfg: build.Config, batch: Any, world: World) -> Finding:
    folder = Path("/dev/shm")
    free = shutil.disk_usage(folder).free if folder.is_dir() else None
    needed = cfg["num_workers"] * DEPTH * shared_bytes(batch) * world.local_size
    return diagnosis.shared_memory(free, cfg["num_workers"], needed)


def shared_bytes(value: Any) -> int:
    """What the tensors of a batch take in /dev/shm, each a file of whole pages."""
    if isinstance(value, Tensor):
        return -(-value.nbytes // PAGE) * PAGE
    return sum(map(shared_bytes, value)) if isinstance(value, list | tuple) else 0


def free_memory(running: Engine, world: World) -> Finding:
    foreign = 0
    if world.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(world.device)
        foreign = total - free - torch.cuda.memory_reserved(world.device)
    return diagnosis.memory(free_bytes(world), foreign, memory.pending_bytes(running), world.device.type)


@cache
def versions() -> dict[str, str]:
    """Package -> its version, of Python and all that bgetrain requires and is installed."""
    found = {"python": platform.python_version()}
    for each in required():
        name = re.split(r"[^\w.-]", each)[0]
        try:
            found[name] = found["python"] if name == "python" else version(name)
        except PackageNotFoundError:
            continue
    return found


def required() -> list[str]:
    """What the installed package asks for, e.g. "torch>=2.8"; nothing where it is run from a folder."""
    try:
        own = distribution("bgetrain")
    except PackageNotFoundError:
        return []
    return [f"python{own.metadata['Requires-Python']}", *(each for each in own.requires or [] if not EXTRA.search(each))]


def driver_version() -> str | None:
    """Of the NVIDIA driver of this machine."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+\.\d+(\.\d+)?", path.read_text()) if path.is_file() else None
    return found.group() if found else None


def addresses(host: str) -> list[str]:
    """What a host name resolves to."""
    try:
        return list(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, None)))
    except OSError:
        return []


def prints(files: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """File -> its fingerprint, and file -> why it cannot be read; caches of hosts may lie in other folders."""
    found, faults = {}, {}
    for path in files:
        try:
            found[path] = json.dumps(fingerprint([path])[path])
        except OSError as error:
            faults[path] = error.strerror or str(error)
    return found, faults


def tokenizer_hash(tokenizer: Any) -> str:
    """Of all that decides on tokens."""
    return hashlib.sha256(json.dumps(contents(tokenizer), sort_keys=True).encode()).hexdigest()


def embedded(running: Engine, text: Ragged, longest: int, chunk_tokens: int, pad_id: int | None, world: World) -> Tensor:
    """A scalar of the longest rows' embeddings, as stage=pairs and stage=finetune make chunks.

    Args:
        running: its module is `BiEncoder`.
        text: this rank's texts of a batch.
        longest: tokens of a row.
        chunk_tokens: of a chunk.
        pad_id: None where chunks are packed.
        world: all ranks.
    """
    rows = trial.longest_rows(text, longest, chunk_tokens, world.device.type)
    made = chunk(rows, torch.arange(len(rows.lengths)), pad_id)
    embeddings, shift = trial.Bare(running).forward([0], *(build.on_device(tensor, world) for tensor in made))
    ramp = torch.linspace(-1, 1, embeddings.shape[1], device=embeddings.device)  # of unit rows, plain sums have less to say
    return (embeddings @ ramp).sum() if shift is None else (embeddings @ ramp).sum() + shift.sum()


def reconstructed(trained: masked.Trained, batch: masked.WordBatch, longest: int, chunk_tokens: int) -> Tensor:
    """The loss of the longest rows, as stage=retromae makes chunks; each token is a word.

    Args:
        trained: the engine and what it is trained for.
        batch: this rank's.
        longest: tokens of a row.
        chunk_tokens: of a chunk.
    """
    world = trained.world
    ids = torch.cat([each.ids.flatten() if each.mask is None else each.ids[each.mask] for each in batch.chunks])
    rows = trial.longest_rows(Ragged(ids, batch.lengths), longest, chunk_tokens, world.device.type)
    shape = (len(rows.lengths), longest)
    words = torch.arange(-1, longest - 1).repeat(shape[0], 1)
    words[:, -1] = -1
    whole = WordChunk(rows.ids.view(shape), None, words, torch.arange(shape[0]))
    bare: Any = trained._replace(engine=trial.Bare(trained.engine))  # type: ignore[arg-type]
    watch = masked.Stopwatch(world.device)
    return masked.forward(bare, masked.work_of(bare, [whole], 1, watch), 0, 1, watch).loss
