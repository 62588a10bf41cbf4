"""The script for Slurm, run by a stand-in for a scheduler: no machine here has the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline import experiment
from pipeline.slurm import script, write

EXPERIMENT = """
name = "e"
[collection]
path = "corpus.jsonl"
[topics]
path = "topics.tsv"
[retrieve]
hits = 10
[[rerank]]
name = "words"
model = "overlap"
[evaluate]
qrels = "qrels.txt"
"""

# Runs a job at once, each task of an array after the other. Tasks of `e-words` get a signal as
# soon as they are at work: the first that its time is up, the second that it is pre-empted.
SBATCH = """\
import os, re, signal, subprocess, sys, time
from pathlib import Path
def at_work(children):
    try:
        return any(b"pipeline" in Path(f"/proc/{pid}/cmdline").read_bytes()
                   for pid in children.read_text().split())
    except FileNotFoundError:
        return False
words = sys.argv[1:]
place = next(i for i, word in enumerate(words) if not word.startswith("-"))
options = dict(word.lstrip("-").partition("=")[::2] for word in words[:place])
log = open("sbatch.log", "a")
number = str(100 + len(Path("sbatch.log").read_text().splitlines()))
assert "requeue" in options and options["signal"].startswith("B:USR1@")
if "dependency" in options:
    assert options["dependency"] == f"afterok:{int(number) - 1}", options
assert ("%a" in options["output"]) == ("array" in options), options
print(" ".join([number, options["job-name"], options.get("array", "-"), options["partition"]]),
      file=log, flush=True)
tasks = options.get("array", "1-1").split("-")
for task in range(int(tasks[0]), int(tasks[1]) + 1):
    for restart in range(3):
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": number,
                                    "SLURM_RESTART_COUNT": str(restart)}
        process = subprocess.Popen(["bash", *words[place:]], env=environment, stdout=sys.stderr)
        if options["job-name"] == "e-words" and not restart:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not at_work(children):
                time.sleep(0.01)
            time.sleep(0.2)  # bash has noted its child by now
            process.send_signal(signal.SIGUSR1 if task == 1 else signal.SIGTERM)
            code = process.wait()
            asked = Path("requeued").read_text().split() if task == 1 else [number]
            assert (code, asked) == (0 if task == 1 else 143, [number]), (code, asked)
            continue
        code = process.wait()
        assert code == 0, (options["job-name"], task, code)
        break
print(f"{number};cluster")
"""
SCONTROL = """\
import sys
assert sys.argv[1] == "requeue"
open("requeued", "a").write(sys.argv[2] + "\\n")
"""


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "my experiment.toml").write_text(EXPERIMENT)
    return tmp_path


@pytest.mark.jvm
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in looks for children in /proc")
def test_a_scheduler_runs_the_script_to_the_end(folder: Path) -> None:
    """Jobs wait for each other, are put back and go on; the runs are those of one process."""
    programs = folder / "bin"
    programs.mkdir()
    for name, code in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
        (programs / name).write_text(f"#!{sys.executable}\n{code}")
        (programs / name).chmod(0o755)
    setting = ("--set", "retrieve.hits=5")
    made = run(
        "slurm", "my experiment.toml", "--shards", "2", "-o", "e.slurm", *setting, cwd=folder
    )
    assert made.returncode == 0, made.stderr

    done = subprocess.run(
        ["bash", "e.slurm", "--partition=day"],
        cwd=folder, env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    jobs = ["e-index -", "e-retrieve 1-2", "e-retrieve-merge -", "e-words 1-2", "e-words-merge -",
            "e-evaluate -"]  # fmt: skip
    log = (folder / "sbatch.log").read_text().splitlines()
    assert log == [f"{100 + number} {job} day" for number, job in enumerate(jobs)]
    assert "e-evaluate: job 105" in done.stdout
    again = run("run", "my experiment.toml", *setting, "--json", cwd=folder)
    assert '"computed": true' not in again.stdout
    runs = folder / "runs" / "e"
    several = {name: (runs / name).read_bytes() for name in ("bm25.run", "words.run")}
    assert run("clean", "my experiment.toml", "--outputs", cwd=folder).returncode == 0
    assert run("run", "my experiment.toml", *setting, cwd=folder).returncode == 0
    assert several == {name: (runs / name).read_bytes() for name in several}


def test_the_script_is_well_formed_whatever_the_names(folder: Path) -> None:
    """Bash parses it; the experiment is named by its absolute place."""
    plan = experiment.load(folder / "my experiment.toml")
    text = script(plan, 16, ["rerank.words.tag='it''s'"])
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"experiment='{folder}/my experiment.toml'" in text
    with refused("--shards 0 is out of range"):
        script(plan, 0)


def test_nothing_of_others_is_written_over(folder: Path) -> None:
    """A script of ours is."""
    plan = experiment.load(folder / "my experiment.toml")
    (folder / "mine.sh").write_text("echo mine\n")
    with refused("mine.sh: exists already"):
        write(plan, 2, folder / "mine.sh")
    write(plan, 2, folder / "e.slurm")
    write(plan, 3, folder / "e.slurm")
    assert "shards=3" in (folder / "e.slurm").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard", "1/2"), "none is named"),
        (("--shard", "1/2", "--until", "index"), "index is done whole"),
        (("--shard", "1/2", "--until", "words"), "and words needs it"),
    ],
)
def test_a_share_of_an_experiment_is_one_of_a_stage(
    words: tuple[str, ...], said: str, folder: Path
) -> None:
    """Sixteen jobs must not all make what the stage needs."""
    done = run("run", "my experiment.toml", *words, cwd=folder)
    assert done.returncode == 1
    assert said in done.stderr
    assert "--until" in done.stderr
    assert not (folder / "runs").exists()
