"""`model/` in the hands of others: transformers and sentence-transformers read what we meant."""

import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM

from bgetrain.data.tokenize import cut, pad, tokenize
from bgetrain.model import body, folder
from bgetrain.model.bi_encoder import BiEncoder

TEXTS = [
    "ban bur best",
    "kin",
    "ban bur best lun dor fast gir ban bur best lun dor fast gir kin ban bur best lun dor",
    "fist gun",
]


def load(path, pooling: str = "auto", masked_lm: bool = False) -> body.Body:
    return body.pretrained(
        str(path),
        tokenizer=None,
        dropout=None,
        pooling=pooling,
        gradient_checkpointing=False,
        lora=None,
        lora_scale=2.0,
        lora_dropout=0.0,
        masked_lm=masked_lm,
        seed=0,
        vocabulary=None,
    )


def save(made: body.Body, path, pooling: str = "cls", max_len: int = 16, query_instruction: str = "") -> None:
    weights = {**made.backbone.state_dict(), **made.unused}
    options = {"pooling": pooling, "max_len": max_len, "query_instruction": query_instruction}
    folder.save(path, made.backbone, weights, made.tokenizer, **options)


def ours(path, texts: list[str], max_len: int) -> torch.Tensor:
    made = load(path)
    text = tokenize(made.tokenizer, texts, max_len)
    embeddings = torch.empty(len(texts), made.backbone.config.hidden_size)
    for group in cut(text.lengths, 40, padded=True):
        with torch.inference_mode():
            embeddings[group] = BiEncoder(made.backbone, made.pooling, packed=False).eval()(
                None, *pad(text, group, made.tokenizer.pad_token_id)
            )[0]
    return embeddings


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_sentence_transformers_embeds_as_we_do(model_folder, tmp_path, pooling):
    save(load(model_folder), tmp_path / "model", pooling, max_len=16)
    assert load(tmp_path / "model").pooling == pooling
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == 16
    vectors = theirs.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))
    cosines = (vectors * ours(tmp_path / "model", TEXTS, 16)).sum(1)
    assert (cosines > 0.99999).all(), cosines
    if pooling != "cls":  # the long text is cut: 16 tokens are not 32
        assert (vectors[2] @ ours(tmp_path / "model", TEXTS, 32)[2]) < 0.9999


def test_the_instruction_is_the_prompt_of_queries(model_folder, tmp_path):
    save(load(model_folder), tmp_path / "model", query_instruction="find 尋: ")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.prompts == {"query": "find 尋: ", "document": ""}
    query = theirs.encode_query(["ban bur"], convert_to_tensor=True)[0]
    assert query @ ours(tmp_path / "model", ["find 尋: ban bur"], 16)[0] > 0.99999
    assert theirs.encode_document(["ban bur"], convert_to_tensor=True)[0] @ ours(tmp_path / "model", ["ban bur"], 16)[0] > 0.99999


def test_transformers_finds_every_weight_and_the_pooler_as_it_was(model_folder, tmp_path):
    save(load(model_folder), tmp_path / "model")
    again, report = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    source = AutoModel.from_pretrained(model_folder).state_dict()
    assert again.state_dict().keys() == source.keys()
    assert all(torch.equal(each, source[name]) for name, each in again.state_dict().items())
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["BertModel"]


def test_a_model_with_its_masked_lm_head_loads_with_it_and_without(model_folder, tmp_path):
    save(load(model_folder, masked_lm=True), tmp_path / "model")
    again, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    source = AutoModelForMaskedLM.from_pretrained(model_folder).state_dict()
    assert all(torch.equal(each, source[name]) for name, each in again.state_dict().items())
    assert load(tmp_path / "model").backbone.config.hidden_size == 32


def test_weights_are_written_in_fp32(model_folder, tmp_path):
    made = load(model_folder)
    made.backbone.to(torch.bfloat16)
    weights = {name: each.float() for name, each in made.backbone.state_dict().items()}
    folder.save(tmp_path / "model", made.backbone, weights, made.tokenizer, pooling="cls", max_len=16, query_instruction="")
    assert {each.dtype for each in AutoModel.from_pretrained(tmp_path / "model", dtype="auto").parameters()} == {torch.float32}


def test_an_earlier_folder_is_replaced_whole_and_nothing_is_left_beside(model_folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old.bin").touch()
    save(load(model_folder), tmp_path / "model")
    assert not (tmp_path / "model/old.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
