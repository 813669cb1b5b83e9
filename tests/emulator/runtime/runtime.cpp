// The scheduler: blocks one after another in a seeded order, the threads of a block as fibers that
// take turns wherever they wait for each other. Never compiled with -fsanitize=thread: it would see
// races in the scheduler's own memory.

#include "runtime.h"

#include <cxxabi.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "control.h"
#include "fibers.h"

#ifdef TDNET_EMULATOR_THREAD_SANITIZER
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

// Static shared memory: the linker gives the ends of a section these names.
extern "C" __attribute__((visibility("hidden"))) unsigned char __start_static_shared[],
    __stop_static_shared[];

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace tdnet_emulator {
namespace {

constexpr int kLanes = 32;
constexpr size_t kMostThreads = 1024;

enum class State : uint8_t { kReady, kInCollective, kAtBarrier, kReturned };

// A thread's copies in the order of issue; those before `first` have landed.
struct CopyQueue {
  struct Entry {
    Copy copy;
    uint32_t group;
  };
  std::vector<Entry> entries;
  size_t first;
  uint32_t group;  // the one that the next commit closes
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int warp, lane;
  State state;
  const char* waits_in;
  Where where;
  CopyQueue copies;
};

// A collective that some lanes of its mask have reached.
struct Meeting {
  const Collective* collective;
  unsigned mask, arrived;
  Where where;
};

struct Warp {
  unsigned ready, live;  // lanes
  int first_lane;        // where the search for a ready lane begins,
  bool backwards;        // and its direction
  Operands* operands[kLanes];
  Meeting meetings[kLanes];
  int meeting_count;
  // Two in turn: a fast lane may release the next one before a slow lane has acquired this one.
  char sync[2];
  unsigned sync_count;
};

struct Barrier {
  const char* name;
  Where where;  // of the first thread to arrive
  int arrived, returned;
  bool vote, result;
  char sync[2];
  unsigned count;
};

Control control;
Statistics statistics;

uint64_t random_state;
bool in_order;  // threads and blocks by number, else by chance
bool sticky;    // a thread runs until it waits; else another is chosen at every collective
std::deque<Thread> threads;
std::vector<Warp> warps;
Barrier barrier;
size_t thread_count;
int live_threads;
Fiber main_fiber;
Thread* running;  // null: the main fiber
const std::function<void()>* kernel_body;
const std::type_info* kernel_type;
std::string error;

unsigned char* dynamic;
size_t dynamic_bytes;
[[gnu::used]] __shared__ char anchor;  // makes this library have such a section at all

uint32_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

bool same_place(Where a, Where b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

bool dropped(Where where) {
  return where.line == control.dropped_line &&
         std::string_view(where.file).ends_with(control.dropped_file);
}

std::string text_of(Where where) {
  return std::string(where.file) + ":" + std::to_string(where.line);
}

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

// The type is that of a lambda in tdnet::cuda::launch(void (*kernel)(...), ...): the parameters of
// the kernel tell which one it is.
std::string kernel_text() {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(kernel_type->name(), nullptr, nullptr, &status), std::free);
  const std::string text = status == 0 ? name.get() : kernel_type->name();
  const std::string before = "(void (*)(";
  const size_t first = text.find(before), last = text.find("), dim3", first);
  if (first == std::string::npos || last == std::string::npos) return text;
  return text.substr(first + before.size() - 1, last + 1 - (first + before.size() - 1));
}

void switch_to(Thread* next) {
  Thread* const from = running;
  running = next;
  if (next != nullptr) threadIdx = next->index;
  Fiber::switch_to(from == nullptr ? main_fiber : from->fiber,
                   next == nullptr ? main_fiber : next->fiber,
                   from != nullptr && from->state == State::kReturned);
}

[[noreturn]] void fail_with(const std::string& what) {
  error = what + " [block " + text_of(blockIdx) + ", thread " + text_of(threadIdx) + ", kernel" +
          kernel_text() + "]";
  switch_to(nullptr);
  std::abort();
}

[[noreturn]] void fail_deadlock() {
  std::string text = "deadlock, no thread can go on:";
  int shown = 0;
  for (size_t i = 0; i < thread_count && shown < 4; ++i) {
    const Thread& thread = threads[i];
    if (thread.state == State::kReturned) continue;
    // One of each place is enough.
    bool seen = false;
    for (size_t j = 0; j < i; ++j) {
      seen |= threads[j].state == thread.state && same_place(threads[j].where, thread.where);
    }
    if (seen) continue;
    text += std::string(shown++ ? "; " : " ") + "thread " + text_of(thread.index) + " waits in " +
            thread.waits_in + " at " + text_of(thread.where);
  }
  fail_with(text);
}

int choose_lane(const Warp& warp) {
  const int by = warp.first_lane;
  const unsigned turned = by == 0 ? warp.ready : warp.ready >> by | warp.ready << (kLanes - by);
  const int lane = warp.backwards ? 31 - __builtin_clz(turned) : __builtin_ctz(turned);
  return (lane + by) % kLanes;
}

// Runs a ready thread, perhaps the same; the main fiber after the last thread has returned.
void run_next() {
  size_t warp = running == nullptr ? 0 : running->warp;
  const bool move =
      running == nullptr || warps[warp].ready == 0 || (!sticky && random_number() % 4 == 0);
  if (move) {
    const size_t count = warps.size(), first = in_order ? 0 : random_number() % count;
    size_t i = 0;
    while (i < count && warps[(first + i) % count].ready == 0) ++i;
    if (i == count) {
      if (live_threads > 0) fail_deadlock();
      return switch_to(nullptr);
    }
    warp = (first + i) % count;
  }
  Thread* const next = &threads[warp * kLanes + choose_lane(warps[warp])];
  if (next != running) switch_to(next);
}

void wait_in(State state, const char* name, Where where) {
  running->state = state;
  running->waits_in = name;
  running->where = where;
  warps[running->warp].ready &= ~(1u << running->lane);
}

void turn(Warp& warp) {
  if (in_order) return;
  warp.first_lane = static_cast<int>(random_number() % kLanes);
  warp.backwards = random_number() % 2 != 0;
}

void open_barrier() {
  if (barrier.returned > 0) {
    fail_with(text_of(barrier.where) + ": " + barrier.name + ": " +
              std::to_string(barrier.returned) + " threads of the block have returned already");
  }
  barrier.result = barrier.vote;
  barrier.vote = false;
  barrier.arrived = 0;
  ++barrier.count;
  ++statistics.barriers;
  for (size_t i = 0; i < thread_count; ++i) {
    Thread& thread = threads[i];
    thread.state = State::kReady;
    warps[thread.warp].ready |= 1u << thread.lane;
  }
}

void thread_main() {
  Fiber::entered();
  (*kernel_body)();
  Thread& self = *running;
  if (self.copies.first < self.copies.entries.size()) {
    fail_with("the thread returned before " +
              std::to_string(self.copies.entries.size() - self.copies.first) +
              " asynchronous copies of it had been waited for");
  }
  self.state = State::kReturned;
  Warp& warp = warps[self.warp];
  warp.ready &= ~(1u << self.lane);
  warp.live &= ~(1u << self.lane);
  --live_threads;
  ++barrier.returned;
  if (live_threads > 0 && barrier.arrived == live_threads) open_barrier();
  run_next();
  std::abort();
}

void prepare_thread(size_t i) {
  Thread& thread = threads[i];
  const auto index = static_cast<unsigned>(i);
  thread.index = {index % blockDim.x, index / blockDim.x % blockDim.y,
                  index / blockDim.x / blockDim.y};
  thread.warp = static_cast<int>(i / kLanes);
  thread.lane = static_cast<int>(i % kLanes);
  thread.state = State::kReady;
  thread.copies.entries.clear();
  thread.copies.first = 0;
  thread.copies.group = 0;
  thread.fiber.start(thread_main);
  warps[thread.warp].ready |= 1u << thread.lane;
  warps[thread.warp].live |= 1u << thread.lane;
}

void run_block() {
  ++statistics.blocks;
  while (threads.size() < thread_count) threads.emplace_back();
  warps.assign((thread_count + kLanes - 1) / kLanes, Warp{});
  barrier = {};
  live_threads = static_cast<int>(thread_count);
  running = nullptr;
  for (size_t i = 0; i < thread_count; ++i) prepare_thread(i);
  for (Warp& warp : warps) turn(warp);
  // NaN in every floating-point type.
  if (dynamic_bytes > 0) std::memset(dynamic, 0xff, dynamic_bytes);
  std::memset(__start_static_shared, 0xff, __stop_static_shared - __start_static_shared);
  for (size_t i = 0; i < thread_count; ++i) Fiber::order(main_fiber, threads[i].fiber);
  run_next();
  for (size_t i = 0; i < thread_count; ++i) Fiber::order(main_fiber, threads[i].fiber);
}

// What a launch is refused for; empty: nothing.
std::string refusal(dim3 grid, dim3 block, size_t shared_bytes) {
  const size_t size = size_t{block.x} * block.y * block.z;
  if (size == 0 || size > kMostThreads || block.z > 64) return "threads in a block";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "blocks in the grid";
  if (shared_bytes > control.most_shared) return "dynamic shared memory";
  return {};
}

}  // namespace

Control& settings() { return control; }
Statistics& counts() { return statistics; }

void fail(Where where, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  fail_with(text_of(where) + ": " + text);
}

unsigned char* dynamic_shared() { return dynamic; }

bool in_shared_memory(const void* first, size_t bytes) {
  const auto within = [&](const unsigned char* begin, size_t size) {
    const auto offset = reinterpret_cast<uintptr_t>(first) - reinterpret_cast<uintptr_t>(begin);
    return begin != nullptr && offset <= size && size - offset >= bytes;
  };
  return within(dynamic, dynamic_bytes) ||
         within(__start_static_shared, __stop_static_shared - __start_static_shared);
}

cudaError_t launch_blocks(dim3 grid, dim3 block, size_t shared_bytes, const std::type_info& kernel,
                          const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  ++statistics.launches;
  kernel_type = &kernel;
  kernel_body = &body;
  error = refusal(grid, block, shared_bytes);
  if (!error.empty()) {
    error = "invalid launch: " + error + " [kernel" + kernel_text() + "]";
    return cudaErrorLaunchFailure;
  }
  random_state = control.seed * 0x9e3779b97f4a7c15u | 1;
  in_order = control.seed == 0;
  sticky = control.seed % 2 == 0;
  blockDim = block;
  gridDim = grid;
  thread_count = size_t{block.x} * block.y * block.z;
  // Of exactly this size, so that AddressSanitizer guards its end.
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, shared_bytes) != 0) return cudaErrorMemoryAllocation;
  const std::unique_ptr<void, void (*)(void*)> shared(memory, std::free);
  dynamic = static_cast<unsigned char*>(memory);
  dynamic_bytes = shared_bytes;

  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); !in_order && i > 1; --i) {
    std::swap(order[i - 1], order[random_number() % i]);
  }
  for (size_t i = 0; i < order.size() && error.empty(); ++i) {
    blockIdx = {static_cast<unsigned>(order[i] % grid.x),
                static_cast<unsigned>(order[i] / grid.x % grid.y),
                static_cast<unsigned>(order[i] / grid.x / grid.y)};
    run_block();
  }
  dynamic = nullptr;
  dynamic_bytes = 0;
  return error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

bool block_barrier(const char* name, bool vote, Where where) {
  if (dropped(where)) return vote;
  if (barrier.arrived == 0) {
    barrier.name = name;
    barrier.where = where;
  } else if (!same_place(barrier.where, where)) {
    fail_with(text_of(where) + ": " + name + " while other threads are in " + barrier.name +
              " at " + text_of(barrier.where));
  }
  char* const sync = &barrier.sync[barrier.count % 2];
  __tsan_release(sync);
  barrier.vote |= vote;
  wait_in(State::kAtBarrier, name, where);
  if (++barrier.arrived == live_threads) open_barrier();
  run_next();
  __tsan_acquire(sync);
  return barrier.result;
}

void meet(const Collective& collective, unsigned mask, Operands& operands, Where where) {
  if (collective.orders_memory && dropped(where)) return;
  Thread& self = *running;
  Warp& warp = warps[self.warp];
  const unsigned bit = 1u << self.lane;
  const size_t lanes = thread_count - size_t(self.warp) * kLanes;
  if (lanes < kLanes) mask &= (1u << lanes) - 1;
  if (!(mask & bit)) {
    fail(where, "%s: the calling lane %d is not in the mask %08x", collective.name, self.lane,
         mask);
  }
  if (mask & ~warp.live) {
    fail(where, "%s: lanes %08x of the mask %08x have returned already", collective.name,
         mask & ~warp.live, mask);
  }
  int place = 0;
  while (place < warp.meeting_count && !(warp.meetings[place].mask & mask)) ++place;
  Meeting& meeting = warp.meetings[place];
  if (place == warp.meeting_count) {
    meeting = {&collective, mask, 0, where};
    ++warp.meeting_count;
  } else if (meeting.mask != mask || meeting.collective != &collective ||
             !same_place(meeting.where, where)) {
    fail(where, "%s (mask %08x) while other lanes of the warp are in %s (mask %08x) at %s:%d",
         collective.name, mask, meeting.collective->name, meeting.mask, meeting.where.file,
         meeting.where.line);
  }
  meeting.arrived |= bit;
  warp.operands[self.lane] = &operands;
  char* const sync = &warp.sync[warp.sync_count % 2];
  if (collective.orders_memory) __tsan_release(sync);
  if (meeting.arrived != mask) {
    wait_in(State::kInCollective, collective.name, where);
    run_next();
  } else {
    collective.compute(warp.operands, mask);
    ++statistics.collectives;
    warp.sync_count += collective.orders_memory;
    meeting = warp.meetings[--warp.meeting_count];
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      threads[self.warp * kLanes + __builtin_ctz(rest)].state = State::kReady;
    }
    warp.ready |= mask;
    turn(warp);
    if (!sticky) run_next();
  }
  if (collective.orders_memory) __tsan_acquire(sync);
}

bool lands_at_once(const Copy& copy) {
  ++statistics.copies;
  const bool later = control.copies == kCopiesLazy ||
                     (control.copies == kCopiesRandom && random_number() % 2 != 0);
  if (!later) return true;
  CopyQueue& queue = running->copies;
  if (queue.first == queue.entries.size()) {
    queue.entries.clear();
    queue.first = 0;
  }
  queue.entries.push_back({copy, queue.group});
  return false;
}

void copy_async_commit() { ++running->copies.group; }

const Copy* next_landing(uint32_t newest, Where where) {
  CopyQueue& queue = running->copies;
  if (dropped(where) || queue.first == queue.entries.size() ||
      queue.entries[queue.first].group + newest >= queue.group) {
    return nullptr;
  }
  return &queue.entries[queue.first++].copy;
}

}  // namespace tdnet_emulator

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorLaunchFailure:
      return tdnet_emulator::error.c_str();
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return "another error";
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const tdnet_emulator::Control& control = tdnet_emulator::settings();
  *value = static_cast<int>(attribute == cudaDevAttrMultiProcessorCount ? control.multiprocessors
                                                                        : control.most_shared);
  return cudaSuccess;
}
