// RoIAlign's launchers on arrays in files:
//   roi_align FOLDER forward|backward DTYPE N C K PH PW SAMPLING_RATIO ALIGNED CHANNELS_LAST OFFSET
//             CANONICAL_SCALE CANONICAL_LEVEL MIN_LEVEL (H W SPATIAL_SCALE)...
// reads rois and features0, features1, ... (forward) or pooled (backward), writes the other one.
// Arrays of the features' type begin OFFSET elements after an aligned address.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/roi.h"
#include "ops/roi_align.h"

using namespace fastvision;

namespace {

template <typename T>
struct Array {
  std::vector<T> memory;
  size_t offset;

  Array(size_t size, size_t offset) : memory(offset + size), offset(offset) {
    std::fill_n(reinterpret_cast<unsigned char*>(memory.data()), memory.size() * sizeof(T), 0xff);
  }
  Array(const std::string& path, size_t offset) : offset(offset) {
    const std::vector<char> bytes = cuda_emulation::read_file(path);
    memory.resize(offset + bytes.size() / sizeof(T));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(data()));
  }
  T* data() { return memory.data() + offset; }
  void write(const std::string& path) {
    cuda_emulation::write_file(path, std::vector<T>(memory.begin() + offset, memory.end()));
  }
};

template <typename T>
void run(const std::string& folder, bool forward, RoiArgs args, size_t offset) {
  std::vector<char> rois = cuda_emulation::read_file(folder + "/rois");
  args.rois = rois.data();
  const std::string pooled_path = folder + "/pooled";
  Array<T> pooled = forward ? Array<T>(args.K * args.C * args.PH * args.PW, offset)
                            : Array<T>(pooled_path, offset);
  args.pooled = pooled.data();
  std::vector<Array<T>> maps;
  for (int level = 0; level < args.num_levels; ++level) {
    RoiLevel& map = args.levels[level];
    const std::string path = folder + "/features" + std::to_string(level);
    maps.push_back(
        forward ? Array<T>(path, offset) : Array<T>(args.N * args.C * map.H * map.W, offset)
    );
    map.features = maps.back().data();
  }
  if (forward) {
    launch_roi_forward<RoIAlign, T>(args, nullptr);
    pooled.write(pooled_path);
  } else {
    launch_roi_backward<RoIAlign, T>(args, nullptr);
    for (int level = 0; level < args.num_levels; ++level) {
      maps[level].write(folder + "/features" + std::to_string(level));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  char** next = argv + 1;
  const std::string folder = *next++;
  const bool forward = std::string(*next++) == "forward";
  const std::string dtype = *next++;
  const auto integer = [&] { return std::atoll(*next++); };
  const auto real = [&] { return std::atof(*next++); };
  RoiArgs args{};
  args.N = integer();
  args.C = integer();
  args.K = integer();
  args.PH = integer();
  args.PW = integer();
  args.sampling_ratio = integer();
  args.aligned = integer();
  args.channels_last = integer();
  const size_t offset = integer();
  args.canonical_scale = real();
  args.canonical_level = real();
  args.min_level = integer();
  for (; next < argv + argc; ++args.num_levels) {
    RoiLevel& map = args.levels[args.num_levels];
    map.H = integer();
    map.W = integer();
    map.spatial_scale = real();
  }
  if (dtype == "float32") {
    run<float>(folder, forward, args, offset);
  } else if (dtype == "float64") {
    run<double>(folder, forward, args, offset);
  } else if (dtype == "float16") {
    run<half_t>(folder, forward, args, offset);
  } else if (dtype == "bfloat16") {
    run<bfloat16_t>(folder, forward, args, offset);
  } else {
    std::fprintf(stderr, "unknown dtype %s\n", dtype.c_str());
    return 1;
  }
}
