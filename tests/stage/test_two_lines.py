"""`bgetrain stage=retromae` and `bgetrain stage=finetune data=msmarco`: complete as typed, and runnable on local copies."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoModel

from bgetrain import config
from bgetrain.cli import main
from bgetrain.output import result

RETROMAE, FINETUNE = ["stage=retromae"], ["stage=finetune", "data=msmarco"]
WORDS = ["ban", "bur", "best", "kin", "lun", "dor", "fast", "gir", "fist", "gun"]


@pytest.fixture(scope="module")
def closed() -> str:
    """The address of a port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (RETROMAE, ["data.path=wikimedia/wikipedia: ", "data=text data.files=[", "model.path=google-bert/bert-base-uncased: "]),
        (FINETUNE, ["data.path=Tevatron/msmarco-passage-aug: ", "data=jsonl data.files=[", "model.path=BAAI/bge-base-en-v1.5: "]),
    ],
    ids=["retromae", "finetune"],
)
def test_without_network_one_line_names_all_that_is_out_of_reach_and_how_to_go_on(line, names, closed, tmp_path):
    here = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bgetrain", *line], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**here, "HF_ENDPOINT": closed, "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    seconds = time.monotonic() - began
    assert done.returncode == 2
    assert done.stderr.startswith("bgetrain: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    for name in [*names, "data.path=FOLDER", "model.path=FOLDER", "model=tiny"]:
        assert name in done.stderr, name
    assert seconds < 60  # imports alone on busy cores; five attempts at each file would take as long again


def test_typed_bare_they_are_bge_base_s_settings():
    retromae, finetune = config.compose(RETROMAE), config.compose(FINETUNE)
    assert (retromae.model.path, retromae.data.path, retromae.data.passage_max_len) == (
        "google-bert/bert-base-uncased", "wikimedia/wikipedia", 512,
    )  # fmt: skip
    assert (retromae.masking.encoder_ratio, retromae.masking.decoder_ratio, retromae.global_batch) == (0.3, 0.5, 720)
    assert (finetune.model.path, finetune.data.path, finetune.group_size) == (
        "BAAI/bge-base-en-v1.5",
        "Tevatron/msmarco-passage-aug",
        8,
    )
    assert finetune.data.query_instruction == "Represent this sentence for searching relevant passages: "
    assert (finetune.loss.temperature, finetune.optim.lr) == (0.02, 2e-5)
    assert (finetune.total_steps, finetune.epochs) == (None, 1)


def packed(path: Path, rows: list[dict]) -> None:
    """Writes rows as parquet or gzipped JSONL, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def trained(line: list[str], model_folder, data: Path, output: Path, *more: str) -> dict:
    short = ["data.query_max_len=48", "data.passage_max_len=48", "global_batch=4", "total_steps=2", "log_every=1"]
    assert main([*line, f"model.path={model_folder}", f"data.path={data}", f"output_dir={output}", *short, *more]) == 0
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    assert AutoModel.from_pretrained(output / "model").config.hidden_size == 32
    return result(str(output))


@pytest.mark.parametrize(
    "names", [["20231101.en/train-00000-of-00002.parquet", "20231101.en/train-00001-of-00002.parquet"], ["train.jsonl.gz"]]
)
def test_retromae_runs_on_a_local_copy_of_wikipedia(names, model_folder, tmp_path):
    rows = [
        {"id": str(n), "url": f"https://en.wikipedia.org/{n}", "title": WORDS[n % 10], "text": " ".join(WORDS[: 2 + n % 8])}
        for n in range(12)
    ]
    for number, name in enumerate(names):
        packed(tmp_path / "wikipedia" / name, rows[number :: len(names)])
    figures = trained(RETROMAE, model_folder, tmp_path / "wikipedia", tmp_path / "out")
    assert (figures["status"], figures["steps"], figures["texts"]) == ("done", 2, 12)


@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "train.jsonl.gz"])
def test_finetune_runs_on_a_local_copy_of_msmarco_passage(name, model_folder, tmp_path):
    def passage(number: int) -> dict[str, str]:
        return {"docid": str(number), "title": WORDS[number % 10] if number % 2 else "", "text": " ".join(WORDS[number % 7 :])}

    rows = [
        {
            "query_id": str(n),
            "query": f"{WORDS[n]} {WORDS[-n]}",
            "positive_passages": [passage(n)],
            "negative_passages": [passage(n + more) for more in range(1, 9)],
        }
        for n in range(8)
    ]
    packed(tmp_path / "msmarco" / name, rows)
    figures = trained(FINETUNE, model_folder, tmp_path / "msmarco", tmp_path / "out")
    assert (figures["status"], figures["steps"], figures["rows"]) == ("done", 2, 8)
    saved = json.loads((tmp_path / "out/model/config_sentence_transformers.json").read_text())
    assert saved["prompts"]["query"] == "Represent this sentence for searching relevant passages: "
