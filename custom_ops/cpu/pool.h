// Work shared out over ONNX Runtime's own threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rocline::cpu {

class Pool {
 public:
  using ParallelFor = void (*)(void* context, void (*body)(void*, std::size_t), std::size_t parts, void* argument);
  Pool(void* context, ParallelFor parallel_for) : context_(context), parallel_for_(parallel_for) {}

  // Calls function(begin, end) for pieces of [0, total), each of at least `grain` items (the last may be smaller),
  // from several threads at once.  A grain that is worth a thread takes some ten microseconds.
  template <class F>
  void ranges(std::int64_t total, std::int64_t grain, const F& function) const {
    if (total <= 0) return;
    // More pieces than threads, so that a thread that starts late does not hold up the others.
    constexpr std::int64_t most = 64;
    std::int64_t parts = grain > 0 ? total / grain : total;
    parts = parts < 1 ? 1 : parts > most ? most : parts;
    if (parts == 1) return function(std::int64_t{0}, total);
    struct Job {
      const F& function;
      std::int64_t total, parts;
    } job{function, total, parts};
    parallel_for_(
        context_,
        [](void* argument, std::size_t part) {
          const Job& work = *static_cast<Job*>(argument);
          const auto p = static_cast<std::int64_t>(part);
          // Split without total * parts, which could overflow.
          const std::int64_t size = work.total / work.parts, left = work.total % work.parts;
          const std::int64_t begin = p * size + (p < left ? p : left);
          work.function(begin, begin + size + (p < left ? 1 : 0));
        },
        static_cast<std::size_t>(parts), &job);
  }

 private:
  void* context_;
  ParallelFor parallel_for_;
};

}  // namespace rocline::cpu
