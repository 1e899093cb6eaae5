// RoI ops that take samples one by one, on the CPU: lanes run over channels, which are side by
// side.
#include "ops/roi_samples.h"

#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"
#include "cpu/roi_running_maximum.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T, typename A>
struct SamplesForward {
  const SampleBlock<A>& block;
  const T* image;
  const T* image_end;  // of the tensor: up to there whole vectors can be read
  int64_t C;
  T* pooled;
  int32_t* argmax;
  A* scratch;

  template <int kVectors, bool kPartial>
  inline void add_taps(
      vector_t<A> (&sum)[kVectors], int begin, int end, int64_t c, int count
  ) const {
    for (int tap = begin; tap < end; ++tap) {
      const T* pixel = image + block.pixel[tap] * C + c;
      const vector_t<A> weight = broadcast(block.weight[tap]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        const T* lanes = pixel + i * lanes_v<A>;
        const bool whole = !kPartial || image_end - lanes >= lanes_v<A>;
        sum[i] = multiply_add(whole ? load(lanes) : load_partial(lanes, count), weight, sum[i]);
      }
    }
  }
};

template <typename T, typename A>
struct MeanForward : SamplesForward<T, A> {
  template <int kVectors, bool kPartial>
  inline void operator()(int64_t c, int count) const {
    constexpr int lanes = lanes_v<A>;
    const SampleBlock<A>& block = this->block;
    vector_t<A> sum[kVectors] = {};
    if (!block.first) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        sum[i] = load(this->scratch + c + i * lanes);
      }
    }
    const int taps = block.samples > 0 ? block.end[block.samples - 1] : 0;
    this->template add_taps<kVectors, kPartial>(sum, 0, taps, c, count);
    if (!block.last) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        store(this->scratch + c + i * lanes, sum[i]);
      }
      return;
    }
    const vector_t<A> divisor = broadcast(block.bin_samples > 0 ? block.bin_samples : A(1));
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      store_lanes<kPartial>(this->pooled + c + i * lanes, sum[i] / divisor, count);
    }
  }
};

template <typename T, typename A, bool kArgmax>
struct MaximumForward : SamplesForward<T, A> {
  template <int kVectors, bool kPartial>
  inline void operator()(int64_t c, int count) const {
    constexpr int lanes = lanes_v<A>;
    const SampleBlock<A>& block = this->block;
    A* values = this->scratch + c;
    A* positions = values + sample_padded(this->C);
    RunningMaximum<A, kArgmax> best[kVectors];
    if (!block.first) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        best[i].value = load(values + i * lanes);
        memcpy(&best[i].position, positions + i * lanes, sizeof best[i].position);
      }
    }
    for (int s = 0, tap = 0; s < block.samples; tap = block.end[s++]) {
      vector_t<A> value[kVectors] = {};
      this->template add_taps<kVectors, kPartial>(value, tap, block.end[s], c, count);
      const auto at = places_t<A>{} + static_cast<lane_t<A>>(block.index[s]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        best[i].add(value[i], at);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      if (!block.last) {
        store(values + i * lanes, best[i].value);
        memcpy(positions + i * lanes, &best[i].position, sizeof best[i].position);
        continue;
      }
      const vector_t<A> value = block.bin_samples > 0 ? best[i].value : vector_t<A>{};
      store_lanes<kPartial>(this->pooled + c + i * lanes, value, count);
      if constexpr (kArgmax) {
        store_positions<A>(best[i].position, this->argmax + c + i * lanes, 1, count);
      }
    }
  }
};

// The gradients of a bin's channels, and in turn what share of them a sample has.
template <typename A>
struct MeanGradient {
  const A* grad;

  inline vector_t<A> of_sample(int64_t c, int32_t) const { return load(grad + c); }
};
template <typename A>
struct MaximumGradient {
  const A* grad;
  const A* argmax;

  inline vector_t<A> of_sample(int64_t c, int32_t index) const {
    places_t<A> at;
    memcpy(&at, argmax + c, sizeof at);
    const auto own = at == places_t<A>{} + static_cast<lane_t<A>>(index);
    return own ? load(grad + c) : vector_t<A>{};
  }
};

template <typename A, typename Gradient>
inline void add_to_tile(
    const SampleBlock<A>& block, const Gradient& gradient, int64_t padded, A* tile
) {
  for (int s = 0, tap = 0; s < block.samples; ++s) {
    for (; tap < block.end[s]; ++tap) {
      A* cell = tile + block.pixel[tap] * padded;
      const vector_t<A> weight = broadcast(block.weight[tap]);
      for (int64_t c = 0; c < padded; c += lanes_v<A>) {
        const vector_t<A> grad = gradient.of_sample(c, block.index[s]);
        store(cell + c, multiply_add(grad, weight, load(cell + c)));
      }
    }
  }
}

// [channels] times a factor as [padded] in the type of sums, the rest 0.
template <typename T, typename A>
inline void widen_row(const T* row, int64_t channels, int64_t padded, A divisor, A* out) {
  constexpr int lanes = lanes_v<A>;
  for (int64_t c = 0; c < padded; c += lanes) {
    const int count = static_cast<int>(min(lanes, channels - c));
    const vector_t<A> value = count == lanes ? load(row + c)
                              : count > 0    ? load_partial(row + c, count)
                                             : vector_t<A>{};
    store(out + c, value / broadcast(divisor));
  }
}

template <typename A>
inline void widen_positions(const int32_t* row, int64_t channels, int64_t padded, A* out) {
  constexpr int lanes = lanes_v<A>;
  for (int64_t c = 0; c < padded; c += lanes) {
    places_t<A> at = places_t<A>{} - 1;
    for (int i = 0; i < lanes && c + i < channels; ++i) {
      at[i] = row[c + i];
    }
    memcpy(out + c, &at, sizeof at);
  }
}

}  // namespace

#define FASTVISION_DEFINE_ROI_SAMPLES(T, A)                                              \
  void roi_samples_forward(                                                              \
      RoiKernel<T, MeanSample, AllChannels>,                                             \
      const SampleBlock<A>& block,                                                       \
      const T* image,                                                                    \
      const T* image_end,                                                                \
      int64_t C,                                                                         \
      T* pooled,                                                                         \
      int32_t* argmax,                                                                   \
      A* scratch                                                                         \
  ) {                                                                                    \
    for_channel_pieces<A>(                                                               \
        0, C, MeanForward<T, A>{{block, image, image_end, C, pooled, argmax, scratch}}   \
    );                                                                                   \
  }                                                                                      \
  void roi_samples_forward(                                                              \
      RoiKernel<T, LargestSample, AllChannels>,                                          \
      const SampleBlock<A>& block,                                                       \
      const T* image,                                                                    \
      const T* image_end,                                                                \
      int64_t C,                                                                         \
      T* pooled,                                                                         \
      int32_t* argmax,                                                                   \
      A* scratch                                                                         \
  ) {                                                                                    \
    const SamplesForward<T, A> own{block, image, image_end, C, pooled, argmax, scratch}; \
    if (argmax == nullptr) {                                                             \
      for_channel_pieces<A, 4>(0, C, MaximumForward<T, A, false>{own});                  \
    } else {                                                                             \
      for_channel_pieces<A, 4>(0, C, MaximumForward<T, A, true>{own});                   \
    }                                                                                    \
  }                                                                                      \
  void roi_samples_backward(                                                             \
      RoiKernel<T, MeanSample, AllChannels>,                                             \
      const SampleBlock<A>& block,                                                       \
      const T* grad,                                                                     \
      const int32_t*,                                                                    \
      int64_t channels,                                                                  \
      A* tile,                                                                           \
      A* scratch                                                                         \
  ) {                                                                                    \
    const int64_t padded = sample_padded(channels);                                      \
    if (block.first) {                                                                   \
      widen_row(grad, channels, padded, block.bin_samples, scratch);                     \
    }                                                                                    \
    add_to_tile(block, MeanGradient<A>{scratch}, padded, tile);                          \
  }                                                                                      \
  void roi_samples_backward(                                                             \
      RoiKernel<T, LargestSample, AllChannels>,                                          \
      const SampleBlock<A>& block,                                                       \
      const T* grad,                                                                     \
      const int32_t* argmax,                                                             \
      int64_t channels,                                                                  \
      A* tile,                                                                           \
      A* scratch                                                                         \
  ) {                                                                                    \
    const int64_t padded = sample_padded(channels);                                      \
    if (block.first) {                                                                   \
      widen_row(grad, channels, padded, A(1), scratch);                                  \
      widen_positions(argmax, channels, padded, scratch + padded);                       \
    }                                                                                    \
    add_to_tile(block, MaximumGradient<A>{scratch, scratch + padded}, padded, tile);     \
  }                                                                                      \
  void roi_samples_write(                                                                \
      const A* tile, T* grad, int64_t cells, int64_t channels, int64_t stride            \
  ) {                                                                                    \
    for (int64_t cell = 0; cell < cells; ++cell) {                                       \
      write(tile + cell * sample_padded(channels), grad + cell * stride, channels);      \
    }                                                                                    \
  }
FASTVISION_DEFINE_ROI_SAMPLES(float, float)
FASTVISION_DEFINE_ROI_SAMPLES(double, double)
FASTVISION_DEFINE_ROI_SAMPLES(half_t, float)
FASTVISION_DEFINE_ROI_SAMPLES(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
