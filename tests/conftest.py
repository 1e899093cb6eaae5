"""Without a CUDA device Triton's kernels run in its interpreter, on CPU tensors."""

import os

import torch

if not torch.cuda.is_available():
    # read when triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
