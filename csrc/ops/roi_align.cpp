#include "ops/roi_align.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <type_traits>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/roi_taps.h"
#include "common/torch.h"
#ifdef USE_CUDA
#include "common/cuda_stream.h"
#endif

namespace fastvision {
namespace {

// channels of a task in the NCHW format: one vector
int64_t planar_step() { return cpu_level() == 2 ? kChannelsPlanar : kChannelsPlanar / 2; }

constexpr int64_t kChannelsLast = 64;  // channels of a task: four cache lines of floats per pixel
constexpr int64_t kRoisPerTask = 16;
constexpr int64_t kSerialWork = 1 << 18;   // multiply-adds below which waking threads does not pay
constexpr int64_t kTileBytes = 128 << 10;  // a gradient tile stays in the second-level cache

void check_rois(const Tensor& rois, ScalarType features) {
  check_dim(rois, 2, "rois");
  STD_TORCH_CHECK(rois.size(1) == 5, "rois must have shape [K, 5], got [K, ", rois.size(1), "]");
  const ScalarType expected =
      features == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      rois.scalar_type() == expected, "rois must be float32, beside float64 features float64"
  );
}

void check_levels(size_t levels, size_t scales) {
  STD_TORCH_CHECK(
      levels >= 1 && levels <= kMaxLevels, "expected 1 to ", kMaxLevels, " levels, got ", levels
  );
  STD_TORCH_CHECK(
      scales == levels, "spatial_scales must be one per level, ", levels, ", got ", scales
  );
}

template <typename A>
RoiTaps<A> build_taps(const RoIAlignArgs& args) {
  RoiTaps<A> taps(args);
  STD_TORCH_CHECK(
      taps.bad_roi < 0,
      "rois: roi ",
      taps.bad_roi,
      taps.bad_grid ? " has more than 2**20 samples per bin, pass a smaller sampling_ratio"
                    : " has a batch index outside [0, batch size)"
  );
  return taps;
}

// Rois by level, image and place, so that neighbours in the order of work find their pixels in
// cache.
template <typename A>
std::vector<int32_t> order_of_work(const RoiTapsView<A>& taps, int64_t K) {
  std::vector<int32_t> order(K);
  std::iota(order.begin(), order.end(), 0);
  if (K < 4 * kRoisPerTask) {
    return order;
  }
  std::vector<uint64_t> key(K);
  for (int64_t k = 0; k < K; ++k) {
    const RoiFootprint& roi = taps.rois[k];
    const uint64_t y = (static_cast<uint64_t>(roi.y_begin) + roi.y_end) / 32;  // bands of 16 rows
    const uint64_t x = (static_cast<uint64_t>(roi.x_begin) + roi.x_end) / 2;
    key[k] = (static_cast<uint64_t>(roi.level) << 60) | (static_cast<uint64_t>(roi.image) << 40) |
             ((y & 0xfffff) << 20) | (((y & 1) ? ~x : x) & 0xfffff);
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return key[a] != key[b] ? key[a] < key[b] : a < b;
  });
  return order;
}

int64_t work_of(const RoIAlignArgs& args) {
  const int64_t taps = args.sampling_ratio > 0 ? std::min<int64_t>(args.sampling_ratio, 8) + 1 : 3;
  return args.K * args.C * args.PH * args.PW * taps * taps;
}

// One chunk for all items where the work is small, else one each.
int64_t chunk_of(int64_t work, int64_t items) { return work < kSerialWork ? items : 1; }

template <typename scalar_t>
void forward(const RoIAlignArgs& args) {
  using A = accumulate_t<scalar_t>;
  const RoiTaps<A> owner = build_taps<A>(args);
  const RoiTapsView<A> taps = owner.view();
  const std::vector<int32_t> order = order_of_work(taps, args.K);
  const int64_t step = args.channels_last ? kChannelsLast : planar_step();
  const int64_t blocks = (args.C + step - 1) / step;
  const int64_t groups = (args.K + kRoisPerTask - 1) / kRoisPerTask;
  int64_t width = 0;
  for (int64_t k = 0; k < args.K; ++k) {
    width = std::max<int64_t>(width, taps.rois[k].x_end - taps.rois[k].x_begin);
  }
  const int64_t scratch_size = args.channels_last ? 0 : roi_align_scratch(args, width);
  // channel block outermost: one block of the whole map is more likely to stay in cache
  parallel_chunks(blocks * groups, chunk_of(work_of(args), blocks * groups), [&] {
    return [&, scratch = std::unique_ptr<A[]>(new A[scratch_size])](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i / groups * step;
        const int64_t roi = i % groups * kRoisPerTask;
        const RoIAlignForwardTask task{
            order.data(),
            roi,
            std::min(args.K, roi + kRoisPerTask),
            c,
            std::min(args.C, c + step),
        };
        FASTVISION_CALL(
            roi_align_forward,
            static_cast<const scalar_t*>(nullptr),
            args,
            taps,
            task,
            scratch.get()
        );
      }
    };
  });
}

// The rois of each (level, image), ascending, as one array and its offsets.
template <typename A>
struct RoisByMap {
  std::vector<int32_t> rois;
  std::vector<int64_t> offsets;

  RoisByMap(const RoIAlignArgs& args, const RoiTapsView<A>& taps)
      : rois(args.K), offsets(args.num_levels * args.N + 1) {
    const auto map_of = [&](int64_t k) { return taps.rois[k].level * args.N + taps.rois[k].image; };
    for (int64_t k = 0; k < args.K; ++k) {
      ++offsets[map_of(k) + 1];
    }
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
    for (int64_t k = 0; k < args.K; ++k) {
      rois[next[map_of(k)]++] = static_cast<int32_t>(k);
    }
  }
};

template <typename scalar_t>
void backward(const RoIAlignArgs& args) {
  using A = accumulate_t<scalar_t>;
  const RoiTaps<A> owner = build_taps<A>(args);
  const RoiTapsView<A> taps = owner.view();
  const RoisByMap<A> by_map(args, taps);
  const int64_t c_step = args.channels_last ? kChannelsLast : planar_step();
  std::vector<RoIAlignBackwardTask> tasks;
  int64_t work = work_of(args);
  int64_t scratch_size = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    const int64_t H = args.levels[level].H;
    const int64_t W = args.levels[level].W;
    if (H == 0 || W == 0) {
      continue;
    }
    work += args.N * args.C * H * W / 8;
    // channels_last: squarish tiles; NCHW: whole rows, whose lines are contiguous
    const int64_t x_step = args.channels_last ? std::min<int64_t>(W, 32) : W;
    const int64_t row_bytes =
        roi_align_padded(x_step) * std::min(c_step, roi_align_padded(args.C)) * sizeof(A);
    const int64_t y_step = std::clamp<int64_t>(kTileBytes / row_bytes, 1, H);
    scratch_size = std::max(
        scratch_size,
        y_step * roi_align_padded(x_step) * roi_align_padded(c_step) + roi_align_scratch(args, W)
    );
    for (int64_t image = 0; image < args.N; ++image) {
      const int64_t map = level * args.N + image;
      const int32_t* rois = by_map.rois.data() + by_map.offsets[map];
      const int64_t count = by_map.offsets[map + 1] - by_map.offsets[map];
      for (int64_t c = 0; c < args.C; c += c_step) {
        for (int64_t y = 0; y < H; y += y_step) {
          for (int64_t x = 0; x < W; x += x_step) {
            tasks.push_back(
                {rois,
                 count,
                 level,
                 image,
                 y,
                 std::min(H, y + y_step),
                 x,
                 std::min(W, x + x_step),
                 c,
                 std::min(args.C, c + c_step)}
            );
          }
        }
      }
    }
  }
  const int64_t count = static_cast<int64_t>(tasks.size());
  parallel_chunks(count, chunk_of(work, count), [&] {
    return [&, scratch = std::unique_ptr<A[]>(new A[scratch_size])](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        FASTVISION_CALL(
            roi_align_backward,
            static_cast<const scalar_t*>(nullptr),
            args,
            taps,
            tasks[i],
            scratch.get()
        );
      }
    };
  });
}

struct Cpu {
  static void run_forward(const RoIAlignArgs& args, const Tensor& like) {
    FASTVISION_DISPATCH_FLOATING(like.scalar_type(), "features", [&] { forward<scalar_t>(args); });
  }
  static void run_backward(const RoIAlignArgs& args, const Tensor& like) {
    FASTVISION_DISPATCH_FLOATING(like.scalar_type(), "grad", [&] { backward<scalar_t>(args); });
  }
};

#ifdef USE_CUDA
struct Cuda {
  static void run_forward(const RoIAlignArgs& args, const Tensor& like) {
    check_sizes(args);
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const cudaStream_t stream = current_cuda_stream(like.get_device_index());
    FASTVISION_DISPATCH_FLOATING(like.scalar_type(), "features", [&] {
      launch_roi_align_forward<scalar_t>(args, stream);
    });
  }
  static void run_backward(const RoIAlignArgs& args, const Tensor& like) {
    check_sizes(args);
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const cudaStream_t stream = current_cuda_stream(like.get_device_index());
    FASTVISION_DISPATCH_FLOATING(like.scalar_type(), "grad", [&] {
      launch_roi_align_backward<scalar_t>(args, stream);
    });
  }

 private:
  // the kernels' offsets are 64-bit, their sizes are not
  static void check_sizes(const RoIAlignArgs& args) {
    check_fits_int(args.N, "a batch size");
    check_fits_int(args.C, "a number of channels");
    check_fits_int(args.K, "a number of rois");
    check_fits_int(args.PH, "an output height");
    check_fits_int(args.PW, "an output width");
    check_fits_int(args.PH * args.PW, "an output size");
    for (int level = 0; level < args.num_levels; ++level) {
      check_fits_int(args.levels[level].H, "a height");
      check_fits_int(args.levels[level].W, "a width");
    }
  }
  static void check_fits_int(int64_t size, const char* name) {
    STD_TORCH_CHECK(size <= INT32_MAX, "CUDA kernels cannot handle ", name, " of ", size);
  }
};
#endif

template <typename Backend>
Tensor roi_align(
    std::vector<Tensor> features,
    const Tensor& rois,
    std::vector<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level
) {
  check_levels(features.size(), spatial_scales.size());
  const ScalarType dtype = features[0].scalar_type();
  check_rois(rois, dtype);
  STD_TORCH_CHECK(pooled_height >= 0 && pooled_width >= 0, "output_size must not be negative");
  RoIAlignArgs args{};
  args.num_levels = static_cast<int>(features.size());
  args.channels_last = is_channels_last(features[0]);
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
    map = in_format(map, args.channels_last);
    args.levels[level] = {
        const_cast<void*>(map.const_data_ptr()), map.size(2), map.size(3), spatial_scales[level]
    };
  }
  const Tensor rois_dense = rois.is_contiguous() ? rois : torch::stable::contiguous(rois);
  args.rois = rois_dense.const_data_ptr();
  args.N = features[0].size(0);
  args.C = features[0].size(1);
  args.K = rois.size(0);
  args.PH = pooled_height;
  args.PW = pooled_width;
  args.sampling_ratio = sampling_ratio;
  args.aligned = aligned;
  args.canonical_scale = canonical_scale;
  args.canonical_level = canonical_level;
  args.min_level = min_level;
  Tensor pooled =
      empty_in_format(features[0], args.K, args.C, args.PH, args.PW, args.channels_last);
  args.pooled = pooled.mutable_data_ptr();
  if (pooled.numel() > 0) {
    Backend::run_forward(args, features[0]);
  }
  return pooled;
}

template <typename Backend>
std::vector<Tensor> roi_align_backward(
    const Tensor& grad,
    const Tensor& rois,
    std::vector<int64_t> sizes,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level,
    bool channels_last
) {
  check_dim(grad, 4, "grad");
  STD_TORCH_CHECK(sizes.size() % 2 == 1, "sizes must be N, then H and W of each level");
  check_levels(sizes.size() / 2, spatial_scales.size());
  STD_TORCH_CHECK(*std::min_element(sizes.begin(), sizes.end()) >= 0, "sizes must not be negative");
  check_rois(rois, grad.scalar_type());
  STD_TORCH_CHECK(grad.device() == rois.device(), "grad and rois must be on the same device");
  STD_TORCH_CHECK(
      grad.size(0) == rois.size(0), "grad must be of ", rois.size(0), " rois, got ", grad.size(0)
  );
  const Tensor pooled = in_format(grad, channels_last);
  const Tensor rois_dense = rois.is_contiguous() ? rois : torch::stable::contiguous(rois);
  RoIAlignArgs args{};
  args.num_levels = static_cast<int>(sizes.size() / 2);
  args.rois = rois_dense.const_data_ptr();
  args.pooled = const_cast<void*>(pooled.const_data_ptr());
  args.N = sizes[0];
  args.C = grad.size(1);
  args.K = grad.size(0);
  args.PH = grad.size(2);
  args.PW = grad.size(3);
  args.sampling_ratio = sampling_ratio;
  args.aligned = aligned;
  args.channels_last = channels_last;
  args.canonical_scale = canonical_scale;
  args.canonical_level = canonical_level;
  args.min_level = min_level;
  std::vector<Tensor> grads;
  for (int level = 0; level < args.num_levels; ++level) {
    const int64_t H = sizes[1 + 2 * level];
    const int64_t W = sizes[2 + 2 * level];
    grads.push_back(empty_in_format(grad, args.N, args.C, H, W, channels_last));
    args.levels[level] = {grads.back().mutable_data_ptr(), H, W, spatial_scales[level]};
  }
  if (args.K == 0 || args.PH == 0 || args.PW == 0) {
    for (Tensor& g : grads) {
      torch::stable::zero_(g);
    }
  } else if (args.N > 0 && args.C > 0) {
    Backend::run_backward(args, grad);
  }
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("roi_align", FASTVISION_BOX(&roi_align<Cpu>));
  m.impl("roi_align_backward", FASTVISION_BOX(&roi_align_backward<Cpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("roi_align", FASTVISION_BOX(&roi_align<Cuda>));
  m.impl("roi_align_backward", FASTVISION_BOX(&roi_align_backward<Cuda>));
}
#endif

}  // namespace fastvision
