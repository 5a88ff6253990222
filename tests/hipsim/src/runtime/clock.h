// Vector clocks: what is known to be complete, as the number of the last such operation of each stream.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace hipsim {

class Clock {
 public:
  void join(const Clock& other) {
    if (seen_.size() < other.seen_.size()) seen_.resize(other.seen_.size());
    for (std::size_t i = 0; i < other.seen_.size(); ++i) seen_[i] = std::max(seen_[i], other.seen_[i]);
  }
  std::uint32_t of(int stream) const {
    return static_cast<std::size_t>(stream) < seen_.size() ? seen_[static_cast<std::size_t>(stream)] : 0;
  }
  // One more operation of the stream; returns its number.
  std::uint32_t advance(int stream) {
    if (seen_.size() <= static_cast<std::size_t>(stream)) seen_.resize(static_cast<std::size_t>(stream) + 1);
    return ++seen_[static_cast<std::size_t>(stream)];
  }

 private:
  std::vector<std::uint32_t> seen_;
};

}  // namespace hipsim
