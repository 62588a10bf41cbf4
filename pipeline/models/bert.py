"""A faster forward pass for BERT and its kin, for heads that look at the first token alone.

The last layer is computed for that one position, which of three layers saves a third. In the others
query, key and value are one multiplication; on a CPU in bf16 the weights are laid out once for
oneDNN, which also takes the GELU and the residual sum along. What this computes is compared with
the model's own forward pass when the model is loaded; where the two differ, the model's own is
used.

Sequences are padded to a common length, or lie one after the other without any padding (`flat.py`):
only attention (`attention.py`) and the last layer differ.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.attention import Flat, Own, Padded
from pipeline.models.engine import Batch
from pipeline.models.flat import agrees
from pipeline.models.layers import FlatFirst, Hidden, Layer, PaddedFirst, norm_kernels
from pipeline.models.native import LONGEST, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.models import int8
    from pipeline.models.engine import Engine
    from pipeline.models.flat import FlatBatch, Kernel

KINDS = frozenset({"bert", "electra", "roberta", "xlm-roberta", "camembert"})


class FirstToken:
    """The encoder of a model of one of `KINDS`, its weights prepared for one engine.

    Args:
        base: the encoder in float32, which is left as it is.
        kernel: attention over sequences without padding; with it `flat` may be called, without it
            `hidden`.
        alone: False computes the last layer for all positions as well.
        ranges: of the inputs of all layers but the last, which are then computed in int8.

    Raises:
        AttributeError, TypeError: the encoder is built otherwise.
    """

    def __init__(
        self,
        base: Any,
        engine: Engine,
        kernel: Kernel | None = None,
        *,
        alone: bool = True,
        ranges: Sequence[int8.Ranges] = (),
    ) -> None:
        self._kernel = kernel
        # Kinds that count positions from behind the padding token's number keep that number here.
        self._first_position = int(getattr(base.embeddings, "padding_idx", -1)) + 1
        self._plain = engine.lays_out
        stages = [base.embeddings]
        if getattr(base, "embeddings_project", None) is not None:  # ELECTRA's small ones
            stages.append(base.embeddings_project)
        self._embed, *self._project = (
            deepcopy(stage).to(engine.device, engine.dtype) for stage in stages
        )
        *layers, last = base.encoder.layer
        own = norm_kernels(engine, last.output.LayerNorm)
        self._own = own is not None
        embedded = _embedding(self._embed, base.embeddings, engine)
        self._embedded = embedded or self._embed_plainly
        scaled = kernel is None
        self._layers = [
            Layer(layer, engine, scaled=scaled, ranges=seen)
            for layer, seen in zip_longest(layers, ranges)
        ]
        first = PaddedFirst if kernel is None else FlatFirst
        # For the first position alone float32 costs little, and half of all that rounding costs a
        # score is in this layer.
        of_last = replace(engine, precision="fp32") if own is not None and alone else engine
        self._last = (first if alone else Layer)(last, of_last, scaled=scaled)
        self._kernels = own if own is not None and own.can_attend(self._last.width) else None
        self._stack = self._stacked(self._layers if alone else [*self._layers, self._last])
        self._alone = self._last if alone and isinstance(self._last, PaddedFirst) else None

    def _stacked(self, layers: Sequence[Layer]) -> Stack | None:
        """Layers that our own kernels go through at once, if they do so with all of them."""
        parts = [layer.parts() for layer in layers]
        if self._kernels is None or not parts or any(each is None for each in parts):
            return None
        return Stack(self._kernels, [each for each in parts if each], layers[0].heads)

    @property
    def takes_any_rows(self) -> bool:
        """Whether batches may have any number of rows: nothing is prepared for each."""
        return self._stack is not None

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden state: (sequences, 1, hidden), or (sequences, positions, hidden) of all."""
        hidden = self._projected(batch)
        return self._through(hidden, self._attention(batch, hidden.rounded.dtype))

    def attended(self, batch: Batch) -> torch.Tensor:
        """All but what follows the last attention, for `finished`: (sequences, 2, hidden)."""
        if self._alone is None:
            raise AssertionError("made for all positions, or for sequences without padding")
        hidden = self._projected(batch)
        attention = self._attention(batch, hidden.rounded.dtype)
        return torch.cat(self._alone.attended(self._before(hidden, attention), attention), dim=1)

    def finished(self, attended: torch.Tensor) -> torch.Tensor:
        """What `hidden` gives for sequences of any batches that were `attended`.

        The weights of the last layer pass by once for all of them.
        """
        if self._alone is None:
            raise AssertionError("nothing of this was attended")
        first, context = attended[:, :1].contiguous(), attended[:, 1:].contiguous()
        return self._alone.finished(first, context).exact

    def _projected(self, batch: Batch) -> Hidden:
        hidden = self._embedded(batch)
        for project in self._project:
            hidden = self._both(project(hidden.rounded))
        return hidden

    def _attention(self, batch: Batch, dtype: torch.dtype) -> Padded | Own:
        if self._kernels is not None and batch.ids.shape[1] <= LONGEST:
            return Own(self._kernels, batch.ids.shape, batch.mask)
        return Padded(batch.mask, dtype, plain=self._plain)

    def _embed_plainly(self, batch: Batch) -> Hidden:
        return self._both(self._embed(input_ids=batch.ids, token_type_ids=batch.segments))

    def flat(self, batch: FlatBatch) -> torch.Tensor:
        """Last hidden state of the first tokens, shape (sequences, 1, hidden), without padding."""
        if self._kernel is None:
            raise AssertionError("made for padded sequences")
        positions = batch.positions
        if self._first_position:
            positions = positions + self._first_position
        hidden = self._embed(
            input_ids=batch.ids[None],
            token_type_ids=batch.segments[None],
            position_ids=positions[None],
        )
        for project in self._project:
            hidden = project(hidden)
        return self._through(self._both(hidden[0]), Flat(batch, self._kernel))[:, None]

    def kernel_works(self, engine: Engine) -> bool:
        """Whether the kernel computes attention for heads of this number and width."""
        heads, width = self._last.heads, self._last.width
        return self._kernel is not None and agrees(self._kernel, heads, width, engine)

    def _through(self, hidden: Hidden, attention: Any) -> torch.Tensor:
        deep = self._before(hidden, attention)
        all_done = self._alone is None and self._stack is not None and isinstance(attention, Own)
        return deep.exact if all_done else self._last(deep, attention).exact

    def _before(self, hidden: Hidden, attention: Any) -> Hidden:
        """Go through all layers but the last, or of all positions through that as well."""
        if self._stack is not None and isinstance(attention, Own):
            deep = self._stack(hidden.exact, attention.lengths)
            return Hidden(deep, deep)  # what comes next looks at what is exact
        for layer in self._layers:
            hidden = layer(hidden, attention)
        return hidden

    def _both(self, hidden: torch.Tensor) -> Hidden:
        return Hidden(hidden, hidden.float() if self._own else hidden)


def _embedding(embed: Any, exact: Any, engine: Engine) -> Callable[[Batch], Hidden] | None:
    """Embeddings by our own kernel, of ids and segments, where there is one for them.

    Args:
        exact: the same in float32.
    """
    kernels = norm_kernels(engine, exact.LayerNorm)
    # Kinds that count positions otherwise have a number of their own to begin with.
    if kernels is None or type(embed).__name__ not in {"BertEmbeddings", "ElectraEmbeddings"}:
        return None
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    words, places, kinds = (getattr(exact, name).weight.data.float() for name in names)
    norm = exact.LayerNorm
    weight, bias, eps = norm.weight.data.float(), norm.bias.data.float(), float(norm.eps)

    def embedded(batch: Batch) -> Hidden:
        tables = words, places, kinds  # exact: a rounded word would be so everywhere
        return Hidden(*kernels.embed(batch.ids, batch.segments, tables, weight, bias, eps))

    some = torch.arange(min(len(words), len(places), 8))[None]
    made = embedded(Batch(some, torch.zeros_like(some), None)).exact
    expected = embed(input_ids=some, token_type_ids=torch.zeros_like(some)).float()
    return embedded if torch.allclose(made, expected, rtol=0.05, atol=0.05) else None
