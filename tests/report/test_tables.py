"""Tables of results: each figure once, with its interval; what is left out is told."""

from pages import made, shown

from bgetrain.report import tables

METRICS = {"ndcg@10": 0.4321, "recall@100": 0.9}
ENDS = {"ndcg@10": [0.4012, 0.4633]}
ONE = {"metrics": METRICS, "intervals": ENDS, "queries": 7}


def cells(node: dict) -> dict[str, list[str]]:
    return {row[0]: row[1:] for table in tables.of(node, "Figures") for row in table.rows}


def test_a_figure_has_its_interval_beside_it_and_the_only_set_s_figures_are_not_said_twice():
    found = tables.of({**ONE, "sets": {"nq": ONE}}, "Figures")
    rows = [row for table in found for row in table.rows]
    assert rows == [["queries", "7"], ["ndcg@10", "0.4321 (0.4012 to 0.4633)"], ["recall@100", "0.9000"]]


def test_intervals_of_several_sets_stand_beside_the_figures_of_each():
    other = {"metrics": {"ndcg@10": 0.25}, "intervals": {"ndcg@10": [0.2, 0.3]}, "queries": 3}
    text = str(tables.of({**ONE, "sets": {"nq": ONE, "fiqa": other}}, "Figures"))
    assert text.count("0.4321 (0.4012 to 0.4633)") == 2
    assert "0.2500 (0.2000 to 0.3000)" in text


def test_intervals_without_figures_are_shown_alone():
    assert cells({"intervals": ENDS})["ndcg@10"] == ["0.4012 to 0.4633"]


def test_columns_that_are_left_out_are_counted(tmp_path):
    rows = [{f"key{number}": number for number in range(tables.COLUMNS + 3)}]
    (found,) = tables.of({"listed": rows}, "")
    assert (len(found.columns), found.columns_left_out) == (tables.COLUMNS, 3)
    folder = made(tmp_path / "run", ["stage=evaluate", "data=beir", "data.path=x"], [], {"listed": rows, **ONE})
    text = shown(folder).text
    assert "and 3 more columns" in text
    assert "0.4321 (0.4012 to 0.4633)" in text
