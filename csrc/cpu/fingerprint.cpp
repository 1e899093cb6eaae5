// Independent multiplicative hashes of 64-bit words, one per lane, and a hash of these. Each step
// is a bijection of both the state and the word, so a change of a single word always changes the
// hash. The rotation before the multiplication spreads the highest bit, a float's sign.
#include "ops/fingerprint.h"

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kBlock = 256;  // bytes per step, the same at every level, as is the result
constexpr int kVectors = kBlock / kVectorBytes;
constexpr int kLanes = kBlock / 8;
constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio, made odd
constexpr int kRotation = 29;

template <typename T>
inline T mix(T state, T word) {
  state ^= word;
  return ((state << kRotation) | (state >> (64 - kRotation))) * kFactor;
}

inline void mix_block(uint64_v (&state)[kVectors], const char* bytes) {
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    uint64_v words;
    memcpy(&words, bytes + i * kVectorBytes, sizeof words);
    state[i] = mix(state[i], words);
  }
}

}  // namespace

uint64_t fingerprint(const void* bytes, int64_t size, uint64_t seed) {
  const char* const first = static_cast<const char*>(bytes);
  uint64_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    lanes[i] = mix(seed + i, static_cast<uint64_t>(size));
  }
  uint64_v state[kVectors];
  memcpy(state, lanes, sizeof state);
  int64_t at = 0;
  for (; at + kBlock <= size; at += kBlock) {
    mix_block(state, first + at);
  }
  if (at < size) {
    char rest[kBlock] = {};
    memcpy(rest, first + at, size - at);
    mix_block(state, rest);
  }
  memcpy(lanes, state, sizeof state);
  uint64_t result = seed;
  for (const uint64_t lane : lanes) {
    result = mix(result, lane);
  }
  return result ^ (result >> 32);
}

}  // namespace fastvision::FASTVISION_ISA
