// Softmax focal loss: a warp per row reads the logits for the loss, and again for the gradient.
#include <cmath>
#include "common/cuda.cuh"
#include "cuda/focal_loss_math.cuh"
#include "cuda/focal_loss_sum.cuh"
#include "ops/focal_loss.h"

namespace fastvision {
namespace {

template <typename A>
__device__ A warp_max(A x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const A other = __shfl_xor_sync(kWarpMask, x, bits);
    x = other > x ? other : x;
  }
  return x;
}

__device__ float log_of(float x) { return logf(x); }
__device__ double log_of(double x) { return log(x); }
__device__ float log1p_of(float x) { return log1pf(x); }
__device__ double log1p_of(double x) { return log1p(x); }

template <typename T>
__global__ __launch_bounds__(kThreads) void softmax_focal_loss_kernel(
    const __grid_constant__ FocalArgs args,
    FocalParams<accumulate_t<T>> params,
    Partials partials,
    accumulate_t<T>* total  // null to write losses
) {
  using A = accumulate_t<T>;
  const FocalLevel& level = args.levels[0];
  const int K = static_cast<int>(args.K);
  const int lane = threadIdx.x % 32;
  double sum = 0;  // of lane 0
  for (int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; r < level.rows;
       r += int64_t{gridDim.x} * kWarps) {
    const int64_t label = static_cast<const int64_t*>(level.targets)[r];
    const T* row = static_cast<const T*>(level.inputs) + r * K;
    T* grad = level.grads == nullptr ? nullptr : static_cast<T*>(level.grads) + r * K;
    A loss = 0;
    if (label == args.ignore_index || label < 0 || label >= K) {
      loss = label == args.ignore_index ? A(0) : static_cast<A>(NAN);
      for (int k = lane; grad != nullptr && k < K; k += 32) {
        grad[k] = narrow<T>(loss);
      }
    } else {
      A most = static_cast<A>(-INFINITY);
      for (int k = lane; k < K; k += 32) {
        const A x = widen(row[k]);
        most = x > most ? x : most;
      }
      most = warp_max(most);
      // 1 - p as a sum over the other classes, to avoid cancellation
      A others = 0;
      for (int k = lane; k < K; k += 32) {
        const A e = Math<A>::exp(widen(row[k]) - most);
        others += k == label ? A(0) : e;
      }
      others = warp_sum(others);
      const A x = widen(row[label]) - most;
      const A own = Math<A>::exp(x);
      const A scale = A(1) / (own + others);
      const A log_p = x == A(0) ? -log1p_of(others) : x - log_of(own + others);
      const A rest = others * scale;
      const FocalTerm<A> term = focal_softmax<Math<A>>(own * scale, rest, log_p, params);
      const A weight =
          args.class_weights == nullptr ? A(1) : static_cast<const A*>(args.class_weights)[label];
      loss = term.loss * weight;
      const A factor = term.grad * weight * params.grad_scale;
      for (int k = lane; grad != nullptr && k < K; k += 32) {
        const A e = Math<A>::exp(widen(row[k]) - most);
        grad[k] = narrow<T>(factor * (k == label ? -rest : e * scale));
      }
    }
    if (lane == 0) {
      if (total != nullptr) {
        sum += loss;
      } else {
        static_cast<T*>(level.losses)[r] = narrow<T>(loss);
      }
    }
  }
  if (total != nullptr) {
    finish_sum(sum, partials, total);
  }
}

}  // namespace

template <typename T>
void launch_softmax_focal_loss(
    const FocalArgs& args, void* total, void* workspace, CUstream_st* stream
) {
  using A = accumulate_t<T>;
  const Partials partials = begin_sum(workspace, total != nullptr, stream);
  const auto params = focal_params<A>(-1, args.gamma, args.grad_scale);
  const dim3 grid(blocks_for(ceil_div(args.levels[0].rows, kWarps)));
  launch(
      softmax_focal_loss_kernel<T>,
      grid,
      kThreads,
      0,
      stream,
      args,
      params,
      partials,
      static_cast<A*>(total)
  );
}

template void launch_softmax_focal_loss<float>(const FocalArgs&, void*, void*, CUstream_st*);
template void launch_softmax_focal_loss<double>(const FocalArgs&, void*, void*, CUstream_st*);
template void launch_softmax_focal_loss<half_t>(const FocalArgs&, void*, void*, CUstream_st*);
template void launch_softmax_focal_loss<bfloat16_t>(const FocalArgs&, void*, void*, CUstream_st*);

}  // namespace fastvision
