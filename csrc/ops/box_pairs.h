// What ops on every pair of two sets of boxes share: batches, results, and how pairs are divided
// among threads.
#pragma once

#include <algorithm>
#include <vector>

#include "common/divide.h"
#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/torch.h"

namespace fastvision {

// Boxes [N, size] and [M, size], or [B, N, size] and [B, M, size] where either B may be 1.
struct BoxPairs {
  Tensor boxes1, boxes2;
  int64_t size, B = 1, N, M;
  bool batched;

  BoxPairs(const Tensor& b1, const Tensor& b2, int64_t size)
      : boxes1(torch::stable::contiguous(b1)), boxes2(torch::stable::contiguous(b2)), size(size) {
    const int64_t dims = b1.dim();
    STD_TORCH_CHECK(
        (dims == 2 || dims == 3) && b2.dim() == dims && b1.size(dims - 1) == size &&
            b2.size(dims - 1) == size,
        "boxes1 and boxes2 must have shapes [N, ",
        size,
        "] and [M, ",
        size,
        "], or [B, N, ",
        size,
        "] and [B, M, ",
        size,
        "]"
    );
    STD_TORCH_CHECK(
        b1.scalar_type() == b2.scalar_type(), "boxes1 and boxes2 must have the same dtype"
    );
    batched = dims == 3;
    N = b1.size(dims - 2);
    M = b2.size(dims - 2);
    if (batched) {
      const int64_t first = b1.size(0), second = b2.size(0);
      STD_TORCH_CHECK(
          first == second || first == 1 || second == 1, "boxes1 and boxes2 must have equal batches"
      );
      B = first == 1 ? second : first;
    }
  }

  // of an image's boxes in memory, in boxes
  int64_t first1(int64_t image) const { return batched && boxes1.size(0) > 1 ? image * N : 0; }
  int64_t first2(int64_t image) const { return batched && boxes2.size(0) > 1 ? image * M : 0; }

  // [N, M] or [B, N, M], in float or double
  Tensor empty_overlaps(bool wide) const { return empty({N, M}, wide); }
  // [count, size] or [B, count, size]
  Tensor empty_gradient(int64_t count, bool wide) const { return empty({count, size}, wide); }

  void check_gradient(const Tensor& grad, bool wide) const {
    const int64_t dims = batched ? 3 : 2;
    STD_TORCH_CHECK(
        grad.dim() == dims &&
            grad.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float) &&
            grad.size(dims - 2) == N && grad.size(dims - 1) == M && (!batched || grad.size(0) == B),
        "grad must have the shape and dtype of the overlaps"
    );
  }

 private:
  Tensor empty(std::vector<int64_t> shape, bool wide) const {
    std::vector<int64_t> strides{shape[1], 1};
    if (batched) {
      strides.insert(strides.begin(), shape[0] * shape[1]);
      shape.insert(shape.begin(), B);
    }
    return empty_strided(
        shape, strides, wide ? ScalarType::Double : ScalarType::Float, wide ? 8 : 4, boxes1.device()
    );
  }
};

// Calls work(image, tile) for the tiles of all images, on as many threads as are worth it. The
// sizes are those of a tile.
template <typename Tile, typename Work>
void for_tiles(
    const BoxPairs& pairs, int64_t rows, int64_t columns, int64_t serial_pairs, const Work& work
) {
  const int64_t by_rows = ceil_div(pairs.N, rows), by_columns = ceil_div(pairs.M, columns);
  const int64_t of_tile = std::min(pairs.N, rows) * std::min(pairs.M, columns);
  if (of_tile == 0) {
    return;
  }
  const int64_t chunk = std::max<int64_t>(serial_pairs / of_tile, 1);
  parallel_chunks(pairs.B * by_rows * by_columns, chunk, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / by_columns % by_rows * rows, column = i % by_columns * columns;
        work(
            i / (by_rows * by_columns),
            Tile{row, std::min(row + rows, pairs.N), column, std::min(column + columns, pairs.M)}
        );
      }
    };
  });
}

// Parts of the rows and of the columns of a deterministic sum over both: the same for any number of
// threads, and few, since there is a partial sum per box and part.
struct PairParts {
  int64_t rows, columns;

  explicit PairParts(const BoxPairs& pairs)
      : rows(std::clamp<int64_t>(pairs.N / kLeast, 1, kMost)),
        columns(std::clamp<int64_t>(pairs.M / kLeast, 1, kMost)) {}

  // Calls work(image, part of the rows, part of the columns, tile).
  template <typename Tile, typename Work>
  void run(const BoxPairs& pairs, int64_t serial_pairs, const Work& work) const {
    const int64_t of_tile = std::max<int64_t>(pairs.N * pairs.M / (rows * columns), 1);
    const int64_t chunk = std::max<int64_t>(serial_pairs / of_tile, 1);
    parallel_chunks(pairs.B * rows * columns, chunk, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / columns % rows, column = i % columns;
          work(
              i / (rows * columns),
              row,
              column,
              Tile{
                  pairs.N * row / rows,
                  pairs.N * (row + 1) / rows,
                  pairs.M * column / columns,
                  pairs.M * (column + 1) / columns
              }
          );
        }
      };
    });
  }

 private:
  static constexpr int64_t kMost = 8;
  static constexpr int64_t kLeast = 64;  // boxes of a part
};

}  // namespace fastvision
