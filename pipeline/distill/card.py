"""The card of a trained model, where nobody wrote one: what it is and how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.distill.settings import DistillConfig, TeachConfig

if TYPE_CHECKING:
    from pipeline.stage import Recipe

USE = "pipeline rerank --model THIS-FOLDER --run a.run --topics t.tsv --index i --output b.run"


def card(
    config: DistillConfig | TeachConfig,
    recipe: Recipe,
    counts: dict[str, Any],
    details: dict[str, Any],
) -> str:
    """Write a card from the settings of a training and what it counted."""
    name = config.output.parent.name or config.output.name
    kind = "two towers" if isinstance(config, DistillConfig) and config.twin else "cross-encoder"
    how = "fine-tuned by labels" if isinstance(config, TeachConfig) else "distilled"
    lines = [f"# {name}", "", f"A {kind}, {how}. Its scores are raw logits; use it by", "",
             f"    {USE}", ""]  # fmt: skip
    if kind == "cross-encoder":
        lines += ["or in transformers (`AutoModelForSequenceClassification`) and",
                  "sentence-transformers (`CrossEncoder`).", ""]  # fmt: skip
    rows = {"losses": ", ".join(f"{loss} {weight:g}" for loss, weight in config.losses.items())}
    rows |= {key: str(value) for key, value in counts.items() if key != "dev"}
    rows |= {f"development, {key}": f"{value:.4f}" for key, value in counts.get("dev", {}).items()}
    rows |= {key: str(value) for key, value in details.items()}
    lines += ["## How it was made", "", *_table(("what", "value"), rows), ""]
    settings = {name: str(value) for name, value in recipe.settings.items() if value is not None}
    lines += ["## Settings", "", *_table(("setting", "value"), settings), ""]
    inputs = {name: f"`{digest[:16]}`" for name, digest in recipe.inputs.items()}
    return "\n".join([*lines, "## Inputs", "", *_table(("input", "sha256 begins"), inputs), ""])


def _table(header: tuple[str, str], rows: dict[str, str]) -> list[str]:
    body = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items() if value]
    return [f"| {header[0]} | {header[1]} |", "|---|---|", *body]
