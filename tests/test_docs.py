"""The pages: their links lead somewhere, their commands compose, their keys exist, and the reference has all that conf/ has."""

import ast
import importlib.util
import re
import shlex
from dataclasses import fields
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from bgetrain import config, overrides, planning, recipe, recipe_file, selection

ROOT = selection.PACKAGE.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)
INDENTED = re.compile(r"(?:\A|\n\n)((?:(?: {4}.*)?\n)+)")
FILES = (".py", ".md", ".json", ".jsonl", ".html", ".yaml")
BESIDE = ("404.html", "results.html")  # which are no pages to read: figures that a command has collected
FLAGS = ("--help", "--cfg", "job", "-m")
SWITCHES = {"recipe", "from", "dry_run"}  # keys of the command line that are in no YAML


def loaded(name: str):
    found = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> str:
    return loaded("reference").page()


def prose(text: str) -> str:
    """Without blocks of code."""
    return INDENTED.sub("\n\n", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Of all headings, as both GitHub and mkdocs make them where they agree, which is held against the links."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.M):
        named = re.search(r"\{#([\w-]+)\}$", heading)
        plain = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        github, mkdocs = plain.replace(" ", "-"), re.sub(r"[-\s]+", "-", plain)
        found |= {named[1]} if named else {github} & {mkdocs}
    return found


def faults_of_links(path: Path, text: str, made: dict[str, str]) -> list[str]:
    """What is wrong with the links of a page, `made` being the pages that are in no file."""
    faults = []
    for target in re.findall(r"\]\(([^)]*)\)", re.sub(r"`[^`]*`", "", prose(text))):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            place = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc)
            faults += [] if parts.scheme == "https" and place and not re.search(r"\s", target) else [target]
            continue
        file = path.parent / parts.path if parts.path else path
        there = text if not parts.path else made.get(parts.path) or (file.read_text("utf8") if file.is_file() else None)
        if there is None or (parts.fragment and parts.fragment not in anchors(there)):
            faults.append(target)
    return faults


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_page_and_a_heading_that_are_there(path, reference):
    assert faults_of_links(path, path.read_text("utf8"), {"reference.md": reference}) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = "[a](b.md) [b](#there) [c](#Nowhere) [d](http://x.org) [e](https://x) [f](https://x.org/1)\n`[g](h.md)`\n"
    faults = faults_of_links(tmp_path / "page.md", f"{page}\n    [i](j.md)\n\n# There\n", {})
    assert faults == ["b.md", "#Nowhere", "http://x.org", "https://x"]


def test_pages_that_the_source_names_are_there():
    named = set()
    for folder in ("bgetrain", "conf", "recipes", "benchmarks", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".md", ".sh", ".sbatch") and path != Path(__file__):
                named |= set(re.findall(r"\bdocs/[\w-]+\.md", path.read_text("utf8")))
    named.discard("docs/results.md")  # which scripts/results.py makes of runs
    assert [each for each in sorted(named) if not (ROOT / each).is_file()] == []
    assert "docs/how.md" in named


def blocks(text: str) -> str:
    """The lines of all blocks of code, those that go on behind a backslash joined."""
    found = [match[0] for match in FENCE.finditer(text)] + INDENTED.findall(FENCE.sub("", text))
    return re.sub(r"\\\n\s*", "", "\n".join(found))


def commands(text: str) -> list[list[str]]:
    """The arguments of every `bgetrain ...` in blocks of code and in the running text."""
    lines = [line.strip() for line in blocks(text).splitlines()]
    inline = [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose(text))]
    return [shlex.split(line, comments=True)[1:] for line in [*lines, *inline] if line.startswith("bgetrain ")]


@cache
def composed(arguments: tuple[str, ...]) -> None:
    """Checks a command line as the program does before anything is started; of recipes and sweeps the first that runs."""
    rest = [each for each in arguments if each not in FLAGS]
    if "-m" in arguments:
        jobs = overrides.jobs(rest, {group: selection.options(group) for group in selection.groups()})
        assert len(jobs) > 1
        config.compose(jobs[0])
    elif "stage=plan" in rest and not any(each.startswith("recipe=") for each in rest):
        own = [each for each in rest if each == "stage=plan" or each.startswith("plan.")]
        planning.steps_of(config.compose(own)["plan"], [each for each in rest if each not in own])
    elif any(each.startswith("recipe=") for each in rest):
        own, extras = recipe.split([each for each in rest if each != "stage=plan" and not each.startswith("plan.")])
        steps = recipe_file.load(own["recipe"])  # tests/test_recipes.py composes all of them
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe_file, "load", lambda name: dict([next(iter(steps.items()))]))
            recipe.plan(own["recipe"], recipe.folder_of(own), extras)
    elif any(each.startswith("stage=") for each in rest):
        config.compose([each for each in rest if not each.startswith("dry_run=")], missing=len(rest) < len(arguments))
    else:
        assert arguments == ("--help",)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_shown_composes(path, tmp_path, monkeypatch):
    text = path.read_text("utf8")
    monkeypatch.chdir(tmp_path)
    for block in INDENTED.findall(text):  # a recipe that a page shows is there as mine.yaml
        if "like:" in block:
            (tmp_path / "mine.yaml").write_text(re.sub(r"^ {4}", "", block, flags=re.M))
            recipe_file.load("mine.yaml")
    faults = []
    for arguments in commands(text):
        try:
            composed(tuple(arguments))
        except ValueError as error:
            faults.append(f"bgetrain {shlex.join(arguments)}: {error}")
    assert faults == []


def test_commands_are_found_in_blocks_and_in_running_text():
    text = "Type `bgetrain stage=status`:\n\n    # first\n    bgetrain stage=mine \\\n        'data.files=[a b]'  # why\n\n"
    assert commands(f"{text}```\nbgetrain --help\n```\n") == [["--help"], ["stage=mine", "data.files=[a b]"], ["stage=status"]]


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every key that some YAML has, with its group before it."""
    found = {field.name for field in fields(config.Config)} | SWITCHES
    python = ROOT / "bgetrain/embedder.py"  # whose arguments are written in the same way
    nodes = ast.walk(ast.parse(python.read_text("utf8"))) if python.is_file() else []
    found |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for path in selection.CONF.rglob("*.yaml"):
        group = "" if path.parent.name in ("stage", "conf") else f"{path.parent.name}."
        node = yaml.safe_load(path.read_text("utf8"))
        found |= {f"{group}{key}" for key, _ in selection.flatten(node) if group or key != "defaults"}
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_key_and_option_named_in_running_text_exists(path, known):
    faults = []
    for span in re.findall(r"`([^`]+)`", prose(path.read_text("utf8"))):
        for word in re.findall(r"(?:^|[\s'])([a-z_]+(?:\.[a-z_0-9]+)*(?:=[\w|-]*)?)(?![\w.(/:*$])", span):
            key, equals, value = word.partition("=")
            if "." in key and not key.endswith(FILES) and key.partition(".")[0] in known:
                inside = any(key.startswith(f"{mapping}.") for mapping in ("data.sources", "data.columns", "plan.devices"))
                faults += [] if key in known or inside else [word]
            elif equals and key in selection.groups():
                options = {*selection.options(key), "NAME", ""}
                faults += [each for each in value.split("|") if each not in options]
            elif equals and key not in known:
                faults.append(word)
    assert faults == []


@pytest.mark.parametrize("path", sorted(selection.CONF.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_reference_has_every_key_with_its_value_and_its_comment(path, reference):
    group = path.parent.name if path.parent != selection.CONF else ""
    start = f"{{#{group}-{path.stem}}}\n" if group else "## Keys of every stage\n"
    assert start in reference
    section = re.split(r"^##", reference.partition(start)[2], maxsplit=1, flags=re.M)[0]
    plain = re.sub(r"\\([\\`*_\[\]#|])", r"\1", section).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    for line in path.read_text("utf8").splitlines():
        key, comment = (re.match(r"\s*(\w[\w-]*):", line) or ["", ""])[1], re.search(r"(?<=\s)# (?!@)(.*)$", line)
        if key and key not in ("defaults", "stage", "_target_", "name", "answers") and "/" not in line.partition(":")[0]:
            assert re.search(rf"\b{re.escape(key)}\b", plain), key
        if key and comment and key not in ("defaults", "answers"):
            assert comment[1] in plain, line
    first = re.search(r"^# (?!@)(.*)$", path.read_text("utf8"), re.M)
    assert not group or first[1].strip() in plain


def test_the_reference_says_what_a_key_may_be(reference):
    shown = dict(re.findall(r"^`([\w.]+)` = .*\n:   \*(.*?)\*", reference.partition("{#stage-finetune}")[2], re.M))
    assert shown["global_batch"] == "a whole number above 0."
    assert shown["loss.temperature"] == "a number above 0."
    assert shown["loss.negatives"] == "group or rank or world."


class Resources(HTMLParser):
    """What a page of the site loads and where it leads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe") or (tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon")):
            self.loads += [given[key] for key in ("src", "href") if given.get(key)]
        elif tag == "a" and given.get("href"):
            self.leads.append(given["href"])


def test_the_site_is_five_pages_that_load_nothing_from_elsewhere(tmp_path, monkeypatch):
    pytest.importorskip("material")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config("mkdocs.yml", site_dir=str(tmp_path)))  # strict: a warning of a link or anchor is an exception
    pages = {path.name: Resources(path.read_text("utf8")) for path in tmp_path.glob("*.html") if path.name not in BESIDE}
    assert sorted(pages) == ["data.html", "how.html", "index.html", "recipes.html", "reference.html"]
    for name, page in pages.items():
        for target in [*page.loads, *(each for each in page.leads if not urlsplit(each).scheme)]:
            assert not urlsplit(target).netloc
            assert (tmp_path / urlsplit(target).path).exists(), f"{name}: {target}"
    assert '<svg class="step"' in (tmp_path / "how.html").read_text("utf8")
    assert "var __index = {" in (tmp_path / "search/search_index.js").read_text("utf8")
