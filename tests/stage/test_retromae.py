"""stage=retromae as its user meets it: going on from a decoder, held-out texts, documents, what a step tells."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentence


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    """60 texts of 1 to 8 sentences."""
    path = tmp_path_factory.mktemp("documents") / "texts.jsonl"
    texts = [" ".join(f"{sentence(8 * n + k, 12)}." for k in range(1 + n % 8)) for n in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf8")
    return path


def overrides(model: Path, documents: Path, output: Path, *more: str) -> list[str]:
    return [
        "stage=retromae", "data=text", f"data.files=[{documents}]", "data.passage_max_len=24", f"model.path={model}",
        "model.dropout=0",
        "global_batch=12", "chunk_tokens=60", "log_every=1",
        "preflight=false", "seed=3", "precision=fp32",
        "evaluate.held_out=11", "evaluate.model=last", f"output_dir={output}", *more,
    ]  # fmt: skip


def several(world, runs: list[list[str]]) -> list[list[dict[str, float]]]:
    """The lines that each run logs, in turn."""
    from ranks import run_stage

    logged: list[list[dict[str, float]]] = [[] for _ in runs]
    for arguments, lines in zip(runs, logged, strict=True):
        run_stage(world, arguments, lines)
    return logged


def rewound(world, runs: list[list[str]]) -> list[list[list[dict[str, float]]]]:
    """The lines of each run, and of its second half run again from the checkpoint in the middle."""
    found = []
    for arguments in runs:
        found.append(several(world, [arguments]))
        if world.rank == 0:
            output = next(each.removeprefix("output_dir=") for each in arguments if each.startswith("output_dir="))
            (Path(output) / "checkpoints" / "latest").write_text("step_2", "utf8")
        found[-1] += several(world, [arguments])
    return found


def held_out(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("held_out")}


def test_going_on_from_model_and_decoder_starts_where_they_ended(spawn, model_folder, documents, tmp_path):
    first, still = tmp_path / "first", ("optim.lr=1e-12", "total_steps=1", "evaluate.every=1")
    lines = spawn(1, several, [
        overrides(model_folder, documents, first, "optim.lr=1e-2", "total_steps=12", "evaluate.every=12"),
        overrides(first / "model", documents, tmp_path / "on", *still),
        overrides(first / "model", documents, tmp_path / "fresh", *still, "decoder=fresh"),
        overrides(model_folder, documents, tmp_path / "named", *still, f"decoder={first}/decoder"),
    ])[0]  # fmt: skip
    ended, on, fresh, named = (held_out(run[-1]) for run in lines)
    assert on == pytest.approx(ended, rel=1e-5)
    assert fresh["held_out_encoder_loss"] == pytest.approx(ended["held_out_encoder_loss"], rel=1e-5)
    for other, side in ((fresh, "decoder"), (named, "encoder"), (named, "decoder")):
        assert other[f"held_out_{side}_loss"] != pytest.approx(ended[f"held_out_{side}_loss"], rel=2e-4)
    assert named["held_out_decoder_loss"] != pytest.approx(fresh["held_out_decoder_loss"], rel=2e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_from_its_checkpoint_with_the_figures_that_it_would_have_had(
    size, spawn, model_folder, documents, tmp_path
):
    common = ["optim.lr=1e-3", "model.dropout=0.1", "total_steps=4", "save_every=2"]
    split = ["engine=zero3", "+engine.zero_optimization.stage3_param_persistence_threshold=0"]
    kinds = {"dupmae": ["loss=dupmae", "engine=zero1"], "mlm": ["loss=mlm", *split]}
    runs = [overrides(model_folder, documents, tmp_path / name, *common, *more) for name, more in kinds.items()]
    for whole, again in spawn(size, rewound, runs)[0]:
        assert (len(whole), len(again)) == (4, 2)
        for line, same in zip(whole[2:], again, strict=True):
            names = [name for name in line if "loss" in name or name in ("grad_norm", "lr", "epoch")]
            assert {name: line[name] for name in names} == pytest.approx({name: same[name] for name in names}, rel=1e-6)


def test_scoring_is_without_dropout_and_leaves_training_as_it_was(spawn, model_folder, documents, tmp_path):
    common = ["model.dropout=0.3", "total_steps=4"]
    often, once, still = spawn(1, several, [
        overrides(model_folder, documents, tmp_path / "often", *common, "optim.lr=1e-3", "evaluate.every=1"),
        overrides(model_folder, documents, tmp_path / "once", *common, "optim.lr=1e-3", "evaluate.every=4"),
        overrides(model_folder, documents, tmp_path / "still", *common, "optim.lr=1e-12", "evaluate.every=1"),
    ])[0]  # fmt: skip
    assert [line["loss"] for line in often] == [line["loss"] for line in once]
    assert held_out(often[3]) == held_out(once[3])
    for line in still[1:]:
        assert held_out(line) == pytest.approx(held_out(still[0]), rel=1e-6)
    assert len({line["loss"] for line in still}) == 4


def test_a_decoder_of_another_architecture_is_refused_and_of_another_query_told(model_folder, tmp_path):
    from transformers import AutoModelForMaskedLM

    from bgetrain.loss.retromae import dupmae
    from bgetrain.model import decoder_folder
    from bgetrain.model.body import Body
    from bgetrain.stage.retromae import model_of

    body = Body(AutoModelForMaskedLM.from_pretrained(model_folder), None, "cls", 64, {}, None)
    objective = dupmae(query="embedding", bag_of_words_weight=0.1, repeated="once")
    cfg = {"seed": 1, "model": {"path": str(tmp_path / "model")}, "decoder": "auto"}
    module, origin = model_of(cfg, body, objective)
    assert origin == "fresh weights"
    for kind in ("bert", "roberta"):
        state = module.decoder.state_dict()
        decoder_folder.save(tmp_path / "decoder", state, query="position", model_type=kind, num_heads=2)
        if kind == "bert":
            assert model_of(cfg, body, objective)[1] == f"goes on from {tmp_path}/decoder, trained with query position"
    with pytest.raises(ValueError, match="was trained beside 'roberta', but the model is 'bert'; decoder=fresh starts a new one"):
        model_of(cfg, body, objective)


def test_held_out_figures_are_those_of_the_same_texts_and_masks_on_any_number_of_ranks(spawn, model_folder, documents, tmp_path):
    def runs(size: int) -> list[list[str]]:
        common = ["optim.lr=1e-3", "total_steps=4", "evaluate.every=2", f"engine=zero{size + 1}"]
        return [
            overrides(model_folder, documents, tmp_path / f"{size}-{loss}", *common, f"loss={loss}") for loss in ("dupmae", "mlm")
        ]

    one, two = (spawn(size, several, runs(size))[0] for size in (1, 2))
    for ours, other in zip(one, two, strict=True):
        assert [step for step, line in enumerate(ours) if held_out(line)] == [1, 3]
        assert held_out(ours[3]) != held_out(ours[1])
        for line, same in zip(ours, other, strict=True):
            assert held_out(line) == pytest.approx(held_out(same), rel=1e-4)
            assert line["loss"] == pytest.approx(same["loss"], rel=1e-4)
    kinds = {"loss", "encoder_loss", "decoder_loss", "bag_of_words_loss", "encoder_accuracy", "decoder_accuracy"}
    assert held_out(one[0][1]).keys() == {f"held_out_{kind}" for kind in kinds}
    assert held_out(one[1][1]).keys() == {f"held_out_{kind}" for kind in ("loss", "encoder_loss", "encoder_accuracy")}
    figures = one[0][1]
    assert figures["loss"] == pytest.approx(
        figures["encoder_loss"] + figures["decoder_loss"] + 0.1 * figures["bag_of_words_loss"], rel=1e-6
    )
    assert 0 < figures["masking_share"] < 1
    assert all(0 <= figures[f"{side}_accuracy"] <= 1 for side in ("encoder", "decoder"))


def test_what_is_held_out_is_not_trained_on_and_documents_are_spans_of_all_the_rest(model_folder, documents, tmp_path):
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer

    from bgetrain import config, output
    from bgetrain.stage import build, supply
    from bgetrain.types import World

    alone = World(0, 1, 0, 1, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [json.loads(line)["text"] for line in documents.read_text("utf8").splitlines()]
    tokens = {cut: 0 for cut in ("truncate", "sentences")}
    for cut in tokens:
        arguments = overrides(
            model_folder, documents, tmp_path / cut, "evaluate.every=1", "total_steps=1", f"documents.cut={cut}"
        )
        cfg: Any = OmegaConf.to_container(config.compose(arguments), resolve=True)
        output.claim(cfg)
        source = build.source(cfg, alone)
        opened = supply.opened(source, lambda each: each.texts)
        supplied, held = supply.pretraining(cfg, source, opened, tokenizer, alone)
        (feed,) = supplied.feeds
        text, _ = feed.tokens.take(range(len(feed.tokens)))
        tokens[cut] = int(text.lengths.sum()) - 2 * len(text.lengths)
        assert int(text.lengths.max()) <= 24
        trained = [tokenizer.decode(ids, skip_special_tokens=True) for ids in text.ids.split(text.lengths.tolist())]
        assert held is not None
        kept = [tokenizer.decode(ids, skip_special_tokens=True) for ids in held.text.ids.split(held.text.lengths.tolist())]
        assert len(kept) == 11
        assert not set(kept) & set(trained)
        assert len(trained) == (49 if cut == "truncate" else len(feed.tokens))
    whole = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    kept_places = [(2 * k + 1) * 60 // 22 for k in range(11)]
    assert tokens["sentences"] == sum(length for place, length in enumerate(whole) if place not in kept_places)
    assert tokens["truncate"] == sum(min(length, 22) for place, length in enumerate(whole) if place not in kept_places)


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["evaluate.every=1", "evaluate.held_out=30"], "evaluate.held_out=30: of data=text 30 texts cannot be held out of 60"),
        (["decoder=nowhere"], "decoder=nowhere: has no config.json, so it is no saved decoder; decoder=fresh starts a new one"),
        (["documents.cut=truncate", "documents.across=true"], "across=true needs cut=sentences or cut=tokens"),
    ],
)
def test_what_cannot_be_done_is_answered_in_one_line(more, answer, model_folder, documents, tmp_path, capsys):
    from bgetrain import cli

    assert cli.main([*overrides(model_folder, documents, tmp_path / "out", *more), "num_processes=1"]) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1


def test_losses_begin_near_chance_and_fall(spawn, model_folder, documents, tmp_path):
    (lines,) = spawn(1, several, [overrides(model_folder, documents, tmp_path / "out", "total_steps=30", "optim.lr=1e-2")])[0]
    chance = math.log(120)  # words of the vocabulary
    for side in ("encoder", "decoder"):
        assert lines[0][f"{side}_loss"] == pytest.approx(chance, rel=0.2)
        assert lines[-1][f"{side}_loss"] < 0.9 * lines[0][f"{side}_loss"]
        assert lines[-1][f"{side}_accuracy"] > lines[0][f"{side}_accuracy"]
