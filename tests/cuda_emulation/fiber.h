// Stacks to switch between, without the system calls of <ucontext.h> where the machine is known.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {

class Context {
 public:
  // the context of the caller's own stack, filled when it is left
  Context() = default;
  // a new stack that begins with entry(), which never returns
  explicit Context(void (*entry)());

  // Leaves `from`, which is running, for this one; returns when something enters `from` again.
  void enter(Context& from);

  // called first thing on a new stack
  static void entered();

 private:
  static constexpr size_t kStackBytes = 128 * 1024;
  std::unique_ptr<unsigned char[]> stack_;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  // for AddressSanitizer
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  static Context* left_;  // by the last switch
};

}  // namespace cuda_emulation
