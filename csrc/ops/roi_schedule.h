// Cuts the work of the CPU's RoI kernels into tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "common/roi_taps_view.h"
#include "ops/roi.h"

namespace fastvision {

struct RoiForwardSchedule {
  std::vector<int32_t> order;  // rois by level, image and place
  int64_t rois, bins, channels;
  int64_t roi_step, bin_step, channel_step;  // of a task
  int64_t roi_groups, bin_groups;
  int64_t tasks;
  int64_t chunk;    // tasks that a worker takes at once
  int64_t scratch;  // elements of a worker
  bool small;       // not worth waking threads

  // `shared`: whether all bins read the same channels; `copied_per_roi`: kCopiedPerRoi
  RoiForwardSchedule(
      const RoiArgs& args, bool shared, int64_t copied_per_roi, const RoiFootprint* footprints
  );
  RoiForwardTask operator[](int64_t task) const;
};

class RoiBackwardSchedule {
 public:
  std::vector<RoiBackwardTask> tasks;
  int64_t chunk;
  int64_t scratch = 0;

  // `element` is the size of the type that sums are kept in.
  RoiBackwardSchedule(
      const RoiArgs& args, bool shared, const RoiFootprint* footprints, int64_t element
  );
  // tasks point into the schedule
  RoiBackwardSchedule(const RoiBackwardSchedule&) = delete;
  RoiBackwardSchedule& operator=(const RoiBackwardSchedule&) = delete;

 private:
  // the rois of each (level, image), ascending, as one array and its offsets
  std::vector<int32_t> rois_;
  std::vector<int64_t> offsets_;

  void group_rois(const RoiArgs& args, const RoiFootprint* footprints);
  void cut_into_tiles(const RoiArgs& args, bool shared, int level, int64_t element);
};

}  // namespace fastvision
