"""Training checkpoints: whole or absent, safetensors and JSON only, bound to one recipe.

A checkpoint is a folder `step-00000400` with the weights, the optimiser's tensors, and `state.json`
(recipe, step, epoch, position, random number generator, log so far, digests of everything). The
newest two are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline import store
from pipeline.errors import InputError, PipelineError, shown
from pipeline.report import SILENT, Reporter
from pipeline.textfile import read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

KEPT = 2
WEIGHTS, OPTIMISER = "model.safetensors", "optimiser.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each trained parameter


def save(
    folder: Path, recipe: dict[str, Any], state: dict[str, Any], model: Any, optimiser: Any
) -> None:
    """Write the checkpoint of `state["step"]`, then drop all but the newest two."""
    from safetensors.torch import save as to_bytes

    tensors = {WEIGHTS: to_bytes(_contiguous(model.state_dict()))}
    tensors[OPTIMISER] = to_bytes(_moments(model, optimiser))
    generator = torch.get_rng_state().numpy().tobytes().hex()
    record = {"schema": 1, "recipe": recipe} | state | {"generator": generator}
    record["tensors"] = {name: store.digest_bytes(data) for name, data in tensors.items()}
    with store.atomic_folder(folder / f"step-{state['step']:08d}") as new:
        for name, data in tensors.items():
            store.write_bytes(new / name, data)
        store.write_json(new / "state.json", record | {"digest": store.digest_json(record)})
    for old in _steps(folder)[:-KEPT]:
        store.remove(old)


def load(
    folder: Path,
    recipe: dict[str, Any],
    model: Any,
    optimiser: Any,
    reporter: Reporter = SILENT,
    usable: Callable[[dict[str, Any]], bool] = bool,
) -> dict[str, Any] | None:
    """Put the newest checkpoint into model and optimiser and return its state; None without any.

    One that is torn or was edited is named and deleted: what it held is computed again from the one
    before.

    Args:
        usable: whether a checkpoint's state can be gone on from; asked of those of this recipe.

    Raises:
        PipelineError: it belongs to another recipe (the message names what differs).
    """
    from safetensors.torch import load_file

    for newest in reversed(_steps(folder)):
        state = _whole(newest)
        if state is not None:
            if differences := different(state.pop("recipe"), recipe):
                raise PipelineError(
                    f"{newest}: is the checkpoint of another training: "
                    f"{'; '.join(differences[:3])}",
                    "put the settings back to go on with it, or add --force to start anew",
                )
            if usable(state):
                break
        reporter.notice(f"{newest}: a damaged checkpoint; going on from the one before")
        store.remove(newest)
    else:
        return None
    model.load_state_dict(load_file(newest / WEIGHTS), strict=True)
    moments = load_file(newest / OPTIMISER)
    for name, parameter in model.named_parameters():
        own = {key: moments[f"{key}:{name}"] for key in MOMENTS if f"{key}:{name}" in moments}
        if own:  # AdamW keeps its counter on the CPU
            optimiser.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device)
                for key, value in own.items()
            }
    torch.set_rng_state(
        torch.frombuffer(bytearray.fromhex(state.pop("generator")), dtype=torch.uint8)
    )
    return state


def _whole(checkpoint: Path) -> dict[str, Any] | None:
    """Read the state of a checkpoint; None if a byte of it is not as it was written."""
    try:
        state = read_json(checkpoint / "state.json")
    except InputError:
        return None
    if not isinstance(state, dict) or state.pop("digest", None) != store.digest_json(state):
        return None
    tensors: dict[str, str] = state.pop("tensors")
    for name, digest in tensors.items():
        path = checkpoint / name
        if not path.is_file() or store.digest_file(path) != digest:
            return None
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
