// The launchers of RoI ops that take samples one by one, on arrays in files:
//   roi_samples FOLDER forward|backward DTYPE max|rotated N C K H W LEVELS PH PW SPATIAL_SCALE
//       SAMPLING_RATIO ALIGNED CHANNELS_LAST
// Levels halve H and W. Reads rois, and features (forward) or pooled and argmax (backward) of which
// a mean has none; writes the others.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/roi_samples.h"

using namespace fastvision;

namespace {

// What a kernel forgets to write shows.
template <typename T>
std::vector<char> unwritten(size_t size) {
  return std::vector<char>(size * sizeof(T), '\xff');
}

template <typename Op, typename T>
void run(const std::string& folder, bool forward, RoiArgs args) {
  using cuda_emulation::read_file;
  using cuda_emulation::write_file;
  constexpr bool kMaximum = std::is_same_v<typename Op::Reduction, LargestSample>;
  size_t cells = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    cells += args.N * args.C * args.levels[level].H * args.levels[level].W;
  }
  const size_t bins = args.K * args.C * args.PH * args.PW;
  std::vector<char> rois = read_file(folder + "/rois");
  std::vector<char> features = forward ? read_file(folder + "/features") : unwritten<T>(cells);
  std::vector<char> pooled = forward ? unwritten<T>(bins) : read_file(folder + "/pooled");
  std::vector<char> argmax;
  if (kMaximum) {
    argmax = forward ? unwritten<int32_t>(bins) : read_file(folder + "/argmax");
    args.argmax = reinterpret_cast<int32_t*>(argmax.data());
  }
  args.rois = rois.data();
  args.pooled = pooled.data();
  char* map = features.data();
  for (int level = 0; level < args.num_levels; ++level) {
    args.levels[level].features = map;
    map += args.N * args.C * args.levels[level].H * args.levels[level].W * sizeof(T);
  }
  if (forward) {
    launch_roi_forward<Op, T>(args, nullptr);
    write_file(folder + "/argmax", argmax);
    args.argmax = nullptr;  // the same again without numbers of samples
    launch_roi_forward<Op, T>(args, nullptr);
    write_file(folder + "/pooled", pooled);
  } else {
    launch_roi_backward<Op, T>(args, nullptr);
    write_file(folder + "/features", features);
  }
}

template <typename T>
void run(const std::string& folder, bool forward, const RoiArgs& args) {
  if (args.rotated) {
    run<RoIAlignRotated, T>(folder, forward, args);
  } else {
    run<RoIAlignMax, T>(folder, forward, args);
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
  args.rotated = std::string(*next++) == "rotated";
  args.N = integer();
  args.C = integer();
  args.K = integer();
  const int64_t H = integer();
  const int64_t W = integer();
  args.num_levels = static_cast<int>(integer());
  args.PH = integer();
  args.PW = integer();
  const double spatial_scale = std::atof(*next++);
  args.sampling_ratio = integer();
  args.aligned = integer();
  args.channels_last = integer();
  args.canonical_scale = 20;
  for (int level = 0; level < args.num_levels; ++level) {
    args.levels[level] = {nullptr, H >> level, W >> level, spatial_scale / (1 << level)};
  }
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
