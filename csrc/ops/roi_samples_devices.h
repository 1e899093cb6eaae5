// The CPU's kernels of a RoI op that takes samples one by one, as the engine calls them. The CUDA
// kernels are called as those of any RoI op.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/roi_samples.h"
#include "ops/conv.h"
#include "ops/roi_devices.h"
#include "ops/roi_samples.h"

namespace fastvision {

// The samples of a bin in blocks.
template <typename A, typename Consume>
class SampleBlocks {
 public:
  explicit SampleBlocks(Consume consume) : consume_(std::move(consume)) {}

  // Of the taps those in `box`, with positions from its first pixel on in rows of `width`. Without
  // samples there is one empty block.
  void feed(const SampledRoi<A>& roi, int ph, int pw, const PixelBox& box, int64_t width) {
    block_.samples = taps_ = 0;
    block_.first = true;
    block_.last = false;
    block_.bin_samples = static_cast<A>(roi.samples());
    const auto add_tap = [&](int y, int x, A weight) {
      if (y >= box.y_begin && y < box.y_end && x >= box.x_begin && x < box.x_end) {
        block_.pixel[taps_] = (y - box.y_begin) * width + (x - box.x_begin);
        block_.weight[taps_++] = weight;
      }
    };
    const auto add_row = [&](int y, const PixelBelow<A>& x, A weight) {
      add_tap(y, x.pixel, weight * (A(1) - x.fraction));
      if (x.fraction > 0) {
        add_tap(y, x.pixel + 1, weight * x.fraction);
      }
    };
    roi.for_each_sample(
        ph,
        pw,
        [&](const BilinearSample<A>& sample) {
          add_row(sample.y.pixel, sample.x, A(1) - sample.y.fraction);
          if (sample.y.fraction > 0) {
            add_row(sample.y.pixel + 1, sample.x, sample.y.fraction);
          }
          end_sample(sample.index);
        },
        [&] { end_sample(-1); }
    );
    block_.last = true;
    consume_(block_);
  }

 private:
  Consume consume_;
  SampleBlock<A> block_;
  int taps_ = 0;

  void end_sample(int index) {
    block_.index[block_.samples] = index;
    block_.end[block_.samples++] = taps_;
    if (block_.samples == SampleBlock<A>::kSamples) {
      consume_(block_);
      block_.samples = taps_ = 0;
      block_.first = false;
    }
  }
};

// The pixels of contiguous maps that rois can touch, in maps that are channels_last; the others are
// left as they are, and their memory is never asked for.
template <typename T>
class TouchedPixels {
 public:
  TouchedPixels(const RoiArgs& args, const std::vector<RoiFootprint>& places) : args_(args) {
    int64_t size = 0;
    for (int level = 0; level < args.num_levels; ++level) {
      const RoiLevel& map = args.levels[level];
      first_row_[level] = static_cast<int64_t>(rows_.size());
      rows_.resize(rows_.size() + args.N * map.H);
      size += args.N * map.H * map.W * args.C;
    }
    for (const RoiFootprint& place : places) {
      Row* image =
          rows_.data() + first_row_[place.level] + place.image * args.levels[place.level].H;
      for (int64_t y = place.y_begin; y < place.y_end && place.x_begin < place.x_end; ++y) {
        image[y].begin = std::min<int64_t>(image[y].begin, place.x_begin);
        image[y].end = std::max<int64_t>(image[y].end, place.x_end);
      }
    }
    memory_.reset(new T[size]);
    T* to = memory_.get();
    for (int level = 0; level < args.num_levels; ++level) {
      const RoiLevel& map = args.levels[level];
      copy(level, to);
      args_.levels[level].features = to;
      to += args.N * map.H * map.W * args.C;
    }
  }

  const RoiArgs& args() const { return args_; }

 private:
  struct Row {
    int64_t begin = INT64_MAX, end = 0;
  };
  static constexpr int64_t kChunk = 1 << 15;  // values, for which waking a thread pays

  RoiArgs args_;
  std::vector<Row> rows_;
  int64_t first_row_[kMaxLevels];
  std::unique_ptr<T[]> memory_;

  void copy(int level, T* to) {
    const RoiLevel& map = args_.levels[level];
    const T* from = static_cast<const T*>(map.features);
    const int64_t C = args_.C, plane = map.H * map.W;
    const int64_t chunk = std::max<int64_t>(kChunk / std::max<int64_t>(map.W * C, 1), 1);
    parallel_chunks(args_.N * map.H, chunk, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Row& row = rows_[first_row_[level] + i];
          if (row.begin < row.end) {
            const int64_t pixel = i % map.H * map.W + row.begin;
            const T* first = from + i / map.H * C * plane + pixel;
            const ConvMaps<const T> pixels{first, C, row.end - row.begin, plane, 1};
            FASTVISION_CALL(conv_gather, pixels, to + (i / map.H * plane + pixel) * C, C);
          }
        }
      };
    });
  }
};

template <typename Op>
struct RoiSamplesCpu {
  static constexpr bool kChannelsLastOnly = true;

  static void forward(const RoiArgs& args, const Tensor& features) {
    FASTVISION_DISPATCH_FLOATING(features.scalar_type(), "features", [&] {
      run_forward<scalar_t>(args);
    });
  }
  static void backward(const RoiArgs& args, const Tensor& grad) {
    FASTVISION_DISPATCH_FLOATING(grad.scalar_type(), "grad", [&] { run_backward<scalar_t>(args); });
  }

 private:
  template <typename T>
  using Kernel = RoiKernel<T, typename Op::Reduction, typename Op::Channels>;

  // Where the rois are, for the order of work; refuses those that the CPU refuses.
  template <typename A>
  static std::vector<RoiFootprint> footprints(const RoiArgs& args) {
    std::vector<RoiFootprint> result(args.K);
    for (int64_t k = 0; k < args.K; ++k) {
      const SampledRoi<A> roi = read_sampled_roi<A>(args, k);
      check_roi(roi.fault, k, /*sampled=*/true);
      const PixelBox box =
          roi.empty() ? PixelBox{}
                      : roi.pixels_of(0, static_cast<int>(args.PH), 0, static_cast<int>(args.PW));
      result[k] = {
          roi.level, roi.image, box.y_begin, box.y_end, box.x_begin, box.x_end, /*taps=*/0
      };
    }
    return result;
  }

  template <typename T>
  static void run_forward(const RoiArgs& args) {
    using A = accumulate_t<T>;
    const std::vector<RoiFootprint> places = footprints<A>(args);
    if (args.copied) {
      const TouchedPixels<T> pixels(args, places);
      return pool<T>(pixels.args(), places);
    }
    pool<T>(args, places);
  }

  template <typename T>
  static void pool(const RoiArgs& args, const std::vector<RoiFootprint>& places) {
    using A = accumulate_t<T>;
    const RoiForwardSchedule schedule(args, /*shared=*/true, /*copied_per_roi=*/0, places.data());
    const int64_t tasks = args.K * args.PH;
    parallel_chunks(tasks, schedule.small ? tasks : 1, [&] {
      return [&, scratch = std::unique_ptr<A[]>(new A[2 * sample_padded(args.C)])](
                 int64_t begin, int64_t end
             ) {
        for (int64_t task = begin; task < end; ++task) {
          pool_row<T>(args, schedule.order[task / args.PH], task % args.PH, scratch.get());
        }
      };
    });
  }

  // One row of bins of a roi.
  template <typename T, typename A>
  static void pool_row(const RoiArgs& args, int64_t k, int64_t ph, A* scratch) {
    const SampledRoi<A> roi = read_sampled_roi<A>(args, k);
    const RoiLevel& map = args.levels[roi.level];
    const T* images = static_cast<const T*>(map.features);
    const int64_t image_size = map.H * map.W * args.C;
    int64_t place = (k * args.PH + ph) * args.PW * args.C;
    const auto consume = [&](const SampleBlock<A>& block) {
      FASTVISION_CALL(
          roi_samples_forward,
          Kernel<T>{},
          block,
          images + roi.image * image_size,
          images + args.N * image_size,
          args.C,
          static_cast<T*>(args.pooled) + place,
          args.argmax == nullptr ? nullptr : args.argmax + place,
          scratch
      );
    };
    SampleBlocks<A, decltype(consume)> blocks(consume);
    const PixelBox whole{0, roi.y.extent, 0, roi.x.extent};
    for (int pw = 0; pw < args.PW; ++pw, place += args.C) {
      blocks.feed(roi, static_cast<int>(ph), pw, whole, map.W);
    }
  }

  template <typename T>
  static void run_backward(const RoiArgs& args) {
    using A = accumulate_t<T>;
    const std::vector<RoiFootprint> places = footprints<A>(args);
    RoiArgs tiles = args;
    tiles.argmax = nullptr;  // they are cut as those of a sum
    const RoiBackwardSchedule schedule(tiles, /*shared=*/true, places.data(), sizeof(A));
    const int64_t count = static_cast<int64_t>(schedule.tasks.size());
    parallel_chunks(count, schedule.chunk, [&] {
      return
          [&,
           tile = std::unique_ptr<A[]>(new A[schedule.scratch]),
           scratch =
               std::unique_ptr<A[]>(new A[2 * sample_padded(args.C)])](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              fill_tile<T>(args, places.data(), schedule.tasks[i], tile.get(), scratch.get());
            }
          };
    });
  }

  template <typename T, typename A>
  static void fill_tile(
      const RoiArgs& args,
      const RoiFootprint* places,
      const RoiBackwardTask& task,
      A* tile,
      A* scratch
  ) {
    const RoiLevel& map = args.levels[task.level];
    const int64_t height = task.y_end - task.y_begin;
    const int64_t width = task.x_end - task.x_begin;
    const int64_t channels = task.c_end - task.c_begin;
    const int64_t padded = sample_padded(channels);
    const PixelBox box{
        static_cast<int>(task.y_begin),
        static_cast<int>(task.y_end),
        static_cast<int>(task.x_begin),
        static_cast<int>(task.x_end)
    };
    std::memset(tile, 0, height * width * padded * sizeof(A));
    int64_t place = 0;
    const auto consume = [&](const SampleBlock<A>& block) {
      FASTVISION_CALL(
          roi_samples_backward,
          Kernel<T>{},
          block,
          static_cast<const T*>(args.pooled) + place,
          args.argmax == nullptr ? nullptr : args.argmax + place,
          channels,
          tile,
          scratch
      );
    };
    SampleBlocks<A, decltype(consume)> blocks(consume);
    const auto reaches = [&](const PixelBox& pixels) {
      return pixels.meets(task.y_begin, height, task.x_begin, width);
    };
    for (int64_t i = 0; i < task.count; ++i) {
      const int64_t k = task.rois[i];
      const RoiFootprint& roi_place = places[k];
      if (!reaches({roi_place.y_begin, roi_place.y_end, roi_place.x_begin, roi_place.x_end})) {
        continue;
      }
      const SampledRoi<A> roi = read_sampled_roi<A>(args, k);
      for (int ph = 0; ph < args.PH; ++ph) {
        if (!reaches(roi.pixels_of(ph, ph + 1, 0, static_cast<int>(args.PW)))) {
          continue;
        }
        for (int pw = 0; pw < args.PW; ++pw) {
          if (reaches(roi.pixels_of(ph, ph + 1, pw, pw + 1))) {
            place = ((k * args.PH + ph) * args.PW + pw) * args.C + task.c_begin;
            blocks.feed(roi, ph, pw, box, width);
          }
        }
      }
    }
    T* grad = static_cast<T*>(map.features) + task.image * map.H * map.W * args.C + task.c_begin;
    for (int64_t y = 0; y < height; ++y) {
      T* row = grad + ((task.y_begin + y) * map.W + task.x_begin) * args.C;
      FASTVISION_CALL(roi_samples_write, tile + y * width * padded, row, width, channels, args.C);
    }
  }
};

}  // namespace fastvision
