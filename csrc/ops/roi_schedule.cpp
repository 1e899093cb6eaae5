#include "ops/roi_schedule.h"

#include <algorithm>
#include <numeric>

#include "common/divide.h"
#include "common/isa.h"

namespace fastvision {
namespace {

constexpr int64_t kChannelsLast = 64;  // channels of a task: four cache lines of floats per pixel
constexpr int64_t kRoisPerTask = 16;
constexpr int64_t kBinsPerTask = 16;  // where they differ in channels: a cache line of floats
constexpr int64_t kSensitiveTile = 256 << 10;  // bytes of a tile where bins differ in channels
constexpr int64_t kSerialWork = 1 << 18;  // multiply-adds below which waking threads does not pay

// How gradient maps are cut into tiles, which stay in the second-level cache.
struct Tiling {
  int64_t channels;
  int64_t width;
  int64_t bytes;
  int64_t bins;          // of a task
  int64_t bins_at_once;  // of each pixel, where bins differ in channels
};

int64_t pooled_channels(const RoiArgs& args, bool shared) {
  return shared ? args.C : args.C / (args.PH * args.PW);
}

// bins of a task, of those that differ in channels: about kBinsPerTask, and in all tasks alike
int64_t bin_step_of(const RoiArgs& args) {
  const int64_t bins = args.PH * args.PW;
  return ceil_div(bins, ceil_div(bins, kBinsPerTask));
}

// channels of a task; in NCHW, or where they are not side by side, one vector
int64_t channel_step_of(const RoiArgs& args, bool shared) {
  if (args.channels_last && shared) {
    return kChannelsLast;
  }
  return cpu_level() == 2 ? kChannelsPlanar : kChannelsPlanar / 2;
}

Tiling tiling_of(const RoiArgs& args, bool shared, int64_t W) {
  const int64_t bins = args.PH * args.PW;
  if (!shared) {
    const int64_t channels = channel_step_of(args, shared);
    if (args.channels_last) {
      // all bins of a pixel, whose channels are side by side in the map. Of rows as long as fit, as
      // the rois of a tile are looked for in each
      const int64_t pixel = bins * channels * static_cast<int64_t>(sizeof(float));
      const int64_t width = std::clamp<int64_t>(kSensitiveTile / pixel, 1, W);
      return {channels, width, kSensitiveTile, bins, bins};
    }
    return {channels, W, kSensitiveTile, bin_step_of(args), 1};
  }
  if (args.argmax != nullptr) {
    // of whole rows: the place of a position y * W + x in the tile is then a difference. A cache
    // line of channels, or a few planes, leave bytes for many rows
    return {args.channels_last ? kMaximumChannelsLast : 4, W, 640 << 10, bins, 1};
  }
  // channels_last: squarish tiles; NCHW: whole rows, whose lines are contiguous
  const int64_t width = args.channels_last ? std::min<int64_t>(W, 32) : W;
  return {channel_step_of(args, shared), width, 128 << 10, bins, 1};
}

int64_t work_of(const RoiArgs& args, bool shared) {
  const int64_t taps = args.sampling_ratio > 0 ? std::min<int64_t>(args.sampling_ratio, 8) + 1 : 3;
  return args.K * pooled_channels(args, shared) * args.PH * args.PW * taps * taps;
}

bool is_small(int64_t work) { return work < kSerialWork; }

// Neighbours in the order of work find their pixels in cache.
std::vector<int32_t> order_of_work(const RoiFootprint* footprints, int64_t K) {
  std::vector<int32_t> order(K);
  std::iota(order.begin(), order.end(), 0);
  if (K < 4 * kRoisPerTask) {
    return order;
  }
  std::vector<uint64_t> key(K);
  for (int64_t k = 0; k < K; ++k) {
    const RoiFootprint& roi = footprints[k];
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

// The pixels of the largest plane that a kernel may copy.
int64_t most_copied(const RoiArgs& args) {
  int64_t most = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    const int64_t plane = args.levels[level].H * args.levels[level].W;
    most = plane <= kMaxCopiedPixels ? std::max(most, plane) : most;
  }
  return most;
}

}  // namespace

RoiForwardSchedule::RoiForwardSchedule(
    const RoiArgs& args, bool shared, int64_t copied_per_roi, const RoiFootprint* footprints
)
    : order(order_of_work(footprints, args.K)),
      rois(args.K),
      bins(args.PH * args.PW),
      channels(pooled_channels(args, shared)),
      roi_step(kRoisPerTask),
      bin_step(bins),
      channel_step(channel_step_of(args, shared)),
      scratch(0) {
  const int64_t copied = args.channels_last || copied_per_roi == 0 ? 0 : most_copied(args);
  if (!shared && args.channels_last) {
    channel_step = std::max<int64_t>(channels, 1);  // each pixel has channels of all bins
  } else if (!shared) {
    roi_step = std::max<int64_t>(rois, 1);  // few planes, which stay in cache
    bin_step = bin_step_of(args);
    scratch = roi_padded(copied) * kChannelsPlanar;
  } else if (!args.channels_last) {
    int64_t width = 0;
    for (int64_t k = 0; k < args.K; ++k) {
      width = std::max<int64_t>(width, footprints[k].x_end - footprints[k].x_begin);
    }
    scratch = roi_scratch(args, width);
    if (copied_per_roi > 0) {  // neighbours, as few as pay: they read few rows
      roi_step = std::max(roi_step, ceil_div(copied, copied_per_roi));
      channel_step *= kCopiedVectors;
      scratch = kCopiedVectors * (scratch + roi_padded(copied) * kChannelsPlanar);
    }
  }
  roi_groups = ceil_div(rois, roi_step);
  bin_groups = ceil_div(bins, bin_step);
  tasks = ceil_div(channels, channel_step) * bin_groups * roi_groups;
  small = is_small(work_of(args, shared));
  chunk = small ? tasks : 1;
}

RoiForwardTask RoiForwardSchedule::operator[](int64_t task) const {
  // channel block outermost: one block of the whole map is more likely to stay in cache
  const int64_t c = task / (roi_groups * bin_groups) * channel_step;
  const int64_t bin = task / roi_groups % bin_groups * bin_step;
  const int64_t roi = task % roi_groups * roi_step;
  return {
      order.data(),
      roi,
      std::min(rois, roi + roi_step),
      c,
      std::min(channels, c + channel_step),
      bin,
      std::min(bins, bin + bin_step),
  };
}

RoiBackwardSchedule::RoiBackwardSchedule(
    const RoiArgs& args, bool shared, const RoiFootprint* footprints, int64_t element
) {
  group_rois(args, footprints);
  int64_t work = work_of(args, shared);
  for (int level = 0; level < args.num_levels; ++level) {
    cut_into_tiles(args, shared, level, element);
    work += args.N * args.C * args.levels[level].H * args.levels[level].W / 8;
  }
  chunk = is_small(work) ? static_cast<int64_t>(tasks.size()) : 1;
}

void RoiBackwardSchedule::group_rois(const RoiArgs& args, const RoiFootprint* footprints) {
  rois_.resize(args.K);
  offsets_.resize(args.num_levels * args.N + 1);
  const auto map_of = [&](int64_t k) { return footprints[k].level * args.N + footprints[k].image; };
  for (int64_t k = 0; k < args.K; ++k) {
    ++offsets_[map_of(k) + 1];
  }
  std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
  std::vector<int64_t> next(offsets_.begin(), offsets_.end() - 1);
  for (int64_t k = 0; k < args.K; ++k) {
    rois_[next[map_of(k)]++] = static_cast<int32_t>(k);
  }
}

void RoiBackwardSchedule::cut_into_tiles(
    const RoiArgs& args, bool shared, int level, int64_t element
) {
  const int64_t H = args.levels[level].H;
  const int64_t W = args.levels[level].W;
  if (H == 0 || W == 0) {
    return;
  }
  const Tiling tiling = tiling_of(args, shared, W);
  const int64_t channels = pooled_channels(args, shared);
  const int64_t c_step = tiling.channels;
  const int64_t x_step = tiling.width;
  const int64_t row = roi_padded(x_step) * std::min(c_step, roi_padded(channels));
  const int64_t row_bytes = row * tiling.bins_at_once * element;
  const int64_t y_step = std::clamp<int64_t>(tiling.bytes / row_bytes, 1, H);
  const int64_t tile = y_step * roi_padded(x_step) * roi_padded(c_step) * tiling.bins_at_once;
  scratch = std::max(scratch, tile + roi_scratch(args, W));
  const int64_t bins = args.PH * args.PW;
  for (int64_t image = 0; image < args.N; ++image) {
    const int64_t map = level * args.N + image;
    const int32_t* rois = rois_.data() + offsets_[map];
    const int64_t count = offsets_[map + 1] - offsets_[map];
    for (int64_t c = 0; c < channels; c += c_step) {
      for (int64_t bin = 0; bin < bins; bin += tiling.bins) {
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
                 std::min(channels, c + c_step),
                 bin,
                 std::min(bins, bin + tiling.bins)}
            );
          }
        }
      }
    }
  }
}

}  // namespace fastvision
