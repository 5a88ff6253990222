// Stands in for custom_ops/cpu/dispatch.h: the emulating library has no CPU kernels.
#pragma once

#define ROCLINE_CPU_KERNEL(name, ...) [[maybe_unused]] static void (*const name)(__VA_ARGS__) = nullptr
