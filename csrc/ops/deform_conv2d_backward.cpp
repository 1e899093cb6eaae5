#include "ops/deform_conv2d_gradients.h"

namespace fastvision {
namespace {

constexpr int64_t kLeastPixels = 48;            // of a tile
constexpr int64_t kLeastPixelsOfSegment = 256;  // each has an image gradient
constexpr int64_t kMostTasks = 16;
constexpr int64_t kSumsBytes = 256 << 20;  // of all tasks

// Packs each tap of weight [groups * K, C, taps] as a matrix from output to input channels.
template <typename S, typename T>
void pack_taps(const ConvPacking& packing, const Tensor& weight, int64_t taps, T* packed) {
  const int64_t C = packing.K, K = packing.C, groups = packing.groups;
  std::fill(packed, packed + taps * packing.size(), T(0));
  if (packing.width() > 0) {
    const auto values = deform_values<S, T>(weight);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const ConvFilters<T> of_tap{values.get(), nullptr, K * C * taps, taps, C * taps, {tap}};
      pack_conv(packing, of_tap, packed + tap * packing.size());
    }
    return;
  }
  const Tensor filters = torch::stable::contiguous(weight);
  const S* data = static_cast<const S*>(filters.const_data_ptr());
  const int64_t blocks = packing.blocks(), padded = packing.padded_K();
  parallel_chunks(groups * blocks, packing.size() * taps < (16 << 10) ? 1 << 30 : 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / blocks, first = task % blocks * packing.block;
        const int64_t lanes = std::min(packing.block, padded - first);
        const int64_t count = std::min(lanes, C - first);
        T* to = packed + packing.bias_size() + (group * padded + first) * K;
        for (int64_t k = 0; k < K; ++k, to += lanes) {
          const ConvMaps<const S> from{
              data + ((group * K + k) * C + first) * taps, count, taps, taps, 1
          };
          FASTVISION_CALL(conv_gather, from, to, packing.size());
        }
      }
    };
  });
}

// Adds up the parts of the image gradients.
template <typename S, typename T>
void write_images(const DeformPlan<S, T>& plan) {
  const DeformProblem& p = plan.problem;
  const int64_t width = p.W * p.C;
  parallel_chunks(p.N * p.H, std::max<int64_t>((16 << 10) / width, 1), [&] {
    return [&, sum = std::unique_ptr<T[]>(new T[width])](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / p.H, y = row % p.H;
        std::fill(sum.get(), sum.get() + width, T(0));
        for (int64_t i = n * plan.segments; i < (n + 1) * plan.segments; ++i) {
          if (y < plan.part_rows[i].first || y >= plan.part_rows[i].second) {
            continue;
          }
          const T* part = plan.parts[i].get() + y * width;
          for (int64_t j = 0; j < width; ++j) {
            sum[j] += part[j];
          }
        }
        const ConvMaps<S> to = plan.grad_input->by_pixel(n, y * p.W, p.W);
        FASTVISION_CALL(conv_scatter, sum.get(), p.C, to);
      }
    };
  });
}

// Adds up the sums of the tasks, into [K, C / groups, R, S].
template <typename S, typename T>
void write_weights(const DeformPlan<S, T>& plan, S* output) {
  const DeformProblem& p = plan.problem;
  const int64_t C = p.C / p.groups, K = p.K / p.groups, taps = p.taps();
  const int64_t filters = plan.filters(), rows = p.groups * taps;
  parallel_chunks(rows, std::max<int64_t>((16 << 10) / (C * filters), 1), [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* to = plan.sums + row * C * filters;
        for (int64_t task = 1; task < plan.tasks; ++task) {
          const T* from = to + task * plan.sums_size();
          for (int64_t i = 0; i < C * filters; ++i) {
            to[i] += from[i];
          }
        }
        const int64_t group = row / taps, tap = row % taps;
        const ConvMaps<S> maps{output + group * K * C * taps + tap, K, C, C * taps, taps};
        FASTVISION_CALL(conv_scatter, to, filters, maps);
      }
    };
  });
}

template <typename S>
void backward(
    const DeformProblem& problem,
    int64_t needs,
    const Tensor& grad,
    const Tensor& input,
    const Tensor& offset,
    const std::optional<Tensor>& mask,
    const Tensor& weight,
    std::vector<Tensor>& results
) {
  using T = accumulate_t<S>;
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const int64_t taps = problem.taps();
  const ConvPacking packing = conv_packing(
      dtype, problem.groups, problem.K / problem.groups, problem.C / problem.groups, 1
  );
  std::unique_ptr<T[]> packed;
  if (needs & (kInput | kOffset | kMask)) {
    packed.reset(new T[taps * packing.size()]);
    pack_taps<S>(packing, weight, taps, packed.get());
  }
  const DeformImage<S, T> images(input);
  const DeformMaps<const S> masks = mask ? deform_maps<S>(*mask) : DeformMaps<const S>{};
  DeformMaps<S> maps[3];
  for (int i = 0; i < 3; ++i) {
    if (needs >> i & 1) {
      maps[i] = deform_result<S>(results[i]);
    }
  }
  const auto wanted = [&](int i) { return needs >> i & 1 ? &maps[i] : nullptr; };
  std::vector<std::unique_ptr<T[]>> parts;
  std::vector<std::pair<int64_t, int64_t>> part_rows;
  DeformPlan<S, T> plan{
      problem,
      needs,
      deform_maps<S>(grad),
      deform_maps<S>(offset),
      mask ? &masks : nullptr,
      images,
      wanted(0),
      wanted(1),
      wanted(2),
      packing,
      packed.get(),
      packing.lanes,
      1,
      1,
      1,
      nullptr,
      nullptr,
      parts,
      part_rows
  };
  // by sizes only: the number of threads must not change the order of additions
  plan.segments = std::clamp<int64_t>(
      std::min(ceil_div(kMostTasks, problem.N), problem.area() / kLeastPixelsOfSegment),
      1,
      kMostTasks
  );
  plan.tasks = std::min(kMostTasks, problem.N * plan.segments);
  if (plan.needs_columns()) {
    const int64_t bytes = plan.sums_size() * static_cast<int64_t>(sizeof(T));
    plan.tasks = std::clamp<int64_t>(kSumsBytes / bytes, 1, plan.tasks);
  }
  parts.resize(problem.N * plan.segments);
  part_rows.resize(problem.N * plan.segments);
  plan.tile_pixels = problem.tile_pixels(problem.area() / plan.segments, sizeof(T), kLeastPixels);
  const std::unique_ptr<T[]> sums(
      plan.needs_columns() ? new T[plan.tasks * plan.sums_size()] : nullptr
  );
  const std::unique_ptr<T[]> bias_sums(new T[plan.tasks * problem.K]);
  plan.sums = sums.get();
  plan.bias_sums = bias_sums.get();
  parallel_chunks(plan.tasks, problem.work() < kSerialDeformWork ? plan.tasks : 1, [&] {
    return [&, worker = DeformGradients<S, T>(plan)](int64_t begin, int64_t end) mutable {
      for (int64_t task = begin; task < end; ++task) {
        worker(task);
      }
    };
  });
  if (plan.grad_input != nullptr && plan.segments > 1) {
    write_images(plan);
  }
  if (plan.needs_columns()) {
    write_weights(plan, static_cast<S*>(results[3].mutable_data_ptr()));
  }
  if (needs & kBias) {
    for (int64_t i = problem.K; i < plan.tasks * problem.K; ++i) {
      bias_sums[i % problem.K] += bias_sums[i];
    }
    const ConvMaps<S> to{
        static_cast<S*>(results[4].mutable_data_ptr()), problem.K, 1, 1, problem.K
    };
    FASTVISION_CALL(conv_scatter, bias_sums.get(), problem.K, to);
  }
}

// needs: bits of the gradients of input, offset, mask, weight and bias; the others are empty
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& g,
    const Tensor& x,
    const Tensor& places,
    const std::optional<Tensor>& factors,
    const Tensor& weight,
    std::vector<int64_t> window,
    int64_t groups,
    int64_t offset_groups,
    int64_t needs
) {
  const DeformProblem problem =
      DeformProblem::check(x, places, factors, weight, window, groups, offset_groups);
  check_dim(g, 4, "grad");
  STD_TORCH_CHECK(
      g.scalar_type() == x.scalar_type() && g.is_cpu() && g.size(0) == problem.N &&
          g.size(1) == problem.K && g.size(2) == problem.OH && g.size(3) == problem.OW,
      "grad must have the shape, dtype and device of the result"
  );
  if (!factors) {
    needs &= ~kMask;
  }
  const auto in_any_format = [](const Tensor& t) { return in_format(t, is_channels_last(t)); };
  const auto like = [&](const Tensor& t, int64_t bit) {
    if (!(needs & bit)) {
      return torch::stable::new_empty(g, {0});
    }
    return empty_in_format(t, t.size(0), t.size(1), t.size(2), t.size(3), is_channels_last(t));
  };
  std::vector<Tensor> results{
      like(x, kInput),
      like(places, kOffset),
      like(factors.value_or(places), kMask),
      needs & kWeight ? torch::stable::new_empty(
                            weight, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}
                        )
                      : torch::stable::new_empty(g, {0}),
      torch::stable::new_empty(g, {needs & kBias ? problem.K : 0})
  };
  if (g.numel() == 0 || x.numel() == 0) {
    for (Tensor& result : results) {
      torch::stable::zero_(result);
    }
    if (g.numel() == 0 || !(needs & kBias)) {
      return {results[0], results[1], results[2], results[3], results[4]};
    }
    needs = kBias;
  }
  const Tensor grad = in_any_format(g), input = in_any_format(x), offset = in_any_format(places);
  std::optional<Tensor> mask;
  if (factors) {
    mask = in_any_format(*factors);
  }
  FASTVISION_DISPATCH_FLOATING(g.scalar_type(), "grad", [&] {
    backward<scalar_t>(problem, needs, grad, input, offset, mask, weight, results);
  });
  return {results[0], results[1], results[2], results[3], results[4]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("deform_conv2d_backward", FASTVISION_BOX(&deform_conv2d_backward));
}

}  // namespace fastvision
