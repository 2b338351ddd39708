"""What may be asked of evaluation while a stage trains: the answers to what cannot be done, the words, whose weights are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stage.test_validation import common, folder, lengths, rows

__all__ = ["folder", "rows"]  # fixtures


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["evaluate.every=1"], "evaluate.every=1 has nothing to evaluate: set evaluate.held_out, or evaluate.split"),
        (["evaluate.split=dev"], "evaluate.split=dev has no effect without evaluate.every"),
        (["evaluate.every=1", "evaluate.path=x"], "evaluate.path=x needs evaluate.split=NAME"),
        (["evaluate.every=3", "evaluate.held_out=2"], "evaluate.every=3 exceeds the 2 steps of the run: use 2 or less"),
        (["evaluate.every=1", "evaluate.held_out=10"], "evaluate.held_out=10: of data=jsonl 10 rows cannot be held out of 20"),
        (["evaluate.every=1", "evaluate.held_out=1"], "leaves a query no negative: raise evaluate.held_out=1 or group_size"),
        (["evaluate.every=1", "evaluate.split=dev"], "evaluate.split=dev: data=jsonl has no split 'dev'"),
        (["evaluate.every=1", "evaluate.split=dev", "evaluate.path={model}"], "is no folder in BEIR layout"),
        (["evaluate.every=1", "evaluate.split=no", "evaluate.path={folder}"], "the splits in {folder}/qrels are: dev, train"),
        (["evaluate.every=1", "evaluate.held_out=4", "evaluate.metric=held_out_acuracy"], "did you mean held_out_accuracy?"),
        (
            ["evaluate.every=1", "evaluate.split=dev", "evaluate.path={folder}", "evaluate.metric=ndgc@10"],
            "evaluate.metric=ndgc@10 is no figure of this run; did you mean ndcg@10?",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_answered_in_one_line(more, answer, model_folder, folder, rows, tmp_path, capsys):
    from bgetrain import cli

    where = {"model": model_folder, "folder": folder}
    data = ["stage=finetune", "group_size=1", "data=jsonl", f"data.files=[{rows['one']}]", *lengths("query", "passage")]
    arguments = common(model_folder, tmp_path / "out", *data, *(each.format(**where) for each in more))
    assert cli.main([*arguments, "num_processes=1"]) == 2
    said = capsys.readouterr().err
    assert answer.format(**where) in said
    assert said.count("\n") == 1


def test_fewer_held_out_rows_than_ranks_are_refused():
    from bgetrain.sources import Part
    from bgetrain.stage import supply
    from bgetrain.types import World

    cfg = {"evaluate": {"every": 1, "held_out": 3}}
    four = World(0, 4, 0, 4, torch.device("cpu"))
    part: Any = Part("mine", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"evaluate\.held_out=3 is below the 4 ranks"):
        supply.kept_back(cfg, part, [None] * 9, "rows", four)  # type: ignore[type-var]


def test_it_is_announced_what_is_evaluated_when():
    from bgetrain.sources import Retrieval
    from bgetrain.stage.validation import HeldOut, told, validation

    found = Retrieval([""] * 6725, [], [""] * 535, [], {})  # type: ignore[arg-type]
    asked = validation(every=100, held_out=512, path=None, split="dev", metric=None, patience=3, model="best")
    source: Any = type("Opened", (), {"name": "data=beir"})
    assert told(asked, source, found, HeldOut(dict, 512, "rows"), "ndcg@10") == (
        "dev of data=beir, 535 queries, 6,725 passages, and 512 held-out rows, every 100 steps; best by ndcg@10, training ends "
        "after 3 without a better one, model/ gets the best"
    )


def test_training_goes_on_after_an_evaluation_that_failed():
    from bgetrain.stage.validation import at_rest

    module, seen = torch.nn.Dropout(0.5), []

    def fail() -> None:
        with at_rest(module):
            seen.append((module.training, torch.is_grad_enabled()))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [(False, False)]
    assert module.training
    assert torch.is_grad_enabled()


CHOICES = [(None, "best", "", 7.0), (5, "last", "", 7.0), (5, "best", "", 3.0), (5, "best", "state.json", 7.0)]


@pytest.mark.parametrize(("every", "kept", "damaged", "expected"), CHOICES)
def test_the_model_gets_the_best_steps_weights_where_there_is_one(every, kept, damaged, expected, tmp_path, capfd):
    from bgetrain.engine import commit
    from bgetrain.stage import results
    from bgetrain.types import World

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (3, 6, 7):
        part = commit.write_part(folder, step, 0, 1, {"weight": torch.tensor([float(step)])})
        commit.commit(folder, {"step": step}, [part], best=step == 3)
    if damaged:
        (folder / "step_3" / damaged).unlink()
    now = {"weight": torch.tensor([7.0])}
    world = World(0, 1, 0, 1, torch.device("cpu"))
    engine: Any = type("Running", (), {"weights": staticmethod(lambda: now), "world": world})
    found = results.weights_to_keep({"evaluate": {"every": every, "model": kept}, "output_dir": str(tmp_path)}, engine)
    assert found["weight"].item() == expected
    assert ("the last weights are kept instead" in capfd.readouterr().err) == bool(damaged)


def test_the_best_of_a_run_is_what_its_model_is(spawn, model_folder, folder, tmp_path):
    data = ["stage=finetune", "group_size=1", "data=beir", f"data.path={folder}", *lengths("query", "passage")]
    asked = ["evaluate.every=1", "evaluate.split=dev", "evaluate.patience=2"]
    arguments = common(model_folder, tmp_path / "out", *data, *asked, rate="1e-2", steps=6)
    lines, metrics = spawn(1, kept, [each for each in arguments if each != "evaluate.model=last"], tmp_path / "out/model", data)[
        0
    ]
    figures = [line["ndcg@10"] for line in lines]
    best = figures.index(max(figures))
    assert best < len(lines) - 1
    assert len(lines) in (best + 3, 6)
    assert metrics["ndcg@10"] == pytest.approx(max(figures), abs=1e-6)


def kept(world, arguments: list[str], model: Path, data: list[str]) -> tuple[list[dict], dict[str, float]]:
    """The lines of a run, and what stage=evaluate says of its model."""
    from ranks import run_stage

    lines: list[dict] = []
    run_stage(world, arguments, lines)
    evaluate = ["stage=evaluate", f"model.path={model}", *data[2:], "data.split=dev", "precision=fp32"]
    return lines, run_stage(world, [*evaluate, f"output_dir={model.parent}-evaluated"])["metrics"]
