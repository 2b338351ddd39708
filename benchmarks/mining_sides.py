"""One framework mines, in a process of its own: it writes rows, and prints its seconds (imports left out) as JSON.

`hn_mine` stands for FlagEmbedding's scripts/hn_mine.py, which its package does not hold: the same steps in our words (a set of
texts, faiss.IndexFlatIP, searches of 64 queries, the window, unequal texts, an unseeded sample), on embeddings by its package.
"""

import argparse
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

FIRST, LAST, NUMBER = 10, 210, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=[f"{side}-{task}" for side in SIDES for task in ("vectors", "texts")])
    parser.add_argument(
        "--vectors", type=Path, help="folder with queries.npy and passages.npy; query n has passage n as positive"
    )
    parser.add_argument("--data", type=Path, help="folder in BEIR layout")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--whole-window", action="store_true", help="write all of each window, for comparison")
    parser.add_argument("--faiss", action="store_true", help="sentence-transformers' use_faiss")
    options = parser.parse_args()
    side, task = options.side.rsplit("-", 1)
    prepare, work = SIDES[side]
    ready = prepare(options, task)
    began, used = time.perf_counter(), time.process_time()
    work(options, task, ready)
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}))


def arrays(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    return np.load(options.vectors / "queries.npy"), np.load(options.vectors / "passages.npy")


def named(kind: str, number: int) -> list[str]:
    return [f"{kind} {place}" for place in range(number)]


def beir(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Texts of the corpus, and of each training query with each of its pages."""

    def lines(name: str) -> list[dict[str, Any]]:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf8") as file:
            return [json.loads(line) for line in file]

    corpus = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in lines("corpus")}
    queries = {row["_id"]: row["text"] for row in lines("queries")}
    judged = [line.split("\t") for line in (folder / "qrels" / "train.tsv").read_text("utf8").splitlines()[1:]]
    return list(corpus.values()), [queries[query] for query, *_ in judged], [corpus[passage] for _, passage, _ in judged]


# --- bgetrain ---------------------------------------------------------------------------------------------------------


class Named:
    """Passages in memory, as the peers have them."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: Any) -> list[str]:
        return [self.texts[place] for place in places]

    def names(self, places: Any) -> list[str]:
        return [f"p{place}" for place in places]

    def find(self, names: list[str]) -> np.ndarray:
        return np.array([int(name[1:]) for name in names], np.int64)


def ready_ours(options: argparse.Namespace, task: str) -> Any:
    # imports are not timed, as the peers' are not
    import bgetrain.config
    import bgetrain.search.exact
    import bgetrain.stage.mine  # noqa: F401

    return arrays(options) if task == "vectors" else None


def ours(options: argparse.Namespace, task: str, ready: Any) -> None:
    import yaml

    from bgetrain import config, distributed, output
    from bgetrain.search.mining import Miner
    from bgetrain.search.negatives import same_text
    from bgetrain.search.rescore import model_score
    from bgetrain.search.shards import held
    from bgetrain.selection import CONF
    from bgetrain.sources import Retrieval
    from bgetrain.stage import mine as stage
    from bgetrain.target import call

    world = distributed.start(0, 1, 0, 1, 1.0)
    import torch

    torch.set_num_threads(options.threads)
    if task == "texts":
        from omegaconf import OmegaConf

        keys = [f"mine.first={FIRST}", f"mine.last={LAST}", f"mine.number={NUMBER}", "precision=fp32", "resume=never"]
        data = ["data=beir", f"data.path={options.data}", "data.query_max_len=512", "data.passage_max_len=512"]
        model = [f"model.path={options.model}", "model.pooling=cls", f"output_dir={options.output}", "chunk_tokens=4096"]
        cfg: Any = OmegaConf.to_container(config.compose(["stage=mine", *keys, *data, *model]), resolve=True)
        output.claim(cfg)
        stage.run(cfg, world, lambda step, metrics: None)
        return
    keys = yaml.safe_load((CONF / "stage/mine.yaml").read_text("utf8"))["mine"] | {"first": FIRST, "last": LAST, "number": NUMBER}
    if options.whole_window:
        keys |= {"number": LAST - FIRST, "sampling": "top"}
    queries, passages = (held(array, world) for array in ready)
    texts, ids = named("query", queries.total), [f"q{place}" for place in range(queries.total)]
    qrels = {name: {f"p{place}": 1} for place, name in enumerate(ids)}
    retrieval = Retrieval(Named(named("passage", passages.total)), ids, texts, [None] * len(ids), qrels)
    search = yaml.safe_load((CONF / "search/exact.yaml").read_text("utf8"))
    ranked = call(search, queries, passages, LAST, world=world, advance=lambda _: None)
    miner = Miner(retrieval, call(keys), 1, same_text(texts), model_score(queries, passages, world))
    options.output.mkdir(parents=True, exist_ok=True)
    stage.mine_share(miner, ranked, options.output, world)


# --- FlagEmbedding ----------------------------------------------------------------------------------------------------


def ready_flag(options: argparse.Namespace, task: str) -> Any:
    import faiss

    faiss.omp_set_num_threads(options.threads)
    if task == "vectors":
        return arrays(options)
    import torch
    from FlagEmbedding import FlagAutoModel

    torch.set_num_threads(options.threads)
    return FlagAutoModel


def flag(options: argparse.Namespace, task: str, ready: Any) -> None:
    import faiss

    if task == "vectors":
        queries, passages = ready
        texts, pool = named("query", len(queries)), named("passage", len(passages))
        rows = [{"query": text, "pos": [pool[place]]} for place, text in enumerate(texts)]
    else:
        everything, texts, positives = beir(options.data)
        rows = [{"query": text, "pos": [positive]} for text, positive in zip(texts, positives, strict=True)]
        pool = list(set(everything))
        model = ready.from_finetuned(
            str(options.model),
            model_class="encoder-only-base",
            pooling_method="cls",
            use_fp16=False,
            devices="cpu",
            batch_size=256,
        )
        passages, queries = model.encode(pool), model.encode_queries(texts)
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(np.asarray(passages, np.float32))
    found: list[list[int]] = []
    for start in range(0, len(queries), 64):
        found.extend(index.search(np.asarray(queries[start : start + 64], np.float32), LAST)[1].tolist())
    for row, places in zip(rows, found, strict=True):
        left = [place for place in places[FIRST:LAST] if pool[place] not in row["pos"] and pool[place] != row["query"]]
        if len(left) > NUMBER and not options.whole_window:
            left = random.sample(left, NUMBER)
        row["neg"] = [pool[place] for place in left]
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "rows.jsonl").open("w", encoding="utf8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- sentence-transformers --------------------------------------------------------------------------------------------


class Given:
    """What mine_hard_negatives asks of a model, answered with embeddings that are there already."""

    def __init__(self, queries: np.ndarray, passages: np.ndarray) -> None:
        import torch

        self.queries, self.passages, self.device = queries, passages, torch.device("cpu")

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        assert len(texts) == len(self.queries)
        return self.queries

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        assert len(texts) == len(self.passages)
        return self.passages

    def get_embedding_dimension(self) -> int:
        return self.queries.shape[1]

    def similarity(self, one: Any, other: Any) -> Any:
        import torch

        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        import torch

        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(dim=1)


def ready_sentence(options: argparse.Namespace, task: str) -> Any:
    import datasets
    import torch
    from sentence_transformers import util

    datasets.disable_progress_bars()
    torch.set_num_threads(options.threads)
    if options.faiss:
        import faiss

        faiss.omp_set_num_threads(options.threads)
    return arrays(options) if task == "vectors" else util


def sentence(options: argparse.Namespace, task: str, ready: Any) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.util import mine_hard_negatives

    model: Any
    if task == "vectors":
        model = Given(*ready)
        queries, corpus = named("query", len(ready[0])), named("passage", len(ready[1]))
        positives = corpus[: len(queries)]
    else:
        corpus, queries, positives = beir(options.data)
        encoder = modules.Transformer(str(options.model), max_seq_length=512)
        pooling = modules.Pooling(encoder.get_embedding_dimension(), pooling_mode="cls")
        model = SentenceTransformer(modules=[encoder, pooling, modules.Normalize()], device="cpu")
    mined = mine_hard_negatives(
        Dataset.from_dict({"query": queries, "positive": positives}),
        model,
        corpus=corpus,
        range_min=FIRST,
        range_max=LAST,
        num_negatives=LAST - FIRST if options.whole_window else NUMBER,
        sampling_strategy="top" if options.whole_window else "random",
        output_format="n-tuple",
        use_faiss=options.faiss,
        verbose=False,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    mined.to_json(str(options.output / "rows.jsonl"))


SIDES = {"bgetrain": (ready_ours, ours), "hn_mine": (ready_flag, flag), "sentence-transformers": (ready_sentence, sentence)}

if __name__ == "__main__":
    main()
