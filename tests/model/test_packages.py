"""`model/` as training leaves it, in the packages that people load it with: each gives the vectors that `Embedder` gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentence
from safetensors import safe_open

import bgetrain
from bgetrain.data.tokenize import tokenize, train_wordpiece
from bgetrain.model import body, folder

POOLINGS = ["cls", "mean", "last"]
CHINESE = ["向量检索", "为这个句子生成表示以用于检索相关文章", "今天天气很好，我们去公园散步。" * 12, "检索 ban 文章 bur"]
TEXTS = [sentence(seed, 90) for seed in range(12)] + CHINESE + ["ban", "Ban BUR, bést!", " lun  dor\n\tkin "]
QUERY = "为这个句子生成表示：find "
LONGEST = 40  # tokens; the longest texts have more


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Pooling -> what `model.folder.save` writes of a BERT that tells texts apart, after the tokenizer was used."""
    made = body.bert(
        tokenizer=None, vocab_size=400, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_len=64, dropout=0.1,
        pooling="cls", gradient_checkpointing=False, masked_lm=False, seed=0,
        vocabulary=lambda size, longest: train_wordpiece([*TEXTS, QUERY], size, longest),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    assert max(tokenize(made.tokenizer, TEXTS, 64).lengths) > LONGEST  # and leaves a limit behind, as training does
    root, weights = tmp_path_factory.mktemp("packages"), {**made.backbone.state_dict(), **made.unused}
    for pooling in POOLINGS:
        options = {"pooling": pooling, "max_len": LONGEST, "query_instruction": QUERY}
        folder.save(root / pooling, made.backbone, weights, made.tokenizer, **options)
    return {pooling: root / pooling for pooling in POOLINGS}


def by_transformers(path: Path, texts: list[str], pooling: str, longest: int = LONGEST) -> np.ndarray:
    """As a model card tells it to those without any of the other packages."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"]
    last = states[torch.arange(len(texts)), mask.sum(1) - 1]
    mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize({"cls": states[:, 0], "mean": mean, "last": last}[pooling], dim=1).numpy()


def alike(one: object, other: object) -> None:
    """Cosines above 0.99999, and both of length 1."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert first.shape == second.shape
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), 1.0, atol=1e-5)
    assert ((first * second).sum(1) > 0.99999).all(), (first * second).sum(1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_package_gives_the_vectors_of_embedder(folders, pooling, tmp_path):
    from FlagEmbedding import FlagModel
    from langchain_huggingface import HuggingFaceEmbeddings
    from sentence_transformers import SentenceTransformer

    path = str(folders[pooling])
    ours = bgetrain.Embedder(path)
    passages, queries = ours.encode_corpus(TEXTS), ours.encode_queries(TEXTS)
    cosines = passages @ passages.T
    assert np.median(cosines[~np.eye(len(TEXTS), dtype=bool)]) < 0.95, "texts that all look alike would show nothing"
    assert np.median((passages * queries).sum(1)) < 0.99
    alike(passages, by_transformers(folders[pooling], TEXTS, pooling))
    alike(queries, by_transformers(folders[pooling], [QUERY + text for text in TEXTS], pooling))

    sentences = SentenceTransformer(path, device="cpu")
    assert sentences.max_seq_length == LONGEST
    alike(passages, sentences.encode(TEXTS))
    alike(passages, sentences.encode_document(TEXTS))
    alike(queries, sentences.encode_query(TEXTS))
    sentences.save_pretrained(str(tmp_path / "again"))  # the layout of the version that is installed
    again = bgetrain.Embedder(tmp_path / "again")
    assert again.passage_max_length == LONGEST
    alike(passages, again.encode_corpus(TEXTS))
    alike(queries, again.encode_queries(TEXTS))

    chain = HuggingFaceEmbeddings(
        model_name=path, model_kwargs={"device": "cpu"}, query_encode_kwargs={"prompt_name": "query"}
    )  # it does not take the prompt by itself
    alike(ours.encode_corpus([text.replace("\n", " ") for text in TEXTS]), chain.embed_documents(TEXTS))
    alike(queries[:3], [chain.embed_query(text) for text in TEXTS[:3]])

    if pooling == "last":
        return  # which FlagModel does not have
    flag = FlagModel(
        path, pooling_method=pooling, use_fp16=False, devices="cpu", query_instruction_for_retrieval=QUERY,
        query_max_length=LONGEST, passage_max_length=LONGEST,
    )  # fmt: skip
    alike(passages, flag.encode_corpus(TEXTS))
    alike(queries, flag.encode_queries(TEXTS))
    assert flag.encode("ban").shape == ours.encode("ban").shape


def test_text_embeddings_inference_finds_what_it_reads(folders):
    """Files and fields of router/src/lib.rs, core/src/download.rs, backends/candle/src (1.0 to 1.9.3), all without a default."""
    for pooling, path in folders.items():

        def read(name, path=path):
            return json.loads((path / name).read_text("utf8"))

        flags = read("1_Pooling/config.json")  # PoolConfig
        names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"]
        assert all(isinstance(flags[f"pooling_mode_{name}"], bool) for name in names)
        assert [name for name in names if flags[f"pooling_mode_{name}"]] == [
            {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}[pooling]
        ]
        assert read("sentence_bert_config.json")["max_seq_length"] == LONGEST  # STConfig, usize
        prompts = read("config_sentence_transformers.json")["prompts"]  # NewSTConfig, HashMap<String, String>
        assert prompts == {"query": QUERY, "document": ""}
        config = read("config.json")  # ModelConfig and BertConfig
        assert config["architectures"] == ["BertModel"]  # nothing that ends with Classification
        assert config["model_type"] == "bert"
        counts = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
        counts += ["max_position_embeddings", "type_vocab_size", "pad_token_id"]
        assert all(isinstance(config[name], int) for name in counts)
        assert all(isinstance(config[name], float) for name in ["hidden_dropout_prob", "initializer_range", "layer_norm_eps"])
        assert config["hidden_act"] == "gelu"
        assert config.get("position_embedding_type", "absolute") == "absolute"
        assert not any(each["type"].endswith("Dense") for each in read("modules.json"))
        with safe_open(path / "model.safetensors", "pt") as weights:
            named = set(weights.keys())
        assert {"embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias"} <= named


def test_no_limit_of_training_stays_in_the_tokenizer(folders):
    words = json.loads((folders["cls"] / "tokenizer.json").read_text("utf8"))
    assert words["truncation"] is None
    assert words["padding"] is None
    assert "max_length" not in json.loads((folders["cls"] / "tokenizer_config.json").read_text("utf8"))


def trained(world, overrides: list[str]) -> None:
    from ranks import run_stage

    run_stage(world, overrides)


def test_what_a_real_run_leaves_is_such_a_folder(model_folder, beir_folder, tmp_path, spawn):
    from sentence_transformers import SentenceTransformer

    data = [
        "data=beir",
        f"data.path={beir_folder}",
        "data.passage_max_len=24",
        "data.query_max_len=16",
        'data.query_instruction="find "',
    ]
    sizes = ["global_batch=8", "group_size=1", "total_steps=2", "precision=fp32", "optim.lr=1e-3"]
    overrides = ["stage=finetune", "model=pretrained", f"model.path={model_folder}", "model.pooling=mean", *data, *sizes]
    spawn(1, trained, [*overrides, f"output_dir={tmp_path}/out"])
    texts = [sentence(seed, 40) for seed in range(8)]
    ours, theirs = bgetrain.Embedder(tmp_path / "out/model"), SentenceTransformer(str(tmp_path / "out/model"), device="cpu")
    alike(ours.encode_corpus(texts), theirs.encode_document(texts))
    alike(ours.encode_queries(texts), theirs.encode_query(texts))
    alike(ours.encode_queries(texts), by_transformers(tmp_path / "out/model", ["find " + text for text in texts], "mean", 24))
    assert ((ours.encode(texts) * bgetrain.Embedder(model_folder, pooling_method="mean").encode(texts)).sum(1) < 0.9999).any()
