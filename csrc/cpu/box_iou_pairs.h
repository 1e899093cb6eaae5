// Boxes as structures of arrays, and the overlap of one box with a vector of others.
#pragma once

#include "common/simd_atan.h"
#include "ops/box_iou.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kRows = 64;      // boxes that are taken apart at a time
constexpr int64_t kColumns = 512;  // a multiple of every level's lanes

template <typename A>
struct BoxConstants;
template <>
struct BoxConstants<float> {
  static constexpr float aspect = 0.40528473456935109f;  // 4 / pi^2
  static constexpr float nan = __builtin_nanf("");
};
template <>
struct BoxConstants<double> {
  static constexpr double aspect = 0.40528473456935109;
  static constexpr double nan = __builtin_nan("");
};

template <typename A, int64_t kCount>
struct Boxes {
  alignas(64) A x1[kCount], y1[kCount], x2[kCount], y2[kCount];
  alignas(64) A area[kCount];
  // of the distance and complete IoU
  alignas(64) A cx[kCount], cy[kCount];
  alignas(64) A angle[kCount];  // atan(width / height)
};

// [count] floats or doubles of any storage type, in `buffer` if they have to be converted
inline const float* widen(const float* p, int64_t, float*) { return p; }
inline const double* widen(const double* p, int64_t, double*) { return p; }
template <typename T>
inline const float* widen(const T* p, int64_t count, float* buffer) {
  int64_t i = 0;
  for (; i + lanes_v<float> <= count; i += lanes_v<float>) {
    store(buffer + i, load(p + i));
  }
  if (i < count) {
    const int left = static_cast<int>(count - i);
    store_partial(buffer + i, load_partial(p + i, left), left);
  }
  return buffer;
}

// Takes `count` <= kCount boxes apart. The area of a box with a NaN is NaN, which every result
// inherits.
template <typename T, typename A, int64_t kCount>
void take_apart(
    const T* from,  // [count, 4]
    int64_t count,
    const BoxIouArgs& args,
    Boxes<A, kCount>& boxes
) {
  A buffer[4 * kCount];
  const A* box = widen(from, 4 * count, buffer);
  for (int64_t i = 0; i < count; ++i, box += 4) {
    A x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3], area = x2 * y2;
    if (args.format == BoxFormat::xyxy) {
      area = (x2 - x1) * (y2 - y1);
    } else if (args.format == BoxFormat::xywh) {
      x2 = x1 + x2;
      y2 = y1 + y2;
    } else {
      const A half_width = x2 / 2, half_height = y2 / 2;
      x2 = x1 + half_width;
      y2 = y1 + half_height;
      x1 = x1 - half_width;
      y1 = y1 - half_height;
    }
    const bool is_number = x1 == x1 && y1 == y1 && x2 == x2 && y2 == y2;
    boxes.x1[i] = x1;
    boxes.y1[i] = y1;
    boxes.x2[i] = x2;
    boxes.y2[i] = y2;
    boxes.area[i] = is_number ? area : BoxConstants<A>::nan;
  }
  const int64_t padded = (count + lanes_v<A> - 1) / lanes_v<A> * lanes_v<A>;
  for (int64_t i = count; i < padded; ++i) {
    boxes.x1[i] = boxes.y1[i] = boxes.x2[i] = boxes.y2[i] = boxes.area[i] = 0;
  }
  if (args.kind == BoxIouKind::iou || args.kind == BoxIouKind::generalized) {
    return;
  }
  for (int64_t i = 0; i < padded; i += lanes_v<A>) {
    const vector_t<A> x1 = load(boxes.x1 + i), y1 = load(boxes.y1 + i);
    const vector_t<A> x2 = load(boxes.x2 + i), y2 = load(boxes.y2 + i);
    store(boxes.cx + i, (x1 + x2) / broadcast(A(2)));
    store(boxes.cy + i, (y1 + y2) / broadcast(A(2)));
    if (args.kind == BoxIouKind::complete) {
      store(boxes.angle + i, atan((x2 - x1) / (y2 - y1)));
    }
  }
}

// As many boxes as a vector has lanes.
template <BoxIouKind kind, typename A>
struct BoxVector {
  using V = vector_t<A>;
  V x1, y1, x2, y2, area, cx{}, cy{}, angle{};

  template <int64_t kCount>
  static BoxVector several(const Boxes<A, kCount>& b, int64_t i) {
    return make(b, [i](const A* p) { return load(p + i); });
  }
  template <int64_t kCount>
  static BoxVector repeated(const Boxes<A, kCount>& b, int64_t i) {
    return make(b, [i](const A* p) { return broadcast(p[i]); });
  }

 private:
  template <int64_t kCount, typename Get>
  static BoxVector make(const Boxes<A, kCount>& b, const Get& get) {
    BoxVector v{get(b.x1), get(b.y1), get(b.x2), get(b.y2), get(b.area)};
    if constexpr (kind == BoxIouKind::distance || kind == BoxIouKind::complete) {
      v.cx = get(b.cx);
      v.cy = get(b.cy);
    }
    if constexpr (kind == BoxIouKind::complete) {
      v.angle = get(b.angle);
    }
    return v;
  }
};

// max(x, 0), propagating NaN
inline float_v not_negative(float_v x) { return at_least(x, 0.0f); }
inline double_v not_negative(double_v x) { return at_least(x, 0.0); }

// Gives the gradient of min(a, b) or max(a, b) to the one that it is, and half of it to each if
// they are equal, as torch does.
template <typename V>
inline void give(V& to_a, V& to_b, V a, V b, V gradient) {
  const V half = gradient / 2;
  to_a += a < b ? gradient : a == b ? half : V{};
  to_b += a < b ? V{} : a == b ? half : gradient;
}

// Calls run(kind) with a compile-time kind.
template <BoxIouKind kind>
struct KindConstant {
  static constexpr BoxIouKind value = kind;
};
template <typename Run>
inline void with_kind(BoxIouKind kind, const Run& run) {
  switch (kind) {
    case BoxIouKind::iou:
      return run(KindConstant<BoxIouKind::iou>{});
    case BoxIouKind::generalized:
      return run(KindConstant<BoxIouKind::generalized>{});
    case BoxIouKind::distance:
      return run(KindConstant<BoxIouKind::distance>{});
    case BoxIouKind::complete:
      return run(KindConstant<BoxIouKind::complete>{});
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
