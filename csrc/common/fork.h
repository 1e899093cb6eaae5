// Which processes may use torch's threads.
#pragma once

namespace fastvision {

// Whether this process was forked from one that had threads. A child has none of its parent's, but
// OpenMP's pool still counts on them: the first parallel region would wait for ever.
bool lost_threads_in_fork();

}  // namespace fastvision
