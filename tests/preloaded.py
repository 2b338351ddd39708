"""What every rank of a test imports; loaded once, in the server from which the ranks are forked."""

import gc

import datasets  # noqa: F401
import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (the first engine of a process imports it, and torch._inductor)
import sentence_transformers  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401

import bgetrain.stage.contrastive
import bgetrain.stage.retromae  # noqa: F401

gc.collect()
gc.freeze()  # ZeRO-3 collects some times for each engine: what is here already is left out
