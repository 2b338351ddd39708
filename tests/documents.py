"""Documents and tokenizers of several tests; processes that are started find this module by its name."""

import os
import random
import re
import signal

WORDS = re.findall(r"\w+", "the a quick brown fox jumps over lazy dogs seven wizards brew unbelievably strange potions")
CHINESE = "我们今天去公园看花他说天气很好大家都高兴"


def document(seed: int, longest: int) -> str:
    """0 to `longest` sentences, with line breaks, quotes, numbers, Chinese, long words and blanks, drawn by `seed`."""
    draw = random.Random(seed)
    sentences = []
    for _ in range(draw.randint(0, longest)):
        kind = draw.random()
        if kind < 0.25:
            clause = "".join(draw.choices(CHINESE, k=draw.randint(2, 30)))
            sentences.append(clause + draw.choice(["。", "！」", "？", "，", "!"]))
        elif kind < 0.32:
            sentences.append("x" + "y1z" * draw.randint(1, 12) + " ")
        else:
            words = " ".join(draw.choices(WORDS, k=draw.randint(1, 14)))
            sentences.append(words + draw.choice([". ", '." ', "! ", "?) ", "\n", ".\n\n", "… ", " 3.5 ", ".", "; "]))
    return "".join(sentences)


class Listed(list):
    """Texts in memory."""

    def take(self, indices):
        return [self[index] for index in indices]


class Deadly(Listed):
    """Texts whose reader is killed at text 90, as by the system when memory runs out."""

    def take(self, indices):
        if 90 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().take(indices)


def byte_level(texts, vocab_size, *, trim):
    """A tokenizer as RoBERTa's: byte-level BPE, `<s>` and `</s>` around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.decoder = decoders.ByteLevel()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>", "<mask>"]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=trim, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


def metaspace(texts, vocab_size):
    """A tokenizer as many SentencePiece ones: words begin with ▁, nothing stands before a text and `</s>` behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>", "<pad>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


def trained(texts):
    """A tokenizer of each kind, by name."""
    from bgetrain.data.tokenize import train_wordpiece

    return {
        "wordpiece": train_wordpiece(texts, 150, 512),
        "trimmed": byte_level(texts, 330, trim=True),
        "byte level": byte_level(texts, 420, trim=False),
        "metaspace": metaspace(texts, 120),
    }


def made(texts, tokenizer, max_len, folder, *, cut="sentences", across=False, num_workers=0, advance=lambda n: None):
    """Spans with what most tests ask for."""
    from bgetrain.data.spans import spans

    return spans(texts, tokenizer, max_len, folder, cut=cut, across=across, num_workers=num_workers, advance=advance)


def taken(found) -> list[tuple[list[int], list[int]]]:
    """Ids and words of every span."""
    text, words = found.take(range(len(found)))
    sizes = text.lengths.tolist()
    return [(ids.tolist(), own.tolist()) for ids, own in zip(text.ids.split(sizes), words.split(sizes), strict=True)]


def whole(tokenizer, text) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


TEXTS = Listed(document(seed, 1 + seed % 17) for seed in range(120))
