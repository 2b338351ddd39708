"""Recipes, with a small one of two kinds of steps on a tiny BEIR folder that the test writes."""

import json
import shlex
from pathlib import Path

import pytest

from bgetrain import cli, recipe, recipe_file

SMALL = """
tokenizer: [stage=tokenizer, data=beir, "data.path={data}", model=tiny, model.vocab_size=60, model.hidden_size=16]
evaluate-random:
  - [stage=evaluate, data=beir, "data.path={data}", chunk_tokens=2048]
  - "model.path=${{tokenizer}}/model"
  - evaluate.bm25=true
evaluate-again: [stage=evaluate, data=beir, "data.path={data}", "model.path=${{tokenizer}}/model"]
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The path of a recipe."""
    folder = tmp_path_factory.mktemp("recipe")
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    words = ["red fox", "blue whale", "green frog", "old owl", "tame cat", "wild dog"]
    lines = [{"_id": f"p{number}", "title": "", "text": f"the {text} sleeps"} for number, text in enumerate(words)]
    (data / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"_id": f"q{number}", "text": f"where is a {text}"} for number, text in enumerate(words)]
    (data / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in ("train", "test"):
        rows = "".join(f"q{number}\tp{number}\t1\n" for number in range(len(words)))
        (data / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    (folder / "small.yaml").write_text(SMALL.format(data=data))
    return folder / "small.yaml"


def refusal(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        recipe.run(list(arguments), lambda overrides: 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Fake:
    """In place of `run_stage`: notes the command, and leaves a result as a stage does."""

    def __init__(self, statuses: dict[str, int] | None = None) -> None:
        self.calls, self.statuses, self.clock = [], statuses or {}, 1000.0

    def __call__(self, overrides) -> int:
        folder = Path(next(each for each in overrides if each.startswith("output_dir=")).partition("=")[2])
        anew = "resume=never" in overrides
        self.calls.append(f"{folder.name}{' anew' if anew else ''}")
        if folder.name in self.statuses:
            return self.statuses.pop(folder.name)
        if anew or not (folder / "result.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.clock += 1
            result = {"stage": "fake", "status": "done", "finished_at": self.clock}
            if folder.name.startswith("evaluate"):
                result["metrics"] = {"ndcg@10": 0.5, "mrr@10": 0.5, "recall@100": 0.5}
            (folder / "config.yaml").write_text("{}\n")
            (folder / "result.json").write_text(json.dumps(result))
        return 0


@pytest.fixture
def unguarded(monkeypatch):
    """The fake writes no config, so nothing is to be compared."""
    monkeypatch.setattr(recipe, "check_folders", lambda steps, name: None)


def test_steps_run_in_order_and_done_ones_are_left_to_say_so(small, tmp_path, unguarded):
    fake = Fake()
    arguments = [f"recipe={small}", f"output_dir={tmp_path}/out"]
    assert recipe.run(arguments, fake) == 0
    assert recipe.run(arguments, fake) == 0
    assert fake.calls == ["tokenizer", "evaluate-random", "evaluate-again"] * 2


def test_an_interrupted_step_ends_the_recipe_with_its_status_and_the_same_command_goes_on(small, tmp_path, unguarded):
    fake = Fake({"evaluate-random": 75})
    arguments = [f"recipe={small}", f"output_dir={tmp_path}/out"]
    assert recipe.run(arguments, fake) == 75
    assert not (tmp_path / "out" / "result.json").exists()
    assert recipe.run(arguments, fake) == 0
    assert fake.calls == ["tokenizer", "evaluate-random", "tokenizer", "evaluate-random", "evaluate-again"]


def test_from_starts_again_there_and_onward(small, tmp_path, unguarded):
    fake = Fake()
    arguments = [f"recipe={small}", f"output_dir={tmp_path}/out"]
    recipe.run(arguments, fake)
    fake.calls.clear()
    assert recipe.run([*arguments, "from=evaluate-random"], fake) == 0
    assert fake.calls == ["tokenizer", "evaluate-random anew", "evaluate-again anew"]


def test_a_step_whose_input_was_made_again_runs_again_even_in_a_later_command(small, tmp_path, unguarded, capsys):
    fake = Fake()
    arguments = [f"recipe={small}", f"output_dir={tmp_path}/out"]
    recipe.run(arguments, fake)
    fake.statuses = {"evaluate-random": 75}
    assert recipe.run([*arguments, "from=tokenizer"], fake) == 75
    assert capsys.readouterr().err == "leave out from=tokenizer to go on, or it starts again there\n"
    fake.calls.clear()
    assert recipe.run(arguments, fake) == 0
    assert fake.calls == ["tokenizer", "evaluate-random anew", "evaluate-again anew"]


def test_overrides_go_to_every_step_that_has_the_key(small, tmp_path):
    steps = recipe.plan(str(small), str(tmp_path), ["seed=3", "chunk_tokens=99", "model.hidden_size=32"])
    given = {step.name: [each for each in ("seed=3", "chunk_tokens=99", "model.hidden_size=32") if each in step.overrides]
             for step in steps}  # fmt: skip
    assert given == {
        "tokenizer": ["seed=3", "model.hidden_size=32"],
        "evaluate-random": ["seed=3", "chunk_tokens=99"],
        "evaluate-again": ["seed=3", "chunk_tokens=99"],
    }


def test_a_step_s_size_counts_where_the_cluster_has_such_a_key_and_is_left_out_elsewhere(tmp_path):
    (tmp_path / "sized.yaml").write_text("a: [stage=pairs, data=synthetic, cluster.nodes=6, cluster.timeout_minutes=7]")
    (step,) = recipe.plan(f"{tmp_path}/sized.yaml", "out", [])
    assert step.overrides == ["stage=pairs", "data=synthetic", "cluster.timeout_minutes=7", "output_dir=out/a"]
    (step,) = recipe.plan(f"{tmp_path}/sized.yaml", "out", ["cluster=local", "cluster.timeout_minutes=8", "seed=1"])
    assert [*step.overrides[2:]] == [
        "cluster.timeout_minutes=7", "cluster=local", "cluster.timeout_minutes=8", "seed=1", "output_dir=out/a"
    ]  # fmt: skip
    assert "cluster=slurmm" in refusal(f"recipe={tmp_path}/sized.yaml", "cluster=slurmm")


def test_an_override_leaves_alone_what_a_step_takes_from_an_earlier_one(small, tmp_path):
    (tmp_path / "chain.yaml").write_text(
        "a: [stage=pairs, data=synthetic, model.path=start]\nb: [stage=evaluate, data.path=x, 'model.path=${a}/model']"
    )
    first, second = recipe.plan(f"{tmp_path}/chain.yaml", "out", ["model.path=mine"])
    assert first.overrides[-2:] == ["model.path=mine", "output_dir=out/a"]
    assert second.overrides == ["stage=evaluate", "data.path=x", "model.path=out/a/model", "output_dir=out/b"]
    said = "model.path is what an earlier step leaves, in every step that has this key"
    assert refusal(f"recipe={small}", "model.path=mine").endswith(said)


def test_a_recipe_like_another_has_its_steps_with_other_values_at_the_same_places(tmp_path):
    (tmp_path / "old.yaml").write_text("a: [stage=pairs, [optim.lr=1, seed=2]]\nb: [stage=evaluate, 'model.path=${a}/model']")
    (tmp_path / "new.yaml").write_text("like: old\na: [optim.lr=3]")
    (tmp_path / "newer.yaml").write_text("like: new\na: [seed=4]")
    b = ["stage=evaluate", "model.path=${a}/model"]
    assert recipe_file.load(f"{tmp_path}/new.yaml") == {"a": ["stage=pairs", "optim.lr=3", "seed=2"], "b": b}
    assert recipe_file.load(f"{tmp_path}/newer.yaml") == {"a": ["stage=pairs", "optim.lr=3", "seed=4"], "b": b}
    (tmp_path / "other.yaml").write_text("like: bge-base-en")  # not beside it: one of recipes/
    assert recipe_file.load(f"{tmp_path}/other.yaml") == recipe_file.load("bge-base-en")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("like: old\na: [optim.lrr=3]", "step 'a' has no 'optim.lrr' to change; did you mean optim.lr?"),
        ("like: old\nc: [seed=3]", "old has no step 'c'; valid: a"),
        ("like: odd", "wrong.yaml: like: odd: there is no such recipe; did you mean old?"),
        ("like: [old]", "like must name another recipe"),
        ("like: wrong", "like must name another recipe, which is not like this one, got 'wrong'"),
    ],
)
def test_a_wrong_likeness_is_refused_in_one_line(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(recipe_file.selection, "RECIPES", tmp_path)
    (tmp_path / "old.yaml").write_text("a: [stage=pairs, optim.lr=1]")
    (tmp_path / "wrong.yaml").write_text(text)
    assert said in refusal(f"recipe={tmp_path}/wrong.yaml")


def test_what_cannot_run_is_said_before_anything_runs(small, tmp_path):
    own = [f"recipe={small}", f"output_dir={tmp_path}/out"]
    assert refusal(*own, "seeds=3").endswith("no step has a key 'seeds'; did you mean seed?")
    assert "`bgetrain stage=NAME --help` lists all" in refusal(*own, "entirely.else=3")
    assert refusal(*own, "seed=x").startswith(f"recipe={small}, step tokenizer: seed must be a whole number")
    assert "did you mean evaluate-again?" in refusal(*own, "from=evaluate_again")
    assert refusal(*own, "from=nope", "dry_run=true").startswith("from=nope: the recipe has no such step")
    assert "dry_run must be true or false" in refusal(*own, "dry_run=yes")
    assert "give one of the two" in refusal(*own, "stage=pairs")
    assert "give from once" in refusal(*own, "from=tokenizer", "from=tokenizer")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [stage=finetune, optim.lrr=3]", "step a: stage=finetune has no key 'optim.lrr'; did you mean optim.lr?"),
        ("a: [stage=finetun]", "did you mean finetune?"),
        ("a: [optim.lr=3]", "step a: stage is missing"),
        ("a: stage=finetune", "step 'a' must be a list of overrides"),
        ("a: [{stage: finetune}]", "is no override: write key=value"),
        ("- a", "a recipe maps step names to lists of overrides, got list"),
        ("a: [", "wrong.yaml:1: not YAML: expected the node content"),
        ("a b: [stage=finetune]", "must be named by letters"),
        ("a: [stage=finetune, 'model.path=${b}/model']\nb: [stage=pairs]", "step b has not run when this one does"),
        ("a: [stage=pairs]\nb: [stage=finetune, 'model.path=${aa}/model']", "there is no step 'aa'; did you mean a?"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "wrong.yaml").write_text(text)
    assert said in refusal(f"recipe={tmp_path}/wrong.yaml", f"output_dir={tmp_path}/out")


def test_an_unknown_recipe_is_refused_with_the_nearest():
    assert refusal("recipe=quickstat") == "recipe=quickstat: there is no such recipe; did you mean quickstart?"
    assert refusal("recipe=/nowhere/quickstart.yaml").startswith("recipe=/nowhere/quickstart.yaml: no such file")


def test_the_lines_of_a_dry_run_typed_one_by_one_give_what_the_recipe_gives(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([f"recipe={small}", "output_dir=one by one", "seed=7", "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[0] for line in lines] == ["bgetrain"] * 3
    assert not (tmp_path / "one by one").exists()
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0
    assert cli.main([f"recipe={small}", "output_dir=at-once", "seed=7"]) == 0
    capsys.readouterr()

    # vocabularies are trained anew, and ties between equally frequent words fall by chance: BM25 alone is comparable
    both = ("one by one", "at-once")
    results = [json.loads((tmp_path / folder / "evaluate-random/result.json").read_text()) for folder in both]
    assert results[0]["bm25"] == results[1]["bm25"]
    assert set(results[0]["metrics"]) == set(results[1]["metrics"])
    configs = [(tmp_path / folder / "evaluate-again/config.yaml").read_text() for folder in both]
    assert configs[0].replace("one by one", "at-once") == configs[1]

    whole = json.loads((tmp_path / "at-once/result.json").read_text())
    assert list(whole["steps"]) == ["tokenizer", "evaluate-random", "evaluate-again"]
    assert [rung["step"] for rung in whole["ladder"]] == ["random", "again"]
    assert whole["ladder"][0] == {"step": "random", **results[1]["metrics"]}
    assert whole["bm25"] == results[1]["bm25"]

    # a second command does nothing, and typed lines count as much as the recipe's own
    before = (tmp_path / "one by one/evaluate-again/result.json").stat().st_mtime_ns
    assert cli.main([f"recipe={small}", "output_dir=one by one", "seed=7"]) == 0
    assert capsys.readouterr().out.count("already done: ") == 3
    assert (tmp_path / "one by one/evaluate-again/result.json").stat().st_mtime_ns == before

    # another value is refused before anything runs, naming what differs and both ways out
    assert cli.main([f"recipe={small}", "output_dir=at-once", "seed=8"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "step tokenizer: output_dir=at-once/tokenizer belongs to a run with seed=7, now 8: choose another" in said.err
    assert "from=tokenizer to start again there" in said.err
    assert cli.main([f"recipe={small}", "output_dir=at-once", "seed=8", "from=tokenizer"]) == 0
    assert "seed: 8" in (tmp_path / "at-once/evaluate-again/config.yaml").read_text()
