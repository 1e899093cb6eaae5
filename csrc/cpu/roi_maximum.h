// Forward of the RoI ops that take a maximum, on the CPU. A bin is a rectangle of pixels, so its
// taps serve as two ranges. Lanes run over channels as in roi_forward.h.
#pragma once

#include "cpu/roi_maximum_planar.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T, typename A, bool kArgmax>
struct MaximumChannelsLast {
  const RoiArgs& args;
  const RoiOfTask<T, A>& own;

  template <int kVectors, bool kPartial>
  inline void operator()(int64_t c, int count) const {
    constexpr int lanes = lanes_v<A>;
    int64_t out = c;
    for (int64_t ph = 0; ph < args.PH; ++ph) {
      const Range<A> ys = own.bins.y(ph);
      for (int64_t pw = 0; pw < args.PW; ++pw, out += args.C) {
        const Range<A> xs = own.bins.x(pw);
        RunningMaximum<A, kArgmax> best[kVectors];
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
            const int64_t at = y->pixel * own.W + x->pixel;
            const T* pixel = own.image + at * args.C + c;
            const auto positions = places_t<A>{} + static_cast<lane_t<A>>(at);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
              best[i].add(load_lanes<kPartial>(pixel + i * lanes, count), positions);
            }
          }
        }
        const bool empty = is_empty(ys) || is_empty(xs);
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) {
          const vector_t<A> value = empty ? vector_t<A>{} : best[i].value;
          store_lanes<kPartial>(own.pooled + out + i * lanes, value, count);
          if constexpr (kArgmax) {
            store_positions<A>(best[i].position, own.argmax + out + i * lanes, 1, count);
          }
        }
      }
    }
  }
};

template <bool kArgmax, typename T, typename A>
void maximum_forward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, A* scratch
) {
  if (args.channels_last) {
    for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
      for_channel_pieces<A, kArgmax ? 4 : 8>(
          task.c_begin, task.c_end, MaximumChannelsLast<T, A, kArgmax>{args, own}
      );
    });
    return;
  }
  RoiForwardTask part = task;
  for (; part.begin < task.end; part.begin = part.end) {
    part.end = part.begin + run_of_map(view, task, part.begin);
    maximum_of_map<kArgmax, T>(args, view, part, scratch);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
