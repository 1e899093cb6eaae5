#include "ops/deform_conv2d_worker.h"

namespace fastvision {
namespace {

// pixels of a tile, at least: more share the weights if those are not in the L2 cache
constexpr int64_t kLeastPixels = 24, kLeastPixelsOfLarge = 72;
constexpr int64_t kFewestPixels = 12;       // two register tiles
constexpr int64_t kLargeBytes = 512 << 10;  // of weights
constexpr int64_t kMostExtent = 1 << 30;    // of positions along an axis

void check_map(
    const Tensor& x, const Tensor& input, const std::vector<int64_t>& shape, const char* name
) {
  check_dim(x, 4, name);
  STD_TORCH_CHECK(
      x.scalar_type() == input.scalar_type() && x.is_cpu(),
      name,
      " must have the dtype and device of input"
  );
  for (int dim = 0; dim < 4; ++dim) {
    STD_TORCH_CHECK(
        x.size(dim) == shape[dim],
        name,
        ".shape[",
        dim,
        "] must be ",
        shape[dim],
        ", got ",
        x.size(dim)
    );
  }
}

template <typename S>
void forward(
    const DeformProblem& problem,
    const Tensor& input,
    const Tensor& offset,
    const std::optional<Tensor>& mask,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    Tensor& output
) {
  using T = accumulate_t<S>;
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const int64_t K = problem.K, taps = problem.taps(), area = problem.area();
  const ConvPacking packing =
      conv_packing(dtype, problem.groups, problem.C / problem.groups, K / problem.groups, taps);
  const std::unique_ptr<T[]> packed(new T[packing.size()]);
  pack_filters<S>(packing, weight, bias, packed.get());
  const DeformImage<S, T> images(input);
  const DeformMaps<const S> offsets = deform_maps<S>(offset);
  const DeformMaps<const S> masks = mask ? deform_maps<S>(*mask) : DeformMaps<const S>{};
  const DeformMaps<S> result = deform_result<S>(output);
  const bool direct = std::is_same_v<S, T> && has_channels_last_strides(output);
  const bool large = packing.size() * static_cast<int64_t>(sizeof(T)) > kLargeBytes;
  // at least two tiles per thread, which changes no sum
  const int64_t share = ceil_div(problem.N * area, 2 * int64_t{torch::stable::get_num_threads()});
  const int64_t most = std::min(
      problem.tile_pixels(area, sizeof(T), large ? kLeastPixelsOfLarge : kLeastPixels),
      std::max(share, kFewestPixels)
  );
  const int64_t tiles = ceil_div(area, most), tasks = problem.N * tiles;
  parallel_chunks(tasks, problem.work() < kSerialDeformWork ? tasks : 1, [&] {
    DeformWorker<S, T> worker(problem, images, offsets, mask ? &masks : nullptr, most);
    const int64_t stride = worker.tile.row_stride;
    return [&,
            stride,
            worker = std::move(worker),
            columns = std::unique_ptr<T[]>(new T[taps * most * stride]),
            rows = std::unique_ptr<T[]>(new T[direct ? 0 : most * K]),
            sums = std::unique_ptr<T[]>(new T[most * packing.block]),
            inputs = std::vector<const T*>(),
            outputs = std::vector<T*>()](int64_t begin, int64_t end) mutable {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / tiles, i = task % tiles;
        const int64_t p = i * area / tiles, count = (i + 1) * area / tiles - p;
        worker.locate(n, p, count, false);
        worker.tile.columns = columns.get();
        const DeformTile<T>& tile = worker.tile;
        FASTVISION_CALL(deform_gather, tile);
        fill_rows<const T>(inputs, columns.get(), taps * count, stride);
        T* to = rows.get();
        if (direct) {
          to = static_cast<T*>(output.mutable_data_ptr()) + (n * area + p) * K;
        }
        fill_rows<T>(outputs, to, count, K);
        multiply_rows(packing, packed.get(), inputs.data(), outputs.data(), sums.get(), count);
        if (!direct) {
          const ConvMaps<S> maps = result.by_pixel(n, p, count);
          FASTVISION_CALL(conv_scatter, rows.get(), K, maps);
        }
      }
    };
  });
}

Tensor deform_conv2d(
    const Tensor& x,
    const Tensor& places,
    const std::optional<Tensor>& factors,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    std::vector<int64_t> window,
    int64_t groups,
    int64_t offset_groups
) {
  const DeformProblem problem =
      DeformProblem::check(x, places, factors, weight, window, groups, offset_groups);
  STD_TORCH_CHECK(
      !bias || (bias->dim() == 1 && bias->size(0) == problem.K &&
                bias->scalar_type() == x.scalar_type() && bias->is_cpu()),
      "bias must have shape [K] and the dtype and device of input"
  );
  const bool channels_last = is_channels_last(x);
  Tensor output = empty_in_format(x, problem.N, problem.K, problem.OH, problem.OW, channels_last);
  if (output.numel() == 0) {
    return output;
  }
  const Tensor input = in_format(x, channels_last);
  const Tensor offset = in_format(places, is_channels_last(places));
  std::optional<Tensor> mask;
  if (factors) {
    mask = in_format(*factors, is_channels_last(*factors));
  }
  FASTVISION_DISPATCH_FLOATING(x.scalar_type(), "input", [&] {
    forward<scalar_t>(problem, input, offset, mask, weight, bias, output);
  });
  return output;
}

}  // namespace

DeformProblem DeformProblem::check(
    const Tensor& input,
    const Tensor& offset,
    const std::optional<Tensor>& mask,
    const Tensor& weight,
    const std::vector<int64_t>& window,
    int64_t groups,
    int64_t offset_groups
) {
  check_dim(input, 4, "input");
  check_dim(weight, 4, "weight");
  STD_TORCH_CHECK(window.size() == 6, "window must have six values");
  DeformProblem p{};
  p.N = input.size(0);
  p.C = input.size(1);
  p.H = input.size(2);
  p.W = input.size(3);
  p.K = weight.size(0);
  p.groups = groups;
  p.offset_groups = offset_groups;
  p.window = {
      weight.size(2),
      weight.size(3),
      window[0],
      window[1],
      -window[2],
      -window[3],
      window[4],
      window[5]
  };
  STD_TORCH_CHECK(
      groups > 0 && offset_groups > 0 && p.C > 0 && p.C % groups == 0 && p.K % groups == 0 &&
          p.C % offset_groups == 0,
      "groups and offset_groups must divide the channels, got ",
      groups,
      " and ",
      offset_groups
  );
  int64_t size[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t stride = window[axis], padding = window[2 + axis], dilation = window[4 + axis];
    const int64_t kernel = weight.size(2 + axis), extent_in = input.size(2 + axis);
    STD_TORCH_CHECK(
        kernel > 0 && stride > 0 && padding >= 0 && dilation > 0 && kernel < kMostExtent &&
            stride < kMostExtent && padding < kMostExtent && dilation < kMostExtent &&
            extent_in < kMostExtent && extent_in + 2 * padding < kMostExtent &&
            dilation * (kernel - 1) + 1 < kMostExtent,
        "kernel, stride, padding or dilation out of range"
    );
    size[axis] = extent(extent_in, padding, padding, kernel, dilation, stride);
    STD_TORCH_CHECK(size[axis] > 0, "the kernel must fit the padded input");
  }
  STD_TORCH_CHECK(p.H * p.W < int64_t{1} << 31, "input must have less than 2**31 pixels");
  p.OH = size[0];
  p.OW = size[1];
  check_map(weight, input, {p.K, p.C / groups, p.window.R, p.window.S}, "weight");
  check_map(offset, input, {p.N, 2 * offset_groups * p.taps(), p.OH, p.OW}, "offset");
  if (mask) {
    check_map(*mask, input, {p.N, offset_groups * p.taps(), p.OH, p.OW}, "mask");
  }
  return p;
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("deform_conv2d", FASTVISION_BOX(&deform_conv2d));
}

}  // namespace fastvision
