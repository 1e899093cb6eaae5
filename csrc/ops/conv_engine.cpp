#include "ops/conv_engine.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"

namespace fastvision {
namespace {

constexpr int64_t kSerialWork = 1 << 18;  // multiply-adds below which waking threads does not pay
// input of a task: stays in the second-level cache, where rows of taps overlap more of it
constexpr int64_t kChunkBytes = 192 << 10, kChunkBytesOfTaps = 384 << 10;
constexpr int64_t kNearBytes = 192 << 10;  // weights that stay in the second-level cache
constexpr int64_t kLeastWidth = 28;        // of the output, below which depthwise rows are padded
constexpr int64_t kLeastPixels = 48, kMostPixels = 240;
constexpr int64_t kLeastDepthwise = 16 << 10;  // values
constexpr int64_t kTilePixels = 6;             // kTileRows of the kernels
constexpr int64_t kMergedChannels = 16;  // fewer input channels than that are merged with the taps

// One phase of a plan, made ready: S is the maps' type, T the engine's.
template <typename S, typename T>
class PhaseRun {
 public:
  PhaseRun(const ConvPlan& plan, const ConvPhase& phase)
      : plan_(plan),
        phase_(phase),
        input_(plan.input),
        output_(plan.output),
        packing_(packing_of(plan, phase)),
        merged_(
            plan.groups == 1 && phase.dilation_x == 1 && phase.S > 1 &&
            input_.C < kMergedChannels && may_pad()
        ),
        depthwise_rows_(phase.S > 0 && packing_.width() == 1 && phase.out_step_x == 1),
        padded_(merged_ || (depthwise_rows_ && phase.grid_w < kLeastWidth && may_pad())),
        direct_input_(std::is_same_v<S, T> && input_.channels_last && !padded_),
        direct_output_(std::is_same_v<S, T> && output_.channels_last),
        taps_(merged_ ? phase.R : phase.R * phase.S),
        tap_values_(merged_ ? phase.S * input_.C : input_.C),
        pixels_(input_.N * phase.grid_h * phase.grid_w) {
    if (merged_) {
      packing_.C = tap_values_;
      packing_.taps = taps_;
    }
    zeros_.resize(
        padded_           ? padded_width() * input_.C
        : depthwise_rows_ ? std::max<int64_t>(input_.W, 1) * input_.C
                          : tap_values_
    );
    split();
  }

  int64_t tasks() const { return chunks_ * splits_; }

  // Lets the first of these phases, which together have all pixels of their rows of outputs, share
  // a worker's scratch memory, from which the rows go out whole. Returns how many: 1 if none do.
  static int64_t share_rows(PhaseRun* runs, int64_t count) {
    const ConvPhase& phase = runs->phase_;
    const int64_t width = phase.out_step_x;
    bool together = !runs->direct_output_ && width > 1 && width <= count;
    for (int64_t i = 1; together && i < width; ++i) {
      const ConvPhase& other = runs[i].phase_;
      together = other.grid_w == phase.grid_w && other.grid_h == phase.grid_h &&
                 other.out_first_y == phase.out_first_y && runs[i].chunk_ == runs->chunk_ &&
                 runs[i].splits_ == runs->splits_;
    }
    for (int64_t i = 0; together && i < width; ++i) {
      runs[i].shared_ = width;
      runs[i].begins_ = i == 0;
      runs[i].ends_ = i == width - 1;
    }
    return together ? width : 1;
  }

  class Worker {
   public:
    void operator()(const PhaseRun& run, int64_t task) {
      run_ = &run;
      const int64_t chunk = task / run_->splits_, split = task % run_->splits_;
      begin_ = chunk * run_->chunk_;
      end_ = std::min(begin_ + run_->chunk_, run_->pixels_);
      const int64_t blocks = run_->all_blocks();
      block_begin_ = split * blocks / run_->splits_;
      block_end_ = (split + 1) * blocks / run_->splits_;
      locate_input();
      locate_output();
      if (run_->depthwise_rows_) {
        run_rows();
      } else {
        run_pixels(begin_, end_);
      }
      write_output();
    }

   private:
    struct Pixel {
      int64_t n, y, x;
    };

    Pixel at(int64_t p) const {
      const int64_t w = run_->phase_.grid_w, h = run_->phase_.grid_h;
      return {p / (w * h), p / w % h, p % w};
    }

    // rows of the inputs of the chunk's pixels, as they lie or gathered into scratch memory
    void locate_input() {
      const ConvImage& input = run_->input_;
      const ConvPhase& phase = run_->phase_;
      if (run_->direct_input_) {
        return;
      }
      const Pixel first = at(begin_), last = at(end_ - 1);
      const int64_t reach = (phase.R - 1) * phase.dilation_y;
      images_.clear();
      int64_t rows = 0;
      for (int64_t n = first.n; n <= last.n; ++n) {
        const int64_t y0 = n == first.n ? first.y : 0;
        const int64_t y1 = n == last.n ? last.y : phase.grid_h - 1;
        const int64_t low = std::clamp<int64_t>(y0 * phase.step_y + phase.first_y, 0, input.H);
        const int64_t high =
            std::clamp<int64_t>(y1 * phase.step_y + phase.first_y + reach + 1, low, input.H);
        images_.push_back({n, low, high, rows});
        rows += high - low;
      }
      T* scratch = input_scratch_.get(std::max<int64_t>(rows * row_values(), 1));
      for (const Rows& part : images_) {
        gather_rows(part, scratch + part.offset * row_values());
      }
      gathered_ = scratch;
    }

    struct Rows {
      int64_t n, low, high;  // rows [low, high) of image n
      int64_t offset;        // of the first one in the scratch memory
    };

    int64_t row_values() const {
      return (run_->padded_ ? run_->padded_width() : run_->input_.W) * run_->input_.C;
    }

    ConvMaps<const S> maps(int64_t n, int64_t y, int64_t x, int64_t pixels) const {
      const ConvImage& input = run_->input_;
      const int64_t C = input.C, HW = input.H * input.W, at = y * input.W + x;
      const S* data = static_cast<const S*>(input.data) + n * C * HW;
      return input.channels_last ? ConvMaps<const S>{data + at * C, C, pixels, 1, C}
                                 : ConvMaps<const S>{data + at, C, pixels, HW, 1};
    }

    void gather_rows(const Rows& part, T* to) {
      const ConvImage& input = run_->input_;
      const int64_t C = input.C;
      if (!run_->padded_) {
        const int64_t pixels = (part.high - part.low) * input.W;
        if (pixels > 0) {
          FASTVISION_CALL(conv_gather, maps(part.n, part.low, 0, pixels), to, C);
        }
        return;
      }
      // with the padding at both sides, so that the taps of a row are one stretch of values
      const int64_t width = run_->padded_width(), left = -run_->phase_.first_x;
      const int64_t x0 = std::clamp<int64_t>(-left, 0, input.W);
      const int64_t x1 = std::clamp<int64_t>(width - left, x0, input.W);
      // where the pixels lie in the row; the padding may be wider than all of it
      const int64_t begin = std::clamp<int64_t>(x0 + left, 0, width);
      const int64_t end = std::clamp<int64_t>(x1 + left, begin, width);
      for (int64_t y = part.low; y < part.high; ++y, to += width * C) {
        std::fill(to, to + begin * C, T(0));
        std::fill(to + end * C, to + width * C, T(0));
        if (end > begin) {
          const auto from = maps(part.n, y, begin - left, end - begin);
          FASTVISION_CALL(conv_gather, from, to + begin * C, C);
        }
      }
    }

    // first value of row y of image n, which is in the map
    const T* input_row(int64_t n, int64_t y) const {
      if (run_->direct_input_) {
        return static_cast<const T*>(run_->input_.data) +
               (n * run_->input_.H + y) * run_->input_.W * run_->input_.C;
      }
      const Rows& part = images_[n - images_.front().n];
      return gathered_ + (part.offset + y - part.low) * row_values();
    }

    int64_t output_pixel(const Pixel& p) const {
      const ConvPhase& phase = run_->phase_;
      return (p.n * run_->output_.H + p.y * phase.out_step_y + phase.out_first_y) *
                 run_->output_.W +
             p.x * phase.out_step_x + phase.out_first_x;
    }

    // where a pixel stands in the output, or in the scratch memory
    int64_t output_index(int64_t p) const {
      if (run_->direct_output_) {
        return output_pixel(at(p));
      }
      return (p - begin_) * run_->shared_ + (run_->shared_ > 1 ? run_->phase_.out_first_x : 0);
    }

    T* output_at(int64_t p) const { return output_base_ + output_index(p) * run_->output_.C; }

    const T* residual_at(int64_t p) const {
      return run_->plan_.residual == nullptr ? nullptr
                                             : residual_base_ + output_index(p) * run_->output_.C;
    }

    // channels that this task computes
    std::pair<int64_t, int64_t> channels() const {
      const ConvPacking& packing = run_->packing_;
      const int64_t blocks = packing.blocks(), K = packing.outer_K();
      const auto first = [&](int64_t block) {
        return block / blocks * K + std::min(block % blocks * packing.block, K);
      };
      return {first(block_begin_), first(block_end_)};
    }

    // calls with each stretch of the chunk whose output pixels are evenly spaced
    template <typename Call>
    void for_each_stretch(const Call& call) const {
      const ConvPhase& phase = run_->phase_;
      const bool whole =
          phase.out_step_x == 1 && phase.out_step_y == 1 && phase.grid_w == run_->output_.W;
      const int64_t length = whole ? phase.grid_h * phase.grid_w : phase.grid_w;
      for (int64_t p = begin_; p < end_;) {
        const int64_t stop = std::min(end_, (p / length + 1) * length);
        call(p, stop - p);
        p = stop;
      }
    }

    template <typename M>
    ConvMaps<M> output_maps(M* data, int64_t p, int64_t pixels) const {
      const ConvImage& output = run_->output_;
      const auto [k0, k1] = channels();
      const Pixel pixel = at(p);
      const int64_t HW = output.H * output.W;
      const int64_t shared = run_->shared_, step = run_->phase_.out_step_x / shared;
      const int64_t index = output_pixel(pixel) - (shared > 1 ? run_->phase_.out_first_x : 0);
      pixels *= shared;
      if (output.channels_last) {
        return {data + index * output.C + k0, k1 - k0, pixels, 1, step * output.C};
      }
      const int64_t in_map = index - pixel.n * HW;
      return {data + (pixel.n * output.C + k0) * HW + in_map, k1 - k0, pixels, HW, step};
    }

    void locate_output() {
      if (run_->direct_output_) {
        output_base_ = static_cast<T*>(run_->output_.data);
        residual_base_ = static_cast<const T*>(run_->plan_.residual);
        return;
      }
      const int64_t K = run_->output_.C, pixel = run_->shared_ * K;
      output_base_ = output_scratch_.get((end_ - begin_) * pixel);
      if (run_->plan_.residual == nullptr || !run_->begins_) {
        return;
      }
      T* residual = residual_scratch_.get((end_ - begin_) * pixel);
      residual_base_ = residual;
      for_each_stretch([&](int64_t p, int64_t pixels) {
        const auto from = output_maps(static_cast<const S*>(run_->plan_.residual), p, pixels);
        FASTVISION_CALL(conv_gather, from, residual + (p - begin_) * pixel + channels().first, K);
      });
    }

    void write_output() {
      if (run_->direct_output_ || !run_->ends_) {
        return;
      }
      const int64_t K = run_->output_.C;
      for_each_stretch([&](int64_t p, int64_t pixels) {
        const T* from = output_base_ + (p - begin_) * run_->shared_ * K + channels().first;
        const auto to = output_maps(static_cast<S*>(run_->output_.data), p, pixels);
        FASTVISION_CALL(conv_scatter, from, K, to);
      });
    }

    void run_pixels(int64_t begin, int64_t end) {
      const ConvPhase& phase = run_->phase_;
      const int64_t count = end - begin;
      const T** inputs = inputs_.get(run_->taps_ * count);
      T** outputs = outputs_.get(count);
      const T** residuals = run_->plan_.residual == nullptr ? nullptr : residuals_.get(count);
      const ConvWindow window = run_->window();
      for (int64_t i = 0, length; i < count; i += length) {
        const Pixel pixel = at(begin + i);
        length = std::min(count - i, phase.grid_w - pixel.x);
        const int64_t first = output_index(begin + i);
        const int64_t step =
            (run_->direct_output_ ? phase.out_step_x : run_->shared_) * run_->output_.C;
        fill_pointers(outputs + i, length, output_base_ + first * run_->output_.C, step);
        if (residuals != nullptr) {
          fill_pointers(residuals + i, length, residual_base_ + first * run_->output_.C, step);
        }
        locate_taps(
            window,
            run_->input_.H,
            run_->merged_ ? run_->padded_width() : run_->input_.W,
            run_->input_.C,
            pixel.y,
            pixel.x,
            length,
            run_->zeros_.data(),
            [&](int64_t y) { return input_row(pixel.n, y); },
            inputs + i,
            count
        );
      }
      const ConvTile<T> tile{
          inputs,
          outputs,
          residuals,
          sums_.get(count * run_->packing_.block),
          count,
          static_cast<const T*>(phase.packed),
          &run_->packing_,
          block_begin_,
          block_end_,
          run_->direct_input_ && run_->taps_ == 1,
          run_->direct_output_,
          run_->packing_.size() * static_cast<int64_t>(sizeof(T)) > kNearBytes,
          run_->plan_.activation,
          run_->plan_.negative_slope
      };
      FASTVISION_CALL(conv_tile, tile);
    }

    // the chunk is whole rows
    void run_rows() {
      const ConvPhase& phase = run_->phase_;
      const ConvImage& input = run_->input_;
      // pixels none of whose taps is beside the row
      int64_t left = 0, right = phase.grid_w, x = 0;
      if (!run_->padded_) {
        const int64_t reach = (phase.S - 1) * phase.dilation_x;
        const int64_t room = input.W - 1 - reach - phase.first_x;
        left = std::clamp<int64_t>(ceil_div(-phase.first_x, phase.step_x), 0, phase.grid_w);
        right = room < 0 ? left : std::clamp<int64_t>(room / phase.step_x + 1, left, phase.grid_w);
        x = left * phase.step_x + phase.first_x;
      }
      for (int64_t p = begin_; p < end_; p += phase.grid_w) {
        if (left > 0) {
          run_pixels(p, p + left);
        }
        if (right < phase.grid_w) {
          run_pixels(p + right, p + phase.grid_w);
        }
        if (left == right) {
          continue;
        }
        const T** rows = inputs_.get(phase.R);
        const Pixel pixel = at(p);
        for (int64_t r = 0; r < phase.R; ++r) {
          const int64_t y = pixel.y * phase.step_y + phase.first_y + r * phase.dilation_y;
          rows[r] =
              y >= 0 && y < input.H ? input_row(pixel.n, y) + x * input.C : run_->zeros_.data();
        }
        const ConvDepthwiseRow<T> row{
            rows,
            output_at(p + left),
            residual_at(p + left),
            right - left,
            phase.R,
            phase.S,
            std::min(phase.R, phase.step_y),
            phase.step_x,
            phase.dilation_x,
            static_cast<const T*>(phase.packed),
            &run_->packing_,
            run_->plan_.activation,
            run_->plan_.negative_slope
        };
        FASTVISION_CALL(conv_depthwise_row, row);
      }
    }

    const PhaseRun* run_;
    int64_t begin_, end_, block_begin_, block_end_;
    std::vector<Rows> images_;
    const T* gathered_ = nullptr;
    T* output_base_ = nullptr;
    const T* residual_base_ = nullptr;
    Scratch<T> input_scratch_, output_scratch_, residual_scratch_, sums_;
    Scratch<const T*> inputs_, residuals_;
    Scratch<T*> outputs_;
  };

 private:
  static ConvPacking packing_of(const ConvPlan& plan, const ConvPhase& phase) {
    const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
    return conv_packing(
        dtype,
        plan.groups,
        plan.input.C / plan.groups,
        plan.output.C / plan.groups,
        phase.R * phase.S
    );
  }

  int64_t padded_width() const {
    return (phase_.grid_w - 1) * phase_.step_x + (phase_.S - 1) * phase_.dilation_x + 1;
  }
  // whether padded rows are not much longer than the input's
  bool may_pad() const { return padded_width() <= 2 * input_.W + kLeastWidth; }
  int64_t all_blocks() const { return packing_.outer_groups() * packing_.blocks(); }

  ConvWindow window() const {
    ConvWindow window = phase_;
    if (merged_) {  // the taps of a row are one, and the rows hold the padding
      window.S = 1;
      window.first_x = 0;
    }
    return window;
  }

  void split() {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t step_x = std::clamp<int64_t>(phase_.step_x, 1, std::max<int64_t>(input_.W, 1));
    const int64_t step_y = std::clamp<int64_t>(phase_.step_y, 1, std::max<int64_t>(input_.H, 1));
    const int64_t bytes = input_.C * step_x * step_y * static_cast<int64_t>(sizeof(T));
    // the same for all phases, so that they go together
    const bool overlaps = std::any_of(
        plan_.phases.begin(), plan_.phases.end(), [](const ConvPhase& p) { return p.R * p.S > 1; }
    );
    const int64_t most = overlaps ? kChunkBytesOfTaps : kChunkBytes;
    chunk_ = std::clamp(most / bytes, kLeastPixels, kMostPixels);
    // enough chunks for all threads, as long as they do not get small
    const int64_t wanted = 4 * threads;
    const int64_t least = depthwise_rows_ ? kLeastDepthwise / input_.C : kLeastPixels;
    chunk_ = std::min(chunk_, std::max(ceil_div(pixels_, wanted), least));
    // chunks of the same length, in units of what a tile or a row has
    const int64_t unit = depthwise_rows_ ? phase_.grid_w : kTilePixels;
    chunk_ = ceil_div(ceil_div(pixels_, ceil_div(pixels_, chunk_)), unit) * unit;
    chunks_ = ceil_div(pixels_, chunk_);
    splits_ = depthwise_rows_ ? 1 : std::clamp<int64_t>(wanted / chunks_, 1, all_blocks());
  }

  const ConvPlan& plan_;
  const ConvPhase& phase_;
  const ConvImage& input_;
  const ConvImage& output_;
  ConvPacking packing_;
  bool merged_, depthwise_rows_;
  bool padded_;  // whether rows are gathered with the padding at both sides
  bool direct_input_, direct_output_;
  int64_t taps_, tap_values_;
  int64_t pixels_;
  int64_t chunk_, chunks_, splits_;
  int64_t shared_ = 1;  // phases that share scratch memory for outputs
  bool begins_ = true, ends_ = true;
  std::vector<T> zeros_;
};

template <typename S>
void run(const ConvPlan& plan) {
  using Run = PhaseRun<S, accumulate_t<S>>;
  std::vector<Run> runs;
  runs.reserve(plan.phases.size());
  int64_t work = 0;
  for (const ConvPhase& phase : plan.phases) {
    if (phase.grid_h > 0 && phase.grid_w > 0 && plan.input.N > 0) {
      runs.emplace_back(plan, phase);
      work += plan.input.N * phase.grid_h * phase.grid_w * phase.R * phase.S *
              (plan.input.C / plan.groups) * plan.output.C;
    }
  }
  const auto count = static_cast<int64_t>(runs.size());
  for (int64_t i = 0; i < count;) {
    i += Run::share_rows(&runs[i], count - i);
  }
  // phases of equal grids go chunk by chunk: they read the same input, and their outputs interleave
  for (size_t first = 0, last; first < runs.size(); first = last) {
    const int64_t tasks = runs[first].tasks();
    for (last = first + 1; last < runs.size() && runs[last].tasks() == tasks;) {
      ++last;
    }
    parallel_chunks(tasks, work < kSerialWork ? tasks : 1, [&] {
      return [&, worker = typename Run::Worker()](int64_t begin, int64_t end) mutable {
        for (int64_t task = begin; task < end; ++task) {
          for (size_t i = first; i < last; ++i) {
            worker(runs[i], task);
          }
        }
      };
    });
  }
}

}  // namespace

ConvPacking conv_packing(ScalarType dtype, int64_t groups, int64_t C, int64_t K, int64_t taps) {
  ConvPacking packing{groups, C, K, taps, 0, 0};
  if (dtype == ScalarType::Double) {
    const double* type = nullptr;
    packing.lanes = FASTVISION_CALL(conv_lanes, type);
    packing.block = FASTVISION_CALL(conv_block, type);
  } else {
    const float* type = nullptr;
    packing.lanes = FASTVISION_CALL(conv_lanes, type);
    packing.block = FASTVISION_CALL(conv_block, type);
  }
  return packing;
}

void run_conv(const ConvPlan& plan) {
  FASTVISION_DISPATCH_FLOATING(plan.dtype, "input", [&] { run<scalar_t>(plan); });
}

}  // namespace fastvision
