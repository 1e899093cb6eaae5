// The contract of the fingerprint kernel: 64 bits that depend on every byte and on its position.
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
