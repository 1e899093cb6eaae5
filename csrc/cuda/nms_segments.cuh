// Finds the segments in the sorted boxes: runs of one class in one image.
#pragma once

#include "cuda/nms_buffers.cuh"

namespace fastvision {
namespace {

// the first position with a group not below `key`
__device__ uint32_t lower_bound(const uint64_t* groups, uint32_t total, uint64_t key) {
  uint32_t low = 0;
  uint32_t high = total;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (groups[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename A>
__device__ int64_t label_at(const Buffers<A>& b, const int64_t* idxs, uint32_t position) {
  return idxs[b.order[b.ranks[position]]];
}

template <typename T, typename A>
__global__ void segments_kernel(
    Buffers<A> b,
    const T* __restrict__ boxes,       // [total, 4]
    const int64_t* __restrict__ idxs,  // [total] or null
    Shape s
) {
  const uint32_t position = blockIdx.x * kThreads + threadIdx.x;
  if (position >= s.total) {
    return;
  }
  const T* box = boxes + int64_t{b.order[b.ranks[position]]} * 4;
  b.boxes[position] = {widen(box[0]), widen(box[1]), widen(box[2]), widen(box[3])};
  const uint64_t group = b.groups[position];
  if ((group & kNoClass) == kNoClass) {
    b.begin[position] = kNoSegment;
    return;
  }
  const uint32_t begin = lower_bound(b.groups, s.total, group);
  b.begin[position] = begin;
  if (position == begin) {
    const uint32_t end = lower_bound(b.groups, s.total, group + 1);
    b.segments[atomicAdd(&b.counters->segments, 1u)] = {begin, end};  // in any order
    atomicMax(&b.counters->longest, end - begin);
  } else if (idxs != nullptr && label_at(b, idxs, position) != label_at(b, idxs, position - 1)) {
    b.mixed[begin] = 1;
  }
}

template <typename T>
void find_segments(
    const NmsArgs& args, const Shape& s, const Buffers<accumulate_t<T>>& b, cudaStream_t stream
) {
  launch(
      segments_kernel<T, accumulate_t<T>>,
      static_cast<uint32_t>(ceil_div(s.total, kThreads)),
      kThreads,
      0,
      stream,
      b,
      static_cast<const T*>(args.boxes),
      args.idxs,
      s
  );
}

}  // namespace
}  // namespace fastvision
