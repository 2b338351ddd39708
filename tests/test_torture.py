"""The short form of `tests/torture.py`: killed, moved and damaged, a run ends as if nothing had been."""

import random

import changes
import damages
import kills
import torture


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_nobody_touched(model_folder, beir_folder, tmp_path):
    """Weights, metrics.jsonl and rows bit for bit; dropout on."""
    tally = torture.kill(model_folder, beir_folder, tmp_path, kills=5, commands=0, steps=30, seed=1)
    assert (tally.tried, tally.survived) == (5, 5)
    assert max(tally.lost) <= torture.SAVE_EVERY + 1
    assert tally.ended == 0, "a rank outlived the one that was killed"


def test_changes_of_ranks_and_zero_stage_change_no_loss_and_no_row(model_folder, beir_folder, tmp_path):
    """Losses to 1e-5, relative."""
    found = changes.changed(model_folder, beir_folder, tmp_path, count=2, seed=3)
    assert len(set(found.places)) == 3
    assert found.worst < changes.TOLERANCE


def test_a_damaged_checkpoint_is_never_loaded_without_a_word(model_folder, beir_folder, tmp_path):
    chosen = ["a bit flipped", "both checkpoints flipped", "a pointer to nothing", "half written"]
    found = damages.damaged(model_folder, beir_folder, tmp_path, count=len(chosen), seed=0, chosen=chosen)
    assert not found.faults
    assert [verdict for _, verdict in found.verdicts] == ["previous", "refused", "whole", "whole"]


def test_kills_are_of_every_kind_and_spread_over_the_run():
    plan = kills.planned(100, 300, 10, 2, random.Random(0), commands=4)
    assert [sum(each.kind == kind for each in plan) > 3 for kind in ("step", "save", "start", "command")] == [True] * 4
    assert {tuple(each.victims) for each in plan} == {(0,), (1,), (0, 1), (-1,)}
    assert max(each.step for each in plan) > 280
    assert all(each.step % 10 == 0 for each in plan if each.kind == "save")


def test_every_kind_of_damage_comes_and_those_with_many_places_come_often():
    every = damages.kinds(50)
    assert set(every) == {*damages.IN_THE_NEWEST, *damages.AROUND_IT}
    assert len(every) == 50
    assert every.count("a bit flipped") > 10
