#include "ops/nms.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/sort.h"
#include "common/torch.h"
#ifdef USE_CUDA
#include "common/cuda_stream.h"
#endif

namespace fastvision {
namespace {

template <typename T>
using torch_scalar_t = std::conditional_t<
    std::is_same_v<T, half_t>,
    torch::headeronly::Half,
    std::conditional_t<std::is_same_v<T, bfloat16_t>, torch::headeronly::BFloat16, T>>;

// Memory of one call, not initialised: on the stack as long as little is needed.
class Workspace {
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

// Ascending keys are descending scores, NaN first and -0 equal to 0.
uint64_t score_key(float score) {
  const float x = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? 0 : bits >> 31 ? bits : ~(bits | 1u << 31);
}

uint64_t score_key(double score) {
  const double x = score + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? 0 : bits >> 63 ? bits : ~(bits | 1ull << 63);
}

void run_segment(const NmsSegment<float>& segment) { FASTVISION_CALL(nms_segment_float, segment); }
void run_segment(const NmsSegment<double>& segment) {
  FASTVISION_CALL(nms_segment_double, segment);
}

// One call's boxes, image after image. Within an image they are ordered twice: by score, and by
// class and score (the same where there are no classes). A stretch of one class is a segment.
template <typename scalar_t>
class Suppression {
  using T = accumulate_t<scalar_t>;

 public:
  explicit Suppression(const NmsArgs& args) : args_(args) {
    const int64_t total = args.B * args.N;
    items_ = workspace_.take<SortItem>(2 * total);
    order_ = workspace_.take<int32_t>(total);
    boxes_ = workspace_.take<T>(4 * total);
    kept_ = workspace_.take<uint8_t>(total);
    if (args.idxs != nullptr) {
      ranks_ = workspace_.take<int32_t>(total);
      kept_by_class_ = workspace_.take<uint8_t>(total);
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
        segment_bytes_ += (nms_segment_bytes<T>(segment.n) + 63) / 64 * 64;
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

 private:
  static constexpr int64_t kParallelMin = 2048;  // boxes below which waking threads does not pay

  struct Segment {
    int64_t begin;
    int64_t n;
    int64_t workspace = 0;
  };

  // Fills the image's part of every array and lists its segments; returns how many boxes take part.
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
    const auto* from = static_cast<const torch_scalar_t<scalar_t>*>(args_.boxes) + 4 * first;
    T* to = boxes_ + 4 * first;
    for (int64_t i = 0; i < n; ++i) {
      const auto* box = from + 4 * static_cast<int64_t>(index(i));
      for (int k = 0; k < 4; ++k) {
        to[4 * i + k] = static_cast<T>(box[k]);
      }
    }
  }

  void run_segments() {
    char* workspace = workspace_.take<char>(segment_bytes_);
    uint8_t* kept = args_.idxs == nullptr ? kept_ : kept_by_class_;
    const int64_t count = segments_.size();
    parallel_chunks(count, args_.B * args_.N < kParallelMin ? count : 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Segment& segment = segments_[i];
          run_segment(
              NmsSegment<T>{
                  boxes_ + 4 * segment.begin,
                  kept + segment.begin,
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
  Workspace workspace_;
  SortItem* items_;
  int32_t* order_;                    // [B, N] box of each rank
  int32_t* ranks_ = nullptr;          // [B, N] rank of each box in order of classes
  T* boxes_;                          // [B, N, 4] in order of classes
  uint8_t* kept_;                     // [B, N] by rank
  uint8_t* kept_by_class_ = nullptr;  // [B, N]
  std::vector<int64_t> counts_;       // [B] boxes that take part
  std::vector<Segment> segments_;
  int64_t segment_bytes_ = 0;
};

void check_shapes(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t dim
) {
  check_dim(boxes, dim, "boxes");
  check_dim(scores, dim - 1, "scores");
  STD_TORCH_CHECK(boxes.size(dim - 1) == 4, "boxes must have 4 columns, got ", boxes.size(dim - 1));
  STD_TORCH_CHECK(
      scores.scalar_type() == boxes.scalar_type(), "scores must have the type of boxes"
  );
  if (idxs) {
    check_dim(*idxs, dim - 1, "idxs");
    STD_TORCH_CHECK(idxs->scalar_type() == ScalarType::Long, "idxs must be int64");
  }
  int64_t count = 1;
  for (int64_t i = 0; i < dim - 1; ++i) {
    STD_TORCH_CHECK(scores.size(i) == boxes.size(i), "scores must be as many as boxes");
    STD_TORCH_CHECK(!idxs || idxs->size(i) == boxes.size(i), "idxs must be as many as boxes");
    count *= boxes.size(i);
  }
  STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "boxes must be fewer than 2**31");
}

Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// torch::stable::empty goes through the dispatcher, half the time of a call with few boxes.
Tensor empty_indices(const std::vector<int64_t>& sizes) {
  const int64_t columns = sizes.back();
  const auto strides =
      sizes.size() == 2 ? std::vector<int64_t>{columns, 1} : std::vector<int64_t>{1};
  return empty_strided(
      sizes,
      strides,
      ScalarType::Long,
      sizeof(int64_t),
      torch::stable::Device(torch::headeronly::DeviceType::CPU)
  );
}

// NmsArgs without results; holds what its pointers point to.
struct NmsInputs {
  Tensor boxes, scores;
  std::optional<Tensor> idxs;
  NmsArgs args{};

  NmsInputs(
      const Tensor& boxes_in,
      const Tensor& scores_in,
      const std::optional<Tensor>& idxs_in,
      double iou_threshold
  )
      : boxes(as_contiguous(boxes_in)), scores(as_contiguous(scores_in)) {
    if (idxs_in) {
      idxs = as_contiguous(*idxs_in);
      args.idxs = idxs->const_data_ptr<int64_t>();
    }
    args.boxes = boxes.const_data_ptr();
    args.scores = scores.const_data_ptr();
    args.B = boxes.dim() == 3 ? boxes.size(0) : 1;
    args.N = boxes.size(-2);
    args.iou_threshold = iou_threshold;
  }

  // The threshold is compared in the type of the scores, as torch does it.
  template <typename T>
  void set_score_threshold(std::optional<double> threshold) {
    args.has_score_threshold = threshold.has_value();
    args.score_threshold = static_cast<torch_scalar_t<T>>(threshold.value_or(0));
  }
};

Tensor nms(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold
) {
  check_shapes(boxes, scores, idxs, 2);
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  NmsArgs& args = inputs.args;
  args.max_output = args.N;
  std::optional<Tensor> indices;
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    const Suppression<scalar_t> suppression(args);
    const int64_t count = suppression.kept(0);
    indices = empty_indices({count});
    suppression.write(0, count, indices->mutable_data_ptr<int64_t>());
  });
  return *indices;
}

std::tuple<Tensor, Tensor> nms_padded(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    int64_t max_output
) {
  check_shapes(boxes, scores, idxs, 3);
  STD_TORCH_CHECK(max_output >= 0, "max_output must not be negative, got ", max_output);
  Tensor indices = empty_indices({boxes.size(0), max_output});
  Tensor counts = empty_indices({boxes.size(0)});
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  NmsArgs& args = inputs.args;
  args.max_output = max_output;
  args.indices = indices.mutable_data_ptr<int64_t>();
  args.counts = counts.mutable_data_ptr<int64_t>();
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    inputs.set_score_threshold<scalar_t>(score_threshold);
    const Suppression<scalar_t> suppression(args);
    for (int64_t image = 0; image < args.B; ++image) {
      const int64_t count = suppression.kept(image);
      int64_t* row = args.indices + image * max_output;
      suppression.write(image, count, row);
      std::fill(row + count, row + max_output, -1);
      args.counts[image] = count;
    }
  });
  return {indices, counts};
}

}  // namespace
}  // namespace fastvision

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("nms", FASTVISION_BOX(&fastvision::nms));
  m.impl("nms_padded", FASTVISION_BOX(&fastvision::nms_padded));
}

#ifdef USE_CUDA

namespace fastvision {
namespace {

// NMS of a batch, queued on the current stream; the caller has checked that the shapes fit.
void queue_nms_cuda(
    NmsInputs& inputs,
    std::optional<double> score_threshold,
    const Tensor& indices,  // [B, max_output] or [max_output]
    const Tensor& counts    // [B]
) {
  NmsArgs& args = inputs.args;
  args.max_output = indices.size(-1);
  args.indices = indices.mutable_data_ptr<int64_t>();
  args.counts = counts.mutable_data_ptr<int64_t>();
  const int64_t chunk = nms_chunk(args.B, args.N);
  const cudaStream_t stream = current_cuda_stream(inputs.boxes.get_device_index());
  FASTVISION_DISPATCH_FLOATING(inputs.boxes.scalar_type(), "boxes", [&] {
    inputs.set_score_threshold<scalar_t>(score_threshold);
    const auto bytes = static_cast<int64_t>(nms_workspace_bytes<scalar_t>(args, chunk));
    const Tensor workspace = torch::stable::new_empty(inputs.boxes, {bytes}, ScalarType::Byte);
    launch_nms<scalar_t>(args, chunk, workspace.mutable_data_ptr(), stream);
  });
}

void check_cuda(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t dim
) {
  check_shapes(boxes, scores, idxs, dim);
  STD_TORCH_CHECK(scores.device() == boxes.device(), "scores must be on the device of boxes");
  STD_TORCH_CHECK(!idxs || idxs->device() == boxes.device(), "idxs must be on the device of boxes");
}

std::tuple<Tensor, Tensor> nms_padded_cuda(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    int64_t max_output
) {
  check_cuda(boxes, scores, idxs, 3);
  STD_TORCH_CHECK(max_output >= 0, "max_output must not be negative, got ", max_output);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t B = boxes.size(0);
  Tensor indices = torch::stable::new_empty(boxes, {B, max_output}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, {B}, ScalarType::Long);
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  queue_nms_cuda(inputs, score_threshold, indices, counts);
  return {indices, counts};
}

Tensor nms_cuda(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold
) {
  check_cuda(boxes, scores, idxs, 2);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  Tensor indices = torch::stable::new_empty(boxes, {boxes.size(0)}, ScalarType::Long);
  const Tensor counts = torch::stable::new_empty(boxes, {1}, ScalarType::Long);
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  queue_nms_cuda(inputs, std::nullopt, indices, counts);
  // the size of the result is only known on the device: the one place that waits for it
  const cudaStream_t stream = current_cuda_stream(boxes.get_device_index());
  int64_t count = 0;
  cudaError_t error = cudaMemcpyAsync(
      &count, counts.const_data_ptr(), sizeof count, cudaMemcpyDeviceToHost, stream
  );
  if (error == cudaSuccess) {
    error = cudaStreamSynchronize(stream);
  }
  STD_TORCH_CHECK(error == cudaSuccess, "nms: ", cudaGetErrorString(error));
  return torch::stable::narrow(indices, 0, 0, count);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("nms", FASTVISION_BOX(&nms_cuda));
  m.impl("nms_padded", FASTVISION_BOX(&nms_padded_cuda));
}

}  // namespace fastvision

#endif
