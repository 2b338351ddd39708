"""stage=tokenizer: a WordPiece vocabulary from the training texts, saved with a model of random weights."""

from collections.abc import Callable, Mapping
from typing import Any

from bgetrain import distributed
from bgetrain.stage import build, results
from bgetrain.types import World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Trains the vocabulary and leaves it in `output_dir/model`, beside the model of `cfg.model`.

    Args:
        cfg: the resolved config, as `conf/stage/tokenizer.yaml` has it.
        world: all ranks.
        log: not used: there is no step.

    Returns:
        Figures for `result.json`.
    """
    source = build.source(cfg, world)
    body = distributed.after_first(world, lambda: build.body(cfg, source, world, masked_lm=True))
    build.tell(source.texts() if source.texts else None, world)
    results.write_model(cfg, body, body.backbone.state_dict(), source, world)
    return {"vocabulary": len(body.tokenizer), "parameters": body.backbone.num_parameters()}
