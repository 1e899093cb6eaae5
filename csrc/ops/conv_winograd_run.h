// Convolutions and the phases of transposed convolutions by the kernels of conv_winograd.h.
#pragma once

#include <vector>

#include "ops/conv_engine.h"
#include "ops/conv_winograd.h"

namespace fastvision {

// Packed weights: the bias [K'], then for each phase and each pass of output channels the weights
// of WinogradFactors.
struct WinogradLayout {
  ConvPacking all;
  WinogradForm form;
  int64_t phases;
  int64_t kinds;  // in all positions

  WinogradLayout(int64_t C, int64_t K, WinogradForm form, int64_t phases);

  int positions() const { return positions_of(form); }
  int64_t pass() const;  // output channels
  int64_t passes() const;
  ConvPacking packing(int64_t p) const;
  int64_t offset(int64_t p) const;  // of pass p in its phase
  int64_t phase_size() const;
  int64_t size() const { return all.bias_size() + phases * phase_size(); }
  int64_t bytes() const { return size() * static_cast<int64_t>(sizeof(float)); }
};

// Packs a float32 weight whose filters are `filter` values apart and whose input channels
// `channel`; `taps`: their offsets within a filter, for each phase.
Tensor pack_winograd(
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const WinogradLayout& layout,
    int64_t filter,
    int64_t channel,
    const std::vector<std::vector<int64_t>>& taps
);

void check_winograd(const Tensor& input, const Tensor& packed, const WinogradLayout& layout);

// The phases cover the output of OH x OW pixels, and `packed` of each points to its weights.
// check_winograd has passed.
Tensor run_winograd(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const ConvOptions& options,
    const WinogradLayout& layout,
    const std::vector<ConvPhase>& phases,
    int64_t OH,
    int64_t OW,
    bool in_place
);

}  // namespace fastvision
