#include "ops/conv_winograd.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/result_memory.h"
#include "ops/conv_engine.h"
#include "ops/conv_format.h"
#include "ops/conv_taps.h"
#include "ops/conv_winograd_maps.h"

namespace fastvision {
namespace {

constexpr int64_t kTiles = 24, kFarTiles = 30;  // per task, approximately
constexpr int64_t kLeastTiles = 6;
// of a single task, when the next number of tasks is two
constexpr int64_t kMostTiles = kFarTiles + kFarTiles / 2;
constexpr int64_t kPassChannels = 64;      // output channels whose products stay in the L2 cache
constexpr int64_t kNearBytes = 256 << 10;  // weights that stay there too
constexpr int64_t kFarBytes = 8 << 20;     // weights whose reading takes longer than more tiles
constexpr int64_t kBytes = sizeof(float), kLine = 64 / kBytes;

// Packed weights: the bias [K'], then for each pass of output channels the weights of
// WinogradFactors.
struct Layout {
  ConvPacking all;
  bool is_strided;
  int64_t kinds;  // in all positions

  Layout(int64_t C, int64_t K, bool is_strided)
      : all(conv_packing(ScalarType::Float, 1, C, K, 1)),
        is_strided(is_strided),
        kinds(kinds_in_all(is_strided)) {}
  int positions() const { return positions_of(is_strided); }
  int64_t pass() const { return ceil_div(kPassChannels, all.block) * all.block; }
  int64_t passes() const { return ceil_div(all.K, pass()); }
  ConvPacking packing(int64_t p) const {
    ConvPacking packing = all;
    packing.K = std::min(pass(), all.K - p * pass());
    return packing;
  }
  int64_t offset(int64_t p) const {  // all passes before are full
    return all.bias_size() + p * (kinds * pass() * all.C + gaps());
  }
  int64_t size() const { return all.padded_K() * (1 + kinds * all.C) + passes() * gaps(); }
  int64_t gaps() const { return positions() * kWinogradGap; }
};

// weight [K, C, 3, 3], or [C, K, 3, 3] if it is to be turned: of the convolution that gives the
// gradient of the input
Tensor conv_winograd_pack(
    const Tensor& weight, const std::optional<Tensor>& bias, bool is_turned, int64_t stride
) {
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
          weight.scalar_type() == ScalarType::Float,
      "weight must be float32 of shape [K, C, 3, 3]"
  );
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  const int64_t K = weight.size(is_turned ? 1 : 0), C = weight.size(is_turned ? 0 : 1);
  const int64_t filter = is_turned ? kWinogradTaps : C * kWinogradTaps;
  const int64_t channel = is_turned ? K * kWinogradTaps : kWinogradTaps;
  const Layout layout(C, K, stride == 2);
  const Tensor from = torch::stable::contiguous(weight);
  Tensor packed = empty_result(weight, {layout.size()}, {1});
  float* to = static_cast<float*>(packed.mutable_data_ptr());
  std::fill_n(to, layout.all.bias_size(), 0.0f);
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->scalar_type() == ScalarType::Float && bias->numel() == K,
        "bias must have a float32 value per channel"
    );
    const Tensor values = torch::stable::contiguous(*bias);
    std::copy_n(static_cast<const float*>(values.const_data_ptr()), K, to);
  }
  const float* filters = static_cast<const float*>(from.const_data_ptr());
  const int64_t block = layout.all.block;
  parallel_chunks(ceil_div(K, block), 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * block; k < std::min(end * block, K); k += block) {
        const int64_t p = k / layout.pass(), in_pass = k % layout.pass();
        const ConvPacking packing = layout.packing(p);
        const WinogradFilters of_block{
            filters + k * filter,
            filter,
            channel,
            is_turned,
            layout.is_strided,
            to + layout.offset(p),
            packing.padded_K(),
            in_pass,
            std::min(block, packing.padded_K() - in_pass),
            std::min(block, K - k),
            C
        };
        FASTVISION_CALL(winograd_filters, of_block);
      }
    };
  });
  return packed;
}

struct Plan {
  WinogradMaps<const float> input, residual;  // the residual may have no data
  WinogradMaps<float> output;
  const float* packed;
  int64_t N, left, top;
  Layout layout;
  bool is_streamed;
  Activation activation;
  double negative_slope;
  std::vector<float> zeros;

  int64_t rows() const { return ceil_div(output.H, kWinogradOutputs); }
  int64_t columns() const { return ceil_div(output.W, kWinogradOutputs); }
  int64_t tiles() const { return N * rows() * columns(); }

  // Distance between positions in scratch memory: a cache line more than a multiple of a power of
  // two, or all positions would map to a few cache sets.
  int64_t input_plane() const { return ceil_div(kMostTiles * tile(), kLine) * kLine + kLine; }
  int64_t output_plane() const { return kMostTiles * layout.pass() + kLine; }
  int64_t scratch() const { return layout.positions() * (input_plane() + output_plane()); }
  int64_t tile() const { return layout.is_strided ? kWinogradKinds * input.C : input.C; }
};

class Worker {
 public:
  Worker(const Plan& plan, float* scratch)
      : plan_(plan),
        transformed_(scratch),
        products_(scratch + plan.layout.positions() * plan.input_plane()) {}

  // at most kMostTiles tiles [begin, end), and a range of passes
  void operator()(int64_t begin, int64_t end, int64_t pass_begin, int64_t pass_end) {
    const int64_t count = end - begin, lanes = plan_.layout.all.lanes;
    for (int64_t t = 0; t < count; ++t) {
      locate(begin + t, t);
    }
    const WinogradInput input{
        pixels_, transformed_, plan_.input_plane(), plan_.tile(), lanes, count, plan_.input.C
    };
    if (plan_.layout.is_strided) {
      FASTVISION_CALL(winograd_strided_input, input);
    } else {
      FASTVISION_CALL(winograd_input, input);
    }
    for (int64_t p = pass_begin; p < pass_end; ++p) {
      const ConvPacking packing = plan_.layout.packing(p);
      const int64_t stride = packing.padded_K(), channel = p * plan_.layout.pass();
      const WinogradFactors factors{
          transformed_,
          plan_.input_plane(),
          plan_.packed + plan_.layout.offset(p),
          products_,
          plan_.output_plane(),
          count,
          plan_.input.C,
          stride,
          plan_.layout.is_strided,
          plan_.layout.size() * kBytes > kNearBytes
      };
      FASTVISION_CALL(winograd_multiply, factors);
      const WinogradOutput output{
          products_,
          plan_.output_plane(),
          stride,
          outputs_,
          plan_.residual.data == nullptr ? nullptr : residuals_,
          plan_.packed + channel,
          count,
          channel,
          packing.K,
          plan_.layout.is_strided,
          plan_.is_streamed,
          plan_.activation,
          plan_.negative_slope
      };
      FASTVISION_CALL(winograd_output, output);
    }
  }

 private:
  // the pixels of the task's t-th tile
  void locate(int64_t tile, int64_t t) {
    const int64_t in_map = tile % (plan_.rows() * plan_.columns());
    const int64_t n = tile / (plan_.rows() * plan_.columns());
    const int64_t y = in_map / plan_.columns() * kWinogradOutputs;
    const int64_t x = in_map % plan_.columns() * kWinogradOutputs;
    const float* const zeros = plan_.zeros.data();
    if (plan_.layout.is_strided) {
      const float** const pixels = pixels_ + t * kMostInputPixels;
      plan_.input.locate<kStridedInputs>(n, 2 * y - plan_.top, 2 * x - plan_.left, zeros, pixels);
    } else {
      const float** const pixels = pixels_ + t * kWinogradPositions;
      plan_.input.locate<kWinogradInputs>(n, y - plan_.top, x - plan_.left, zeros, pixels);
    }
    const int64_t first = t * kWinogradPixels;
    plan_.output.locate<kWinogradOutputs>(n, y, x, nullptr, outputs_ + first);
    if (plan_.residual.data != nullptr) {
      plan_.residual.locate<kWinogradOutputs>(n, y, x, nullptr, residuals_ + first);
    }
  }

  const Plan& plan_;
  float *const transformed_, *const products_;
  const float* pixels_[kMostTiles * kMostInputPixels];
  const float* residuals_[kMostTiles * kWinogradPixels];
  float* outputs_[kMostTiles * kWinogradPixels];
};

// Number of tasks that tiles and passes are divided into, balanced over the threads.
struct Parts {
  int64_t chunks, splits;

  Parts(int64_t tiles, int64_t tiles_of_task, int64_t passes, int64_t threads)
      : chunks(rounded(tiles, tiles_of_task)), splits(1) {
    if (chunks >= threads) {
      chunks = rounded(tiles, threads * tiles_of_task) * threads;
      return;
    }
    // splits weights rather than tiles
    splits = std::min(ceil_div(threads, chunks), passes);
    while (passes % splits != 0) {
      --splits;
    }
    const int64_t most = std::max(tiles / kLeastTiles, chunks);
    chunks = std::clamp(ceil_div(threads, splits), chunks, most);
  }

 private:
  // a / b, at least 1
  static int64_t rounded(int64_t a, int64_t b) { return std::max((a + b / 2) / b, int64_t{1}); }
};

Tensor convolve(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options,
    bool in_place
) {
  const ConvOptions o = ConvOptions::read(options);
  STD_TORCH_CHECK(
      o.R == 3 && o.S == 3 && o.groups == 1 && o.stride_x == o.stride_y &&
          (o.stride_y == 1 || o.stride_y == 2) && std::max(o.dilation_y, o.dilation_x) == 1,
      "the kernel must be 3x3 of dilation and groups 1, and the stride 1 or 2"
  );
  check_dim(input, 4, "input");
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t height = H + o.top + o.bottom, width = W + o.left + o.right;
  STD_TORCH_CHECK(height >= 3 && width >= 3, "the kernel does not fit into the padded input");
  const int64_t OH = (height - 3) / o.stride_y + 1, OW = (width - 3) / o.stride_x + 1;
  const Layout layout(C, o.K, o.stride_y == 2);
  STD_TORCH_CHECK(
      input.scalar_type() == ScalarType::Float && packed.scalar_type() == ScalarType::Float &&
          packed.is_contiguous() && packed.numel() == layout.size(),
      "packed does not belong to these sizes, this type and this CPU level"
  );
  const bool channels_last = has_channels_last_strides(input);
  STD_TORCH_CHECK(channels_last || !in_place, "input must be channels_last");
  const Tensor x = in_channels_last(input);
  Tensor output = conv_result(input, residual, o.K, OH, OW, true, in_place);
  std::optional<Tensor> addend;
  if (residual.has_value()) {
    check_residual(*residual, output);
    addend = in_channels_last(*residual);
  }
  if (output.numel() == 0) {
    return output;
  }
  const Plan plan{
      {static_cast<const float*>(x.const_data_ptr()), H, W, C},
      {addend ? static_cast<const float*>(addend->const_data_ptr()) : nullptr, OH, OW, o.K},
      {static_cast<float*>(output.mutable_data_ptr()), OH, OW, o.K},
      static_cast<const float*>(packed.const_data_ptr()),
      N,
      o.left,
      o.top,
      layout,
      channels_last && fills_lines(output.const_data_ptr(), o.K * kBytes) &&
          is_streamed(output.numel() * kBytes),
      static_cast<Activation>(o.activation),
      o.negative_slope,
      std::vector<float>(C)
  };
  const int64_t threads = torch::stable::get_num_threads(), tiles = plan.tiles();
  const int64_t tiles_of_task = layout.size() * kBytes > kFarBytes ? kFarTiles : kTiles;
  const Parts parts(tiles, tiles_of_task, layout.passes(), threads);
  STD_TORCH_CHECK(ceil_div(tiles, parts.chunks) <= kMostTiles, "a task has too many tiles");
  const int64_t tasks = parts.chunks * parts.splits;
  const int64_t values = std::min(threads, tasks) * plan.scratch();
  const Tensor scratch = empty_result(input, {values}, {1});
  float* const memory = static_cast<float*>(scratch.mutable_data_ptr());
  std::atomic<int64_t> workers{0};
  parallel_chunks(tasks, 1, [&] {
    return [&, worker = Worker(plan, memory + workers++ * plan.scratch())](
               int64_t begin, int64_t end
           ) mutable {
      // all tiles with some of the weights, which stay in the caches, then with the next ones
      for (int64_t task = begin; task < end; ++task) {
        const int64_t chunk = task % parts.chunks, split = task / parts.chunks;
        worker(
            chunk * tiles / parts.chunks,
            (chunk + 1) * tiles / parts.chunks,
            split * layout.passes() / parts.splits,
            (split + 1) * layout.passes() / parts.splits
        );
      }
    };
  });
  if (channels_last) {
    return output;
  }
  Tensor planes = empty_in_format(input, N, o.K, OH, OW, false);
  copy_to_contiguous(output, planes);
  return planes;
}

void conv_winograd_in_place(
    const Tensor& input, const Tensor& packed, const Tensor& residual, const Tensor& options
) {
  convolve(input, packed, residual, options, true);
}

}  // namespace

Tensor conv_winograd(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
) {
  return convolve(input, packed, residual, options, false);
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_winograd_pack", FASTVISION_BOX(&conv_winograd_pack));
  m.impl("conv_winograd", FASTVISION_BOX(&conv_winograd));
  m.impl("conv_winograd_", FASTVISION_BOX(&conv_winograd_in_place));
}

}  // namespace fastvision
