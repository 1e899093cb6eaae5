// nms FOLDER DTYPE B N IOU_THRESHOLD SCORE_THRESHOLD|none MAX_OUTPUT CHUNK
// Reads boxes, scores and, if it exists, idxs; writes indices and counts.
#include <sys/stat.h>

#include <cstdio>
#include <exception>

#include "common/cuda.cuh"
#include "files.h"
#include "ops/nms.h"

namespace {

bool exists(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0;
}

template <typename T>
void run(fastvision::NmsArgs args, int64_t chunk) {
  if (chunk == 0) {
    chunk = fastvision::nms_chunk(args.B, args.N);
  }
  // garbage, as an allocator gives it
  std::vector<char> workspace(fastvision::nms_workspace_bytes<T>(args, chunk), '\x5a');
  fastvision::launch_nms<T>(args, chunk, workspace.data(), nullptr);
}

}  // namespace

int main(int, char** argv) try {
  const std::string folder = std::string(argv[1]) + "/";
  const std::string dtype = argv[2];
  const std::string score_threshold = argv[6];
  const std::vector<char> boxes = cuda_emulation::read_file(folder + "boxes");
  const std::vector<char> scores = cuda_emulation::read_file(folder + "scores");
  const bool has_idxs = exists(folder + "idxs");
  const std::vector<char> idxs = cuda_emulation::read_file(folder + "idxs");

  fastvision::NmsArgs args{};
  args.boxes = boxes.data();
  args.scores = scores.data();
  args.idxs = has_idxs ? reinterpret_cast<const int64_t*>(idxs.data()) : nullptr;
  args.B = std::stoll(argv[3]);
  args.N = std::stoll(argv[4]);
  args.iou_threshold = std::stod(argv[5]);
  args.has_score_threshold = score_threshold != "none";
  args.score_threshold = args.has_score_threshold ? std::stod(score_threshold) : 0;
  args.max_output = std::stoll(argv[7]);
  std::vector<int64_t> indices(args.B * args.max_output, 12345);
  std::vector<int64_t> counts(args.B, 12345);
  args.indices = indices.data();
  args.counts = counts.data();

  const int64_t chunk = std::stoll(argv[8]);
  if (dtype == "float32") {
    run<float>(args, chunk);
  } else if (dtype == "float64") {
    run<double>(args, chunk);
  } else if (dtype == "float16") {
    run<fastvision::half_t>(args, chunk);
  } else if (dtype == "bfloat16") {
    run<fastvision::bfloat16_t>(args, chunk);
  } else {
    return 2;
  }
  cuda_emulation::write_file(folder + "indices", indices);
  cuda_emulation::write_file(folder + "counts", counts);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
