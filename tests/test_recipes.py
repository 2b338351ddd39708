"""Every recipe: composed and checked at its full size, run at a thousandth of it, and its numbers held against the papers'."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from bgetrain import cli, config, recipe, recipe_file, selection

NAMES = sorted(path.stem for path in selection.RECIPES.glob("*.yaml"))


FOLDER = "outputs/run"  # of every recipe, so that steps which several have alike are composed once


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    import workplace

    folder = tmp_path_factory.mktemp("workplace")
    workplace.fill(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Without what takes most of the time and is no part of the claim: composing the same twice, and drawing histograms."""
    import bgetrain.stage.filter
    import bgetrain.stage.mine

    monkeypatch.setattr(config, "compose", composed)
    for stage in (bgetrain.stage.filter, bgetrain.stage.mine):
        monkeypatch.setattr(stage, "histogram", lambda *arguments, **keywords: None)


def composed(overrides, *, missing=False, known={}, real=config.compose):  # noqa: B006 (kept from call to call, as is meant)
    key = (*overrides, missing)
    if key not in known:
        known[key] = real(overrides, missing=missing)
    return copy.deepcopy(known[key])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_composes_and_runs_all_its_steps_at_a_thousandth_of_its_size(name, workplace, quick, monkeypatch, capsys):
    from workplace import scaled

    monkeypatch.chdir(workplace)
    shutil.rmtree("outputs", ignore_errors=True)
    steps = recipe.plan(name, FOLDER, [])
    assert [step.name for step in steps] == list(recipe_file.load(name))
    for step in steps:
        status = cli.run_stage(scaled(step.overrides))
        assert status == 0, f"{step.name}: {capsys.readouterr().err}"
        assert json.loads(Path(step.output_dir, "result.json").read_text())["status"] == "done"


# By hand from the sources that the recipes name: start, its width and layers, learning rate of pre-training, and of what follows.
SIZES = {
    "small-en": ("microsoft/MiniLM-L12-H384-uncased", (384, 12), "2e-5", "3e-5"),
    "base-en": ("google-bert/bert-base-uncased", (768, 12), "2e-5", "2e-5"),
    "large-en": ("google-bert/bert-large-uncased-whole-word-masking", (1024, 24), "2e-5", "1e-5"),
    "small-zh": ("uer/chinese_roberta_L-4_H-512", (512, 4), "2e-5", "3e-5"),
    "base-zh": ("hfl/chinese-roberta-wwm-ext", (768, 12), "2e-5", "2e-5"),
    "large-zh": ("hfl/chinese-roberta-wwm-ext-large", (1024, 24), "2e-5", "1e-5"),
}
INSTRUCTIONS = {
    "en": "Represent this sentence for searching relevant passages: ",
    "zh": "为这个句子生成表示以用于检索相关文章：",
}
PAIRS = {"en": ("32784", 6, "21318"), "zh": ("19200", 3, "18822")}  # global batch, nodes of 8 GPUs, steps: 3 passes


def given(name: str) -> dict[str, dict[str, str]]:
    """step -> key -> value, as the recipe has them."""
    return {step: dict(each.split("=", 1) for each in listed) for step, listed in recipe_file.load(name).items()}


def gpus(step: dict[str, str]) -> int:
    return int(step["cluster.nodes"]) * int(step["cluster.gpus_per_node"])


BGE = [(f"bge-{size}{version}", size, version) for size in SIZES for version in ("", "-v1.5")]


@pytest.mark.parametrize(("name", "size", "version"), [*BGE, ("bge-large-zh-noinstruct", "large-zh", "-noinstruct")])
def test_the_numbers_of_bge_are_those_that_were_published(name, size, version):
    steps, language = given(name), size[-2:]
    (start, _, first_lr, lr), (batch, nodes, passes) = SIZES[size], PAIRS[language]
    temperature = "0.02" if version == "-v1.5" else "0.01"

    first = steps["retromae"]
    assert (first["model.path"], first["global_batch"], first["optim.lr"], gpus(first)) == (start, "720", first_lr, 24)
    assert (first["masking.encoder_ratio"], first["masking.decoder_ratio"]) == ("0.3", "0.5")
    assert first["data.passage_max_len"] == "512"

    second = steps["pairs"]
    assert (second["global_batch"], gpus(second), second["total_steps"]) == (batch, nodes * 8, passes)
    assert first["total_steps"] == "180000"
    assert (second["optim.lr"], second["loss.temperature"], second["group_size"]) == (lr, temperature, "2")
    assert (second["data.query_max_len"], second["data.passage_max_len"]) == ("128", "128")
    assert second["data.query_instruction"] == '""'

    third = steps["finetune"]
    assert (third["optim.lr"], third["loss.temperature"], third["group_size"], gpus(third)) == (lr, temperature, "2", 8)
    assert (third["data.query_max_len"], third["data.passage_max_len"]) == ("512", "512")
    asked = '""' if version == "-noinstruct" else f'"{INSTRUCTIONS[language]}"'
    assert steps["evaluate-finetune"]["data.query_instruction"] == asked
    if language == "zh":
        assert (third["epochs"], steps["filter"]["filter.min_similarity"]) == ("5", "0.43")
        assert steps["filter"]["model.path"] == "shibing624/text2vec-base-chinese"
    for trained in (first, second, third):
        assert (trained["precision"], trained["engine"], trained["model.gradient_checkpointing"]) == ("fp16", "zero1", "true")
    for contrasted in (second, third):
        assert (contrasted["loss.negatives"], contrasted["loss.mask_equal"]) == ("world", "false")
        assert "loss.mask_margin" not in contrasted


@pytest.mark.parametrize("size", SIZES)
def test_the_models_that_bge_starts_from_have_the_width_and_depth_of_its_own(size):
    """BGE's by hand from the config.json of BAAI/bge-*; the starts' as stage=plan has them, since neither is at hand here."""
    shapes = yaml.safe_load((selection.CONF / "stage/plan.yaml").read_text())["plan"]["shapes"]
    start, shape, *_ = SIZES[size]
    for name in (start.rpartition("/")[2], f"bge-{size}", f"bge-{size}-v1.5"):
        assert (shapes[name]["hidden_size"], shapes[name]["num_hidden_layers"]) == shape, name


@pytest.mark.parametrize(("name", "size", "version"), [*BGE, ("bge-large-zh-noinstruct", "large-zh", "-noinstruct")])
def test_queries_are_instructed_in_the_sets_for_retrieval_and_in_no_others(name, size, version, quick):
    cfg = config.compose(next(step.overrides for step in recipe.plan(name, FOLDER, []) if step.name == "finetune"))
    found = {part: source["query_instruction"] for part, source in cfg.data.sources.items()}
    retrieval = {
        "en": {"msmarco", "nq", "hotpotqa", "fever"},
        "zh": {"t2ranking", "mmarco", "dureader-retrieval", "cmedqa2", "multi-cpr"},
    }[size[-2:]]
    asked = "" if version == "-noinstruct" else INSTRUCTIONS[size[-2:]]
    assert found == {part: asked if part in retrieval else "" for part in found}
    assert retrieval < set(found)


def test_the_numbers_of_retromae_are_those_of_its_repository():
    for name, start, batch, length, epochs in (
        ("retromae-wikibook", "google-bert/bert-base-uncased", "256", "512", "8"),
        ("retromae-msmarco", "Shitao/RetroMAE", "1024", "150", "20"),
    ):
        steps = given(name)
        first = steps["retromae"]
        assert (first["model.path"], first["global_batch"], first["data.passage_max_len"]) == (start, batch, length)
        assert (first["epochs"], first["optim.lr"], first["optim.warmup_ratio"], gpus(first)) == (epochs, "1e-4", "0.1", 8)
        second = steps["finetune"]
        assert (second["global_batch"], second["group_size"], second["optim.lr"]) == ("128", "16", "2e-5")
        assert (second["data.query_max_len"], second["data.passage_max_len"], second["epochs"]) == ("32", "140", "4")


NUMBER = re.compile(r"(=|weight: )[\d.]+(e-?\d+)?(?=[\],}\"']|$)")
SOURCE = re.compile(
    r"README [0-9a-f]{7}:\d|#\d+|\b(FE|RM) \w|\b(C-Pack|M3)\b|\b(pretrain|msmarco|example):\d"
    r"|our choice(, [\w ]+)?: \S+ \S+"  # and its reason
)


def silent(text: str) -> list[str]:
    """The lines with a number of which neither their comment nor those straight above them name a source or a reason."""
    found, above = [], ""
    for line in text.splitlines():
        code, _, said = line.partition("  #")
        if line.strip().startswith("#"):
            above += line
            continue
        if NUMBER.search(code) and not SOURCE.search(f"{above} {said}"):
            found.append(line)
        above = ""
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("bge-", "retromae-", "finetune-"))])
def test_every_line_with_a_number_says_where_it_is_from(name):
    """A comment on the line or right above it; what an anchor takes up has its own."""
    assert not silent((selection.RECIPES / f"{name}.yaml").read_text("utf8"))


@pytest.mark.parametrize("comment", ["", "  # our choice", "  # our choice:", "  # why not", "  # the README", "  # issue 96"])
@pytest.mark.parametrize("number", ["- optim.lr=2e-5", "- [epochs=4, group_size=2]", "- 'data.sources.a={data: b, weight: 7}'"])
def test_a_number_without_source_or_reason_is_found(number, comment):
    assert silent(f"step:\n  {number}{comment}\n")
    assert not silent(f"step:\n  {number}  # #96\n")
    assert not silent(f"step:\n  # our choice: for memory alone\n  {number}{comment}\n")


def test_a_wrong_key_or_value_in_any_step_is_found(tmp_path, quick):
    text = (selection.RECIPES / "bge-base-en.yaml").read_text("utf8")
    for right, wrong, said in (
        (
            "masking.decoder_masks=128",
            "masking.decoder_mask=128",
            "retromae: stage=retromae has no key 'masking.decoder_mask'",
        ),
        ("loss.temperature=0.01", "loss.temperature=0", "step pairs: loss.temperature must be a number above 0"),
        ("data=fever", "data=fevre", "step mine-fever: data=fevre"),
        ("fever={data: jsonl", "fever={data: jsonnl", "step finetune: data.sources.fever"),
        ("${mine-nq}", "${mine-qn}", "step finetune: "),
    ):
        assert right in text
        (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong))
        with pytest.raises(ValueError, match=re.escape(said)):
            recipe.plan(f"{tmp_path}/wrong.yaml", FOLDER, [])
