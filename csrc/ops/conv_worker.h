// One task of a convolution: fills the pointer tables and runs the kernels of conv.h.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "common/scratch.h"
#include "ops/conv_phase_run.h"

namespace fastvision {

constexpr int64_t kNearBytes = 192 << 10;  // weights that fit the L2 cache

// Runs tasks of phases, one after another, in its own scratch memory.
template <typename S, typename T>
class ConvWorker {
 public:
  void operator()(const PhaseRun<S, T>& run, int64_t task) {
    run_ = &run;
    const int64_t chunk = task / run_->splits, split = task % run_->splits;
    begin_ = chunk * run_->chunk;
    end_ = std::min(begin_ + run_->chunk, run_->pixels);
    const int64_t blocks = run_->all_blocks();
    block_begin_ = split * blocks / run_->splits;
    block_end_ = (split + 1) * blocks / run_->splits;
    locate_input();
    locate_output();
    if (run_->depthwise_rows) {
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
    const int64_t w = run_->phase.grid_w, h = run_->phase.grid_h;
    return {p / (w * h), p / w % h, p % w};
  }

  // what the chunk reads, in place or gathered into scratch memory
  void locate_input() {
    if (run_->direct_input) {
      return;
    }
    if (run_->pointwise) {
      gather_pixels();
    } else {
      gather_all_rows();
    }
  }

  void gather_pixels() {
    const int64_t C = run_->input.C, HW = run_->input.H * run_->input.W;
    T* scratch = input_scratch_.get((end_ - begin_) * C);
    for (int64_t p = begin_; p < end_;) {
      const int64_t n = p / HW, stop = std::min(end_, (n + 1) * HW);
      const auto from = maps(n, 0, p - n * HW, stop - p);
      FASTVISION_CALL(conv_gather, from, scratch + (p - begin_) * C, C);
      p = stop;
    }
    gathered_ = scratch;
  }

  void gather_all_rows() {
    const ConvImage& input = run_->input;
    const ConvPhase& phase = run_->phase;
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
    int64_t offset;        // of the first row in scratch memory
  };

  int64_t row_values() const {
    return (run_->merged ? run_->padded_width() : run_->input.W) * run_->input.C;
  }

  ConvMaps<const S> maps(int64_t n, int64_t y, int64_t x, int64_t pixels) const {
    const ConvImage& input = run_->input;
    return input.at<const S>(n, y * input.W + x, pixels, 0, input.C);
  }

  void gather_rows(const Rows& part, T* to) {
    const ConvImage& input = run_->input;
    const int64_t C = input.C;
    if (!run_->merged) {
      const int64_t pixels = (part.high - part.low) * input.W;
      if (pixels > 0) {
        FASTVISION_CALL(conv_gather, maps(part.n, part.low, 0, pixels), to, C);
      }
      return;
    }
    // with padding on both sides, so that the taps of a row are contiguous
    const int64_t width = run_->padded_width(), left = -run_->phase.first_x;
    for (int64_t y = part.low; y < part.high; ++y, to += width * C) {
      gather_padded_row<S>(input, part.n, y, 0, C, left, width, to, C);
    }
  }

  // first value of the chunk's pixel p where the convolution is pointwise
  const T* input_at(int64_t p) const {
    const int64_t C = run_->input.C;
    return run_->direct_input ? static_cast<const T*>(run_->input.data) + p * C
                              : gathered_ + (p - begin_) * C;
  }

  // first value of row y of image n, which must be inside the map
  const T* input_row(int64_t n, int64_t y) const {
    if (run_->direct_input) {
      return static_cast<const T*>(run_->input.data) +
             (n * run_->input.H + y) * run_->input.W * run_->input.C;
    }
    const Rows& part = images_[n - images_.front().n];
    return gathered_ + (part.offset + y - part.low) * row_values();
  }

  int64_t output_pixel(const Pixel& p) const {
    const ConvPhase& phase = run_->phase;
    return (p.n * run_->output.H + p.y * phase.out_step_y + phase.out_first_y) * run_->output.W +
           p.x * phase.out_step_x + phase.out_first_x;
  }

  // position of a pixel in the output or in scratch memory
  int64_t output_index(int64_t p) const {
    if (run_->direct_output) {
      return output_pixel(at(p));
    }
    return (p - begin_) * run_->shared + (run_->shared > 1 ? run_->phase.out_first_x : 0);
  }

  T* output_at(int64_t p) const { return output_base_ + output_index(p) * run_->output.C; }

  const T* residual_at(int64_t p) const {
    return run_->plan.residual == nullptr ? nullptr
                                          : residual_base_ + output_index(p) * run_->output.C;
  }

  // channels that this task computes
  std::pair<int64_t, int64_t> channels() const {
    const ConvPacking& packing = run_->packing;
    const int64_t blocks = packing.blocks(), K = packing.outer_K();
    const auto first = [&](int64_t block) {
      return block / blocks * K + std::min(block % blocks * packing.block, K);
    };
    return {first(block_begin_), first(block_end_)};
  }

  // calls with each run of the chunk whose output pixels are evenly spaced
  template <typename Call>
  void for_each_stretch(const Call& call) const {
    const ConvPhase& phase = run_->phase;
    const int64_t length = run_->whole_output ? phase.grid_h * phase.grid_w : phase.grid_w;
    for (int64_t p = begin_; p < end_;) {
      const int64_t stop = std::min(end_, (p / length + 1) * length);
      call(p, stop - p);
      p = stop;
    }
  }

  template <typename M>
  ConvMaps<M> output_maps(M* data, int64_t p, int64_t pixels) const {
    const ConvImage& output = run_->output;
    const auto [k0, k1] = channels();
    const Pixel pixel = at(p);
    const int64_t HW = output.H * output.W;
    const int64_t shared = run_->shared, step = run_->phase.out_step_x / shared;
    const int64_t index = output_pixel(pixel) - (shared > 1 ? run_->phase.out_first_x : 0);
    pixels *= shared;
    if (output.channels_last) {
      return {data + index * output.C + k0, k1 - k0, pixels, 1, step * output.C};
    }
    const int64_t in_map = index - pixel.n * HW;
    return {data + (pixel.n * output.C + k0) * HW + in_map, k1 - k0, pixels, HW, step};
  }

  void locate_output() {
    if (run_->direct_output) {
      output_base_ = static_cast<T*>(run_->output.data);
      residual_base_ = static_cast<const T*>(run_->plan.residual);
      return;
    }
    const int64_t K = run_->output.C, pixel = run_->shared * K;
    output_base_ = output_scratch_.get((end_ - begin_) * pixel);
    if (run_->plan.residual == nullptr || !run_->begins) {
      return;
    }
    T* residual = residual_scratch_.get((end_ - begin_) * pixel);
    residual_base_ = residual;
    for_each_stretch([&](int64_t p, int64_t pixels) {
      const auto from = output_maps(static_cast<const S*>(run_->plan.residual), p, pixels);
      FASTVISION_CALL(conv_gather, from, residual + (p - begin_) * pixel + channels().first, K);
    });
  }

  void write_output() {
    if (run_->direct_output || !run_->ends) {
      return;
    }
    const int64_t K = run_->output.C;
    for_each_stretch([&](int64_t p, int64_t pixels) {
      const T* from = output_base_ + (p - begin_) * run_->shared * K + channels().first;
      const auto to = output_maps(static_cast<S*>(run_->output.data), p, pixels);
      FASTVISION_CALL(conv_scatter, from, K, to);
    });
  }

  void run_pixels(int64_t begin, int64_t end) {
    const ConvPhase& phase = run_->phase;
    const int64_t count = end - begin;
    const T** inputs = inputs_.get(run_->taps * count);
    T** outputs = outputs_.get(count);
    const T** residuals = run_->plan.residual == nullptr ? nullptr : residuals_.get(count);
    const ConvWindow window = run_->window();
    const bool one_run = run_->pointwise && run_->whole_output;
    for (int64_t i = 0, length; i < count; i += length) {
      const Pixel pixel = at(begin + i);
      length = one_run ? count : std::min(count - i, phase.grid_w - pixel.x);
      const int64_t first = output_index(begin + i);
      const int64_t step = (run_->direct_output ? phase.out_step_x : run_->shared) * run_->output.C;
      fill_pointers(outputs + i, length, output_base_ + first * run_->output.C, step);
      if (residuals != nullptr) {
        fill_pointers(residuals + i, length, residual_base_ + first * run_->output.C, step);
      }
      if (run_->pointwise) {
        fill_pointers(inputs + i, length, input_at(begin + i), run_->input.C);
        continue;
      }
      locate_taps(
          window,
          run_->input.H,
          run_->merged ? run_->padded_width() : run_->input.W,
          run_->input.C,
          pixel.y,
          pixel.x,
          length,
          run_->zeros.data(),
          [&](int64_t y) { return input_row(pixel.n, y); },
          inputs + i,
          count
      );
    }
    const ConvTile<T> tile{
        inputs,
        outputs,
        residuals,
        sums_.get(count * run_->packing.block),
        count,
        static_cast<const T*>(phase.packed),
        &run_->packing,
        block_begin_,
        block_end_,
        run_->direct_input,
        run_->direct_output,
        run_->packing.size() * static_cast<int64_t>(sizeof(T)) > kNearBytes,
        run_->plan.activation,
        run_->plan.negative_slope,
        run_->streams
    };
    FASTVISION_CALL(conv_tile, tile);
  }

  // the chunk is whole rows
  void run_rows() {
    const ConvPhase& phase = run_->phase;
    const ConvImage& input = run_->input;
    const T** rows = inputs_.get(phase.R);
    for (int64_t p = begin_; p < end_; p += phase.grid_w) {
      const Pixel first = at(p);
      for (int64_t r = 0; r < phase.R; ++r) {
        const int64_t y = first.y * phase.step_y + phase.first_y + r * phase.dilation_y;
        rows[r] = y >= 0 && y < input.H ? input_row(first.n, y) : nullptr;
      }
      const ConvDepthwiseRow<T> row{
          rows,
          input.W,
          phase.first_x,
          output_at(p),
          residual_at(p),
          phase.grid_w,
          phase.R,
          phase.S,
          std::min(phase.R, phase.step_y),
          phase.step_x,
          phase.dilation_x,
          std::min(phase.step_y, input.H) * row_values(),
          input.C,
          0,
          static_cast<const T*>(phase.packed),
          &run_->packing,
          run_->plan.activation,
          run_->plan.negative_slope
      };
      FASTVISION_CALL(conv_depthwise_row, row);
    }
  }

  const PhaseRun<S, T>* run_;
  int64_t begin_, end_, block_begin_, block_end_;
  std::vector<Rows> images_;
  const T* gathered_ = nullptr;
  T* output_base_ = nullptr;
  const T* residual_base_ = nullptr;
  Scratch<T> input_scratch_, output_scratch_, residual_scratch_, sums_;
  Scratch<const T*> inputs_, residuals_;
  Scratch<T*> outputs_;
};

}  // namespace fastvision
