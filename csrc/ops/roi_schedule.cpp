#include "ops/roi_schedule.h"

#include <algorithm>
#include <numeric>

#include "common/isa.h"

namespace fastvision {
namespace {

constexpr int64_t kChannelsLast = 64;  // channels of a task: four cache lines of floats per pixel
constexpr int64_t kRoisPerTask = 16;
constexpr int64_t kSerialWork = 1 << 18;  // multiply-adds below which waking threads does not pay

// How gradient maps are cut into tiles, which stay in the second-level cache.
struct Tiling {
  int64_t channels;
  int64_t width;
  int64_t bytes;
};

// channels of a task; in NCHW one vector
int64_t channel_step_of(const RoiArgs& args) {
  if (args.channels_last) {
    return kChannelsLast;
  }
  return cpu_level() == 2 ? kChannelsPlanar : kChannelsPlanar / 2;
}

Tiling tiling_of(const RoiArgs& args, int64_t W) {
  if (args.argmax != nullptr) {
    // of whole rows: the place of a position y * W + x in the tile is then a difference. A cache
    // line of channels, or a few planes, leave bytes for many rows
    return {args.channels_last ? 16 : 4, W, 256 << 10};
  }
  // channels_last: squarish tiles; NCHW: whole rows, whose lines are contiguous
  return {channel_step_of(args), args.channels_last ? std::min<int64_t>(W, 32) : W, 128 << 10};
}

int64_t work_of(const RoiArgs& args) {
  const int64_t taps = args.sampling_ratio > 0 ? std::min<int64_t>(args.sampling_ratio, 8) + 1 : 3;
  return args.K * args.C * args.PH * args.PW * taps * taps;
}

// One chunk for all items where the work is small, else one each.
int64_t chunk_of(int64_t work, int64_t items) { return work < kSerialWork ? items : 1; }

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

}  // namespace

RoiForwardSchedule::RoiForwardSchedule(
    const RoiArgs& args, int64_t channels, const RoiFootprint* footprints
)
    : order(order_of_work(footprints, args.K)),
      rois(args.K),
      channels(channels),
      channel_step(channel_step_of(args)),
      roi_groups((args.K + kRoisPerTask - 1) / kRoisPerTask),
      tasks((channels + channel_step - 1) / channel_step * roi_groups),
      chunk(chunk_of(work_of(args), tasks)),
      scratch(0) {
  if (!args.channels_last) {
    int64_t width = 0;
    for (int64_t k = 0; k < args.K; ++k) {
      width = std::max<int64_t>(width, footprints[k].x_end - footprints[k].x_begin);
    }
    scratch = roi_scratch(args, width);
  }
}

RoiForwardTask RoiForwardSchedule::operator[](int64_t task) const {
  // channel block outermost: one block of the whole map is more likely to stay in cache
  const int64_t c = task / roi_groups * channel_step;
  const int64_t roi = task % roi_groups * kRoisPerTask;
  return {
      order.data(),
      roi,
      std::min(rois, roi + kRoisPerTask),
      c,
      std::min(channels, c + channel_step),
  };
}

RoiBackwardSchedule::RoiBackwardSchedule(
    const RoiArgs& args, const RoiFootprint* footprints, int64_t element
) {
  group_rois(args, footprints);
  int64_t work = work_of(args);
  for (int level = 0; level < args.num_levels; ++level) {
    cut_into_tiles(args, level, element);
    work += args.N * args.C * args.levels[level].H * args.levels[level].W / 8;
  }
  chunk = chunk_of(work, static_cast<int64_t>(tasks.size()));
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

void RoiBackwardSchedule::cut_into_tiles(const RoiArgs& args, int level, int64_t element) {
  const int64_t H = args.levels[level].H;
  const int64_t W = args.levels[level].W;
  if (H == 0 || W == 0) {
    return;
  }
  const Tiling tiling = tiling_of(args, W);
  const int64_t c_step = tiling.channels;
  const int64_t x_step = tiling.width;
  const int64_t row_bytes = roi_padded(x_step) * std::min(c_step, roi_padded(args.C)) * element;
  const int64_t y_step = std::clamp<int64_t>(tiling.bytes / row_bytes, 1, H);
  scratch =
      std::max(scratch, y_step * roi_padded(x_step) * roi_padded(c_step) + roi_scratch(args, W));
  for (int64_t image = 0; image < args.N; ++image) {
    const int64_t map = level * args.N + image;
    const int32_t* rois = rois_.data() + offsets_[map];
    const int64_t count = offsets_[map + 1] - offsets_[map];
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

}  // namespace fastvision
