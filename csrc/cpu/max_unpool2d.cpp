// Max unpooling, its gradient, and the gradient of max pooling.
#include "ops/max_unpool2d.h"

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// One group: pixel q of channel c is plane[q * step + c].
template <typename T>
struct Group {
  T* values;
  const int64_t* indices;
  T* plane;
  int64_t step;
  int64_t channels;
};

// Calls work(group, channels) for the groups; a whole line of channels is a constant.
template <typename T, typename Work>
bool for_groups(const MaxUnpoolArgs& args, int64_t begin, int64_t end, const Work& work) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t width = max_unpool2d_channels(args, sizeof(T));
  const int64_t step = args.channels_last ? args.C : 1;
  const int64_t groups = args.channels_last ? (args.C + width - 1) / width : args.C;
  bool inside = true;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / groups, first = item % groups * width;
    const int64_t channel = args.channels_last ? first : first * args.positions;
    const int64_t values = image * args.C * args.positions + channel;
    const int64_t pixels =
        image * args.C * args.pixels + (args.channels_last ? first : first * args.pixels);
    const int64_t channels = width < args.C - first ? width : args.C - first;
    const Group<T> group{
        static_cast<T*>(args.values) + values,
        args.indices + values,
        static_cast<T*>(args.plane) + pixels,
        step,
        channels
    };
    if (!args.channels_last) {
      inside &= work(group, [] { return int64_t(1); });
    } else if (channels == kLine) {
      inside &= work(group, [] { return kLine; });
    } else {
      inside &= work(group, [channels] { return channels; });
    }
  }
  return inside;
}

template <typename T, typename Channels>
void clear(const Group<T>& group, int64_t pixels, const Channels& channels) {
  if (channels() == group.step) {
    memset(group.plane, 0, pixels * group.step * sizeof(T));
    return;
  }
  for (int64_t q = 0; q < pixels; ++q) {
    for (int64_t c = 0; c < channels(); ++c) {
      group.plane[q * group.step + c] = T{};
    }
  }
}

inline bool is_inside(int64_t index, int64_t pixels) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(pixels);
}

template <typename T>
bool unpool(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  return for_groups<T>(args, begin, end, [&](const Group<T>& group, const auto& channels) {
    bool inside = true;
    clear(group, args.pixels, channels);
    for (int64_t i = 0; i < args.positions; ++i) {
      for (int64_t c = 0; c < channels(); ++c) {
        const int64_t index = group.indices[i * group.step + c];
        if (is_inside(index, args.pixels)) {
          group.plane[index * group.step + c] = group.values[i * group.step + c];
        } else {
          inside = false;
        }
      }
    }
    return inside;
  });
}

template <typename T>
bool unpool_backward(const MaxUnpoolArgs& args, int64_t begin, int64_t end, uint8_t* taken) {
  return for_groups<T>(args, begin, end, [&](const Group<T>& group, const auto& channels) {
    bool inside = true;
    memset(taken, 0, args.pixels * channels());
    for (int64_t i = args.positions - 1; i >= 0; --i) {
      for (int64_t c = 0; c < channels(); ++c) {
        const int64_t index = group.indices[i * group.step + c];
        T value{};
        if (is_inside(index, args.pixels)) {
          uint8_t& was_taken = taken[index * channels() + c];
          value = was_taken ? T{} : group.plane[index * group.step + c];
          was_taken = 1;
        } else {
          inside = false;
        }
        group.values[i * group.step + c] = value;
      }
    }
    return inside;
  });
}

// Adds the values to sums[index * step + c].
template <typename T, typename A, typename Channels>
bool add_up(
    const MaxUnpoolArgs& args,
    const Group<T>& group,
    const Channels& channels,
    A* sums,
    int64_t step
) {
  bool inside = true;
  for (int64_t i = 0; i < args.positions; ++i) {
    for (int64_t c = 0; c < channels(); ++c) {
      const int64_t index = group.indices[i * group.step + c];
      if (is_inside(index, args.pixels)) {
        if constexpr (sizeof(T) == sizeof(A)) {
          sums[index * step + c] += group.values[i * group.step + c];
        } else {
          sums[index * step + c] += load_partial(group.values + i * group.step + c, 1)[0];
        }
      } else {
        inside = false;
      }
    }
  }
  return inside;
}

template <typename T>
bool pool_backward(const MaxUnpoolArgs& args, int64_t begin, int64_t end, void* scratch) {
  return for_groups<T>(args, begin, end, [&](const Group<T>& group, const auto& channels) {
    using A = accumulate_t<T>;
    if constexpr (sizeof(T) == sizeof(A)) {
      clear(group, args.pixels, channels);
      return add_up(args, group, channels, group.plane, group.step);
    } else {
      A* sums = static_cast<A*>(scratch);
      memset(sums, 0, args.pixels * channels() * sizeof(A));
      const bool inside = add_up(args, group, channels, sums, channels());
      constexpr int lanes = lanes_v<A>;
      const int64_t rows = channels() == group.step ? 1 : args.pixels;
      const int64_t length = args.pixels * channels() / rows;
      for (int64_t row = 0; row < rows; ++row) {
        const A* from = sums + row * length;
        T* to = group.plane + row * group.step;
        int64_t i = 0;
        for (; i + lanes <= length; i += lanes) {
          store(to + i, load(from + i));
        }
        if (i < length) {
          store_partial(to + i, load_partial(from + i, length - i), length - i);
        }
      }
      return inside;
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
