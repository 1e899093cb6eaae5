// Scratch memory of a worker: grows on demand, uninitialised.
#pragma once

#include <cstdint>
#include <memory>

namespace fastvision {

template <typename T>
class Scratch {
 public:
  T* get(int64_t size) {
    if (size > size_) {
      data_.reset(new T[size]);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

}  // namespace fastvision
