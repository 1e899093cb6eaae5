// Decides in rounds which boxes of a chunk are kept, from the bits of nms_cover.cuh.
#pragma once

#include "cuda/nms_buffers.cuh"

namespace fastvision {
namespace {

enum class State { none, open, kept };

// One word of bits per 32 boxes.
struct Bits {
  uint32_t half[2 * kMaxWords];

  __device__ uint64_t word(int i) const {
    return half[2 * i] | static_cast<uint64_t>(half[2 * i + 1]) << 32;
  }
};

template <typename A>
__global__ __launch_bounds__(kMaxThreads) void decide_kernel(Buffers<A> b, Shape s, uint32_t step) {
  constexpr int kPerThread = (kMaxWords * kTile + kMaxThreads - 1) / kMaxThreads;
  __shared__ Bits open;
  __shared__ Bits kept;
  __shared__ uint32_t kept_count;
  const uint32_t offset = step << s.chunk_log2;
  if (b.counters->longest <= offset) {
    return;
  }
  const uint32_t segments = b.counters->segments;
  for (uint32_t index = blockIdx.x; index < segments; index += gridDim.x) {
    const Segment segment = b.segments[index];
    if (segment.end - segment.begin <= offset) {
      continue;
    }
    // the boxes kept so far are enough, since all others rank lower
    if (step > 0 && b.kept_counts[segment.begin] >= s.max_output) {
      continue;
    }
    const uint32_t first = segment.begin + offset;
    const uint32_t last = min(segment.end, first + (1u << s.chunk_log2));
    const uint32_t first_tile = first / kTile;
    State state[kPerThread];
    int cursor[kPerThread];  // no earlier word has a box that may still suppress this one
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const uint32_t position = first_tile * kTile + k * blockDim.x + threadIdx.x;
      const bool here = position >= first && position < last;
      state[k] = here && !(step > 0 && b.dropped[position]) ? State::open : State::none;
      cursor[k] = 0;
    }
    if (threadIdx.x == 0) {
      kept_count = step == 0 ? 0 : b.kept_counts[segment.begin];
    }
    for (;;) {
      bool waiting = false;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (first_tile * kTile + k * blockDim.x >= last) {
          break;
        }
        const unsigned open_bits = __ballot_sync(kWarpMask, state[k] == State::open);
        const unsigned kept_bits = __ballot_sync(kWarpMask, state[k] == State::kept);
        const uint32_t half = (k * blockDim.x + threadIdx.x) / 32;
        if (threadIdx.x % 32 == 0 && half < 2 * kMaxWords) {
          open.half[half] = open_bits;
          kept.half[half] = kept_bits;
        }
        waiting |= state[k] == State::open;
      }
      if (!__syncthreads_or(waiting)) {
        break;
      }
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (state[k] != State::open) {
          continue;
        }
        const uint32_t position = first_tile * kTile + k * blockDim.x + threadIdx.x;
        const int words = position / kTile - first_tile + 1;
        const uint64_t* column = b.covers + position;
        uint64_t rivals = 0;
        for (; cursor[k] < words; ++cursor[k]) {
          rivals = column[int64_t{cursor[k]} * s.total];
          rivals &= open.word(cursor[k]) | kept.word(cursor[k]);
          if (rivals != 0) {
            break;
          }
        }
        if (rivals == 0) {
          state[k] = State::kept;
        } else if ((rivals & kept.word(cursor[k])) != 0) {
          state[k] = State::none;
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const uint32_t position = first_tile * kTile + k * blockDim.x + threadIdx.x;
      if (state[k] == State::kept) {
        const uint32_t rank = b.ranks[position];
        const uint32_t image = rank / s.N;
        b.kept[int64_t{image} * s.kept_stride + (rank - image * s.N)] = 1;
        if (last < segment.end) {
          // the order does not matter: cover_by_kept only tests whether any of them covers a box
          b.kept_positions[segment.begin + atomicAdd(&kept_count, 1u)] = position;
        }
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      b.kept_counts[segment.begin] = kept_count;
    }
  }
}

template <typename A>
void decide(const Shape& s, const Buffers<A>& b, uint32_t step, cudaStream_t stream) {
  launch(
      decide_kernel<A>,
      at_most(s.total, step == 0 ? 1024 : 256),
      threads_for(int64_t{s.words} * kTile),
      0,
      stream,
      b,
      s,
      step
  );
}

}  // namespace
}  // namespace fastvision
