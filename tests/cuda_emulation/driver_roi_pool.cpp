// RoIPool's launchers on arrays in files:
//   roi_pool FOLDER forward|backward DTYPE N C K H W PH PW SPATIAL_SCALE CHANNELS_LAST
// reads rois, and features (forward) or pooled and argmax (backward); writes the others.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/roi_pool.h"

using namespace fastvision;

namespace {

// What a kernel forgets to write shows.
template <typename T>
std::vector<char> unwritten(size_t size) {
  return std::vector<char>(size * sizeof(T), '\xff');
}

template <typename T>
void run(const std::string& folder, bool forward, RoiArgs args) {
  using cuda_emulation::read_file;
  using cuda_emulation::write_file;
  RoiLevel& map = args.levels[0];
  const size_t cells = args.N * args.C * map.H * map.W;
  const size_t bins = args.K * args.C * args.PH * args.PW;
  std::vector<char> rois = read_file(folder + "/rois");
  std::vector<char> features = forward ? read_file(folder + "/features") : unwritten<T>(cells);
  std::vector<char> pooled = forward ? unwritten<T>(bins) : read_file(folder + "/pooled");
  std::vector<char> argmax = forward ? unwritten<int32_t>(bins) : read_file(folder + "/argmax");
  args.rois = rois.data();
  map.features = features.data();
  args.pooled = pooled.data();
  args.argmax = reinterpret_cast<int32_t*>(argmax.data());
  if (forward) {
    launch_roi_forward<RoIPool, T>(args, nullptr);
    write_file(folder + "/argmax", argmax);
    args.argmax = nullptr;  // the same again without positions
    launch_roi_forward<RoIPool, T>(args, nullptr);
    write_file(folder + "/pooled", pooled);
  } else {
    launch_roi_backward<RoIPool, T>(args, nullptr);
    write_file(folder + "/features", features);
  }
}

}  // namespace

int main(int, char** argv) {
  char** next = argv + 1;
  const std::string folder = *next++;
  const bool forward = std::string(*next++) == "forward";
  const std::string dtype = *next++;
  const auto integer = [&] { return std::atoll(*next++); };
  RoiArgs args{};
  args.N = integer();
  args.C = integer();
  args.K = integer();
  args.levels[0].H = integer();
  args.levels[0].W = integer();
  args.PH = integer();
  args.PW = integer();
  args.levels[0].spatial_scale = std::atof(*next++);
  args.channels_last = integer();
  args.num_levels = 1;
  if (dtype == "float32") {
    run<float>(folder, forward, args);
  } else if (dtype == "float64") {
    run<double>(folder, forward, args);
  } else if (dtype == "float16") {
    run<half_t>(folder, forward, args);
  } else if (dtype == "bfloat16") {
    run<bfloat16_t>(folder, forward, args);
  } else {
    std::fprintf(stderr, "unknown dtype %s\n", dtype.c_str());
    return 1;
  }
}
