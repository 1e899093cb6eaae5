// The gradients of deformable convolution, by tasks. Output pixels are cut into segments of an
// image, and segments are grouped into tasks, by sizes alone. Each segment adds to an image
// gradient of its own, and each task to sums of its own for the weights; both are then added up in
// order, so that the result does not depend on the number of threads.
#pragma once

#include "ops/conv_gradient.h"
#include "ops/deform_conv2d_worker.h"

namespace fastvision {
// gradients that a call asks for
enum DeformNeeds { kInput = 1, kOffset = 2, kMask = 4, kWeight = 8, kBias = 16 };

template <typename S, typename T>
struct DeformPlan {
  const DeformProblem& problem;
  int64_t needs;
  DeformMaps<const S> grad, offset;
  const DeformMaps<const S>* mask;
  const DeformImage<S, T>& images;
  DeformMaps<S>*grad_input, *grad_offset, *grad_mask;  // null where they are not needed
  ConvPacking packing;                                 // of one tap, from output to input channels
  const T* packed;                                     // [taps][packing.size()]
  int64_t lanes, tile_pixels;
  int64_t segments, tasks;                   // segments of an image, tasks of all images
  T* sums;                                   // [tasks][groups][taps][C / groups][filters()]
  T* bias_sums;                              // [tasks][K]
  std::vector<std::unique_ptr<T[]>>& parts;  // [N * segments] image gradients
  std::vector<std::pair<int64_t, int64_t>>& part_rows;  // [N * segments] that are in use

  bool needs_columns() const { return (needs & kWeight) != 0; }
  bool needs_gradients() const { return (needs & (kInput | kOffset | kMask)) != 0; }
  int64_t filters() const { return ceil_div(problem.K / problem.groups, lanes) * lanes; }
  int64_t sums_size() const { return problem.taps() * problem.C * filters(); }
};

template <typename S, typename T>
class DeformGradients {
 public:
  explicit DeformGradients(const DeformPlan<S, T>& plan)
      : plan_(plan), locator_(plan.problem, plan.images, plan.offset, plan.mask, plan.tile_pixels) {
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

  const DeformPlan<S, T>& plan_;
  DeformWorker<S, T> locator_;
  std::pair<int64_t, int64_t> rows_;  // of the image gradient, in use
  std::unique_ptr<T[]> image_, columns_, column_gradients_, grads_, block_sums_, unused_;
  std::unique_ptr<T[]> point_gradients_, strip_, packed_grads_, group_grads_;
  std::vector<const T*> inputs_, strip_rows_;
  std::vector<T*> outputs_;
};

}  // namespace fastvision
