// Small kernels that show what the emulation does and what it refuses: selftest FOLDER CASE
#include <cstdio>
#include <string>

#include "common/cuda.cuh"

namespace {

constexpr int kThreads = 96;

// the sum of 0..n-1 over three warps, by shuffles, static and dynamic shared memory, and an atomic
template <typename T, int kStep>
__global__ void sum_kernel(T* out, int n) {
  FASTVISION_DYNAMIC_SHARED(bytes);
  T* all = reinterpret_cast<T*>(bytes);
  __shared__ T partial[kThreads / 32];
  all[threadIdx.x] = threadIdx.x < unsigned(n) ? T(threadIdx.x) * kStep : T(0);
  __syncthreads();
  T value = all[kThreads - 1 - threadIdx.x];
  for (int delta = 16; delta > 0; delta /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, delta);
  }
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = value;
  }
  const int odd = __syncthreads_count(threadIdx.x & 1);
  if (threadIdx.x == 0) {
    atomicAdd(out, partial[0] + partial[1] + partial[2] + (odd == kThreads / 2 ? 0 : 1));
  }
}

__global__ void half_warp_kernel() {
  if (threadIdx.x < 16) {
    __syncwarp();
  }
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (threadIdx.x < 48) {
    __ballot_sync(0xffffffffu, 1);
  } else {
    __syncthreads();
  }
}

__global__ void ended_threads_kernel(int* out) {
  if (threadIdx.x >= 10) {
    return;
  }
  __syncthreads();
  atomicAdd(out, 1);
}

__global__ void shared_overflow_kernel(int* out, int index) {
  __shared__ int table[4];
  table[index] = 1;
  *out = table[index];
}

__global__ void uninitialised_kernel(unsigned* out) {
  __shared__ unsigned word;
  *out = word;
  word = 0;
}

}  // namespace

int main(int, char** argv) {
  const std::string test = argv[2];
  if (test == "sum") {
    double sum = 0;
    fastvision::launch(
        sum_kernel<double, 2>, 3, kThreads, kThreads * sizeof(double), nullptr, &sum, 90
    );
    std::printf("%g\n", sum);
  } else if (test == "half_warp") {
    fastvision::launch(half_warp_kernel, 1, 32, 0, nullptr);
  } else if (test == "divergent_barrier") {
    fastvision::launch(divergent_barrier_kernel, 1, 64, 0, nullptr);
  } else if (test == "ended_threads") {
    int count = 0;
    fastvision::launch(ended_threads_kernel, 1, 64, 0, nullptr, &count);
    std::printf("%d\n", count);
  } else if (test == "shared_overflow") {
    int out = 0;
    fastvision::launch(shared_overflow_kernel, 1, 1, 0, nullptr, &out, 4);
  } else if (test == "uninitialised") {
    unsigned out[2];
    for (unsigned& word : out) {
      fastvision::launch(uninitialised_kernel, 1, 1, 0, nullptr, &word);
    }
    std::printf("%x %x\n", out[0], out[1]);
  } else if (test == "too_many_threads") {
    try {
      fastvision::launch(half_warp_kernel, 1, 1025, 0, nullptr);
    } catch (const std::runtime_error& error) {
      std::printf("%s\n", error.what());
    }
  }
}
