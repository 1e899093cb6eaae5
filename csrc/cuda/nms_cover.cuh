// Compares the boxes of each chunk with each other and with the boxes kept in earlier chunks.
#pragma once

#include "cuda/nms_buffers.cuh"
#include "cuda/nms_iou.cuh"
#include "cuda/nms_segments.cuh"

namespace fastvision {
namespace {

// A tile of boxes that all lanes of a warp loop over.
template <typename A>
struct Tile {
  Box<A> boxes[kTile];
  A areas[kTile];
};

// The two boxes of a tile that a lane handles: lane and lane + 32.
template <typename A>
struct Pair {
  bool active[2];  // the box is in a chunk of the current step
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

// Bits of the boxes in tile `other` that cover the boxes of `p` and precede them in the same chunk.
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
      continue;  // this word is never read
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

// Drops boxes of `p` covered by a box kept in an earlier chunk of their segment. From the second
// step on, all boxes of a tile that are in the step belong to one segment, which begins before the
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

// Whether a tile may have a box in this step. From the second step on, such boxes are in the
// segment of the tile's first box.
template <typename A>
__device__ bool may_be_active(const Buffers<A>& b, const Shape& s, uint32_t tile, uint32_t step) {
  if (step == 0) {
    return true;
  }
  const uint32_t first = tile * kTile;
  const uint32_t begin = b.begin[first];
  return begin != kNoSegment && (first - begin) >> s.chunk_log2 <= step &&
         (first + kTile - 1 - begin) >> s.chunk_log2 >= step && b.kept_counts[begin] < s.max_output;
}

// Grid: x is the tile; y first covers the earlier tiles of the chunk, kWarps at a time
// (cover_blocks of them), then the boxes kept before.
// Blocks per SM are limited because ptxas otherwise spills registers to fit more.
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
  // each lane checks one tile, then the warp processes the active ones in turn
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

template <typename A>
void cover(
    const NmsArgs& args,
    const Shape& s,
    const Buffers<A>& b,
    const Threshold<A>& threshold,
    uint32_t step,
    cudaStream_t stream
) {
  const auto cover_blocks = static_cast<uint32_t>(ceil_div(s.words, kWarps));
  // after the first step, few tiles or none have work
  const dim3 grid(
      at_most(s.tiles, step == 0 ? 1024 : 128), cover_blocks + (step == 0 ? 0 : kKeptBlocks)
  );
  launch(
      cover_kernel<A>, grid, kThreads, 0, stream, b, args.idxs, s, threshold, step, cover_blocks
  );
}

}  // namespace
}  // namespace fastvision
