// Grouped convolutions with three taps per row, a strip at a time: rows of the map of one group's
// channels, or of a vector's if groups share vectors. A strip is gathered with padding, since
// pixels at their distances in the map would share few sets of the L1 cache.
#pragma once

#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/conv_engine.h"

namespace fastvision {

constexpr int64_t kStripBytes = 32 << 10;
constexpr int64_t kStripRowBytes = 128 << 10;  // at most; a strip has at least R rows
constexpr int64_t kStrips = 4;  // gathered at once, for pixels of several cache lines

// S is the storage type of the maps, T the engine's type.
template <typename S, typename T>
class ConvGroups {
 public:
  // Whether the plan is such a convolution.
  static bool serves(const ConvPlan& plan) {
    if (plan.phases.size() != 1 || plan.groups == 1) {
      return false;
    }
    const ConvPhase& phase = plan.phases.front();
    const ConvPacking packing = conv_packing(plan, phase);
    // with 16 registers, the engine's tiles are faster from two vectors of channels on
    const bool has_registers = packing.block > 2 * packing.lanes;
    const int64_t most = has_registers ? packing.block : packing.lanes;
    return packing.width() != 1 && std::max(packing.C, packing.K) <= most &&
           phase.S == kStripTaps && phase.R > 0 && phase.dilation_x == 1 && phase.dilation_y == 1 &&
           phase.step_x <= 2 && phase.step_y <= phase.R &&
           row_bytes(plan, packing) <= kStripRowBytes && phase.out_step_x == 1 &&
           phase.out_step_y == 1 && phase.out_first_x == 0 && phase.out_first_y == 0 &&
           phase.grid_w == plan.output.W && phase.grid_h == plan.output.H;
  }

  explicit ConvGroups(const ConvPlan& plan)
      : plan_(plan),
        phase_(plan.phases.front()),
        packing_(conv_packing(plan, plan.phases.front())),
        shares_(packing_.width() > 0),
        strips_(shares_ ? packing_.padded_K() / packing_.lanes : packing_.groups),
        inputs_(inputs_of(packing_)),
        outputs_(shares_ ? packing_.lanes : packing_.K),
        width_(width_of(plan)),
        direct_(std::is_same_v<S, T> && plan.output.channels_last) {
    const int64_t height = plan.output.H, rows = kStripBytes / row_bytes(plan, packing_);
    const int64_t most = std::max<int64_t>(rows - phase_.R, 0) / phase_.step_y + 1;
    chunks_ = ceil_div(height, most);
    rows_ = ceil_div(height, chunks_);
    chunks_ = ceil_div(height, rows_);
    const int64_t wanted = 8 * torch::stable::get_num_threads();
    splits_ = std::clamp<int64_t>(ceil_div(wanted, plan.input.N * chunks_), 1, strips_);
  }

  void run() const {
    const int64_t tasks = plan_.input.N * chunks_ * splits_;
    const int64_t work = plan_.input.N * plan_.output.H * plan_.output.W * plan_.output.C *
                         packing_.C * packing_.taps;
    parallel_chunks(tasks, work < kSerialMultiplyAdds ? tasks : 1, [&] {
      return [&, worker = Worker{*this}](int64_t begin, int64_t end) mutable {
        for (int64_t task = begin; task < end; ++task) {
          worker(task);
        }
      };
    });
  }

 private:
  static int64_t inputs_of(const ConvPacking& packing) {
    return packing.width() > 0 ? packing.lanes : packing.C;
  }
  static int64_t width_of(const ConvPlan& plan) {
    return (plan.output.W + kStripExcess - 1) * plan.phases.front().step_x + kStripTaps;
  }
  static int64_t row_bytes(const ConvPlan& plan, const ConvPacking& packing) {
    return width_of(plan) * inputs_of(packing) * static_cast<int64_t>(sizeof(T));
  }

  // of input, for `rows` of output
  int64_t rows_of_taps(int64_t rows) const { return (rows - 1) * phase_.step_y + phase_.R; }

  struct Worker {
    const ConvGroups& all;
    Scratch<T> input{}, output{}, residual{};

    void operator()(int64_t task) {
      const int64_t split = task % all.splits_, chunk = task / all.splits_ % all.chunks_;
      const int64_t n = task / all.splits_ / all.chunks_;
      const int64_t y = chunk * all.rows_, rows = std::min(all.rows_, all.plan_.output.H - y);
      const int64_t end = (split + 1) * all.strips_ / all.splits_;
      for (int64_t strip = split * all.strips_ / all.splits_; strip < end; strip += kStrips) {
        const int64_t count = std::min(kStrips, end - strip), next = strip + count;
        const T* const gathered = gather(strip, count, n, y, rows);
        const int64_t size = all.rows_of_taps(rows) * all.width_ * all.inputs_;
        const ConvAhead<T> pixels = pixels_of(next, std::min(kStrips, end - next), n, y, rows);
        for (int64_t i = 0; i < count; ++i) {
          ConvAhead<T> ahead = pixels;  // its share
          ahead.data += i * pixels.rows / count * pixels.row;
          ahead.rows = (i + 1) * pixels.rows / count - i * pixels.rows / count;
          convolve(strip + i, n, y, rows, gathered + i * size, ahead);
        }
      }
    }

    // output rows [y, y + rows) of image n
    void convolve(
        int64_t strip,
        int64_t n,
        int64_t y,
        int64_t rows,
        const T* gathered,
        const ConvAhead<T>& ahead
    ) {
      const ConvPlan& plan = all.plan_;
      const ConvPhase& phase = all.phase_;
      const ConvPacking& packing = all.packing_;
      const ConvImage& image = plan.output;
      const int64_t K = image.C, channel = strip * all.outputs_, pixels = rows * image.W;
      const int64_t channels = std::min(all.outputs_, K - channel);
      const int64_t pixel = all.direct_ ? K : channels;
      const int64_t top = y * phase.step_y + phase.first_y;
      const auto maps = image.at<S>(n, y * image.W, pixels, channel, channels);
      ConvImage added = image;
      added.data = const_cast<void*>(plan.residual);
      T* to = output_of(maps);
      const T* addend = nullptr;
      if (plan.residual != nullptr) {
        addend = addend_of(added.at<const S>(n, y * image.W, pixels, channel, channels));
      }
      const T* const bias = static_cast<const T*>(phase.packed);
      const T* const weights = bias + packing.bias_size();
      const int64_t first = all.shares_ ? channel : strip * packing.padded_K();
      const ConvStrip<T> of_channels{
          gathered,
          -top,
          plan.input.H - top,
          all.width_ * all.inputs_,
          all.inputs_,
          packing.width(),
          to,
          addend,
          image.W * pixel,
          pixel,
          rows,
          image.W,
          channels,
          phase.R,
          phase.step_y,
          phase.step_x,
          phase.first_x == -1 && phase.step_x == 1 && image.W == plan.input.W,
          weights + first * packing.taps * packing.C,
          bias + first,
          ahead,
          plan.activation,
          plan.negative_slope
      };
      FASTVISION_CALL(conv_strip, of_channels);
      if (!all.direct_) {
        FASTVISION_CALL(conv_scatter, to, pixel, maps);
      }
    }

    // The input of output rows [y, y + rows), strip by strip, with padding.
    const T* gather(int64_t strip, int64_t strips, int64_t n, int64_t y, int64_t rows) {
      const ConvImage& image = all.plan_.input;
      const int64_t C = all.inputs_, width = all.width_, left = -all.phase_.first_x;
      const int64_t top = y * all.phase_.step_y + all.phase_.first_y;
      const int64_t count = all.rows_of_taps(rows);
      T* const gathered = input.get(strips * count * width * C);
      const int64_t end = std::min(count, image.H - top);
      for (int64_t row = std::max<int64_t>(-top, 0); row < end; ++row) {
        for (int64_t i = 0; i < strips; ++i) {
          const int64_t channel = (strip + i) * C, channels = std::min(C, image.C - channel);
          T* const to = gathered + (i * count + row) * width * C;
          gather_padded_row<S>(image, n, top + row, channel, channels, left, width, to, C);
        }
      }
      return gathered;
    }

    // The pixels that gather() reads, if it is worth prefetching them.
    ConvAhead<T> pixels_of(
        int64_t strip, int64_t strips, int64_t n, int64_t y, int64_t rows
    ) const {
      if constexpr (std::is_same_v<S, T>) {
        const ConvImage& image = all.plan_.input;
        if (image.channels_last && strips > 0) {
          const int64_t top = y * all.phase_.step_y + all.phase_.first_y, C = image.C;
          const int64_t first = std::clamp<int64_t>(top, 0, image.H);
          const int64_t end = std::clamp<int64_t>(top + all.rows_of_taps(rows), first, image.H);
          if (first == end) {
            return {};
          }
          const int64_t channel = strip * all.inputs_;
          const int64_t channels = std::min(strips * all.inputs_, C - channel);
          const T* data = image.at<const T>(n, first * image.W, 0, channel, channels).data;
          const int64_t bytes = channels * static_cast<int64_t>(sizeof(T));
          return {data, image.W * C, C, end - first, image.W, bytes};
        }
      }
      return {};
    }

    // where the results of these maps are written first
    T* output_of(const ConvMaps<S>& maps) {
      if constexpr (std::is_same_v<S, T>) {
        if (all.direct_) {
          return maps.data;
        }
      }
      return output.get(maps.pixels * maps.channels);
    }

    const T* addend_of(const ConvMaps<const S>& maps) {
      if constexpr (std::is_same_v<S, T>) {
        if (all.direct_) {
          return maps.data;
        }
      }
      T* const gathered = residual.get(maps.pixels * maps.channels);
      FASTVISION_CALL(conv_gather, maps, gathered, maps.channels);
      return gathered;
    }
  };

  const ConvPlan& plan_;
  const ConvPhase& phase_;
  const ConvPacking packing_;
  const bool shares_;                        // whether groups share vectors
  const int64_t strips_, inputs_, outputs_;  // channels of a strip
  const int64_t width_;                      // of a gathered row, in pixels
  const bool direct_;                        // whether the output is written in place
  int64_t chunks_, rows_;                    // parts of a map, output rows of each
  int64_t splits_;                           // parts of the strips
};

}  // namespace fastvision
