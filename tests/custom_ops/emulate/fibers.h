// A block of GPU threads on one thread of the host: each is a fiber that runs until it must wait for others, at a
// barrier or at an exchange between the lanes of its wave.  What a device leaves undefined ends the process with a
// message: an exchange with a lane that has left, or threads that wait for one another for ever.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#error "the fibers switch stacks in x86-64 assembly"
#endif

namespace emulate {

// Saves the running fiber's stack pointer at `from` and goes on with the one saved as `to`.
__attribute__((naked, noinline)) inline void switch_stack([[maybe_unused]] void** from, [[maybe_unused]] void* to) {
  asm volatile(
      "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

class Block {
 public:
  static constexpr unsigned kMostThreads = 1024, kWave = ROCLINE_WAVE;
  static constexpr std::size_t kStack = 128 << 10;

  unsigned x = 0, y = 0, z = 0, threads = 0, current = 0;

  Block() {
    void* stacks = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) fail("no memory for the fibers' stacks");
    stacks_ = static_cast<char*>(stacks);
  }
  ~Block() { munmap(stacks_, kMostThreads * kStack); }

  // Runs body(argument) once for each of `count` threads.
  void run(unsigned count, const char* kernel, void (*body)(const void*), const void* argument) {
    if (count > kMostThreads || count % kWave) fail("a block is made of whole waves, of 1024 threads at most");
    threads = count, kernel_ = kernel, body_ = body, argument_ = argument;
    alive_ = count, at_barrier_ = 0, barriers_ = 0;
    for (Wave& wave : waves_) wave = {};
    for (unsigned i = 0; i < count; ++i) {
      done_[i] = false;
      // What switch_stack pops: six registers, then the address that it returns to, at which the stack is as after a
      // call.
      auto** top = reinterpret_cast<void**>(stacks_ + (i + 1) * kStack) - 2;
      *top = reinterpret_cast<void*>(&enter);
      for (int k = 0; k < 6; ++k) *--top = nullptr;
      stack_[i] = top;
    }
    current = 0;
    switch_stack(&host_, stack_[0]);
  }

  void barrier() {
    const unsigned seen = barriers_;
    ++at_barrier_;
    open_barrier();
    while (barriers_ == seen) wait();
  }

  std::uint32_t exchange(std::uint32_t value, unsigned from) {
    Wave& wave = waves_[current / kWave];
    const unsigned seen = meet(wave, value), source = current / kWave * kWave + from;
    if (!(wave.present[seen % 2] >> from & 1)) fail("thread %u reads thread %u, which has left", current, source);
    return wave.values[seen % 2][from];
  }

  std::uint64_t ballot(bool vote) {
    Wave& wave = waves_[current / kWave];
    const unsigned seen = meet(wave, vote);
    std::uint64_t votes = 0;
    for (unsigned i = 0; i < kWave; ++i)
      votes |= std::uint64_t{wave.present[seen % 2] >> i & 1 && wave.values[seen % 2][i]} << i;
    return votes;
  }

 private:
  // Lanes meet again and again; a lane that is ahead writes the other of two sets of values.
  struct Wave {
    unsigned meetings = 0, here = 0, left = 0;
    std::uint64_t present[2] = {};
    std::uint32_t values[2][kWave] = {};
  };

  unsigned meet(Wave& wave, std::uint32_t value) {
    const unsigned seen = wave.meetings, own = current % kWave;
    if (wave.here == 0) wave.present[seen % 2] = 0;
    wave.values[seen % 2][own] = value;
    wave.present[seen % 2] |= std::uint64_t{1} << own;
    ++wave.here;
    close_meeting(wave);
    while (wave.meetings == seen) wait();
    return seen;
  }
  void close_meeting(Wave& wave) {
    if (wave.here == 0 || wave.here + wave.left < kWave) return;
    wave.here = 0;
    ++wave.meetings;
    idle_ = 0;
  }
  void open_barrier() {
    if (at_barrier_ == 0 || at_barrier_ < alive_) return;
    at_barrier_ = 0;
    ++barriers_;
    idle_ = 0;
  }

  // Goes on with the next thread that has not ended.
  void wait() {
    if (++idle_ > 2 * threads)
      fail("its threads wait for one another for ever (%u at a barrier, %u alive)", at_barrier_, alive_);
    next();
  }
  void next() {
    const unsigned from = current;
    do current = current + 1 == threads ? 0 : current + 1;
    while (done_[current]);
    if (current != from) switch_stack(&stack_[from], stack_[current]);
  }

  static void enter();
  [[noreturn]] void end() {
    const unsigned from = current;
    done_[from] = true;
    --alive_;
    idle_ = 0;
    Wave& wave = waves_[from / kWave];
    ++wave.left;
    close_meeting(wave);
    open_barrier();
    void* unused;
    if (alive_ == 0) switch_stack(&unused, host_);
    do current = current + 1 == threads ? 0 : current + 1;
    while (done_[current]);
    switch_stack(&unused, stack_[current]);
    __builtin_unreachable();
  }

  template <class... Args>
  [[noreturn]] void fail(const char* format, Args... args) {
    std::fprintf(stderr, "emulated kernel %s, block (%u, %u, %u): ", kernel_, x, y, z);
    std::fprintf(stderr, format, args...);
    std::fputc('\n', stderr);
    std::abort();
  }

  char* stacks_ = nullptr;
  const char* kernel_ = "";
  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
  void *host_ = nullptr, *stack_[kMostThreads];
  bool done_[kMostThreads];
  unsigned alive_ = 0, at_barrier_ = 0, barriers_ = 0, idle_ = 0;
  Wave waves_[kMostThreads / kWave];
};

inline Block& block() {
  static Block instance;
  return instance;
}

inline void Block::enter() {
  Block& self = block();
  self.body_(self.argument_);
  self.end();
}

}  // namespace emulate

// What the host side calls, by name, in each kernel's library.
extern "C" __attribute__((visibility("default"), used)) inline void rocline_emulate(unsigned x, unsigned y, unsigned z,
                                                                                    unsigned threads,
                                                                                    const char* kernel,
                                                                                    void (*body)(const void*),
                                                                                    const void* argument) {
  emulate::Block& block = emulate::block();
  for (block.z = 0; block.z < z; ++block.z)
    for (block.y = 0; block.y < y; ++block.y)
      for (block.x = 0; block.x < x; ++block.x) block.run(threads, kernel, body, argument);
}
