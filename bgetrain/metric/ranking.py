"""Figures of a ranking, by trec_eval's own code through pytrec_eval.

pytrec_eval rather than ir_measures: trec_eval has no MRR cut-off, and ir_measures answers RR@10 with a second scorer
that breaks ties by its own rule, so that MRR and nDCG would come from two orders of the same run. RR@10 follows
exactly from trec_eval's RR. Neither needs to be asked about queries without results: they are counted here.
"""

from collections.abc import Mapping

import pytrec_eval

# our name -> trec_eval's, in the order of the result; asked for with a full stop before the cut-off, answered with "_"
MEASURES = {
    **{f"ndcg@{cutoff}": f"ndcg_cut.{cutoff}" for cutoff in (1, 3, 5, 10, 100)},
    "mrr@10": "recip_rank",
    **{f"recall@{cutoff}": f"recall.{cutoff}" for cutoff in (10, 100)},
    "map": "map",
}
MRR_CUTOFF = 10


def score(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Computes nDCG, MRR, recall and MAP; arguments and errors are those of `score_each`.

    Returns:
        ndcg@1, @3, @5, @10, @100, mrr@10, recall@10, @100 and map, 0 to 1, means over the queries of `score_each`.
    """
    return mean(score_each(run, qrels))


def mean(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over queries of each figure of `score_each`."""
    return {name: sum(each[name] for each in figures.values()) / len(figures) for name in MEASURES}


def score_each(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Computes nDCG, MRR, recall and average precision of each query.

    Gains of nDCG are the relevances themselves, discounted by log2(rank + 1); a passage is relevant from 1 up.
    trec_eval compares scores as fp32 and puts passages of equal score in falling order of their names, whatever order
    the run has them in.

    Args:
        run: query name -> passage name -> score, higher is better; queries that qrels lacks are not counted.
        qrels: query name -> passage name -> relevance; passages not named have 0.

    Returns:
        Query name -> ndcg@1, @3, @5, @10, @100, mrr@10, recall@10, @100 and map, 0 to 1, for the queries of qrels with at
        least one relevant passage, in their order; of these, a query without results has 0.

    Raises:
        ValueError: no query of qrels has a relevant passage.
    """
    judged = {query: dict(passages) for query, passages in qrels.items() if max(passages.values(), default=0) > 0}
    if not judged:
        raise ValueError(f"qrels: none of {len(qrels)} queries has a passage of relevance 1 or above, nothing to score")
    # the extension takes Python's own floats only
    ranked = {query: {passage: float(score) for passage, score in run[query].items()} for query in judged if run.get(query)}
    found = pytrec_eval.RelevanceEvaluator(judged, set(MEASURES.values())).evaluate(ranked)
    for figures in found.values():
        if figures["recip_rank"] * MRR_CUTOFF < 1 - 1e-6:  # the first relevant passage is beyond the cut-off
            figures["recip_rank"] = 0.0
    return {
        query: {name: found[query][theirs.replace(".", "_")] if query in found else 0.0 for name, theirs in MEASURES.items()}
        for query in judged
    }
