// Shared by both focal losses: the workspace of a sum, and the scaling of gradients in backward.
#include "common/cuda.cuh"
#include "cuda/focal_loss_pack.cuh"
#include "cuda/focal_loss_sum.cuh"
#include "ops/focal_loss.h"

namespace fastvision {
namespace {

template <typename T>
__global__ __launch_bounds__(kThreads) void focal_loss_scale_kernel(
    T* grads, int64_t count, const accumulate_t<T>* factor, double scale, bool aligned
) {
  using A = accumulate_t<T>;
  const A product = static_cast<A>(*factor * scale);
  if (product == A(1)) {
    return;
  }
  constexpr int kSize = Pack<T>::size;
  const int64_t step = int64_t{gridDim.x} * kThreads * kSize;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kSize; i < count; i += step) {
    const int n = count - i < kSize ? static_cast<int>(count - i) : kSize;
    Pack<T> pack = load_pack(grads + i, n, aligned, narrow<T>(A(0)));
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      pack.values[j] = narrow<T>(widen(pack.values[j]) * product);
    }
    store_pack(grads + i, pack, n, aligned);
  }
}

}  // namespace

size_t focal_loss_workspace_bytes() {
  Workspace workspace(nullptr);
  carve(workspace);
  return workspace.used();
}

template <typename T>
void launch_focal_loss_scale(
    void* grads, int64_t count, const void* factor, double scale, CUstream_st* stream
) {
  using A = accumulate_t<T>;
  if (count == 0) {
    return;
  }
  launch(
      focal_loss_scale_kernel<T>,
      dim3(blocks_for(ceil_div(count, kThreads * Pack<T>::size))),
      kThreads,
      0,
      stream,
      static_cast<T*>(grads),
      count,
      static_cast<const A*>(factor),
      scale,
      is_aligned(grads)
  );
}

template void launch_focal_loss_scale<float>(void*, int64_t, const void*, double, CUstream_st*);
template void launch_focal_loss_scale<double>(void*, int64_t, const void*, double, CUstream_st*);
template void launch_focal_loss_scale<half_t>(void*, int64_t, const void*, double, CUstream_st*);
template void launch_focal_loss_scale<bfloat16_t>(
    void*, int64_t, const void*, double, CUstream_st*
);

}  // namespace fastvision
