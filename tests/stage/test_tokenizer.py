"""stage=tokenizer: a vocabulary of the training texts beside a model of random weights."""

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bgetrain.cli import run_stage
from bgetrain.output import result

SMALL = ["model.vocab_size=100", "model.hidden_size=32", "model.num_layers=1", "model.intermediate_size=64", "model.max_len=40"]


def trained(beir_folder, output, *more: str) -> dict:
    lengths = ["data.query_max_len=16", "data.passage_max_len=32"]
    assert (
        run_stage(["stage=tokenizer", "data=beir", f"data.path={beir_folder}", *lengths, *SMALL, f"output_dir={output}", *more])
        == 0
    )
    return result(str(output))


def test_the_vocabulary_and_a_model_that_fits_it_are_left_in_model(beir_folder, tmp_path):
    figures = trained(beir_folder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    assert figures["vocabulary"] == len(tokenizer) == 100
    assert tokenizer.unk_token_id not in tokenizer("ban bur best gist lor")["input_ids"]  # words of the corpus
    model, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "out/model", output_loading_info=True)
    assert not report["missing_keys"]
    assert figures["parameters"] == model.num_parameters()
    assert (model.config.vocab_size, model.config.hidden_size, model.config.max_position_embeddings) == (100, 32, 40)


def test_the_same_seed_gives_the_same_files_and_another_other_weights(beir_folder, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        trained(beir_folder, tmp_path / name, f"seed={seed}")
    one, two, three = (tmp_path / name / "model" for name in ("one", "two", "three"))
    assert (
        (one / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes() == (three / "tokenizer.json").read_bytes()
    )
    weights = [AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (one, two, three)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(*(each["bert.embeddings.word_embeddings.weight"] for each in weights[::2]))
