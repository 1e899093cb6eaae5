// CUDA utilities for csrc/cuda: checked launches, 16-bit types and workspaces. Includes no torch
// header, since the same sources also compile for the host against tests/cuda_emulation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/scalar.h"

// Declares `name`, the dynamic shared memory of the launch: an array of bytes aligned to 16.
#ifdef FASTVISION_CUDA_EMULATION
#define FASTVISION_DYNAMIC_SHARED(name) unsigned char* name = ::cuda_emulation::dynamic_shared()
#else
#define FASTVISION_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace fastvision {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears the error, or the next call would report it
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// Launches kernel<<<grid, block, shared_bytes, stream>>>(arguments...) and throws if that fails.
template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...),
    dim3 grid,
    dim3 block,
    size_t shared_bytes,
    cudaStream_t stream,
    Arguments&&... arguments
) {
  constexpr size_t kDefaultSharedLimit = 48 * 1024;
  if (shared_bytes > kDefaultSharedLimit) {
    check_cuda(
        cudaFuncSetAttribute(
            reinterpret_cast<const void*>(kernel),
            cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(shared_bytes)
        ),
        "shared memory of a kernel"
    );
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(
      cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "kernel launch"
  );
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Converts any storage type to the compute type (float, or double for double), and back with
// rounding to nearest even.
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(half_t x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline float widen(bfloat16_t x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

template <typename T>
__device__ inline T narrow(accumulate_t<T> x) {
  return x;
}
template <>
__device__ inline half_t narrow<half_t>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ inline bfloat16_t narrow<bfloat16_t>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// Hands out aligned pieces of one allocation. With a null base it only adds up their sizes, so one
// function can both measure and lay out a workspace.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace fastvision
