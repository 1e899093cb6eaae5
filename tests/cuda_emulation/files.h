// Arrays in files, for the drivers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace cuda_emulation {

// Every array is an allocation of exactly its size, so that AddressSanitizer sees the first wrong
// byte.
inline std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  bytes.shrink_to_fit();
  return bytes;
}

template <typename T>
void write_file(const std::string& path, const std::vector<T>& array) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(array.data()), array.size() * sizeof(T));
}

}  // namespace cuda_emulation
