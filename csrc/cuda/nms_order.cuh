// Sorts the boxes by image and score, then by image and class. Both sorts are stable, so boxes of a
// class stay ordered by score.
#pragma once

#include "cuda/nms_buffers.cuh"
#include "cuda/nms_sort.cuh"

namespace fastvision {
namespace {

// Keys ascend as scores descend: NaN first, -0 equal to +0. No score has the key of all ones.
__device__ uint64_t descending_key(float score) {
  if (score != score) {
    return 0;
  }
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}
__device__ uint64_t descending_key(double score) {
  if (score != score) {
    return 0;
  }
  const uint64_t bits = __double_as_longlong(score + 0.0);
  return (bits >> 63) != 0 ? bits : ~(bits | uint64_t{1} << 63);
}

// The threshold is rounded to the scores' type, as in a comparison with a tensor.
template <typename T>
__device__ bool takes_part(T score, bool has_threshold, double threshold) {
  using A = accumulate_t<T>;
  return !has_threshold || widen(score) > widen(narrow<T>(static_cast<A>(threshold)));
}

template <typename T>
__global__ void score_keys_kernel(
    const T* __restrict__ scores,    // [total]
    uint64_t* __restrict__ keys,     // [total] image above the score; the score alone for double
    uint32_t* __restrict__ indices,  // [total] 0, 1, 2, ...
    Shape s,
    bool has_threshold,
    double threshold
) {
  using A = accumulate_t<T>;
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= s.total) {
    return;
  }
  const T score = scores[i];
  uint64_t key =
      takes_part(score, has_threshold, threshold) ? descending_key(widen(score)) : ~uint64_t{0};
  if constexpr (sizeof(A) == sizeof(float)) {
    key = (key & 0xffffffffu) | static_cast<uint64_t>(i / s.N) << 32;
  }
  keys[i] = key;
  indices[i] = i;
}

__global__ void image_keys_kernel(
    const uint32_t* __restrict__ boxes,  // [total]
    uint64_t* __restrict__ keys,         // [total] image
    Shape s
) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < s.total) {
    keys[i] = boxes[i] / s.N;
  }
}

// Small labels keep their value. Labels with the same hash share a segment, which compares labels.
__device__ uint32_t class_hash(int64_t label) {
  const uint64_t x = static_cast<uint64_t>(label);
  const uint32_t hash = (x ^ x >> 16 ^ x >> 32 ^ x >> 48) & kNoClass;
  return hash == kNoClass ? 0 : hash;
}

template <typename T>
__global__ void group_keys_kernel(
    const uint32_t* __restrict__ order,  // [total]
    const T* __restrict__ scores,        // [total]
    const int64_t* __restrict__ idxs,    // [total] or null
    uint64_t* __restrict__ keys,         // [total] image above the class
    uint32_t* __restrict__ ranks,        // [total] 0, 1, 2, ...
    Shape s,
    bool has_threshold,
    double threshold
) {
  const uint32_t rank = blockIdx.x * kThreads + threadIdx.x;
  if (rank >= s.total) {
    return;
  }
  const uint32_t box = order[rank];
  uint32_t label = idxs == nullptr ? 0 : class_hash(idxs[box]);
  if (!takes_part(scores[box], has_threshold, threshold)) {
    label = kNoClass;
  }
  keys[rank] = static_cast<uint64_t>(box / s.N) << kClassBits | label;
  ranks[rank] = rank;
}

template <typename T>
void order_boxes(
    const NmsArgs& args, const Shape& s, const Buffers<accumulate_t<T>>& b, cudaStream_t stream
) {
  const auto* scores = static_cast<const T*>(args.scores);
  const auto blocks = static_cast<uint32_t>(ceil_div(s.total, kThreads));
  const int image_bits = bits_for(args.B);
  const auto sort = [&](const uint32_t* values, uint32_t* sorted_values, int bits) {
    sort_pairs(
        b.sort_workspace,
        b.sort_bytes,
        b.keys,
        b.groups,
        values,
        sorted_values,
        s.total,
        bits,
        stream
    );
  };

  launch(
      score_keys_kernel<T>,
      blocks,
      kThreads,
      0,
      stream,
      scores,
      b.keys,
      b.scratch,
      s,
      args.has_score_threshold,
      args.score_threshold
  );
  if (sizeof(accumulate_t<T>) == sizeof(float)) {
    sort(b.scratch, b.order, 32 + image_bits);
  } else if (args.B == 1) {
    sort(b.scratch, b.order, 64);
  } else {
    sort(b.scratch, b.ranks, 64);
    launch(image_keys_kernel, blocks, kThreads, 0, stream, b.ranks, b.keys, s);
    sort(b.ranks, b.order, image_bits);
  }

  const bool by_class = args.idxs != nullptr;
  launch(
      group_keys_kernel<T>,
      blocks,
      kThreads,
      0,
      stream,
      b.order,
      scores,
      args.idxs,
      by_class ? b.keys : b.groups,
      by_class ? b.scratch : b.ranks,
      s,
      args.has_score_threshold,
      args.score_threshold
  );
  if (by_class) {
    sort(b.scratch, b.ranks, kClassBits + image_bits);
  }
}

}  // namespace
}  // namespace fastvision
