// Greedy NMS as the lexicographically first maximal independent set: instead of going through the
// boxes one by one, every box waits for the first earlier box that could drop it, and all boxes
// that wait for nothing are decided at once. Real detections need a handful of such rounds.
//
// 1. Two stable sorts: by image and score (a box's place there is its rank), then by image and
//    class. A stretch of one class in one image is a segment; boxes that take no part are in none.
// 2. Each segment is cut into chunks, and step s handles chunk s of all segments:
//    a. cover_kernel, on the whole device: drops the chunk's boxes that a box kept in an earlier
//       chunk covers, and finds which boxes of the chunk cover which (a bit each).
//    b. decide_kernel, a block per segment: the rounds, on these bits.
// 3. compact_kernel: the kept boxes' indices in order of rank.
//
// Launches depend on B and N only. Steps that no segment is long enough for end at once.
#include <cub/device/device_radix_sort.cuh>

#include <cmath>
#include <limits>

#include "common/cuda.cuh"
#include "ops/nms.h"

namespace fastvision {
namespace {

constexpr int kTile = 64;  // boxes per word of the cover bits
constexpr int kMaxChunk = 4096;
constexpr int kMaxWords = kMaxChunk / kTile + 1;  // a chunk need not begin where a tile does
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxThreads = 1024;
constexpr int kKeptBlocks = 16;  // blocks that share the kept boxes a tile is compared with
constexpr int kClassBits = 16;
constexpr uint32_t kNoClass = (1u << kClassBits) - 1;  // takes no part
constexpr uint32_t kNoSegment = 0xffffffffu;
constexpr unsigned kWarpMask = 0xffffffffu;

template <typename A>
struct alignas(16) Box {
  A x1, y1, x2, y2;
};

struct Segment {
  uint32_t begin;
  uint32_t end;
};

struct Counters {
  uint32_t segments;
  uint32_t longest;  // boxes of the largest segment
};

// Positions are places in the order by image, class, rank.
template <typename A>
struct Buffers {
  uint64_t* keys;            // [total] what a sort sorts
  uint64_t* groups;          // [total] sorted keys, at last image and class of each position
  uint32_t* order;           // [total] rank -> box of the batch
  uint32_t* ranks;           // [total] position -> rank
  uint32_t* scratch;         // [total]
  Box<A>* boxes;             // [total] by position
  uint32_t* begin;           // [total] where the position's segment begins, or kNoSegment
  uint32_t* kept_positions;  // [total] of a segment, from its begin on
  uint32_t* kept_counts;     // [total] at a segment's begin
  Segment* segments;         // [total]
  uint64_t* covers;  // [words, total] boxes of tile (chunk's first + word) that cover the position
  // zero at the start, from here on
  Counters* counters;
  uint8_t* dropped;  // [total] by a box of an earlier chunk, by position
  uint8_t* mixed;    // [total] at a segment's begin: it holds several classes of one hash
  uint8_t* kept;     // [B, kept_stride] by rank within the image
  size_t zeroed_bytes;
  void* sort_workspace;
  size_t sort_bytes;
};

struct Shape {
  uint32_t total;
  uint32_t N;
  uint32_t kept_stride;
  uint32_t tiles;
  int words;
  int chunk_log2;
};

int bits_for(uint64_t count) {  // of the numbers below count
  int bits = 0;
  while (bits < 64 && (uint64_t{1} << bits) < count) {
    ++bits;
  }
  return bits;
}

Shape shape_of(const NmsArgs& args, int64_t chunk) {
  Shape s;
  s.total = static_cast<uint32_t>(args.B * args.N);
  s.N = static_cast<uint32_t>(args.N);
  s.kept_stride = static_cast<uint32_t>(ceil_div(args.N, 16) * 16);
  s.tiles = static_cast<uint32_t>(ceil_div(s.total, kTile));
  s.words = static_cast<int>(ceil_div(args.N < chunk ? args.N : chunk, kTile)) + 1;
  s.chunk_log2 = bits_for(chunk);
  return s;
}

// With a null workspace only gives the bytes it needs.
size_t sort_pairs(
    void* workspace,
    size_t bytes,
    const uint64_t* keys,
    uint64_t* sorted_keys,
    const uint32_t* values,
    uint32_t* sorted_values,
    uint32_t count,
    int bits,
    cudaStream_t stream
) {
  check_cuda(
      cub::DeviceRadixSort::SortPairs(
          workspace, bytes, keys, sorted_keys, values, sorted_values, count, 0, bits, stream
      ),
      "radix sort"
  );
  return bytes;
}

template <typename A>
Buffers<A> carve(const NmsArgs& args, const Shape& s, Workspace& workspace) {
  Buffers<A> b;
  b.keys = workspace.take<uint64_t>(s.total);
  b.groups = workspace.take<uint64_t>(s.total);
  b.order = workspace.take<uint32_t>(s.total);
  b.ranks = workspace.take<uint32_t>(s.total);
  b.scratch = workspace.take<uint32_t>(s.total);
  b.boxes = workspace.take<Box<A>>(s.total);
  b.begin = workspace.take<uint32_t>(s.total);
  b.kept_positions = workspace.take<uint32_t>(s.total);
  b.kept_counts = workspace.take<uint32_t>(s.total);
  b.segments = workspace.take<Segment>(s.total);
  b.covers = workspace.take<uint64_t>(int64_t{s.words} * s.total);
  const size_t zeroed = workspace.used();
  b.counters = workspace.take<Counters>(1);
  b.dropped = workspace.take<uint8_t>(s.total);
  b.mixed = workspace.take<uint8_t>(s.total);
  b.kept = workspace.take<uint8_t>(args.B * s.kept_stride);
  b.zeroed_bytes = workspace.used() - zeroed;
  b.sort_bytes = sort_pairs(nullptr, 0, b.keys, b.groups, b.scratch, b.order, s.total, 64, nullptr);
  b.sort_workspace = workspace.take<char>(b.sort_bytes);
  return b;
}

// ---- keys of the sorts

// Ascending keys are descending scores: NaN first, -0 equal to +0. The key of all ones
// is none of them.
__device__ uint64_t descending_key(float score) {
  if (score != score) {
    return 0;
  }
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}
__device__ uint64_t descending_key(double score) {
  if (score != score) {
    return 0;
  }
  const uint64_t bits = __double_as_longlong(score + 0.0);
  return (bits >> 63) != 0 ? bits : ~(bits | uint64_t{1} << 63);
}

// The threshold is rounded to the scores' type, as a comparison with a tensor rounds it.
template <typename T>
__device__ bool takes_part(T score, bool has_threshold, double threshold) {
  using A = accumulate_t<T>;
  return !has_threshold || widen(score) > widen(narrow<T>(static_cast<A>(threshold)));
}

template <typename T>
__global__ void score_keys_kernel(
    const T* __restrict__ scores,    // [total]
    uint64_t* __restrict__ keys,     // [total] image above the score; the score alone for double
    uint32_t* __restrict__ indices,  // [total] 0, 1, 2, ...
    Shape s,
    bool has_threshold,
    double threshold
) {
  using A = accumulate_t<T>;
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= s.total) {
    return;
  }
  const T score = scores[i];
  uint64_t key =
      takes_part(score, has_threshold, threshold) ? descending_key(widen(score)) : ~uint64_t{0};
  if constexpr (sizeof(A) == sizeof(float)) {
    key = (key & 0xffffffffu) | static_cast<uint64_t>(i / s.N) << 32;
  }
  keys[i] = key;
  indices[i] = i;
}

__global__ void image_keys_kernel(
    const uint32_t* __restrict__ boxes,  // [total]
    uint64_t* __restrict__ keys,         // [total] image
    Shape s
) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < s.total) {
    keys[i] = boxes[i] / s.N;
  }
}

// Small labels keep their value. Labels of one hash share a segment, where they are told apart.
__device__ uint32_t class_hash(int64_t label) {
  const uint64_t x = static_cast<uint64_t>(label);
  const uint32_t hash = (x ^ x >> 16 ^ x >> 32 ^ x >> 48) & kNoClass;
  return hash == kNoClass ? 0 : hash;
}

template <typename T>
__global__ void group_keys_kernel(
    const uint32_t* __restrict__ order,  // [total]
    const T* __restrict__ scores,        // [total]
    const int64_t* __restrict__ idxs,    // [total] or null
    uint64_t* __restrict__ keys,         // [total] image above the class
    uint32_t* __restrict__ ranks,        // [total] 0, 1, 2, ...
    Shape s,
    bool has_threshold,
    double threshold
) {
  const uint32_t rank = blockIdx.x * kThreads + threadIdx.x;
  if (rank >= s.total) {
    return;
  }
  const uint32_t box = order[rank];
  uint32_t label = idxs == nullptr ? 0 : class_hash(idxs[box]);
  if (!takes_part(scores[box], has_threshold, threshold)) {
    label = kNoClass;
  }
  keys[rank] = static_cast<uint64_t>(box / s.N) << kClassBits | label;
  ranks[rank] = rank;
}

// ---- segments

// the first position whose group is not below `key`
__device__ uint32_t lower_bound(const uint64_t* groups, uint32_t total, uint64_t key) {
  uint32_t low = 0;
  uint32_t high = total;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (groups[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename A>
__device__ int64_t label_at(const Buffers<A>& b, const int64_t* idxs, uint32_t position) {
  return idxs[b.order[b.ranks[position]]];
}

template <typename T, typename A>
__global__ void segments_kernel(
    Buffers<A> b,
    const T* __restrict__ boxes,       // [total, 4]
    const int64_t* __restrict__ idxs,  // [total] or null
    Shape s
) {
  const uint32_t position = blockIdx.x * kThreads + threadIdx.x;
  if (position >= s.total) {
    return;
  }
  const T* box = boxes + int64_t{b.order[b.ranks[position]]} * 4;
  b.boxes[position] = {widen(box[0]), widen(box[1]), widen(box[2]), widen(box[3])};
  const uint64_t group = b.groups[position];
  if ((group & kNoClass) == kNoClass) {
    b.begin[position] = kNoSegment;
    return;
  }
  const uint32_t begin = lower_bound(b.groups, s.total, group);
  b.begin[position] = begin;
  if (position == begin) {
    const uint32_t end = lower_bound(b.groups, s.total, group + 1);
    b.segments[atomicAdd(&b.counters->segments, 1u)] = {begin, end};  // any order will do
    atomicMax(&b.counters->longest, end - begin);
  } else if (idxs != nullptr && label_at(b, idxs, position) != label_at(b, idxs, position - 1)) {
    b.mixed[begin] = 1;
  }
}

// ---- which box covers which

// For `inter / area > t`, the quotient rounded, mostly without dividing. Rounding is monotonic: if
// inter < round(t * area), then inter < t * area, and the quotient does not round to more than t;
// if inter > round(above * area), where above is the next number after t, then it does.
template <typename A>
struct Threshold {
  A t;
  A quick;  // t, or NaN where the short cuts do not hold: t < 0
  A above;
};

template <typename A>
Threshold<A> round_threshold(double threshold) {
  A t = static_cast<A>(threshold);
  if (static_cast<double>(t) > threshold) {  // a float above the threshold is above t
    t = std::nextafter(t, -std::numeric_limits<A>::infinity());
  }
  const A nan = std::numeric_limits<A>::quiet_NaN();
  if (!(t >= 0)) {
    return {t, nan, nan};
  }
  return {t, t, std::nextafter(t, std::numeric_limits<A>::infinity())};
}

// products that no later addition may be fused with
__device__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ double multiply(double a, double b) { return __dmul_rn(a, b); }

template <typename A>
__device__ A area_of(const Box<A>& box) {
  return multiply(box.x2 - box.x1, box.y2 - box.y1);
}

template <typename A>
__device__ bool covers(
    const Box<A>& a, A area_a, const Box<A>& b, A area_b, const Threshold<A>& threshold
) {
  const A width = max(min(a.x2, b.x2) - max(a.x1, b.x1), A(0));
  const A height = max(min(a.y2, b.y2) - max(a.y1, b.y1), A(0));
  const A inter = multiply(width, height);
  const A area = area_a + area_b - inter;
  if (inter < multiply(threshold.quick, area)) {
    return false;
  }
  if (area > A(0) && inter > multiply(threshold.above, area)) {
    return true;
  }
  return inter / area > threshold.t;
}

// A tile of boxes that all lanes of a warp go through.
template <typename A>
struct Tile {
  Box<A> boxes[kTile];
  A areas[kTile];
};

// The boxes of a tile that a lane answers for: lane and lane + 32.
template <typename A>
struct Pair {
  bool active[2];  // the box is in a chunk of this step
  uint32_t position[2];
  uint32_t first[2];  // of the chunk
  Box<A> box[2];
  A area[2];
};

template <typename A>
__device__ Pair<A> load_pair(const Buffers<A>& b, const Shape& s, uint32_t tile, uint32_t step) {
  Pair<A> p;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t position = tile * kTile + threadIdx.x % 32 + k * 32;
    const bool exists = position < s.total;
    const uint32_t begin = exists ? b.begin[position] : kNoSegment;
    p.active[k] = begin != kNoSegment && (position - begin) >> s.chunk_log2 == step;
    p.position[k] = position;
    p.first[k] = begin + (step << s.chunk_log2);
    p.box[k] = exists ? b.boxes[position] : Box<A>{};
    p.area[k] = area_of(p.box[k]);
  }
  return p;
}

template <typename A>
__device__ void store_tile(Tile<A>& tile, const Box<A>& box, int slot) {
  tile.boxes[slot] = box;
  tile.areas[slot] = area_of(box);
}

// The bits of boxes in tile `other` that cover the boxes of `p` and come earlier in the same chunk.
template <typename A>
__device__ void cover_in_chunk(
    const Buffers<A>& b,
    const Shape& s,
    const int64_t* idxs,
    const Threshold<A>& threshold,
    const Pair<A>& p,
    uint32_t other,
    Tile<A>& tile
) {
  const int lane = threadIdx.x % 32;
  for (int slot = lane; slot < kTile; slot += 32) {
    const uint32_t position = other * kTile + slot;
    store_tile(tile, position < s.total ? b.boxes[position] : Box<A>{}, slot);
  }
  __syncwarp();
  uint64_t bits[2] = {0, 0};
#pragma unroll 4
  for (int i = 0; i < kTile; ++i) {
    const Box<A> box = tile.boxes[i];
    const A area = tile.areas[i];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      bits[k] |= static_cast<uint64_t>(covers(box, area, p.box[k], p.area[k], threshold)) << i;
    }
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t first_tile = p.first[k] / kTile;
    if (!p.active[k] || other < first_tile) {
      continue;  // nobody reads this word
    }
    const uint32_t base = other * kTile;
    if (other == first_tile) {
      bits[k] &= ~uint64_t{0} << (p.first[k] - base);
    }
    if (p.position[k] - base < kTile) {
      bits[k] &= (uint64_t{1} << (p.position[k] - base)) - 1;
    }
    if (idxs != nullptr && b.mixed[b.begin[p.position[k]]] != 0) {
      const int64_t label = label_at(b, idxs, p.position[k]);
      for (uint64_t left = bits[k]; left != 0; left &= left - 1) {
        const int i = __ffsll(left) - 1;
        if (label_at(b, idxs, base + i) != label) {
          bits[k] &= ~(uint64_t{1} << i);
        }
      }
    }
    b.covers[int64_t{other - first_tile} * s.total + p.position[k]] = bits[k];
  }
}

// Drops boxes of `p` that a box kept in an earlier chunk of their segment covers. From the second
// step on the boxes of a tile that are in the step are all of one segment, which begins before the
// tile.
template <typename A>
__device__ void cover_by_kept(
    const Buffers<A>& b,
    const int64_t* idxs,
    const Threshold<A>& threshold,
    const Pair<A>& p,
    uint32_t begin,
    uint32_t first_kept_tile,
    Tile<A>& tile
) {
  const int lane = threadIdx.x % 32;
  const uint32_t count = b.kept_counts[begin];
  const bool mixed = idxs != nullptr && b.mixed[begin] != 0;
  bool open[2] = {p.active[0], p.active[1]};
  for (uint32_t at = first_kept_tile * kTile; at < count; at += kKeptBlocks * kWarps * kTile) {
    const uint32_t boxes = min(count - at, uint32_t{kTile});
    const uint32_t* positions = b.kept_positions + begin + at;
    for (uint32_t slot = lane; slot < boxes; slot += 32) {
      store_tile(tile, b.boxes[positions[slot]], slot);
    }
    __syncwarp();
    bool dropped[2] = {false, false};
#pragma unroll 2
    for (uint32_t i = 0; i < boxes; ++i) {
      const Box<A> box = tile.boxes[i];
      const A area = tile.areas[i];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        bool covered = covers(box, area, p.box[k], p.area[k], threshold);
        if (mixed && covered && open[k]) {
          covered = label_at(b, idxs, positions[i]) == label_at(b, idxs, p.position[k]);
        }
        dropped[k] |= covered;
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (open[k] && dropped[k]) {
        open[k] = false;
        b.dropped[p.position[k]] = 1;
      }
    }
    __syncwarp();
    if (!__any_sync(kWarpMask, open[0] || open[1])) {
      return;
    }
  }
}

// Whether a tile may have a box in this step. From the second step on all of them are in the
// segment of the tile's first box.
template <typename A>
__device__ bool may_be_active(const Buffers<A>& b, const Shape& s, uint32_t tile, uint32_t step) {
  if (step == 0) {
    return true;
  }
  const uint32_t first = tile * kTile;
  const uint32_t begin = b.begin[first];
  return begin != kNoSegment && (first - begin) >> s.chunk_log2 <= step &&
         (first + kTile - 1 - begin) >> s.chunk_log2 >= step;
}

// Grid: x goes over the tiles; y over the earlier tiles of the chunk, kWarps at a time
// (cover_blocks of them), then over the boxes kept before.
// Blocks per SM are given because ptxas spills a few registers for more of them otherwise.
template <typename A>
__global__ __launch_bounds__(kThreads, sizeof(A) == sizeof(float) ? 3 : 2) void cover_kernel(
    Buffers<A> b,
    const int64_t* __restrict__ idxs,  // [total] or null
    Shape s,
    Threshold<A> threshold,
    uint32_t step,
    uint32_t cover_blocks
) {
  __shared__ Tile<A> tiles[kWarps];
  if (b.counters->longest <= step << s.chunk_log2) {
    return;
  }
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t stride = gridDim.x;
  // lanes look at one tile each, then the warp takes the active ones in turn
  for (uint32_t base = blockIdx.x; base < s.tiles; base += 32 * stride) {
    const uint32_t candidate = base + threadIdx.x % 32 * stride;
    unsigned active =
        __ballot_sync(kWarpMask, candidate < s.tiles && may_be_active(b, s, candidate, step));
    for (; active != 0; active &= active - 1) {
      const uint32_t tile = base + (__ffs(active) - 1) * stride;
      const Pair<A> p = load_pair(b, s, tile, step);
      const unsigned low = __ballot_sync(kWarpMask, p.active[0]);
      const unsigned high = __ballot_sync(kWarpMask, p.active[1]);
      if ((low | high) == 0) {
        continue;
      }
      const uint32_t first = low != 0 ? __shfl_sync(kWarpMask, p.first[0], __ffs(low) - 1)
                                      : __shfl_sync(kWarpMask, p.first[1], __ffs(high) - 1);
      if (blockIdx.y < cover_blocks) {
        const uint32_t other = first / kTile + blockIdx.y * kWarps + warp;
        if (other <= tile) {
          cover_in_chunk(b, s, idxs, threshold, p, other, tiles[warp]);
        }
      } else {
        const uint32_t begin = first - (step << s.chunk_log2);
        const uint32_t first_kept_tile = (blockIdx.y - cover_blocks) * kWarps + warp;
        cover_by_kept(b, idxs, threshold, p, begin, first_kept_tile, tiles[warp]);
      }
    }
  }
}

// ---- which boxes are kept

enum class State { none, open, kept };

// One word of bits for 32 boxes each.
struct Bits {
  uint32_t half[2 * kMaxWords];

  __device__ uint64_t word(int i) const {
    return half[2 * i] | static_cast<uint64_t>(half[2 * i + 1]) << 32;
  }
};

template <typename A>
__global__ __launch_bounds__(kMaxThreads) void decide_kernel(Buffers<A> b, Shape s, uint32_t step) {
  constexpr int kPerThread = (kMaxWords * kTile + kMaxThreads - 1) / kMaxThreads;
  __shared__ Bits open;
  __shared__ Bits kept;
  __shared__ uint32_t kept_count;
  const uint32_t offset = step << s.chunk_log2;
  if (b.counters->longest <= offset) {
    return;
  }
  const uint32_t segments = b.counters->segments;
  for (uint32_t index = blockIdx.x; index < segments; index += gridDim.x) {
    const Segment segment = b.segments[index];
    if (segment.end - segment.begin <= offset) {
      continue;
    }
    const uint32_t first = segment.begin + offset;
    const uint32_t last = min(segment.end, first + (1u << s.chunk_log2));
    const uint32_t first_tile = first / kTile;
    State state[kPerThread];
    int cursor[kPerThread];  // no earlier word has a box that could still drop this one
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const uint32_t position = first_tile * kTile + k * blockDim.x + threadIdx.x;
      const bool here = position >= first && position < last;
      state[k] = here && !(step > 0 && b.dropped[position]) ? State::open : State::none;
      cursor[k] = 0;
    }
    if (threadIdx.x == 0) {
      kept_count = step == 0 ? 0 : b.kept_counts[segment.begin];
    }
    for (;;) {
      bool waiting = false;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (first_tile * kTile + k * blockDim.x >= last) {
          break;
        }
        const unsigned open_bits = __ballot_sync(kWarpMask, state[k] == State::open);
        const unsigned kept_bits = __ballot_sync(kWarpMask, state[k] == State::kept);
        const uint32_t half = (k * blockDim.x + threadIdx.x) / 32;
        if (threadIdx.x % 32 == 0 && half < 2 * kMaxWords) {
          open.half[half] = open_bits;
          kept.half[half] = kept_bits;
        }
        waiting |= state[k] == State::open;
      }
      if (!__syncthreads_or(waiting)) {
        break;
      }
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (state[k] != State::open) {
          continue;
        }
        const uint32_t position = first_tile * kTile + k * blockDim.x + threadIdx.x;
        const int words = position / kTile - first_tile + 1;
        const uint64_t* column = b.covers + position;
        uint64_t rivals = 0;
        for (; cursor[k] < words; ++cursor[k]) {
          rivals = column[int64_t{cursor[k]} * s.total];
          rivals &= open.word(cursor[k]) | kept.word(cursor[k]);
          if (rivals != 0) {
            break;
          }
        }
        if (rivals == 0) {
          state[k] = State::kept;
        } else if ((rivals & kept.word(cursor[k])) != 0) {
          state[k] = State::none;
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const uint32_t position = first_tile * kTile + k * blockDim.x + threadIdx.x;
      if (state[k] == State::kept) {
        const uint32_t rank = b.ranks[position];
        const uint32_t image = rank / s.N;
        b.kept[int64_t{image} * s.kept_stride + (rank - image * s.N)] = 1;
        if (last < segment.end) {
          // in any order: cover_by_kept asks whether one of them covers a box, not which
          b.kept_positions[segment.begin + atomicAdd(&kept_count, 1u)] = position;
        }
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      b.kept_counts[segment.begin] = kept_count;
    }
  }
}

// ---- results

// A block per image. Every thread takes 16 boxes at a time.
__global__ __launch_bounds__(kMaxThreads) void compact_kernel(
    const uint8_t* __restrict__ kept,    // [B, kept_stride]
    const uint32_t* __restrict__ order,  // [total] rank -> box of the batch
    int64_t* __restrict__ indices,       // [B, max_output]
    int64_t* __restrict__ counts,        // [B]
    Shape s,
    int64_t max_output
) {
  __shared__ uint32_t warp_sums[kMaxThreads / 32];
  const int64_t image = blockIdx.x;
  kept += image * s.kept_stride;
  order += image * s.N;
  indices += image * max_output;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int64_t written = 0;
  for (int64_t base = 0; base < s.kept_stride && written < max_output; base += blockDim.x * 16) {
    const int64_t rank = base + threadIdx.x * 16;
    uint4 flags = make_uint4(0, 0, 0, 0);
    if (rank < s.kept_stride) {
      flags = *reinterpret_cast<const uint4*>(kept + rank);
    }
    const uint32_t part[4] = {flags.x, flags.y, flags.z, flags.w};
    const uint32_t own = __popc(part[0]) + __popc(part[1]) + __popc(part[2]) + __popc(part[3]);
    uint32_t sum = own;  // of the warp's lanes up to this one
    for (int delta = 1; delta < 32; delta *= 2) {
      const uint32_t other = __shfl_up_sync(kWarpMask, sum, delta);
      sum += lane >= delta ? other : 0;
    }
    if (lane == 31) {
      warp_sums[warp] = sum;
    }
    __syncthreads();
    int64_t at = written + sum - own;
    uint32_t total = 0;
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
      at += int(w) < warp ? warp_sums[w] : 0;
      total += warp_sums[w];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      if ((part[k / 4] >> k % 4 * 8 & 1) != 0) {
        if (at < max_output) {
          indices[at] = order[rank + k] - image * s.N;
        }
        ++at;
      }
    }
    written += total;
  }
  written = min(written, max_output);
  for (int64_t i = written + threadIdx.x; i < max_output; i += blockDim.x) {
    indices[i] = -1;
  }
  if (threadIdx.x == 0) {
    counts[image] = written;
  }
}

int threads_for(int64_t count) {
  const int64_t threads = ceil_div(count, 32) * 32;
  return static_cast<int>(threads < 32 ? 32 : threads > kMaxThreads ? kMaxThreads : threads);
}

uint32_t at_most(int64_t count, int64_t limit) {
  return static_cast<uint32_t>(count < limit ? count : limit);
}

}  // namespace

int64_t nms_chunk(int64_t B, int64_t N) {
  // bytes of cover bits; larger chunks mean fewer steps
  constexpr int64_t kCoverBytes = 64 << 20;
  int64_t chunk = kMaxChunk;
  while (chunk > 1024 && B * N * (chunk / 8) > kCoverBytes) {
    chunk /= 2;
  }
  return chunk;
}

template <typename T>
size_t nms_workspace_bytes(const NmsArgs& args, int64_t chunk) {
  if (args.B == 0 || args.N == 0) {
    return 0;
  }
  Workspace workspace(nullptr);
  carve<accumulate_t<T>>(args, shape_of(args, chunk), workspace);
  return workspace.used();
}

template <typename T>
void launch_nms(const NmsArgs& args, int64_t chunk, void* memory, CUstream_st* stream) {
  using A = accumulate_t<T>;
  if (args.B == 0) {
    return;
  }
  const Shape s = shape_of(args, chunk);
  const auto images = static_cast<uint32_t>(args.B);
  if (s.total == 0) {
    launch(
        compact_kernel,
        images,
        32,
        0,
        stream,
        nullptr,
        nullptr,
        args.indices,
        args.counts,
        s,
        args.max_output
    );
    return;
  }
  Workspace workspace(memory);
  const Buffers<A> b = carve<A>(args, s, workspace);
  check_cuda(cudaMemsetAsync(b.counters, 0, b.zeroed_bytes, stream), "memset");
  const auto* boxes = static_cast<const T*>(args.boxes);
  const auto* scores = static_cast<const T*>(args.scores);
  const auto blocks = static_cast<uint32_t>(ceil_div(s.total, kThreads));
  const auto sort = [&](const uint32_t* values, uint32_t* sorted_values, int bits) {
    sort_pairs(
        b.sort_workspace,
        b.sort_bytes,
        b.keys,
        b.groups,
        values,
        sorted_values,
        s.total,
        bits,
        stream
    );
  };

  const int image_bits = bits_for(args.B);
  launch(
      score_keys_kernel<T>,
      blocks,
      kThreads,
      0,
      stream,
      scores,
      b.keys,
      b.scratch,
      s,
      args.has_score_threshold,
      args.score_threshold
  );
  if (sizeof(A) == sizeof(float)) {
    sort(b.scratch, b.order, 32 + image_bits);
  } else if (args.B == 1) {
    sort(b.scratch, b.order, 64);
  } else {
    sort(b.scratch, b.ranks, 64);
    launch(image_keys_kernel, blocks, kThreads, 0, stream, b.ranks, b.keys, s);
    sort(b.ranks, b.order, image_bits);
  }
  const bool by_class = args.idxs != nullptr;
  launch(
      group_keys_kernel<T>,
      blocks,
      kThreads,
      0,
      stream,
      b.order,
      scores,
      args.idxs,
      by_class ? b.keys : b.groups,
      by_class ? b.scratch : b.ranks,
      s,
      args.has_score_threshold,
      args.score_threshold
  );
  if (by_class) {
    sort(b.scratch, b.ranks, kClassBits + image_bits);
  }
  launch(segments_kernel<T, A>, blocks, kThreads, 0, stream, b, boxes, args.idxs, s);

  const Threshold<A> threshold = round_threshold<A>(args.iou_threshold);
  const auto cover_blocks = static_cast<uint32_t>(ceil_div(s.words, kWarps));
  const auto steps = static_cast<uint32_t>(ceil_div(args.N, chunk));
  for (uint32_t step = 0; step < steps; ++step) {
    // after the first step few tiles have something to do, often none
    const dim3 grid(
        at_most(s.tiles, step == 0 ? 1024 : 128), cover_blocks + (step == 0 ? 0 : kKeptBlocks)
    );
    launch(
        cover_kernel<A>, grid, kThreads, 0, stream, b, args.idxs, s, threshold, step, cover_blocks
    );
    launch(
        decide_kernel<A>,
        at_most(s.total, step == 0 ? 1024 : 256),
        threads_for(int64_t{s.words} * kTile),
        0,
        stream,
        b,
        s,
        step
    );
  }
  launch(
      compact_kernel,
      images,
      threads_for(s.kept_stride / 16),
      0,
      stream,
      b.kept,
      b.order,
      args.indices,
      args.counts,
      s,
      args.max_output
  );
}

#define FASTVISION_INSTANTIATE_NMS(T)                              \
  template size_t nms_workspace_bytes<T>(const NmsArgs&, int64_t); \
  template void launch_nms<T>(const NmsArgs&, int64_t, void*, CUstream_st*);
FASTVISION_INSTANTIATE_NMS(float)
FASTVISION_INSTANTIATE_NMS(double)
FASTVISION_INSTANTIATE_NMS(half_t)
FASTVISION_INSTANTIATE_NMS(bfloat16_t)
#undef FASTVISION_INSTANTIATE_NMS

}  // namespace fastvision
