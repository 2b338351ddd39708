"""What several tests need: a tiny model, a tiny retrieval set, and ranks."""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `cluster.local.launch` sets it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ARROW = tempfile.TemporaryDirectory(prefix="bgetrain-tests-")  # the user's own cache of data sets is left alone
os.environ["HF_DATASETS_CACHE"] = ARROW.name
sys.path.insert(0, str(Path(__file__).parent))  # the ranks that `spawn` starts find `ranks` by it

WORDS = [first + middle + last for first in "bdfgkl" for middle in "aeiou" for last in ("n", "r", "st")]


def sentence(seed: int, longest: int) -> str:
    """1 to `longest` words drawn by `seed`."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))


@pytest.fixture(scope="session", autouse=True)
def memory_is_given_back():
    """Runs in this process do not change how it takes memory: thousands of them left an address space larger than the machine."""
    from bgetrain.cluster import local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "keep_memory", lambda: None)
        yield


@pytest.fixture(scope="session")
def spawn():
    """spawn(size, function, *arguments, seconds=240): see `ranks.spawn`."""
    from ranks import spawn as start

    return start


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A BERT of 2 layers, width 32, 64 positions, with a WordPiece tokenizer, as save_pretrained writes it."""
    return write_model(tmp_path_factory.mktemp("model"))


def write_model(folder: Path) -> Path:
    """What `model_folder` is, in `folder`."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    from bgetrain.data.tokenize import train_wordpiece

    tokenizer = train_wordpiece([sentence(seed, 12) for seed in range(200)], 120, 64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    model = BertForPreTraining(config)
    with torch.no_grad():  # biases and norms away from 0 and 1, so that leaving one out shows
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def beir_folder(tmp_path_factory):
    """40 passages, 24 queries with one relevant passage each, splits train (16 queries) and test (8)."""
    return write_beir(tmp_path_factory.mktemp("beir"))


def write_beir(folder: Path) -> Path:
    """What `beir_folder` is, in `folder`."""
    (folder / "qrels").mkdir()
    passages = [{"_id": f"p{n}", "title": WORDS[n % 90], "text": sentence(1000 + n, 20)} for n in range(40)]
    queries = [{"_id": f"q{n}", "text": f"{WORDS[n]} {passages[n]['text'].split()[0]}"} for n in range(24)]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    for split, numbers in (("train", range(16)), ("test", range(16, 24))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\tp{n}\t1" for n in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf8")
    return folder
