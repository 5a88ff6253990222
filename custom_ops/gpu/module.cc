#include "gpu/module.h"

namespace rocline::gpu {
Status Function::launch_raw(Stream, Grid, unsigned, unsigned, void**) const {
  return Status::error(ort::Error::not_implemented, "kernel %s: no GPU runtime", name_);
}
Status find(Vendor, const char*, const char* entry, Function&) {
  return Status::error(ort::Error::not_implemented, "kernel %s: no GPU runtime", entry);
}
}  // namespace rocline::gpu
