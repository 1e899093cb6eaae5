// Max unpooling, its gradient, and the gradient of max pooling.
#include "ops/max_unpool2d.h"

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kPieceValues = 256;  // checked at a time

// Planes side by side: pixel q of channel c is plane[q * step + c].
template <typename T>
struct Group {
  T* values;
  const int64_t* indices;
  T* plane;
  int64_t step;
  int64_t channels;
};

// Whether the indices of the group's first positions are in the plane.
template <typename T>
bool are_inside(const MaxUnpoolArgs& args, const Group<T>& group, int64_t positions) {
  const int64_t runs = group.channels == group.step ? 1 : positions;
  const int64_t length = positions * group.channels / runs;
  const uint64_t last = args.pixels - 1;
  uint64_t signs = 0;  // the highest bit is that of a negative number
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t* indices = group.indices + run * group.step;
    for (int64_t i = 0; i < length; ++i) {
      const uint64_t index = static_cast<uint64_t>(indices[i]);
      signs |= index | (last - index);
    }
  }
  return signs >> 63 == 0;
}

// Calls work(group, channels) for the groups, until it returns false; one channel, as in
// contiguous tensors, and three are constants.
template <typename T, typename Work>
bool for_groups(const MaxUnpoolArgs& args, int64_t begin, int64_t end, const Work& work) {
  const int64_t positions = args.H * args.W;
  const int64_t groups = (args.C + args.group - 1) / args.group;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / groups * args.C, first = item % groups * args.group;
    const int64_t rest = args.C - first;
    Group<T> group{};
    group.step = args.channels_last ? args.C : 1;
    group.channels = args.group < rest ? args.group : rest;
    const int64_t value = image * positions + first * (args.channels_last ? 1 : positions);
    group.values = static_cast<T*>(args.values) + value;
    group.indices = args.indices + value;
    group.plane = static_cast<T*>(args.plane) + image * args.pixels +
                  first * (args.channels_last ? 1 : args.pixels);
    const bool done = !args.channels_last ? work(group, [] { return int64_t(1); })
                      : group.channels == 3
                          ? work(group, [] { return int64_t(3); })
                          : work(group, [channels = group.channels] { return channels; });
    if (!done) {
      return false;
    }
  }
  return true;
}

template <typename T>
void clear(const Group<T>& group, int64_t pixels) {
  const int64_t runs = group.channels == group.step ? 1 : pixels;
  for (int64_t run = 0; run < runs; ++run) {
    memset(group.plane + run * group.step, 0, pixels / runs * group.channels * sizeof(T));
  }
}

template <typename T>
bool unpool(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  return for_groups<T>(args, begin, end, [&](const Group<T>& group, const auto& channels) {
    if (!are_inside(args, group, args.H * args.W)) {
      return false;
    }
    clear(group, args.pixels);
    for (int64_t i = 0; i < args.H * args.W; ++i) {
      const int64_t* indices = group.indices + i * group.step;
      const T* values = group.values + i * group.step;
      for (int64_t c = 0; c < channels(); ++c) {
        group.plane[indices[c] * group.step + c] = values[c];
      }
    }
    return true;
  });
}

// Whether each index is in the tile of its position, as after pooling without overlap. kRows: of a
// tile; 0 for args.stride[0].
template <int kRows, typename T, typename Channels>
bool in_tiles(const MaxUnpoolArgs& args, const Group<T>& group, const Channels& channels) {
  const int64_t rows = kRows == 0 ? args.stride[0] : kRows;
  const uint64_t last = args.stride[1] - 1;
  for (int64_t h = 0; h < args.H; ++h) {
    uint64_t outside = 0;  // the highest bit
    for (int64_t w = 0; w < args.W; ++w) {
      const int64_t* indices = group.indices + (h * args.W + w) * group.step;
      const int64_t corner = h * args.stride[0] * args.PW + w * args.stride[1];
      for (int64_t c = 0; c < channels(); ++c) {
        uint64_t in_no_row = ~uint64_t(0);
        for (int64_t dy = 0; dy < rows; ++dy) {
          const uint64_t column = static_cast<uint64_t>(indices[c]) - corner - dy * args.PW;
          in_no_row &= column | (last - column);
        }
        outside |= in_no_row;
      }
    }
    if (outside >> 63 != 0) {
      return false;
    }
  }
  return true;
}

// Whether no two indices are equal and all are in the plane, if the tiles can tell.
template <typename T, typename Channels>
bool are_distinct(const MaxUnpoolArgs& args, const Group<T>& group, const Channels& channels) {
  const bool fits = args.stride[0] > 0 && args.stride[1] > 0 &&
                    args.stride[1] <= args.PW / args.W && args.stride[0] <= args.PH / args.H;
  if (!fits) {
    return false;
  }
  return args.stride[0] == 2 ? in_tiles<2>(args, group, channels)
                             : in_tiles<0>(args, group, channels);
}

template <typename T>
bool unpool_backward(const MaxUnpoolArgs& args, int64_t begin, int64_t end, uint8_t* taken) {
  return for_groups<T>(args, begin, end, [&](const Group<T>& group, const auto& channels) {
    if (are_distinct(args, group, channels)) {
      for (int64_t i = 0; i < args.H * args.W; ++i) {
        const int64_t* indices = group.indices + i * group.step;
        T* values = group.values + i * group.step;
        for (int64_t c = 0; c < channels(); ++c) {
          values[c] = group.plane[indices[c] * group.step + c];
        }
      }
      return true;
    }
    if (!are_inside(args, group, args.H * args.W)) {
      return false;
    }
    memset(taken, 0, args.pixels * channels());
    for (int64_t i = args.H * args.W - 1; i >= 0; --i) {
      for (int64_t c = 0; c < channels(); ++c) {
        const int64_t index = group.indices[i * group.step + c];
        uint8_t& was_taken = taken[index * channels() + c];
        group.values[i * group.step + c] = was_taken ? T{} : group.plane[index * group.step + c];
        was_taken = 1;
      }
    }
    return true;
  });
}

// sums[index * step + c] += values[c] for `count` values whose channels or indices follow each
// other
template <bool kOneChannel, typename A>
void add(A* sums, const int64_t* indices, const A* values, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; ++i) {
    sums[kOneChannel ? indices[i] : indices[i] * step + i] += values[i];
  }
}

template <bool kOneChannel, typename T, typename A>
void add_run(A* sums, const int64_t* indices, const T* values, int64_t count, int64_t step) {
  if constexpr (sizeof(T) == sizeof(A)) {
    add<kOneChannel>(sums, indices, values, count, step);
  } else {
    constexpr int64_t lanes = lanes_v<A>;
    A buffer[lanes];
    for (int64_t i = 0; i < count; i += lanes) {
      const int64_t n = lanes < count - i ? lanes : count - i;
      store(buffer, n == lanes ? load(values + i) : load_partial(values + i, static_cast<int>(n)));
      add<kOneChannel>(kOneChannel ? sums : sums + i, indices + i, buffer, n, step);
    }
  }
}

// Adds all values of a group, or returns false. In channels_last, indices are checked just before
// they are used, while they are in the cache.
template <typename T, typename A, typename Channels>
bool add_up(
    const MaxUnpoolArgs& args,
    const Group<T>& group,
    const Channels& channels,
    A* sums,
    int64_t step
) {
  const int64_t positions = args.H * args.W;
  const int64_t piece = args.channels_last ? kPieceValues / channels() + 1 : positions;
  Group<T> part = group;
  for (int64_t first = 0; first < positions; first += piece) {
    const int64_t count = piece < positions - first ? piece : positions - first;
    part.values = group.values + first * group.step;
    part.indices = group.indices + first * group.step;
    if (!are_inside(args, part, count)) {
      return false;
    }
    if (!args.channels_last) {
      add_run<true>(sums, part.indices, part.values, count, 1);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * group.step;
      add_run<false>(sums, part.indices + at, part.values + at, channels(), step);
    }
  }
  return true;
}

template <typename T, typename A>
void round_run(const A* from, T* to, int64_t count) {
  constexpr int64_t lanes = lanes_v<A>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(to + i, load(from + i));
  }
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store_partial(to + i, load_partial(from + i, rest), rest);
  }
}

template <typename T>
bool pool_backward(const MaxUnpoolArgs& args, int64_t begin, int64_t end, void* scratch) {
  return for_groups<T>(args, begin, end, [&](const Group<T>& group, const auto& channels) {
    using A = accumulate_t<T>;
    if constexpr (sizeof(T) == sizeof(A)) {
      clear(group, args.pixels);
      return add_up(args, group, channels, group.plane, group.step);
    } else {
      A* sums = static_cast<A*>(scratch);
      memset(sums, 0, args.pixels * group.channels * sizeof(A));
      if (!add_up(args, group, channels, sums, group.channels)) {
        return false;
      }
      const int64_t runs = group.channels == group.step ? 1 : args.pixels;
      const int64_t length = args.pixels * group.channels / runs;
      for (int64_t run = 0; run < runs; ++run) {
        round_run(sums + run * length, group.plane + run * group.step, length);
      }
      return true;
    }
  });
}

}  // namespace

#define FASTVISION_DEFINE_MAX_UNPOOL(T)                                                       \
  bool max_unpool2d(const T*, const MaxUnpoolArgs& args, int64_t begin, int64_t end, void*) { \
    return unpool<T>(args, begin, end);                                                       \
  }                                                                                           \
  bool max_unpool2d_backward(                                                                 \
      const T*, const MaxUnpoolArgs& args, int64_t begin, int64_t end, void* scratch          \
  ) {                                                                                         \
    return unpool_backward<T>(args, begin, end, static_cast<uint8_t*>(scratch));              \
  }                                                                                           \
  bool max_pool2d_backward(                                                                   \
      const T*, const MaxUnpoolArgs& args, int64_t begin, int64_t end, void* scratch          \
  ) {                                                                                         \
    return pool_backward<T>(args, begin, end, scratch);                                       \
  }
FASTVISION_DEFINE_MAX_UNPOOL(float)
FASTVISION_DEFINE_MAX_UNPOOL(double)
FASTVISION_DEFINE_MAX_UNPOOL(half_t)
FASTVISION_DEFINE_MAX_UNPOOL(bfloat16_t)
#undef FASTVISION_DEFINE_MAX_UNPOOL

}  // namespace fastvision::FASTVISION_ISA
