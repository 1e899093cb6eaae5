#!/bin/bash
# Builds the library for aarch64 on another machine, into build/cmake-aarch64.
#
#   apt-get install g++-aarch64-linux-gnu     what it needs besides cmake, ninja and torch's headers
#   PYTHON=.venv/bin/python scripts/cross_aarch64.sh
#
# Headers are torch's for any processor, so those of PYTHON's torch will do.
set -euo pipefail
cd "$(dirname "$0")/.."

include=$("${PYTHON:-python3}" -c "
import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec('torch').origin).parent / 'include')")
cmake -G Ninja -S . -B build/cmake-aarch64 \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DFASTVISION_CUDA=OFF -DFASTVISION_TORCH_INCLUDE="$include"
cmake --build build/cmake-aarch64
