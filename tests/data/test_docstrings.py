"""One source file to pairs: which definitions, which sentence, which code."""

import warnings

import pytest

from bgetrain.data.docstrings import Pair, digest, dotted, first_sentence, read_chunk

SHAPES = '''
class Circle(Shape):
    """A round shape with a radius."""

    sides = 0

    @property
    def area(self):
        """Computes the surface that the circle covers.

        A second paragraph.
        """
        # pi r^2

        return 3 * self.radius**2

    def label(self): "Short text shown beside it"; return 1

    def scale(self):
        """Grows the circle by a factor."""
        raise NotImplementedError("later")


if True:

    async def draw(
        shape,
    ):
        """
        Paints a shape on
        the given canvas. Then returns.
        """

        def inner():
            """Finds the nearest free pixel."""
            return 1

        return inner()
'''


def pairs_of(tmp_path, content: str | bytes, max_characters: int = 1000) -> dict[str, Pair]:
    path = tmp_path / "shapes.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found, num_skipped = read_chunk([("shapes/__init__.py", str(path))], max_characters)
    assert num_skipped == 0
    return {pair.title: pair for pair in found}


def test_definitions_become_pairs_of_first_sentence_and_code_without_docstrings(tmp_path):
    found = pairs_of(tmp_path, SHAPES)
    assert {title: pair.text for title, pair in found.items()} == {
        "shapes.Circle": "class Circle(Shape):\n    sides = 0\n    @property\n    def area(self):\n        # pi r^2\n"
        '        return 3 * self.radius**2\n    def label(self): "Short text shown beside it"; return 1\n'
        '    def scale(self):\n        raise NotImplementedError("later")',
        "shapes.Circle.area": "def area(self):\n    # pi r^2\n    return 3 * self.radius**2",
        "shapes.draw": "async def draw(\n    shape,\n):\n    def inner():\n        return 1\n    return inner()",
        "shapes.draw.inner": "def inner():\n    return 1",
    }
    assert {title: pair.sentence for title, pair in found.items()} == {
        "shapes.Circle": "A round shape with a radius",
        "shapes.Circle.area": "Computes the surface that the circle covers",
        "shapes.draw": "Paints a shape on the given canvas",
        "shapes.draw.inner": "Finds the nearest free pixel",
    }
    assert found["shapes.Circle.area"].docstring.endswith("covers.\n\nA second paragraph.")
    assert found["shapes.Circle.area"].line == 8


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the :class:`~a.b.Thing` of\n   a ``name``.  More.", "Return the a.b.Thing of a name"),
        ("Reads e.g. Latin text from a file.", "Reads e.g. Latin text from a file"),
        ("Opens the file by name\n:param name: its name", "Opens the file by name"),
        ("Opens the file by name\n    Args:\n        name: its name", "Opens the file by name"),
        ("Is this number even or odd?", "Is this number even or odd?"),
        ("Too few words.", None),
        (":param name: the name of the file to be opened", None),
        (".. note:: the name of the file", None),
        (">>> print what this function gives", None),
        ("Deprecated since 3.2, use the other function.", None),
        ("Sums up all rows. Deprecated since 3.2.", "Sums up all rows"),
        ("find(text, start) -> first place of the text", None),
        ("size (int, optional, defaults to two): width of the layer", None),
        ("See the docstring of the other class.", None),
        ("Returns one of the following:\n  - a\n  - b", None),
        ("x**2 + y**2 == z**2 and w**2 == v", None),
    ],
)
def test_first_sentence_is_plain_words_or_nothing(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_text_and_docstring_are_cut_but_the_sentence_is_whole(tmp_path):
    pair = pairs_of(tmp_path, SHAPES, max_characters=20)["shapes.Circle.area"]
    assert (len(pair.docstring), pair.text) == (20, "def area(self):\n    ".rstrip())
    assert pair.sentence == "Computes the surface that the circle covers"


def test_keys_do_not_see_white_space_and_case(tmp_path):
    one = 'def f(x):\n    """Adds one to a number."""\n    return x+1\n'
    two = 'def g(x):\n    """ADDS one\n    to a number"""\n    return  x + 1\n'
    keys = [pair.keys for pair in pairs_of(tmp_path, one + two).values()]
    assert keys[0][:2] == keys[1][:2]  # sentence and body
    assert keys[0][2] != keys[1][2]  # the text has the name
    assert keys[0][0] == digest("addsonetoanumber")


def test_half_characters_written_as_escapes_become_question_marks(tmp_path):
    found = pairs_of(tmp_path, 'def half(x):\n    """Writes half a \\ud800 character."""\n    return "half"\n')
    assert found["shapes.half"].sentence == "Writes half a ? character"


def test_unusual_line_ends_do_not_shift_the_code(tmp_path):
    code = 'x = "\u2028"\r\n\x0c\r\ndef feed(x):\r\n    """Feeds a sheet to the printer."""\r\n    return x\r\n'
    assert pairs_of(tmp_path, code)["shapes.feed"].text == "def feed(x):\n    return x"


def test_broken_files_are_counted_and_warn_of_nothing(tmp_path):
    broken = {"syntax": b'"""Text"""\nprint "two"\n', "coding": b'"""Text"""\n\n\n# \xff\n', "null": b'"""Text"""\n\0\n'}
    for name, content in broken.items():
        (tmp_path / f"{name}.py").write_bytes(content)
    (tmp_path / "latin.py").write_bytes(
        b'# coding: latin-1\ndef caf\xe9(x):\n    """Brews \xe9 coffee for all guests."""\n    return x is 1, "\\d"\n'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sources = [(f"{name}.py", str(tmp_path / f"{name}.py")) for name in (*broken, "latin", "absent")]
        found, num_skipped = read_chunk(sources, 1000)
    assert num_skipped == 4
    assert [(pair.title, pair.sentence) for pair in found] == [("latin.caf\xe9", "Brews \xe9 coffee for all guests")]


def test_paths_become_dotted_names():
    assert [dotted(path) for path in ("a.py", "a/b.py", "a/b/__init__.py")] == ["a", "a.b", "a.b"]
