#include "ops/conv_winograd_gradient.h"

#include <algorithm>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/result_memory.h"
#include "ops/conv_engine.h"
#include "ops/conv_winograd_maps.h"

namespace fastvision {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;  // transformed tiles, which stay in the L3 cache
constexpr int64_t kLeastTiles = 48, kMostTiles = 512;
constexpr int64_t kTilesOfTask = 16;
constexpr int64_t kChannelsOfTask = 8;
constexpr int64_t kLine = 64 / sizeof(float);

struct Plan {
  WinogradMaps<const float> input, gradients;
  int64_t N, left, top;
  int64_t lanes, block;  // of channels
  std::vector<float> zeros;

  int64_t C() const { return input.C; }
  int64_t K() const { return gradients.C; }
  int64_t padded_K() const { return ceil_div(K(), lanes) * lanes; }
  int64_t blocks() const { return ceil_div(K(), block); }
  int64_t channels(int64_t b) const { return std::min(block, padded_K() - b * block); }

  int64_t rows() const { return ceil_div(gradients.H, kWinogradOutputs); }
  int64_t columns() const { return ceil_div(gradients.W, kWinogradOutputs); }
  int64_t tiles() const { return N * rows() * columns(); }
  // depends on sizes only: the number of threads must not change the order of additions
  int64_t chunk() const {
    const int64_t bytes = kWinogradPositions * (C() + K()) * static_cast<int64_t>(sizeof(float));
    const int64_t most = std::clamp(kChunkBytes / bytes, kLeastTiles, kMostTiles);
    return ceil_div(tiles(), ceil_div(tiles(), most));
  }

  // Distance between positions: a cache line more than a multiple of a power of two, or all
  // positions would map to a few cache sets.
  int64_t input_plane() const { return chunk() * ceil_div(C(), lanes) * lanes + kLine; }
  int64_t gradient_plane() const { return chunk() * padded_K() + kLine; }
  int64_t sums_plane() const { return C() * padded_K() + kLine; }
};

// Transforms `count` tiles, from `begin` on of a chunk that starts at `first`.
void transform(
    const Plan& plan,
    int64_t first,
    int64_t begin,
    int64_t count,
    int64_t room,
    float* inputs,
    float* gradients
) {
  const float* pixels[kTilesOfTask * kWinogradPositions];
  const float* outputs[kTilesOfTask * kWinogradPixels];
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tile = first + begin + t, of_map = plan.rows() * plan.columns();
    const int64_t n = tile / of_map;
    const int64_t y = tile % of_map / plan.columns() * kWinogradOutputs;
    const int64_t x = tile % plan.columns() * kWinogradOutputs;
    const float* const zeros = plan.zeros.data();
    plan.input.locate<kWinogradInputs>(
        n, y - plan.top, x - plan.left, zeros, pixels + t * kWinogradPositions
    );
    plan.gradients.locate<kWinogradOutputs>(n, y, x, zeros, outputs + t * kWinogradPixels);
  }
  const WinogradInput input{
      pixels,
      inputs + begin * plan.lanes,
      plan.input_plane(),
      plan.lanes,
      room * plan.lanes,
      count,
      plan.C(),
      WinogradForm::kThree
  };
  FASTVISION_CALL(winograd_input, input);
  const WinogradGradients of_outputs{
      outputs, gradients, plan.gradient_plane(), plan.block, room, begin, count, plan.K()
  };
  FASTVISION_CALL(winograd_gradients, of_outputs);
}

void run(const Plan& plan, float* inputs, float* gradients, float* sums, float* weights) {
  const int64_t tiles = plan.tiles(), blocks = plan.blocks(), C = plan.C();
  for (int64_t first = 0; first < tiles; first += plan.chunk()) {
    const int64_t room = std::min(plan.chunk(), tiles - first);
    parallel_chunks(room, kTilesOfTask, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t += kTilesOfTask) {
          const int64_t count = std::min(kTilesOfTask, end - t);
          transform(plan, first, t, count, room, inputs, gradients);
        }
      };
    });
    parallel_chunks(kWinogradPositions * blocks, 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t position = task / blocks, b = task % blocks, k = b * plan.block;
          const WinogradProducts products{
              inputs + position * plan.input_plane(),
              gradients + position * plan.gradient_plane() + k * room,
              sums + position * plan.sums_plane() + k * C,
              room,
              C,
              plan.channels(b),
              first == 0
          };
          FASTVISION_CALL(winograd_products, products);
        }
      };
    });
  }
  const int64_t parts = ceil_div(C, kChannelsOfTask);
  parallel_chunks(blocks * parts, 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / parts, k = b * plan.block, c = task % parts * kChannelsOfTask;
        const WinogradSums of_block{
            sums + k * C,
            plan.sums_plane(),
            plan.channels(b),
            weights + k * C * kWinogradTaps,
            c,
            std::min(c + kChannelsOfTask, C),
            C,
            std::min(plan.block, plan.K() - k)
        };
        FASTVISION_CALL(winograd_weights, of_block);
      }
    };
  });
}

// grad [N, K, OH, OW] and input [N, C, H, W], channels_last float32; the convolution's options.
// Returns [K, C, 3, 3].
Tensor conv_winograd_gradient(const Tensor& grad, const Tensor& input, const Tensor& options) {
  const ConvOptions o = ConvOptions::read(options);
  STD_TORCH_CHECK(
      o.R == 3 && o.S == 3 && o.groups == 1 &&
          std::max({o.stride_y, o.stride_x, o.dilation_y, o.dilation_x}) == 1,
      "the kernel must be 3x3 of stride, dilation and groups 1"
  );
  check_dim(grad, 4, "grad");
  check_dim(input, 4, "input");
  STD_TORCH_CHECK(
      grad.scalar_type() == ScalarType::Float && input.scalar_type() == ScalarType::Float,
      "grad and input must be float32"
  );
  STD_TORCH_CHECK(
      has_channels_last_strides(grad) && has_channels_last_strides(input),
      "grad and input must be channels_last"
  );
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t OH = H + o.top + o.bottom - 2, OW = W + o.left + o.right - 2;
  STD_TORCH_CHECK(
      grad.size(0) == N && grad.size(1) == o.K && grad.size(2) == OH && grad.size(3) == OW &&
          grad.numel() > 0 && C > 0,
      "grad must have the size of the result"
  );
  const ConvPacking packing = conv_packing(ScalarType::Float, 1, C, o.K, 1);
  const Plan plan{
      {static_cast<const float*>(input.const_data_ptr()), H, W, C},
      {static_cast<const float*>(grad.const_data_ptr()), OH, OW, o.K},
      N,
      o.left,
      o.top,
      packing.lanes,
      packing.block,
      std::vector<float>(std::max(C, o.K))
  };
  const auto positions = [&](int64_t plane) {
    return empty_result(input, {kWinogradPositions * plane}, {1});
  };
  const Tensor inputs = positions(plan.input_plane());
  const Tensor gradients = positions(plan.gradient_plane());
  const Tensor sums = positions(plan.sums_plane());
  Tensor output = empty_result(input, {o.K, C, 3, 3}, {C * 9, 9, 3, 1});
  run(plan,
      static_cast<float*>(inputs.mutable_data_ptr()),
      static_cast<float*>(gradients.mutable_data_ptr()),
      static_cast<float*>(sums.mutable_data_ptr()),
      static_cast<float*>(output.mutable_data_ptr()));
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_winograd_gradient", FASTVISION_BOX(&conv_winograd_gradient));
}

}  // namespace fastvision
