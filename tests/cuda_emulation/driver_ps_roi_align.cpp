// PSRoIAlign's and PSRoIPool's launchers on arrays in files:
//   ps_roi_align FOLDER forward|backward DTYPE align|pool N C K H W PH PW SPATIAL_SCALE
//       SAMPLING_RATIO CHANNELS_LAST
// reads rois, and features (forward) or pooled (backward); writes the other.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/ps_roi_align.h"
#include "ops/ps_roi_pool.h"

using namespace fastvision;

namespace {

// What a kernel forgets to write shows.
template <typename T>
std::vector<char> unwritten(size_t size) {
  return std::vector<char>(size * sizeof(T), '\xff');
}

template <typename Op, typename T>
void run_op(const std::string& folder, bool forward, RoiArgs args) {
  using cuda_emulation::read_file;
  using cuda_emulation::write_file;
  RoiLevel& map = args.levels[0];
  std::vector<char> rois = read_file(folder + "/rois");
  std::vector<char> features =
      forward ? read_file(folder + "/features") : unwritten<T>(args.N * args.C * map.H * map.W);
  std::vector<char> pooled =
      forward ? unwritten<T>(args.K * args.C) : read_file(folder + "/pooled");
  args.rois = rois.data();
  map.features = features.data();
  args.pooled = pooled.data();
  if (forward) {
    launch_roi_forward<Op, T>(args, nullptr);
    write_file(folder + "/pooled", pooled);
  } else {
    launch_roi_backward<Op, T>(args, nullptr);
    write_file(folder + "/features", features);
  }
}

template <typename T>
void run(const std::string& folder, bool forward, bool align, const RoiArgs& args) {
  if (align) {
    run_op<PSRoIAlign, T>(folder, forward, args);
  } else {
    run_op<PSRoIPool, T>(folder, forward, args);
  }
}

}  // namespace

int main(int, char** argv) {
  char** next = argv + 1;
  const std::string folder = *next++;
  const bool forward = std::string(*next++) == "forward";
  const std::string dtype = *next++;
  const bool align = std::string(*next++) == "align";
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
  args.sampling_ratio = integer();
  args.channels_last = integer();
  args.aligned = true;
  args.num_levels = 1;
  if (dtype == "float32") {
    run<float>(folder, forward, align, args);
  } else if (dtype == "float64") {
    run<double>(folder, forward, align, args);
  } else if (dtype == "float16") {
    run<half_t>(folder, forward, align, args);
  } else if (dtype == "bfloat16") {
    run<bfloat16_t>(folder, forward, align, args);
  } else {
    std::fprintf(stderr, "unknown dtype %s\n", dtype.c_str());
    return 1;
  }
}
