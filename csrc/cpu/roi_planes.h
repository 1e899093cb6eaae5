// Channel planes (NCHW) for RoI kernels whose lanes are channels: a vector's worth of planes, and
// transposing between planes and lanes.
#pragma once

#include "cpu/roi_bins.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// The first `count` lanes to places that are `stride` apart.
template <typename T, typename V>
inline void store_strided(T* p, V v, int64_t stride, int count) {
  T lanes[lanes_v<accumulate_t<T>>];
  store(lanes, v);
  for (int i = 0; i < count; ++i) {
    p[i * stride] = lanes[i];
  }
}

// One vector's worth of channel planes; channels past the end repeat the last one.
template <typename T, int kLanes>
struct Planes {
  T* first;
  int64_t stride;
  int count;

  Planes(T* first, int64_t stride, int64_t channels)
      : first(first), stride(stride), count(static_cast<int>(min(channels, kLanes))) {}
  T* operator[](int i) const { return first + min(i, count - 1) * stride; }

  // Loads `n` <= lanes values at `offset` of every plane.
  template <typename V>
  inline void load_all(int64_t offset, int64_t n, const T* tensor_end, V (&out)[kLanes]) const {
    if (count == kLanes && (*this)[kLanes - 1] + offset + kLanes <= tensor_end) {
      const T* p = first + offset;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i, p += stride) {
        out[i] = load(p);
      }
    } else if ((*this)[kLanes - 1] + offset + kLanes <= tensor_end) {
      for (int i = 0; i < kLanes; ++i) {
        out[i] = load((*this)[i] + offset);
      }
    } else {
      for (int i = 0; i < kLanes; ++i) {
        out[i] = load_partial((*this)[i] + offset, static_cast<int>(n));
      }
    }
  }
};

// [channels][n] in planes to [n][lanes] in `out`, and back. The last block overlaps the one before
// it rather than being partial. To planes, few last vectors go lane by lane: for the last of 49
// bins a block takes longer.
template <typename T, typename A, int kLanes>
inline void interleave(
    const Planes<const T, kLanes>& from, int64_t offset, int64_t n, const T* tensor_end, A* out
) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t begin = n >= kLanes ? min(i, n - kLanes) : 0;
    vector_t<A> block[kLanes];
    from.load_all(offset + begin, min(kLanes, n), tensor_end, block);
    transpose(block);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      store(out + (begin + j) * kLanes, block[j]);
    }
  }
}

template <typename T, typename A, int kLanes>
inline void write_planes(const A* in, const Planes<T, kLanes>& planes, int64_t offset, int64_t n) {
  const Planes<T, kLanes> to = planes;  // by value: a store could change what is behind a reference
  for (int64_t i = 0; i < n; i += kLanes) {
    if (i > 0 && n - i <= kLanes / 4) {
      for (; i < n; ++i) {
        store_strided(to.first + offset + i, load(in + i * kLanes), to.stride, to.count);
      }
      return;
    }
    const int64_t begin = n >= kLanes ? min(i, n - kLanes) : 0;
    vector_t<A> block[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      block[j] = load(in + (begin + j) * kLanes);
    }
    transpose(block);
    T* out = to.first + offset + begin;
    if (to.count == kLanes && n >= kLanes) {
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c, out += to.stride) {
        store(out, block[c]);
      }
    } else if (n >= kLanes) {
      for (int c = 0; c < to.count; ++c, out += to.stride) {
        store(out, block[c]);
      }
    } else {
      for (int c = 0; c < to.count; ++c, out += to.stride) {
        store_partial(out, block[c], static_cast<int>(min(kLanes, n)));
      }
    }
  }
}

// Planes that are one behind the other, as those of a whole roi, are put together in cache first:
// whole lines, each written once, take half as long.
template <typename T, typename A, int kLanes>
inline void deinterleave(const A* in, const Planes<T, kLanes>& to, int64_t offset, int64_t n) {
  if (offset != 0 || to.stride != n || n > kBinsPerBatch) {
    write_planes(in, to, offset, n);
    return;
  }
  alignas(64) T lines[kLanes * kBinsPerBatch];
  write_planes(in, Planes<T, kLanes>(lines, n, to.count), 0, n);
  memcpy(to.first, lines, to.count * n * sizeof(T));
}

// One bit per vector of columns that has a tap; from the 64th on they share the last bit. A wide
// box with few samples leaves most of its columns alone.
template <typename A>
inline uint64_t columns_with_taps(const RoiBins<A>& bins, const RoiFootprint& roi, int64_t PW) {
  uint64_t mask = 0;
  for (const Tap<A>* x = bins.x(0).begin; x < bins.x(PW - 1).end; ++x) {
    mask |= uint64_t{1} << min((x->pixel - roi.x_begin) / lanes_v<A>, 63);
  }
  return mask;
}

template <typename A>
inline bool has_taps(uint64_t mask, int64_t column) {
  return mask >> min(column / lanes_v<A>, 63) & 1;
}

// A roi of a forward task: its bins, the image that it is pooled from, and where the bins go.
template <typename T, typename A>
struct RoiOfTask {
  const RoiFootprint& roi;
  RoiBins<A> bins;
  const T* image;     // [C, H, W] or [H, W, C]
  const T* maps_end;  // of all images
  int64_t W;
  int64_t plane;
  T* pooled;        // [C, PH, PW] or [PH, PW, C]
  int32_t* argmax;  // likewise, or null
  int64_t pooled_plane;

  // The planes of a vector's worth of channels from c on, in NCHW.
  template <int kLanes>
  Planes<const T, kLanes> maps(int64_t c, int64_t c_end) const {
    return {image + c * plane, plane, c_end - c};
  }
  template <int kLanes>
  Planes<T, kLanes> pooled_planes(int64_t c, int64_t c_end) const {
    return {pooled + c * pooled_plane, pooled_plane, c_end - c};
  }
  template <int kLanes>
  Planes<int32_t, kLanes> argmax_planes(int64_t c, int64_t c_end) const {
    return {argmax + c * pooled_plane, pooled_plane, c_end - c};
  }
};

template <typename T, typename A, typename F>
inline void for_each_roi(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, const F& f
) {
  const int64_t pooled_plane = args.PH * args.PW;
  for (int64_t i = task.begin; i < task.end; ++i) {
    const int64_t k = task.order[i];
    const RoiFootprint& roi = view.rois[k];
    const RoiLevel& level = args.levels[roi.level];
    const int64_t plane = level.H * level.W;
    const T* features = static_cast<const T*>(level.features);
    const int64_t first = k * args.C * pooled_plane;
    f(RoiOfTask<T, A>{
        roi,
        RoiBins<A>(args, view, k),
        features + roi.image * args.C * plane,
        features + args.N * args.C * plane,
        level.W,
        plane,
        static_cast<T*>(args.pooled) + first,
        args.argmax == nullptr ? nullptr : args.argmax + first,
        pooled_plane
    });
  }
}

// The number of rois from position `begin` on that are of one map.
template <typename A>
inline int64_t run_of_map(const RoiTapsView<A>& view, const RoiForwardTask& task, int64_t begin) {
  const RoiFootprint& first = view.rois[task.order[begin]];
  int64_t end = begin + 1;
  while (end < task.end && view.rois[task.order[end]].image == first.image &&
         view.rois[task.order[end]].level == first.level) {
    ++end;
  }
  return end - begin;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
