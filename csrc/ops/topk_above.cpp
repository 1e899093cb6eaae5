// The op: the largest values along an axis. A search keeps twice the candidates that are wanted;
// when there are as many, the better half remains, and the worst of it is the new bound.
#include "ops/topk_above.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "common/divide.h"
#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kLeastPiece = 1 << 14;    // values of a column that are worth a task
constexpr int64_t kSerialValues = 1 << 15;  // below, waking threads does not pay

float not_a_number(float) { return std::numeric_limits<float>::quiet_NaN(); }
double not_a_number(double) { return std::numeric_limits<double>::quiet_NaN(); }
half_t not_a_number(half_t) { return {0x7e00}; }
bfloat16_t not_a_number(bfloat16_t) { return {0x7fc0}; }

template <typename T>
class Topk {
 public:
  Topk(const Tensor& input, int64_t k, double least)
      : k_(k),
        images_(input.size(0)),
        rows_(input.size(1)),
        columns_(input.size(2)),
        image_step_(input.stride(0)),
        row_step_(input.stride(1)),
        input_(static_cast<const T*>(input.const_data_ptr())) {
    // -infinity is no candidate
    least_ = std::max(static_cast<value_t>(least), std::numeric_limits<value_t>::lowest());
    const int64_t tasks = 2 * torch::stable::get_num_threads();
    const int64_t wanted = columns_ == 1 ? ceil_div(tasks, images_) : 1;
    pieces_ = std::max<int64_t>(std::min(wanted, rows_ / kLeastPiece), 1);
    piece_ = ceil_div(rows_, pieces_);
    capacity_ = std::min(k_ + std::max(k_, 4 * kTopkBlock), piece_ + kTopkBlock);
    const int64_t lists = images_ * columns_ * pieces_;
    found_.reset(new Found[lists * capacity_]);
    counts_.reset(new int64_t[lists]);
  }

  void run(T* values, int64_t* indices) {
    const int64_t blocks = ceil_div(columns_, kTopkColumns);
    const int64_t searches = images_ * blocks * pieces_;
    const bool is_small = images_ * rows_ * columns_ < kSerialValues;
    parallel_chunks(searches, is_small ? searches : 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          search(i / (blocks * pieces_), i / pieces_ % blocks, i % pieces_);
        }
      };
    });
    const int64_t lists = images_ * columns_;
    parallel_chunks(lists, is_small ? lists : std::min<int64_t>(lists, 4), [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          finish(i, values + i * k_, indices + i * k_);
        }
      };
    });
  }

 private:
  using value_t = accumulate_t<T>;
  using Found = candidate_t<T>;

  void search(int64_t image, int64_t block, int64_t piece) {
    const int64_t column = block * kTopkColumns;
    TopkArgs<T> args{};
    args.input = input_ + image * image_step_ + column;
    args.step = row_step_;
    args.columns = static_cast<int>(std::min<int64_t>(kTopkColumns, columns_ - column));
    std::fill_n(args.bounds, kTopkColumns, least_);
    // a column's pieces follow one another; there are several only of a single column
    const int64_t list = (image * columns_ + column) * pieces_ + piece;
    args.found = found_.get() + list * capacity_;
    args.capacity = capacity_;
    const int64_t end = std::min(rows_, (piece + 1) * piece_);
    for (int64_t row = piece * piece_; row < end;) {
      row = FASTVISION_CALL(topk_above, args, row, end);
      for (int i = 0; row < end && i < args.columns; ++i) {
        if (args.counts[i] + kTopkBlock > capacity_) {
          Found* candidates = args.found + i * capacity_;
          shrink(candidates, args.counts[i]);
          args.counts[i] = k_;
          // rows that follow are behind those of the same value
          const value_t worst = value_of_candidate<value_t>(candidates[k_ - 1]), above = HUGE_VAL;
          args.bounds[i] = worst < above ? std::nextafter(worst, above) : not_a_number(worst);
        }
      }
    }
    std::copy_n(args.counts, args.columns, counts_.get() + list);
  }

  // The k best come first, with the worst of them at their end.
  void shrink(Found* candidates, int64_t count) const {
    std::nth_element(candidates, candidates + k_ - 1, candidates + count, std::greater<Found>());
  }

  void finish(int64_t list, T* values, int64_t* indices) const {
    Found* candidates = found_.get() + list * pieces_ * capacity_;
    const int64_t* counts = counts_.get() + list * pieces_;
    int64_t count = counts[0];
    for (int64_t piece = 1; piece < pieces_; ++piece) {
      std::copy_n(candidates + piece * capacity_, counts[piece], candidates + count);
      count += counts[piece];
    }
    if (count > k_) {
      shrink(candidates, count);
      count = k_;
    }
    std::sort(candidates, candidates + count, std::greater<Found>());
    const T* column = input_ + list / columns_ * image_step_ + list % columns_;
    for (int64_t i = 0; i < count; ++i) {
      indices[i] = row_of<value_t>(candidates[i]);
      values[i] = column[indices[i] * row_step_];
    }
    std::fill_n(values + count, k_ - count, not_a_number(T{}));
    std::fill_n(indices + count, k_ - count, 0);
  }

  int64_t k_, images_, rows_, columns_, image_step_, row_step_;
  const T* input_;
  value_t least_;
  int64_t pieces_, piece_, capacity_;
  std::unique_ptr<Found[]> found_;  // [images, columns, pieces, capacity]
  std::unique_ptr<int64_t[]> counts_;
};

std::tuple<Tensor, Tensor> topk_above(const Tensor& input, int64_t k, double least) {
  check_dim(input, 3, "input");
  STD_TORCH_CHECK(k >= 0, "k must not be negative, got ", k);
  const int64_t N = input.size(0), M = input.size(1), C = input.size(2);
  STD_TORCH_CHECK(
      M <= std::numeric_limits<int32_t>::max(), "input must have fewer than 2**31 rows, got ", M
  );
  const bool dense_rows = C == 1 || input.stride(2) == 1;
  const Tensor dense = dense_rows ? input : torch::stable::contiguous(input);
  k = std::min(k, M);
  const std::vector<int64_t> sizes = {N, C, k}, strides = {C * k, k, 1};
  Tensor values = empty_result(input, sizes, strides);
  Tensor indices = empty_strided(sizes, strides, ScalarType::Long, sizeof(int64_t), input.device());
  if (N * C * k > 0) {
    FASTVISION_DISPATCH_FLOATING(input.scalar_type(), "input", [&] {
      Topk<scalar_t> topk(dense, k, least);
      topk.run(
          static_cast<scalar_t*>(values.mutable_data_ptr()),
          static_cast<int64_t*>(indices.mutable_data_ptr())
      );
    });
  }
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) { m.impl("topk_above", FASTVISION_BOX(&topk_above)); }

}  // namespace fastvision
