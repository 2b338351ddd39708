"""What a person sees, word for word."""

import io
import re
import subprocess
import sys

import pytest

from bgetrain.logger import console

TRAINING = {
    "loss": 1.525115,
    "grad_norm": 0.95432,
    "lr": 1e-5,
    "queries_per_second": 850.2,
    "tokens_per_second": 41200.0,
    "padding_ratio": 0.06,
    "progress_ratio": 0.24,
    "seconds_left": 130.0,
}


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def own_console():
    """A console that has seen neither the terminal nor the environment of another test."""
    console._screen.cache_clear()
    yield
    console._screen.cache_clear()


def attach(monkeypatch, columns: int = 160) -> Terminal:
    """Puts a terminal in the place of stderr; not in a fixture, since pytest sets stderr anew after those."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def frames(stream: Terminal) -> list[str]:
    """What stood on the lines of the terminal, one after the other, without colours and bars."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[━╸╺]", "", stream.getvalue())
    return [" ".join(line.split()) for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_log_file_gets_one_line_per_call(capsys):
    log = console.start()
    log(120, TRAINING)
    log(1120, {"progress_ratio": 0.5, "loss": 2.0, "encoder_loss": 0.5, "texts_per_second": 0.753})
    log.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 120 (24 %) | loss 1.525115 | grad_norm 0.954320 | 850 queries/s | 41,200 tokens/s | padding 6 % | 2 min 10 s left",
        "step 1,120 (50 %) | loss 2.000000 | encoder_loss 0.500000 | 0.75 texts/s",
    ]


def test_call_without_progress_shows_every_figure(capsys):
    console.start()(7, {"evaluate/ndcg@10": 0.51234, "evaluate/queries": 6980, "epoch": 0.00001})
    assert capsys.readouterr().err == "step 7 | evaluate/ndcg@10 0.5123 | evaluate/queries 6,980 | epoch 1.000e-05\n"


def test_terminal_gets_one_bar_and_other_figures_above_it(monkeypatch):
    terminal = attach(monkeypatch)
    log = console.start()
    log(120, TRAINING)
    log(120, {"ndcg@10": 0.5})
    log(121, {**TRAINING, "loss": 1.25, "progress_ratio": 0.25, "seconds_left": 59.0})
    log.close()
    seen = frames(terminal)
    rest = "850 queries/s | 41,200 tokens/s | padding 6 %"
    assert seen[0] == f"step 120 24 % 2 min 10 s left loss 1.525115 | {rest}"
    assert "step 120 | ndcg@10 0.5000" in seen
    assert seen[-1] == f"step 121 25 % 59 s left loss 1.250000 | {rest}"
    assert terminal.getvalue().count("\n") == 2  # that of the line above the bar, and the last


def test_narrow_terminal_cuts_the_figures_and_not_the_step_or_the_time(monkeypatch):
    terminal = attach(monkeypatch, columns=60)
    log = console.start()
    log(120, TRAINING)
    log.close()
    assert frames(terminal)[0].startswith("step 120 24 % 2 min 10 s left loss 1.5")
    assert max(map(len, frames(terminal))) <= 60


def test_forced_colours_draw_no_bar_into_a_file(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.start()(120, TRAINING)
    assert "\x1b" not in capsys.readouterr().err


def test_track_in_a_log_file_speaks_at_most_every_ten_seconds(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.track("encode passages", 4000) as advance:
        for _ in range(40):  # 39 s in all
            advance(100)
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [
        "encode passages: 1,100 of 4,000 (28 %) | 26 s left",
        "encode passages: 2,100 of 4,000 (52 %) | 18 s left",
        "encode passages: 3,100 of 4,000 (78 %) | 9 s left",
    ]


def test_track_on_a_terminal_draws_the_end_and_goes_beside_a_training_bar(monkeypatch):
    terminal = attach(monkeypatch)
    log = console.start()
    log(120, TRAINING)
    with console.track("encode [b]passages[/b]", 30) as advance:
        for _ in range(3):
            advance(10)
    log.close()
    assert "encode [b]passages[/b] 100 % 0 s left 30 of 30" in frames(terminal)
    assert frames(terminal)[-1].startswith("step 120 24 %")


def test_show_aligns_the_values_on_stderr(capsys):
    console.show("finetune", {"model": "bge-small", "global_batch": "64 = 2 ranks x 32", "查询": "1"})
    assert capsys.readouterr() == (
        "",
        "finetune\n  model         bge-small\n  global_batch  64 = 2 ranks x 32\n  查询          1\n",
    )


def test_table_aligns_numbers_right_also_in_a_file(capsys):
    long_name = "x" * 100  # rich would wrap it at 80
    console.table("results", ["", "ndcg@10", "n"], [["微调", 0.51236, 12000], [long_name, 0.1, 3]])
    rows = ["results", f"  {'':100}  ndcg@10       n", f"  {'-' * 100}  -------  ------"]
    rows += [f"  微调{'':96}   0.5124  12,000", f"  {long_name}   0.1000       3"]
    assert capsys.readouterr().out.splitlines() == rows


def test_table_refuses_a_row_of_another_length():
    with pytest.raises(ValueError, match="3 values for 2 columns"):
        console.table("results", ["a", "b"], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (3599.9, "1 h 0 min"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
        (float("inf"), "unknown time"),
        (float("nan"), "unknown time"),
    ],
)
def test_duration_in_two_units(seconds, words):
    assert console.duration(seconds) == words


def test_loggers_import_no_heavy_package():
    modules = "console, jsonl, tensorboard, wandb"
    heavy = "{'torch', 'deepspeed', 'wandb', 'tensorboard'}"
    code = f"import sys; from bgetrain.logger import {modules}; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
