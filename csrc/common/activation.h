// The activations of a convolution's epilogue, and their codes in the ops' schemas.
#pragma once

#include "common/isa.h"

namespace fastvision {

// in the order of ACTIVATIONS, fastvision/reference/activations.py
enum class Activation : int { none, relu, relu6, leaky_relu, silu, hardswish, sigmoid };
constexpr int kActivations = 7;

// whether two comparisons compute it
FASTVISION_NO_COPY bool is_clamp(Activation activation) { return activation <= Activation::relu6; }

}  // namespace fastvision
