// Focal loss's launchers on arrays in files:
//   focal_loss FOLDER sigmoid|softmax DTYPE K LABELS ALPHA GAMMA GRAD_SCALE REDUCE IGNORE_INDEX
//              OFFSET WEIGHTED ROWS...
// reads inputs0, targets0, inputs1, ... and weights, writes total or losses, and grads0, ...
//   focal_loss FOLDER scale DTYPE COUNT SCALE OFFSET
// reads grads0 and factor, and writes grads0.
// Arrays of the logits' type begin OFFSET elements after an aligned address.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/focal_loss.h"

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

struct Options {
  std::string folder, operation;
  FocalArgs args{};
  bool reduce, weighted;
  size_t offset;
  int64_t count;
  double scale;
};

template <typename T>
void scale(const Options& options) {
  using A = accumulate_t<T>;
  const std::string path = options.folder + "/grads0";
  Array<T> grads(path, options.offset);
  Array<A> factor(options.folder + "/factor", 0);
  launch_focal_loss_scale<T>(grads.data(), options.count, factor.data(), options.scale, nullptr);
  grads.write(path);
}

template <typename T>
void loss(Options options) {
  using A = accumulate_t<T>;
  FocalArgs& args = options.args;
  const bool softmax = options.operation == "softmax";
  std::vector<Array<T>> inputs, numbers, grads;
  std::vector<std::vector<char>> labels;
  const auto path = [&](const char* name, int i) {
    return options.folder + "/" + name + std::to_string(i);
  };
  for (int i = 0; i < args.num_levels; ++i) {
    FocalLevel& level = args.levels[i];
    inputs.emplace_back(path("inputs", i), options.offset);
    level.inputs = inputs.back().data();
    if (args.labels) {
      labels.push_back(cuda_emulation::read_file(path("targets", i)));
      level.targets = labels.back().data();
    } else {
      numbers.emplace_back(path("targets", i), options.offset);
      level.targets = numbers.back().data();
    }
    if (args.grad_scale != 0) {
      grads.emplace_back(level.rows * args.K, options.offset);
      level.grads = grads.back().data();
    }
  }
  Array<A> weights =
      options.weighted ? Array<A>(options.folder + "/weights", 0) : Array<A>(size_t{0}, 0);
  args.class_weights = options.weighted ? weights.data() : nullptr;
  Array<T> losses(
      options.reduce ? 0 : args.levels[0].rows * (softmax ? 1 : args.K), options.offset
  );
  Array<A> total(size_t{1}, 0);
  args.levels[0].losses = options.reduce ? nullptr : losses.data();
  std::vector<char> workspace(focal_loss_workspace_bytes(), char(0xff));
  void* sum = options.reduce ? total.data() : nullptr;
  if (softmax) {
    launch_softmax_focal_loss<T>(args, sum, workspace.data(), nullptr);
  } else {
    launch_sigmoid_focal_loss<T>(args, sum, workspace.data(), nullptr);
  }
  if (options.reduce) {
    total.write(options.folder + "/total");
  } else {
    losses.write(options.folder + "/losses");
  }
  for (size_t i = 0; i < grads.size(); ++i) {
    grads[i].write(path("grads", static_cast<int>(i)));
  }
}

template <typename T>
void run(const Options& options) {
  if (options.operation == "scale") {
    scale<T>(options);
  } else {
    loss<T>(options);
  }
}

}  // namespace

int main(int argc, char** argv) {
  char** next = argv + 1;
  Options options;
  options.folder = *next++;
  options.operation = *next++;
  const std::string dtype = *next++;
  const auto integer = [&] { return std::atoll(*next++); };
  const auto real = [&] { return std::atof(*next++); };
  FocalArgs& args = options.args;
  if (options.operation == "scale") {
    options.count = integer();
    options.scale = real();
    options.offset = integer();
  } else {
    args.K = integer();
    args.labels = integer();
    args.alpha = real();
    args.gamma = real();
    args.grad_scale = real();
    options.reduce = integer();
    args.ignore_index = integer();
    options.offset = integer();
    options.weighted = integer();
    for (; next < argv + argc; ++args.num_levels) {
      args.levels[args.num_levels].rows = integer();
    }
  }
  if (dtype == "float32") {
    run<float>(options);
  } else if (dtype == "float64") {
    run<double>(options);
  } else if (dtype == "float16") {
    run<half_t>(options);
  } else if (dtype == "bfloat16") {
    run<bfloat16_t>(options);
  } else {
    std::fprintf(stderr, "unknown dtype %s\n", dtype.c_str());
    return 1;
  }
}
