#include "fiber.h"

#include <cstdint>

#if defined(__x86_64__)
// saves the registers that a call preserves and the stack pointer to *rdi, continues on the stack
// rsi
extern "C" void cuda_emulation_switch(void** save, void* stack_pointer);
asm(R"(
.text
.globl cuda_emulation_switch
.type cuda_emulation_switch, @function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_switch, .-cuda_emulation_switch
)");
#endif

namespace cuda_emulation {

Context* Context::left_;

Context::Context(void (*entry)())
    : stack_(new unsigned char[kStackBytes]), bottom_(stack_.get()), size_(kStackBytes) {
#if defined(__x86_64__)
  constexpr int kSavedRegisters = 6;
  // entry finds the stack as a call leaves it: 8 below a multiple of 16, a return address on top
  const auto top = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) / 16 * 16;
  auto** slots = reinterpret_cast<void**>(top) - (kSavedRegisters + 2);
  for (int i = 0; i < kSavedRegisters; ++i) {
    slots[i] = nullptr;
  }
  slots[kSavedRegisters] = reinterpret_cast<void*>(entry);
  slots[kSavedRegisters + 1] = nullptr;
  stack_pointer_ = slots;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Context::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &left_->bottom_, &left_->size_);
#endif
}

void Context::enter(Context& from) {
  left_ = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, bottom_, size_);
#endif
#if defined(__x86_64__)
  cuda_emulation_switch(&from.stack_pointer_, stack_pointer_);
#else
  swapcontext(&from.context_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, &left_->bottom_, &left_->size_);
#endif
}

}  // namespace cuda_emulation
