// Sizes of an NMS call, and its arrays in one block of device memory.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"
#include "cuda/nms_sort.cuh"
#include "ops/nms.h"

namespace fastvision {
namespace {

constexpr int kTile = 64;  // boxes per word of the cover bits
constexpr int kMaxChunk = 4096;
constexpr int kMaxWords = kMaxChunk / kTile + 1;  // a chunk may begin inside a tile
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxThreads = 1024;
constexpr int kKeptBlocks = 16;  // blocks that share a tile's comparisons with kept boxes
constexpr int kClassBits = 16;
constexpr uint32_t kNoClass = (1u << kClassBits) - 1;  // below the score threshold
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

// A position is an index in the order by image, class, rank.
template <typename A>
struct Buffers {
  uint64_t* keys;            // [total] input of a sort
  uint64_t* groups;          // [total] sorted keys; finally image and class of each position
  uint32_t* order;           // [total] rank -> box of the batch
  uint32_t* ranks;           // [total] position -> rank
  uint32_t* scratch;         // [total]
  Box<A>* boxes;             // [total] by position
  uint32_t* begin;           // [total] begin of the position's segment, or kNoSegment
  uint32_t* kept_positions;  // [total] kept boxes of a segment, from its begin on
  uint32_t* kept_counts;     // [total] at a segment's begin
  Segment* segments;         // [total]
  uint64_t* covers;  // [words, total] boxes of tile (chunk's first + word) that cover the position
  // zero-initialised from here on
  Counters* counters;
  uint8_t* dropped;  // [total] by position: suppressed by a box of an earlier chunk
  uint8_t* mixed;    // [total] at a segment's begin: it holds several classes with the same hash
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
  uint32_t max_output;  // kept boxes of an image, at most N
};

int bits_for(uint64_t count) {  // to represent numbers below count
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
  s.max_output = static_cast<uint32_t>(args.max_output < args.N ? args.max_output : args.N);
  return s;
}

int threads_for(int64_t count) {
  const int64_t threads = ceil_div(count, 32) * 32;
  return static_cast<int>(threads < 32 ? 32 : threads > kMaxThreads ? kMaxThreads : threads);
}

uint32_t at_most(int64_t count, int64_t limit) {
  return static_cast<uint32_t>(count < limit ? count : limit);
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

}  // namespace
}  // namespace fastvision
