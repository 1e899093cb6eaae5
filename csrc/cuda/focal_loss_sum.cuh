// Deterministic sums of a whole launch: each block stores its own sum, and the last block to finish
// adds them in order of block index. The number of blocks only depends on the sizes.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"

namespace fastvision {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxBlocks = 1024;
constexpr unsigned kWarpMask = 0xffffffffu;

inline unsigned blocks_for(int64_t tiles) {
  return static_cast<unsigned>(tiles < 1 ? 1 : tiles < kMaxBlocks ? tiles : kMaxBlocks);
}

template <typename A>
__device__ inline A warp_sum(A x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    x += __shfl_xor_sync(kWarpMask, x, bits);
  }
  return x;
}

// The result is valid in thread 0.
__device__ inline double block_sum(double x) {
  __shared__ double sums[kWarps];
  x = warp_sum(x);
  __syncthreads();  // the array may still be read
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = x;
  }
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps; ++i) {
      sum += sums[i];
    }
  }
  return sum;
}

struct Partials {
  double* sums;      // [kMaxBlocks]
  unsigned* ticket;  // zero before the launch
};

inline Partials carve(Workspace& workspace) {
  return {workspace.take<double>(kMaxBlocks), workspace.take<unsigned>(1)};
}

inline Partials begin_sum(void* memory, bool sums, cudaStream_t stream) {
  Workspace workspace(memory);
  const Partials partials = carve(workspace);
  if (sums) {
    check_cuda(cudaMemsetAsync(partials.ticket, 0, sizeof *partials.ticket, stream), "focal loss");
  }
  return partials;
}

template <typename A>
__device__ inline void finish_sum(double sum, const Partials& partials, A* total) {
  __shared__ bool is_last;
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    partials.sums[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicAdd(partials.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) {
    return;
  }
  __threadfence();
  const volatile double* sums = partials.sums;
  double rest = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
    rest += sums[i];
  }
  rest = block_sum(rest);
  if (threadIdx.x == 0) {
    *total = static_cast<A>(rest);
  }
}

}  // namespace
}  // namespace fastvision
