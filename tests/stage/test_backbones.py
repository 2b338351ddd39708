"""stage=retromae on checkpoints of the four families, each with a tokenizer of its kind, from folder to folder.

What is saved predicts as what was trained did, to the bit. Two ranks under ZeRO-3 equal one: figures to rtol 1e-5, weights after
three SGD steps to 1e-6.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, sentence
from torch.testing import assert_close

from bgetrain.model.masked_lm import ARCHITECTURES

TEXTS = [sentence(number, 24) for number in range(24)]
SPOKEN = ["ban bur best", "kin lun dor fast gir fist gun"]  # what a saved model is asked about; padding included
BERT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64)
ROBERTA = BERT | dict(max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5)
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "xlm-roberta": ROBERTA,
    "roberta": ROBERTA | dict(max_position_embeddings=514),
    # a global layer and two that see 4 tokens to either side
    "modernbert": dict(num_hidden_layers=3, local_attention=8, max_position_embeddings=1024, intermediate_size=48),
}
LONGEST = 512  # tokens: RoBERTa's 514 positions begin at padding_idx + 1 = 2
DEEP = 1024


def word_pieces() -> Any:
    from bgetrain.data.tokenize import train_wordpiece

    return train_wordpiece(TEXTS, 150, 64)


def unigram() -> Any:
    """XLM-RoBERTa's: SentencePiece's Unigram, spaces as signs of the words, padding token 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return wrapped(made, "<s>", "</s>", "<pad>", "<unk>", "<mask>", 64)


def byte_pairs(specials: list[str], last: list[str]) -> Any:
    """Byte-level BPE with special tokens before or after its words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(last)
    return made


def roberta_pairs() -> Any:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return wrapped(byte_pairs(names, []), "<s>", "</s>", "<pad>", "<unk>", "<mask>", LONGEST)


def modernbert_pairs() -> Any:
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    return wrapped(byte_pairs(["<|padding|>", "<|endoftext|>"], names), "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", 1024)


def wrapped(made: Any, cls: str, sep: str, pad: str, unk: str, mask: str, longest: int) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(each, made.token_to_id(each)) for each in (cls, sep)]
    )
    names = dict(bos_token=cls, eos_token=sep, cls_token=cls, sep_token=sep, pad_token=pad, unk_token=unk, mask_token=mask)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, **names)


TOKENIZERS = {"bert": word_pieces, "xlm-roberta": unigram, "roberta": roberta_pairs, "modernbert": modernbert_pairs}


def checkpoint(kind: str, folder: Path, *, head: bool) -> Path:
    """A model of width 32 with random weights and its tokenizer, as save_pretrained writes them."""
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    tokenizer = TOKENIZERS[kind]()
    special = {f"{each}_token_id": getattr(tokenizer, f"{each}_token_id") for each in ("pad", "bos", "eos", "cls", "sep")}
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = AutoConfig.for_model(kind, **{**sizes, **special, **SETTINGS[kind]})
    torch.manual_seed(0)
    model = (AutoModelForMaskedLM if head else AutoModel).from_config(config)
    with torch.no_grad():  # biases and norms away from 0 and 1, so that leaving one out shows
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def said(folder: Path, lm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and logits of `SPOKEN`, in the words of the tokenizer in `folder`."""
    from transformers import AutoTokenizer

    given = AutoTokenizer.from_pretrained(folder)(SPOKEN, padding=True, return_tensors="pt")
    asked = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return lm.base_model(**asked).last_hidden_state, lm(**asked).logits


def trained(world, runs: list[list[str]]) -> list[dict[str, Any]]:
    """Runs the stage; what it logs and, of one rank, what the model says before it is saved."""
    from omegaconf import OmegaConf

    from bgetrain import config, distributed, output
    from bgetrain.stage import retromae

    found: dict[str, Any] = {}
    plain_save = retromae.save

    def save(cfg, of, *others):
        plain_save(cfg, of, *others)
        if world.size == 1:
            found["said"] = said(Path(cfg["model"]["path"]), of.engine.core.module.lm.eval())

    retromae.save = save
    results = []
    for overrides in runs:
        cfg: Any = OmegaConf.to_container(config.compose(overrides), resolve=True)
        if world.rank == 0:
            output.claim(cfg)
        distributed.barrier(world)
        logged: list[dict] = []
        retromae.run(cfg, world, lambda step, metrics, logged=logged: logged.append(metrics))
        results.append({"logged": logged, **found})
    return results


def command(model: Path, file: Path, output: Path, *more: str) -> list[str]:
    return [
        "stage=retromae", f"model.path={model}", "data=text", f"data.files=[{file}]", f"output_dir={output}", "precision=fp32",
        "documents.cut=truncate", "log_every=1",
        "preflight=false", "optim.warmup_ratio=0", "seed=3", f"global_batch={len(TEXTS)}", *more,
    ]  # fmt: skip


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf8")
    return path


LEARN = ["data.passage_max_len=48", "total_steps=8", "optim.lr=1e-2", "chunk_tokens=500"]
EXACT = [LEARN[0], "total_steps=3", "optim=sgd", "optim.lr=0.1", "chunk_tokens=200", "engine.gradient_clipping=0"]
ZERO3 = [
    "engine=zero3",
    *(f"+engine.zero_optimization.stage3_{key}=0" for key in ("param_persistence_threshold", "max_reuse_distance")),
]
ONE_TEXT = ["global_batch=1", "total_steps=1", "optim=sgd", "optim.lr=0.1", "optim.weight_decay=0"]
CASES = [*SETTINGS, "roberta-bare", "one rank", "longest", "deep", "deep-checkpointed"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints with an MLM head, one without, short texts, and one text of more tokens than any model has positions."""
    folder = tmp_path_factory.mktemp("backbones")
    made = {kind: checkpoint(kind, folder / kind, head=True) for kind in SETTINGS}
    made["roberta-bare"] = checkpoint("roberta", folder / "roberta-bare", head=False)
    long = " ".join(WORDS[number * 7 % 90] for number in range(1500))
    files = {"texts": written(folder / "texts.jsonl", TEXTS), "long": written(folder / "long.jsonl", [long])}
    return made | files | {"out": folder / "out"}


@pytest.fixture(scope="module")
def runs(ground, spawn) -> dict[str, dict[str, Any]]:
    """What `trained` found for each of `CASES`."""
    lines = [command(ground[kind], ground["texts"], ground["out"] / kind, *LEARN) for kind in CASES[:5]]
    lines.append(command(ground["xlm-roberta"], ground["texts"], ground["out"] / "one rank", *EXACT))
    longest = [*ONE_TEXT, f"data.passage_max_len={LONGEST}"]
    lines.append(command(ground["roberta"], ground["long"], ground["out"] / "longest", *longest))
    deep = [*ONE_TEXT, f"data.passage_max_len={DEEP}"]
    for name, again in (("deep", False), ("deep-checkpointed", True)):
        chosen = [*deep, f"model.gradient_checkpointing={again}".lower()]
        lines.append(command(ground["modernbert"], ground["long"], ground["out"] / name, *chosen))
    return dict(zip(CASES, spawn(1, trained, lines)[0], strict=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", CASES[:5])
def test_each_backbone_trains_and_what_is_saved_says_what_was_trained(kind, ground, runs):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoModelForMaskedLM

    logged, (states, logits) = runs[kind]["logged"], runs[kind]["said"]
    for name in ("encoder_loss", "decoder_loss"):
        assert logged[-1][name] < 0.95 * logged[0][name], name
    model = ground["out"] / kind / "model"
    lm, report = AutoModelForMaskedLM.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"]
    assert all("pooler." in name for name in report["unexpected_keys"])
    for ours, theirs in zip(said(model, lm), (states, logits), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)
    encoder, report = AutoModel.from_pretrained(model, output_loading_info=True)
    assert all("pooler." in name for name in report["missing_keys"])
    assert bool(report["missing_keys"]) == (kind not in ("modernbert", "roberta-bare"))  # a pooler that was there stays
    bare = dict(encoder.named_parameters())
    assert bare.keys() - {name for name in bare if "pooler." in name} == dict(lm.base_model.named_parameters()).keys()
    assert all(torch.equal(each, bare[name]) for name, each in lm.base_model.named_parameters())
    embeddings = SentenceTransformer(str(model), device="cpu").encode(SPOKEN, convert_to_tensor=True)
    assert_close(embeddings, torch.nn.functional.normalize(states[:, 0]), rtol=1e-5, atol=1e-6)
    assert {each.name for each in (ground["out"] / kind / "decoder").iterdir()} == {"config.json", "decoder.safetensors"}


def test_two_ranks_under_zero_3_equal_one(ground, runs, spawn):
    line = command(ground["xlm-roberta"], ground["texts"], ground["out"] / "two ranks", *EXACT, *ZERO3)
    ranks = spawn(2, trained, [line])
    for ours, expected in zip(ranks[0][0]["logged"], runs["one rank"]["logged"], strict=True):
        for name in ("loss", "encoder_loss", "decoder_loss", "grad_norm"):
            assert ours[name] == pytest.approx(expected[name], rel=1e-5), name
    both = [weights(ground["out"] / name / "model") for name in ("two ranks", "one rank")]
    assert_close(*both, rtol=0, atol=1e-6)


def test_roberta_trains_at_its_last_position_and_reads_none_before_the_first(ground, runs):
    name = "roberta.embeddings.position_embeddings.weight"
    before, after = weights(ground["roberta"])[name], weights(ground["out"] / "longest" / "model")[name]
    changed = (before != after).any(1).nonzero()[:, 0].tolist()
    assert changed == list(range(2, LONGEST + 2))


def test_checkpointing_changes_nothing_at_a_thousand_tokens(ground, runs):
    plain, again = (runs[name]["logged"][0] for name in ("deep", "deep-checkpointed"))
    for name in ("encoder_loss", "decoder_loss", "grad_norm"):
        assert again[name] == pytest.approx(plain[name], rel=1e-5), name
    assert_close(*(weights(ground["out"] / name / "model") for name in ("deep", "deep-checkpointed")), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def _imported():
    """What importing deepspeed prints is no part of an answer."""
    import bgetrain.engine.deepspeed  # noqa: F401


def refused(capfd, arguments: list[str]) -> str:
    """The one line that a command is refused by."""
    from bgetrain import cli

    status, told = cli.main(arguments), capfd.readouterr()
    assert (status, told.out, told.err.count("\n")) == (2, "", 1), told.err
    return str(told.err).removeprefix("bgetrain: ").rstrip("\n")


@pytest.mark.usefixtures("_imported")
def test_more_tokens_than_roberta_has_positions_are_refused(ground, capfd, tmp_path):
    line = refused(capfd, command(ground["roberta"], ground["texts"], tmp_path / "out", f"data.passage_max_len={LONGEST + 1}"))
    assert line == "data.passage_max_len=513 exceeds the 512 positions of the model"


@pytest.mark.usefixtures("_imported")
@pytest.mark.parametrize("kind", ["albert", "deberta-v2", "qwen2"])
@pytest.mark.parametrize("head", [True, False])
def test_a_backbone_that_is_not_served_is_named_before_anything_is_trained(kind, head, ground, capfd, tmp_path):
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=500)
    config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=2)
    (AutoModelForMaskedLM if head and kind != "qwen2" else AutoModel).from_config(config).save_pretrained(tmp_path / "model")
    TOKENIZERS["roberta"]().save_pretrained(tmp_path / "model")
    line = refused(capfd, command(tmp_path / "model", ground["texts"], tmp_path / "out", "data.passage_max_len=48"))
    assert f"config.model_type of the backbone is '{kind}'" in line
    assert line.endswith(f"it must be one of {', '.join(ARCHITECTURES)}")
    assert not (tmp_path / "out" / "model").exists()
