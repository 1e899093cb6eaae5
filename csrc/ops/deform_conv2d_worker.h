// What the forward and the backward pass of deformable convolution share: checked sizes, maps in
// the kernels' type and format, and a worker that locates the samples of a tile.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/torch.h"
#include "ops/conv_engine.h"
#include "ops/deform_conv2d.h"

namespace fastvision {

constexpr int64_t kSerialDeformWork = 1 << 18;     // multiply-adds below which threads do not pay
constexpr int64_t kDeformColumnBytes = 160 << 10;  // of a tile, stay in the L2 cache
constexpr int64_t kMostDeformPixels = 96;

struct DeformProblem {
  int64_t N, C, H, W, K, OH, OW, groups, offset_groups;
  ConvWindow window;

  int64_t taps() const { return window.R * window.S; }
  int64_t area() const { return OH * OW; }
  int64_t work() const { return N * area() * K * (C / groups) * taps(); }

  // Pixels of the tiles that an image, or a part of it, is cut into.
  int64_t tile_pixels(int64_t pixels, int64_t item_size, int64_t least) const {
    const int64_t bytes = std::max<int64_t>(taps() * C * item_size, 1);
    const int64_t most = std::clamp(kDeformColumnBytes / bytes, least, kMostDeformPixels);
    return ceil_div(pixels, ceil_div(pixels, most));
  }

  // window: stride, padding and dilation, each vertical and horizontal
  static DeformProblem check(
      const Tensor& input,
      const Tensor& offset,
      const std::optional<Tensor>& mask,
      const Tensor& weight,
      const std::vector<int64_t>& window,
      int64_t groups,
      int64_t offset_groups
  );
};

// A tensor [N, C, H, W] in one of the two memory formats.
template <typename S>
struct DeformMaps {
  S* data;
  int64_t channels, area;
  bool channels_last;

  int64_t channel_stride() const { return channels_last ? 1 : area; }
  int64_t pixel_stride() const { return channels_last ? channels : 1; }
  S* at(int64_t n, int64_t pixel) const {
    return data + n * channels * area + pixel * pixel_stride();
  }
  // for copies to and from [pixels][channels]
  ConvMaps<S> by_pixel(int64_t n, int64_t pixel, int64_t pixels) const {
    return {at(n, pixel), channels, pixels, channel_stride(), pixel_stride()};
  }
  // for copies to and from [channels][pixels]
  ConvMaps<S> by_channel(int64_t n, int64_t pixel, int64_t pixels) const {
    return {at(n, pixel), pixels, channels, pixel_stride(), channel_stride()};
  }
};

template <typename S>
DeformMaps<const S> deform_maps(const Tensor& x) {
  return {
      static_cast<const S*>(x.const_data_ptr()),
      x.size(1),
      x.size(2) * x.size(3),
      is_channels_last(x)
  };
}

template <typename S>
DeformMaps<S> deform_result(Tensor& x) {
  return {
      static_cast<S*>(x.mutable_data_ptr()), x.size(1), x.size(2) * x.size(3), is_channels_last(x)
  };
}

// The input as [N, H, W, C] of the kernels' type, in place or as a copy.
template <typename S, typename T>
class DeformImage {
 public:
  explicit DeformImage(const Tensor& input) {
    const int64_t N = input.size(0), C = input.size(1), area = input.size(2) * input.size(3);
    size_ = N * area * C;
    if (std::is_same_v<S, T> && has_channels_last_strides(input)) {
      data_ = static_cast<const T*>(input.const_data_ptr());
      return;
    }
    const T* type = nullptr;
    const int64_t lanes = FASTVISION_CALL(deform_lanes, type);
    size_ += lanes;
    copy_.reset(new T[size_]);
    std::fill(copy_.get() + size_ - lanes, copy_.get() + size_, T(0));
    data_ = copy_.get();
    const DeformMaps<const S> maps = deform_maps<S>(input);
    const int64_t piece = std::max<int64_t>((16 << 10) / C, 64);
    const int64_t pieces = ceil_div(area, piece);
    parallel_chunks(N * pieces, 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / pieces, p = i % pieces * piece;
          const ConvMaps<const S> from = maps.by_pixel(n, p, std::min(piece, area - p));
          FASTVISION_CALL(conv_gather, from, copy_.get() + (n * area + p) * C, C);
        }
      };
    });
  }

  const T* data() const { return data_; }
  int64_t size() const { return size_; }  // values that can be read

 private:
  std::unique_ptr<T[]> copy_;
  const T* data_;
  int64_t size_;
};

template <typename S, typename T>
class DeformWorker {
 public:
  // tiles have at most `most` pixels
  DeformWorker(
      const DeformProblem& problem,
      const DeformImage<S, T>& images,
      const DeformMaps<const S>& offsets,
      const DeformMaps<const S>* mask,
      int64_t most
  )
      : problem_(problem), images_(images), offsets_(offsets), mask_(mask) {
    const T* type = nullptr;
    lanes_ = FASTVISION_CALL(deform_lanes, type);
    most_ = ceil_div(most, lanes_) * lanes_;
    const int64_t taps = problem.taps(), samples = problem.offset_groups * taps;
    integers_.reset(new Index[2 * samples * most_ + 2 * most_ + 2 * taps]);
    values_.reset(new T[5 * samples * most_ + problem.C + lanes_]);
    tile.H = problem.H;
    tile.W = problem.W;
    tile.C = problem.C;
    tile.taps = taps;
    tile.groups = problem.offset_groups;
    tile.row_stride = problem.C + lanes_;
    tile.points.stride = most_;
    Index* integer = integers_.get();
    tile.points.index = integer;
    tile.points.flags = integer += samples * most_;
    tile.base_y = base_y_ = integer += samples * most_;
    tile.base_x = base_x_ = integer += most_;
    tile.tap_y = integer += most_;
    tile.tap_x = integer + taps;
    const ConvWindow& w = problem.window;
    for (int64_t tap = 0; tap < taps; ++tap) {
      integer[tap] = static_cast<Index>(tap / w.S * w.dilation_y);
      integer[taps + tap] = static_cast<Index>(tap % w.S * w.dilation_x);
    }
    T* value = values_.get();
    tile.points.y = value;
    tile.points.x = value += samples * most_;
    tile.offsets = offset_scratch_ = value += samples * most_;
    tile.mask = mask_scratch_ = value += 2 * samples * most_;
    tile.zeros = value += samples * most_;
    std::fill(value, value + problem.C + lanes_, T(0));
  }

  // Locates the samples of an image's pixels; returns the rows that they read.
  std::pair<int64_t, int64_t> locate(int64_t n, int64_t begin, int64_t count, bool edges) {
    const ConvWindow& w = problem_.window;
    for (int64_t i = 0; i < most_; ++i) {
      const int64_t p = std::min(begin + i, begin + count - 1);
      base_y_[i] = static_cast<Index>(p / problem_.OW * w.step_y + w.first_y);
      base_x_[i] = static_cast<Index>(p % problem_.OW * w.step_x + w.first_x);
    }
    tile.pixels = count;
    const int64_t first = n * problem_.H * problem_.W * problem_.C;
    tile.image = images_.data() + first;
    tile.readable = images_.size() - first;
    read(offsets_, n, begin, count, offset_scratch_, tile.offsets, tile.offset_stride);
    if (mask_ == nullptr) {
      tile.mask = nullptr;
    } else {
      read(*mask_, n, begin, count, mask_scratch_, tile.mask, tile.mask_stride);
    }
    int64_t rows[2];
    const DeformTile<T>& located = tile;
    FASTVISION_CALL(deform_locate, located, edges, rows);
    return {rows[0], rows[1]};
  }

  int64_t lanes() const { return lanes_; }

  DeformGradientTile<T> tile{};

 private:
  using Index = deform_index_t<T>;

  // [channels][pixels], in place if they are so already
  void read(
      const DeformMaps<const S>& maps,
      int64_t n,
      int64_t begin,
      int64_t count,
      T* scratch,
      const T*& data,
      int64_t& stride
  ) {
    if constexpr (std::is_same_v<S, T>) {
      if (!maps.channels_last) {
        data = maps.at(n, begin);
        stride = maps.area;
        return;
      }
    }
    const ConvMaps<const S> from = maps.by_channel(n, begin, count);
    FASTVISION_CALL(conv_gather, from, scratch, most_);
    data = scratch;
    stride = most_;
  }

  const DeformProblem& problem_;
  const DeformImage<S, T>& images_;
  const DeformMaps<const S>& offsets_;
  const DeformMaps<const S>* mask_;
  int64_t lanes_, most_;
  std::unique_ptr<Index[]> integers_;
  std::unique_ptr<T[]> values_;
  Index *base_y_, *base_x_;
  T *offset_scratch_, *mask_scratch_;
};

// All values of a tensor in the kernels' type, contiguous.
template <typename S, typename T>
std::unique_ptr<T[]> deform_values(const Tensor& x) {
  const Tensor from = torch::stable::contiguous(x);
  const int64_t count = from.numel();
  std::unique_ptr<T[]> values(new T[count]);
  const ConvMaps<const S> maps{static_cast<const S*>(from.const_data_ptr()), count, 1, 1, count};
  FASTVISION_CALL(conv_gather, maps, values.get(), count);
  return values;
}

// As pack_conv, from any type.
template <typename S, typename T>
void pack_filters(
    const ConvPacking& packing,
    const Tensor& weight,  // [groups * K, C, R, S]
    const std::optional<Tensor>& bias,
    T* packed
) {
  const auto shifts = bias ? deform_values<S, T>(*bias) : nullptr;
  if (packing.width() > 0) {
    const auto values = deform_values<S, T>(weight);
    const auto filters = ConvFilters<T>::contiguous(packing, values.get(), shifts.get());
    return pack_conv(packing, filters, packed);
  }
  const Tensor filters = torch::stable::contiguous(weight);
  const S* data = static_cast<const S*>(filters.const_data_ptr());
  const int64_t blocks = packing.blocks(), C = packing.C, taps = packing.taps;
  const int64_t padded = packing.padded_K(), piece = std::max<int64_t>(128 / taps, 1);
  parallel_chunks(packing.groups * blocks, packing.size() < (16 << 10) ? 1 << 30 : 1, [&] {
    return [&, rows = std::unique_ptr<T[]>(new T[piece * taps * packing.block])](
               int64_t begin, int64_t end
           ) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / blocks, first = task % blocks * packing.block;
        const int64_t lanes = std::min(packing.block, padded - first);
        const int64_t count = std::min(lanes, packing.K - first),
                      filter = group * packing.K + first;
        T* shift = packed + group * padded + first;
        std::fill(shift, shift + lanes, T(0));
        if (shifts) {
          std::copy(shifts.get() + filter, shifts.get() + filter + count, shift);
        }
        T* to = packed + packing.bias_size() + (group * padded + first) * taps * C;
        std::fill(rows.get(), rows.get() + piece * taps * packing.block, T(0));
        for (int64_t c = 0; c < C; c += piece) {
          const int64_t channels = std::min(piece, C - c);
          const ConvMaps<const S> from{
              data + (filter * C + c) * taps, count, channels * taps, C * taps, 1
          };
          FASTVISION_CALL(conv_gather, from, rows.get(), lanes);
          for (int64_t i = 0; i < channels * taps; ++i) {
            const T* row = rows.get() + i * lanes;
            std::copy(row, row + lanes, to + (i % taps * C + c + i / taps) * lanes);
          }
        }
      }
    };
  });
}

// pointers to [taps][pixels] rows
template <typename P>
void fill_rows(std::vector<P*>& pointers, P* first, int64_t rows, int64_t stride) {
  pointers.resize(rows);
  fill_pointers(pointers.data(), rows, first, stride);
}

// Multiplies rows of one tap each by packed weights.
template <typename T>
void multiply_rows(
    const ConvPacking& packing,
    const T* packed,
    const T* const* inputs,  // [taps][pixels]
    T* const* outputs,       // [pixels]
    T* sums,                 // [pixels][block]
    int64_t pixels
) {
  const bool far = packing.size() * static_cast<int64_t>(sizeof(T)) > (192 << 10);
  const ConvTile<T> tile{
      inputs,
      outputs,
      nullptr,
      sums,
      pixels,
      packed,
      &packing,
      0,
      packing.blocks() * packing.outer_groups(),
      false,
      false,
      far,
      Activation::none,
      0
  };
  FASTVISION_CALL(conv_tile, tile);
}

}  // namespace fastvision
