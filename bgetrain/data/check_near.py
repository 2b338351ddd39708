"""Texts that are almost the same, by MinHash (Broder 1997) and locality-sensitive hashing of `datasketch`.

Two texts are close where the sets of their runs of five characters, normalised, have a Jaccard similarity at or above the
threshold, as 128 hashes estimate it (standard error at most 0.045).
"""

import heapq
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from bgetrain.data.check_rows import digest, normalised

HASHES = 128
SHINGLE = 5  # characters; Lee et al. 2022 (arXiv:2107.06499) take words, which Chinese text does not show
BLOCK = 4096  # shingles hashed at a time: 2 MB
RECALL = (0.1, 0.9)  # weights of false positives and negatives: what is found is held against the threshold again


class Text(NamedTuple):
    """One of the texts compared."""

    key: int
    place: int
    text: str


class Sample:
    """The `most` texts of the least keys, each text once at its first place: the same for any division of the rows.

    The key is that of the two words whose hashes are least, so that texts which are almost the same are mostly drawn
    together, as they would not be by chance.

    Args:
        most: texts kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self.full = most, False
        self.kept: dict[int, Text] = {}  # by the text's digest
        self.order: list[tuple[int, int]] = []  # a heap of (-key, -digest): the greatest first

    def add(self, text: str, number: int, place: int) -> None:
        """Considers a text.

        Args:
            text: as it is.
            number: its digest.
            place: where it stands.
        """
        known = self.kept.get(number)
        if known:
            if place < known.place:
                self.kept[number] = known._replace(place=place)
            return
        found = Text(sampling_key(text), place, text)
        if len(self.kept) >= self.most:
            self.full = True
            greatest = heapq.heappushpop(self.order, (-found.key, -number))
            if greatest == (-found.key, -number):
                return
            del self.kept[-greatest[1]]
        else:
            heapq.heappush(self.order, (-found.key, -number))
        self.kept[number] = found


def sampling_key(text: str) -> int:
    """64 bits that two texts share where their two words of least hash are the same."""
    plain = normalised(text)
    words = plain.split(" ")
    if len(plain) > 20 * len(words):  # a script without blanks
        words = [plain[start : start + 2] for start in range(len(plain) - 1)]
    least = sorted({zlib.crc32(word.encode("utf8", "surrogatepass")) for word in words})[:2]
    return int.from_bytes(blake2b(repr(least).encode(), digest_size=8).digest(), "little")


def shingles(text: str) -> np.ndarray:
    """uint32 [S], hashes of the runs of `SHINGLE` characters of a normalised text; one for a shorter text."""
    plain = normalised(text)
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(codes) < SHINGLE:
        return np.array([zlib.crc32(plain.encode("utf8", "surrogatepass"))], np.uint32)
    mixed = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for place in range(SHINGLE):  # a polynomial over uint64, which wraps; its upper half is the hash
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[place : place + len(mixed)] + np.uint64(1)
    return np.unique(((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)).astype(np.uint32))


@cache
def empty() -> Any:
    """The MinHash of no text, to be copied: drawing the 128 hash functions takes as long as hashing a text."""
    from datasketch import MinHash

    return MinHash(HASHES, seed=1, hashfunc=int)


def signature(text: str) -> Any:
    """datasketch's LeanMinHash of a text, 512 bytes."""
    from datasketch import LeanMinHash

    made = empty().copy()
    found = shingles(text)
    for start in range(0, len(found), BLOCK):
        made.update_batch(found[start : start + BLOCK].tolist())
    return LeanMinHash(made)


class Signed(NamedTuple):
    """A text by its signature; `plain` is the digest of it normalised."""

    key: int
    place: int
    plain: int
    signature: Any


def signed(sample: Sample) -> dict[int, Signed]:
    """The signatures of a sample, by the texts' digests."""
    return {
        number: Signed(each.key, each.place, digest(normalised(each.text)), signature(each.text))
        for number, each in sample.kept.items()
    }


def joined(samples: Sequence[Mapping[int, Signed]], most: int) -> dict[int, Signed]:
    """The sample that one worker would have drawn of all rows."""
    found: dict[int, Signed] = {}
    for sample in samples:
        for number, each in sample.items():
            if number not in found or each.place < found[number].place:
                found[number] = each
    least = heapq.nsmallest(most, found, key=lambda number: (found[number].key, number))
    return {number: found[number] for number in least}


class Pair(NamedTuple):
    """A text and one that it is close to, with their estimated Jaccard similarity."""

    place: int
    other: int
    similarity: float


def index(threshold: float) -> Any:
    from datasketch import MinHashLSH

    return MinHashLSH(threshold=threshold, num_perm=HASHES, weights=RECALL)


def close_pairs(sample: Mapping[int, Signed], threshold: float) -> list[Pair]:
    """Each text that is close to an earlier one, with the first of those."""
    known, found = index(threshold), []
    earlier: dict[int, Signed] = {}
    for number, each in sorted(sample.items(), key=lambda item: (item[1].place, item[0])):
        near = [(earlier[name].place, each.signature.jaccard(earlier[name].signature)) for name in known.query(each.signature)]
        near = sorted(pair for pair in near if pair[1] >= threshold)
        if near:
            found.append(Pair(each.place, *near[0]))
        earlier[number] = each
        known.insert(number, each.signature, check_duplication=False)
    return found


def close_to(sample: Mapping[int, Signed], others: Mapping[int, Signed], threshold: float) -> list[Pair]:
    """Each text of `sample` that is close to one of `others`, and the nearest of those; equal ones are left out."""
    known, found = index(threshold), []
    plain = {other.plain for other in others.values()}
    for name, other in others.items():
        known.insert(name, other.signature, check_duplication=False)
    for _, each in sorted(sample.items(), key=lambda item: (item[1].place, item[0])):
        near = [(each.signature.jaccard(others[name].signature), -others[name].place) for name in known.query(each.signature)]
        if near and max(near)[0] >= threshold and each.plain not in plain:
            found.append(Pair(each.place, -max(near)[1], max(near)[0]))
    return found
