#!/bin/bash
# Installs a wheel into a clean environment and runs the tests of the ops against what got installed,
# away from the source tree.
#
#   scripts/test_wheel.sh WHEEL TORCH_VERSION [PYTEST_ARGUMENTS...]
#
# PYTHON picks the interpreter; ENVIRONMENT names a folder to keep and reuse, with its torch.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
torch=$2
shift 2
case $(basename "$wheel") in
  *-py3-none-*) ;;
  *) echo "$wheel is not for every Python 3"; exit 1 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
environment=${ENVIRONMENT:-$work/venv}

if [ ! -x "$environment/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$environment"
fi
python=$environment/bin/python
"$python" -m pip install -q "torch==$torch" numpy pytest pytest-xdist hypothesis
"$python" -m pip install -q --no-deps --force-reinstall "$wheel"

mkdir "$work/tests"
cp -r "$root"/tests/ops "$work/tests/"
[ ! -f "$root/tests/conftest.py" ] || cp "$root/tests/conftest.py" "$work/tests/"
cp "$root/pyproject.toml" "$work/"  # pytest's settings
cd "$work"
"$python" -m fastvision info
"$python" - "$environment" <<'PYTHON'
import importlib.util
import sys
from pathlib import Path
import fastvision
from fastvision import _extension
assert _extension.missing is None, _extension.missing
assert importlib.util.find_spec("fastvision._C") is None, "it is tied to one Python"
assert Path(fastvision.__file__).is_relative_to(Path(sys.argv[1]).resolve()), fastvision.__file__
PYTHON
"$python" -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests "$@"
