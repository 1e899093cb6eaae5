#include "common/result_memory.h"
#include "ops/roi_samples_devices.h"

namespace fastvision {
namespace {

RoiArgs options(
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level
) {
  RoiArgs args{};
  args.sampling_ratio = sampling_ratio;
  args.aligned = aligned;
  args.canonical_scale = canonical_scale;
  args.canonical_level = canonical_level;
  args.min_level = min_level;
  return args;
}

template <template <typename> typename Device>
std::tuple<Tensor, Tensor> roi_align_max(
    std::vector<Tensor> features,
    const Tensor& rois,
    std::vector<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level,
    bool with_argmax
) {
  RoiArgs args = options(sampling_ratio, aligned, canonical_scale, canonical_level, min_level);
  args.PH = pooled_height;
  args.PW = pooled_width;
  Tensor argmax;
  Tensor pooled = roi_pooled(
      roi_kernels<RoIAlignMax, Device>,
      args,
      std::move(features),
      rois,
      spatial_scales,
      with_argmax ? &argmax : nullptr
  );
  if (!with_argmax) {
    argmax = empty_strided({0}, {1}, ScalarType::Int, sizeof(int32_t), pooled.device());
  }
  return {pooled, argmax};
}

template <template <typename> typename Device>
std::vector<Tensor> roi_align_max_backward(
    const Tensor& grad,
    const Tensor& rois,
    const Tensor& argmax,
    std::vector<int64_t> sizes,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level,
    bool channels_last
) {
  RoiArgs args = options(sampling_ratio, aligned, canonical_scale, canonical_level, min_level);
  args.channels_last = channels_last;
  return roi_gradients(
      roi_kernels<RoIAlignMax, Device>, args, grad, rois, sizes, spatial_scales, &argmax
  );
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("roi_align_max", FASTVISION_BOX(&roi_align_max<RoiSamplesCpu>));
  m.impl("roi_align_max_backward", FASTVISION_BOX(&roi_align_max_backward<RoiSamplesCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("roi_align_max", FASTVISION_BOX(&roi_align_max<RoiCuda>));
  m.impl("roi_align_max_backward", FASTVISION_BOX(&roi_align_max_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
