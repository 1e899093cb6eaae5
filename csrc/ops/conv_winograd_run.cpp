#include "ops/conv_winograd_run.h"

#include <algorithm>
#include <atomic>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/result_memory.h"
#include "ops/conv_format.h"
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

}  // namespace

WinogradLayout::WinogradLayout(int64_t C, int64_t K, WinogradForm form, int64_t phases)
    : all(conv_packing(ScalarType::Float, 1, C, K, 1)),
      form(form),
      phases(phases),
      kinds(kinds_in_all(form)) {}

int64_t WinogradLayout::pass() const { return ceil_div(kPassChannels, all.block) * all.block; }

int64_t WinogradLayout::passes() const { return ceil_div(all.K, pass()); }

ConvPacking WinogradLayout::packing(int64_t p) const {
  ConvPacking packing = all;
  packing.K = std::min(pass(), all.K - p * pass());
  return packing;
}

int64_t WinogradLayout::offset(int64_t p) const {  // all passes before are full
  return p * (kinds * pass() * all.C + positions() * kWinogradGap);
}

int64_t WinogradLayout::phase_size() const {
  return kinds * all.C * all.padded_K() + passes() * positions() * kWinogradGap;
}

Tensor pack_winograd(
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const WinogradLayout& layout,
    int64_t filter,
    int64_t channel,
    const std::vector<std::vector<int64_t>>& taps
) {
  const int64_t K = layout.all.K, block = layout.all.block, blocks = ceil_div(K, block);
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float, "weight must be float32");
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
  to += layout.all.bias_size();
  const float* filters = static_cast<const float*>(from.const_data_ptr());
  parallel_chunks(layout.phases * blocks, 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t phase = i / blocks, k = i % blocks * block;
        const int64_t p = k / layout.pass(), in_pass = k % layout.pass();
        const int64_t channels = layout.packing(p).padded_K();
        const WinogradFilters of_block{
            filters + k * filter,
            filter,
            channel,
            taps[phase].data(),
            layout.form,
            to + phase * layout.phase_size() + layout.offset(p),
            channels,
            in_pass,
            std::min(block, channels - in_pass),
            std::min(block, K - k),
            layout.all.C
        };
        FASTVISION_CALL(winograd_filters, of_block);
      }
    };
  });
  return packed;
}

void check_winograd(const Tensor& input, const Tensor& packed, const WinogradLayout& layout) {
  STD_TORCH_CHECK(
      input.scalar_type() == ScalarType::Float && packed.scalar_type() == ScalarType::Float &&
          packed.is_contiguous() && packed.is_cpu() && packed.numel() == layout.size(),
      "packed does not belong to these sizes, this type and this CPU level"
  );
}

namespace {

struct Plan {
  WinogradMaps<const float> input, residual;  // the residual may have no data
  WinogradMaps<float> output;
  const float* bias;
  int64_t N;
  const WinogradLayout& layout;
  const std::vector<ConvPhase>& phases;
  bool is_streamed;
  Activation activation;
  double negative_slope;
  std::vector<float> zeros;

  static int64_t rows(const ConvPhase& phase) { return ceil_div(phase.grid_h, kWinogradOutputs); }
  static int64_t columns(const ConvPhase& phase) {
    return ceil_div(phase.grid_w, kWinogradOutputs);
  }
  int64_t tiles(const ConvPhase& phase) const { return N * rows(phase) * columns(phase); }
  int64_t most_tiles() const {
    int64_t most = 0;
    for (const ConvPhase& phase : phases) {
      most = std::max(most, tiles(phase));
    }
    return most;
  }

  // Distance between positions in scratch memory: a cache line more than a multiple of a power of
  // two, or all positions would map to a few cache sets.
  int64_t input_plane() const { return ceil_div(kMostTiles * tile(), kLine) * kLine + kLine; }
  int64_t output_plane() const { return kMostTiles * layout.pass() + kLine; }
  int64_t scratch() const { return layout.positions() * (input_plane() + output_plane()); }
  int64_t tile() const { return all_kinds(layout.form) * input.C; }
};

class Worker {
 public:
  Worker(const Plan& plan, float* scratch)
      : plan_(plan),
        transformed_(scratch),
        products_(scratch + plan.layout.positions() * plan.input_plane()) {}

  // at most kMostTiles tiles [begin, end) of a phase, perhaps none, and a range of passes
  void operator()(
      const ConvPhase& phase, int64_t begin, int64_t end, int64_t pass_begin, int64_t pass_end
  ) {
    const WinogradLayout& layout = plan_.layout;
    const int64_t count = end - begin;
    if (count == 0) {  // a smaller phase than others
      return;
    }
    for (int64_t t = 0; t < count; ++t) {
      locate(phase, begin + t, t);
    }
    const WinogradInput input{
        pixels_,
        transformed_,
        plan_.input_plane(),
        plan_.tile(),
        layout.all.lanes,
        count,
        plan_.input.C,
        layout.form
    };
    FASTVISION_CALL(winograd_input, input);
    for (int64_t p = pass_begin; p < pass_end; ++p) {
      const ConvPacking packing = layout.packing(p);
      const int64_t stride = packing.padded_K(), channel = p * layout.pass();
      const WinogradFactors factors{
          transformed_,
          plan_.input_plane(),
          static_cast<const float*>(phase.packed) + layout.offset(p),
          products_,
          plan_.output_plane(),
          count,
          plan_.input.C,
          stride,
          layout.form,
          layout.bytes() > kNearBytes
      };
      FASTVISION_CALL(winograd_multiply, factors);
      const WinogradOutput output{
          products_,
          plan_.output_plane(),
          stride,
          outputs_,
          plan_.residual.data == nullptr ? nullptr : residuals_,
          plan_.bias + channel,
          count,
          channel,
          packing.K,
          layout.form,
          plan_.is_streamed,
          plan_.activation,
          plan_.negative_slope
      };
      FASTVISION_CALL(winograd_output, output);
    }
  }

 private:
  // the pixels of the task's t-th tile
  void locate(const ConvPhase& phase, int64_t tile, int64_t t) {
    const int64_t columns = Plan::columns(phase), of_map = Plan::rows(phase) * columns;
    const int64_t n = tile / of_map;
    const int64_t y = tile % of_map / columns * kWinogradOutputs;
    const int64_t x = tile % columns * kWinogradOutputs;
    const int64_t top = y * phase.step_y + phase.first_y, left = x * phase.step_x + phase.first_x;
    const auto locate_inputs = [&](auto side) {
      const float** const pixels = pixels_ + t * side * side;
      plan_.input.locate<side>(n, top, left, plan_.zeros.data(), pixels);
    };
    switch (plan_.layout.form) {
      case WinogradForm::kThree:
        locate_inputs(std::integral_constant<int, kWinogradInputs>{});
        break;
      case WinogradForm::kStrided:
        locate_inputs(std::integral_constant<int, kStridedInputs>{});
        break;
      case WinogradForm::kPair:
        locate_inputs(std::integral_constant<int, kPairInputs>{});
        break;
    }
    const auto locate_outputs = [&](const auto& maps, auto** pixels) {
      maps.template locate<kWinogradOutputs>(
          n,
          y * phase.out_step_y + phase.out_first_y,
          x * phase.out_step_x + phase.out_first_x,
          nullptr,
          pixels + t * kWinogradPixels,
          phase.out_step_y,
          phase.out_step_x
      );
    };
    locate_outputs(plan_.output, outputs_);
    if (plan_.residual.data != nullptr) {
      locate_outputs(plan_.residual, residuals_);
    }
  }

  const Plan& plan_;
  float *const transformed_, *const products_;
  const float* pixels_[kMostTiles * kMostInputPixels];
  const float* residuals_[kMostTiles * kWinogradPixels];
  float* outputs_[kMostTiles * kWinogradPixels];
};

// Number of tasks that the tiles and passes of a phase are divided into, balanced over the threads.
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

void run(const Plan& plan, const Tensor& like) {
  const WinogradLayout& layout = plan.layout;
  const int64_t threads = torch::stable::get_num_threads(), most = plan.most_tiles();
  const auto phases = static_cast<int64_t>(plan.phases.size());
  const bool far_weights = layout.bytes() > kFarBytes;
  const int64_t of_phase = ceil_div(threads, phases);  // threads
  const Parts parts(most, far_weights ? kFarTiles : kTiles, layout.passes(), of_phase);
  STD_TORCH_CHECK(ceil_div(most, parts.chunks) <= kMostTiles, "a task has too many tiles");
  const int64_t tasks = phases * parts.chunks * parts.splits;
  const int64_t values = std::min(threads, tasks) * plan.scratch();
  const Tensor scratch = empty_result(like, {values}, {1});
  float* const memory = static_cast<float*>(scratch.mutable_data_ptr());
  std::atomic<int64_t> workers{0};
  parallel_chunks(tasks, 1, [&] {
    return [&, worker = Worker(plan, memory + workers++ * plan.scratch())](
               int64_t begin, int64_t end
           ) mutable {
      for (int64_t task = begin; task < end; ++task) {
        // all tiles with some of the weights, which stay in the caches, then with the next ones;
        // where all weights stay there, all phases of a chunk, since they share inputs
        int64_t chunk = task % parts.chunks, rest = task / parts.chunks;
        int64_t phase = rest / parts.splits;
        if (!far_weights) {
          phase = task % phases;
          chunk = task / phases % parts.chunks;
          rest = task / phases / parts.chunks;
        }
        const int64_t split = rest % parts.splits, tiles = plan.tiles(plan.phases[phase]);
        worker(
            plan.phases[phase],
            chunk * tiles / parts.chunks,
            (chunk + 1) * tiles / parts.chunks,
            split * layout.passes() / parts.splits,
            (split + 1) * layout.passes() / parts.splits
        );
      }
    };
  });
}

}  // namespace

Tensor run_winograd(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const ConvOptions& o,
    const WinogradLayout& layout,
    const std::vector<ConvPhase>& phases,
    int64_t OH,
    int64_t OW,
    bool in_place
) {
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
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
      layout,
      phases,
      channels_last && fills_lines(output.const_data_ptr(), o.K * kBytes) &&
          is_streamed(output.numel() * kBytes),
      static_cast<Activation>(o.activation),
      o.negative_slope,
      std::vector<float>(C)
  };
  run(plan, input);
  if (channels_last) {
    return output;
  }
  Tensor planes = empty_in_format(input, N, o.K, OH, OW, false);
  copy_to_contiguous(output, planes);
  return planes;
}

}  // namespace fastvision
