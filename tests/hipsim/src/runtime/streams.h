// Stream handles: numbers that lead to queues, so that a stale or foreign one is seen.
#pragma once
#include "queue.h"

namespace hipsim {

// The queue of a handle, with the lock held; nullptr after a finding where the stream was destroyed or is none.
Queue* find_queue(hipStream_t stream);

}  // namespace hipsim
