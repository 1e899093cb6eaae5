// Greedy NMS of one segment of rotated boxes: compares each box, by descending score, with the
// boxes kept so far. A first pass finds those it may overlap enough, by their upright boxes and
// sizes; the geometry runs on vectors of them.
#pragma once

#include "common/round_down.h"
#include "cpu/box_iou_rotated_pairs.h"
#include "ops/nms_rotated.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <bool kSolid, typename A>
class KeptRotatedBoxes {
  using V = vector_t<A>;
  static constexpr int lanes = lanes_v<A>;

 public:
  KeptRotatedBoxes(const RotatedSegment<A>& segment, A threshold)
      : segment_(segment),
        boxes_{segment.boxes, segment.step},
        threshold_(threshold),
        ratio_(threshold * (1 - A(1) / 128)) {}

  // Whether a kept box suppresses box i.
  bool suppress(int64_t i) const {
    const UprightVector<A> around = upright<kSolid>(boxes_, i);
    const RotatedVector<A> box = repeated<kSolid>(boxes_, i);
    int32_t near[kSearched + lanes];
    for (int64_t first = 0; first < count_; first += kSearched) {
      const int64_t last = first + kSearched < count_ ? first + kSearched : count_;
      int64_t found = 0;
      for (int64_t j = first; j < last; j += lanes) {
        const int some = last - j < lanes ? static_cast<int>(last - j) : lanes;
        const auto get = [j](const A* p) { return load(p + j); };
        // no overlap exceeds the ratio of the sizes; the margin is for rounding
        const V measure = get(boxes_[RotatedArray::measure]);
        const auto alike = (measure >= ratio_ * box.measure) & (measure * ratio_ <= box.measure);
        found = append(alike & meets<kSolid>(around, boxes_, get), j, some, near, found);
      }
      fill_up<A>(near, found);
      for (int64_t k = 0; k < found; k += lanes) {
        const V iou = intersection_over_union<kSolid>(gathered<kSolid>(boxes_, near + k), box);
        if (movemask(iou > threshold_) != 0) {
          return true;
        }
      }
    }
    return false;
  }

  // Keeps box i, in the place of one that was decided before.
  void insert(int64_t i) {
    for (int k = 0; k < (kSolid ? kSolidArrays : kRotatedArrays); ++k) {
      A* array = segment_.boxes + k * segment_.step;
      array[count_] = array[i];
    }
    ++count_;
  }

 private:
  static constexpr int64_t kSearched = 256;  // at a time: the best boxes suppress most

  const RotatedSegment<A>& segment_;
  RotatedSet<A> boxes_;  // the first `count_` are kept
  A threshold_, ratio_;
  int64_t count_ = 0;
};

// With a threshold below 0, every IoU that is a number suppresses: those of an empty box with any,
// and of two boxes whose sizes are numbers.
template <typename A>
class AnyOverlap {
 public:
  bool suppress(A measure) const {
    return is_empty(measure) ? some_ : empty_ || (measure == measure && ordinary_);
  }
  void insert(A measure) {
    some_ = true;
    empty_ |= is_empty(measure);
    ordinary_ |= !is_empty(measure) && measure == measure;
  }

  static bool is_empty(A measure) { return measure < static_cast<A>(kMinRotatedArea); }

 private:
  bool some_ = false, empty_ = false, ordinary_ = false;
};

template <bool kSolid, typename A>
void run(const RotatedSegment<A>& s) {
  const A threshold = round_down(s.iou_threshold, A{});
  const A* measures = RotatedSet<A>{s.boxes, s.step}[RotatedArray::measure];
  KeptRotatedBoxes<kSolid, A> boxes(s, threshold);
  AnyOverlap<A> any;
  int64_t kept = 0;
  int64_t i = 0;
  for (; i < s.n && kept < s.max_output; ++i) {
    const A measure = measures[i];
    const bool dropped = threshold < 0 ? any.suppress(measure) : boxes.suppress(i);
    s.kept[i] = !dropped;
    kept += !dropped;
    if (!dropped && threshold < 0) {
      any.insert(measure);
    } else if (!dropped && measure >= static_cast<A>(kMinRotatedArea)) {
      boxes.insert(i);
    }
  }
  memset(s.kept + i, 0, s.n - i);
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
