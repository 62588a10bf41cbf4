"""What keeps the libraries from calling home; set before any of them is imported.

Looked for in the sources of everything that an installation pulls in: these libraries report, or
ask a service, on their own; the others do not.
"""

from __future__ import annotations

import os

SWITCHES = {
    # huggingface_hub and transformers: what they tell the hub with each request, and the request
    # for a list of names under which to report who started the program.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # transformers: asks a service of the hub to convert a model that has no safetensors.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    # The Deep Java Library inside Anserini's jar: reports where it runs.
    "OPT_OUT_TRACKING": "true",
    # ray: reports versions and the size of a cluster that it starts.
    "RAY_USAGE_STATS_ENABLED": "0",
    # The common wish, for what comes later.
    "DO_NOT_TRACK": "1",
}


def switch_off() -> None:
    """Turn every known telemetry off in this process and its children, whatever was set before."""
    os.environ.update(SWITCHES)


def left_on() -> list[str]:
    """Name the switches that are not set as they should be."""
    return [name for name, value in SWITCHES.items() if os.environ.get(name) != value]
