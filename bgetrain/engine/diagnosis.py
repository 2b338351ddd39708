"""What could spoil a run, judged from figures measured elsewhere: each check is a pure function that returns a `Finding`."""

from collections.abc import Mapping, Sequence
from statistics import median

from packaging.requirements import Requirement  # which transformers and deepspeed bring along

from bgetrain.engine.findings import GB, Finding, size

CLOCK_SECONDS = 1.0  # NTP holds a tenth of it; from here on times of files and of log lines of two hosts mislead
SLOW_LINK = 4.0  # times as slow as the others' median; one switch more costs less than 2; our choice
SLOW_RANK = 3.0  # the same for computing: a GPU that is throttled, cores that something else uses; our choice
FOREIGN_BYTES = 1.5 * GB  # of a GPU taken beside torch: CUDA itself and DeepSpeed's buffers hold up to 1 GB


def versions(installed: Mapping[str, str], required: Sequence[str]) -> Finding:
    """Holds installed versions against the ranges that the package asks for.

    Args:
        installed: package -> version, `python` among them.
        required: as pyproject.toml has them, e.g. "torch>=2.8".
    """
    told = [f"{name} {installed[name]}" for name in ("python", "torch", "transformers", "deepspeed") if name in installed]
    for each in map(Requirement, required):
        have = installed.get(each.name)
        if have is not None and not each.specifier.contains(have, prereleases=True):
            line = f"{each.name} {have} is installed, and {each.name}{each.specifier} is needed: "
            mend = "install another Python" if each.name == "python" else f"pip install '{each.name}{each.specifier}'"
            return Finding("versions", "warning", line + mend)
    return Finding("versions", "ok", ", ".join(told))


def same_versions(installed: Mapping[str, str], first: Mapping[str, str]) -> Finding:
    """Holds this rank's versions against rank 0's: another tokenizer or kernel makes other numbers."""
    other = [name for name in {**first, **installed} if installed.get(name) != first.get(name)]
    if not other:
        return Finding("same versions", "ok", "the same on all ranks")
    told = ", ".join(f"{name} {installed.get(name, 'none')} (rank 0: {first.get(name, 'none')})" for name in other[:3])
    return Finding("same versions", "error", f"{told}: install the same versions on all machines")


def driver(torch_version: str, build: str | None, usable: bool, installed: str | None) -> Finding:
    """Holds torch's CUDA build against the machine's driver.

    Args:
        torch_version: for people.
        build: CUDA version that torch was built for; None: for none.
        usable: torch can use a GPU.
        installed: version of the NVIDIA driver; None: there is none.
    """
    if installed is None or usable:
        return Finding("driver", "ok", f"NVIDIA {installed}, torch for CUDA {build}" if installed else "no NVIDIA driver")
    if build is None:
        line = f"there is an NVIDIA driver ({installed}) but torch {torch_version} is built without CUDA, so the CPU trains: "
        return Finding("driver", "warning", line + "install the torch build for CUDA")
    line = f"torch {torch_version} for CUDA {build} finds no GPU with the NVIDIA driver {installed}, so the CPU trains: "
    return Finding("driver", "warning", line + "update the driver, install torch for an older CUDA, or see CUDA_VISIBLE_DEVICES")


def disk(folder: str, free: int, quota: int | None, checkpoint: int, count: int, model: int) -> Finding:
    """Holds the space left against what the run will write.

    Args:
        folder: receives it.
        free: bytes of the disk.
        quota: bytes that the user may still write; None: not limited as far as is known.
        checkpoint: bytes of one.
        count: of checkpoints that will lie there at once, beside those there already.
        model: bytes of `model/`.
    """
    left, what = (free, "free") if quota is None or free <= quota else (quota, "left of the quota")
    have = f"{size(left)} {what}"
    wanted = f"{count} checkpoint{'s' * (count != 1)} of {size(checkpoint)}"
    if left < min(count, 1) * checkpoint + model:
        line = f"output_dir={folder}: {have}, one checkpoint of {size(checkpoint)} and model/ of {size(model)} do not fit: "
        return Finding("disk", "error", line + "make room, or choose another output_dir")
    if left < count * checkpoint + model:
        line = f"output_dir={folder}: {have}, {wanted} and model/ of {size(model)} do not fit: "
        return Finding("disk", "warning", line + "make room, choose another output_dir, or keep fewer (keep=1)")
    return Finding("disk", "ok", f"{have} for {wanted}")


def output_folder(folder: str, fault: str | None, found: str | None, wanted: str) -> Finding:
    """Whether this rank sees and writes the folder of rank 0.

    Args:
        folder: `output_dir`.
        fault: why this rank cannot write there; None: it can.
        found: what this rank read there of what rank 0 wrote; None: nothing.
        wanted: what rank 0 wrote.
    """
    if fault is not None:
        return Finding("output folder", "error", f"output_dir={folder}: cannot write here ({fault}): mount it writable")
    if found != wanted:
        line = f"output_dir={folder} is another folder than rank 0's: every rank writes a part of a checkpoint there, so choose "
        return Finding("output folder", "error", line + "a folder that all machines share")
    return Finding("output folder", "ok", "one folder, every rank writes there")


def shared_memory(free: int | None, num_workers: int, needed: int) -> Finding:
    """Holds /dev/shm, through which worker processes hand over batches, against what they need.

    Args:
        free: bytes of /dev/shm; None: there is none.
        num_workers: of each rank.
        needed: bytes, of all ranks of this machine.
    """
    if num_workers and (free or 0) < needed:
        have = "there is no /dev/shm" if free is None else f"/dev/shm has {size(free)} free"
        advised = max(1, -(-2 * needed // 2**30))
        line = f"{have}, num_workers={num_workers} needs about {size(needed)}: "
        return Finding("/dev/shm", "error", line + f"start the container with --shm-size={advised}g, or num_workers=0")
    told = "none" if free is None else f"{size(free)} free"
    return Finding("/dev/shm", "ok", f"{told}, {f'about {size(needed)} needed' if num_workers else 'not needed: num_workers=0'}")


def host_name(host: str, addresses: Sequence[str], hosts: int, met: tuple[str, int] | None) -> Finding:
    """Whether other machines can reach this one by its name, which is how gloo and NCCL offer themselves.

    Args:
        host: its name.
        addresses: what the name resolves to here; none where it does not.
        hosts: machines of the run.
        met: host and port of the place where the ranks have met; None: one rank needs none.
    """
    mend = "correct /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network's device"
    if hosts > 1 and not addresses:
        return Finding("host names", "warning", f"the name {host} does not resolve here: {mend}")
    if hosts > 1 and all(each.startswith("127.") or each == "::1" for each in addresses):
        return Finding("host names", "warning", f"the name {host} is {addresses[0]} here, where no other machine gets: {mend}")
    where = f", met at {met[0]}:{met[1]}" if met else ""
    return Finding("host names", "ok", f"{hosts} machine{'s' * (hosts > 1)}{where}")


def collectives(wrong: Mapping[str, int], rates: Mapping[str, float]) -> Finding:
    """Whether sums and gathers over all ranks are right, and how fast.

    Args:
        wrong: collective -> elements of its result that are not what they must be; empty where there is one rank.
        rates: collective -> bytes per second over the slowest link (bus bandwidth as nccl-tests counts it).
    """
    for name, count in wrong.items():
        if count:
            line = f"{name} over all ranks gives {count:,} wrong numbers: the network library or a device is broken; "
            return Finding("collectives", "error", line + "try NCCL_P2P_DISABLE=1, or leave this machine out")
    if not rates:
        return Finding("collectives", "ok", "none: one rank")
    return Finding("collectives", "ok", f"{min(rates.values()) / GB:.2g} GB/s between them")


def link(own: float, others: Sequence[float], sender: str) -> Finding:
    """Holds what arrives here from the rank before against what arrives elsewhere.

    Args:
        own: bytes per second.
        others: the same of the other ranks; none where there is one rank.
        sender: the rank before, for people.
    """
    usual = median(others) if others else own
    if own * SLOW_LINK < usual:
        line = f"{own / GB:.2g} GB/s arrive from {sender}, {usual / GB:.2g} GB/s at the other ranks: "
        return Finding("slowest link", "warning", line + "all wait for the slowest; see cable, switch and network device of both")
    return Finding("slowest link", "ok", f"{min([own, *others]) / GB:.2g} GB/s" if others else "none: one rank")


def pace(own: float, others: Sequence[float]) -> Finding:
    """Holds the time that this rank takes for a small piece of work against the others'.

    Args:
        own: seconds.
        others: the same of the other ranks; none where there is one rank.
    """
    usual = median(others) if others else own
    if own > SLOW_RANK * usual:
        line = f"computes {own / usual:.1f} times as slowly as the other ranks, and all wait for the slowest: "
        return Finding("slowest rank", "warning", line + "see what else runs on it, its clock rate and its temperature")
    told = f"{max([own, *others]) / usual:.1f} times the others' time" if others else "none: one rank"
    return Finding("slowest rank", "ok", told)


def clock(offset: float) -> Finding:
    """Judges how far this rank's clock is ahead of the middle of all ranks', in seconds."""
    if abs(offset) > CLOCK_SECONDS:
        line = f"the clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} the other ranks': "
        return Finding("clock", "warning", line + "start NTP (chronyd); times of files and log lines cannot be compared")
    return Finding("clock", "ok", f"ranks agree to {CLOCK_SECONDS:g} s")


def memory(free: int, foreign: int, pending: int, device: str) -> Finding:
    """Judges the memory left for the first step.

    Args:
        free: bytes that this rank may still take; 0: not known.
        foreign: bytes of its GPU that are not this process's.
        pending: bytes that DeepSpeed will take beside activations.
        device: "cpu" or "cuda".
    """
    where = "of the GPU are free" if device == "cuda" else "of the machine's memory are free for this rank"
    have = f"{size(free)} {where}, gradients and optimizer states will take {size(pending)}"
    if free and pending > free:
        mend = "use engine=zero2 or zero3, more ranks, or a smaller model"
        mend = f"end the process that holds {size(foreign)} there, or {mend}" if foreign > FOREIGN_BYTES else mend
        return Finding("memory", "error" if device == "cuda" else "warning", f"{have}: {mend}")
    if foreign > FOREIGN_BYTES:
        line = f"another process holds {size(foreign)} of this GPU, {size(free)} are free: end it if it is not meant to be there"
        return Finding("memory", "warning", line)
    return Finding("memory", "ok", have if free else "not known how much is free")


def same_files(own: Mapping[str, str], first: Mapping[str, str], faults: Mapping[str, str]) -> Finding:
    """Holds this rank's data against rank 0's.

    Args:
        own: file -> its fingerprint, in the order in which they are read.
        first: the same of rank 0.
        faults: file -> why this rank cannot read it.
    """
    if faults:
        name, reason = next(iter(faults.items()))
        return Finding("data", "error", f"{name}: cannot be read here ({reason}): copy it here, or read from a shared folder")
    if list(own.values()) != list(first.values()):
        mine = next((name for name, each in own.items() if each not in first.values()), next(iter(own), "nothing"))
        line = f"{mine} is not what rank 0 has ({len(own)} files here, {len(first)} there): "
        return Finding("data", "error", line + "copy rank 0's data here, or read from a folder that all machines share")
    return Finding("data", "ok", f"{len(own)} file{'s' * (len(own) != 1)}, the same on all ranks" if own else "of no files")


def same_tokenizer(own: str, first: str) -> Finding:
    """Holds a hash of this rank's tokenizer against rank 0's."""
    if own != first:
        line = "the tokenizer is not rank 0's, the same texts would become other tokens: copy rank 0's model folder here"
        return Finding("tokenizer", "error", line)
    return Finding("tokenizer", "ok", "the same on all ranks")


def same_weights(own: Mapping[str, int], first: Mapping[str, int]) -> Finding:
    """Holds checksums of this rank's parameters against rank 0's."""
    other = [name for name in {**first, **own} if own.get(name) != first.get(name)]
    if other:
        line = f"{len(other)} of {len(first)} parameters differ from rank 0's, the first is {other[0]}: "
        return Finding("weights", "error", line + "give all machines the same model folder and the same output_dir")
    return Finding(
        "weights", "ok", f"{len(own)} parameters, the same on all ranks" if own else "not compared: one rank, or ZeRO-3"
    )
