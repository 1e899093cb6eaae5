// State shared by the tasks of one phase of a convolution.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/conv_engine.h"

namespace fastvision {

// input of a task: fits the L2 cache, so that overlapping rows of taps reuse it
constexpr int64_t kChunkBytes = 192 << 10, kChunkBytesOfTaps = 384 << 10;
constexpr int64_t kExcess = 28;  // of padded rows, at most, beyond twice the input's
constexpr int64_t kLeastPixels = 48, kMostPixels = 240;
constexpr int64_t kLeastDepthwise = 16 << 10;  // values
constexpr int64_t kTilePixels = 6;             // kTileRows of the kernels
constexpr int64_t kStreamedBytes = 24 << 20;   // of an output that the caches would not hold
constexpr int64_t kMergedChannels = 16;        // fewer input channels are merged with the taps

// One phase of a plan, prepared. S is the storage type of the maps, T the engine's type.
template <typename S, typename T>
struct PhaseRun {
  const ConvPlan& plan;
  const ConvPhase& phase;
  const ConvImage& input;
  const ConvImage& output;
  ConvPacking packing;
  bool merged;                       // the taps of a row are merged into one, and rows are
                                     // gathered with padding on both sides
  bool depthwise_rows;               // the depthwise kernel computes whole rows
  bool direct_input, direct_output;  // read or written in place, without scratch
  bool pointwise;                    // pixel p of the grid reads pixel p of the input alone
  bool whole_output;                 // pixel p of the grid is pixel p of the output
  bool streams;                      // the output is stored past the caches
  int64_t taps, tap_values;
  int64_t pixels;
  int64_t chunk;           // pixels per task
  int64_t chunks, splits;  // parts of the pixels, and of the output channels
  int64_t shared = 1;      // phases that share scratch memory for outputs
  bool begins = true, ends = true;
  std::vector<T> zeros;

  PhaseRun(const ConvPlan& plan, const ConvPhase& phase)
      : plan(plan),
        phase(phase),
        input(plan.input),
        output(plan.output),
        packing(conv_packing(plan, phase)),
        merged(
            plan.groups == 1 && phase.dilation_x == 1 && phase.S > 1 && input.C < kMergedChannels &&
            may_pad()
        ),
        depthwise_rows(phase.S > 0 && packing.width() == 1 && phase.out_step_x == 1),
        direct_input(std::is_same_v<S, T> && input.channels_last && !merged),
        direct_output(std::is_same_v<S, T> && output.channels_last),
        pointwise(
            !depthwise_rows && phase.R == 1 && phase.S == 1 && phase.step_y == 1 &&
            phase.step_x == 1 && phase.first_y == 0 && phase.first_x == 0 &&
            phase.grid_h == input.H && phase.grid_w == input.W
        ),
        whole_output(
            phase.out_step_y == 1 && phase.out_step_x == 1 && phase.grid_h == output.H &&
            phase.grid_w == output.W
        ),
        streams(
            direct_output && plan.residual != output.data && !depthwise_rows && plan.groups == 1 &&
            is_clamp(plan.activation) && is_large(output) &&
            fills_lines(output.data, output.C * static_cast<int64_t>(sizeof(T)))
        ),
        taps(merged ? phase.R : phase.R * phase.S),
        tap_values(merged ? phase.S * input.C : input.C),
        pixels(input.N * phase.grid_h * phase.grid_w) {
    if (merged) {
      packing.C = tap_values;
      packing.taps = taps;
    }
    zeros.resize(depthwise_rows ? 0 : merged ? padded_width() * input.C : tap_values);
    split();
  }

  int64_t tasks() const { return chunks * splits; }

  // Lets the first of these phases, if together they cover their output rows, share a worker's
  // scratch memory, from which whole rows are written. Returns their number, or 1.
  static int64_t share_rows(PhaseRun* runs, int64_t count) {
    const ConvPhase& phase = runs->phase;
    const int64_t width = phase.out_step_x;
    bool together = !runs->direct_output && width > 1 && width <= count;
    for (int64_t i = 1; together && i < width; ++i) {
      const ConvPhase& other = runs[i].phase;
      together = other.grid_w == phase.grid_w && other.grid_h == phase.grid_h &&
                 other.out_first_y == phase.out_first_y && runs[i].chunk == runs->chunk &&
                 runs[i].splits == runs->splits;
    }
    for (int64_t i = 0; together && i < width; ++i) {
      runs[i].shared = width;
      runs[i].begins = i == 0;
      runs[i].ends = i == width - 1;
    }
    return together ? width : 1;
  }

  int64_t padded_width() const {
    return (phase.grid_w - 1) * phase.step_x + (phase.S - 1) * phase.dilation_x + 1;
  }
  // whether padded rows are not much longer than input rows
  bool may_pad() const { return padded_width() <= 2 * input.W + kExcess; }
  int64_t all_blocks() const { return packing.outer_groups() * packing.blocks(); }

  ConvWindow window() const {
    ConvWindow window = phase;
    if (merged) {  // one tap per row, and rows include the padding
      window.S = 1;
      window.first_x = 0;
    }
    return window;
  }

 private:
  static bool is_large(const ConvImage& map) {
    return map.N * map.H * map.W * map.C * static_cast<int64_t>(sizeof(T)) >= kStreamedBytes;
  }

  void split() {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t step_x = std::clamp<int64_t>(phase.step_x, 1, std::max<int64_t>(input.W, 1));
    const int64_t step_y = std::clamp<int64_t>(phase.step_y, 1, std::max<int64_t>(input.H, 1));
    const int64_t bytes = input.C * step_x * step_y * static_cast<int64_t>(sizeof(T));
    // the same for all phases, so that they advance together
    const bool overlaps = std::any_of(
        plan.phases.begin(), plan.phases.end(), [](const ConvPhase& p) { return p.R * p.S > 1; }
    );
    const int64_t most = overlaps ? kChunkBytesOfTaps : kChunkBytes;
    const bool gathers_rows = merged && plan.phases.size() == 1;
    const int64_t most_pixels = depthwise_rows ? std::max(pixels, kMostPixels)
                                : gathers_rows ? 2 * kMostPixels
                                               : kMostPixels;
    chunk = std::clamp(most / bytes, kLeastPixels, most_pixels);
    // enough chunks for all threads, unless they get small
    const int64_t wanted = 4 * threads;
    const int64_t least = depthwise_rows ? kLeastDepthwise / input.C : kLeastPixels;
    chunk = std::min(chunk, std::max(ceil_div(pixels, wanted), least));
    // chunks of equal length, in units of a tile or of a gathered row, and as many for each thread
    const bool whole_rows = depthwise_rows || (gathers_rows && phase.grid_w <= chunk);
    const int64_t unit = whole_rows ? phase.grid_w : kTilePixels;
    const int64_t count = ceil_div(pixels, chunk);
    chunk = ceil_div(pixels, count > threads ? ceil_div(count, threads) * threads : count);
    chunk = ceil_div(chunk, unit) * unit;
    chunks = ceil_div(pixels, chunk);
    splits = depthwise_rows ? 1 : std::clamp<int64_t>(ceil_div(wanted, chunks), 1, all_blocks());
  }
};

}  // namespace fastvision
