// Builds RoIAlign's sparse axis matrices: for each roi and axis, the pixels and weights of every
// bin.
#pragma once

#include <cstdint>
#include <vector>

#include "common/roi_taps_view.h"
#include "ops/roi_align.h"

namespace fastvision {

template <typename A>
class RoiTaps {
 public:
  // Reads the rois, A being float or double as they are. `bad_roi` is then the first roi that the
  // CPU must refuse, or -1; `bad_grid` tells whether for its number of samples or for its batch
  // index.
  explicit RoiTaps(const RoIAlignArgs& args);

  RoiTapsView<A> view() const { return {rois_.data(), bins_.data(), taps_.data()}; }

  int64_t bad_roi = -1;
  bool bad_grid = false;

 private:
  std::vector<RoiFootprint> rois_;
  std::vector<int32_t> bins_;
  std::vector<Tap<A>> taps_;
};

}  // namespace fastvision
