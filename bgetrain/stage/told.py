"""The tables and lines in which stage=plan says what it found."""

from collections.abc import Mapping, Sequence
from typing import Any

from bgetrain.forecast import steps
from bgetrain.logger import console

GB = 10**9
TRAINING = ("retromae", "pairs", "finetune")


def show_all(plan: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Prints all figures of `plan.run`."""
    for each in merged(result["steps"]):
        show(plan, each)
    if len(result["steps"]) > 1:
        show_steps(plan, result)
    show_total(plan, result)


def show(plan: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Prints a step's figures."""
    title = figures["step"] if figures["step"] == figures["stage"] else f"{figures['step']} (stage={figures['stage']})"
    if "note" in figures:
        print(f"{title}: {figures['note']}\n")
        return
    moments = figures["moments"]
    kinds = [kind for kind in steps.KINDS if any(each.get(kind) for each in moments.values())]
    rows: list[list[str | float]] = [[kind, *(gigabytes(each.get(kind, 0.0)) for each in moments.values())] for kind in kinds]
    rows.append(["in all", *(gigabytes(sum(each.values())) for each in moments.values())])
    console.table(f"{title}: GB of one rank at the moments of a step", ["", *moments], rows)
    lines = training_lines(plan, figures) if figures["stage"] in TRAINING else encoding_lines(plan, figures)
    width = max(map(len, lines))
    print("\n".join(f"  {name:{width}}  {text}" for name, text in lines.items()) + "\n")


def merged(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Steps whose figures are alike as one, which has all their names."""
    kept: list[dict[str, Any]] = []
    for each in found:
        like = next((one for one in kept if {**one, "step": ""} == {**each, "step": ""}), None)
        if like is None:
            kept.append(dict(each))
        else:
            like["step"] += f", {each['step']}"
    return kept


def show_steps(plan: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Prints a row for each step that is planned, and their sum."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def spent_of(each: Mapping[str, Any]) -> list[str]:
        return [shown(each["hours"], ",.2f"), shown(each["gpu_hours"], ",.1f"), shown(each["cost"], ",.2f")]

    rows = []
    for each in result["steps"]:
        if "note" not in each:
            fits = "yes" if each["fits"] else "NO"
            counted = shown(each.get("steps"), ",")
            rows.append([each["step"], str(each["ranks"]), f"{each['peak_bytes'] / GB:.1f}", fits, counted, *spent_of(each)])
    rows.append(["in all", "", "", "", "", *spent_of(result["total"])])
    device = plan["devices"][plan["gpu"]]
    title = f"Steps on {plan['gpu']}, of {device['memory_gb']} GB"
    console.table(title, ["step", "GPUs", "GB of a GPU", "fits", "steps", "hours", "GPU-hours", "cost"], rows)
    print()


def gigabytes(size: float) -> str:
    return f"{size / GB:.2f}" if size else "-"


def verdict(plan: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    device = plan["devices"][plan["gpu"]]
    word = "fits" if figures["fits"] else "does NOT fit"
    peak, allowed = figures["peak_bytes"] / GB, figures["allowed_bytes"] / GB
    return f"{word}: {peak:.1f} GB at its {figures['peak_at']}, {allowed:.1f} GB are allowed of {device['memory_gb']} GB"


def typed(choice: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in choice.items())


def training_lines(plan: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, str]:
    """What to say of a training stage."""
    sent, seconds = figures["sent_bytes"], figures["seconds"]
    half = f"{figures['trained'] / 1e6:.1f} of " if figures["trained"] < figures["parameters"] else ""
    lines = {
        "parameters": f"{half}{figures['parameters'] / 1e6:.1f} M, {figures['precision']}",
        "ranks": f"{figures['ranks']} x {plan['gpu']}, {figures['texts_per_rank']:,} texts each in {figures['chunks']:,} chunks",
        "as configured": typed(figures["choice"]),
        "memory": verdict(plan, figures),
        "a step": f"{figures['tokens_per_step']:,} tokens, {figures['flops_per_step'] / 1e15:.3g} PFLOP over all ranks",
        "sent by a rank": ", ".join(f"{name} {size / GB:.3g} GB" for name, size in sent.items() if size) or "nothing",
        "collectives": "; ".join(collective(each) for each in figures["collectives"]) or "none",
        "time per step": f"{figures['seconds_per_step']:.3g} s: " + ", ".join(f"{key} {x:.3g}" for key, x in seconds.items()),
        "the run": length_of(plan, figures, f"{figures['steps']:,} steps" if figures["steps"] else ""),
    }
    better = figures["better"]
    if better:
        gain = f"{better['seconds_per_step']:.3g} s per step, {better['peak_bytes'] / GB:.1f} GB"
        lines["better"] = f"{typed(better['choice'])}: {gain}"
    elif figures["searched"]:
        lines["better"] = "nothing that is 3 % faster and fits" if figures["fits"] else "nothing fits: more or larger GPUs"
    return lines


def collective(each: Mapping[str, Any]) -> str:
    """Such as `1 all_gather of 0.134 GB of embeddings`."""
    return f"{each['calls']} {each['operation']} of {each['bytes'] / GB:.3g} GB of {each['of']}"


def encoding_lines(plan: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, str]:
    """What to say of a stage that embeds texts."""
    per = f"{figures['flops_per_query'] / 1e9:.3g} GFLOP a query, {figures['flops_per_passage'] / 1e9:.3g} a passage"
    lines = {"memory": verdict(plan, figures), "precision": figures["precision"], "operations": per}
    if "rows" in figures:
        own, whole = figures["embedding_bytes_per_rank"] / GB, figures["embedding_bytes"] / GB
        lines["embeddings"] = f"{whole:.3g} GB of {figures['rows']:,} texts on disk, {own:.3g} GB a rank's"
    lines["the run"] = length_of(plan, figures, f"{figures['rows']:,} texts" if "rows" in figures else "")
    return lines


def length_of(plan: Mapping[str, Any], figures: Mapping[str, Any], what: str) -> str:
    if figures["hours"] is None:
        return "unknown: give plan.rows=N" + (" or total_steps=N" if figures["stage"] in TRAINING else "")
    return f"{what}, {duration(figures['hours'])}{price_of(figures['cost'])}"


def duration(hours: float) -> str:
    return console.duration(3600 * hours)


def price_of(found: float | None) -> str:
    return "" if found is None else f", cost {found:,.2f}"


def show_total(plan: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Prints the sum of several steps, and what the times rest on."""
    found = result["total"]
    if len(result["steps"]) > 1 and found["hours"] is not None:
        left = f" without {', '.join(found['unknown'])}, whose rows are not known" if found["unknown"] else ""
        print(f"in all: {duration(found['hours'])}, {found['gpu_hours']:,.1f} GPU-hours{price_of(found['cost'])}{left}")
    device = plan["devices"][plan["gpu"]]
    links = dict.fromkeys(f"{each['link_gb_per_second']:g}" for each in result["steps"] if "link_gb_per_second" in each)
    rings = f"rings at {' or '.join(links)} GB/s, " if links else ""
    print(
        f"Times are guesses: products at {plan['mfu']:.0%} of the peak of {plan['gpu']} (plan.mfu), {rings}"
        f"nothing hidden behind products, an update at "
        f"{device['bandwidth']:g} GB/s of memory; texts as long as allowed. No figure was held against a GPU."
    )
