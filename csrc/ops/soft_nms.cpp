#include "ops/soft_nms.h"

#include <algorithm>

#include "ops/class_order.h"

namespace fastvision {
namespace {

void run_class(const SoftNmsSegment<float>& segment) { FASTVISION_CALL(soft_nms_float, segment); }
void run_class(const SoftNmsSegment<double>& segment) { FASTVISION_CALL(soft_nms_double, segment); }

struct Options {
  double iou_threshold;
  bool gaussian;
  double sigma;
  double min_score;
};

// The boxes of a call by class, and by index within a class.
template <typename scalar_t>
class Decay {
  using T = accumulate_t<scalar_t>;

 public:
  Decay(const NmsArgs& args, const Options& options) : N_(args.N) {
    items_ = memory_.take<SortItem>(2 * N_);
    boxes_ = memory_.take<T>(4 * N_);
    scores_ = memory_.take<T>(N_);
    decayed_ = memory_.take<T>(N_);
    kept_ = memory_.take<uint8_t>(N_);
    sorted_ = order_by_class<scalar_t>(args, items_, false);
    gather(args);
    const std::vector<int64_t> begins = class_begins(sorted_, N_);
    const int64_t classes = static_cast<int64_t>(begins.size()) - 1;
    parallel_chunks(classes, N_ < kParallelMin ? std::max<int64_t>(classes, 1) : 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          decay_class(begins[i], begins[i + 1], options);
        }
      };
    });
    rank();
  }

  int64_t kept() const { return count_; }

  void write(int64_t* indices, void* scores) const {
    auto* out = static_cast<torch_scalar_t<scalar_t>*>(scores);
    for (int64_t i = 0; i < count_; ++i) {
      indices[i] = ranked_[i].index;
      out[i] = static_cast<torch_scalar_t<scalar_t>>(decayed_[ranked_[i].index]);
    }
  }

 private:
  static constexpr int64_t kParallelMin = 1024;  // boxes below which waking threads does not pay

  void gather(const NmsArgs& args) {
    const auto* boxes = static_cast<const torch_scalar_t<scalar_t>*>(args.boxes);
    const auto* scores = static_cast<const torch_scalar_t<scalar_t>*>(args.scores);
    for (int64_t i = 0; i < N_; ++i) {
      const auto from = static_cast<int64_t>(sorted_[i].index);
      for (int k = 0; k < 4; ++k) {
        boxes_[4 * i + k] = static_cast<T>(boxes[4 * from + k]);
      }
      scores_[i] = static_cast<T>(scores[from]) + T(0);  // -0 becomes 0
    }
  }

  void decay_class(int64_t begin, int64_t end, const Options& options) {
    CallMemory memory;
    const int64_t n = end - begin;
    const double exponent = -1 / options.sigma;
    SoftNmsSegment<T> segment{};
    segment.boxes = boxes_ + 4 * begin;
    segment.scores = scores_ + begin;
    segment.kept = kept_ + begin;
    segment.workspace = memory.take<char>(soft_nms_bytes<T>(n));
    segment.n = n;
    segment.gaussian = options.gaussian;
    segment.iou_threshold = options.iou_threshold;
    // finite, since an IoU whose square underflows must not give NaN
    segment.exponent = static_cast<T>(std::max<double>(exponent, std::numeric_limits<T>::lowest()));
    segment.min_score = static_cast<T>(options.min_score);
    run_class(segment);
  }

  // Sorts the kept boxes of all classes by decayed score, equal ones by index.
  void rank() {
    constexpr T kLeft = -1;
    for (int64_t i = 0; i < N_; ++i) {
      decayed_[sorted_[i].index] = kept_[i] ? scores_[i] : kLeft;
    }
    for (int64_t i = 0; i < N_; ++i) {
      if (decayed_[i] != kLeft) {
        items_[count_++] = {score_key(decayed_[i]), static_cast<int32_t>(i)};
      }
    }
    ranked_ = stable_sort(items_, items_ + N_, count_);
  }

  const int64_t N_;
  CallMemory memory_;
  SortItem* items_;
  SortItem* sorted_;        // [N] by class
  const SortItem* ranked_;  // [count] kept boxes
  T* boxes_;                // [N, 4] by class
  T* scores_;               // [N] by class
  T* decayed_;              // [N] by index
  uint8_t* kept_;           // [N] by class
  int64_t count_ = 0;
};

std::tuple<Tensor, Tensor> soft_nms(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    bool gaussian,
    double sigma,
    double min_score
) {
  check_shapes(boxes, scores, idxs, 2);
  STD_TORCH_CHECK(sigma > 0, "sigma must be above 0, got ", sigma);
  STD_TORCH_CHECK(min_score >= 0, "min_score must not be negative, got ", min_score);
  const NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  std::optional<Tensor> indices, decayed;
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    const Decay<scalar_t> decay(inputs.args, {iou_threshold, gaussian, sigma, min_score});
    indices = empty_indices({decay.kept()});
    decayed = empty_result(boxes, {decay.kept()}, {1});
    decay.write(indices->mutable_data_ptr<int64_t>(), decayed->mutable_data_ptr());
  });
  return {*indices, *decayed};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) { m.impl("soft_nms", FASTVISION_BOX(&soft_nms)); }

}  // namespace fastvision
