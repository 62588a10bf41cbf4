"""Training checkpoints: whole or absent, safetensors and JSON only, bound to one recipe.

A checkpoint is a folder `step-00000400` with the weights, the optimiser's tensors, and `state.json`
(recipe, step, epoch, position, random number generator, log so far). The newest two are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline import store
from pipeline.errors import InputError, PipelineError, shown
from pipeline.textfile import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

KEPT = 2
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each trained parameter


def save(
    folder: Path, recipe: dict[str, Any], state: dict[str, Any], model: Any, optimiser: Any
) -> None:
    """Write the checkpoint of `state["step"]`, then drop all but the newest two."""
    from safetensors.torch import save as to_bytes

    with store.atomic_folder(folder / f"step-{state['step']:08d}") as new:
        store.write_bytes(new / "model.safetensors", to_bytes(_contiguous(model.state_dict())))
        store.write_bytes(new / "optimiser.safetensors", to_bytes(_moments(model, optimiser)))
        generator = torch.get_rng_state().numpy().tobytes().hex()
        store.write_json(
            new / "state.json", {"schema": 1, "recipe": recipe} | state | {"generator": generator}
        )
    for old in _steps(folder)[:-KEPT]:
        store.remove(old)


def load(folder: Path, recipe: dict[str, Any], model: Any, optimiser: Any) -> dict[str, Any] | None:
    """Put the newest checkpoint into model and optimiser and return its state; None without any.

    Raises:
        PipelineError: it belongs to another recipe (the message names what differs), or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = _steps(folder)
    if not found:
        return None
    newest = found[-1]
    state: dict[str, Any] = read_json(newest / "state.json")
    if differences := different(state["recipe"], recipe):
        raise PipelineError(
            f"{newest}: is the checkpoint of another training: {'; '.join(differences[:3])}",
            "put the settings back to go on with it, or add --force to start anew",
        )
    try:
        model.load_state_dict(load_file(newest / "model.safetensors"), strict=True)
        moments = load_file(newest / "optimiser.safetensors")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            newest,
            None,
            f"a damaged checkpoint ({error})",
            "delete this folder and run the same command again",
        ) from error
    for name, parameter in model.named_parameters():
        own = {key: moments[f"{key}:{name}"] for key in MOMENTS if f"{key}:{name}" in moments}
        if own:
            optimiser.state[parameter] = own
    torch.set_rng_state(
        torch.frombuffer(bytearray.fromhex(state.pop("generator")), dtype=torch.uint8)
    )
    return state


def different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name what differs between two recipes."""
    return [
        f"{key} was {shown(old.get(key))} and is {shown(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").is_file())


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _moments(model: Any, optimiser: Any) -> dict[str, Tensor]:
    """Return what AdamW knows of each trained parameter, as `exp_avg:name`."""
    return _contiguous(
        {
            f"{key}:{name}": value
            for name, parameter in model.named_parameters()
            for key, value in optimiser.state.get(parameter, {}).items()
            if key in MOMENTS
        }
    )
