"""Embeddings in Python: `from bgetrain import Embedder`. Names are those of FlagEmbedding's FlagModel (1.4.2)."""

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bgetrain import encoding, loading
from bgetrain.cluster import crew
from bgetrain.encoding import Plan
from bgetrain.loading import Ready, Settings
from bgetrain.logger import console
from bgetrain.model import folder, prompts

PASS = 64  # tokens of a text for which `batch_size` is a count of texts; our choice: half of a paragraph
LENGTH = 512  # FlagModel's query_max_length and passage_max_length, for a folder that does not say


class Embedder:
    """Texts to vectors by a folder that training left, or any other of transformers or sentence-transformers.

    Vectors are fp32 whatever the model computes in. Calls from several threads take turns.

        model = Embedder("outputs/finetune/model", query_instruction_for_retrieval="Represent this sentence: ")
        scores = model.encode_queries(["who wrote Emma?"]) @ model.encode_corpus(["Emma is a novel by Jane Austen."]).T

    Attributes:
        tokenizer: of transformers.
        target_devices: where texts are embedded.
        precision: fp16 | bf16 | fp32, what the model computes in.
        width: D, numbers of a vector.
    """

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: str | int | Sequence[str | int] | None = None,
        pooling_method: Literal["cls", "mean", "last"] | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        batch_size: int = 256,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        *,
        passage_instruction_for_retrieval: str | None = None,
        passage_instruction_format: str = "{}{}",
        batch_tokens: int | None = None,
    ) -> None:
        """Loads the model; where there are several devices, the first of them computes in this process.

        Args:
            model_name_or_path: folder or hub id; weights are read from safetensors alone.
            normalize_embeddings: vectors of length 1, so that `@` gives cosines; also where the folder has no such module.
            use_fp16: half precision on accelerators. A CPU computes in fp32, as FlagModel's does, but from weights that were
                never rounded to fp16.
            use_bf16: bfloat16 instead, on every device.
            query_instruction_for_retrieval: put before queries; None: the folder's prompt `query`, which FlagModel does not
                know; "": nothing.
            query_instruction_format: where the instruction and the query stand; `\\n` written out is a new line.
            devices: "cuda:1", 1 (the same), "cpu" or a list: texts are shared out over a process for each. None: all GPUs, or
                else Apple's, or else the CPU.
            pooling_method: None: the folder's own (1_Pooling), else cls. FlagModel takes cls whatever the folder says.
            trust_remote_code: run code that the folder brings along; else such a folder is refused.
            cache_dir: where a model of the hub is kept; None: the hub's usual place.
            batch_size: how much goes through the model at once, in texts of 64 tokens: passes are cut by tokens, so that 256
                means 256 texts of 64 tokens or 32 of 512, and not more memory for longer texts. A CPU, which gains nothing by
                more, takes 4,096 tokens at most.
            query_max_length: tokens at which queries are cut; None: what the folder says (FlagModel: 512), else 512, never more
                than the model has positions.
            passage_max_length: the same for passages and `encode`.
            convert_to_numpy: numpy arrays; else tensors on the first device.
            truncate_dim: only the first so many numbers of each vector, normalised after the cut; None: the folder's, else all.
            passage_instruction_for_retrieval: put before passages by `encode_corpus`; None: the folder's prompt for documents.
            passage_instruction_format: as that of queries.
            batch_tokens: tokens that go through the model at once, instead of batch_size * 64. Where memory runs out it is
                halved for good, and the work goes on.

        Raises:
            ValueError: there is no such model, an argument is out of range, or a device is not there.
        """
        for name, value in {"batch_size": batch_size, "batch_tokens": batch_tokens, "truncate_dim": truncate_dim}.items():
            check_positive(name, value)
        path = loading.located(model_name_or_path, cache_dir)
        known = folder.facts(Path(path))
        own = prompts.chosen(known.prompts)
        self.target_devices = loading.devices_of(devices)
        kind = torch.device(self.target_devices[0]).type
        self.precision = "bf16" if use_bf16 else "fp16" if use_fp16 and kind != "cpu" else "fp32"
        self._settings = Settings(
            path, pooling_method, bool(trust_remote_code), self.precision, bool(normalize_embeddings),
            known.truncate_dim if truncate_dim is None else truncate_dim, known.lower_case, self.target_devices[0], None,
        )  # fmt: skip
        self._local: Ready = loading.load(self._settings)
        self.model_name_or_path, self.normalize_embeddings, self.convert_to_numpy = path, normalize_embeddings, convert_to_numpy
        self.tokenizer, self.width = self._local.encoder.tokenizer, self._local.width
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        default = min(known.max_len or LENGTH, self._local.max_positions)
        self.query_max_length = self._length("query_max_length", query_max_length, default)
        self.passage_max_length = self._length("passage_max_length", passage_max_length, default)
        self.query_instruction_for_retrieval, self.query_instruction_format = instruction(
            "query", query_instruction_for_retrieval, query_instruction_format, own.query or None
        )
        self.passage_instruction_for_retrieval, self.passage_instruction_format = instruction(
            "passage", passage_instruction_for_retrieval, passage_instruction_format, own.passage or None
        )
        self._turn = threading.RLock()
        self._workers: list[crew.Worker] = []
        self._end = weakref.finalize(self, crew.stop, self._workers)  # also when Python ends

    @classmethod
    def from_finetuned(cls, model_name_or_path: str, model_class: str | None = None, **options: Any) -> "Embedder":
        """As FlagAutoModel has it; of its model classes there is encoder-only-base alone."""
        if model_class not in (None, "encoder-only-base"):
            raise ValueError(f"model_class={model_class!r}: only encoder-only-base is served")
        return cls(model_name_or_path, **{name: value for name, value in options.items() if value is not None})

    @property
    def model(self) -> Any:
        """The transformers model of this process."""
        return self._local.encoder.module.backbone

    def __repr__(self) -> str:
        where = ", ".join(self.target_devices)
        return f"Embedder({self.model_name_or_path!r}, {self.precision} on {where}, {self.width} numbers a text)"

    def encode_queries(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
    ) -> Any:
        """Embeds queries with the instruction before each; arguments and result are those of `encode`."""
        longest = self.query_max_length if max_length is None else max_length
        text, form = self.query_instruction_for_retrieval, self.query_instruction_format
        return self.encode(queries, batch_size, longest, convert_to_numpy, text, form)

    def encode_corpus(
        self,
        corpus: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
    ) -> Any:
        """Embeds passages, which have no instruction but where one was given; arguments and result are those of `encode`."""
        text, form = self.passage_instruction_for_retrieval, self.passage_instruction_format
        return self.encode(corpus, batch_size, max_length, convert_to_numpy, text, form)

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        instruction: str | None = None,
        instruction_format: str = "{}{}",
    ) -> Any:
        """Embeds texts as they are, the longest first, and gives the vectors in the order of the texts.

        From `batch_size` texts on it shows progress on stderr, and all devices take part; fewer are embedded by the first.

        Args:
            sentences: one text or several.
            batch_size: None: that of the constructor, here and in what follows.
            max_length: tokens, special tokens included, at which a text is cut.
            convert_to_numpy: False: a tensor on the first device.
            instruction: put before each text; None: nothing.
            instruction_format: where instruction and text stand.

        Returns:
            fp32 [N, D]; [D] for one text.

        Raises:
            ValueError: something is not a text (says which), an embedding is not finite, or a text alone is too much for the
                memory.
            RuntimeError: a process crashed or was ended from outside.
        """
        check_positive("batch_size", batch_size)
        size = self.batch_size if batch_size is None else batch_size
        exact = self.batch_tokens if batch_size is None else None
        longest = self._length("max_length", max_length, self.passage_max_length)
        texts = texts_of(sentences)
        form = template("instruction_format", instruction_format) if instruction else None
        plan = Plan(texts, None if form is None else (form, str(instruction)), longest, exact or PASS * size, exact is not None)
        as_numpy = self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy
        with self._turn:
            found = self._embedded(plan, shared=len(texts) >= size, device="cpu" if as_numpy else self.target_devices[0])
        rows = found[0] if isinstance(sentences, str) else found
        return rows.numpy() if as_numpy else rows

    def stop_self_pool(self) -> None:
        """Ends the processes of further devices; the next call that needs them starts new ones."""
        crew.stop(self._workers)
        self._workers.clear()

    close = stop_self_pool

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_self_pool()

    def _length(self, name: str, given: int | None, default: int) -> int:
        if given is None:
            return default
        check_positive(name, given)
        least = self.tokenizer.num_special_tokens_to_add() + 1
        if not least <= given <= self._local.max_positions:
            raise ValueError(f"{name}={given}: this model takes from {least} to {self._local.max_positions} tokens")
        return given

    def _embedded(self, plan: Plan, *, shared: bool, device: str) -> Tensor:
        """fp32 [N, D] on `device`, from this process alone or, where `shared`, from all."""
        found = torch.empty(len(plan.texts), self.width, device=device)
        workers = self._all_workers() if shared and len(self.target_devices) > 1 else []
        pieces = encoding.Pieces(plan, parts=1 + len(workers))
        with console.track("encode", len(plan.texts)) if shared and plan.texts else nullcontext(lambda _: None) as advance:
            try:
                with encoding.threads_for(self.target_devices if workers else []):
                    encoding.share(self._local, workers, plan, pieces, found, advance)
            except BaseException:  # a worker may be in the midst of a piece of this call, which the next must not get
                self.stop_self_pool()
                raise
        return found

    def _all_workers(self) -> list[crew.Worker]:
        if not self._workers:
            share = encoding.share_of_threads(self.target_devices)
            for device in self.target_devices[1:]:
                precision = "fp32" if self.precision == "fp16" and torch.device(device).type == "cpu" else self.precision
                job = self._settings._replace(device=device, precision=precision, threads=share)
                self._workers.append(crew.start(device, "bgetrain.encoding:work", job))
        return self._workers


def texts_of(sentences: str | Iterable[str]) -> Sequence[str]:
    """The texts as a sequence, not copied where they are a list.

    Raises:
        ValueError: names the first that is not a text.
    """
    if isinstance(sentences, str):
        return [sentences]
    if isinstance(sentences, bytes | Mapping) or not isinstance(sentences, Iterable):
        raise ValueError(f"sentences must be a text or a list of texts, got {type(sentences).__name__}")
    texts = sentences if isinstance(sentences, list | tuple) else list(sentences)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"sentences[{number}] must be a text, got {type(text).__name__} {str(text)[:40]!r}")
    return texts


def instruction(kind: str, given: str | None, form: str, known: str | None) -> tuple[str | None, str]:
    """What is put before texts and how: what is given, else the folder's prompt.

    Raises:
        ValueError: a format that cannot be filled, or one without an instruction, which would have no effect.
    """
    template(f"{kind}_instruction_format", form)
    if given is not None:
        return given, form
    if form != "{}{}":
        raise ValueError(f"{kind}_instruction_format={form!r} needs {kind}_instruction_for_retrieval, which is not given")
    return known, form


def template(name: str, form: str) -> str:
    """A format of instruction and text, with `\\n` written out made a new line, as FlagEmbedding does.

    Raises:
        ValueError: it has no place for both.
    """
    made = form.replace("\\n", "\n")
    try:
        filled = made.format("\0", "\1")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{name}={form!r}: must be such as '{{}}{{}}', for instruction and text ({error})") from error
    if not {"\0", "\1"} <= set(filled):
        raise ValueError(f"{name}={form!r}: must have a place for the instruction and one for the text, such as '{{}}{{}}'")
    return made


def check_positive(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
