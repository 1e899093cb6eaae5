// The smallest box around the nonzero values of a mask. Its first and last row are searched from
// outside; the rows between can only widen it, so they are read outside of what is known.
#include "ops/masks_to_boxes.h"

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Tells zero from other values of `bytes` bytes: `bits` are those of a value that count.
struct Zero {
  int64_t bytes;
  uint64_t bits;  // of as many values as 8 bytes hold

  explicit Zero(const MaskArgs& args) : bytes(args.bytes), bits(~uint64_t(0)) {
    if (args.is_signed_zero) {
      bits = args.bytes == 2   ? 0x7fff7fff7fff7fff
             : args.bytes == 4 ? 0x7fffffff7fffffff
                               : 0x7fffffffffffffff;
    }
  }
};

inline bool any(uint64_v v) { return movemask((int64_v)(v != 0)) != 0; }

inline uint64_v load_bits(const uint8_t* p, const Zero& zero) {
  uint64_v v;
  memcpy(&v, p, sizeof v);
  return v & zero.bits;
}

inline bool any_at(const uint8_t* p, const Zero& zero) { return any(load_bits(p, zero)); }

inline bool any_of_four(const uint8_t* p, const Zero& zero) {
  return any(
      load_bits(p, zero) | load_bits(p + kVectorBytes, zero) |
      load_bits(p + 2 * kVectorBytes, zero) | load_bits(p + 3 * kVectorBytes, zero)
  );
}

inline bool any_of_word(const uint8_t* p, const Zero& zero) {
  uint64_t word;
  memcpy(&word, p, sizeof word);
  return (word & zero.bits) != 0;
}

inline bool is_nonzero(const uint8_t* p, const Zero& zero) {
  if (zero.bytes == 1) {
    return *p != 0;
  }
  uint64_t value = 0;
  memcpy(&value, p, zero.bytes);
  return (value & zero.bits) != 0;
}

constexpr int64_t kFour = 4 * kVectorBytes;
constexpr int64_t kWord = 8;

// Offset in bytes of the first nonzero value in [begin, end), or end.
inline int64_t first_nonzero(const uint8_t* row, int64_t begin, int64_t end, const Zero& zero) {
  int64_t i = begin;
  while (i + kFour <= end && !any_of_four(row + i, zero)) {
    i += kFour;
  }
  while (i + kVectorBytes <= end && !any_at(row + i, zero)) {
    i += kVectorBytes;
  }
  if (i + kVectorBytes > end && end - begin >= kVectorBytes) {
    // a vector that ends where the values do is quicker than what is left one by one
    if (!any_at(row + end - kVectorBytes, zero)) {
      return end;
    }
  }
  while (i + kWord <= end && !any_of_word(row + i, zero)) {
    i += kWord;
  }
  while (i < end && !is_nonzero(row + i, zero)) {
    i += zero.bytes;
  }
  return i;
}

// Offset of the last nonzero value in [begin, end), or -1.
inline int64_t last_nonzero(const uint8_t* row, int64_t begin, int64_t end, const Zero& zero) {
  int64_t i = end;
  while (i - kFour >= begin && !any_of_four(row + i - kFour, zero)) {
    i -= kFour;
  }
  while (i - kVectorBytes >= begin && !any_at(row + i - kVectorBytes, zero)) {
    i -= kVectorBytes;
  }
  if (i - kVectorBytes < begin && end - begin >= kVectorBytes) {
    if (!any_at(row + begin, zero)) {
      return -1;
    }
  }
  while (i - kWord >= begin && !any_of_word(row + i - kWord, zero)) {
    i -= kWord;
  }
  for (i -= zero.bytes; i >= begin; i -= zero.bytes) {
    if (is_nonzero(row + i, zero)) {
      return i;
    }
  }
  return -1;
}

// Rows of a mask from `begin` to `end`, and the columns of what is found in one, in bytes.
struct Found {
  int64_t row, first, last;
};

// The first row with a nonzero value; row = end if there is none.
inline Found first_row(
    const uint8_t* mask, int64_t begin, int64_t end, int64_t width, int64_t step, const Zero& zero
) {
  int64_t row = begin, first = width;
  if (step == width) {  // no gaps: one search
    const int64_t at = first_nonzero(mask, begin * width, end * width, zero);
    row = at / width;
    first = at % width;
  } else {
    while (row < end && (first = first_nonzero(mask + row * step, 0, width, zero)) == width) {
      ++row;
    }
  }
  return {row, first, row < end ? last_nonzero(mask + row * step, first, width, zero) : -1};
}

// The last row with a nonzero value; row = begin - 1 if there is none.
inline Found last_row(
    const uint8_t* mask, int64_t begin, int64_t end, int64_t width, int64_t step, const Zero& zero
) {
  int64_t row = end - 1, last = -1;
  if (step == width) {
    const int64_t at = last_nonzero(mask, begin * width, end * width, zero);
    row = at < 0 ? begin - 1 : at / width;
    last = at % width;
  } else {
    while (row >= begin && (last = last_nonzero(mask + row * step, 0, width, zero)) < 0) {
      --row;
    }
  }
  return {row, row >= begin ? first_nonzero(mask + row * step, 0, width, zero) : width, last};
}

}  // namespace

void masks_to_boxes(const MaskArgs& args, int64_t begin, int64_t end) {
  const Zero zero(args);
  const int64_t width = args.W * args.bytes, step = args.row_step;
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* mask = args.masks + n * args.mask_step;
    float* box = args.boxes + 4 * n;
    const Found top = first_row(mask, 0, args.H, width, step, zero);
    if (top.row == args.H) {
      box[0] = box[1] = box[2] = box[3] = 0;
      continue;
    }
    int64_t first = top.first, last = top.last;
    const Found bottom = last_row(mask, top.row + 1, args.H, width, step, zero);
    if (bottom.row > top.row) {
      first = bottom.first < first ? bottom.first : first;
      last = bottom.last > last ? bottom.last : last;
    }
    for (int64_t y = top.row + 1; y < bottom.row; ++y) {
      const uint8_t* row = mask + y * step;
      first = first_nonzero(row, 0, first, zero);
      const int64_t from_right = last_nonzero(row, last + args.bytes, width, zero);
      last = from_right > last ? from_right : last;
    }
    box[0] = static_cast<float>(first / args.bytes);
    box[1] = static_cast<float>(top.row);
    box[2] = static_cast<float>(last / args.bytes);
    box[3] = static_cast<float>(bottom.row);
  }
}

}  // namespace fastvision::FASTVISION_ISA
