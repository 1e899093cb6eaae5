#include "ops/conv_format.h"

#include <algorithm>

#include "common/divide.h"
#include "common/memory_format.h"
#include "common/parallel.h"
#include "ops/conv.h"

namespace fastvision {
namespace {

constexpr int64_t kPixels = 256;            // of a task
constexpr int64_t kSerialValues = 1 << 15;  // below which waking threads does not pay

// Calls copy(position of pixel 0 among all pixels, offset of its value in NCHW, pixels).
template <typename Copy>
void for_pixels(const Tensor& x, const Copy& copy) {
  const int64_t C = x.size(1), HW = x.size(2) * x.size(3);
  const int64_t parts = ceil_div(HW, kPixels), tasks = x.size(0) * parts;
  parallel_chunks(tasks, x.numel() < kSerialValues ? tasks : 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / parts, first = task % parts * kPixels;
        copy(n * HW + first, n * C * HW + first, std::min(kPixels, HW - first));
      }
    };
  });
}

template <typename T>
Tensor transposed(const Tensor& x) {
  const Tensor from = torch::stable::contiguous(x);
  const int64_t C = x.size(1), HW = x.size(2) * x.size(3);
  Tensor to = empty_in_format(x, x.size(0), C, x.size(2), x.size(3), true);
  const T* source = static_cast<const T*>(from.const_data_ptr());
  T* target = static_cast<T*>(to.mutable_data_ptr());
  for_pixels(x, [&](int64_t pixel, int64_t offset, int64_t count) {
    const ConvMaps<const T> maps{source + offset, C, count, HW, 1};
    FASTVISION_CALL(conv_gather, maps, target + pixel * C, C);
  });
  return to;
}

}  // namespace

Tensor in_channels_last(const Tensor& x) {
  if (has_channels_last_strides(x)) {
    return x;
  }
  if (!x.is_contiguous() && x.stride(1) == 1) {  // torch reads its channels side by side
    return torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  }
  return x.scalar_type() == ScalarType::Double ? transposed<double>(x) : transposed<float>(x);
}

void copy_to_contiguous(const Tensor& from, Tensor& to) {
  const int64_t C = to.size(1), HW = to.size(2) * to.size(3);
  const float* source = static_cast<const float*>(from.const_data_ptr());
  float* target = static_cast<float*>(to.mutable_data_ptr());
  for_pixels(to, [&](int64_t pixel, int64_t offset, int64_t count) {
    const ConvMaps<float> maps{target + offset, C, count, HW, 1};
    FASTVISION_CALL(conv_scatter, source + pixel * C, C, maps);
  });
}

}  // namespace fastvision
