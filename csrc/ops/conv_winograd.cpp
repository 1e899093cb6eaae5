#include "ops/conv_winograd.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "ops/conv_engine.h"

namespace fastvision {
namespace {

constexpr int64_t kTileBytes = 384
                               << 10;  // transformed inputs of a task: in the second-level cache
constexpr int64_t kNearBytes = 384 << 10;  // weights that stay there beside them
constexpr int64_t kLeastTiles = 12, kMostTiles = 96;

// Packed: the bias [K'], then for each block of output channels and each position the packed
// weights of a 1x1 convolution (conv.h) without bias.
struct Layout {
  int64_t C, K, lanes, block;

  Layout(int64_t C, int64_t K) : C(C), K(K) {
    const ConvPacking packing = conv_packing(ScalarType::Float, 1, C, K, 1);
    lanes = packing.lanes;
    block = packing.block;
  }
  int64_t padded() const { return (K + lanes - 1) / lanes * lanes; }
  int64_t blocks() const { return (padded() + block - 1) / block; }
  int64_t channels(int64_t b) const { return std::min(block, K - b * block); }
  ConvPacking packing(int64_t b) const { return {1, C, channels(b), 1, lanes, block}; }
  int64_t offset(int64_t b, int64_t position) const {  // all blocks before are full ones
    const int64_t full = block * (1 + C);
    return padded() + b * kWinogradPositions * full + position * packing(b).size();
  }
  int64_t size() const { return padded() + padded() * (1 + C) * kWinogradPositions; }
};

// G g G^T of a filter g
void transform_weight(const float* g, float (&u)[kWinogradPositions]) {
  double rows[4][3];
  for (int s = 0; s < 3; ++s) {
    const double a = g[s], b = g[3 + s], c = g[6 + s];
    rows[0][s] = a;
    rows[1][s] = (a + b + c) / 2;
    rows[2][s] = (a - b + c) / 2;
    rows[3][s] = c;
  }
  for (int r = 0; r < 4; ++r) {
    const double a = rows[r][0], b = rows[r][1], c = rows[r][2];
    u[r * 4] = static_cast<float>(a);
    u[r * 4 + 1] = static_cast<float>((a + b + c) / 2);
    u[r * 4 + 2] = static_cast<float>((a - b + c) / 2);
    u[r * 4 + 3] = static_cast<float>(c);
  }
}

// weight [K, C, 3, 3]
Tensor conv_winograd_pack(const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
          weight.scalar_type() == ScalarType::Float,
      "weight must be float32 of shape [K, C, 3, 3]"
  );
  const int64_t K = weight.size(0), C = weight.size(1);
  const Layout layout(C, K);
  const Tensor from = torch::stable::contiguous(weight);
  Tensor packed = torch::stable::new_empty(weight, {layout.size()});
  float* to = static_cast<float*>(packed.mutable_data_ptr());
  std::memset(to, 0, layout.size() * sizeof(float));
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->scalar_type() == ScalarType::Float && bias->numel() == K,
        "bias must have a float32 value per channel"
    );
    const Tensor values = torch::stable::contiguous(*bias);
    std::memcpy(to, values.const_data_ptr(), K * sizeof(float));
  }
  const float* g = static_cast<const float*>(from.const_data_ptr());
  for (int64_t k = 0; k < K; ++k) {
    const int64_t b = k / layout.block;
    const ConvPacking packing = layout.packing(b);
    for (int64_t c = 0; c < C; ++c) {
      float u[kWinogradPositions];
      transform_weight(g + (k * C + c) * 9, u);
      for (int i = 0; i < kWinogradPositions; ++i) {
        float* weights = to + layout.offset(b, i) + packing.bias_size();
        weights[c * packing.padded_K() + k - b * layout.block] = u[i];
      }
    }
  }
  return packed;
}

struct Plan {
  const float* input;
  const float* residual;  // or null
  float* output;
  const float* packed;
  int64_t N, H, W, OH, OW, left, top;
  Layout layout;
  Activation activation;
  double negative_slope;
  std::vector<float> zeros;

  int64_t rows() const { return (OH + 1) / 2; }
  int64_t columns() const { return (OW + 1) / 2; }
  int64_t tiles() const { return N * rows() * columns(); }
};

class Worker {
 public:
  Worker(const Plan& plan, int64_t most_tiles) : plan_(plan) {
    const int64_t C = plan.layout.C, block = plan.layout.block;
    transformed_.reset(new float[kWinogradPositions * most_tiles * C]);
    products_.reset(new float[kWinogradPositions * most_tiles * block]);
    pixels_.resize(kWinogradPositions * most_tiles);
    operands_.resize(kWinogradPositions * most_tiles);
    results_.resize(kWinogradPositions * most_tiles);
    outputs_.resize(4 * most_tiles);
    residuals_.resize(4 * most_tiles);
  }

  void operator()(int64_t begin, int64_t end, int64_t block_begin, int64_t block_end) {
    const Layout& layout = plan_.layout;
    const int64_t count = end - begin;
    locate(begin, count);
    FASTVISION_CALL(
        winograd_input, WinogradInput{pixels_.data(), transformed_.get(), count, layout.C}
    );
    for (int64_t b = block_begin; b < block_end; ++b) {
      multiply(b, count);
      const ConvPacking packing = layout.packing(b);
      const WinogradOutput output{
          products_.get(),
          packing.padded_K(),
          outputs_.data(),
          plan_.residual == nullptr ? nullptr : residuals_.data(),
          plan_.packed + b * layout.block,
          count,
          b * layout.block,
          layout.channels(b),
          plan_.activation,
          plan_.negative_slope
      };
      FASTVISION_CALL(winograd_output, output);
    }
  }

 private:
  void locate(int64_t begin, int64_t count) {
    const int64_t C = plan_.layout.C, K = plan_.layout.K;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = begin + t, in_image = tile % (plan_.rows() * plan_.columns());
      const int64_t n = tile / (plan_.rows() * plan_.columns());
      const int64_t oy = in_image / plan_.columns() * 2, ox = in_image % plan_.columns() * 2;
      for (int i = 0; i < kWinogradPositions; ++i) {
        const int64_t y = oy - plan_.top + i / 4, x = ox - plan_.left + i % 4;
        const bool inside = y >= 0 && y < plan_.H && x >= 0 && x < plan_.W;
        pixels_[t * kWinogradPositions + i] =
            inside ? plan_.input + ((n * plan_.H + y) * plan_.W + x) * C : plan_.zeros.data();
        operands_[i * count + t] = transformed_.get() + (i * count + t) * C;
      }
      for (int i = 0; i < 4; ++i) {
        const int64_t y = oy + i / 2, x = ox + i % 2;
        const int64_t at = ((n * plan_.OH + y) * plan_.OW + x) * K;
        const bool inside = y < plan_.OH && x < plan_.OW;
        outputs_[t * 4 + i] = inside ? plan_.output + at : nullptr;
        residuals_[t * 4 + i] = inside ? plan_.residual + at : nullptr;
      }
    }
  }

  void multiply(int64_t b, int64_t count) {
    const Layout& layout = plan_.layout;
    const ConvPacking packing = layout.packing(b);
    const int64_t stride = packing.padded_K();
    for (int i = 0; i < kWinogradPositions; ++i) {
      for (int64_t t = 0; t < count; ++t) {
        results_[t] = products_.get() + (i * count + t) * stride;
      }
      const ConvTile<float> tile{
          operands_.data() + i * count,
          results_.data(),
          nullptr,
          nullptr,
          count,
          plan_.packed + layout.offset(b, i),
          &packing,
          0,
          1,
          false,
          false,
          layout.size() * static_cast<int64_t>(sizeof(float)) > kNearBytes,
          Activation::none,
          0
      };
      FASTVISION_CALL(conv_tile, tile);
    }
  }

  const Plan& plan_;
  std::unique_ptr<float[]> transformed_, products_;
  std::vector<const float*> pixels_, operands_, residuals_;
  std::vector<float*> results_, outputs_;
};

Tensor conv_winograd(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
) {
  const ConvOptions o = ConvOptions::read(options);
  STD_TORCH_CHECK(
      o.R == 3 && o.S == 3 && o.groups == 1 &&
          std::max({o.stride_y, o.stride_x, o.dilation_y, o.dilation_x}) == 1,
      "the kernel must be 3x3 of stride, dilation and groups 1"
  );
  check_dim(input, 4, "input");
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t OH = H + o.top + o.bottom - 2, OW = W + o.left + o.right - 2;
  const Layout layout(C, o.K);
  STD_TORCH_CHECK(
      input.scalar_type() == ScalarType::Float && packed.scalar_type() == ScalarType::Float &&
          packed.is_contiguous() && packed.numel() == layout.size(),
      "packed does not belong to these sizes, this type and this CPU level"
  );
  STD_TORCH_CHECK(OH > 0 && OW > 0, "the kernel does not fit into the padded input");
  const Tensor x = in_format(input, true);
  Tensor output = empty_in_format(input, N, o.K, OH, OW, true);
  const std::optional<Tensor> addend = residual_of(residual, output, true);
  if (output.numel() == 0) {
    return output;
  }
  const Plan plan{
      static_cast<const float*>(x.const_data_ptr()),
      addend ? static_cast<const float*>(addend->const_data_ptr()) : nullptr,
      static_cast<float*>(output.mutable_data_ptr()),
      static_cast<const float*>(packed.const_data_ptr()),
      N,
      H,
      W,
      OH,
      OW,
      o.left,
      o.top,
      layout,
      static_cast<Activation>(o.activation),
      o.negative_slope,
      std::vector<float>(C)
  };
  const int64_t wanted = 4 * torch::stable::get_num_threads(), tiles = plan.tiles();
  const int64_t bytes = kWinogradPositions * C * static_cast<int64_t>(sizeof(float));
  int64_t chunk = std::clamp(kTileBytes / bytes, kLeastTiles, kMostTiles);
  chunk = std::min(chunk, std::max((tiles + wanted - 1) / wanted, kLeastTiles));
  const int64_t chunks = (tiles + chunk - 1) / chunk;
  chunk = (tiles + chunks - 1) / chunks;
  const int64_t splits = std::clamp<int64_t>(wanted / 2 / chunks, 1, layout.blocks());
  parallel_chunks(chunks * splits, 1, [&] {
    return [&, worker = Worker(plan, chunk)](int64_t begin, int64_t end) mutable {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task / splits * chunk, split = task % splits;
        worker(
            first,
            std::min(first + chunk, tiles),
            split * layout.blocks() / splits,
            (split + 1) * layout.blocks() / splits
        );
      }
    };
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_winograd_pack", FASTVISION_BOX(&conv_winograd_pack));
  m.impl("conv_winograd", FASTVISION_BOX(&conv_winograd));
}

}  // namespace fastvision
