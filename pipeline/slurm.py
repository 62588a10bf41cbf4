"""An experiment file -> a script for the batch scheduler Slurm: arrays of shards, then merges."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.shards import MOST
from pipeline.store import write_bytes
from pipeline.textfile import BLOCK, STREAM, open_stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.plan import Experiment

MOST_RESTARTS = 100  # a job that was put back so often gets nowhere

MADE_BY = "Made by `pipeline slurm`"

HEAD = """\
#!/usr/bin/env bash
# {made_by}; make it again when stages come or go. Start it where sbatch is:
#
#   bash {name}.slurm [options of sbatch: --partition=gpu --gres=gpu:1 --time=04:00:00 ...]
#
# It hands in one job after another, each waiting for the one before: stages that are done whole
# as single jobs, the others as arrays of {shards} shards and a merge. Every job may be pre-empted,
# cancelled or run out of time, and requeued: it goes on where it was. Started again, the script
# hands in everything again, and what is fresh is left alone.
set -euo pipefail

experiment={experiment}
shards={shards}
logs={logs}
warning=120 # seconds before its time is up, at which a job stops and puts itself back

change=({overrides}) # below, an empty list is an error to Bash before 4.4, unless so spelled

pipeline() {{ # for the background: signals go to the program itself
  exec {python} -m pipeline "$@"
}}
"""

BODY = """
if [[ ${1-} != --job ]]; then # where sbatch is
  mkdir -p "$logs"
  previous=
  hand_in() { # job name, extra option or nothing, then what the job does
    local after=${previous:+--dependency=afterok:$previous} name=$1 extra=$2
    local log=$logs/$name${extra:+-%a}.log # a shard's has its number
    shift 2
    previous=$(sbatch --parsable --requeue --open-mode=append --kill-on-invalid-dep=yes \\
      --signal="B:USR1@$warning" --job-name="$name" --output="$log" \\
      $after $extra ${options[@]+"${options[@]}"} "$script" --job "$@")
    previous=${previous%%;*}
    echo "$name: job $previous"
  }
  script=$(realpath "${BASH_SOURCE[0]}")
  options=("$@")
PLAN
  exit
fi

# What follows runs in a job.
stop() { # finished parts are kept
  local child
  for child in $(jobs -p); do
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" || true
  done
}
again() { # time is nearly up
  stop
  if ((${SLURM_RESTART_COUNT:-0} >= MOST_RESTARTS)); then
    echo "put back MOST_RESTARTS times, and not done: a part takes longer than the job may" >&2
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1
trap 'stop; exit 143' TERM INT # pre-empted: Slurm itself puts the job back

case $2 in
whole) pipeline run "$experiment" --until "$3" ${change[@]+"${change[@]}"} --quiet & ;;
shard) pipeline run "$experiment" --until "$3" --shard "$SLURM_ARRAY_TASK_ID/$shards" \
  ${change[@]+"${change[@]}"} --quiet & ;;
merge) pipeline merge --output "$3" --quiet & ;;
esac
wait $!
"""


def write(plan: Experiment, shards: int, output: Path, overrides: Sequence[str] = ()) -> None:
    """Write the script of an experiment.

    Raises:
        PipelineError: a file of somebody else lies there, or a number of shards that cannot be.
    """
    text = script(plan, shards, overrides)
    if str(output) != STREAM and output.exists():
        with open_stream(output) as file:
            if MADE_BY not in file.read(BLOCK).decode("utf-8", "replace"):
                raise PipelineError(
                    f"{output}: exists already and was not written by this command",
                    "choose another output",
                )
    write_bytes(output, text.encode())


def script(plan: Experiment, shards: int, overrides: Sequence[str] = ()) -> str:
    """Lay out the script.

    Args:
        overrides: `KEY=VALUE`, which every job is given.

    Raises:
        PipelineError: a number of shards that cannot be.
    """
    if not 1 <= shards <= MOST:
        raise PipelineError(f"--shards {shards} is out of range", f"choose from 1 to {MOST}")
    lines = []
    for step in plan.until(None):
        name = shlex.quote(f"{plan.name}-{step.name}")
        stage = shlex.quote(step.name)
        if step.share is None:
            lines.append(f'hand_in {name} "" whole {stage}')
            continue
        output = shlex.quote(str(step.output.absolute()))
        lines.append(f'hand_in {name} "--array=1-$shards" shard {stage}')
        lines.append(f'hand_in {name}-merge "" merge {output}')
    head = HEAD.format(
        name=plan.name,
        experiment=shlex.quote(str(plan.path.absolute())),
        shards=shards,
        logs=shlex.quote(str((plan.folder / "slurm").absolute())),
        made_by=MADE_BY,
        overrides=" ".join(f"--set {shlex.quote(one)}" for one in overrides),
        python=shlex.quote(sys.executable),
    )
    body = BODY.replace("MOST_RESTARTS", str(MOST_RESTARTS))
    return head + body.replace("PLAN", "\n".join(f"  {line}" for line in lines))
