// Soft-NMS of one class. A single pass over the remaining boxes decays their scores by the box just
// kept and finds the next one.
#include "ops/soft_nms.h"

#include "common/round_down.h"
#include "common/simd_math.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Scores are 0 or more, so their bits, read as integers, are in the same order; -1 is below all.
inline int32_t key_of_nan(float) { return 0x7fffffff; }
inline int64_t key_of_nan(double) { return 0x7fffffffffffffff; }

template <typename T>
class Remaining {
  using V = vector_t<T>;
  using Mask = typename simd<T>::mask;
  using Key = decltype(key_of_nan(T{}));
  static constexpr int lanes = lanes_v<T>;
  static constexpr T kGone = -1;

 public:
  explicit Remaining(const SoftNmsSegment<T>& segment)
      : segment_(segment), threshold_(round_down(segment.iou_threshold, T{})) {
    const int64_t stride = soft_nms_stride<T>(segment.n);
    T* memory = (T*)segment.workspace;
    T** arrays[] = {&x1_, &y1_, &x2_, &y2_, &area_, &score_};
    for (T** array : arrays) {
      *array = memory;
      memory += stride;
    }
    index_ = (int32_t*)memory;
    for (int64_t i = 0; i < segment.n; ++i) {
      const T* box = segment.boxes + 4 * i;
      x1_[i] = box[0];
      y1_[i] = box[1];
      x2_[i] = box[2];
      y2_[i] = box[3];
      area_[i] = (box[2] - box[0]) * (box[3] - box[1]);
      score_[i] = segment.scores[i] < segment.min_score ? kGone : segment.scores[i];
      index_[i] = (int32_t)i;
    }
    size_ = segment.n;
    compact();
  }

  void run() {
    int64_t next = first();
    while (next >= 0) {
      const int32_t index = index_[next];
      segment_.kept[index] = 1;
      segment_.scores[index] = score_[next];
      score_[next] = kGone;
      next = segment_.gaussian ? decay<true>(next) : decay<false>(next);
      if (left_ < size_ - size_ / 4) {
        next = compact(next);
      }
    }
  }

 private:
  static Key key(T score) {
    Key bits;
    memcpy(&bits, &score, sizeof bits);
    return score == score ? bits : key_of_nan(T{});
  }

  int64_t first() const {
    int64_t best = -1;
    for (int64_t i = 0; i < size_; ++i) {
      if (key(score_[i]) > (best < 0 ? Key(-1) : key(score_[best]))) {
        best = i;
      }
    }
    return best;
  }

  // Decays the scores by the box at `position`; returns where the best of the others is, or -1.
  template <bool gaussian>
  int64_t decay(int64_t position) {
    const V x1 = broadcast(x1_[position]), y1 = broadcast(y1_[position]);
    const V x2 = broadcast(x2_[position]), y2 = broadcast(y2_[position]);
    const V area = broadcast(area_[position]);
    const V threshold = broadcast(gaussian ? T(0) : threshold_);
    const V exponent = broadcast(segment_.exponent), min_score = broadcast(segment_.min_score);
    Mask best = Mask{} - 1, best_at = Mask{}, left = Mask{}, at = Mask{};
    for (int lane = 0; lane < lanes; ++lane) {
      at[lane] = lane;
    }
    for (int64_t i = 0; i < size_; i += lanes) {
      V score = load(score_ + i);
      const V width = min(load(x2_ + i), x2) - max(load(x1_ + i), x1);
      const V height = min(load(y2_ + i), y2) - max(load(y1_ + i), y1);
      const V inter = max(width, V{}) * max(height, V{});
      if (movemask(inter > V{}) != 0) {
        const V iou = inter / (area + load(area_ + i) - inter);
        const Mask decays = (iou > threshold) & (score >= V{});
        const V weight = gaussian ? exp(iou * iou * exponent) : T(1) - iou;
        score = decays ? score * weight : score;
        score = score < min_score ? V{} + kGone : score;
        store(score_ + i, score);
      }
      const Mask keys = score == score ? (Mask)score : Mask{} + key_of_nan(T{});
      const Mask better = keys > best;
      best = better ? keys : best;
      best_at = better ? at : best_at;
      left -= keys >= 0;
      at += lanes;
    }
    Key highest = -1;
    int64_t next = -1;
    left_ = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      if (best[lane] > highest || (best[lane] == highest && best_at[lane] < next)) {
        highest = best[lane];
        next = best_at[lane];
      }
      left_ += left[lane];
    }
    return next;
  }

  // Closes the gaps that boxes have left; returns where the box at `position` is now.
  int64_t compact(int64_t position = -1) {
    int64_t to = 0, moved = -1;
    for (int64_t i = 0; i < size_; ++i) {
      if (score_[i] < 0) {
        continue;
      }
      x1_[to] = x1_[i];
      y1_[to] = y1_[i];
      x2_[to] = x2_[i];
      y2_[to] = y2_[i];
      area_[to] = area_[i];
      score_[to] = score_[i];
      index_[to] = index_[i];
      moved = i == position ? to : moved;
      ++to;
    }
    size_ = to;
    for (; to % lanes != 0; ++to) {  // lanes behind the last box
      x1_[to] = y1_[to] = x2_[to] = y2_[to] = area_[to] = 0;
      score_[to] = kGone;
    }
    return moved;
  }

  const SoftNmsSegment<T>& segment_;
  const T threshold_;
  T *x1_, *y1_, *x2_, *y2_, *area_, *score_;
  int32_t* index_;
  int64_t size_ = 0;
  int64_t left_ = 0;  // boxes that remained after the last pass
};

template <typename T>
void run(const SoftNmsSegment<T>& segment) {
  memset(segment.kept, 0, segment.n);
  Remaining<T>(segment).run();
}

}  // namespace

void soft_nms_float(const SoftNmsSegment<float>& segment) { run(segment); }
void soft_nms_double(const SoftNmsSegment<double>& segment) { run(segment); }

}  // namespace fastvision::FASTVISION_ISA
