"""Run the tests, the long ones in full, and write docs/soak.md: counts, seconds, what they did.

A test says what it did with pytest's `record_property` (kills, examples, pairs ...); the summary
shows that beside its seconds. With arguments for pytest the summary goes to stdout, because it is
then not one of everything.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "soak.md"
LONG = 10.0  # seconds; tests above it are listed one by one
TEST_TIMEOUT = 7200


@dataclass(frozen=True)
class Case:
    """One test: where, how long, how it ended, and what it recorded."""

    file: str
    name: str
    seconds: float
    outcome: str
    note: str


def read_cases(junit: Path) -> list[Case]:
    """Read pytest's JUnit file, which this script made a moment ago."""
    cases = []
    for node in ET.parse(junit).getroot().iter("testcase"):  # noqa: S314 - our own file
        outcome, reason = "passed", ""
        for kind in ("failure", "error", "skipped"):
            found = node.find(kind)
            if found is not None:
                outcome, reason = kind, (found.get("message") or "").splitlines()[0][:150]
        recorded = [f"{p.get('name')} {p.get('value')}" for p in node.iter("property")]
        file = node.get("file") or "unknown"
        note = ", ".join([*recorded, reason] if reason else recorded)
        cases.append(
            Case(file, node.get("name") or "", float(node.get("time") or 0), outcome, note)
        )
    return cases


def commit() -> str:
    """Name the commit under test, and say if files differ from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs/soak.md")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (
        " and changes" if changed else ""
    )


def processor() -> str:
    """Name the processor as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Set a Markdown table."""
    rule = ["---", *["---:" if h in {"tests", "seconds"} else "---" for h in header[1:]]]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in [header, rule, *escaped]]


def report(cases: list[Case], seconds: float) -> str:
    """Set the summary as Markdown."""
    outcomes: dict[str, int] = defaultdict(int)
    files: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        outcomes[case.outcome] += 1
        files[case.file].append(case)
    words = {"failure": "failed", "error": "errors", "skipped": "skipped", "passed": "passed"}
    counted = ", ".join(f"{outcomes[k]} {w}" for k, w in words.items() if outcomes[k])
    lines = [
        "# Soak test",
        "",
        "Written by `scripts/soak`: every test, the long ones in full.",
        "",
        f"- Result: **{counted or 'no tests'}** in {seconds:,.0f} s",
        f"- Date: {time.strftime('%Y-%m-%d', time.gmtime())}, commit {commit()}",
        f"- Machine: {processor()}, {os.cpu_count()} CPUs, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}",
        "",
        f"## Tests of {LONG:.0f} seconds and more, or that recorded what they did",
        "",
    ]
    long = [c for c in cases if c.outcome == "passed" and (c.seconds >= LONG or c.note)]
    lines += table(
        ["test", "seconds", "what it did"],
        [
            [f"`{c.file}::{c.name}`", f"{c.seconds:,.1f}", c.note]
            for c in sorted(long, key=lambda c: -c.seconds)
        ],
    )
    lines += ["", "## All files", ""]
    lines += table(
        ["file", "tests", "seconds"],
        [
            [f"`{file}`", str(len(of)), f"{sum(c.seconds for c in of):,.1f}"]
            for file, of in sorted(files.items())
        ],
    )
    rest = [c for c in cases if c.outcome != "passed"]
    if rest:
        lines += ["", "## Not passed", ""]
        lines += table(
            ["test", "outcome", "why"], [[f"`{c.file}::{c.name}`", c.outcome, c.note] for c in rest]
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run pytest, then write the summary; the exit code is pytest's."""
    options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        started = time.monotonic()
        junit_options = [f"--junit-xml={junit}", "-o", "junit_family=xunit1"]
        timeout = ["-o", f"timeout={TEST_TIMEOUT}"]
        code = subprocess.run(
            [sys.executable, "-m", "pytest", *junit_options, *timeout, *options],
            cwd=ROOT,
            env={**os.environ, "PIPELINE_SOAK": "1"},
            check=False,
        ).returncode
        if not junit.exists():
            return code or 1
        text = report(read_cases(junit), time.monotonic() - started)
    if options:
        print(text)
    else:
        REPORT.write_text(text, encoding="utf-8")
        print(f"soak: {REPORT.relative_to(ROOT)} written")
    return code


if __name__ == "__main__":
    sys.exit(main())
