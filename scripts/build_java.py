"""Compile the Java classes of pipeline/jvm into pipeline/jvm/ours.jar, the same bytes every time.

usage: python scripts/build_java.py [--check]

With --check nothing is written; it ends with 1 if the jar is not what the sources make, with 3 if
that cannot be told: there is no compiler of the version that made it. The compiler is found by
JAVA_HOME, on the PATH, or where Linux keeps its Java machines.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from pipeline import java
from pipeline.store import write_bytes

COMPILER = 25  # classes of other versions do the same, but are other bytes
RUNS_ON = java.JAVA_NEEDED
SOURCES = Path(java.__file__).with_name("jvm")
JAR = SOURCES / "ours.jar"
DAY = (1980, 1, 1, 0, 0, 0)  # the first a jar can name
UNKNOWN = 3


def compiler() -> Path | None:
    """Find a compiler of the right version."""
    homes = [Path(os.environ.get("JAVA_HOME") or "/nonexistent"), *Path("/usr/lib/jvm").glob("*")]
    found = [home / "bin" / "javac" for home in homes]
    if on_path := shutil.which("javac"):
        found.append(Path(on_path))
    for path in filter(Path.is_file, found):
        told = subprocess.run([path, "-version"], capture_output=True, text=True, check=False)
        if re.match(rf"javac {COMPILER}\b", told.stdout):
            return path
    return None


def made(javac: Path) -> bytes:
    """Compile, and pack uncompressed, in the order of names, without dates."""
    packed = BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                javac, "-Xlint:all", "-Werror", "-g:none", "-proc:none", "-encoding", "UTF-8",
                "--release", str(RUNS_ON), "-cp", java.jar(), "-d", folder,
                *sorted(SOURCES.glob("*.java")),
            ],
            check=True,
        )  # fmt: skip
        with zipfile.ZipFile(packed, "w") as jar:
            for path in sorted(Path(folder).rglob("*.class")):
                name = path.relative_to(folder).as_posix()
                jar.writestr(zipfile.ZipInfo(name, DAY), path.read_bytes())
    return packed.getvalue()


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description="Compile the Java classes of pipeline/jvm.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    javac = compiler()
    if javac is None:
        print(f"no Java compiler of version {COMPILER}: install one, or set JAVA_HOME to it")
        return UNKNOWN
    data = made(javac)
    if not check:
        write_bytes(JAR, data)
        print(f"{JAR}: {len(data):,} bytes")
        return 0
    same = JAR.is_file() and JAR.read_bytes() == data
    print(f"{JAR}: {'as' if same else 'not what'} its sources make it")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
