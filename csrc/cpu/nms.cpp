// Greedy NMS of one segment: compares each box, by descending score, with the boxes kept so far.
//
// A box is only compared with kept boxes whose centres are near. IoU > t implies that the
// intersection is wider than t * max(w_i, w_j), and intervals that overlap by o have centres at
// most (w_i + w_j) / 2 - o apart. So for a box of width w the other centre is nearer than both
//   (w + w_max) / 2                              (they overlap at all)
//   w * max(1 - t, (1 / t - 1) / 2)              (t w <= w_other <= w / t)
// and the same holds for heights.
#include "ops/nms.h"

#include "common/round_down.h"
#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T>
struct limits;
template <>
struct limits<float> {
  static constexpr float epsilon = __FLT_EPSILON__;
  static constexpr float smallest = __FLT_MIN__;
  static constexpr float infinity = __builtin_inff();
  static constexpr float safe_area = 0x1p-100f;
};
template <>
struct limits<double> {
  static constexpr double epsilon = __DBL_EPSILON__;
  static constexpr double smallest = __DBL_MIN__;
  static constexpr double infinity = __builtin_inf();
  static constexpr double safe_area = 0x1p-900;
};

template <typename T>
struct Box {
  T x1, y1, x2, y2, area;

  explicit Box(const T* corners)
      : x1(corners[0]),
        y1(corners[1]),
        x2(corners[2]),
        y2(corners[3]),
        area((x2 - x1) * (y2 - y1)) {}

  // With a threshold t >= 0, only boxes of positive and finite area suppress or are suppressed: a
  // non-positive side or an area of 0 gives an intersection of 0, and an infinite or NaN area an
  // IoU of 0 or NaN. With t < 0 every IoU except NaN suppresses, and a NaN area always gives NaN.
  bool takes_part(T threshold) const {
    return threshold >= 0 ? x2 > x1 && y2 > y1 && area > 0 && area < limits<T>::infinity
                          : area == area;
  }
};

template <typename T>
struct Block {
  static constexpr int lanes = lanes_v<T>;
  T x1[lanes], y1[lanes], x2[lanes], y2[lanes], area[lanes];
};

struct Link {
  int32_t next;   // next block of the same cell, or -1
  int32_t count;  // boxes in this block
};

// One axis of the grid: the cell of a centre, and the maximum distance to another centre.
template <typename T>
struct Axis {
  T origin = 0;
  T scale = 0;
  T last = 0;     // number of cells - 1
  T largest = 0;  // largest side of a kept box

  // monotonic in x, so a range of cells contains every centre between its ends; NaN (0 * infinity)
  // becomes 0
  int32_t cell(T x) const {
    T position = (x - origin) * scale;
    position = position > 0 ? position : 0;
    return (int32_t)(position < last ? position : last);
  }

  // Widened by the rounding errors of centres, window and IoU: the other box's coordinates are
  // below 5 * magnitude + 2 * half in either case.
  T half_window(T low, T high, T reach) const {
    const T side = high - low;
    const T overlap = side / 2 + largest / 2;
    const T similar = side * reach;
    const T half = overlap < similar ? overlap : similar;
    const T magnitude = -low > high ? -low : high;
    return half + (half + magnitude) * (32 * limits<T>::epsilon) + limits<T>::smallest;
  }
};

template <typename T>
class KeptBoxes {
  using V = vector_t<T>;
  using Blk = Block<T>;

 public:
  KeptBoxes(const NmsSegment<T>& segment, T threshold) : threshold_(threshold) {
    const int64_t max_blocks = nms_max_blocks(segment.n, Blk::lanes);
    blocks_ = (Blk*)segment.workspace;
    links_ = (Link*)(blocks_ + max_blocks);
    heads_ = (int32_t*)(links_ + max_blocks);
    // behind the heads of the cells
    ranks_ = heads_ + nms_max_cells(segment.n);
    // the IoU's rounding error is below 16 half ulps; for tiny thresholds only the overlap is a
    // bound
    const double relax = 64 * limits<T>::epsilon;
    const double t = threshold * (1 - relax);
    const double nearest = 1 - t > (1 / t - 1) / 2 ? 1 - t : (1 / t - 1) / 2;
    reach_ = t > 1e-3 ? (T)(nearest * (1 + relax)) : limits<T>::infinity;
    if (threshold >= 0) {
      choose_grid(segment);
    }
    const int64_t cells = columns_ * rows_;
    memset(heads_, 0xff, cells * sizeof(int32_t));
  }

  bool suppress(const Box<T>& box) const {
    return search(box, [&](int32_t block) { return hits(blocks_[block], box) != 0; });
  }

  // The lowest rank of the boxes that suppress this one, or -1.
  int32_t first_match(const Box<T>& box) const {
    int32_t first = -1;
    search(box, [&](int32_t block) {
      for (uint32_t left = hits(blocks_[block], box); left != 0; left &= left - 1) {
        const int32_t rank = ranks_[(int64_t)block * Blk::lanes + __builtin_ctz(left)];
        first = first < 0 || rank < first ? rank : first;
      }
      return false;
    });
    return first;
  }

  template <bool matches>
  void insert(const Box<T>& box, int32_t rank) {
    const int64_t cell =
        y_.cell(centre(box.y1, box.y2)) * columns_ + x_.cell(centre(box.x1, box.x2));
    int32_t head = heads_[cell];
    if (head < 0 || links_[head].count == Blk::lanes) {
      memset(&blocks_[used_], 0xff, sizeof(Blk));  // NaN, so empty lanes suppress nothing
      links_[used_] = {head, 0};
      head = heads_[cell] = (int32_t)used_++;
    }
    Blk& block = blocks_[head];
    const int32_t lane = links_[head].count++;
    block.x1[lane] = box.x1;
    block.y1[lane] = box.y1;
    block.x2[lane] = box.x2;
    block.y2[lane] = box.y2;
    block.area[lane] = box.area;
    if (matches) {
      ranks_[(int64_t)head * Blk::lanes + lane] = rank;
    }
    x_.largest = box.x2 - box.x1 > x_.largest ? box.x2 - box.x1 : x_.largest;
    y_.largest = box.y2 - box.y1 > y_.largest ? box.y2 - box.y1 : y_.largest;
  }

 private:
  static T centre(T low, T high) { return low / 2 + high / 2; }  // the sum could overflow

  // Visits the blocks that may suppress a box, some of them twice, until `visit` returns true.
  template <typename Visit>
  bool search(const Box<T>& box, const Visit& visit) const {
    if (columns_ * rows_ == 1) {
      return search_all(visit);
    }
    // the box that suppresses this one is most often in the same cell
    const T cx = centre(box.x1, box.x2), cy = centre(box.y1, box.y2);
    const int32_t column = x_.cell(cx), row = y_.cell(cy);
    if (search_cells(column, column, row, row, visit)) {
      return true;
    }
    const T reach = box.area >= limits<T>::safe_area ? reach_ : limits<T>::infinity;
    const T half_x = x_.half_window(box.x1, box.x2, reach);
    const T half_y = y_.half_window(box.y1, box.y2, reach);
    const int32_t left = x_.cell(cx - half_x), right = x_.cell(cx + half_x);
    const int32_t top = y_.cell(cy - half_y), bottom = y_.cell(cy + half_y);
    if ((int64_t)(right - left + 1) * (bottom - top + 1) >= used_) {
      return search_all(visit);
    }
    return search_cells(left, right, top, bottom, visit);
  }

  // One bit per box of the block that suppresses this one.
  uint32_t hits(const Blk& block, const Box<T>& box) const {
    const V x1 = max(load(block.x1), broadcast(box.x1));
    const V y1 = max(load(block.y1), broadcast(box.y1));
    const V x2 = min(load(block.x2), broadcast(box.x2));
    const V y2 = min(load(block.y2), broadcast(box.y2));
    const V inter = max(x2 - x1, V{}) * max(y2 - y1, V{});
    const V area = load(block.area) + broadcast(box.area) - inter;
    // necessary for a quotient that rounds above the threshold, which saves most divisions
    if (threshold_ > 0 && movemask(inter >= area * broadcast(threshold_)) == 0) {
      return 0;
    }
    return movemask(inter / area > broadcast(threshold_));
  }

  template <typename Visit>
  bool search_all(const Visit& visit) const {
    for (int64_t i = 0; i < used_; ++i) {
      if (visit((int32_t)i)) {
        return true;
      }
    }
    return false;
  }

  template <typename Visit>
  bool search_cells(
      int32_t left, int32_t right, int32_t top, int32_t bottom, const Visit& visit
  ) const {
    for (int64_t row = top; row <= bottom; ++row) {
      const int32_t* heads = heads_ + row * columns_;
      for (int32_t column = left; column <= right; ++column) {
        for (int32_t i = heads[column]; i >= 0; i = links_[i].next) {
          if (visit(i)) {
            return true;
          }
        }
      }
    }
    return false;
  }

  // Extent of the centres and typical side, both from a sample; centres beyond the extent go to the
  // border cells.
  void choose_grid(const NmsSegment<T>& segment) {
    constexpr int kSamples = 64;
    if (segment.n < 4 * kSamples) {
      return;
    }
    T cx[kSamples], cy[kSamples], width[kSamples], height[kSamples];
    int samples = 0;
    for (int64_t i = 0; i < kSamples; ++i) {
      const Box<T> box(segment.boxes + i * (segment.n / kSamples) * 4);
      if (box.takes_part(threshold_)) {
        insert_sorted(cx, samples, centre(box.x1, box.x2));
        insert_sorted(cy, samples, centre(box.y1, box.y2));
        insert_sorted(width, samples, box.x2 - box.x1);
        insert_sorted(height, samples, box.y2 - box.y1);
        ++samples;
      }
    }
    if (samples < kSamples / 4) {
      return;
    }
    // in units of the typical side; cells finer than a third of it were slower
    const double w = width[samples / 2], h = height[samples / 2];
    const double extent_x = extent(cx, samples) / w, extent_y = extent(cy, samples) / h;
    const double cells = (double)nms_max_cells(segment.n);
    const double finest = 3;
    columns_ = (int64_t)clamp(
        __builtin_sqrt(cells * extent_x / extent_y), clamp(extent_x * finest, cells)
    );
    rows_ = (int64_t)clamp(cells / (double)columns_, extent_y * finest);
    x_ = axis(cx, samples, columns_);
    y_ = axis(cy, samples, rows_);
  }

  static double clamp(double x, double high) {
    x = x < high ? x : high;
    return x > 1 ? x : 1;  // also for NaN
  }

  static void insert_sorted(T* values, int count, T value) {
    for (; count > 0 && values[count - 1] > value; --count) {
      values[count] = values[count - 1];
    }
    values[count] = value;
  }

  static double extent(const T* sorted, int count) {
    return ((double)sorted[count - 2] - (double)sorted[1]) * 1.25;
  }

  static Axis<T> axis(const T* sorted, int samples, int64_t cells) {
    const double length = extent(sorted, samples);
    Axis<T> result;
    result.origin = (T)((double)sorted[1] - length / 10);
    result.scale = (T)((double)cells / length);
    result.last = (T)(cells - 1);
    return result;
  }

  T threshold_;
  T reach_;
  Axis<T> x_, y_;
  int64_t columns_ = 1;
  int64_t rows_ = 1;
  Blk* blocks_;
  Link* links_;
  int32_t* heads_;
  int32_t* ranks_;  // of the boxes in the blocks; only to find matches
  int64_t used_ = 0;
};

template <typename T, bool matches>
void run(const NmsSegment<T>& segment) {
  // an IoU never exceeds 1, and comparisons with NaN are false
  if (!(segment.iou_threshold < 1)) {
    for (int64_t i = 0; i < segment.n; ++i) {
      segment.kept[i] = i < segment.max_output;
      if (matches) {
        segment.match[i] = (int32_t)i;
      }
    }
    return;
  }
  const T threshold = round_down(segment.iou_threshold, T{});
  KeptBoxes<T> boxes(segment, threshold);
  int64_t kept = 0;
  int64_t i = 0;
  for (; i < segment.n && kept < segment.max_output; ++i) {
    const Box<T> box(segment.boxes + 4 * i);
    const bool takes_part = box.takes_part(threshold);
    bool dropped;
    if (matches) {
      const int32_t first = takes_part ? boxes.first_match(box) : -1;
      dropped = first >= 0;
      segment.match[i] = dropped ? first : (int32_t)i;
    } else {
      dropped = takes_part && boxes.suppress(box);
    }
    segment.kept[i] = !dropped;
    kept += !dropped;
    if (takes_part && !dropped) {
      boxes.template insert<matches>(box, (int32_t)i);
    }
  }
  memset(segment.kept + i, 0, segment.n - i);
}

}  // namespace

void nms_segment_float(const NmsSegment<float>& segment) {
  segment.match == nullptr ? run<float, false>(segment) : run<float, true>(segment);
}
void nms_segment_double(const NmsSegment<double>& segment) {
  segment.match == nullptr ? run<double, false>(segment) : run<double, true>(segment);
}

}  // namespace fastvision::FASTVISION_ISA
