// Greedy NMS as the lexicographically first maximal independent set: instead of visiting the boxes
// one by one, every box waits for the first earlier box that could suppress it, and all boxes that
// wait for none are decided in parallel. Real detections need a handful of such rounds.
//
// 1. Two stable sorts: by image and score (a box's position there is its rank), then by image and
//    class (nms_order.cuh).
// 2. A run of one class in one image is a segment; boxes below the score threshold are in none
//    (nms_segments.cuh).
// 3. Each segment is split into chunks, and step s processes chunk s of all segments:
//    a. on the whole device: drops the chunk's boxes covered by a box kept in an earlier chunk,
//       and computes which boxes of the chunk cover each other, one bit per pair (nms_cover.cuh);
//    b. one block per segment: the rounds, on these bits (nms_decide.cuh).
// 4. Writes the indices of the kept boxes in order of rank (nms_compact.cuh).
//
// Launches only depend on B and N. Steps beyond the longest segment return early.
#include "ops/nms.h"

#include "cuda/nms_buffers.cuh"
#include "cuda/nms_compact.cuh"
#include "cuda/nms_cover.cuh"
#include "cuda/nms_decide.cuh"
#include "cuda/nms_order.cuh"
#include "cuda/nms_segments.cuh"

namespace fastvision {

int64_t nms_chunk(int64_t B, int64_t N) {
  // bytes of cover bits; larger chunks mean fewer steps
  constexpr int64_t kCoverBytes = 64 << 20;
  int64_t chunk = kMaxChunk;
  while (chunk > 1024 && B * N * (chunk / 8) > kCoverBytes) {
    chunk /= 2;
  }
  return chunk;
}

template <typename T>
size_t nms_workspace_bytes(const NmsArgs& args, int64_t chunk) {
  if (args.B == 0 || args.N == 0) {
    return 0;
  }
  Workspace workspace(nullptr);
  carve<accumulate_t<T>>(args, shape_of(args, chunk), workspace);
  return workspace.used();
}

template <typename T>
void launch_nms(const NmsArgs& args, int64_t chunk, void* memory, CUstream_st* stream) {
  using A = accumulate_t<T>;
  if (args.B == 0) {
    return;
  }
  const Shape s = shape_of(args, chunk);
  if (s.total == 0) {
    compact(args, s, nullptr, nullptr, stream);
    return;
  }
  Workspace workspace(memory);
  const Buffers<A> b = carve<A>(args, s, workspace);
  check_cuda(cudaMemsetAsync(b.counters, 0, b.zeroed_bytes, stream), "memset");
  order_boxes<T>(args, s, b, stream);
  find_segments<T>(args, s, b, stream);
  const Threshold<A> threshold = round_threshold<A>(args.iou_threshold);
  const auto steps = static_cast<uint32_t>(ceil_div(args.N, chunk));
  for (uint32_t step = 0; step < steps; ++step) {
    cover(args, s, b, threshold, step, stream);
    decide(s, b, step, stream);
  }
  compact(args, s, b.kept, b.order, stream);
}

#define FASTVISION_INSTANTIATE_NMS(T)                              \
  template size_t nms_workspace_bytes<T>(const NmsArgs&, int64_t); \
  template void launch_nms<T>(const NmsArgs&, int64_t, void*, CUstream_st*);
FASTVISION_INSTANTIATE_NMS(float)
FASTVISION_INSTANTIATE_NMS(double)
FASTVISION_INSTANTIATE_NMS(half_t)
FASTVISION_INSTANTIATE_NMS(bfloat16_t)
#undef FASTVISION_INSTANTIATE_NMS

}  // namespace fastvision
