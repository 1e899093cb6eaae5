#include "scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "fiber.h"

// static __shared__ variables live in this section (cuda_runtime.h); weak: a program may have none
extern "C" __attribute__((weak)) unsigned char __start_cuda_shared[];
extern "C" __attribute__((weak)) unsigned char __stop_cuda_shared[];

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_emulation {
namespace {

constexpr unsigned char kGarbage = 0xcd;

enum class State { runnable, at_block_barrier, at_warp_collective, ended };

struct Fiber {
  Context context;
  State state;
  uint3 index;
  bool predicate;
  BarrierResult barrier;
  unsigned mask;
  const char* operation;
  uint64_t posted;
  uint64_t received[kWarpSize];
};

std::vector<std::unique_ptr<Fiber>> fibers;  // made once, used again by every block
size_t threads;
Fiber* running;
const std::function<void()>* body;
Context scheduler;
std::unique_ptr<unsigned char[]> shared;

size_t linear(const Fiber& fiber) {
  return fiber.index.x + blockDim.x * (fiber.index.y + size_t{blockDim.y} * fiber.index.z);
}

void leave(State state) {
  running->state = state;
  scheduler.enter(running->context);
}

void enter(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  fiber.context.enter(scheduler);
}

void thread_main() {
  Context::entered();
  for (;;) {
    (*body)();
    leave(State::ended);
  }
}

void prepare(Fiber& fiber, size_t thread) {
  fiber.index.x = thread % blockDim.x;
  fiber.index.y = thread / blockDim.x % blockDim.y;
  fiber.index.z = thread / blockDim.x / blockDim.y;
  fiber.state = State::runnable;
}

bool release_block_barrier() {
  BarrierResult result{0, 0};
  for (size_t t = 0; t < threads; ++t) {
    const Fiber& fiber = *fibers[t];
    if (fiber.state == State::ended) {
      continue;
    }
    if (fiber.state != State::at_block_barrier) {
      return false;
    }
    ++result.arrived;
    result.nonzero += fiber.predicate;
  }
  for (size_t t = 0; t < threads; ++t) {
    if (fibers[t]->state == State::at_block_barrier) {
      fibers[t]->barrier = result;
      fibers[t]->state = State::runnable;
    }
  }
  return result.arrived > 0;
}

// lets the lanes of `leader`'s collective go on if all of them arrived
bool release_warp_collective(const Fiber& leader, size_t warp) {
  const unsigned mask = leader.mask;
  uint64_t posted[kWarpSize] = {};
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) {
      continue;
    }
    const size_t t = warp * kWarpSize + lane;
    if (t >= threads || fibers[t]->state == State::ended) {
      fail("a warp collective's mask has a lane that ended or does not exist");
    }
    const Fiber& fiber = *fibers[t];
    if (fiber.state != State::at_warp_collective || fiber.mask != mask ||
        std::strcmp(fiber.operation, leader.operation) != 0) {
      return false;
    }
    posted[lane] = fiber.posted;
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1) {
      Fiber& fiber = *fibers[warp * kWarpSize + lane];
      std::memcpy(fiber.received, posted, sizeof posted);
      fiber.state = State::runnable;
    }
  }
  return true;
}

// not memset: the section has AddressSanitizer's red zones between the variables
__attribute__((no_sanitize("address"))) void spoil_static_shared() {
  for (volatile unsigned char* p = __start_cuda_shared; p < __stop_cuda_shared; ++p) {
    *p = kGarbage;
  }
}

void run_block(size_t shared_bytes, bool reverse) {
  spoil_static_shared();
  shared.reset(new unsigned char[shared_bytes]);  // a new one, so that its bounds are checked
  std::fill_n(shared.get(), shared_bytes, kGarbage);
  for (size_t t = 0; t < threads; ++t) {
    prepare(*fibers[t], t);
  }
  for (;;) {
    bool progress = false;
    bool alive = false;
    for (size_t k = 0; k < threads; ++k) {
      const size_t t = reverse ? threads - 1 - k : k;
      if (fibers[t]->state == State::runnable) {
        enter(*fibers[t]);
        progress = true;
      }
      alive |= fibers[t]->state != State::ended;
    }
    for (size_t t = 0; t < threads; ++t) {
      if (fibers[t]->state == State::at_warp_collective) {
        progress |= release_warp_collective(*fibers[t], t / kWarpSize);
      }
    }
    progress |= release_block_barrier();
    if (!alive) {
      return;
    }
    if (!progress) {
      fail("deadlock: threads of a block wait for each other at different barriers or collectives");
    }
  }
}

}  // namespace

unsigned lane() { return linear(*running) % kWarpSize; }

unsigned char* dynamic_shared() { return shared.get(); }

BarrierResult block_barrier(bool predicate) {
  Fiber* self = running;
  self->predicate = predicate;
  leave(State::at_block_barrier);
  return self->barrier;
}

const uint64_t* warp_exchange(unsigned mask, const char* operation, uint64_t value) {
  if ((mask >> lane() & 1) == 0) {
    fail("a warp collective was called by a lane outside its mask");
  }
  Fiber* self = running;
  self->mask = mask;
  self->operation = operation;
  self->posted = value;
  leave(State::at_warp_collective);
  return self->received;
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const char* order = std::getenv("CUDA_EMULATION_REVERSE");
  const bool reverse = order != nullptr && order[0] == '1';
  gridDim = grid;
  blockDim = block;
  body = &kernel;
  threads = size_t{block.x} * block.y * block.z;
  while (fibers.size() < threads) {
    fibers.emplace_back(new Fiber{Context(thread_main), {}, {}, {}, {}, {}, {}, {}, {}});
  }
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  for (size_t k = 0; k < blocks; ++k) {
    const size_t b = reverse ? blocks - 1 - k : k;
    blockIdx.x = b % grid.x;
    blockIdx.y = b / grid.x % grid.y;
    blockIdx.z = b / grid.x / grid.y;
    run_block(shared_bytes, reverse);
  }
}

void fail(const char* what) {
  std::fprintf(
      stderr,
      "cuda_emulation: %s (block %u,%u,%u, last thread %u,%u,%u)\n",
      what,
      blockIdx.x,
      blockIdx.y,
      blockIdx.z,
      threadIdx.x,
      threadIdx.y,
      threadIdx.z
  );
  std::abort();
}

}  // namespace cuda_emulation
