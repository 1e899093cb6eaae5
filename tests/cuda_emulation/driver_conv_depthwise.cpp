// The depthwise convolution's launcher on arrays in files:
//   conv_depthwise FOLDER DTYPE N C H W OH OW TAPS STRIDE PAD_TOP PAD_LEFT ACTIVATION SLOPE
// reads input, weight and, where the files are not empty, scale, shift and residual; writes output.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/conv_depthwise.h"

using namespace fastvision;

namespace {

template <typename T>
void run(const std::string& folder, DepthwiseArgs args) {
  std::vector<char> input = cuda_emulation::read_file(folder + "/input");
  std::vector<char> weight = cuda_emulation::read_file(folder + "/weight");
  std::vector<char> scale = cuda_emulation::read_file(folder + "/scale");
  std::vector<char> shift = cuda_emulation::read_file(folder + "/shift");
  std::vector<char> residual = cuda_emulation::read_file(folder + "/residual");
  const size_t size = size_t(args.N) * args.OH * args.OW * args.C * sizeof(T);
  std::vector<char> output(size, char(0xff));
  args.input = input.data();
  args.weight = weight.data();
  args.scale = scale.empty() ? nullptr : reinterpret_cast<float*>(scale.data());
  args.shift = shift.empty() ? nullptr : reinterpret_cast<float*>(shift.data());
  args.residual = residual.empty() ? nullptr : residual.data();
  args.output = output.data();
  launch_conv_depthwise<T>(args, nullptr);
  cuda_emulation::write_file(folder + "/output", output);
}

}  // namespace

int main(int, char** argv) {
  char** next = argv + 1;
  const std::string folder = *next++;
  const std::string dtype = *next++;
  const auto integer = [&] { return std::atoi(*next++); };
  DepthwiseArgs args{};
  args.N = integer();
  args.C = integer();
  args.H = integer();
  args.W = integer();
  args.OH = integer();
  args.OW = integer();
  args.taps = integer();
  args.stride = integer();
  args.pad_top = integer();
  args.pad_left = integer();
  args.activation = static_cast<Activation>(integer());
  args.negative_slope = static_cast<float>(std::atof(*next++));
  if (dtype == "float32") {
    run<float>(folder, args);
  } else if (dtype == "float16") {
    run<half_t>(folder, args);
  } else if (dtype == "bfloat16") {
    run<bfloat16_t>(folder, args);
  } else {
    std::fprintf(stderr, "unknown dtype %s\n", dtype.c_str());
    return 1;
  }
}
