// Contract of the kernels of deformable convolution (Dai et al. 2017; Zhu et al. 2019, with a
// mask).
//
// A sample is the bilinear value of one tap of one output pixel, at the tap's place in a regular
// convolution plus an offset. The kernels work on a tile of output pixels of one image: they locate
// its samples, and gather them into columns, which the kernels of convolution multiply by packed
// weights (conv.h) or by the result's gradient (conv_gradient.h).
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

// Where samples are. Arrays are [offset groups][taps][stride]; the integers are as wide as T.
template <typename T>
struct DeformIndex;
template <>
struct DeformIndex<float> {
  using type = int32_t;
};
template <>
struct DeformIndex<double> {
  using type = int64_t;
};
template <typename T>
using deform_index_t = typename DeformIndex<T>::type;

// bits of DeformPoints::flags: corners inside the image, and whether the sample counts
constexpr int kTopLeft = 1, kTopRight = 2, kBottomLeft = 4, kBottomRight = 8, kCounts = 16;

template <typename T>
struct DeformPoints {
  int64_t stride;            // at least the tile's pixels, whole vectors
  deform_index_t<T>* index;  // pixel of the top left corner, y * W + x
  deform_index_t<T>* flags;
  T* y;  // fractions: distances from the top left corner
  T* x;
};

template <typename T>
struct DeformTile {
  int64_t H, W, C;       // of the image; fewer than 2**31 pixels
  int64_t pixels, taps;  // output pixels
  int64_t groups;        // of offsets
  int64_t row_stride;    // between rows of columns and of their gradients; C and a vector at least
  // position of a tap in a regular convolution: tap_y[tap] + base_y[pixel], below 2**30
  const deform_index_t<T>* tap_y;   // [taps]
  const deform_index_t<T>* tap_x;   // [taps]
  const deform_index_t<T>* base_y;  // [points.stride]
  const deform_index_t<T>* base_x;  // [points.stride]
  const T* offsets;                 // [groups][taps][2][offset_stride] (y, x)
  const T* mask;                    // [groups][taps][mask_stride], or null for ones
  int64_t offset_stride, mask_stride;
  DeformPoints<T> points;
  const T* image;    // [H, W, C]
  int64_t readable;  // values from there on: the image, and what follows in memory
  const T* zeros;    // [C] and a vector
  T* columns;        // [taps][pixels][row_stride] samples times mask
};

// The same tile with what its gradients take.
template <typename T>
struct DeformGradientTile : DeformTile<T> {
  const T* column_gradients;  // [taps][pixels][row_stride]
  T* image_gradient;          // [H, W, C] and a vector, added to; null if not wanted
  T* unused;                  // [C] and a vector, overwritten
  T* offset_gradients;        // [groups][taps][2][pixels]
  T* mask_gradients;          // [groups][taps][pixels]
};

#define FASTVISION_DECLARE_DEFORM(T)                                                           \
  FASTVISION_DECLARE_CPU(int64_t, deform_lanes, const T*)                                      \
  /* Fills the points. Without `edges` the corners of samples that do not count are left       \
     out; samples at -1 exactly do not count, but have derivatives. rows[2]: the image's       \
     rows [begin, end) with corners. */                                                        \
  FASTVISION_DECLARE_CPU(void, deform_locate, const DeformTile<T>&, bool edges, int64_t* rows) \
  FASTVISION_DECLARE_CPU(void, deform_gather, const DeformTile<T>&)                            \
  FASTVISION_DECLARE_CPU(void, deform_gradients, const DeformGradientTile<T>&)
FASTVISION_DECLARE_DEFORM(float)
FASTVISION_DECLARE_DEFORM(double)
#undef FASTVISION_DECLARE_DEFORM

}  // namespace fastvision
