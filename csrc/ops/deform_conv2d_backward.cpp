// The gradients of deformable convolution. Output pixels are cut into segments of an image, and
// segments are grouped into tasks, by sizes alone. Each segment adds to an image gradient of its
// own, and each task to sums of its own for the weights; both are then added up in order, so that
// the result does not depend on the number of threads.
#include "ops/conv_gradient.h"
#include "ops/deform_conv2d_worker.h"

namespace fastvision {
namespace {

constexpr int64_t kLeastPixels = 48;             // of a tile
constexpr int64_t kLeastPixelsOfSegment = 1024;  // each has an image gradient
constexpr int64_t kMostTasks = 16;
constexpr int64_t kSumsBytes = 256 << 20;        // of all tasks

enum Needs { kInput = 1, kOffset = 2, kMask = 4, kWeight = 8, kBias = 16 };

template <typename S, typename T>
struct Plan {
  const DeformProblem& problem;
  int64_t needs;
  DeformMaps<const S> grad, offset;
  const DeformMaps<const S>* mask;
  const DeformImage<S, T>& images;
  DeformMaps<S>*grad_input, *grad_offset, *grad_mask;  // null where they are not needed
  ConvPacking packing;  // of one tap, from output to input channels
  const T* packed;      // [taps][packing.size()]
  int64_t lanes, tile_pixels;
  int64_t segments, tasks;  // segments of an image, tasks of all images
  T* sums;                  // [tasks][groups][taps][C / groups][filters()]
  T* bias_sums;             // [tasks][K]
  std::vector<std::unique_ptr<T[]>>& parts;              // [N * segments] image gradients
  std::vector<std::pair<int64_t, int64_t>>& part_rows;   // [N * segments] that are in use

  bool needs_columns() const { return (needs & kWeight) != 0; }
  bool needs_gradients() const { return (needs & (kInput | kOffset | kMask)) != 0; }
  int64_t filters() const { return ceil_div(problem.K / problem.groups, lanes) * lanes; }
  int64_t sums_size() const { return problem.taps() * problem.C * filters(); }
};

template <typename S, typename T>
class Worker {
 public:
  explicit Worker(const Plan<S, T>& plan)
      : plan_(plan),
        locator_(plan.problem, plan.images, plan.offset, plan.mask, plan.tile_pixels) {
    const DeformProblem& p = plan.problem;
    const int64_t most = plan.tile_pixels, taps = p.taps(), samples = p.offset_groups * taps;
    const int64_t columns = taps * most * locator_.tile.row_stride;
    columns_.reset(new T[columns]);
    grads_.reset(new T[most * p.K]);
    if (plan.needs_gradients()) {
      column_gradients_.reset(new T[columns]);
      // whole vectors are read beyond the channels
      std::fill(column_gradients_.get(), column_gradients_.get() + columns, T(0));
      block_sums_.reset(new T[most * plan.packing.block]);
      unused_.reset(new T[p.C + plan.lanes]());
      point_gradients_.reset(new T[3 * samples * most]);
    }
    if (plan.needs_columns()) {
      strip_.reset(new T[taps * most * kConvGradientChannels]);
      packed_grads_.reset(new T[most * plan.filters()]);
      if (p.groups > 1 || plan.filters() != p.K) {
        group_grads_.reset(new T[most * plan.filters()]());
      }
    }
  }

  void operator()(int64_t task) {
    const DeformProblem& p = plan_.problem;
    if (plan_.needs_columns()) {
      T* sums = plan_.sums + task * plan_.sums_size();
      std::fill(sums, sums + plan_.sums_size(), T(0));
    }
    std::fill(plan_.bias_sums + task * p.K, plan_.bias_sums + (task + 1) * p.K, T(0));
    const int64_t all = p.N * plan_.segments;
    const int64_t end = (task + 1) * all / plan_.tasks;
    for (int64_t i = task * all / plan_.tasks; i < end; ++i) {
      run_segment(task, i);
    }
  }

 private:
  void run_segment(int64_t task, int64_t segment) {
    const DeformProblem& p = plan_.problem;
    const int64_t n = segment / plan_.segments, part = segment % plan_.segments;
    const int64_t first = part * p.area() / plan_.segments;
    const int64_t pixels = (part + 1) * p.area() / plan_.segments - first;
    rows_ = {0, 0};
    if (plan_.grad_input != nullptr && (plan_.segments > 1 || !image_)) {
      image_.reset(new T[p.H * p.W * p.C + plan_.lanes]);
    }
    const int64_t tiles = ceil_div(pixels, plan_.tile_pixels);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = first + i * pixels / tiles;
      run_tile(task, n, begin, first + (i + 1) * pixels / tiles - begin);
    }
    if (plan_.grad_input == nullptr) {
      return;
    }
    if (plan_.segments > 1) {
      plan_.parts[segment] = std::move(image_);
      plan_.part_rows[segment] = rows_;
      return;
    }
    reach({0, p.H});
    const ConvMaps<S> to = plan_.grad_input->by_pixel(n, 0, p.H * p.W);
    FASTVISION_CALL(conv_scatter, image_.get(), p.C, to);
  }

  // Sets rows of the image gradient to zero that were not in use.
  void reach(std::pair<int64_t, int64_t> rows) {
    const int64_t row = plan_.problem.W * plan_.problem.C;
    if (rows.first >= rows.second) {
      return;
    }
    if (rows_.first == rows_.second) {
      rows_ = {rows.first, rows.first};
    }
    T* image = image_.get();
    if (rows.first < rows_.first) {
      std::fill(image + rows.first * row, image + rows_.first * row, T(0));
      rows_.first = rows.first;
    }
    if (rows.second > rows_.second) {
      // with the vector behind the last row, to which zeros are added
      std::fill(image + rows_.second * row, image + rows.second * row + plan_.lanes, T(0));
      rows_.second = rows.second;
    }
  }

  void run_tile(int64_t task, int64_t n, int64_t begin, int64_t count) {
    const DeformProblem& p = plan_.problem;
    const ConvMaps<const S> from = plan_.grad.by_pixel(n, begin, count);
    FASTVISION_CALL(conv_gather, from, grads_.get(), p.K);
    if (plan_.needs & kBias) {
      T* sums = plan_.bias_sums + task * p.K;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t k = 0; k < p.K; ++k) {
          sums[k] += grads_[i * p.K + k];
        }
      }
    }
    if (!plan_.needs_columns() && !plan_.needs_gradients()) {
      return;
    }
    const auto rows = locator_.locate(n, begin, count, plan_.needs_gradients());
    DeformGradientTile<T>& tile = locator_.tile;
    tile.columns = columns_.get();
    if (plan_.needs_gradients()) {
      if (plan_.grad_input != nullptr) {
        reach(rows);
      }
      find_gradients(n, begin, count);
    } else {
      const DeformTile<T>& samples = tile;
      FASTVISION_CALL(deform_gather, samples);
    }
    if (plan_.needs_columns()) {
      add_products(task, n, begin, count);
    }
  }

  void find_gradients(int64_t n, int64_t begin, int64_t count) {
    const DeformProblem& p = plan_.problem;
    DeformGradientTile<T>& tile = locator_.tile;
    const int64_t taps = p.taps(), samples = p.offset_groups * taps;
    fill_rows<const T>(inputs_, grads_.get(), count, p.K);
    for (int64_t tap = 0; tap < taps; ++tap) {
      T* to = column_gradients_.get() + tap * count * tile.row_stride;
      fill_rows<T>(outputs_, to, count, tile.row_stride);
      multiply_rows(
          plan_.packing,
          plan_.packed + tap * plan_.packing.size(),
          inputs_.data(),
          outputs_.data(),
          block_sums_.get(),
          count
      );
    }
    tile.column_gradients = column_gradients_.get();
    tile.image_gradient = image_.get();
    tile.unused = unused_.get();
    tile.offset_gradients = point_gradients_.get();
    tile.mask_gradients = tile.offset_gradients + 2 * samples * count;
    const DeformGradientTile<T>& ready = tile;
    FASTVISION_CALL(deform_gradients, ready);
    const auto write = [&](DeformMaps<S>* maps, const T* from) {
      if (maps != nullptr) {
        const ConvMaps<S> to = maps->by_channel(n, begin, count);
        FASTVISION_CALL(conv_scatter, from, count, to);
      }
    };
    write(plan_.grad_offset, tile.offset_gradients);
    write(plan_.grad_mask, tile.mask_gradients);
  }

  // Adds the products of columns and the result's gradients to the sums of the weights.
  void add_products(int64_t task, int64_t n, int64_t begin, int64_t count) {
    const DeformProblem& p = plan_.problem;
    const int64_t taps = p.taps(), rows = taps * count, stride = locator_.tile.row_stride;
    const int64_t C = p.C / p.groups, K = p.K / p.groups, filters = plan_.filters();
    fill_rows<const T>(strip_rows_, strip_.get(), rows, kConvGradientChannels);
    for (int64_t group = 0; group < p.groups; ++group) {
      const T* grads = grads_.get();
      if (group_grads_) {
        ConvMaps<const S> from = plan_.grad.by_pixel(n, begin, count);
        from.data += group * K * from.channel_stride;
        from.channels = K;
        FASTVISION_CALL(conv_gather, from, group_grads_.get(), filters);
        grads = group_grads_.get();
      }
      const ConvPixels<T> run{columns_.get() + group * C, rows, stride};
      const ConvGradientTile<T> tile{
          &run,
          1,
          strip_.get(),
          strip_rows_.data(),
          grads,
          packed_grads_.get(),
          plan_.sums + task * plan_.sums_size() + group * taps * C * filters,
          count,
          taps,
          C,
          filters,
          0,
          filters
      };
      FASTVISION_CALL(conv_gradient_tile, tile);
    }
  }

  const Plan<S, T>& plan_;
  DeformWorker<S, T> locator_;
  std::pair<int64_t, int64_t> rows_;  // of the image gradient, in use
  std::unique_ptr<T[]> image_, columns_, column_gradients_, grads_, block_sums_, unused_;
  std::unique_ptr<T[]> point_gradients_, strip_, packed_grads_, group_grads_;
  std::vector<const T*> inputs_, strip_rows_;
  std::vector<T*> outputs_;
};

// Packs each tap of weight [groups * K, C, taps] as a matrix from output to input channels.
template <typename S, typename T>
void pack_taps(const ConvPacking& packing, const Tensor& weight, int64_t taps, T* packed) {
  const int64_t C = packing.K, K = packing.C, groups = packing.groups;
  std::fill(packed, packed + taps * packing.size(), T(0));
  if (packing.width() > 0) {
    const auto values = deform_values<S, T>(weight);
    std::unique_ptr<T[]> matrix(new T[groups * C * K]);
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t i = 0; i < groups * C * K; ++i) {
        const int64_t k = i % K, c = i / K % C, group = i / (K * C);
        matrix[i] = values[((group * K + k) * C + c) * taps + tap];
      }
      pack_conv<T>(packing, matrix.get(), nullptr, packed + tap * packing.size());
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
void write_images(const Plan<S, T>& plan) {
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
void write_weights(const Plan<S, T>& plan, S* output) {
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
  Plan<S, T> plan{
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
  plan.tile_pixels =
      problem.tile_pixels(problem.area() / plan.segments, sizeof(T), kLeastPixels);
  const std::unique_ptr<T[]> sums(
      plan.needs_columns() ? new T[plan.tasks * plan.sums_size()] : nullptr
  );
  const std::unique_ptr<T[]> bias_sums(new T[plan.tasks * problem.K]);
  plan.sums = sums.get();
  plan.bias_sums = bias_sums.get();
  parallel_chunks(plan.tasks, problem.work() < kSerialDeformWork ? plan.tasks : 1, [&] {
    return [&, worker = Worker<S, T>(plan)](int64_t begin, int64_t end) mutable {
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
    const ConvMaps<S> to{static_cast<S*>(results[4].mutable_data_ptr()), problem.K, 1, 1, problem.K};
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
      needs & kWeight
          ? torch::stable::new_empty(
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
