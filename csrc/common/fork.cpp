#include "common/fork.h"

#include <dirent.h>
#include <pthread.h>

#include <atomic>

namespace fastvision {
namespace {

std::atomic<bool> parent_has_threads{false}, lost{false};

// a parent without threads has no pool yet, so its children may start their own
bool has_threads() {
  DIR* const tasks = opendir("/proc/self/task");
  if (tasks == nullptr) {
    return true;  // unknown
  }
  int count = 0;
  while (const dirent* entry = readdir(tasks)) {
    count += entry->d_name[0] != '.';
  }
  closedir(tasks);
  return count > 1;
}

void before_fork() { parent_has_threads = has_threads(); }

void in_child() {
  if (parent_has_threads) {
    lost = true;
  }
}

[[maybe_unused]] const int registered = pthread_atfork(&before_fork, nullptr, &in_child);

}  // namespace

bool lost_threads_in_fork() { return lost.load(std::memory_order_relaxed); }

}  // namespace fastvision
