// Depthwise convolution of channels_last images. It is memory-bound, so each thread takes 16 bytes
// of channels and a strip of adjacent output pixels: it reads an input row once per strip and row
// of taps, and converts each pixel once for all outputs that use it. A thread computes several rows
// in sequence, so rows are still in the L1 cache when it reads them again.
#include <math.h>

#include <algorithm>

#include "common/cuda.cuh"
#include "ops/conv_depthwise.h"

namespace fastvision {
namespace {

constexpr int kThreads = 128;
constexpr int kStrip = 4;                    // horizontally adjacent output pixels per thread
constexpr int kMaxRows = 8;                  // output rows per thread
constexpr int64_t kEnoughThreads = 1 << 16;  // to fill a large GPU

template <typename T>
struct alignas(16) Pack {
  static constexpr int kWidth = 16 / sizeof(T);
  T v[kWidth];
};

template <typename T>
__device__ inline void load(float (&to)[Pack<T>::kWidth], const T* from) {
  const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
#pragma unroll
  for (int i = 0; i < Pack<T>::kWidth; ++i) {
    to[i] = widen(pack.v[i]);
  }
}

// Comparisons instead of fmin and fmax, which would drop a NaN.
__device__ inline float clamp6(float x) { return x < 0 ? 0 : x > 6 ? 6 : x; }

template <int kWidth>
__device__ inline void activate(
    float (&x)[kStrip][kWidth], Activation activation, float negative_slope
) {
  const auto apply = [&](auto f) {
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[j][i] = f(x[j][i]);
      }
    }
  };
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      apply([](float v) { return v < 0 ? 0 : v; });
      break;
    case Activation::relu6:
      apply([](float v) { return clamp6(v); });
      break;
    case Activation::leaky_relu:
      apply([=](float v) { return v < 0 ? v * negative_slope : v; });
      break;
    case Activation::hardswish:
      apply([](float v) { return v * (clamp6(v + 3) * (1.0f / 6)); });
      break;
    case Activation::silu:
    case Activation::sigmoid: {
      const bool gates = activation == Activation::silu;
      apply([=](float v) {
        const float gate = 1 / (1 + expf(-v));
        return gates ? v * gate : gate;
      });
      break;
    }
  }
}

// Rows per thread and number of such bands.
struct Bands {
  int rows;
  int bands;
  int strips;  // per row
  int groups;  // of channels
};

template <typename T, int kTaps, int kStride>
__global__ void __launch_bounds__(kThreads, kTaps == 3 ? 3 : 2) conv_depthwise_kernel(
    const __grid_constant__ DepthwiseArgs args, const Bands plan
) {
  constexpr int kWidth = Pack<T>::kWidth;
  constexpr int kReach = (kStrip - 1) * kStride + kTaps;  // input pixels of a strip

  // adjacent threads take adjacent channels, then strips, then bands
  int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int c = static_cast<int>(index % plan.groups) * kWidth;
  index /= plan.groups;
  const int ow = static_cast<int>(index % plan.strips) * kStrip;
  index /= plan.strips;
  const int band = static_cast<int>(index % plan.bands);
  const int64_t image = index / plan.bands;
  if (image >= args.N) {
    return;
  }
  const int64_t input_row = static_cast<int64_t>(args.W) * args.C;
  const int64_t output_row = static_cast<int64_t>(args.OW) * args.C;
  const T* input = static_cast<const T*>(args.input) + image * args.H * input_row + c;
  const T* weight = static_cast<const T*>(args.weight) + c;
  const int64_t output_offset =
      image * args.OH * output_row + static_cast<int64_t>(ow) * args.C + c;
  const int w_begin = ow * kStride - args.pad_left;
  const int last = min((band + 1) * plan.rows, args.OH);

#pragma unroll 1
  for (int oh = band * plan.rows; oh < last; ++oh) {
    float sum[kStrip][kWidth] = {};
#pragma unroll 1
    for (int r = 0; r < kTaps; ++r) {
      const int h = oh * kStride - args.pad_top + r;
      if (h < 0 || h >= args.H) {
        continue;
      }
      float taps[kTaps][kWidth];
#pragma unroll
      for (int s = 0; s < kTaps; ++s) {
        load(taps[s], weight + static_cast<int64_t>(r * kTaps + s) * args.C);
      }
      const T* row = input + h * input_row;
#pragma unroll
      for (int x = 0; x < kReach; ++x) {
        const int w = w_begin + x;
        float pixel[kWidth] = {};
        if (w >= 0 && w < args.W) {
          load(pixel, row + static_cast<int64_t>(w) * args.C);
        }
#pragma unroll
        for (int s = 0; s < kTaps; ++s) {
          // the output of the strip whose tap s is this pixel
          if ((x - s) % kStride == 0 && x >= s && (x - s) / kStride < kStrip) {
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              sum[(x - s) / kStride][i] = fmaf(pixel[i], taps[s][i], sum[(x - s) / kStride][i]);
            }
          }
        }
      }
    }
    float scale[kWidth];
    float shift[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      scale[i] = args.scale == nullptr ? 1.0f : args.scale[c + i];
      shift[i] = args.shift == nullptr ? 0.0f : args.shift[c + i];
    }
    const int64_t offset = output_offset + oh * output_row;
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sum[j][i] = fmaf(sum[j][i], scale[i], shift[i]);
      }
      if (args.residual != nullptr && ow + j < args.OW) {
        float residual[kWidth];
        load(residual, static_cast<const T*>(args.residual) + offset + j * args.C);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sum[j][i] += residual[i];
        }
      }
    }
    activate(sum, args.activation, args.negative_slope);
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (ow + j < args.OW) {
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          pack.v[i] = narrow<T>(sum[j][i]);
        }
        *reinterpret_cast<Pack<T>*>(static_cast<T*>(args.output) + offset + j * args.C) = pack;
      }
    }
  }
}

template <typename T, int kTaps, int kStride>
void launch_shape(const DepthwiseArgs& args, cudaStream_t stream) {
  Bands plan;
  plan.groups = args.C / Pack<T>::kWidth;
  plan.strips = static_cast<int>(ceil_div(args.OW, kStrip));
  const int64_t columns = static_cast<int64_t>(args.N) * plan.strips * plan.groups;
  plan.rows = static_cast<int>(
      std::clamp<int64_t>(columns * args.OH / kEnoughThreads, 1, std::min(kMaxRows, args.OH))
  );
  plan.bands = static_cast<int>(ceil_div(args.OH, plan.rows));
  const int64_t blocks = ceil_div(columns * plan.bands, kThreads);
  if (blocks > INT32_MAX) {
    throw std::runtime_error("conv_depthwise: too large for a CUDA grid");
  }
  launch(
      conv_depthwise_kernel<T, kTaps, kStride>,
      dim3(static_cast<unsigned>(blocks)),
      kThreads,
      0,
      stream,
      args,
      plan
  );
}

template <typename T, int kTaps>
void launch_taps(const DepthwiseArgs& args, cudaStream_t stream) {
  if (args.stride == 1) {
    launch_shape<T, kTaps, 1>(args, stream);
  } else {
    launch_shape<T, kTaps, 2>(args, stream);
  }
}

}  // namespace

template <typename T>
void launch_conv_depthwise(const DepthwiseArgs& args, CUstream_st* stream) {
  if (args.taps == 3) {
    launch_taps<T, 3>(args, stream);
  } else if (args.taps == 5) {
    launch_taps<T, 5>(args, stream);
  } else {
    launch_taps<T, 7>(args, stream);
  }
}

template void launch_conv_depthwise<float>(const DepthwiseArgs&, CUstream_st*);
template void launch_conv_depthwise<half_t>(const DepthwiseArgs&, CUstream_st*);
template void launch_conv_depthwise<bfloat16_t>(const DepthwiseArgs&, CUstream_st*);

}  // namespace fastvision
