#pragma once
#include <pthread.h>

namespace rocline {

// Holds a mutex while it lives.  std::mutex would bring the C++ runtime library in.
class Lock {
 public:
  explicit Lock(pthread_mutex_t& mutex) : mutex_(mutex) { pthread_mutex_lock(&mutex_); }
  ~Lock() { pthread_mutex_unlock(&mutex_); }
  Lock(const Lock&) = delete;

 private:
  pthread_mutex_t& mutex_;
};

}  // namespace rocline
