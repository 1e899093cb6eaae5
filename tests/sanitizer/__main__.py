"""Builds the package with sanitizers and fuzzes its ops: see fuzz.py."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from .build import build, environment


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        if not {"-h", "--help"} & set(sys.argv):
            try:
                build(package)
            except subprocess.CalledProcessError as error:
                sys.exit(error.stdout)
        command = [sys.executable, "-m", "sanitizer.fuzz", *sys.argv[1:]]
        return subprocess.run(command, cwd=folder, env=environment(package)).returncode


if __name__ == "__main__":
    sys.exit(main())
