"""Texts of evaluation sets, to be found among those that a model is trained on."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bgetrain.data.check_near import Sample, Signed, signed
from bgetrain.data.check_places import Places
from bgetrain.data.check_rows import digest, normalised
from bgetrain.data.corpus import read_qrels
from bgetrain.data.files import either, existing, lines


class Known(NamedTuple):
    """Texts by the digests of their normalised form.

    Attributes:
        keys: uint64 [N], sorted, each once.
        places: uint64 [N], where each stands first.
        relevant: bool [N], whether a query of the evaluation has it as relevant.
    """

    keys: np.ndarray
    places: np.ndarray
    relevant: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int64 [M], the number of each of `keys`, -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def save(self, folder: Path, name: str) -> None:
        for field, values in self._asdict().items():
            np.save(folder / f"{name}-{field}.npy", values)

    @classmethod
    def load(cls, folder: Path, name: str) -> "Known":
        """Maps what `save` wrote: workers share its memory."""
        return cls(*(np.load(folder / f"{name}-{field}.npy", mmap_mode="r") for field in cls._fields))


class Evaluation(NamedTuple):
    """The texts of the evaluation sets.

    Attributes:
        places: of their files.
        queries: those that the qrels name.
        passages: all of the corpora.
        near_queries: signatures of a sample of the queries, by digest.
        near_passages: the same of the relevant passages.
        splits: what was read, for the report.
    """

    places: Places
    queries: Known
    passages: Known
    near_queries: dict[int, Signed]
    near_passages: dict[int, Signed]
    splits: list[str]


class Gathered:
    """Digests and places as they are read, 17 bytes a text."""

    def __init__(self) -> None:
        self.keys, self.places, self.relevant = array("Q"), array("Q"), array("B")

    def add(self, key: int, place: int, relevant: bool) -> None:
        self.keys.append(key)
        self.places.append(place)
        self.relevant.append(relevant)

    def known(self) -> Known:
        keys, places = np.array(self.keys, np.uint64), np.array(self.places, np.uint64)
        relevant = np.array(self.relevant, bool)
        order = np.lexsort((places, ~relevant, keys))  # of equal texts one that is relevant stands for all
        first = np.unique(keys[order], return_index=True)[1]
        return Known(keys[order][first], places[order][first], relevant[order][first])


def splits_of(folder: Path) -> list[str]:
    """The splits that are evaluated: all of `qrels/` but `train`, unless there is no other."""
    found = sorted(path.stem for path in folder.glob("qrels/*.tsv"))
    return [name for name in found if name != "train"] or found


def read_evaluation(folders: Sequence[str], near_rows: int) -> Evaluation:
    """Reads evaluation sets in BEIR layout.

    Args:
        folders: each with `corpus.jsonl[.gz]`, `queries.jsonl[.gz]` and `qrels/SPLIT.tsv`.
        near_rows: most queries and most relevant passages whose signatures are kept; 0: none.

    Raises:
        ValueError: a folder or a file is missing or cannot be read; names the place.
    """
    roots = [existing(folder, "check.leakage") for folder in folders]
    files = [[either(root, "queries.jsonl"), either(root, "corpus.jsonl")] for root in roots]
    places = Places([str(path) for pair in files for path in pair])
    queries, passages = Gathered(), Gathered()
    near = (Sample(near_rows), Sample(near_rows))
    read = []
    for root, (query_file, corpus_file) in zip(roots, files, strict=True):
        asked: set[str] = set()
        relevant: set[str] = set()
        if not splits_of(root):
            raise ValueError(f"check.leakage: {root} has no qrels/SPLIT.tsv: give folders in BEIR layout")
        for split in splits_of(root):
            qrels = read_qrels(root, split)
            asked.update(qrels)
            relevant.update(name for found, _ in qrels.values() for name in found)
            read.append(f"{root}/qrels/{split}.tsv")
        for path, chosen, into, sample in ((query_file, asked, queries, near[0]), (corpus_file, relevant, passages, near[1])):
            for value, where in lines(path):
                text = f"{value.get('title') or ''} {value.get('text') or ''}".strip()
                wanted = str(value.get("_id")) in chosen
                if text and (wanted or path is corpus_file):
                    into.add(digest(normalised(text)), places.pack(where), wanted)
                if text and wanted and near_rows:
                    sample.add(text, digest(text), places.pack(where))
    return Evaluation(places, queries.known(), passages.known(), signed(near[0]), signed(near[1]), read)
