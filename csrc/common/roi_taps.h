// Builds the sparse axis matrices of a RoI op for the CPU: for each roi and axis, the pixels and
// weights of every bin, as the axis rule has them.
#pragma once

#include <cstdint>
#include <vector>

#include "common/roi_geometry.h"

namespace fastvision {

template <typename Axis>
class RoiTaps {
 public:
  using A = typename Axis::Value;

  // Reads the rois, which are of type A. If the CPU must refuse one, the first such is `bad_roi`,
  // for the reason `fault`, and there are no taps.
  explicit RoiTaps(const RoiArgs& args);

  RoiTapsView<A> view() const { return {rois_.data(), bins_.data(), taps_.data()}; }

  int64_t bad_roi = -1;
  RoiFault fault = RoiFault::none;

 private:
  std::vector<RoiFootprint> rois_;
  std::vector<int32_t> bins_;
  std::vector<Tap<A>> taps_;
};

}  // namespace fastvision
