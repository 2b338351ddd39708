"""Places of rows as whole numbers, which sort as the rows stand in their files and take 8 bytes."""

import bisect
import re
import zlib
from collections.abc import Sequence

WHERE = re.compile(r"(.*)(:|, row )(\d+)", re.S)
LINES = 40  # bits of a line's number: 10^12 lines
Detail = str | int | tuple[int, float]  # of a finding: words | the place of an equal text | of a close one, how close
STRANGE = 1 << 22  # files that the source does not list come after those that it does


class Places:
    """`FILE:LINE` to number and back.

    Args:
        files: of the source, whose order the numbers follow.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.numbers = {file: number for number, file in enumerate(files)}
        self.heads: dict[int, str] = {}  # number of a file -> what stands before the line's number

    def pack(self, where: str) -> int:
        """The number of `FILE:LINE`, `FILE, row N` or `FILE`, the same for every `Places` of these files."""
        found = WHERE.fullmatch(where)
        file, between, line = found.groups() if found else (where, "", "0")
        number = self.numbers.get(file)
        if number is None:  # by its name, so that each worker gives it the same number
            number = self.numbers[file] = STRANGE | zlib.crc32(file.encode()) % STRANGE
        if between or number not in self.heads:
            self.heads[number] = file + between
        return number << LINES | int(line)

    def name(self, place: int) -> str:
        """`FILE:LINE` again."""
        head, line = self.heads[place >> LINES], place & ((1 << LINES) - 1)
        return f"{head}{line}" if line else head

    def join(self, heads: dict[int, str]) -> None:
        """Takes over what another worker knows of the files."""
        for number, head in heads.items():
            if len(head) > len(self.heads.get(number, "")):
                self.heads[number] = head


class First:
    """A count of findings and the first of them.

    Args:
        most: places kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.kept: list[tuple[int, Detail]] = []  # by place

    def add(self, place: int, detail: Detail) -> None:
        self.count += 1
        self.keep(place, detail)

    def keep(self, place: int, detail: Detail) -> None:
        if len(self.kept) < self.most or place < self.kept[-1][0]:
            bisect.insort(self.kept, (place, detail))
            del self.kept[self.most :]

    def join(self, other: "First") -> None:
        self.count += other.count
        for place, detail in other.kept:
            self.keep(place, detail)
