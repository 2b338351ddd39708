"""What a checkpoint or a YAML becomes, and what is refused."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from bgetrain.data.tokenize import train_wordpiece
from bgetrain.model import body

LOAD = dict(tokenizer=None, dropout=None, pooling="auto", gradient_checkpointing=False, masked_lm=False, seed=1, vocabulary=None)
LOAD |= dict(lora=None, lora_scale=2.0, lora_dropout=0.0)
BUILD = dict(
    tokenizer=None, vocab_size=60, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_len=48, dropout=0.3
)
BUILD |= dict(pooling="mean", gradient_checkpointing=False, masked_lm=False, seed=1)


def vocabulary(vocab_size: int, max_len: int):
    return train_wordpiece(["some words to learn letters from"] * 3, vocab_size, max_len)


def load(path, **changes):
    return body.pretrained(str(path), **(LOAD | changes))


def build(**changes):
    return body.bert(**({**BUILD, "vocabulary": vocabulary} | changes))


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def test_a_checkpoint_s_weights_are_read_in_fp32_and_its_pooler_is_kept_apart(model_folder):
    loaded, reference = load(model_folder), AutoModel.from_pretrained(model_folder).state_dict()
    ours = {**loaded.backbone.state_dict(), **loaded.unused}
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in ours)
    assert {each.dtype for each in ours.values()} == {torch.float32}
    assert loaded.unused.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    assert loaded.backbone.pooler is None
    assert (loaded.pooling, loaded.max_positions, len(loaded.tokenizer)) == ("cls", 64, 120)


def test_a_half_precision_checkpoint_is_read_in_fp32(folder):
    AutoModel.from_pretrained(folder).bfloat16().save_pretrained(folder)
    assert next(load(folder).backbone.parameters()).dtype == torch.float32


def test_masked_lm_keeps_the_head_of_the_checkpoint(model_folder):
    loaded, reference = load(model_folder, masked_lm=True).backbone, AutoModelForMaskedLM.from_pretrained(model_folder)
    assert all(torch.equal(each, reference.state_dict()[name]) for name, each in loaded.state_dict().items())
    assert "cls.predictions.transform.dense.weight" in loaded.state_dict()


def test_a_head_that_the_checkpoint_lacks_is_drawn_by_the_seed(folder):
    AutoModel.from_pretrained(folder).save_pretrained(folder)  # without its heads
    first, again, other = (
        load(folder, masked_lm=True, seed=seed).backbone.state_dict()["cls.predictions.transform.dense.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_missing_weights_of_the_encoder_are_refused(folder):
    model = AutoModel.from_pretrained(folder)
    weights = {name: each for name, each in model.state_dict().items() if "layer.1." not in name}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ValueError, match=r"has no weights for 16 parameters, such as encoder\.layer\.1\.attention"):
        load(folder)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_is_set_in_every_layer(model_folder, dropout):
    rates = {each.p for each in load(model_folder, dropout=dropout).backbone.modules() if isinstance(each, torch.nn.Dropout)}
    assert rates == {dropout}
    assert {each.p for each in load(model_folder).backbone.modules() if isinstance(each, torch.nn.Dropout)} == {0.1}


def test_dropout_is_set_under_the_names_of_another_architecture(model_folder, folder, tmp_path):
    config = DistilBertConfig(vocab_size=120, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64)
    DistilBertModel(config).save_pretrained(folder)
    loaded = load(folder, dropout=0.35).backbone
    assert (loaded.config.dropout, loaded.config.attention_dropout) == (0.35, 0.35)
    assert {each.p for each in loaded.modules() if isinstance(each, torch.nn.Dropout)} == {0.35}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 32}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_auto_reads_the_pooling_of_the_folder_in_both_forms_and_a_choice_goes_before_it(folder, config, pooling):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))
    assert load(folder).pooling == pooling
    assert load(folder, pooling="cls").pooling == "cls"


@pytest.mark.parametrize("config", [{"pooling_mode": "max"}, {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}])
def test_a_pooling_that_is_not_ours_is_refused(folder, config):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"1_Pooling/config\.json: pooling '.*max.*' is not one of cls, mean, last: set model\.pooling"
    ):
        load(folder)


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(model_folder):
    gradients = []
    for checkpointing in (False, True):
        model = load(model_folder, gradient_checkpointing=checkpointing, dropout=0.0).backbone.train()
        assert model.is_gradient_checkpointing is checkpointing
        model(input_ids=torch.tensor([[2, 7, 8, 3]])).last_hidden_state.square().sum().backward()
        gradients.append(model.embeddings.word_embeddings.weight.grad)
    assert torch.equal(*gradients)


def test_positions_of_roberta_start_behind_its_padding(folder):
    config = RobertaConfig(vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    config.max_position_embeddings, config.pad_token_id = 66, 1
    RobertaModel(config).save_pretrained(folder)
    loaded = load(folder)
    assert loaded.max_positions == 64
    longest = torch.full((1, 64), 7)
    assert loaded.backbone(input_ids=longest).last_hidden_state.shape == (1, 64, 32)
    with pytest.raises((IndexError, RuntimeError)):
        loaded.backbone(input_ids=torch.full((1, 65), 7))


def test_a_tokenizer_without_padding_is_refused(folder, tmp_path):
    words = {"[UNK]": 0, "a": 1}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]"))).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"^model\.tokenizer has no padding token: choose an encoder's tokenizer$"):
        load(folder, tokenizer=str(tmp_path / "bare"))


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder, tmp_path):
    train_wordpiece([" ".join(f"word{n}" for n in range(300))], 200, 64).save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match=r"^model\.tokenizer has 200 words but the model 120: they do not belong together$"):
        load(folder, tokenizer=str(tmp_path / "large"))


def test_a_tokenizer_in_python_alone_is_refused(folder, tmp_path):
    bare = tmp_path / "slow"
    bare.mkdir()
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    (bare / "config.json").write_text('{"model_type": "canine"}')
    with pytest.raises(ValueError, match=r"^model\.tokenizer=.*/slow: has no fast tokenizer \(tokenizer\.json\)$"):
        load(folder, tokenizer=str(bare))


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^model\.path={tmp_path}: ") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^model\.path=\./nowhere: there is no such folder, so it is no model: give a folder"):
        load("./nowhere")


def test_damaged_weights_are_refused_in_one_line(folder):
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"^model\.path=.*: cannot be loaded: ") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_home_is_expanded(model_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert load(f"~/{model_folder.name}").max_positions == 64


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    with pytest.raises(
        ValueError, match=r"^model\.path=no/body: no local folder, and cannot be reached on the hub \(.*model\.path=FOLDER"
    ):
        load("no/body")


def test_a_built_bert_is_as_its_keys_say():
    made = build()
    config = made.backbone.config
    shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert shape == (32, 2, 2, 64)
    assert (made.pooling, made.max_positions, config.vocab_size) == ("mean", 48, len(made.tokenizer))
    assert {each.p for each in made.backbone.modules() if isinstance(each, torch.nn.Dropout)} == {0.3}
    assert config.pad_token_id == made.tokenizer.pad_token_id
    assert made.backbone.pooler is None


def test_the_seed_decides_the_weights_of_a_built_bert():
    first, again, other = (build(seed=seed, masked_lm=True).backbone.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["bert.embeddings.word_embeddings.weight"], other["bert.embeddings.word_embeddings.weight"])


def test_a_built_bert_takes_a_tokenizer_that_is_there(model_folder):
    made = build(tokenizer=str(model_folder), vocabulary=lambda *_: pytest.fail("a vocabulary was trained"))
    assert made.backbone.config.vocab_size == 120


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"^model\.hidden_size=32 must be a multiple of model\.num_heads=5$"):
        build(num_heads=5)


def test_a_folder_with_a_module_that_is_not_run_is_refused_and_its_encoder_can_be_had(model_folder, tmp_path):
    """sentence-transformers would put the embeddings through the Dense module; leaving it out gives others."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    encoder = Transformer(str(model_folder))
    SentenceTransformer(modules=[encoder, Pooling(32), Dense(32, 16)]).save(str(tmp_path / "dense"))
    SentenceTransformer(modules=[encoder, Pooling(32, pooling_mode="mean")]).save(str(tmp_path / "plain"))
    with pytest.raises(ValueError, match=r"modules\.json: has a module Dense, which bgetrain does not run"):
        body.pooling_of(str(tmp_path / "dense"))
    assert body.pooling_of(str(tmp_path / "plain")) == "mean"
