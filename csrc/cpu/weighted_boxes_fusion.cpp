#include "ops/weighted_boxes_fusion.h"

#include "common/round_down.h"
#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// The clusters of a class so far, as a structure of arrays that vectors can be loaded from.
template <typename A>
class Clusters {
  using V = vector_t<A>;
  static constexpr int lanes = lanes_v<A>;

 public:
  Clusters(A* scratch, int64_t most, A threshold) : threshold_(threshold) {
    const int64_t step = most + 16;
    memset(scratch, 0, fusion_scratch(most) * sizeof(A));
    for (int k = 0; k < 4; ++k) {
      corner_[k] = scratch + k * step;
      sum_[k] = scratch + (4 + k) * step;
    }
    area_ = scratch + 8 * step;
    score_ = scratch + 9 * step;
  }

  int64_t count() const { return count_; }

  // The cluster that a box joins, or -1.
  int64_t match(const A* box) const {
    const V x1 = broadcast(box[0]), y1 = broadcast(box[1]);
    const V x2 = broadcast(box[2]), y2 = broadcast(box[3]);
    const V area = broadcast((box[2] - box[0]) * (box[3] - box[1])), zero{};
    A best = threshold_;
    int64_t found = -1;
    for (int64_t i = 0; i < count_; i += lanes) {
      const V width = min(load(corner_[2] + i), x2) - max(load(corner_[0] + i), x1);
      const V height = min(load(corner_[3] + i), y2) - max(load(corner_[1] + i), y1);
      const V inter = max(width, zero) * max(height, zero);
      const V iou = inter / (load(area_ + i) + area - inter);
      for (uint32_t bits = movemask(iou > broadcast(best)); bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        if (i + lane < count_ && iou[lane] > best) {
          best = iou[lane];
          found = i + lane;
        }
      }
    }
    return found;
  }

  void add(const A* box, A score) {
    const int64_t i = count_++;
    for (int k = 0; k < 4; ++k) {
      corner_[k][i] = box[k];
      sum_[k][i] = score * box[k];
    }
    score_[i] = score;
    set_area(i);
  }

  void join(int64_t i, const A* box, A score) {
    score_[i] += score;
    for (int k = 0; k < 4; ++k) {
      sum_[k][i] += score * box[k];
      corner_[k][i] = score_[i] > 0 ? sum_[k][i] / score_[i] : corner_[k][i];
    }
    set_area(i);
  }

  A corner(int64_t i, int k) const { return corner_[k][i]; }
  A score(int64_t i) const { return score_[i]; }

 private:
  void set_area(int64_t i) {
    area_[i] = (corner_[2][i] - corner_[0][i]) * (corner_[3][i] - corner_[1][i]);
  }

  A threshold_;
  int64_t count_ = 0;
  A *corner_[4], *sum_[4];  // of the fused box; of scores times corners
  A *area_, *score_;        // of the fused box; sum of the scores
};

template <typename A>
void run(const FusionArgs<A>& args, int64_t begin, int64_t end, A* scratch) {
  Clusters<A> clusters(scratch, end - begin, round_down(args.iou_threshold, A{}));
  int64_t* counts = args.counts + begin;
  A* scores = args.fused_scores + begin;
  A* fused = args.fused + 4 * begin;
  for (int64_t i = begin; i < end; ++i) {
    const A* box = args.boxes + 4 * i;
    const A score = args.scores[i];
    const int64_t found = clusters.match(box);
    if (found < 0) {
      counts[clusters.count()] = 1;
      scores[clusters.count()] = score;  // the largest, since they descend
      clusters.add(box, score);
    } else {
      ++counts[found];
      clusters.join(found, box, score);
    }
  }
  const int64_t count = clusters.count();
  for (int64_t i = 0; i < end - begin; ++i) {
    const bool some = i < count;
    counts[i] = some ? counts[i] : 0;
    if (!some) {
      scores[i] = 0;
    } else if (!args.maximum) {
      scores[i] = clusters.score(i) / static_cast<A>(counts[i]);
    }
    for (int k = 0; k < 4; ++k) {
      fused[4 * i + k] = some ? clusters.corner(i, k) : 0;
    }
  }
}

}  // namespace

void fuse_boxes(const FusionArgs<float>& args, int64_t begin, int64_t end, float* scratch) {
  run(args, begin, end, scratch);
}
void fuse_boxes(const FusionArgs<double>& args, int64_t begin, int64_t end, double* scratch) {
  run(args, begin, end, scratch);
}

}  // namespace fastvision::FASTVISION_ISA
