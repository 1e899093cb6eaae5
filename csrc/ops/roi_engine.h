// Runs a RoI op: checks its tensors, allocates the result, and hands raw pointers to the op's
// kernels. roi_devices.h makes an op's kernels into RoiKernels.
#pragma once

#include <tuple>
#include <vector>

#include "common/roi_geometry.h"
#include "common/torch.h"
#include "ops/roi.h"

namespace fastvision {

// The options of RoIAlign, of means or maxima.
RoiArgs roi_align_options(
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level
);

// An op on one device.
struct RoiKernels {
  int64_t (*pooled_channels)(const RoiArgs&);                   // of the output
  int64_t (*feature_channels)(const RoiArgs&, int64_t pooled);  // the other way round
  void (*forward)(const RoiArgs&, const Tensor& features);      // of an output that is not empty
  void (*backward)(const RoiArgs&, const Tensor& grad);
  bool channels_last_only;  // a forward copies what it reads of contiguous maps
  bool argmax_is_pixel;     // of the map, where not the number of a sample
};

// Pools rois [K, 5], [K, 6] if rotated, from the levels of a pyramid, [N, C, H, W] each, to [K,
// pooled channels, PH, PW], in the memory format of the first level. `args` has PH, PW and the
// options of the op. `argmax`, of an op with a maximum, gets where each is, int32 and in the same
// format.
Tensor roi_pooled(
    const RoiKernels& op,
    RoiArgs args,
    std::vector<Tensor> features,
    const Tensor& rois,
    const std::vector<double>& spatial_scales,
    Tensor* argmax = nullptr
);

// The same of an op with a maximum, and where each maximum is: nothing unless `with_argmax`.
std::tuple<Tensor, Tensor> roi_maxima(
    const RoiKernels& op,
    const RoiArgs& args,
    std::vector<Tensor> features,
    const Tensor& rois,
    const std::vector<double>& spatial_scales,
    bool with_argmax
);

// The gradients of the levels, from the one of the output. `args` has channels_last and the options
// of the op, `sizes` are N, then H and W of each level; `argmax` is the one of the forward.
std::vector<Tensor> roi_gradients(
    const RoiKernels& op,
    RoiArgs args,
    const Tensor& grad,
    const Tensor& rois,
    const std::vector<int64_t>& sizes,
    const std::vector<double>& spatial_scales,
    const Tensor* argmax = nullptr
);

// Refuses an input [N, C, H, W] whose channels do not make a position-sensitive map of that many
// bins.
void check_sensitive(const Tensor& input, int64_t pooled_height, int64_t pooled_width);

// Refuses roi k where it has a fault. The limits of an op that takes samples one by one, `sampled`,
// are for a bin too.
void check_roi(RoiFault fault, int64_t k, bool sampled = false);

// Refuses a size that kernels cannot count in int; `name` has its article.
void check_fits_int(int64_t size, const char* name);

}  // namespace fastvision
