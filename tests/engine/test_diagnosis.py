"""Each check before the first step: figures that would spoil a run, and the line that says so."""

from types import SimpleNamespace

import pytest
import torch

from bgetrain.engine import diagnosis, trial
from bgetrain.engine.findings import Finding, merged, size, who
from bgetrain.stage import preflight
from bgetrain.types import Ragged

GB, MB = 10**9, 10**6
HAVE = {"python": "3.11.7", "torch": "2.7.1", "numpy": "2.0.0"}
WORKS = {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.0.0"}
NETWORK = "correct /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network's device"

# check, what it is given, its level, its line
CASES = [
    (diagnosis.versions, (WORKS, ["torch>=2.8", "python>=3.11", "faiss>=1"]), "ok", "python 3.11.7, torch 2.13.0+cpu"),
    (diagnosis.versions, (HAVE, ["numpy>=1.26", "torch>=2.8"]), "warning",
     "torch 2.7.1 is installed, and torch>=2.8 is needed: pip install 'torch>=2.8'"),
    (diagnosis.versions, (HAVE, ["python>=3.12"]), "warning",
     "python 3.11.7 is installed, and python>=3.12 is needed: install another Python"),
    (diagnosis.same_versions, (HAVE, HAVE), "ok", "the same on all ranks"),
    (diagnosis.same_versions, ({"torch": "2.8"}, {"torch": "2.9", "peft": "1"}), "error",
     "torch 2.8 (rank 0: 2.9), peft none (rank 0: 1): install the same versions on all machines"),
    (diagnosis.driver, ("2.13", None, False, None), "ok", "no NVIDIA driver"),
    (diagnosis.driver, ("2.13", "13.0", True, "580.1"), "ok", "NVIDIA 580.1, torch for CUDA 13.0"),
    (diagnosis.driver, ("2.13+cpu", None, False, "550.54"), "warning",
     "there is an NVIDIA driver (550.54) but torch 2.13+cpu is built without CUDA, so the CPU trains: install the torch build "
     "for CUDA"),
    (diagnosis.driver, ("2.13", "13.0", False, "550.54"), "warning",
     "torch 2.13 for CUDA 13.0 finds no GPU with the NVIDIA driver 550.54, so the CPU trains: update the driver, install torch "
     "for an older CUDA, or see CUDA_VISIBLE_DEVICES"),
    (diagnosis.disk, ("out", 74 * GB, None, 1200 * MB, 3, 400 * MB), "ok", "74 GB free for 3 checkpoints of 1.2 GB"),
    (diagnosis.disk, ("out", 4 * GB, None, 1200 * MB, 3, 400 * MB), "ok", "4.0 GB free for 3 checkpoints of 1.2 GB"),
    (diagnosis.disk, ("out", 3999 * MB, None, 1200 * MB, 3, 400 * MB), "warning",
     "output_dir=out: 4.0 GB free, 3 checkpoints of 1.2 GB and model/ of 400 MB do not fit: make room, choose another "
     "output_dir, or keep fewer (keep=1)"),
    (diagnosis.disk, ("out", 1599 * MB, None, 1200 * MB, 3, 400 * MB), "error",
     "output_dir=out: 1.6 GB free, one checkpoint of 1.2 GB and model/ of 400 MB do not fit: make room, or choose another "
     "output_dir"),
    (diagnosis.disk, ("out", 74 * GB, 100 * MB, 1200 * MB, 3, 400 * MB), "error",
     "output_dir=out: 100 MB left of the quota, one checkpoint of 1.2 GB and model/ of 400 MB do not fit: make room, or choose "
     "another output_dir"),
    (diagnosis.output_folder, ("out", None, "a", "a"), "ok", "one folder, every rank writes there"),
    (diagnosis.output_folder, ("out", "Read-only file system", "a", "a"), "error",
     "output_dir=out: cannot write here (Read-only file system): mount it writable"),
    (diagnosis.output_folder, ("out", None, None, "a"), "error",
     "output_dir=out is another folder than rank 0's: every rank writes a part of a checkpoint there, so choose a folder that "
     "all machines share"),
    (diagnosis.shared_memory, (12 * MB, 0, 0), "ok", "12 MB free, not needed: num_workers=0"),
    (diagnosis.shared_memory, (GB, 4, 300 * MB), "ok", "1.0 GB free, about 300 MB needed"),
    (diagnosis.shared_memory, (12 * MB, 4, 300 * MB), "error",
     "/dev/shm has 12 MB free, num_workers=4 needs about 300 MB: start the container with --shm-size=1g, or num_workers=0"),
    (diagnosis.shared_memory, (None, 4, 900 * MB), "error",
     "there is no /dev/shm, num_workers=4 needs about 900 MB: start the container with --shm-size=2g, or num_workers=0"),
    (diagnosis.host_name, ("node7", [], 1, None), "ok", "1 machine"),
    (diagnosis.host_name, ("node7", ["10.0.0.7"], 2, ("node0", 29500)), "ok", "2 machines, met at node0:29500"),
    (diagnosis.host_name, ("node7", [], 2, None), "warning", f"the name node7 does not resolve here: {NETWORK}"),
    (diagnosis.host_name, ("node7", ["127.0.1.1"], 2, None), "warning",
     f"the name node7 is 127.0.1.1 here, where no other machine gets: {NETWORK}"),
    (diagnosis.collectives, ({}, {}), "ok", "none: one rank"),
    (diagnosis.collectives, ({"all-reduce": 0}, {"all-reduce": 2.5 * GB, "all-gather": 1.3 * GB}), "ok", "1.3 GB/s between them"),
    (diagnosis.collectives, ({"all-reduce": 0, "all-gather": 1024}, {"all-reduce": GB}), "error",
     "all-gather over all ranks gives 1,024 wrong numbers: the network library or a device is broken; try NCCL_P2P_DISABLE=1, or "
     "leave this machine out"),
    (diagnosis.link, (0.31 * GB, [1.2 * GB, 1.1 * GB, 5 * GB], "rank 2 (node1)"), "ok", "0.31 GB/s"),
    (diagnosis.link, (0.29 * GB, [1.2 * GB, 1.1 * GB, 5 * GB], "rank 2 (node1)"), "warning",
     "0.29 GB/s arrive from rank 2 (node1), 1.2 GB/s at the other ranks: all wait for the slowest; see cable, switch and network "
     "device of both"),
    (diagnosis.link, (0.0, [], "rank 0 (node0)"), "ok", "none: one rank"),
    (diagnosis.pace, (0.29, [0.1, 0.1, 0.1]), "ok", "2.9 times the others' time"),
    (diagnosis.pace, (0.42, [0.1, 0.1, 9.0]), "warning",
     "computes 4.2 times as slowly as the other ranks, and all wait for the slowest: see what else runs on it, its clock rate "
     "and its temperature"),
    (diagnosis.clock, (-0.9,), "ok", "ranks agree to 1 s"),
    (diagnosis.clock, (12.34,), "warning", "the clock is 12.3 s ahead of the other ranks': start NTP (chronyd); times of files "
     "and log lines cannot be compared"),
    (diagnosis.clock, (-1.1,), "warning", "the clock is 1.1 s behind the other ranks': start NTP (chronyd); times of files "
     "and log lines cannot be compared"),
    (diagnosis.memory, (20 * GB, 0, 12 * GB, "cuda"), "ok",
     "20 GB of the GPU are free, gradients and optimizer states will take 12 GB"),
    (diagnosis.memory, (0, 0, 12 * GB, "cpu"), "ok", "not known how much is free"),
    (diagnosis.memory, (20 * GB, 60 * GB, 12 * GB, "cuda"), "warning",
     "another process holds 60 GB of this GPU, 20 GB are free: end it if it is not meant to be there"),
    (diagnosis.memory, (10 * GB, 60 * GB, 12 * GB, "cuda"), "error",
     "10 GB of the GPU are free, gradients and optimizer states will take 12 GB: end the process that holds 60 GB there, or use "
     "engine=zero2 or zero3, more ranks, or a smaller model"),
    (diagnosis.memory, (10 * GB, 0, 12 * GB, "cpu"), "warning",
     "10 GB of the machine's memory are free for this rank, gradients and optimizer states will take 12 GB: use engine=zero2 or "
     "zero3, more ranks, or a smaller model"),
    (diagnosis.same_files, ({"/home/a/x": "1"}, {"/home/b/x": "1"}, {}), "ok", "1 file, the same on all ranks"),
    (diagnosis.same_files, ({"x": "1", "y": "2"}, {"x": "1", "y": "3"}, {}), "error",
     "y is not what rank 0 has (2 files here, 2 there): copy rank 0's data here, or read from a folder that all machines share"),
    (diagnosis.same_files, ({"x": "1"}, {"x": "1", "y": "3"}, {"y": "No such file"}), "error",
     "y: cannot be read here (No such file): copy it here, or read from a shared folder"),
    (diagnosis.same_tokenizer, ("a", "b"), "error",
     "the tokenizer is not rank 0's, the same texts would become other tokens: copy rank 0's model folder here"),
    (diagnosis.same_weights, ({"a": 1, "b": 2}, {"a": 1, "b": 2}), "ok", "2 parameters, the same on all ranks"),
    (diagnosis.same_weights, ({"a": 1, "b": 2}, {"a": 1, "b": 3}), "error",
     "1 of 2 parameters differ from rank 0's, the first is b: give all machines the same model folder and the same output_dir"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "given", "level", "line"), CASES)
def test_each_check_says_what_is_wrong_and_what_to_do(check, given, level, line):
    found = check(*given)
    assert (found.level, found.line) == (level, line)
    assert "\n" not in found.line


def test_the_findings_of_all_ranks_become_one_of_each_check():
    def found(*levels: str) -> list[list[Finding]]:
        return [[Finding("a", "ok", f"fine {rank}"), Finding("b", level, f"{level} line")] for rank, level in enumerate(levels)]

    hosts = ["n1", "n1", "n2", "n2"]
    assert merged(found("ok", "ok", "ok", "ok"), hosts) == [Finding("a", "ok", "fine 0"), Finding("b", "ok", "ok line")]
    assert merged(found("warning", "error", "ok", "error"), hosts)[1] == ("b", "error", "ranks 1, 3 (n1, n2): error line")
    assert merged(found("error"), ["n1"])[1] == ("b", "error", "error line")
    each = [[Finding("c", "error", f"{rank} lost")] for rank in range(6)]
    together = merged(each, ["n"] * 6)[0].line
    assert together == " | ".join(f"rank {rank} (n): {rank} lost" for rank in range(4)) + " | and 2 more like it"


def test_ranks_and_bytes_are_told_as_people_read_them():
    assert who([0, 1, 2, 5], [f"n{rank // 2}" for rank in range(9)]) == "ranks 0-2, 5 (n0, n1, n2): "
    assert who(range(9), [f"n{rank}" for rank in range(9)]) == "ranks 0-8 (n0, n1, n2 and 6 more): "
    assert [size(each) for each in (74.4e9, 1.24e9, 0.999e9, 12.4e6, 0.34e6)] == ["74 GB", "1.2 GB", "1.0 GB", "12 MB", "0.3 MB"]


def test_a_quota_is_read_from_what_the_command_prints():
    head = (
        "Disk quotas for user me (uid 1000): \n     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n"
    )
    told = head + "  server:/home   1500*  1000  2000  6days  1 0 0 0\n  /dev/sda1  77  0  0  0  1 0 0 0\n"
    assert preflight.quota_left(told, "server:/home") == 500 * 1024
    assert preflight.quota_left(told, "/dev/sda1") is None
    assert preflight.quota_left(told, "/dev/sdb1") is None


def test_every_requirement_of_the_package_is_looked_at_but_not_extras():
    names = {each.split(">")[0] for each in preflight.required()}
    assert {"python", "torch", "transformers", "deepspeed", "tokenizers"} <= names
    assert not {"pytest", "wandb", "ruff"} & names
    assert {"python", "torch", "deepspeed"} <= set(preflight.versions())


def test_a_batch_takes_whole_pages_of_shared_memory_for_each_tensor():
    batch = (Ragged(torch.zeros(1000, dtype=torch.int64), torch.zeros(3)), None, 7, [torch.zeros(0)])
    assert preflight.shared_bytes(batch) == 2 * 4096 + 4096


def test_the_longest_rows_fill_a_chunk_and_are_no_more_than_the_batch_has():
    text = Ragged(torch.arange(30), torch.tensor([10] * 3))
    few = trial.longest_rows(text, 24, 60, "cpu")
    assert few.lengths.tolist() == [24, 24]
    assert few.ids.tolist() == [*range(30), *range(18)]
    assert trial.longest_rows(text, 24, 6000, "cpu").lengths.tolist() == [24] * 3
    assert trial.longest_rows(text, 24, 10, "cuda").lengths.tolist() == [24]
    wide = Ragged(torch.arange(300), torch.tensor([1] * 300))
    assert [len(trial.longest_rows(wide, 64, 12800, device).lengths) for device in ("cpu", "cuda")] == [16, 200]


def test_checksums_tell_one_bit_and_not_the_order_of_addition():
    values = torch.randn(trial.SLICE + 5)
    other = values.clone()
    other[-1] = torch.nextafter(other[-1], torch.tensor(9.0))
    assert trial.checksum(values) == int(values.numpy().view("int32").astype("int64").sum())
    assert trial.checksum(other) != trial.checksum(values)
    assert trial.checksum(values.bfloat16()) == trial.checksum(values.bfloat16().clone())
    assert trial.checksum(torch.zeros(0)) == 0


class Stuck:
    """An engine of which a pass runs out of memory."""

    def __init__(self, zero_stage: int) -> None:
        self.zero_stage, self.world = zero_stage, SimpleNamespace(device=torch.device("cpu"))
        self.core = SimpleNamespace(empty_partition_cache=lambda: None)

    def trained(self) -> dict:
        return {}


def exhausted() -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_out_of_memory_is_answered_in_a_line_and_at_zero3_at_once():
    line = "out of memory in the forward and backward pass of one chunk of the longest rows: lower chunk_tokens, set "
    line += "model.gradient_checkpointing=true"
    assert trial.run(Stuck(1), exhausted) == ("longest rows", "error", f"{line}, or engine=zero2")
    with pytest.raises(ValueError, match=f"^{line}$"):
        trial.run(Stuck(3), exhausted)

    def broken() -> torch.Tensor:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        trial.run(Stuck(1), broken)
