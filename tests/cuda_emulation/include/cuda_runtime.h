// Stands in for CUDA's header of this name when a .cu file is compiled for the host: launches and
// memory calls here, what threads do in device.h. Only what the kernels of csrc/cuda use.
#pragma once

#include <cstring>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "../device.h"
#include "../scheduler.h"

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_emulation {

inline cudaError_t last_error = cudaSuccess;
inline std::unordered_map<const void*, size_t> shared_limits;  // raised by cudaFuncSetAttribute

inline cudaError_t record(cudaError_t error) { return last_error = error; }

// what compute capability 7.5 and later allow
inline bool launchable(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto limit = shared_limits.find(kernel);
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffffu &&
         grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 &&
         config.dynamicSmemBytes <= (limit == shared_limits.end() ? 48 * 1024 : limit->second);
}

}  // namespace cuda_emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments
) {
  if (!cuda_emulation::launchable(*config, reinterpret_cast<const void*>(kernel))) {
    return cuda_emulation::record(cudaErrorInvalidConfiguration);
  }
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  cuda_emulation::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] {
    std::apply(kernel, parameters);
  });
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  constexpr int kLargestOfAnyDevice = 227 * 1024;
  if (value > kLargestOfAnyDevice) {
    return cuda_emulation::record(cudaErrorInvalidValue);
  }
  cuda_emulation::shared_limits[kernel] = value;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  return std::exchange(cuda_emulation::last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "invalid argument";
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(
    void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr
) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
