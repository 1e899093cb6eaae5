// Detects processes that must not use torch's threads.
#pragma once

namespace fastvision {

// Whether this process was forked from one with threads. The child does not inherit them, but
// OpenMP's pool still expects them, so its first parallel region would hang.
bool lost_threads_in_fork();

}  // namespace fastvision
