// Contract of the fingerprint kernel: a 64-bit hash of all bytes and their positions.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

FASTVISION_DECLARE_CPU(
    uint64_t,
    fingerprint,
    const void* bytes,  // [size]
    int64_t size,
    uint64_t seed
)

}  // namespace fastvision
