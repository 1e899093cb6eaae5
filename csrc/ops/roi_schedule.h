// Cuts the work of the CPU's RoI kernels into tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "common/roi_taps_view.h"
#include "ops/roi.h"

namespace fastvision {

struct RoiForwardSchedule {
  std::vector<int32_t> order;  // rois by level, image and place
  int64_t rois, channels;
  int64_t channel_step;
  int64_t roi_groups;
  int64_t tasks;
  int64_t chunk;    // tasks that a worker takes at once
  int64_t scratch;  // elements of a worker

  RoiForwardSchedule(const RoiArgs& args, int64_t channels, const RoiFootprint* footprints);
  RoiForwardTask operator[](int64_t task) const;
};

class RoiBackwardSchedule {
 public:
  std::vector<RoiBackwardTask> tasks;
  int64_t chunk;
  int64_t scratch = 0;

  // `element` is the size of the type that sums are kept in.
  RoiBackwardSchedule(const RoiArgs& args, const RoiFootprint* footprints, int64_t element);
  // tasks point into the schedule
  RoiBackwardSchedule(const RoiBackwardSchedule&) = delete;
  RoiBackwardSchedule& operator=(const RoiBackwardSchedule&) = delete;

 private:
  // the rois of each (level, image), ascending, as one array and its offsets
  std::vector<int32_t> rois_;
  std::vector<int64_t> offsets_;

  void group_rois(const RoiArgs& args, const RoiFootprint* footprints);
  void cut_into_tiles(const RoiArgs& args, int level, int64_t element);
};

}  // namespace fastvision
