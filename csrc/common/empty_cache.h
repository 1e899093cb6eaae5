// Apart from result_memory.h, so that it can be called without torch's headers.
#pragma once

namespace fastvision {

// Gives back to the system the memory that is kept for coming results and that no tensor uses.
__attribute__((visibility("default"))) void empty_cache();

}  // namespace fastvision
