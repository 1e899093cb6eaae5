#include "ops/conv_gradient.h"

#include <memory>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/conv_engine.h"

namespace fastvision {
namespace {

constexpr int64_t kPixels = 96;            // pointers and values fit the L1 cache
constexpr int64_t kSumsBytes = 256 << 10;  // sums of a task, fit the L2 cache
constexpr int64_t kMostSplits = 8;         // parts of the pixels, each with its own sums
constexpr int64_t kLeastPixelsOfSplit = 512;

template <typename T>
struct Plan {
  const T* gradients;
  const T* input;
  T* sums;  // [splits][taps][C][K]
  int64_t N, H, W, OH, OW, C, K;
  ConvWindow window;
  int64_t chunk;           // pixels at a time
  int64_t splits, groups;  // parts of the pixels, and of the output channels
  int64_t unit;            // channels of a group are a multiple of this

  int64_t taps() const { return window.R * window.S; }
  int64_t size() const { return taps() * C * K; }
  int64_t pixels() const { return N * OH * OW; }
};

template <typename T>
class Worker {
 public:
  explicit Worker(const Plan<T>& plan)
      : plan_(plan),
        inputs_(plan.taps() * plan.chunk),
        packed_(new T[plan.chunk * ceil_div(plan.K, plan.groups * plan.unit) * plan.unit]) {}

  void operator()(int64_t task) {
    // threads that run at the same time write to sums of their own, not to their neighbours' lines
    const int64_t split = task % plan_.splits, group = task / plan_.splits;
    const int64_t units = ceil_div(plan_.K, plan_.unit), size = plan_.taps() * plan_.C;
    const int64_t k_begin = group * units / plan_.groups * plan_.unit;
    const int64_t k_end = std::min((group + 1) * units / plan_.groups * plan_.unit, plan_.K);
    T* sums = plan_.sums + split * plan_.size();
    for (int64_t i = 0; i < size; ++i) {
      std::fill(sums + i * plan_.K + k_begin, sums + i * plan_.K + k_end, T(0));
    }
    const int64_t chunks = ceil_div(plan_.pixels(), plan_.chunk);
    const int64_t end = (split + 1) * chunks / plan_.splits;
    for (int64_t i = split * chunks / plan_.splits; i < end; ++i) {
      const int64_t p = i * plan_.chunk, count = std::min(plan_.chunk, plan_.pixels() - p);
      locate(p, count);
      const ConvGradientTile<T> tile{
          runs_.data(),
          static_cast<int64_t>(runs_.size()),
          strip_.get(0),
          inputs_.data(),
          plan_.gradients + p * plan_.K,
          packed_.get(),
          sums,
          count,
          plan_.taps(),
          plan_.C,
          plan_.K,
          k_begin,
          k_end
      };
      FASTVISION_CALL(conv_gradient_tile, tile);
    }
  }

 private:
  // Copies the input rows that the pixels read into the strip, image by image, followed by a pixel
  // of zeros.
  void locate(int64_t begin, int64_t count) {
    const ConvWindow& w = plan_.window;
    const int64_t H = plan_.H, W = plan_.W, area = plan_.OH * plan_.OW, end = begin + count;
    const auto first_row = [&](int64_t p) { return p % area / plan_.OW * w.step_y + w.first_y; };
    const int64_t reach = (w.R - 1) * w.dilation_y + 1;
    runs_.clear();
    int64_t pixels = 0;
    for (int64_t p = begin, next; p < end; p = next) {
      const int64_t image = p / area;
      next = std::min((image + 1) * area, end);
      const int64_t low = std::clamp<int64_t>(first_row(p), 0, H);
      const int64_t high = std::clamp<int64_t>(first_row(next - 1) + reach, low, H);
      runs_.push_back({plan_.input + (image * H + low) * W * plan_.C, (high - low) * W, plan_.C});
      pixels += runs_.back().count;
    }
    T* strip = strip_.get((pixels + 1) * kConvGradientChannels);
    T* zeros = strip + pixels * kConvGradientChannels;
    std::fill(zeros, zeros + kConvGradientChannels, T(0));
    const ConvPixels<T>* run = runs_.data();
    for (int64_t p = begin, next; p < end; p = next, ++run) {
      next = std::min((p / area + 1) * area, end);
      const int64_t low = std::clamp<int64_t>(first_row(p), 0, H);
      for (int64_t i = p, length; i < next; i += length) {
        const int64_t x = i % plan_.OW;
        length = std::min(next - i, plan_.OW - x);
        locate_taps(
            w,
            H,
            W,
            kConvGradientChannels,
            i % area / plan_.OW,
            x,
            length,
            zeros,
            [&](int64_t y) { return strip + (y - low) * W * kConvGradientChannels; },
            inputs_.data() + (i - begin),
            count
        );
      }
      strip += run->count * kConvGradientChannels;
    }
  }

  const Plan<T>& plan_;
  std::vector<ConvPixels<T>> runs_;
  Scratch<T> strip_;
  std::vector<const T*> inputs_;
  std::unique_ptr<T[]> packed_;
};

template <typename T>
void run(Plan<T>& plan, T* output) {
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const ConvPacking packing = conv_packing(dtype, 1, plan.C, plan.K, plan.taps());
  STD_TORCH_CHECK(plan.K % packing.lanes == 0, "the filters must fill whole vectors");
  plan.unit = std::min(packing.block, plan.K);
  // whole rows, unless they are long
  const int64_t rows_at_once = std::max<int64_t>((kPixels + plan.OW / 2) / plan.OW, 1);
  plan.chunk = std::min(rows_at_once * plan.OW, 2 * kPixels);
  const int64_t bytes = plan.taps() * plan.C * plan.unit * static_cast<int64_t>(sizeof(T));
  const int64_t units = ceil_div(plan.K, plan.unit);
  plan.groups = ceil_div(units, std::clamp<int64_t>(kSumsBytes / bytes, 1, units));
  // depends on sizes only: the number of threads must not change the order of additions
  plan.splits = std::clamp<int64_t>(
      std::min(kMostSplits / plan.groups, plan.pixels() / kLeastPixelsOfSplit), 1, kMostSplits
  );
  const std::unique_ptr<T[]> sums(new T[plan.splits * plan.size()]);
  plan.sums = sums.get();
  parallel_chunks(plan.splits * plan.groups, 1, [&] {
    return [&, worker = Worker<T>(plan)](int64_t begin, int64_t end) mutable {
      for (int64_t task = begin; task < end; ++task) {
        worker(task);
      }
    };
  });
  // adds [taps][C][K] of all splits into [K][C][taps]
  const int64_t rows = plan.taps() * plan.C;
  parallel_chunks(rows, std::max<int64_t>(rows / 16, 64), [&] {
    return [&](int64_t begin, int64_t end) {
      T* to = plan.sums;
      for (int64_t split = 1; split < plan.splits; ++split) {
        const T* from = plan.sums + split * plan.size();
        for (int64_t i = begin * plan.K; i < end * plan.K; ++i) {
          to[i] += from[i];
        }
      }
      for (int64_t row = begin, next; row < end; row = next) {
        const int64_t tap = row / plan.C, c = row % plan.C;
        next = std::min(end, (tap + 1) * plan.C);
        const ConvMaps<T> maps{
            output + c * plan.taps() + tap, plan.K, next - row, rows, plan.taps()
        };
        FASTVISION_CALL(conv_scatter, to + row * plan.K, plan.K, maps);
      }
    };
  });
}

// grad [N, K, OH, OW] and input [N, C, H, W], channels_last; the convolution's options. Returns
// [K, C, R, S].
Tensor conv_weight_gradient(const Tensor& grad, const Tensor& input, const Tensor& options) {
  check_dim(grad, 4, "grad");
  check_dim(input, 4, "input");
  const ConvOptions o = ConvOptions::read(options);
  const ScalarType dtype = input.scalar_type();
  STD_TORCH_CHECK(
      has_channels_last_strides(grad) && has_channels_last_strides(input),
      "grad and input must be channels_last"
  );
  STD_TORCH_CHECK(
      grad.scalar_type() == dtype && (dtype == ScalarType::Float || dtype == ScalarType::Double),
      "grad and input must be float32 or float64"
  );
  const int64_t C = input.size(1);
  STD_TORCH_CHECK(
      grad.size(0) == input.size(0) && grad.size(1) == o.K && o.groups == 1,
      "grad must have the input's batch, and the filters as channels"
  );
  const int64_t H = input.size(2), W = input.size(3);
  STD_TORCH_CHECK(
      grad.size(2) == extent(H, o.top, o.bottom, o.R, o.dilation_y, o.stride_y) &&
          grad.size(3) == extent(W, o.left, o.right, o.S, o.dilation_x, o.stride_x) &&
          grad.numel() > 0 && C > 0,
      "grad must have the size of the result"
  );
  Tensor output = torch::stable::new_empty(input, {o.K, C, o.R, o.S});
  const auto start = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Plan<T> plan{
        static_cast<const T*>(grad.const_data_ptr()),
        static_cast<const T*>(input.const_data_ptr()),
        nullptr,
        grad.size(0),
        H,
        W,
        grad.size(2),
        grad.size(3),
        C,
        o.K,
        o.window(),
        1,
        1,
        1,
        1
    };
    run(plan, static_cast<T*>(output.mutable_data_ptr()));
  };
  dtype == ScalarType::Double ? start((double*)nullptr) : start((float*)nullptr);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_weight_gradient", FASTVISION_BOX(&conv_weight_gradient));
}

}  // namespace fastvision
