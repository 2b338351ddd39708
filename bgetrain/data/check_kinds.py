"""What a check of the data looks for: one table, which the report shows as it stands."""

from typing import Literal, NamedTuple


class Kind(NamedTuple):
    """One thing that may be wrong with a row.

    Attributes:
        severity: unusable: training stops at the row or leaves it out | harmful: it trains or measures the wrong thing |
            notice: worth a look.
        meaning: what was found.
        remedy: what to do about it.
    """

    severity: Literal["unusable", "harmful", "notice"]
    meaning: str
    remedy: str


COLUMNS = "map your names to ours with data.columns"
KINDS = {
    # what the readers refuse
    "malformed": Kind("unusable", "no line of JSON, no JSON object, or bytes that are no UTF-8", "mend or delete the line"),
    "no_query": Kind("unusable", "there is no query, or it is no text", COLUMNS),
    "empty_query": Kind("unusable", "the query is empty or blank", "delete the row"),
    "bad_prompt": Kind("unusable", "the row's instruction is no text", "make prompt a text or leave it out"),
    "no_positive": Kind("unusable", "no positive passage is listed", COLUMNS),
    "empty_passage": Kind("unusable", "a positive is empty or blank", "take the passage out"),
    "bad_passage": Kind("unusable", "a positive is neither a text nor an object with text", COLUMNS),
    "empty_negative": Kind("unusable", 'a negative is empty or blank, as in neg: [""]', "take it out; neg: [] says none"),
    "bad_negative": Kind("unusable", "a negative is neither a text nor an object with text", COLUMNS),
    "unknown_passage": Kind(
        "unusable", "a positive is an id that data.corpus has not", "give the corpus that the rows belong to"
    ),
    "unknown_negative": Kind(
        "unusable", "a negative is an id that data.corpus has not", "give the corpus that the rows belong to"
    ),
    "no_label": Kind("unusable", "the row has no label of those that data.labels names", "see data.labels"),
    "bad_scores": Kind("unusable", "the scores are no finite numbers, or not one for each passage", "give one for each passage"),
    "empty_text": Kind("unusable", "the text is empty or blank", "delete the row"),
    "no_text": Kind("unusable", "there is no text", COLUMNS),
    # what trains the wrong thing
    "query_is_positive": Kind(
        "harmful", "a positive is the query itself", "delete the passage: equal texts teach nothing about relevance"
    ),
    "positive_is_negative": Kind(
        "harmful", "a passage stands among the positives and the negatives", "take it out of the negatives"
    ),
    "instruction_twice": Kind(
        "harmful", "the query begins with the instruction that is put before it again", 'set data.query_instruction=""'
    ),
    "leaked_query": Kind("harmful", "the query stands in an evaluation set", "delete the row, or evaluate on something else"),
    "leaked_passage": Kind(
        "harmful", "a passage is relevant to a query of an evaluation set", "delete the row, unless both share a corpus by design"
    ),
    # what is worth a look
    "shared_passage": Kind(
        "notice", "a passage stands in the corpus of an evaluation set, relevant to none of its queries", "know of it"
    ),
    "near_leaked_query": Kind(
        "notice", "the query is close to one of an evaluation set", "read some, then decide as for equal ones"
    ),
    "near_leaked_passage": Kind(
        "notice", "a positive is close to a relevant passage of an evaluation set", "read some, then decide as for equal ones"
    ),
    "duplicate_row": Kind("notice", "an earlier row is the same: query, instruction, positives, negatives", "keep one of them"),
    "duplicate_query": Kind(
        "notice",
        "an earlier row has this query with other positives, which may meet in a batch as false negatives",
        "join the rows into one with several positives",
    ),
    "duplicate_text": Kind("notice", "an earlier text is the same", "keep one of them"),
    "near_duplicate_query": Kind("notice", "an earlier query is almost the same", "read some; they weigh a topic by repetition"),
    "near_duplicate_passage": Kind(
        "notice", "an earlier positive is almost the same, a false negative where both meet in a batch", "keep one of them"
    ),
    "near_duplicate_text": Kind("notice", "an earlier text is almost the same", "keep one of them"),
    "repeated_positive": Kind("notice", "a positive is listed twice", "list it once"),
    "repeated_negative": Kind("notice", "a negative is listed twice, and counts twice in the loss", "list it once"),
    "replacement_character": Kind(
        "notice", "a text holds U+FFFD, which stands where bytes could not be decoded", "read the original with its own encoding"
    ),
    "control_character": Kind("notice", "a text holds control characters", "take them out"),
    "html": Kind("notice", "a text holds HTML tags or entities", "extract the text, unless code is the subject"),
}


def kind_of(name: str) -> Kind:
    """The table's line; one for readers that know of more faults than the table."""
    return KINDS.get(name, Kind("unusable", name.replace("_", " "), "see the message"))
