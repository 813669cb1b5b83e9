// A fiber is a stack on which a function runs until it switches to another fiber. A switch costs
// some 20 ns on x86-64; elsewhere ucontext does it.

#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(TDNET_EMULATOR_UCONTEXT)
#define TDNET_EMULATOR_WITH_UCONTEXT 1
#include <ucontext.h>
#endif

namespace tdnet_emulator {

class Fiber {
 public:
  Fiber() = default;  // the stack of the caller
  Fiber(const Fiber&) = delete;

  // Makes the next switch to this fiber call `function`, which must never return.
  void start(void (*function)());

  // From the running fiber `from`; it runs again after a switch back, never if it `ends`.
  static void switch_to(Fiber& from, Fiber& to, bool ends = false);
  // Orders what `main` did before every access of `fibers` after, and the other way round.
  static void order(Fiber& main, Fiber& fiber);
  // `function` of start() calls this first.
  static void entered();

 private:
  static constexpr size_t kStackBytes = 256 << 10;

  char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;    // of AddressSanitizer
  void* thread_state_ = nullptr;  // of ThreadSanitizer
#ifdef TDNET_EMULATOR_WITH_UCONTEXT
  ucontext_t context_;
#endif
};

}  // namespace tdnet_emulator
