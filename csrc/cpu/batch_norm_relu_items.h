// Loops of the batch normalization kernels over items (planes or rows), vector by vector. The lanes
// of a plane share their channel's constants, the lanes of a row are different channels.
#pragma once

#include "common/prefetch.h"
#include "common/simd_sum.h"
#include "ops/batch_norm_relu.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// elements of a plane summed in float before going on in double; a second pass hits the L1 cache
constexpr int64_t kChunk = 2048;

// A vector of an item: whole; the last one if the length is not a multiple of a vector, which
// starts early and repeats lanes; or all of an item that is shorter than a vector.
enum class Span { whole, overlapping, partial };

template <Span kSpan, typename T>
inline auto load_lanes(const T* p, int64_t count) {
  if constexpr (kSpan == Span::partial) {
    return load_partial(p, static_cast<int>(count));
  } else {
    return load(p);
  }
}

// and prefetches what is read later
template <Span kSpan, typename T>
inline auto load_stream(const T* p, int64_t count, int64_t ahead = kAheadBytes) {
  const auto v = load_lanes<kSpan>(p, count);
  prefetch_ahead(p, sizeof(v) * sizeof(T) / sizeof(v[0]), ahead);
  return v;
}

template <Span kSpan, typename T, typename V>
inline void store_lanes(T* p, V v, int64_t count) {
  if constexpr (kSpan == Span::partial) {
    store_partial(p, v, static_cast<int>(count));
  } else {
    store(p, v);
  }
}

// Zeroes repeated and missing lanes; the last or first `count` lanes are valid.
template <Span kSpan, typename A>
inline vector_t<A> own_lanes(vector_t<A> v, int64_t count) {
  if constexpr (kSpan == Span::whole) {
    return v;
  } else {
    vector_t<A> lane;
    for (int i = 0; i < lanes_v<A>; ++i) {
      lane[i] = kSpan == Span::overlapping ? lanes_v<A> - 1 - i : i;
    }
    return lane < broadcast(static_cast<A>(count)) ? v : vector_t<A>{};
  }
}

// rows that are summed at a time, so that sums in memory are rarely loaded
constexpr int kRows = 4;

// Per-channel constants, by lane. Plane: the same in all lanes.
template <typename A>
struct OfPlane {
  int64_t channel;

  vector_t<A> operator()(const void* values, int64_t) const {
    return broadcast(static_cast<const A*>(values)[channel]);
  }
};

// Row: of the channels from `at` on.
template <typename A>
struct OfRow {
  vector_t<A> operator()(const void* values, int64_t at) const {
    return load(static_cast<const A*>(values) + at);
  }
};

// Calls step.run<span>(at, number of valid lanes) for the vectors of an item, from `at` on.
template <typename A, typename Step>
inline void for_vectors(int64_t at, int64_t length, const Step& step) {
  constexpr int64_t lanes = lanes_v<A>;
  for (; at + lanes <= length; at += lanes) {
    step.template run<Span::whole>(at, lanes);
  }
  if (at < length && length >= lanes) {
    step.template run<Span::overlapping>(length - lanes, length - at);
  } else if (at < length) {
    step.template run<Span::partial>(at, length - at);
  }
}

// Calls item(offset of its first element, constants) for items [begin, end).
template <typename A, typename F>
inline void for_items(const BatchNormReluArgs& args, int64_t begin, int64_t end, const F& item) {
  for (int64_t i = begin; i < end; ++i) {
    if (args.planes) {
      item(i * args.length, OfPlane<A>{i % args.C});
    } else {
      item(i * args.length, OfRow<A>{});
    }
  }
}

template <typename T>
inline const T* at_offset(const void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<const T*>(p) + offset;
}

// elements of a per-channel array
inline int64_t padded_length(int64_t length) {
  return (length + kBatchNormPadding - 1) / kBatchNormPadding * kBatchNormPadding;
}

// partial results of a plane or a block of rows; the second ones are C elements further
inline double* partials_of(const BatchNormReluArgs& args, int64_t begin) {
  const int64_t channel = args.planes ? begin % args.C : 0;
  return args.partials + begin / args.block * 2 * args.C + channel;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
