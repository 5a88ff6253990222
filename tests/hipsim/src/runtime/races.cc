// The race detector: for every range of memory, who wrote it last and who has read it since.
#include <map>
#include <vector>

#include "access.h"
#include "memory.h"

namespace hipsim {
namespace {

struct Past {
  const Queue* queue = nullptr;
  std::uint32_t epoch = 0;
  std::uint64_t call = 0;
  std::string name;
};
struct Segment {
  std::uintptr_t end;
  Past writer;
  std::vector<Past> readers;  // one a stream
};
using Segments = std::map<std::uintptr_t, Segment>;
Segments& segments = *new Segments;

void split(std::uintptr_t at) {
  auto found = segments.upper_bound(at);
  if (found == segments.begin()) return;
  --found;
  if (found->first < at && at < found->second.end) {
    Segment upper = found->second;
    found->second.end = at;
    segments.emplace(at, std::move(upper));
  }
}

bool ordered(const Past& earlier, const Operation& later) {
  return !earlier.queue || later.clock.of(earlier.queue->index) >= earlier.epoch;
}

// What would have ordered them.
std::string missing_edge(const Past& earlier, const Operation& later) {
  const Queue& queue = *later.queue;
  const std::uint32_t known = later.clock.of(earlier.queue->index);
  std::string text = queue.name + " has ";
  text += known ? format("waited for %s only up to its operation %u, not %u", earlier.queue->name.c_str(), known,
                         earlier.epoch)
                : "never waited for " + earlier.queue->name;
  if ((&queue == &null_queue() && !earlier.queue->blocking) || (earlier.queue == &null_queue() && !queue.blocking))
    text += "; a non-blocking stream and the null stream do not wait for each other";
  return text + "; missing: an event recorded on " + earlier.queue->name + " after the first and waited for by " +
         queue.name + " before the second, or the host waiting in between";
}

void report(const char* kind, const Past& earlier, const Operation& later, std::uintptr_t start, std::uintptr_t end) {
  found("race",
        std::string(kind) + ": " + describe(later) + ", and before it " + earlier.name +
            format(" (call %llu) on ", static_cast<unsigned long long>(earlier.call)) + describe(*earlier.queue) +
            ": " + describe_range(start, end) + "; " + missing_edge(earlier, later),
        kind + earlier.name + earlier.queue->name + later.task.name + later.queue->name);
}

void check_segment(const Operation& operation, std::uintptr_t start, Segment& segment, bool writes) {
  const Past self{operation.queue, operation.epoch, operation.call, operation.task.name};
  if (!ordered(segment.writer, operation))
    report(writes ? "write after write" : "read after write", segment.writer, operation, start, segment.end);
  if (writes) {
    for (const Past& reader : segment.readers)
      if (!ordered(reader, operation)) report("write after read", reader, operation, start, segment.end);
    segment.readers.clear();
    segment.writer = self;
    return;
  }
  for (Past& reader : segment.readers)
    if (reader.queue == self.queue) {
      reader = self;
      return;
    }
  segment.readers.push_back(self);
}

}  // namespace

void check_race(const Operation& operation, std::uintptr_t start, std::uintptr_t end, bool writes) {
  split(start);
  split(end);
  auto at = segments.lower_bound(start);
  for (std::uintptr_t from = start; from < end;) {
    if (at == segments.end() || at->first > from) {
      const std::uintptr_t until = at == segments.end() ? end : std::min(end, at->first);
      at = segments.emplace_hint(at, from, Segment{until, {}, {}});
    }
    check_segment(operation, at->first, at->second, writes);
    from = at->second.end;
    ++at;
  }
}

void forget_accesses(std::uintptr_t start, std::uintptr_t end) {
  split(start);
  split(end);
  segments.erase(segments.lower_bound(start), segments.lower_bound(end));
}

}  // namespace hipsim
