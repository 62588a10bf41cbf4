"""A BERT cross-encoder as an ONNX graph, and the same in int8.

The graph is written down layer by layer instead of traced: it takes any number of pairs of any
length, computes the last layer for the first token alone, and needs nothing but the package onnx.
Names of inputs and outputs are those of transformers, so that its runtimes read it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
OPSET = 17  # the first with LayerNormalization; read by every runtime since 2022
IR = 8
MASKED = -1e4  # added to attention's scores of padding
EXTRA = "pip install 'trec-pipeline[export]'"


def need_packages() -> None:
    """Fail before any work.

    Raises:
        PipelineError: a package that ONNX needs is not installed.
    """
    try:
        import onnx  # noqa: F401 - asked for, not used
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise PipelineError(
            f"--onnx needs the package {error.name}, which is not installed", EXTRA
        ) from None


def need_bert(config: Any) -> None:
    """Fail before any work over a model that no graph is written for.

    Raises:
        PipelineError: the model is no BERT, or its activation is unusual.
    """
    unusual = [
        f"{name} = {getattr(config, name, None)}"
        for name, usual in (("model_type", "bert"), ("hidden_act", "gelu"))
        if getattr(config, name, None) != usual
    ]
    if unusual or getattr(config, "is_decoder", False):
        raise PipelineError(
            f"ONNX is written for BERT cross-encoders, not for {', '.join(unusual) or 'decoders'}",
            "export without --onnx, or use the exporter of the library the model comes from",
        )


def graph(model: Any) -> bytes:
    """Write down a `BertForSequenceClassification` in float32; see `need_bert`.

    Inputs are int64 of shape (pairs, length); `logits` is float32 of shape (pairs, labels).
    """
    need_bert(model.config)
    return _Graph(model).finished()


class _Graph:
    """Nodes and weights as they are collected; methods return the name of what they compute."""

    def __init__(self, model: Any) -> None:
        self._model, self._config = model, model.config
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._constants: dict[tuple[Any, ...], str] = {}

    def finished(self) -> bytes:
        import onnx
        from onnx import TensorProto, helper

        self._logits()
        pairs = ["pairs", "length"]
        made = helper.make_graph(
            self._nodes,
            "cross-encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, pairs) for name in INPUTS],
            [
                helper.make_tensor_value_info(
                    OUTPUT, TensorProto.FLOAT, ["pairs", self._config.num_labels]
                )
            ],
            self._weights,
        )
        whole = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="trec-pipeline"
        )
        whole.ir_version = IR
        onnx.checker.check_model(whole)
        return bytes(whole.SerializeToString(deterministic=True))

    # ------------------------------------------------------------ the model

    def _logits(self) -> None:
        encoder = self._model.bert
        hidden, mask = self._embeddings(encoder.embeddings), self._mask()
        *layers, last = encoder.encoder.layer
        for number, layer in enumerate(layers):
            hidden = self._layer(f"layer.{number}", layer, hidden, hidden, mask)
        first = self._node("Slice", hidden, self._ints([0]), self._ints([1]), self._ints([1]))
        first = self._layer(f"layer.{len(layers)}", last, hidden, first, mask)
        flat = self._node("Squeeze", first, self._ints([1]))
        pooled = self._node("Tanh", self._linear("pooler", encoder.pooler.dense, flat))
        self._linear("classifier", self._model.classifier, pooled, out=OUTPUT)

    def _embeddings(self, part: Any) -> str:
        words = self._node(
            "Gather", self._weight("embeddings.word", part.word_embeddings.weight), "input_ids"
        )
        kinds = self._node(
            "Gather", self._weight("embeddings.segment", part.token_type_embeddings.weight),
            "token_type_ids",
        )  # fmt: skip
        length = self._node("Slice", self._node("Shape", "input_ids"),
                            self._ints([1]), self._ints([2]))  # fmt: skip
        places = self._node(
            "Slice", self._weight("embeddings.position", part.position_embeddings.weight),
            self._ints([0]), length, self._ints([0]),
        )  # fmt: skip
        both = self._node("Add", self._node("Add", words, kinds), places)
        return self._norm("embeddings.norm", part.LayerNorm, both)

    def _mask(self) -> str:
        """What is added to attention's scores, of shape (pairs, 1, 1, length)."""
        import onnx

        real = self._node("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
        padding = self._node("Sub", self._floats(1.0), real)
        return self._node(
            "Unsqueeze", self._node("Mul", padding, self._floats(MASKED)), self._ints([1, 2])
        )

    def _layer(self, name: str, layer: Any, hidden: str, at: str, mask: str) -> str:
        """One layer for the positions `at`, which look at all of `hidden`."""
        attention, output = layer.attention.self, layer.output
        heads, width = attention.num_attention_heads, attention.attention_head_size
        split = self._ints([0, 0, heads, width])

        def by_heads(kind: str, part: Any, x: str, order: list[int]) -> str:
            projected = self._linear(f"{name}.{kind}", part, x)
            return self._node("Transpose", self._node("Reshape", projected, split), perm=order)

        query = by_heads("query", attention.query, at, [0, 2, 1, 3])
        key = by_heads("key", attention.key, hidden, [0, 2, 3, 1])
        value = by_heads("value", attention.value, hidden, [0, 2, 1, 3])
        scores = self._node("Mul", self._node("MatMul", query, key), self._floats(width**-0.5))
        weights = self._node("Softmax", self._node("Add", scores, mask), axis=-1)
        context = self._node("Transpose", self._node("MatMul", weights, value), perm=[0, 2, 1, 3])
        joined = self._node("Reshape", context, self._ints([0, 0, heads * width]))
        mixed = self._linear(f"{name}.mix", layer.attention.output.dense, joined)
        attended = self._norm(
            f"{name}.norm.1", layer.attention.output.LayerNorm, self._node("Add", mixed, at)
        )
        wide = self._gelu(self._linear(f"{name}.widen", layer.intermediate.dense, attended))
        narrow = self._linear(f"{name}.narrow", output.dense, wide)
        return self._norm(f"{name}.norm.2", output.LayerNorm, self._node("Add", narrow, attended))

    def _gelu(self, x: str) -> str:
        """Compute x / 2 * (1 + erf(x / sqrt 2)), in the order that runtimes fuse."""
        curve = self._node("Erf", self._node("Div", x, self._floats(2**0.5)))
        whole = self._node("Mul", x, self._node("Add", curve, self._floats(1.0)))
        return self._node("Mul", whole, self._floats(0.5))

    # ------------------------------------------------------------ nodes

    def _node(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = out or f"{kind.lower()}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [out], f"node.{out}", **attributes))
        return out

    def _linear(self, name: str, part: Any, x: str, out: str = "") -> str:
        weight = self._weight(f"{name}.weight", part.weight.T)
        product = self._node("MatMul", x, weight, out=f"{name}.product")
        return self._node("Add", product, self._weight(f"{name}.bias", part.bias), out=out)

    def _norm(self, name: str, norm: Any, x: str) -> str:
        weight, bias = (self._weight(f"{name}.{n}", getattr(norm, n)) for n in ("weight", "bias"))
        epsilon = float(norm.eps)
        return self._node("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def _weight(self, name: str, tensor: Any) -> str:
        self._store(name, tensor.detach().float().cpu().contiguous().numpy())
        return name

    def _ints(self, values: list[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _floats(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, array: NDArray[Any]) -> str:
        key = (array.dtype.name, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant.{len(self._constants)}"
            self._store(self._constants[key], array)
        return self._constants[key]

    def _store(self, name: str, array: NDArray[Any]) -> None:
        from onnx import numpy_helper

        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))


def quantise(source: Path, target: Path, layers: int) -> None:
    """Write a graph's matrices and embeddings in int8, a scale for each column.

    Activations are quantised as they come ("dynamic"), so that nothing has to be calibrated. The
    head stays as it is, and so does what follows the GELU: a few large numbers there would leave
    the others few steps (Kendall's tau over real pairs 0.964 instead of 0.947).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = ["pooler", "classifier", *(f"layer.{number}.narrow" for number in range(layers))]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that is of no use here
    try:
        quantize_dynamic(
            source, target, per_channel=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gather"],
            nodes_to_exclude=[f"node.{name}.product" for name in kept],
        )  # fmt: skip
    finally:
        logging.disable(before)


class Session:
    """A graph that runs on the processor.

    Raises:
        PipelineError: the runtime refuses it.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no parent
            raise PipelineError(
                f"{path.name}: the ONNX runtime refuses it ({str(error)[:200]})",
                "update onnxruntime, or export without --onnx",
            ) from error

    def logits(self, inputs: Iterator[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Run a batch; ids, mask and segments of shape (pairs, length) -> (pairs, labels)."""
        (found,) = self._session.run([OUTPUT], dict(zip(INPUTS, inputs, strict=True)))
        return np.asarray(found, np.float32)
