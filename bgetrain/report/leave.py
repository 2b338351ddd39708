"""What stands beside a run's result once it is there: the model's card, and pages to look at."""

from pathlib import Path

from bgetrain.report.safely import safely

# Templates and plots are imported where they are used: of no use before, and one that cannot be imported fails no run.


def leave(folder: Path) -> None:
    """Writes the card of the model in a finished run's folder, its page, and that of the recipe whose step it is.

    Args:
        folder: of the run; where it is gone, one warning says so and nothing is written.
    """
    if not safely("report.html", page, folder) and not folder.is_dir():
        return
    safely("model/README.md", card, folder)  # of an evaluation: the card of the run beside it
    if is_step(folder):
        safely("report.html", ladder, folder.absolute().parent)


def is_step(folder: Path) -> bool:
    """Whether a run's folder is of a step of the recipe whose folder it is in."""
    from bgetrain import steps

    known = steps.noted(folder.absolute().parent)
    return known is not None and folder.name in [step.name for step in known[1]]


def card(folder: Path) -> None:
    from bgetrain import card

    card.write(folder)


def page(folder: Path) -> None:
    from bgetrain.report import run

    run.write(folder)


def ladder(folder: Path) -> None:
    from bgetrain.report import ladder

    ladder.write(folder)
