// CUDA's execution model on one CPU thread: the blocks of a grid run one after another, the threads
// of a block are fibers that run until they end or wait for others at a barrier or a warp
// collective.
//
// Stops the process with a message where a kernel would hang or be undefined on a GPU: a warp
// collective that part of its mask does not reach, threads that wait for each other in different
// places. Shared memory holds garbage when a block starts. CUDA_EMULATION_REVERSE=1 runs blocks and
// threads in descending order: a kernel that lacks a barrier gives different results in the two
// orders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// the running thread's
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace cuda_emulation {

constexpr int kWarpSize = 32;

struct BarrierResult {
  int arrived;
  int nonzero;
};

unsigned lane();
unsigned char* dynamic_shared();

// Waits for all threads of the block that have not ended.
BarrierResult block_barrier(bool predicate);

// Waits until every lane of `mask` came here with the same mask and operation; gives what each
// posted.
const uint64_t* warp_exchange(unsigned mask, const char* operation, uint64_t value);

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

[[noreturn]] void fail(const char* what);

}  // namespace cuda_emulation
