"""What is shown of a found passage: which part, which words, how wide."""

import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from bgetrain.logger import passages
from bgetrain.logger.passages import Hit

CHINESE = "機器學習是人工智慧的一個分支，研究如何讓電腦從資料中學習。" * 6 + "这里讨论如何读取文件并解析其中的内容。" * 3


def bold(text, words) -> list[str]:
    found = passages.excerpt(text, words, 200)
    return [found.plain[span.start : span.end] for span in found.spans]


def test_words_match_whatever_their_case_their_end_or_the_identifier_they_stand_in():
    words = passages.asked("How do I parse the CSV files?")
    assert words == ["parse", "csv", "files"]
    assert bold("def readCSVFile(x): parser.parsing = csv_files; filed partial", words) == [
        "CSV", "File", "parser", "parsing", "csv", "files", "filed",
    ]  # fmt: skip
    assert bold("string strict", passages.asked("string")) == ["string"]
    assert passages.asked("to be or not to be") == ["not"]
    assert passages.asked("how to do it") == ["how", "to", "do", "it"]  # nothing else is there


def test_chinese_is_matched_by_letters_in_pairs():
    assert passages.asked("解析文件") == ["解析", "析文", "文件"]
    assert bold("读取文件并解析其中", ["解析", "析文", "文件"]) == ["文件", "解析"]
    assert bold("一只猫", passages.asked("猫")) == ["猫"]


@pytest.mark.parametrize("columns", [24, 54, 114])
@pytest.mark.parametrize("text", ["word " * 300 + "the needle in hay " + "word " * 300, CHINESE], ids=["english", "chinese"])
def test_the_part_shown_holds_the_words_and_fits_its_lines(text, columns):
    words = passages.asked("needle hay 解析文件")
    lines = passages.paragraph(text, words, columns, Console(width=columns))
    assert 1 <= len(lines) <= passages.LINES
    assert all(cell_len(line.plain.rstrip()) <= columns for line in lines)
    shown = "".join(line.plain for line in lines)
    assert shown.startswith("…")
    assert shown.rstrip().endswith("…") or text.endswith(shown[-9:])
    assert "needle in hay" in " ".join(shown.split()) or "解析" in shown


def test_a_text_that_fits_is_shown_whole():
    assert passages.excerpt("kin ban", ["ban"], 60).plain == "kin ban"
    assert passages.excerpt("", ["ban"], 60).plain == ""


@pytest.mark.parametrize("columns", ["60", "120"])
def test_a_page_is_plain_in_a_pipe_and_coloured_on_a_terminal_and_obeys_no_text(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm-256color")
    hits = [Hit(0.5, "/a/very/long/path/" * 9 + "file.py:12", "gust \x1b[31m kin\x07 ban " * 40), Hit(0.25, "b", CHINESE)]
    passages.show("'kin': 2 passages", "kin 解析", hits)
    piped = capsys.readouterr().out
    assert all(each.isprintable() for each in piped.replace("\n", ""))
    assert max(cell_len(line) for line in piped.splitlines()) <= int(columns)
    assert "file.py:12" in piped
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    passages.show("'kin': 2 passages", "kin 解析", hits)
    shown = capsys.readouterr().out
    assert "\x1b[1;33mkin\x1b[0m" in shown
    assert "\x1b[1;33m解析\x1b[0m" in shown
    assert "\x1b[31m" not in shown
