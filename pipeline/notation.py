"""The names of measures: ir_measures' notation, `nDCG@10`, `AP(rel=2)`, `P(judged_only=True)@5`.

A name is checked in full before anything is computed, so that a typing mistake costs seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, did_you_mean, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "AP", "R@1000", "Judged@10")

MAX_GRADE = 1_000_000  # trec_eval keeps a counter for every grade up to the highest
MAX_CUTOFF = 1_000_000_000
MAX_NAME = 200  # characters

COUNTS = frozenset({"NumQ", "NumRel", "NumRet"})
"""Measures that are added up, not averaged."""

_SUBTOPICS = frozenset(
    {"ERR_IA", "nERR_IA", "alpha_DCG", "alpha_nDCG", "NRBP", "nNRBP", "AP_IA", "P_IA", "StRecall"}
)
EXAMPLES = "nDCG@10, RR@10, AP(rel=2), R@1000, Judged@10"


@dataclass(frozen=True)
class Measure:
    """One measure: its canonical ir_measures spelling, its kind (`nDCG`) and its parameters."""

    name: str
    kind: str = field(compare=False)
    params: Mapping[str, Any] = field(compare=False)
    source: Any = field(compare=False, repr=False)  # the ir_measures object

    @property
    def counts(self) -> bool:
        """Whether topics are added up instead of averaged: NumQ, NumRet, NumRel, NumRelRet."""
        return is_count(self.kind)

    def __getitem__(self, param: str) -> Any:
        """A parameter's value, or None where it is neither given nor has a default."""
        if param in self.params:
            return self.params[param]
        info = self.source.SUPPORTED_PARAMS.get(param)
        default = info.default if info else None
        return default if isinstance(default, bool | int | float | str | dict) else None


def is_count(name: str) -> bool:
    """Tell by its canonical name whether a measure's values are counts."""
    return name.partition("(")[0] in COUNTS


def parse_measures(names: Iterable[str], level: int | None = None) -> tuple[Measure, ...]:
    """Parse names of measures; one asked for twice, in whatever spelling, is kept once.

    A measure that has a level of relevance and does not name it gets `level`.

    Raises:
        PipelineError: an unknown name or parameter, or a measure that cannot be computed here.
    """
    measures = tuple(dict.fromkeys(parse_measure(name, level) for name in names))
    if not measures:
        raise PipelineError("no measure to compute", f"name some: {EXAMPLES}")
    return measures


def parse_measure(name: str, level: int | None = None) -> Measure:
    """Parse `nDCG@10`, `AP(rel=2)`, `P(rel=2,judged_only=True)@5`, …: ir_measures' notation.

    Raises:
        PipelineError: as `parse_measures`.
    """
    from ir_measures.measures import registry

    kind, arguments, at = _parts(name)
    if kind not in registry:
        raise PipelineError(f"no measure is called {shown(name)}", _suggestion(name, kind))
    prototype = registry[kind]
    if at is not None:
        if prototype.AT_PARAM not in prototype.SUPPORTED_PARAMS:
            raise PipelineError(f"{shown(name)}: {kind} has no cutoff", f"write {kind}")
        arguments[prototype.AT_PARAM] = at
    given = prototype.params | {
        key: _checked(name, prototype, key, value) for key, value in arguments.items()
    }
    if level is not None and "rel" not in arguments and _has_level(prototype):
        given["rel"] = level
    for key, info in prototype.SUPPORTED_PARAMS.items():
        if info.required and key not in given:
            example = f"{kind}@{'0.1' if key == 'recall' else '10'}"
            if key != prototype.AT_PARAM:
                example = f"{kind}({key}=…)"
            raise PipelineError(f"{shown(name)} needs its {key}", f"write {example}")
    source = type(prototype)(**given)
    if source.NAME in _SUBTOPICS:
        raise PipelineError(
            f"{shown(name)} needs judgements for each subtopic, which are not read here",
            f"ask for another measure: {EXAMPLES}",
        )
    return Measure(str(source), source.NAME, source.params, source)


def _has_level(prototype: Any) -> bool:
    """Whether a measure is binary, at a level that it need not name (P, AP, NumRelRet, ...)."""
    info = prototype.SUPPORTED_PARAMS.get("rel")
    return info is not None and (info.default == 1 or "rel" in prototype.params)


def _parts(name: str) -> tuple[str, dict[str, Any], Any]:
    """Split `kind(key=value)@at`. ir_measures' own parser needs what Python 3.14 has removed."""
    import ast

    try:
        if len(name) > MAX_NAME:
            raise ValueError
        node: ast.expr = ast.parse(name.strip(), mode="eval").body
        at, arguments = None, {}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            at, node = ast.literal_eval(node.right), node.left
        if isinstance(node, ast.Call) and not node.args:
            for keyword in node.keywords:
                arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
            node = node.func
        if not isinstance(node, ast.Name):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise PipelineError(f"{shown(name)} is no measure", _suggestion(name, "")) from None
    return node.id, arguments, at


def _checked(name: str, prototype: Any, key: str, value: Any) -> Any:
    """One parameter as its declared type, or an error that says what it may be."""
    known = prototype.SUPPORTED_PARAMS
    if key not in known:
        hint = did_you_mean(key, sorted(known)) if known else f"write {prototype}"
        raise PipelineError(f"{shown(name)}: {prototype.NAME} has no {shown(key)}", hint)
    info = known[key]
    if info.dtype is float and type(value) is int:
        value = float(value)
    legal = info.validate(value) and (isinstance(value, bool) == (info.dtype is bool))
    if key == "cutoff":
        legal = legal and 1 <= value <= MAX_CUTOFF
    elif key == "rel":
        legal = legal and 1 <= value <= MAX_GRADE
    elif key in ("recall", "p"):
        legal = legal and 0 <= value <= 1
    elif key == "gains" and legal:
        pairs = [*value, *value.values()]
        legal = all(type(grade) is int and abs(grade) <= MAX_GRADE for grade in pairs)
    elif isinstance(value, float):
        legal = legal and 0 <= value < math.inf
    if not legal:
        raise PipelineError(
            f"{shown(name)}: {key} cannot be {shown(value)}", f"{key}: {info.desc or 'a value'}"
        )
    return value


def _suggestion(name: str, kind: str) -> str:
    """What the user may have meant: another case, trec_eval's name, or a near miss."""
    import ir_measures
    from ir_measures.measures import registry

    for known, prototype in registry.items():
        if kind and kind.lower() == known.lower():
            meant = known if prototype.params else prototype.NAME
            return f"did you mean {name.replace(kind, meant, 1)!r}?"
    try:
        same = ir_measures.parse_trec_measure(name.replace("_cut_", "_cut."))
    except (ValueError, KeyError, TypeError, AttributeError):
        same = []
    if len(same) == 1:
        return f"that is trec_eval's name; here it is {str(same[0])!r}"
    if not kind:
        return f"write it as ir_measures does: {EXAMPLES}"
    return did_you_mean(kind, list(registry)) if len(kind) < MAX_NAME else f"known: {EXAMPLES}"
