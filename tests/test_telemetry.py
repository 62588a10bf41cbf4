"""Libraries are told not to report, before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline import telemetry


def run(program: str, **environment: str) -> str:
    """Run a program in a Python that has no switch set, unless given."""
    inherited = {k: v for k, v in os.environ.items() if k not in telemetry.SWITCHES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


REPORTS = (
    "from huggingface_hub import constants\n"
    "from transformers.utils.hub import http_user_agent\n"
    "print(constants.HF_HUB_DISABLE_TELEMETRY, 'telemetry/off' in http_user_agent())"
)


def test_the_hub_libraries_take_the_switch() -> None:
    """The control without switching off shows that the test can fail."""
    off = "from pipeline import telemetry\ntelemetry.switch_off()\n"
    assert run(REPORTS) == "False False"
    assert run(off + REPORTS) == "True True"


def test_a_switch_set_the_other_way_is_overruled() -> None:
    """Our promise does not depend on the user's environment."""
    program = (
        "import os\nfrom pipeline import telemetry\nprint(telemetry.left_on())\n"
        "telemetry.switch_off()\nprint(telemetry.left_on(), os.environ['OPT_OUT_TRACKING'])"
    )
    set_right = {**telemetry.SWITCHES, "OPT_OUT_TRACKING": "false"}
    assert run(program, **set_right) == "['OPT_OUT_TRACKING']\n[] true"


def test_a_reranker_of_python_switches_off() -> None:
    """Whoever loads a model without the command line is not reported either."""
    program = (
        "from pipeline.models.reranker import Reranker\nfrom pipeline import telemetry\n"
        "Reranker.load('overlap')\nprint(telemetry.left_on())"
    )
    assert run(program) == "[]"


def test_the_command_switches_off_before_it_loads_anything() -> None:
    """`pipeline` itself, not only the function."""
    program = (
        "import sys, pipeline.cli.main as m\nfrom pipeline import telemetry\n"
        "sys.argv = ['pipeline', '--version']\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        "print(telemetry.left_on())"
    )
    assert run(program).endswith("[]")
