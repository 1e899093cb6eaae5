#include "ops/roi_engine.h"

#include <algorithm>

#include "common/memory_format.h"

namespace fastvision {
namespace {

// Checks the rois for features of type `features`; gives them contiguous.
Tensor checked_rois(const RoiArgs& args, const Tensor& rois, ScalarType features) {
  const int64_t numbers = args.rotated ? 6 : 5;
  check_dim(rois, 2, "rois");
  STD_TORCH_CHECK(
      rois.size(1) == numbers,
      "rois must have shape [K, ",
      numbers,
      "], got [K, ",
      rois.size(1),
      "]"
  );
  const ScalarType expected =
      features == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      rois.scalar_type() == expected, "rois must be float32, or float64 for float64 features"
  );
  return rois.is_contiguous() ? rois : torch::stable::contiguous(rois);
}

void check_levels(size_t levels, size_t scales) {
  STD_TORCH_CHECK(
      levels >= 1 && levels <= kMaxLevels, "expected 1 to ", kMaxLevels, " levels, got ", levels
  );
  STD_TORCH_CHECK(
      scales == levels, "spatial_scales must be one per level, ", levels, ", got ", scales
  );
}

// Taps count the pixels and bins of an axis in int, and float rounds the largest ints up.
void check_axes(const RoiArgs& args, bool records_pixels) {
  constexpr int64_t kMaxExtent = INT32_MAX - 128;
  check_fits_int(args.PH, "an output height");
  check_fits_int(args.PW, "an output width");
  for (int level = 0; level < args.num_levels; ++level) {
    const RoiLevel& map = args.levels[level];
    STD_TORCH_CHECK(
        std::max(map.H, map.W) <= kMaxExtent,
        "RoI kernels cannot handle a map of ",
        map.H,
        " x ",
        map.W,
        " pixels"
    );
    STD_TORCH_CHECK(
        !records_pixels || map.H * map.W <= INT32_MAX,
        "the position of a maximum is int32, and cannot tell the pixels of a map of ",
        map.H,
        " x ",
        map.W
    );
  }
}

Tensor empty_positions(const Tensor& pooled) {
  std::vector<int64_t> sizes, strides;
  for (int64_t dim = 0; dim < pooled.dim(); ++dim) {
    sizes.push_back(pooled.size(dim));
    strides.push_back(pooled.stride(dim));
  }
  return empty_strided(sizes, strides, ScalarType::Int, sizeof(int32_t), pooled.device());
}

void check_positions(const Tensor& argmax, const Tensor& grad) {
  check_dim(argmax, 4, "argmax");
  STD_TORCH_CHECK(
      argmax.scalar_type() == ScalarType::Int && argmax.device() == grad.device(),
      "argmax must be int32, and on the device of grad"
  );
  for (int64_t dim = 0; dim < 4; ++dim) {
    STD_TORCH_CHECK(
        argmax.size(dim) == grad.size(dim),
        "argmax must have the shape of grad, got ",
        argmax.size(dim),
        " and ",
        grad.size(dim),
        " in dimension ",
        dim
    );
  }
}

}  // namespace

void check_roi(RoiFault fault, int64_t k, bool sampled) {
  STD_TORCH_CHECK(
      fault == RoiFault::none,
      "rois: roi ",
      k,
      fault == RoiFault::batch_index ? " has a batch index outside [0, batch size)"
      : sampled ? " has more than 2**20 samples per bin and axis, or 2**24 per bin; "
                  "pass a smaller sampling_ratio"
                : " has more than 2**20 samples per bin and axis; pass a smaller sampling_ratio"
  );
}

void check_fits_int(int64_t size, const char* name) {
  STD_TORCH_CHECK(size <= INT32_MAX, "RoI kernels cannot handle ", name, " of ", size);
}

void check_sensitive(const Tensor& input, int64_t pooled_height, int64_t pooled_width) {
  check_dim(input, 4, "input");
  int64_t bins = 0;
  STD_TORCH_CHECK(
      pooled_height > 0 && pooled_width > 0 &&
          !__builtin_mul_overflow(pooled_height, pooled_width, &bins) && input.size(1) % bins == 0,
      "input must have a multiple of ",
      pooled_height,
      " x ",
      pooled_width,
      " channels, got ",
      input.size(1)
  );
}

RoiArgs roi_align_options(
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

Tensor roi_pooled(
    const RoiKernels& op,
    RoiArgs args,
    std::vector<Tensor> features,
    const Tensor& rois,
    const std::vector<double>& spatial_scales,
    Tensor* argmax
) {
  check_levels(features.size(), spatial_scales.size());
  const ScalarType dtype = features[0].scalar_type();
  const Tensor rois_dense = checked_rois(args, rois, dtype);
  STD_TORCH_CHECK(args.PH >= 0 && args.PW >= 0, "output_size must not be negative");
  args.num_levels = static_cast<int>(features.size());
  const bool channels_last = is_channels_last(features[0]);
  args.channels_last = channels_last || op.channels_last_only;
  args.copied = args.channels_last && !channels_last;
  for (size_t level = 0; level < features.size(); ++level) {
    Tensor& map = features[level];
    check_dim(map, 4, "features");
    STD_TORCH_CHECK(
        map.scalar_type() == dtype && map.device() == rois.device(),
        "features must all be of one dtype, and on the device of rois"
    );
    STD_TORCH_CHECK(
        map.size(0) == features[0].size(0) && map.size(1) == features[0].size(1),
        "features must all have the same batch size and channels"
    );
    map = in_format(map, channels_last);
    args.levels[level] = {
        const_cast<void*>(map.const_data_ptr()), map.size(2), map.size(3), spatial_scales[level]
    };
  }
  args.rois = rois_dense.const_data_ptr();
  args.N = features[0].size(0);
  args.C = features[0].size(1);
  args.K = rois.size(0);
  const int64_t channels = op.pooled_channels(args);
  Tensor pooled =
      empty_in_format(features[0], args.K, channels, args.PH, args.PW, args.channels_last);
  args.pooled = pooled.mutable_data_ptr();
  if (argmax != nullptr) {
    *argmax = empty_positions(pooled);
    args.argmax = static_cast<int32_t*>(argmax->mutable_data_ptr());
  }
  if (pooled.numel() > 0) {
    check_axes(args, argmax != nullptr && op.argmax_is_pixel);
    op.forward(args, features[0]);
  }
  if (args.channels_last == channels_last) {
    return pooled;
  }
  if (argmax != nullptr) {
    *argmax = in_format(*argmax, channels_last);
  }
  return in_format(pooled, channels_last);
}

std::tuple<Tensor, Tensor> roi_maxima(
    const RoiKernels& op,
    const RoiArgs& args,
    std::vector<Tensor> features,
    const Tensor& rois,
    const std::vector<double>& spatial_scales,
    bool with_argmax
) {
  Tensor argmax;
  const Tensor pooled = roi_pooled(
      op, args, std::move(features), rois, spatial_scales, with_argmax ? &argmax : nullptr
  );
  if (!with_argmax) {
    argmax = empty_strided({0}, {1}, ScalarType::Int, sizeof(int32_t), pooled.device());
  }
  return {pooled, argmax};
}

std::vector<Tensor> roi_gradients(
    const RoiKernels& op,
    RoiArgs args,
    const Tensor& grad,
    const Tensor& rois,
    const std::vector<int64_t>& sizes,
    const std::vector<double>& spatial_scales,
    const Tensor* argmax
) {
  check_dim(grad, 4, "grad");
  STD_TORCH_CHECK(sizes.size() % 2 == 1, "sizes must be N, then H and W of each level");
  check_levels(sizes.size() / 2, spatial_scales.size());
  STD_TORCH_CHECK(*std::min_element(sizes.begin(), sizes.end()) >= 0, "sizes must not be negative");
  const Tensor rois_dense = checked_rois(args, rois, grad.scalar_type());
  STD_TORCH_CHECK(grad.device() == rois.device(), "grad and rois must be on the same device");
  STD_TORCH_CHECK(
      grad.size(0) == rois.size(0), "grad must be of ", rois.size(0), " rois, got ", grad.size(0)
  );
  const bool channels_last = args.channels_last;
  args.channels_last = channels_last || op.channels_last_only;
  const Tensor pooled = in_format(grad, args.channels_last);
  Tensor positions;  // as long as the kernels read it
  if (argmax != nullptr) {
    check_positions(*argmax, grad);
    positions = in_format(*argmax, args.channels_last);
    args.argmax = const_cast<int32_t*>(static_cast<const int32_t*>(positions.const_data_ptr()));
  }
  args.num_levels = static_cast<int>(sizes.size() / 2);
  args.rois = rois_dense.const_data_ptr();
  args.pooled = const_cast<void*>(pooled.const_data_ptr());
  args.N = sizes[0];
  args.K = grad.size(0);
  args.PH = grad.size(2);
  args.PW = grad.size(3);
  args.C = op.feature_channels(args, grad.size(1));
  std::vector<Tensor> grads;
  for (int level = 0; level < args.num_levels; ++level) {
    const int64_t H = sizes[1 + 2 * level];
    const int64_t W = sizes[2 + 2 * level];
    grads.push_back(empty_in_format(grad, args.N, args.C, H, W, args.channels_last));
    args.levels[level] = {grads.back().mutable_data_ptr(), H, W, spatial_scales[level]};
  }
  if (args.K == 0 || args.PH == 0 || args.PW == 0) {
    for (Tensor& g : grads) {
      torch::stable::zero_(g);
    }
  } else if (args.N > 0 && args.C > 0) {
    check_axes(args, argmax != nullptr && op.argmax_is_pixel);
    op.backward(args, grad);
  }
  for (Tensor& g : grads) {
    g = args.channels_last == channels_last ? g : in_format(g, channels_last);
  }
  return grads;
}

}  // namespace fastvision
