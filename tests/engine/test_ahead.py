"""Batches made ahead of time: the same in a thread and in processes, whose end and errors are the loop's own."""

import multiprocessing
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from plans import single

from bgetrain.data.groups import Feed, group_batch
from bgetrain.data.tokenize import train_wordpiece
from bgetrain.engine.ahead import ahead
from bgetrain.sources import Row


class Rows:
    """Made on the way; needs nothing of the process that made it."""

    def __len__(self):
        return 50

    def take(self, indices):
        return [Row(f"q{n} " + "word " * (n % 7), [f"p{n}", f"r{n}"], [f"n{n}x{m}" for m in range(5)], None) for n in indices]

    def where(self, index):
        return f"made:{index}"


def test_processes_make_the_batches_of_the_thread_in_their_order():
    tokenizer = train_wordpiece([f"q{n} p{n} r{n} n{n}x{m} word" for n in range(50) for m in range(5)], 400, 32)
    feed = Feed("test", Rows(), 16, 16, "", "random", 3, True, False, False)
    batch_at = partial(group_batch, [feed], tokenizer, None, single(50, 8, 3), range)
    found = {}
    for num_workers in (0, 1, 2):
        with ahead(batch_at, range(4, 12), num_workers) as batches:
            found[num_workers] = list(batches) if num_workers else [next(batches) for _ in range(8)]
    for num_workers in (1, 2):
        for one, other in zip(found[0], found[num_workers], strict=True):
            assert torch.equal(one.query.ids, other.query.ids)
            assert torch.equal(one.passage.ids, other.passage.ids)
            assert torch.equal(one.keys.positives.ids, other.keys.positives.ids)
            assert (one.rows.tolist(), one.epoch) == (other.rows.tolist(), other.epoch)
    assert not multiprocessing.active_children()


def failing(step):
    if step == 3:
        raise ValueError("rows.jsonl:3: empty query")
    return np.int64(step)


def whose(step):
    return step, os.getpid()


def test_an_error_in_a_process_is_one_line_when_its_batch_is_asked_for():
    with ahead(failing, range(1, 9), 2) as batches:
        assert [int(next(batches)), int(next(batches))] == [1, 2]
        with pytest.raises(ValueError, match=r"^rows\.jsonl:3: empty query$"):
            next(batches)
    assert not multiprocessing.active_children()


def test_processes_outlive_the_interrupt_that_their_rank_decides_on():
    with ahead(whose, range(1, 40), 2) as batches:
        processes = {next(batches)[1] for _ in range(2)}
        assert os.getpid() not in processes
        for process in processes:
            os.kill(process, signal.SIGINT)
        assert [next(batches)[0] for _ in range(20)] == list(range(3, 23))
    assert not multiprocessing.active_children()
