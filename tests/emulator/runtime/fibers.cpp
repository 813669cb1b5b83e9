#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>

#ifdef __SANITIZE_ADDRESS__
extern "C" {
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
}
#endif
#ifdef TDNET_EMULATOR_THREAD_SANITIZER
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

#ifndef TDNET_EMULATOR_WITH_UCONTEXT
// Saves the registers that a call keeps, and the stack pointer to *save; goes on at `load`.
extern "C" void tdnet_emulator_switch(void** save, void* load);
asm(R"(
.text
.hidden tdnet_emulator_switch
.globl tdnet_emulator_switch
.type tdnet_emulator_switch,@function
tdnet_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tdnet_emulator_switch,.-tdnet_emulator_switch
)");
#endif

namespace tdnet_emulator {
namespace {

[[maybe_unused]] Fiber* left = nullptr;  // the fiber that the last switch came from

char* map_stack(size_t bytes) {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, bytes + guard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, guard, PROT_NONE);
  return static_cast<char*>(memory) + guard;
}

}  // namespace

void Fiber::start(void (*function)()) {
  if (stack_ == nullptr) {
    stack_ = map_stack(kStackBytes);
    stack_bytes_ = kStackBytes;
#ifdef TDNET_EMULATOR_THREAD_SANITIZER
    thread_state_ = __tsan_create_fiber(0);
#endif
  }
  fake_stack_ = nullptr;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, stack_bytes_);  // from frames that were never left
#endif
#ifdef TDNET_EMULATOR_WITH_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, function, 0);
#else
  // As if `function` had been called from nowhere: a return address of null, the six registers.
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes_);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(function);
  top -= 6;
  std::memset(top, 0, 6 * sizeof(void*));
  stack_pointer_ = top;
#endif
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  left->stack_ = static_cast<char*>(const_cast<void*>(bottom));
  left->stack_bytes_ = bytes;
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
#ifdef __SANITIZE_ADDRESS__
  left = &from;
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
#ifdef TDNET_EMULATOR_THREAD_SANITIZER
  constexpr unsigned kOrdersNothing = 1;
  __tsan_switch_to_fiber(to.thread_state_, kOrdersNothing);
#endif
#ifdef TDNET_EMULATOR_WITH_UCONTEXT
  swapcontext(&from.context_, &to.context_);
#else
  tdnet_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(from.fake_stack_, &bottom, &bytes);
#endif
}

void Fiber::order([[maybe_unused]] Fiber& main, [[maybe_unused]] Fiber& fiber) {
#ifdef TDNET_EMULATOR_THREAD_SANITIZER
  main.thread_state_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.thread_state_, 0);
  __tsan_switch_to_fiber(main.thread_state_, 0);
#endif
}

}  // namespace tdnet_emulator
