// Finds an op's kernel as a session's creation does, and launches it: main OP ENTRY.
#include "gpu/module.h"

int main(int, char** arguments) {
  using namespace rocline;
  gpu::Function function;
  Status status = gpu::find(gpu::Vendor::amd, arguments[1], arguments[2], function);
  const int first = 42;
  const float second = 0.5f;
  if (status.good())
    status = function.launch({reinterpret_cast<void*>(0x1234)}, {7, 2, 1}, 256, 64, first, second);
  if (status.good()) status = gpu::find(gpu::Vendor::amd, arguments[1], arguments[2], function);
  if (!status.good()) std::puts(status.message());
  return !status.good();
}
