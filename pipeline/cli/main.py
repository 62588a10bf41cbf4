"""The `pipeline` command: its one error boundary, its signals and its exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from errno import EACCES
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline import __version__, telemetry
from pipeline.cli import (
    augment,
    compare,
    demo,
    evaluate,
    experiments,
    export,
    lint,
    rerank,
    scale,
    stages,
    submit,
    sweep,
    tokenize,
    verify,
    windows,
)
from pipeline.errors import NO_SPACE, Interrupted, PipelineError, one_line, storage_error

if TYPE_CHECKING:
    from types import FrameType

# What libraries print of their own accord would mix with ours.
QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}

FULL = -1  # standard output could not be written: exit code 1, and nothing more to flush

# The parent of all usage errors: typer has it from click, or carries its own copy of it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
_UNREADABLE = re.compile(r"path '(?P<path>.*)' is not readable", re.IGNORECASE | re.DOTALL)

_signals: list[int] = []  # that asked us to stop

app = typer.Typer(
    name="pipeline",
    help="BM25, then a distilled reranker, into TREC run files: resumable, explained, offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stages.register(app)
tokenize.register(app)
windows.register(app)
augment.register(app)
rerank.register(app)
evaluate.register(app)
lint.register(app)
compare.register(app)
sweep.register(app)
submit.register(app)
verify.register(app)
experiments.register(app)
scale.register(app)
export.register(app)
demo.register(app)


def _version(value: bool) -> None:
    if value:
        print(f"trec-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; put it before the command.")
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def main() -> NoReturn:
    """Run the command line and exit.

    0 done; 1 the work failed; 2 usage; 3 a checker found errors; 130 and 143 interrupted, and
    resumable; 141 the reader of our output went away.
    """
    telemetry.switch_off()
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    _catch_signals()
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    except Interrupted as stop:
        code = _interrupted(stop)
    except OSError as error:  # store.py names the files it writes; what is left is our output
        _tell(storage_error("standard output", error))
        code = FULL
    if code in (141, FULL):
        # The interpreter would flush stdout once more and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1 if code == FULL else code)


def _run() -> int:
    debug = "--debug" in sys.argv[1:]
    try:
        # Not app(): that would turn a closed pipe into exit code 1.
        command = typer.main.get_command(app)
        with command.make_context("pipeline", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as error:
        if unreadable := _UNREADABLE.search(str(error)):  # nothing is wrong with the usage
            _tell(storage_error(unreadable["path"], PermissionError(EACCES, "Permission denied")))
            return 1
        error.show()  # type: ignore[attr-defined]
        return 2
    except (BrokenPipeError, Interrupted):
        raise
    except Exception as error:
        # Libraries, torch among them as it loads, may make another error of an interrupt.
        if _signals:
            raise Interrupted(_signals[-1]) from error
        return _failed(error, debug=debug)
    return 0


def _failed(error: Exception, *, debug: bool) -> int:
    """Tell what went wrong; what is no mistake of the user's comes as it is where they debug."""
    if isinstance(error, PipelineError):
        if debug:
            traceback.print_exc()
        _tell(error)
        return error.exit_code
    if isinstance(error, MemoryError):
        print("pipeline: out of memory\n  lower --threads or --depth", file=sys.stderr)
        return 1
    if isinstance(error, OSError) and error.errno in NO_SPACE and error.filename is None:
        raise error
    if debug:
        raise error
    name = type(error).__name__
    print(
        f"pipeline: unexpected {name}: {one_line(str(error))[:300]}\n"
        "  a fault of the program: run it again as `pipeline --debug ...` and report it",
        file=sys.stderr,
    )
    return 1


def _tell(error: PipelineError) -> None:
    print(f"pipeline: {error.message}\n  {error.hint}", file=sys.stderr)


def _interrupted(stop: Interrupted) -> int:
    print(
        "\npipeline: interrupted; finished parts are kept\n  run the same command again to go on",
        file=sys.stderr,
    )
    return stop.exit_code


def _catch_signals() -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        _signals.append(number)
        raise Interrupted(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    main()
