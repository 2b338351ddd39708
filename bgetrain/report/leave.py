"""What stands beside a run's result once it is there: the model's card, and pages to look at."""

from pathlib import Path

from bgetrain.report.safely import safely


def leave(folder: Path) -> None:
    """Writes the card of the model in a finished run's folder, its page, and that of the recipe whose step it is.

    Args:
        folder: of the run.
    """
    from bgetrain import card, steps
    from bgetrain.report import ladder, run  # templates and plots are of no use before

    safely("model/README.md", card.write, folder)  # of an evaluation: the card of the run beside it
    safely("report.html", run.write, folder)
    above = folder.absolute().parent
    known = steps.noted(above)
    if known and folder.name in [step.name for step in known[1]]:
        safely("report.html", ladder.write, above)
