// Writes each image's kept boxes in order of rank, and their number.
#pragma once

#include "cuda/nms_buffers.cuh"

namespace fastvision {
namespace {

// One block per image; each thread takes 16 boxes at a time.
__global__ __launch_bounds__(kMaxThreads) void compact_kernel(
    const uint8_t* __restrict__ kept,    // [B, kept_stride]
    const uint32_t* __restrict__ order,  // [total] rank -> box of the batch
    int64_t* __restrict__ indices,       // [B, max_output]
    int64_t* __restrict__ counts,        // [B]
    Shape s,
    int64_t max_output
) {
  __shared__ uint32_t warp_sums[kMaxThreads / 32];
  const int64_t image = blockIdx.x;
  kept += image * s.kept_stride;
  order += image * s.N;
  indices += image * max_output;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int64_t written = 0;
  for (int64_t base = 0; base < s.kept_stride && written < max_output; base += blockDim.x * 16) {
    const int64_t rank = base + threadIdx.x * 16;
    uint4 flags = make_uint4(0, 0, 0, 0);
    if (rank < s.kept_stride) {
      flags = *reinterpret_cast<const uint4*>(kept + rank);
    }
    const uint32_t part[4] = {flags.x, flags.y, flags.z, flags.w};
    const uint32_t own = __popc(part[0]) + __popc(part[1]) + __popc(part[2]) + __popc(part[3]);
    uint32_t sum = own;  // inclusive prefix sum over the warp
    for (int delta = 1; delta < 32; delta *= 2) {
      const uint32_t other = __shfl_up_sync(kWarpMask, sum, delta);
      sum += lane >= delta ? other : 0;
    }
    if (lane == 31) {
      warp_sums[warp] = sum;
    }
    __syncthreads();
    int64_t at = written + sum - own;
    uint32_t total = 0;
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
      at += int(w) < warp ? warp_sums[w] : 0;
      total += warp_sums[w];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      if ((part[k / 4] >> k % 4 * 8 & 1) != 0) {
        if (at < max_output) {
          indices[at] = order[rank + k] - image * s.N;
        }
        ++at;
      }
    }
    written += total;
  }
  written = min(written, max_output);
  for (int64_t i = written + threadIdx.x; i < max_output; i += blockDim.x) {
    indices[i] = -1;
  }
  if (threadIdx.x == 0) {
    counts[image] = written;
  }
}

void compact(
    const NmsArgs& args,
    const Shape& s,
    const uint8_t* kept,
    const uint32_t* order,
    cudaStream_t stream
) {
  launch(
      compact_kernel,
      static_cast<uint32_t>(args.B),
      threads_for(s.kept_stride / 16),
      0,
      stream,
      kept,
      order,
      args.indices,
      args.counts,
      s,
      args.max_output
  );
}

}  // namespace
}  // namespace fastvision
