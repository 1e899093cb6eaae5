// torch's current CUDA stream, for csrc/ops.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

// only torch's CUDA library has this symbol; weak, so that the binary also loads with a CPU-only
// torch
#pragma weak aoti_torch_get_current_cuda_stream

namespace fastvision {

inline cudaStream_t current_cuda_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fastvision
