// Tiles of gradient maps, one CTA each, and the rois that reach them: what the backward kernels of
// RoI ops share on the GPU.
#pragma once

#include "cuda/roi_common.cuh"

namespace fastvision {
namespace {

// How the gradient maps are cut into tiles, one block each.
struct TilePlan {
  int64_t first_block[kMaxLevels + 1];
  int tile_height;
  int tile_width;
  int slices;  // pieces of the channels

  void count_blocks(const RoiArgs& args) {
    first_block[0] = 0;
    for (int level = 0; level < args.num_levels; ++level) {
      const RoiLevel& map = args.levels[level];
      first_block[level + 1] = first_block[level] + args.N * ceil_div(map.H, tile_height) *
                                                        ceil_div(map.W, tile_width) * slices;
    }
  }
};

struct Tile {
  int level;
  int image;
  int y;
  int x;
  int slice;
};

__device__ inline Tile tile_of(const RoiArgs& args, const TilePlan& plan, int64_t block) {
  Tile tile;
  tile.level = 0;
  while (block >= plan.first_block[tile.level + 1]) {
    ++tile.level;
  }
  block -= plan.first_block[tile.level];
  const int64_t columns = ceil_div(args.levels[tile.level].W, plan.tile_width);
  const int64_t rows = ceil_div(args.levels[tile.level].H, plan.tile_height);
  // neighbours in the order of blocks read the same rois' gradients
  tile.slice = static_cast<int>(block % plan.slices);
  block /= plan.slices;
  tile.x = static_cast<int>(block % columns) * plan.tile_width;
  block /= columns;
  tile.y = static_cast<int>(block % rows) * plan.tile_height;
  tile.image = static_cast<int>(block / rows);
  return tile;
}

// Lists the threads whose `hit` is true, in their order; gives their number.
__device__ inline int compact(bool hit, int* list) {
  __shared__ int warp_hits[kWarps];
  const int warp = threadIdx.x / 32;
  const unsigned hits = __ballot_sync(0xffffffffu, hit);
  if (threadIdx.x % 32 == 0) {
    warp_hits[warp] = __popc(hits);
  }
  __syncthreads();
  int before = 0;
  int total = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? warp_hits[w] : 0;
    total += warp_hits[w];
  }
  if (hit) {
    list[before + __popc(hits & ((1u << threadIdx.x % 32) - 1))] = threadIdx.x;
  }
  __syncthreads();
  return total;
}

}  // namespace
}  // namespace fastvision
