"""Checks before the first step: on gloo ranks of which one is unlike the others, and `bgetrain stage=doctor` alone."""

import re
from pathlib import Path
from typing import Any

import pytest


def configure(stage: str, zero: int, model: Path, data: Path, output: Path, *more: str) -> list[str]:
    chosen = [
        f"stage={stage}", "data=beir", f"data.path={data}", f"engine=zero{zero}", "precision=fp32", "log_every=1",
        "save_every=1000", "total_steps=3", "global_batch=7", "chunk_tokens=60", f"model.path={model}", "model.dropout=0.2",
        f"output_dir={output}", "data.passage_max_len=24", *more,
    ]  # fmt: skip
    if stage == "finetune":
        chosen += ["group_size=2", "data.query_max_len=20"]
    if zero == 3:
        keys = ("param_persistence_threshold", "max_reuse_distance")
        chosen += [f"+engine.zero_optimization.stage3_{key}=0" for key in keys]
    return chosen


def both_ways(world, model: Path, data: Path, folder: Path) -> list[tuple[str, list[Any], list[Any], int]]:
    """Losses and norms of runs with and without the checks, and how many random numbers a rank's generator was moved on."""
    from ranks import run_stage

    from bgetrain.stage import preflight

    calls = []
    plain = preflight.trial.run

    def counted(engine, forward):
        import torch

        before = torch.get_rng_state()
        found = plain(engine, forward)
        held = [name for name, each in engine.core.module.named_parameters() if each.grad is not None]
        calls.append((found.level, bool((before == torch.get_rng_state()).all()), held))
        return found

    preflight.trial.run = counted
    results = []
    for stage in ("finetune", "retromae"):
        for zero in (0, 3) if stage == "finetune" else (1,):  # without DeepSpeed's hooks, with all of them, and between
            runs: list[list[dict[str, float]]] = [[], []]
            for on, lines in zip(("true", "false"), runs, strict=True):
                calls.clear()
                run_stage(world, [*configure(stage, zero, model, data, folder / f"{stage}{zero}{on}"), f"preflight={on}"], lines)
                assert calls == ([("ok", True, [])] if on == "true" else [])
            told = [[(line["loss"], line["grad_norm"]) for line in lines] for lines in runs]
            results.append((f"{stage} zero{zero}", *told))
    return results


@pytest.mark.parametrize("size", [1, 2])
def test_losses_are_bit_for_bit_those_without_the_checks(size, spawn, model_folder, beir_folder, tmp_path):
    for found in spawn(size, both_ways, model_folder, beir_folder, tmp_path):
        assert len(found) == 3
        for name, checked, unchecked in found:
            assert len(checked) == 3, name
            assert checked == unchecked, name


class Captured(Exception):
    """Carries what a stage is about to start."""


def started(world, model: Path, data: Path, output: Path) -> tuple[dict[str, Any], Any]:
    """Config and `preflight.Start` of a run that is left before its first step."""
    from ranks import run_stage

    from bgetrain.stage import preflight

    def capture(cfg, start, _):
        raise Captured(cfg, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "checked", capture)
        with pytest.raises(Captured) as caught:
            run_stage(world, configure("finetune", 1, model, data, output))
    return caught.value.args


def unlike(world, model: Path, data: Path, folder: Path) -> dict[str, tuple[str, list[str]]]:
    """What ranks say where rank 1 is unlike rank 0: the error and the warnings."""
    import time
    from types import SimpleNamespace

    import torch

    from bgetrain import distributed
    from bgetrain.engine import exchange
    from bgetrain.stage import preflight

    cfg, start = started(world, model, data, folder / "out")
    odd = world.rank == 1
    other = folder / f"other.{world.rank}"
    other.write_text(f"rank {world.rank}")
    found: dict[str, tuple[str, list[str]]] = {}

    def check(name, *, mine=None, settings=None, patches=()):
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preflight.console, "say", said.append)
            patch.setattr(preflight.socket, "gethostname", lambda: f"node{world.rank}")
            patch.setattr(preflight, "addresses", lambda host: ["10.0.0.1"])
            for each in patches:
                patch.setattr(*each)
            try:
                told = preflight.checked({**cfg, **(settings or {})}, start._replace(**(mine or {})), world)
                found[name] = told["checked"], said
            except ValueError as error:
                found[name] = str(error), said

    def sleepy(function):
        def slow(*arguments):
            time.sleep(0.3)
            return function(*arguments)

        return slow

    def only(free):
        return [(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))]

    def wrong(values, _):
        total = plain_sum(values, world)
        total[3:5] += 1
        return total

    def exhausted():
        raise torch.OutOfMemoryError("CUDA out of memory")

    plain_sum = distributed.sum_over_ranks
    check("alike")
    check("other data", mine={"files": [str(other)]})
    check("missing data", mine={"files": [str(folder / "none")] if odd else start.files})
    check("other folder", settings={"output_dir": str(folder / "elsewhere")} if odd else {})
    check("unwritable", settings={"output_dir": str(other / "under")} if odd else {})
    check("versions", patches=[(preflight, "versions", lambda: {"torch": "2.8.0" if odd else "2.9.1"})])
    check("disk", patches=only(100_000))
    check("fewer", patches=only(700_000), settings={"save_every": 1})
    check("shm", patches=only(12_000_000), settings={"num_workers": 10_000})
    check("slow", patches=[(exchange, "multiply", sleepy(exchange.multiply))] if odd else [])
    check("wrong", patches=[(distributed, "sum_over_ranks", wrong)] if odd else [])
    ahead = SimpleNamespace(**{name: getattr(time, name) for name in ("perf_counter", "monotonic", "sleep")})
    ahead.time = lambda: time.time() + 100
    check("clock", patches=[(exchange, "time", ahead)] if odd else [])
    check("memory", mine={"forward": exhausted} if odd else {})
    unequal = [(preflight, "versions", lambda: {"torch": "2.8.0" if odd else "2.9.1"})]
    check("several", mine={"files": [str(folder / "none")] if odd else start.files}, patches=unequal)
    check("tokenizer", patches=[(preflight, "tokenizer_hash", lambda _: str(world.rank))])
    weight = start.running.trained()["backbone.encoder.layer.1.output.dense.weight"]
    if odd:
        weight.data[0, 0] += 1e-3
    check("weights")
    weight.data.fill_(float("nan"))
    check("finite")
    assert sorted(path.name for path in (folder / "out").glob(".preflight*")) == []
    return found


def test_a_rank_unlike_the_others_is_named_with_what_to_do(spawn, model_folder, beir_folder, tmp_path):
    both = spawn(2, unlike, model_folder, beir_folder, tmp_path)
    first = both[0]
    of_each = [{name: line for name, (line, _) in found.items() if name not in {*WARNED, "alike"}} for found in both]
    assert of_each[1] == of_each[0]  # all ranks leave with the same words
    for name, words in ERRORS.items():
        expected = words.format(out=tmp_path / "out", folder=tmp_path)
        assert first[name][0] == expected + " (preflight=false trains all the same)", name
    for name, words in WARNED.items():
        line, said = first[name]
        assert line.startswith("16 checks in "), name
        assert [each for each in said if re.fullmatch(words, each)], (name, said)
        assert both[1][name][1] == []
    figures = r"2 ranks, [\d.e+-]+ GB/s between them, [\d,.]+ GB free for 1 checkpoint of 0\.3 MB"
    assert re.fullmatch(rf"16 checks in \d+\.\d s, {figures}", first["alike"][0])


ODD = "rank 1 (node1): "
ERRORS = {
    "other data": ODD + "{folder}/other.1 is not what rank 0 has (1 files here, 1 there): copy rank 0's data here, or read from "
    "a folder that all machines share",
    "missing data": ODD + "{folder}/none: cannot be read here (No such file or directory): copy it here, or read from a shared "
    "folder",
    "other folder": ODD + "output_dir={folder}/elsewhere is another folder than rank 0's: every rank writes a part of a "
    "checkpoint there, so choose a folder that all machines share",
    "unwritable": ODD + "output_dir={folder}/other.1/under: cannot write here (Not a directory): mount it writable",
    "versions": ODD + "torch 2.8.0 (rank 0: 2.9.1): install the same versions on all machines",
    "disk": "ranks 0-1 (node0, node1): output_dir={out}: 0.1 MB free, one checkpoint of 0.3 MB and model/ of 0.1 MB do not fit: "
    "make room, or choose another output_dir",
    "shm": "ranks 0-1 (node0, node1): /dev/shm has 12 MB free, num_workers=10000 needs about 1.6 GB: start the container with "
    "--shm-size=4g, or num_workers=0",
    "wrong": ODD + "all-reduce over all ranks gives 2 wrong numbers: the network library or a device is broken; try "
    "NCCL_P2P_DISABLE=1, or leave this machine out",
    "memory": ODD + "out of memory in the forward and backward pass of one chunk of the longest rows: lower chunk_tokens, set "
    "model.gradient_checkpointing=true, or engine=zero2",
    "tokenizer": ODD + "the tokenizer is not rank 0's, the same texts would become other tokens: copy rank 0's model folder here",
    "weights": ODD + "1 of 37 parameters differ from rank 0's, the first is backbone.encoder.layer.1.output.dense.weight: give "
    "all machines the same model folder and the same output_dir",
    "finite": "ranks 0-1 (node0, node1): the loss of a chunk is not finite: the model's weights are damaged, or too large for "
    "this precision: use precision=fp32 or bf16, or other weights",
    "several": ODD + "torch 2.8.0 (rank 0: 2.9.1): install the same versions on all machines | rank 1 (node1): {folder}/none: "
    "cannot be read here (No such file or directory): copy it here, or read from a shared folder",
}
WARNED = {
    "slow": r"warning: rank 1 \(node1\): computes [\d.]+ times as slowly as the other ranks, and all wait for the slowest: .*",
    "clock": r"warning: rank 0 \(node0\): the clock is 50\.0 s behind the other ranks': .* \| rank 1 .* 50\.0 s ahead of .*",
    "fewer": r"warning: ranks 0-1 \(node0, node1\): output_dir=.*: 0\.7 MB free, 3 checkpoints of 0\.3 MB and model/ of 0\.1 MB "
    r"do not fit: make room, choose another output_dir, or keep fewer \(keep=1\)",
}


# --- stage=doctor -----------------------------------------------------------------------------------------------------


def doctored(world, jobs: list[list[str]]) -> list[tuple[dict[str, Any], str]]:
    """The report of each, and the error."""
    import json

    from ranks import run_stage

    from bgetrain import distributed

    found = []
    for job in jobs:
        output = next(Path(each.partition("=")[2]) for each in job if each.startswith("output_dir="))
        # what begins with [1]: is meant for rank 1 alone
        own = [each.removeprefix(f"[{world.rank}]:") for each in job if not each.startswith(f"[{1 - world.rank}]:")]
        error = ""
        try:
            run_stage(world, ["stage=doctor", *own])
        except ValueError as fault:
            error = str(fault)
        distributed.barrier(world)
        found.append((json.loads((output / "report.json").read_text()), error))
    return found


def test_two_ranks_with_a_model_and_data_of_the_user(spawn, model_folder, beir_folder, tmp_path):
    given = ["model=pretrained", f"model.path={model_folder}", "data=beir", "data.passage_max_len=32", "data.query_max_len=16"]
    here, nowhere = f"data.path={beir_folder}", f"data.path={tmp_path / 'nowhere'}"
    jobs = [
        [f"output_dir={tmp_path / 'good'}", *given, here, "engine=zero2"],
        [f"output_dir={tmp_path / 'bad'}", *given, f"[0]:{here}", f"[1]:{nowhere}"],
    ]
    (good, bad), others = spawn(2, doctored, jobs)
    assert [error for _, error in others] == [good[1], bad[1]]
    assert good[1] == ""
    report = {each["name"]: each for each in good[0]["checks"]}
    assert (good[0]["ranks"], good[0]["device"], len(report)) == (2, "cpu", 18)
    assert {each["level"] for each in report.values()} <= {"ok", "warning"}
    assert report["data"]["line"] == "4 files, the same on all ranks"
    assert report["weights"]["line"] == "37 parameters, the same on all ranks"
    assert report["one step"]["line"].startswith("DeepSpeed ZeRO-2 in fp32: loss ")
    assert re.fullmatch(r"rank 1 \(.*\): data.path=.*/nowhere: no such file or folder", bad[1])
    assert [each["name"] for each in bad[0]["checks"] if each["level"] == "error"] == ["model and data"]


def test_the_command_alone_in_an_empty_folder(tmp_path, monkeypatch, capsys):
    import json

    from bgetrain import cli

    monkeypatch.chdir(tmp_path)
    small = ["model.vocab_size=300", "model.hidden_size=16", "model.intermediate_size=32"]
    assert cli.main(["stage=doctor", *small]) == 0
    said = capsys.readouterr().out
    assert said.startswith("stage=doctor, 1 rank (cpu)\n  check  ")
    assert re.search(r"\n  one step +ok +DeepSpeed ZeRO-1 in fp32: loss \d", said)
    assert said.endswith("doctor done: 18 checks, 0 warnings, 0 errors\n")
    report = json.loads((tmp_path / "outputs/doctor/report.json").read_text())
    assert [each["name"] for each in report["checks"]][-1] == "one step"
    assert json.loads((tmp_path / "outputs/doctor/result.json").read_text())["checks"] == 18
    # it runs anew, and what fails is in the table, in the report and in one line with status 2
    assert cli.main(["stage=doctor", "model=pretrained", "model.path=./none"]) == 2
    told = capsys.readouterr()
    assert told.out.endswith("doctor done: 10 checks, 0 warnings, 1 errors\n")
    words = "model.path=./none: there is no such folder, so it is no model: give a folder that save_pretrained wrote, or a hub id"
    assert f"  model and data  error  {words}\n" in told.out
    assert told.err.splitlines()[-1] == f"bgetrain: {words}"
    assert not (tmp_path / "outputs/doctor/result.json").exists()
    report = json.loads((tmp_path / "outputs/doctor/report.json").read_text())
    assert [each["line"] for each in report["checks"] if each["level"] == "error"] == [words]


def test_training_says_in_one_line_what_was_checked(model_folder, beir_folder, tmp_path, capsys):
    from bgetrain import cli

    given = configure("finetune", 1, model_folder, beir_folder, tmp_path)
    assert cli.main([*given, "total_steps=1"]) == 0
    line = r"\n  checked +16 checks in \d+\.\d s, 1 rank, [\d,.]+ GB free for 1 checkpoint of 0\.3 MB\n"
    assert re.search(line, capsys.readouterr().err)
