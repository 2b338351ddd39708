"""The files of a checkpoint: order of writing, pruning, and how damage is recognised."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bgetrain.engine import checkpoint, commit
from bgetrain.engine.checkpoint import DamageError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.arange(3.0)}


def tensors(step: int) -> list[dict[str, torch.Tensor]]:
    """What two ranks write."""
    first = {"a.weight": WEIGHTS["a.weight"] + step, "a.bias/exp_avg": torch.ones(3), "random/0/cpu": torch.tensor([7]).byte()}
    second = {"a.bias": WEIGHTS["a.bias"], "a.weight/exp_avg": torch.full((2, 3), 2.0), "random/1/cpu": torch.tensor([8]).byte()}
    return [first, second]


def save(folder: Path, step: int, *, keep: int = 2, best: bool = False) -> None:
    facts = {
        "step": step,
        "counters": {"step": float(step)},
        "scaler": None,
        "progress": [{"rank": 0, "best": {"step": step if best else 0}}, {"rank": 1}],
    }
    parts = [commit.write_part(folder, step, rank, 2, each) for rank, each in enumerate(tensors(step))]
    commit.commit(folder, facts, parts, best=best)
    commit.prune(folder, step, keep)


def resumed(folder: Path) -> tuple[int, list[str]]:
    warned: list[str] = []
    return checkpoint.newest_whole(folder, warned.append), warned


@pytest.mark.parametrize(("rank", "size", "random"), [(0, 2, {"cpu": [7]}), (1, 2, {"cpu": [8]}), (0, 1, {}), (2, 4, {})])
def test_what_all_ranks_saved_each_rank_loads_and_its_own_random_state_where_they_are_as_many(rank, size, random, tmp_path):
    save(tmp_path, 3)
    loaded = checkpoint.load(tmp_path, 3, rank, size)
    assert (loaded.step, loaded.counters, loaded.scaler) == (3, {"step": 3.0}, None)
    expected = {name: each for part in tensors(3) for name, each in part.items() if not name.startswith("random")}
    torch.testing.assert_close(loaded.tensors, expected, rtol=0, atol=0)
    assert {name: each.tolist() for name, each in loaded.random.items()} == random
    assert checkpoint.progress(tmp_path, 3) == [{"rank": 0, "best": {"step": 0}}, {"rank": 1}]


def test_parts_are_disjoint_whole_and_about_equally_large():
    sizes = {f"layer.{number}": 10 + number for number in range(40)} | {"table": 300}
    for count in (1, 2, 3, 48):
        shared = commit.shared_out(sizes, count)
        assert sorted(name for part in shared for name in part) == sorted(sizes)
        loads = [sum(sizes[name] for name in part) for part in shared]
        assert max(loads) <= max(300, sum(sizes.values()) / count + 50)


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (5, 10, 15, 100):
        save(tmp_path, step, best=step == 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step_10", "step_100", "step_15"]
    assert (checkpoint.named(tmp_path, "latest"), checkpoint.named(tmp_path, "best")) == (100, 10)
    torch.testing.assert_close(
        checkpoint.weights(tmp_path, checkpoint.best_step(tmp_path, print)),
        {"a.weight": WEIGHTS["a.weight"] + 10, "a.bias": WEIGHTS["a.bias"]},
    )


def test_pruning_never_removes_what_latest_names_even_beside_later_leftovers(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    (tmp_path / "latest").write_text("step_10")  # as someone does who goes back
    (tmp_path / ".step_25.part").mkdir()  # as a killed run leaves it
    assert resumed(tmp_path) == (10, [])
    save(tmp_path, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_10", "step_11"]
    assert resumed(tmp_path) == (11, [])


def test_a_step_that_is_saved_again_replaces_the_leftover_of_a_run_that_was_given_up(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    before = (tmp_path / "step_20" / checkpoint.STATE).read_text()
    (tmp_path / "latest").write_text("step_10")
    (tmp_path / "step_20" / "left").touch()
    save(tmp_path, 20)
    assert resumed(tmp_path) == (20, [])
    assert (tmp_path / "step_20" / checkpoint.STATE).read_text() == before
    assert not (tmp_path / "step_20" / "left").exists()


def test_each_file_is_synced_before_the_rename_and_latest_moves_last(tmp_path, monkeypatch):
    """The order of system calls: parts, state.json, their folder; rename; the folder above; the pointer; that folder."""
    import os

    save(tmp_path, 1)
    done = []
    plain_sync, plain_rename, plain_replace = os.fsync, Path.rename, Path.replace

    def synced(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        return plain_sync(descriptor)

    def renamed(self, target):
        done.append(("rename", Path(target).name))
        return plain_rename(self, target)

    def replaced(self, target):
        done.append(("replace", Path(target).name))
        assert checkpoint.named(tmp_path, "latest") == 1
        return plain_replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    save(tmp_path, 2, keep=1)
    assert done == [
        ("sync", "part_0_of_2.safetensors"), ("sync", "part_1_of_2.safetensors"), ("sync", "state.json"),
        ("sync", ".step_2.part"), ("rename", "step_2"), ("sync", tmp_path.name),
        ("sync", f".latest.{os.getpid()}"), ("replace", "latest"), ("sync", tmp_path.name),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_2"]


def test_parts_that_this_machine_does_not_see_are_refused(tmp_path):
    part = commit.write_part(tmp_path, 4, 0, 2, tensors(4)[0])
    with pytest.raises(OSError, match=r"part_1_of_2\.safetensors is not as rank 1 wrote it: output_dir must be the same folder"):
        commit.commit(tmp_path, {"step": 4}, [part, part], best=False)
    assert checkpoint.steps(tmp_path) == []


def test_a_folder_that_has_vanished_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        commit.write_part(tmp_path / "mount" / "checkpoints", 1, 0, 1, tensors(1)[0])
    assert not (tmp_path / "mount").exists()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewritten(path: Path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


DAMAGES = {
    "a bit of a weight": (lambda at: flip(at / "part_1_of_2.safetensors", -1), "part_1_of_2.safetensors does not have the"),
    "a bit of a header": (lambda at: flip(at / "part_0_of_2.safetensors", 20), "part_0_of_2.safetensors does not have the"),
    "a part cut off": (lambda at: (at / "part_0_of_2.safetensors").write_bytes(b"short"), "has 5 bytes"),
    "a part missing": (lambda at: (at / "part_1_of_2.safetensors").unlink(), "No such file"),
    "a part of another step": (
        lambda at: shutil.copy(at.with_name("step_10") / "part_0_of_2.safetensors", at),
        "part_0_of_2.safetensors does not have the",
    ),
    "no facts": (lambda at: (at / "state.json").unlink(), "has no state.json"),
    "empty facts": (lambda at: (at / "state.json").write_text(""), "state.json cannot be read"),
    "facts of a list": (lambda at: (at / "state.json").write_text("[]"), "state.json does not have the checksum"),
    "facts with a bit flipped": (lambda at: flip(at / "state.json", 30), "state.json "),
    "facts edited": (lambda at: rewritten(at / "state.json", counters={"step": 7.0}), "state.json does not have the checksum"),
    "facts of another step": (lambda at: shutil.copy(at.with_name("step_10") / "state.json", at), "is of step 10"),
    "an empty folder": (lambda at: [each.unlink() for each in at.iterdir()], "has no state.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(kind, tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    damage, words = DAMAGES[kind]
    damage(tmp_path / "step_20")
    step, warned = resumed(tmp_path)
    assert step == 10
    assert warned[0].startswith("damaged checkpoint: ")
    assert words in warned[0]
    assert warned[1] == "going on from step 10, the newest checkpoint that is whole"
    assert len(warned) == 2
    assert resumed(tmp_path) == (10, [])  # the pointer was mended


@pytest.mark.parametrize("name", ["step_7", "", "..", "nonsense", "step_", "step_-1", "step_²", "step_20/..", "\udcff"])
def test_a_pointer_to_nothing_is_told_and_the_newest_whole_checkpoint_taken(name, tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    (tmp_path / "latest").write_bytes(name.encode("utf8", "surrogateescape"))
    step, warned = resumed(tmp_path)
    assert step == 20
    assert warned == [
        f"{tmp_path}/latest names no checkpoint that is there",
        "going on from step 20, the newest checkpoint that is whole",
    ]


def test_where_no_checkpoint_is_whole_the_run_does_not_begin_anew(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
        flip(tmp_path / f"step_{step}" / "state.json", 9)
    with pytest.raises(ValueError, match=r"no checkpoint is whole .*resume=never") as caught:
        resumed(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_checkpoint_is_the_beginning(tmp_path):
    assert resumed(tmp_path) == (0, [])
    assert resumed(tmp_path / "missing") == (0, [])
    (tmp_path / ".step_5.part").mkdir()  # killed in its first save
    assert resumed(tmp_path) == (0, [])


def test_another_format_is_no_damage_that_could_be_read(tmp_path):
    save(tmp_path, 1)
    facts = json.loads((tmp_path / "step_1" / "state.json").read_text()) | {"format": 99}
    (tmp_path / "step_1" / "state.json").write_text(json.dumps(facts | {"digest": checkpoint.digest(facts)}))
    with pytest.raises(DamageError, match="has format 99, this version of bgetrain reads 1"):
        checkpoint.check(tmp_path / "step_1")


def test_a_kill_between_the_two_pointers_does_not_part_best_from_what_the_run_knows(tmp_path):
    save(tmp_path, 10, best=True)
    save(tmp_path, 20, best=True)
    (tmp_path / "best").write_text("step_10")  # as it is before the second pointer has moved
    assert resumed(tmp_path) == (20, [])
    checkpoint.point_best(tmp_path, 20)
    assert checkpoint.named(tmp_path, "best") == 20


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "step_10").rename(tmp_path / ".step_10.old")
    (tmp_path / ".step_10.part").mkdir()
    assert resumed(tmp_path) == (10, [])


def test_a_replacement_that_the_disk_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 10)
    plain = Path.rename

    def refusing(self, target):
        if self.name == ".step_10.part":
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 10)
    assert resumed(tmp_path) == (10, [])


def test_a_part_can_be_read_by_whom_the_folder_admits(tmp_path):
    tmp_path.chmod(0o755)
    save(tmp_path, 1)
    assert (tmp_path / "step_1" / "part_0_of_2.safetensors").stat().st_mode & 0o777 == 0o644
