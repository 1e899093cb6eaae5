// Sigmoid focal loss: one pass over the logits computes the sum and the gradient. A thread takes 16
// bytes of consecutive logits at a time. With labels, nearly all of them are negatives, and the row
// takes one division per thread, not per logit.
#include <cmath>
#include "common/cuda.cuh"
#include "cuda/focal_loss_math.cuh"
#include "cuda/focal_loss_pack.cuh"
#include "cuda/focal_loss_sum.cuh"
#include "ops/focal_loss.h"

namespace fastvision {
namespace {

constexpr int kPacksPerThread = 4;  // per tile, which is summed in the compute type

struct Tiles {
  int64_t begin[kMaxFocalLevels + 1];  // first tile of each level
  bool aligned[kMaxFocalLevels];       // whole packs may be loaded and stored
};

template <typename T>
constexpr int64_t kTile = int64_t{kThreads} * kPacksPerThread * Pack<T>::size;

__device__ int64_t divide(int64_t x, int64_t by) {
  // 32-bit division takes a third of the instructions
  if (x <= 0xffffffffll && by <= 0xffffffffll) {
    return static_cast<uint32_t>(x) / static_cast<uint32_t>(by);
  }
  return x / by;
}

// Walks over consecutive logits and the label of each one's row.
struct Cursor {
  const int64_t* labels;
  int64_t rows;
  int64_t K;
  int64_t row;
  int64_t column;
  int64_t label;

  __device__ Cursor(const FocalLevel& level, int64_t K, int64_t at)
      : labels(static_cast<const int64_t*>(level.targets)), rows(level.rows), K(K) {
    row = divide(at, K);
    column = at - row * K;
    label = labels[row];
  }
  __device__ void next() {
    if (++column == K) {
      column = 0;
      label = ++row < rows ? labels[row] : -1;
    }
  }
  // The next `count` logits are negatives.
  __device__ bool plain(int64_t count) const {
    const int64_t left = K - column;
    const bool here =
        label == -1 || (label >= 0 && label < K && (label < column || label >= column + count));
    if (left >= count || !here) {
      return here;
    }
    const int64_t following = row + 1 < rows ? labels[row + 1] : -1;
    const int64_t rest = count - left;
    return rest <= K && (following == -1 || (following >= rest && following < K));
  }
};

template <typename T, bool kGrad, typename A>
__device__ FocalTerm<A> labelled(A x, const Cursor& cursor, const FocalParams<A>& params) {
  const bool positive = cursor.label == cursor.column;
  FocalTerm<A> term = focal_negative<Math<A>, kGrad>(positive ? -x : x, params);
  const A weight = positive ? params.positive : params.negative;
  term.loss *= weight;
  term.grad *= positive ? -weight : weight;
  if (cursor.label < -1) {
    return {0, 0};
  }
  if (cursor.label >= cursor.K) {
    return {static_cast<A>(NAN), static_cast<A>(NAN)};
  }
  return term;
}

template <typename T, bool kGrad, bool kLabels>
__global__ __launch_bounds__(kThreads) void sigmoid_focal_loss_kernel(
    const __grid_constant__ FocalArgs args,
    const __grid_constant__ Tiles tiles,
    FocalParams<accumulate_t<T>> params,
    Partials partials,
    accumulate_t<T>* total  // null to write losses
) {
  using A = accumulate_t<T>;
  constexpr int kSize = Pack<T>::size;
  double sum = 0;
  int index = 0;
  for (int64_t tile = blockIdx.x; tile < tiles.begin[args.num_levels]; tile += gridDim.x) {
    while (tile >= tiles.begin[index + 1]) {
      ++index;
    }
    const FocalLevel& level = args.levels[index];
    const int64_t elements = level.rows * args.K;
    const bool aligned = tiles.aligned[index];
    A tile_sum = 0;
#pragma unroll 1
    for (int k = 0; k < kPacksPerThread; ++k) {
      const int64_t at =
          (tile - tiles.begin[index]) * kTile<T> + (int64_t{k} * kThreads + threadIdx.x) * kSize;
      if (at >= elements) {
        break;
      }
      const int count = elements - at < kSize ? static_cast<int>(elements - at) : kSize;
      // past the end: a negative with no loss
      const Pack<T> x =
          load_pack(static_cast<const T*>(level.inputs) + at, count, aligned, narrow<T>(-INFINITY));
      A losses[kSize];
      Pack<T> grads;
      const auto put = [&](int j, const FocalTerm<A>& term) {
        losses[j] = term.loss;
        if (kGrad) {
          grads.values[j] = narrow<T>(term.grad * params.grad_scale);
        }
      };
      const auto put_negatives = [&] {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          FocalTerm<A> term = focal_negative<Math<A>, kGrad>(widen(x.values[j]), params);
          term.loss *= params.negative;
          term.grad *= params.negative;
          put(j, term);
        }
      };
      if constexpr (kLabels) {
        Cursor cursor(level, args.K, at);
        if (cursor.plain(count)) {
          put_negatives();
        } else {
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            const FocalTerm<A> term = labelled<T, kGrad>(widen(x.values[j]), cursor, params);
            put(j, j < count ? term : FocalTerm<A>{0, 0});
            cursor.next();
          }
        }
      } else {
        const Pack<T> t =
            load_pack(static_cast<const T*>(level.targets) + at, count, aligned, narrow<T>(A(0)));
        bool plain = true;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          plain &= widen(t.values[j]) == A(0);
        }
        if (plain) {
          put_negatives();
        } else {
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            put(j, focal_soft<Math<A>, kGrad>(widen(x.values[j]), widen(t.values[j]), params));
          }
        }
      }
      if (kGrad) {
        store_pack(static_cast<T*>(level.grads) + at, grads, count, aligned);
      }
      if (total != nullptr) {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          tile_sum += losses[j];
        }
      } else {
        Pack<T> out;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          out.values[j] = narrow<T>(losses[j]);
        }
        store_pack(static_cast<T*>(level.losses) + at, out, count, aligned);
      }
    }
    sum += tile_sum;
  }
  if (total != nullptr) {
    finish_sum(sum, partials, total);
  }
}

}  // namespace

template <typename T>
void launch_sigmoid_focal_loss(
    const FocalArgs& args, void* total, void* workspace, CUstream_st* stream
) {
  using A = accumulate_t<T>;
  Tiles tiles{};
  for (int i = 0; i < args.num_levels; ++i) {
    const FocalLevel& level = args.levels[i];
    tiles.begin[i + 1] = tiles.begin[i] + ceil_div(level.rows * args.K, kTile<T>);
    tiles.aligned[i] = is_aligned(level.inputs) && is_aligned(level.losses) &&
                       is_aligned(level.grads) && (args.labels || is_aligned(level.targets));
  }
  const Partials partials = begin_sum(workspace, total != nullptr, stream);
  const auto params = focal_params<A>(args.alpha, args.gamma, args.grad_scale);
  const dim3 grid(blocks_for(tiles.begin[args.num_levels]));
  const bool grad = args.grad_scale != 0;
  const auto kernel = args.labels ? (grad ? sigmoid_focal_loss_kernel<T, true, true>
                                          : sigmoid_focal_loss_kernel<T, false, true>)
                                  : (grad ? sigmoid_focal_loss_kernel<T, true, false>
                                          : sigmoid_focal_loss_kernel<T, false, false>);
  launch(kernel, grid, kThreads, 0, stream, args, tiles, params, partials, static_cast<A*>(total));
}

template void launch_sigmoid_focal_loss<float>(const FocalArgs&, void*, void*, CUstream_st*);
template void launch_sigmoid_focal_loss<double>(const FocalArgs&, void*, void*, CUstream_st*);
template void launch_sigmoid_focal_loss<half_t>(const FocalArgs&, void*, void*, CUstream_st*);
template void launch_sigmoid_focal_loss<bfloat16_t>(const FocalArgs&, void*, void*, CUstream_st*);

}  // namespace fastvision
