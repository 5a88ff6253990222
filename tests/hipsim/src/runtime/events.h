// Events: a point in a stream.
#pragma once
#include "queue.h"

struct Event;
using hipEvent_t = Event*;

namespace hipsim {

struct EventState {
  OperationPtr recorded;  // nullptr before the first record
  Clock clock;
  bool timed = false;
  std::shared_ptr<double> milliseconds;  // when it was reached
  Capture* capture = nullptr;            // where it was recorded in a capture:
  int node = -1;                         // after which node
};

}  // namespace hipsim
