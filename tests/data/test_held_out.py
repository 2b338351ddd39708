"""Texts held out of training: spread evenly, each text in one of the two parts, and no list of them."""

import pickle

import pytest
from documents import Listed

from bgetrain.data.held_out import Batches, held_out


class Counted:
    """Texts of which only the number is known."""

    def __init__(self, count):
        self.count, self.notes = count, ["odd"]

    def __len__(self):
        return self.count

    def take(self, indices):
        return [str(index) for index in indices]


def test_each_text_is_in_one_part_in_its_order_and_the_held_are_spread_evenly():
    for total in range(1, 60):
        for count in range((total + 1) // 2):
            rest, held = held_out(Counted(total), count, what="texts")
            ours, theirs = ([int(each) for each in view.take(range(len(view)))] for view in (rest, held))
            assert (len(ours), len(theirs)) == (total - count, count)
            assert ours == sorted(ours)
            assert sorted(ours + theirs) == list(range(total))
            # one in each of `count` equal parts
            assert [number * count // total for number in theirs] == list(range(count))


def test_no_list_is_kept_of_a_source_larger_than_memory():
    rest, held = held_out(Counted(10**12), 10**11, what="texts")
    assert len(pickle.dumps((rest, held))) < 1000
    assert held.take([0, 10**11 - 1]) == ["5", str(10**12 - 5)]
    assert rest.take([0, 4, 5, 10**12 - 10**11 - 1]) == ["0", "4", "6", str(10**12 - 1)]


def test_views_are_texts_with_their_notes_and_bounds():
    rest, held = pickle.loads(pickle.dumps(held_out(Counted(9), 2, what="texts")))
    assert rest.notes == held.notes == ["odd"]
    assert held_out(Listed("abc"), 1, what="texts")[0].notes == []
    for view in (rest, held):
        for wrong in (-1, len(view)):
            with pytest.raises(IndexError, match=f"item {wrong} of {len(view)}"):
                view.take([wrong])


@pytest.mark.parametrize(("total", "count", "most"), [(10, 5, 4), (9, 5, 4), (0, 0, 0), (2, 1, 0)])
def test_half_of_the_texts_or_more_are_refused(total, count, most):
    with pytest.raises(ValueError, match=f"{count} texts cannot be held out of {total}: .* half of them, {most} at most"):
        held_out(Counted(total), count, what="texts")


def test_batches_hold_each_held_row_once_and_are_no_smaller_than_the_trainings_unless_they_are_all():
    for count in range(1, 40):
        places = [(2 * number + 1) * 100 // (2 * count) for number in range(count)]
        for batch in range(1, 12):
            batches = Batches(100, count, batch, 7)
            sizes = [batches.size(step) for step in range(1, len(batches) + 1)]
            drawn = [batches.draw(step, range(size)).rows.tolist() for step, size in enumerate(sizes, 1)]
            assert sorted(row for rows in drawn for row in rows) == places
            assert min(sizes) >= min(batch, count)
            assert max(sizes) <= max(2 * batch - 1, min(sizes) + 1)
            halves = [batches.draw(1, part).rows.tolist() for part in (range(sizes[0] // 2), range(sizes[0] // 2, sizes[0]))]
            assert halves[0] + halves[1] == drawn[0]
    assert Batches(100, 30, 5, 7).draw(1, range(5)).rows.tolist() != Batches(100, 30, 5, 8).draw(1, range(5)).rows.tolist()


def test_a_held_row_is_told_by_where_it_stands_in_the_source():
    class Rows(Counted):
        def where(self, index):
            return f"file:{index + 1}"

    rest, held = held_out(Rows(10), 2, what="rows")
    assert [held.where(0), rest.where(0), rest.where(2)] == ["file:3", "file:1", "file:4"]
