// Contract of the kernels of squeeze and excitation: input * gate, where
// gate = scale_activation(weight2 activation(weight1 mean(input) + bias1) + bias2) per image.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

struct SqueezeExcitationArgs {
  bool planes;     // images are [C, pixels], else [pixels, C]
  int64_t N;       // images
  int64_t C;       // channels
  int64_t S;       // squeeze channels
  int64_t pixels;  // of an image
  int64_t block;   // rows of pixels of a partial sum
  int64_t blocks;  // of an image
  Activation activation;
  bool hard;  // the gate is a hardsigmoid, else a sigmoid
  // of the type of storage
  const void* input;    // [N, C, pixels], or [N, pixels, C]
  const void* weight1;  // [S, C]
  const void* bias1;    // [S], or null
  const void* weight2;  // [C, S]
  const void* bias2;    // [C], or null
  void* output;         // as input
  // of the type of arithmetic
  void* sums;    // [N, blocks, C], or not used by planes
  void* means;   // [N, C]
  void* hidden;  // [N, S]
  void* gates;   // [N, C]
};

// In this order; what the items are of which a call handles [begin, end):
enum class SqueezeExcitationStep {
  sums,     // blocks [N * blocks]; of planes the means [N * C]
  means,    // images [N]; planes skip it
  squeeze,  // squeeze channels [S], in all images; begin is a multiple of kLinearOutputs
  excite,   // gates of channels [C], in all images; begin is a multiple of kLinearOutputs
  scale,    // rows of the output [N * pixels], or planes [N * C]
};

constexpr int64_t kLinearOutputs = 16;

// The first pointer gives the type of storage and is not read.
#define FASTVISION_DECLARE_SQUEEZE_EXCITATION(T) \
  FASTVISION_DECLARE_CPU(                        \
      void,                                      \
      squeeze_excitation,                        \
      const T*,                                  \
      const SqueezeExcitationArgs&,              \
      SqueezeExcitationStep step,                \
      int64_t begin,                             \
      int64_t end                                \
  )
FASTVISION_DECLARE_SQUEEZE_EXCITATION(float)
FASTVISION_DECLARE_SQUEEZE_EXCITATION(double)
FASTVISION_DECLARE_SQUEEZE_EXCITATION(half_t)
FASTVISION_DECLARE_SQUEEZE_EXCITATION(bfloat16_t)
#undef FASTVISION_DECLARE_SQUEEZE_EXCITATION

}  // namespace fastvision
