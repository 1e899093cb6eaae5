// NMS of a batch on the CPU: sorts each image's boxes and runs the kernels on their segments.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/sort.h"
#include "ops/nms_inputs.h"

namespace fastvision {

// Uninitialised memory of one call: on the stack if it is small.
class CallMemory {
 public:
  template <typename T>
  T* take(int64_t count) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > left_) {
      heap_.emplace_back(new char[bytes + kAlignment]);
      const auto address = reinterpret_cast<uintptr_t>(heap_.back().get());
      return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
    }
    left_ -= bytes;
    return reinterpret_cast<T*>(stack_ + left_);
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kStackBytes = 1 << 14;
  alignas(kAlignment) char stack_[kStackBytes];
  size_t left_ = kStackBytes;
  std::vector<std::unique_ptr<char[]>> heap_;
};

// Keys ascend as scores descend: NaN first, -0 equal to +0.
inline uint64_t score_key(float score) {
  const float x = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? 0 : bits >> 31 ? bits : ~(bits | 1u << 31);
}

inline uint64_t score_key(double score) {
  const double x = score + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? 0 : bits >> 63 ? bits : ~(bits | 1ull << 63);
}

// Boxes as corners (x1, y1, x2, y2). Other kinds of boxes have the same members.
struct UprightBoxes {
  static constexpr int columns = 4;

  template <typename T>
  static int64_t bytes(int64_t n, bool matches) {
    return nms_segment_bytes<T>(n, matches);
  }
  static void run(const NmsSegment<float>& segment) { FASTVISION_CALL(nms_segment_float, segment); }
  static void run(const NmsSegment<double>& segment) {
    FASTVISION_CALL(nms_segment_double, segment);
  }
};

// The boxes of one call, image by image. Within an image they are ordered twice: by score, and by
// class and score (the same without classes). A run of one class is a segment.
template <typename scalar_t, typename Boxes = UprightBoxes>
class Suppression {
  using T = accumulate_t<scalar_t>;

 public:
  // matches: whether write_match() will be called, for corners of a single image
  explicit Suppression(const NmsArgs& args, bool matches = false) : args_(args) {
    const int64_t total = args.B * args.N;
    items_ = memory_.take<SortItem>(2 * total);
    order_ = memory_.take<int32_t>(total);
    boxes_ = memory_.take<T>(kColumns * total);
    kept_ = memory_.take<uint8_t>(total);
    match_ = matches ? memory_.take<int32_t>(total) : nullptr;
    if (args.idxs != nullptr) {
      ranks_ = memory_.take<int32_t>(total);
      kept_by_class_ = memory_.take<uint8_t>(total);
    }
    counts_.resize(args.B);
    std::vector<std::vector<Segment>> segments(args.B);
    parallel_chunks(args.B, total < kParallelMin ? args.B : 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) {
          counts_[image] = order_image(image, segments[image]);
        }
      };
    });
    for (const std::vector<Segment>& of_image : segments) {
      for (const Segment& segment : of_image) {
        segments_.push_back({segment.begin, segment.n, segment_bytes_});
        segment_bytes_ += (Boxes::template bytes<T>(segment.n, matches) + 63) / 64 * 64;
      }
    }
    run_segments();
  }

  int64_t kept(int64_t image) const {
    const uint8_t* kept = kept_ + image * args_.N;
    int64_t count = 0;
    for (int64_t i = 0; i < counts_[image]; ++i) {
      count += kept[i];
    }
    return std::min(count, args_.max_output);
  }

  void write(int64_t image, int64_t count, int64_t* indices) const {
    const uint8_t* kept = kept_ + image * args_.N;
    const int32_t* order = order_ + image * args_.N;
    for (int64_t i = 0, written = 0; written < count; ++i) {
      if (kept[i]) {
        indices[written++] = order[i];
      }
    }
  }

  // The box that each box of the only image was matched with.
  void write_match(int64_t* match) const {
    for (const Segment& segment : segments_) {
      for (int64_t i = 0; i < segment.n; ++i) {
        match[index(segment.begin + i)] = index(segment.begin + match_[segment.begin + i]);
      }
    }
  }

 private:
  static constexpr int kColumns = Boxes::columns;
  static constexpr int64_t kParallelMin = 2048;  // boxes below which waking threads does not pay

  struct Segment {
    int64_t begin;
    int64_t n;
    int64_t workspace = 0;
  };

  // The box at a place in the order of classes.
  int32_t index(int64_t position) const {
    return order_[ranks_ == nullptr ? position : ranks_[position]];
  }

  // Fills an image's part of the arrays and lists its segments; returns the number of boxes above
  // the score threshold.
  int64_t order_image(int64_t image, std::vector<Segment>& segments) {
    const int64_t first = image * args_.N;
    const auto* scores = static_cast<const torch_scalar_t<scalar_t>*>(args_.scores) + first;
    SortItem* items = items_ + 2 * first;
    SortItem* scratch = items + args_.N;
    int64_t n = 0;
    for (int64_t i = 0; i < args_.N; ++i) {
      const T score = static_cast<T>(scores[i]);
      if (!args_.has_score_threshold || score > args_.score_threshold) {
        items[n++] = {score_key(score), static_cast<int32_t>(i)};
      }
    }
    SortItem* sorted = stable_sort(items, scratch, n);
    int32_t* order = order_ + first;
    for (int64_t i = 0; i < n; ++i) {
      order[i] = sorted[i].index;
    }
    if (args_.idxs == nullptr) {
      gather_boxes(image, n, [&](int64_t i) { return order[i]; });
      segments.push_back({first, n});
      return n;
    }
    const int64_t* idxs = args_.idxs + first;
    for (int64_t i = 0; i < n; ++i) {
      items[i] = {static_cast<uint64_t>(idxs[order[i]]), static_cast<int32_t>(i)};
    }
    sorted = stable_sort(items, scratch, n);
    int32_t* ranks = ranks_ + first;
    for (int64_t i = 0, begin = 0; i < n; ++i) {
      ranks[i] = sorted[i].index;
      if (i + 1 == n || sorted[i + 1].key != sorted[i].key) {
        segments.push_back({first + begin, i + 1 - begin});
        begin = i + 1;
      }
    }
    gather_boxes(image, n, [&](int64_t i) { return order[ranks[i]]; });
    return n;
  }

  template <typename Index>
  void gather_boxes(int64_t image, int64_t n, const Index& index) {
    const int64_t first = image * args_.N;
    const auto* from = static_cast<const torch_scalar_t<scalar_t>*>(args_.boxes) + kColumns * first;
    T* to = boxes_ + kColumns * first;
    for (int64_t i = 0; i < n; ++i) {
      const auto* box = from + kColumns * static_cast<int64_t>(index(i));
      for (int k = 0; k < kColumns; ++k) {
        to[kColumns * i + k] = static_cast<T>(box[k]);
      }
    }
  }

  void run_segments() {
    char* workspace = memory_.take<char>(segment_bytes_);
    uint8_t* kept = args_.idxs == nullptr ? kept_ : kept_by_class_;
    const int64_t count = segments_.size();
    parallel_chunks(count, args_.B * args_.N < kParallelMin ? count : 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Segment& segment = segments_[i];
          Boxes::run(
              NmsSegment<T>{
                  boxes_ + kColumns * segment.begin,
                  kept + segment.begin,
                  match_ == nullptr ? nullptr : match_ + segment.begin,
                  workspace + segment.workspace,
                  segment.n,
                  args_.max_output,
                  args_.iou_threshold,
              }
          );
        }
      };
    });
    if (args_.idxs != nullptr) {
      for (int64_t image = 0; image < args_.B; ++image) {
        const int64_t first = image * args_.N;
        for (int64_t i = first; i < first + counts_[image]; ++i) {
          kept_[first + ranks_[i]] = kept_by_class_[i];
        }
      }
    }
  }

  const NmsArgs& args_;
  CallMemory memory_;
  SortItem* items_;
  int32_t* order_;                    // [B, N] box of each rank
  int32_t* ranks_ = nullptr;          // [B, N] rank of each box in order of classes
  T* boxes_;                          // [B, N, columns] in order of classes
  uint8_t* kept_;                     // [B, N] by rank
  int32_t* match_;                    // [B, N] in order of classes, within a segment; or null
  uint8_t* kept_by_class_ = nullptr;  // [B, N]
  std::vector<int64_t> counts_;       // [B] boxes that take part
  std::vector<Segment> segments_;
  int64_t segment_bytes_ = 0;
};

// Indices of one image's kept boxes.
template <typename Boxes>
Tensor kept_indices(
    NmsInputs& inputs,
    std::optional<double> score_threshold = std::nullopt,
    std::optional<int64_t> max_output = std::nullopt
) {
  NmsArgs& args = inputs.args;
  args.max_output = most_kept(args, max_output);
  std::optional<Tensor> indices;
  FASTVISION_DISPATCH_FLOATING(inputs.boxes.scalar_type(), "boxes", [&] {
    inputs.set_score_threshold<scalar_t>(score_threshold);
    const Suppression<scalar_t, Boxes> suppression(args);
    const int64_t count = suppression.kept(0);
    indices = empty_indices({count});
    suppression.write(0, count, indices->mutable_data_ptr<int64_t>());
  });
  return *indices;
}

}  // namespace fastvision
