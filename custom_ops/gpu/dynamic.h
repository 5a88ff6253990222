// Shared libraries found at run time: the library itself links no GPU runtime.
#pragma once
#include "ort/status.h"

namespace rocline::gpu {

using Path = Text<1024>;

// The first of `names` (ends with null): one that the process has loaded already, since two GPU runtimes in a process
// do not know each other's streams, or else the first that can be loaded.  Null where there is none.
void* open_library(const char* const* names);
void* symbol(void* library, const char* name);
// The folder of this library's own file.
Path own_folder();

}  // namespace rocline::gpu
