"""What stands beside a run's result once it is there: the model's card, and pages to look at."""

import importlib
import importlib.util
from pathlib import Path

from bgetrain.report.safely import safely

CARD = "bgetrain.card"


def leave(folder: Path) -> None:
    """Writes the card of the model in a finished run's folder, its page, and that of the recipe whose step it is.

    Args:
        folder: of the run.
    """
    from bgetrain import steps
    from bgetrain.report import ladder, run  # templates and plots are of no use before

    if (folder / "model").is_dir() and importlib.util.find_spec(CARD):
        safely("model/README.md", importlib.import_module(CARD).write, folder)
    safely("report.html", run.write, folder)
    above = folder.absolute().parent
    known = steps.noted(above)
    if known and folder.name in [step.name for step in known[1]]:
        safely("report.html", ladder.write, above)
