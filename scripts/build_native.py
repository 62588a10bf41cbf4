"""Compile pipeline/native/kernels.c into the library beside it, the same bytes every time.

usage: python scripts/build_native.py [--check]

With --check nothing is written; it ends with 1 if the library is not what the source makes, with 3
if that cannot be told: there is no compiler of the version that made it.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.models.native import LIBRARY
from pipeline.store import write_bytes

COMPILER = "gcc (Debian 12.2.0-"  # with its binutils; others make other bytes that do the same
SOURCE = LIBRARY.with_name("kernels.c")
FLAGS = (
    "-O3", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-nostartfiles",
    "-fstack-clash-protection",
    "-fno-ident", "-s", "-Wl,--build-id=none",
)  # fmt: skip
UNKNOWN = 3


def compiler() -> str | None:
    """Find a compiler of the right version, for x86-64."""
    if (gcc := shutil.which("gcc")) is None or platform.machine() != "x86_64":
        return None
    told = subprocess.run([gcc, "--version"], capture_output=True, text=True, check=False)
    return gcc if told.stdout.startswith(COMPILER) else None


def made(gcc: str) -> bytes:
    """Compile where no path of this machine gets into the library."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SOURCE, folder)
        subprocess.run([gcc, *FLAGS, "-o", LIBRARY.name, SOURCE.name], cwd=folder, check=True)
        return (Path(folder) / LIBRARY.name).read_bytes()


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=f"Compile {SOURCE.name}.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    gcc = compiler()
    if gcc is None:
        print(f"no '{COMPILER}...' for x86-64: another compiler makes other bytes")
        return UNKNOWN
    data = made(gcc)
    if not check:
        write_bytes(LIBRARY, data)
        print(f"{LIBRARY}: {len(data):,} bytes")
        return 0
    same = LIBRARY.is_file() and LIBRARY.read_bytes() == data
    print(f"{LIBRARY}: {'as' if same else 'not what'} its source makes it")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
