// Forward of the RoI ops on the CPU. Lanes run over channels in both memory formats: channels_last
// has them side by side; NCHW is reduced vertically first, with lanes along the row, and only what
// is left is transposed.
#pragma once

#include "common/roi_op.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Reduces a vector of channels over a bin's pixels, one add() each. weight() is what a pixel is
// added with: by its taps on both axes, or by one where the axes are reduced one after the other.
template <typename Reduction, typename A>
struct Accumulator;

template <typename A>
struct Accumulator<WeightedSum, A> {
  vector_t<A> value = {};

  static inline vector_t<A> weight(const Tap<A>& y, const Tap<A>& x) {
    return broadcast(y.weight * x.weight);
  }
  static inline vector_t<A> weight(const Tap<A>& tap) { return broadcast(tap.weight); }
  inline void add(vector_t<A> pixel, vector_t<A> weight) {
    value = multiply_add(pixel, weight, value);
  }
};

template <typename Reduction, typename T, typename A>
struct PoolChannelsLast {
  const RoiArgs& args;
  RoiBins<A> bins;
  const T* map;  // [H, W, C]
  int64_t W;
  T* pooled;  // [PH, PW, C]

  template <int kVectors, bool kPartial>
  // not inlined: among its caller's variables, those of the loops do not fit the registers
  __attribute__((noinline)) void operator()(int64_t c, int count) const {
    using Sum = Accumulator<Reduction, A>;
    constexpr int lanes = lanes_v<A>;
    // copies, since the compiler reloads members after each store
    const RoiBins<A> of = bins;
    const int64_t C = args.C, PH = args.PH, PW = args.PW, row_size = W * C;
    const T* image = map + c;
    T* out = pooled + c;
    for (int64_t ph = 0; ph < PH; ++ph) {
      const Range<A> ys = of.y(ph);
      for (int64_t pw = 0; pw < PW; ++pw, out += C) {
        const Range<A> xs = of.x(pw);
        Sum sum[kVectors];
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          const T* row = image + y->pixel * row_size;
          for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
            const T* pixel = row + x->pixel * C;
            const auto weight = Sum::weight(*y, *x);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
              sum[i].add(load_lanes<kPartial>(pixel + i * lanes, count), weight);
            }
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) {
          store_lanes<kPartial>(out + i * lanes, sum[i].value, count);
        }
      }
    }
  }
};

template <typename Reduction, typename T, typename A>
inline void pool_planar(
    const RoiArgs& args,
    const RoiBins<A>& bins,
    const RoiFootprint& roi,
    const Planes<const T, lanes_v<A>>& maps,  // [H, W] each
    const T* tensor_end,
    int64_t W,
    const Planes<T, lanes_v<A>>& pooled,  // [PH, PW] each
    A* scratch
) {
  using Sum = Accumulator<Reduction, A>;
  constexpr int lanes = lanes_v<A>;
  const int64_t width = roi.x_end - roi.x_begin;
  A* columns = scratch;                           // [width][lanes]
  A* sums = columns + roi_padded(width) * lanes;  // [bins of a batch][lanes]
  const int64_t batch = roi_batch_rows(args);
  const uint64_t mask = columns_with_taps(bins, roi, args.PW);
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = min(args.PH, first + batch);
    A* sum_out = sums;
    for (int64_t ph = first; ph < last; ++ph) {
      const Range<A> ys = bins.y(ph);
      for (int64_t i = 0; i < width; i += lanes) {
        if (!has_taps<A>(mask, i)) {
          continue;
        }
        Sum sum[lanes];  // of columns, one plane each
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          const int64_t offset = y->pixel * W + roi.x_begin + i;
          const auto weight = Sum::weight(*y);
          vector_t<A> value[lanes];
          maps.load_all(offset, min(lanes, width - i), tensor_end, value);
#pragma GCC unroll 16
          for (int c = 0; c < lanes; ++c) {
            sum[c].add(value[c], weight);
          }
        }
        vector_t<A> column[lanes];
#pragma GCC unroll 16
        for (int c = 0; c < lanes; ++c) {
          column[c] = sum[c].value;
        }
        transpose(column);
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
          store(columns + (i + j) * lanes, column[j]);
        }
      }
      for (int64_t pw = 0; pw < args.PW; ++pw, sum_out += lanes) {
        const Range<A> xs = bins.x(pw);
        Sum sum;
        for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
          sum.add(load(columns + (x->pixel - roi.x_begin) * lanes), Sum::weight(*x));
        }
        store(sum_out, sum.value);
      }
    }
    deinterleave(sums, pooled, first * args.PW, (last - first) * args.PW);
  }
}

template <typename Reduction, typename Channels, typename T, typename A>
void forward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, A* scratch
) {
  static_assert(Channels::kSharedByBins, "the kernels take all bins from one pixel or plane");
  constexpr int lanes = lanes_v<A>;
  for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
    if (args.channels_last) {
      for_channel_pieces<A>(
          task.c_begin,
          task.c_end,
          PoolChannelsLast<Reduction, T, A>{args, own.bins, own.image, own.W, own.pooled}
      );
      return;
    }
    for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
      const auto maps = own.template maps<lanes>(c, task.c_end);
      const auto out = own.template pooled_planes<lanes>(c, task.c_end);
      pool_planar<Reduction, T, A>(
          args, own.bins, own.roi, maps, own.maps_end, own.W, out, scratch
      );
    }
  });
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
