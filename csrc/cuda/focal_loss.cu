// Focal loss: one pass over the logits gives the sum and the gradient. A thread takes 16 bytes of
// consecutive logits at a time. With labels nearly all of them are plain negatives; the row is
// found by one division per thread, not per logit. Softmax has a warp per row.
//
// Sums are deterministic: each block adds up its own, and the block that ends last adds up theirs
// in order of their numbers. The number of blocks depends on the sizes alone.
#include <cmath>

#include "common/cuda.cuh"
#include "ops/focal_loss.h"

namespace fastvision {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxBlocks = 1024;
constexpr int kPacksPerThread = 4;  // of a tile; its sum is in the type of arithmetic
constexpr unsigned kWarpMask = 0xffffffffu;

template <typename A>
struct Math;

template <>
struct Math<float> {
  static constexpr float largest = 3.402823466e38f;

  __device__ static float abs(float x) { return fabsf(x); }
  __device__ static float at_least_zero(float x) { return x < 0 ? 0.0f : x; }
  // The approximations are within 2 units in the last place; the argument's own rounding makes the
  // exponential's relative error about 6e-8 |x|.
  __device__ static float exp(float x) {
    x *= 1.442695041f;
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
  }
  __device__ static float exp_capped(float x) { return exp(x); }
  __device__ static float log(float x) { return logf(x); }
  __device__ static float reciprocal(float x) {  // of a number in [1, 2]
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1 / x;
#endif
  }
  __device__ static float log1p(float x) {  // of a number in [0, 1], within 2e-7 relative
    float q = 0.0053648185f;
    q = fmaf(q, x, -0.030065769f);
    q = fmaf(q, x, 0.079204500f);
    q = fmaf(q, x, -0.13753799f);
    q = fmaf(q, x, 0.19153653f);
    q = fmaf(q, x, -0.24857163f);
    q = fmaf(q, x, 0.33321324f);
    q = fmaf(q, x, -0.49999648f);
    return fmaf(x * x, q, x);
  }
};

template <>
struct Math<double> {
  static constexpr double largest = 1.7976931348623157e308;

  __device__ static double abs(double x) { return fabs(x); }
  __device__ static double at_least_zero(double x) { return x < 0 ? 0.0 : x; }
  __device__ static double exp(double x) { return ::exp(x); }
  __device__ static double exp_capped(double x) { return ::exp(x); }
  __device__ static double log(double x) { return ::log(x); }
  __device__ static double log1p(double x) { return ::log1p(x); }
  __device__ static double reciprocal(double x) { return 1 / x; }
};

template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

// `count` values, which may be fewer than a pack; the rest are `fill`.
template <typename T>
__device__ Pack<T> load_pack(const T* p, int count, bool aligned, T fill) {
  Pack<T> pack;
  if (aligned && count == Pack<T>::size) {
    return *reinterpret_cast<const Pack<T>*>(p);
  }
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j) {
    pack.values[j] = j < count ? p[j] : fill;
  }
  return pack;
}

template <typename T>
__device__ void store_pack(T* p, const Pack<T>& pack, int count, bool aligned) {
  if (aligned && count == Pack<T>::size) {
    *reinterpret_cast<Pack<T>*>(p) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j) {
    if (j < count) {
      p[j] = pack.values[j];
    }
  }
}

// ---- sums

__device__ double warp_sum(double x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    x += __shfl_xor_sync(kWarpMask, x, bits);
  }
  return x;
}

// Valid in thread 0.
__device__ double block_sum(double x) {
  __shared__ double sums[kWarps];
  x = warp_sum(x);
  __syncthreads();  // the array may still be read
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = x;
  }
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps; ++i) {
      sum += sums[i];
    }
  }
  return sum;
}

struct Partials {
  double* sums;      // [kMaxBlocks]
  unsigned* ticket;  // zero before the launch
};

Partials carve(Workspace& workspace) {
  return {workspace.take<double>(kMaxBlocks), workspace.take<unsigned>(1)};
}

template <typename A>
__device__ void finish_sum(double sum, const Partials& partials, A* total) {
  __shared__ bool is_last;
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    partials.sums[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicAdd(partials.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) {
    return;
  }
  __threadfence();
  const volatile double* sums = partials.sums;
  double rest = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
    rest += sums[i];
  }
  rest = block_sum(rest);
  if (threadIdx.x == 0) {
    *total = static_cast<A>(rest);
  }
}

// ---- sigmoid

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
    accumulate_t<T>* total  // or null: losses are written
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
      // past the end: a negative without loss
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

// ---- softmax

template <typename A>
__device__ A warp_max(A x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const A other = __shfl_xor_sync(kWarpMask, x, bits);
    x = other > x ? other : x;
  }
  return x;
}

template <typename A>
__device__ A warp_sum_of(A x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    x += __shfl_xor_sync(kWarpMask, x, bits);
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
    accumulate_t<T>* total  // or null: losses are written
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
      // 1 - p from the others alone: else it is a small difference of large numbers
      A others = 0;
      for (int k = lane; k < K; k += 32) {
        const A e = Math<A>::exp(widen(row[k]) - most);
        others += k == label ? A(0) : e;
      }
      others = warp_sum_of(others);
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

// ---- scale

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

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

unsigned blocks_for(int64_t tiles) {
  return static_cast<unsigned>(tiles < 1 ? 1 : tiles < kMaxBlocks ? tiles : kMaxBlocks);
}

Partials begin_sum(void* memory, bool sums, cudaStream_t stream) {
  Workspace workspace(memory);
  const Partials partials = carve(workspace);
  if (sums) {
    check_cuda(cudaMemsetAsync(partials.ticket, 0, sizeof *partials.ticket, stream), "focal loss");
  }
  return partials;
}

}  // namespace

size_t focal_loss_workspace_bytes() {
  Workspace workspace(nullptr);
  carve(workspace);
  return workspace.used();
}

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

#define FASTVISION_INSTANTIATE(T)                                                           \
  template void launch_sigmoid_focal_loss<T>(const FocalArgs&, void*, void*, CUstream_st*); \
  template void launch_softmax_focal_loss<T>(const FocalArgs&, void*, void*, CUstream_st*); \
  template void launch_focal_loss_scale<T>(                                                 \
      void* grads, int64_t count, const void* factor, double scale, CUstream_st* stream     \
  );
FASTVISION_INSTANTIATE(float)
FASTVISION_INSTANTIATE(double)
FASTVISION_INSTANTIATE(half_t)
FASTVISION_INSTANTIATE(bfloat16_t)
#undef FASTVISION_INSTANTIATE

}  // namespace fastvision
