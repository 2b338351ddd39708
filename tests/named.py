"""Rows of the named sets of conf/data in the form in which each is published, and what they are read as."""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from bgetrain.sources import Row


class Case(NamedTuple):
    """Rows of a set as it is published, and what they are read as.

    Attributes:
        files: path in the repository, or name of a local file -> rows.
        read: what they are; texts of pre-training sets.
    """

    files: dict[str, list[Any]]
    read: list[Row] | list[str]


def pair(query: str, *positives: str, neg: tuple[str, ...] = (), prompt: str | None = None) -> Row:
    return Row(query, list(positives), list(neg), prompt)


def passage(number: int) -> dict[str, str]:
    """As Tevatron's sets hold them."""
    return {"docid": str(number), "title": f"t{number}", "text": f"x{number}"}


def triple(name: str, folder: str) -> Case:
    row = {"anchor": "q", "positive": "p", "negative": "n"}
    return Case({f"{folder}/train-00000-of-00001.parquet": [row]}, [pair("q", "p", neg=("n",))])


def flag(file: str) -> Case:
    """FlagEmbedding's rows, as BGE's authors publish them."""
    row = {"query": "q", "pos": ["p", "r"], "neg": ["n"], "prompt": "Given a query, ...", "type": "normal"}
    return Case({file: [row]}, [pair("q", "p", "r", neg=("n",))])


def squad(file: str) -> Case:
    answers = {"text": ["a"], "answer_start": [3]}
    row = {"context": "c", "question": "q", "answers": answers, "id": "1"}
    return Case({file: [row]}, [pair("q", "c")])


def judged(file: str, label: str, positive: int, negative: int, unused: int) -> Case:
    rows = [
        {"sentence1": "a", "sentence2": "b", label: positive, "idx": 0},
        {"sentence1": "a", "sentence2": "c", label: negative, "idx": 1},
        {"sentence1": "a", "sentence2": "d", label: unused, "idx": 2},
        {"sentence1": "e", "sentence2": "f", label: negative, "idx": 3},  # without a positive: left out
    ]
    return Case({file: rows}, [pair("a", "b", neg=("c",))])


WIKI = {"id": "12", "url": "https://en.wikipedia.org/wiki/A", "title": "A", "text": "A is a letter."}
RANKED = {"query_id": "1", "query": "q", "positive_passages": [passage(1)], "negative_passages": [passage(2), passage(3)]}
READ_RANKED = [pair("q", "t1 x1", neg=("t2 x2", "t3 x3"))]
CASES = {
    # pre-training
    "wikipedia": Case({"20231101.en/train-00000-of-00041.parquet": [WIKI]}, ["A is a letter."]),
    "msmarco-corpus": Case({"corpus.jsonl.gz": [passage(1), {"docid": "2", "title": "", "text": "x"}]}, ["t1 x1", "x"]),
    "bookcorpus": Case({"plain_text/train/0000.parquet": [{"text": "a sentence ."}]}, ["a sentence ."]),
    "pile": Case(
        {"train/00.jsonl.zst": [{"text": "x", "meta": {"pile_set_name": "Github"}}], "val.jsonl.zst": [{"text": "y"}]}, ["x"]
    ),
    "wudao": Case({"part-1.jsonl": [{"id": 1, "dataType": "百科", "title": "题", "content": "文"}]}, ["题 文"]),
    "baidu-baike": Case({"a.json": [{"title": "题", "summary": "要", "sections": [{"title": "s", "content": "c"}]}]}, ["题 要"]),
    # English pairs
    "embedding-training-data": Case(
        {"gooaq_pairs.jsonl.gz": [["q", "p"]], "other_pairs.jsonl.gz": [["no", "no"]]}, [pair("q", "p")]
    ),
    "wikipedia-pairs": Case({"20231101.en/train-00000-of-00041.parquet": [WIKI]}, [pair("A", "A is a letter.")]),
    "cc-net": Case(
        {"en_head_0000.json.gz": [{"url": "u", "title": "t", "raw_content": "x", "perplexity": 3.5}]}, [pair("t", "x")]
    ),
    "stackexchange": Case({"cs.stackexchange.com.jsonl.gz": [{"title_body": "t b", "upvoted_answer": "a"}]}, [pair("t b", "a")]),
    "reddit": Case(
        {
            "reddit_title_text_2010.jsonl.gz": [
                {"title": "t", "body": "b", "subreddit": "s"},
                {"title": "u", "body": "", "subreddit": "s"},
            ]
        },
        [pair("t", "b")],
    ),
    "s2orc-title-abstract": Case(
        {"title-abstract-pair/train-00000-of-00062.parquet": [{"title": "t", "abstract": "a"}]}, [pair("t", "a")]
    ),
    "s2orc-title-citation": Case(
        {"title-citation-pair/train-00000-of-00020.parquet": [{"title": "t", "citation": "c"}]}, [pair("t", "c")]
    ),
    # Chinese pairs
    "wudao-pairs": Case({"part-1.jsonl": [{"id": 1, "title": "题", "content": "文"}]}, [pair("题", "文")]),
    "cmrc2018": squad("data/train-00000-of-00001.parquet"),
    "dureader-robust": squad("plain_text/train/0000.parquet"),
    "dureader-retrieval": Case(
        {"train.jsonl.gz": [{**RANKED, "positive_passages": [{"docid": "1", "text": "x"}]}]},
        [pair("q", "x", neg=("t2 x2", "t3 x3"))],
    ),
    "simclue": Case({"train_rank.json": [{"query": "q", "title": "p", "neg_title": "n"}]}, [pair("q", "p", neg=("n",))]),
    "csl": Case(
        {"data/csl.jsonl.gz": [{"doc_id": "csl-1", "title": "t", "abstract": "a", "keywords": ["k"], "category": "c"}]},
        [pair("t", "a")],
    ),
    "amazon-reviews-zh": Case(
        {"train.json": [{"review_id": "zh_1", "stars": 1, "review_body": "b", "review_title": "t", "language": "zh"}]},
        [pair("t", "b")],
    ),
    "wiki-atomic-edits-zh": Case(
        {
            f"chinese_{kind}/train/0000.parquet": [{"id": 1, "base_sentence": "b", "phrase": "f", "edited_sentence": kind}]
            for kind in ("deletions", "insertions")
        },
        [pair("b", "deletions"), pair("b", "insertions")],
    ),
    "mlqa-zh": squad("mlqa-translate-train.zh/train/0000.parquet"),
    "xlsum-zh": Case(
        {"chinese_simplified/train/0000.parquet": [{"id": "1", "url": "u", "title": "t", "summary": "s", "text": "x"}]},
        [pair("t", "s", "x")],
    ),
    # labelled, English
    "msmarco": Case({"train.jsonl.gz": [RANKED], "dev.jsonl.gz": [{"query_id": "2"}]}, READ_RANKED),
    "nq": Case({"nq-train.jsonl.gz": [{**RANKED, "answers": ["a"]}], "nq-test.jsonl.gz": [{"query": "no"}]}, READ_RANKED),
    "hotpotqa": triple("hotpotqa", "triplet"),
    "fever": flag("en/FEVER/fever.jsonl"),
    "quora": triple("quora-duplicates", "triplet"),
    "stackexchange-duplicates": Case(
        {"title-title-pair/train-00000-of-00001.parquet": [{"title1": "a", "title2": "b"}]}, [pair("a", "b")]
    ),
    "s2orc-citation": Case(
        {"abstract-citation-pair/train-00000-of-00100.parquet": [{"abstract": "a", "citation": "c"}]}, [pair("a", "c")]
    ),
    "nli": triple("all-nli", "triplet"),
    "medi": Case(
        {
            "data/train-00000-of-00006.parquet": [
                {
                    "query": "q",
                    "pos": "p",
                    "neg": "n",
                    "task_name": "t",
                    "query_instruct": "Represent it: ",
                    "pos_instruct": "i",
                    "neg_instruct": "j",
                }
            ]
        },
        [pair("q", "p", neg=("n",), prompt="Represent it: ")],
    ),
    # labelled, Chinese
    "t2ranking": flag("zh/T2Ranking/t2ranking.jsonl"),
    "mmarco-zh": flag("zh/mMARCO_zh/mmarco.jsonl"),
    "cmedqa2": flag("zh/cMedQAv2/cmedqa2.jsonl"),
    "multi-cpr": flag("zh/Multi_CPR/ecom.jsonl"),
    "nli-zh": judged("data/train-00000-of-00001.parquet", "score", 1, 0, 7),
    "ocnli": judged("ocnli/train-00000-of-00001.parquet", "label", 1, 2, 0),
    "cmnli": judged("cmnli/train-00000-of-00001.parquet", "label", 1, 2, 0),
}


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    if path.suffix == ".zst":
        text = pyarrow.compress(text, "zstd", asbytes=True)
    path.write_bytes(text)
