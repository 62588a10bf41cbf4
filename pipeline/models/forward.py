"""One forward pass of a cross-encoder: its own, a shorter one, or one without padding.

Which of them is settled when the model is loaded, by trying: a pass that does not say what the
model's own says is not used. The signature has its name, for they differ in last bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.models import bert, flat, int8
from pipeline.models.engine import INT8
from pipeline.models.loading import longest_input, takes_segments
from pipeline.models.pairs import pair_batch

if TYPE_CHECKING:
    from pipeline.models.engine import Batch, Engine
    from pipeline.models.flat import FlatBatch
    from pipeline.models.pairs import Tokenizer

Lengths = tuple[int, tuple[int, ...]]
"""Tokens of a query, and of passages"""

AGREEMENT = 1e-4  # of the largest activation, between two float32 passes of one model
ROUGHLY = 0.05  # between two passes in the engine's precision
PROBE: Lengths = (3, (33, 9, 4, 1))  # what is tried
LOOSELY = 0.2  # between int8 and float32
RANGES: Lengths = (6, (55,) * 16)  # what ranges are seen on for int8; no padding, which may be loud


class Forward:
    """Token ids to float32 logits of shape (pairs, labels).

    Args:
        model: a sequence classifier in float32, which is changed.

    Raises:
        PipelineError: int8 was asked for, and the model cannot be computed so.
    """

    def __init__(self, model: Any, engine: Engine, tokenizer: Tokenizer) -> None:
        self._model = model
        self._base = getattr(model, model.base_model_prefix)
        self._engine = engine
        self._segmented = tokenizer.segmented and takes_segments(model)
        self._tokenizer = tokenizer
        self._short, self._flat = self._prepared()
        if engine.precision == INT8 and self._short is None:
            raise PipelineError(
                "precision int8: this model cannot be computed so, or scores otherwise then",
                "use --precision auto; int8 is for BERT and its kin, with GELU and two layers",
            )
        if self._short is not None:
            self._base.encoder = None  # its weights were prepared anew
        pooler = getattr(self._base, "pooler", None)
        kept = {id(weights) for weights in pooler.parameters()} if pooler is not None else set()
        for weights in self._base.parameters():  # not the buffers: rotary angles want float32
            if id(weights) not in kept:
                weights.data = weights.data.to(engine.dtype)
        if pooler is not None:
            pooler.register_forward_pre_hook(_float_inputs)
        self._base.register_forward_hook(_float_output)
        model.to(engine.device)
        if self._flat is not None and not self._flat_works():
            self._flat = None

    @property
    def kind(self) -> str:
        """Name of the pass, for the signature."""
        if self.is_flat:
            return "flattened"
        return "whole" if self._short is None else "first token"

    @property
    def is_flat(self) -> bool:
        """Whether `flat` is to be called, not `padded`."""
        return self._flat is not None

    @property
    def takes_any_rows(self) -> bool:
        """Whether padded batches may have any number of rows: nothing is prepared for each."""
        return self._short is not None and self._short.takes_any_rows

    def padded(self, batch: Batch) -> torch.Tensor:
        """Logits of padded sequences."""
        if self._short is None:
            return self._whole(batch)
        return self._headed(self._short.hidden(self._segments(batch)))

    def begun(self, batch: Batch) -> torch.Tensor:
        """What `ended` needs of padded sequences, a row each; where `takes_any_rows`."""
        if self._short is None:
            raise AssertionError("there is nothing to be ended")
        return self._short.attended(self._segments(batch))

    def ended(self, begun: torch.Tensor) -> torch.Tensor:
        """Logits of sequences of any batches that were `begun`."""
        if self._short is None:
            raise AssertionError("there is nothing to be ended")
        return self._headed(self._short.finished(begun))

    def flat(self, batch: FlatBatch) -> torch.Tensor:
        """Logits of sequences that lie one after the other."""
        if self._flat is None:
            raise AssertionError("this model computes padded sequences")
        return self._headed(self._flat.flat(self._segments(batch)))

    def _segments[B: (Batch, FlatBatch)](self, batch: B) -> B:
        if self._segmented:
            return batch
        return batch._replace(segments=torch.zeros_like(batch.segments))

    def _headed(self, first: torch.Tensor) -> torch.Tensor:
        first = first.float()
        pooler = getattr(self._base, "pooler", None)
        return self._model.classifier(first if pooler is None else pooler(first))  # type: ignore[no-any-return]

    def _whole(self, batch: Batch) -> torch.Tensor:
        segments = {"token_type_ids": batch.segments} if self._segmented else {}
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
        output = self._model(input_ids=batch.ids, attention_mask=mask, **segments)
        return output.logits.float()  # type: ignore[no-any-return]

    # ------------------------------------------------------------ what is tried

    def _prepared(self) -> tuple[bert.FirstToken | None, bert.FirstToken | None]:
        """Prepare the other passes, if in float32 they say what the model's own says."""
        if self._model.config.model_type not in bert.KINDS:
            return None, None
        made = None
        exact = replace(self._engine, device="cpu", precision="fp32")
        kernel = flat.kernel(self._engine)
        with torch.inference_mode():
            try:
                own = self._whole(self._padded_probe("cpu"))
                short = bert.FirstToken(self._base, exact).hidden(
                    self._segments(self._padded_probe("cpu"))
                )
                if not _alike(self._headed(short), own, AGREEMENT):
                    return None, None
                if self._engine.precision == INT8:
                    return self._in_int8(own), None
                made = bert.FirstToken(self._base, self._engine)
                if kernel is None:
                    return made, None
                without = bert.FirstToken(self._base, exact, flat.one_by_one).flat(
                    self._segments(self._flat_probe("cpu"))
                )
                if not _alike(self._headed(without), own, AGREEMENT):
                    return made, None
                return made, bert.FirstToken(self._base, self._engine, kernel)
            except (AttributeError, TypeError, ValueError, RuntimeError, LookupError):
                return made, None  # a version of transformers that builds this model otherwise

    def _in_int8(self, own: torch.Tensor) -> bert.FirstToken | None:
        """Prepare the shorter pass in int8, if it says roughly what the model's own says."""
        layers = self._base.encoder.layer[:-1]
        if not len(layers):  # the last layer stays in floats, so nothing would be in int8
            return None
        seen = self._padded_probe("cpu", self._fitting(RANGES))
        ranges = int8.input_ranges(layers, lambda: self._whole(seen))
        made = bert.FirstToken(self._base, self._engine, ranges=ranges)
        scores = self._headed(made.hidden(self._segments(self._padded_probe("cpu"))))
        return made if _alike(scores, own, LOOSELY) else None

    def _fitting(self, lengths: Lengths) -> Lengths:
        """Cut passages to what the model takes."""
        template = self._tokenizer.template
        assert template is not None  # noqa: S101 - checked before
        query, passages = lengths
        config = self._model.config.to_dict()
        room = longest_input(config, None) - query - template.size
        return query, tuple(min(length, max(room, 1)) for length in passages)

    def _flat_works(self) -> bool:
        """Whether attention's kernel takes this model on this device, and computes what it should.

        It does not on older GPUs, nor with every width of a head.
        """
        device = self._engine.device
        with torch.inference_mode():
            try:
                if self._flat is None or not self._flat.kernel_works(self._engine):
                    return False
                made = self.flat(self._flat_probe(device))
                return _alike(made, self.padded(self._padded_probe(device)), ROUGHLY)
            except (RuntimeError, TypeError, ValueError):
                return False

    def _padded_probe(self, device: str, lengths: Lengths = PROBE) -> Batch:
        query, passages = self._probe(lengths)
        template = self._tokenizer.template
        assert template is not None  # noqa: S101 - checked before
        width = len(query) + max(map(len, passages)) + template.size
        return pair_batch(template, query, passages, width, self._tokenizer.pad, device)

    def _flat_probe(self, device: str) -> FlatBatch:
        query, passages = self._probe(PROBE)
        template = self._tokenizer.template
        assert template is not None  # noqa: S101 - checked before
        everything = np.arange(len(passages))
        return flat.flat_batch(template, query, flat.joined(passages), everything, device)

    def _probe(self, lengths: Lengths) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
        generator = np.random.default_rng(0)
        size = self._model.config.vocab_size
        query, passages = lengths
        draw = [
            generator.integers(size // 2, size, length, dtype=np.int32)
            for length in (query, *passages)
        ]
        return draw[0], draw[1:]


def _alike(made: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if made.shape != expected.shape:
        return False
    most = tolerance * (1 + float(expected.abs().max()))
    return torch.allclose(made, expected, rtol=0, atol=most)


def _float_inputs(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) else x for x in inputs)


def _float_output(_: Any, __: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state.float()
    return output
