// Dynamic scheduling on torch's thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/fork.h"

namespace fastvision {

// Distributes [0, items) in chunks among at most one worker per thread. Each worker calls
// make_worker() once, which returns the function (begin, end) that processes a chunk, so a worker
// can own scratch memory. Only allocation failures may throw in there: torch loses the message.
template <typename MakeWorker>
void parallel_chunks(int64_t items, int64_t chunk, const MakeWorker& make_worker) {
  if (items <= 0) {
    return;
  }
  const int64_t chunks = (items + chunk - 1) / chunk;
  const int64_t workers = chunks == 1 || lost_threads_in_fork()
                              ? 1
                              : std::min<int64_t>(chunks, torch::stable::get_num_threads());
  if (workers == 1) {
    make_worker()(int64_t{0}, items);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    auto work = make_worker();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      work(i * chunk, std::min(items, (i + 1) * chunk));
    }
  });
}

}  // namespace fastvision
