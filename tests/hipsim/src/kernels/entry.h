// What a library of kernels that are compiled for the host offers to the module interface (modules/).
#pragma once
#include <cstddef>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

namespace hipsim {

// One kernel: its arguments are copied when it is launched, and read by each of its threads.
struct KernelEntry {
  const char* name;
  std::size_t bytes;  // of a copy of the arguments
  void (*copy)(void* to, void** arguments);
  void (*run)(const void* arguments, unsigned x, unsigned y, unsigned z, unsigned threads);
};

template <class Signature>
struct Arguments;
template <class... Types>
struct Arguments<void (*)(Types...)> {
  using Tuple = std::tuple<Types...>;
  static_assert(std::conjunction_v<std::is_trivially_copyable<Types>...>, "arguments are copied as bytes");

  template <std::size_t... index>
  static void copy(void* to, void** arguments, std::index_sequence<index...>) {
    new (to) Tuple(*static_cast<std::remove_cv_t<Types>*>(arguments[index])...);
  }
  static void copy_all(void* to, void** arguments) { copy(to, arguments, std::index_sequence_for<Types...>()); }
};

template <auto kernel>
void call_kernel(const void* arguments) {
  std::apply(kernel, *static_cast<const typename Arguments<decltype(kernel)>::Tuple*>(arguments));
}

}  // namespace hipsim

// The name of each kernel is known to the build alone, which writes this list.
#define HIPSIM_KERNEL(kernel)                                                                                    \
  {#kernel, sizeof(hipsim::Arguments<decltype(&kernel)>::Tuple), hipsim::Arguments<decltype(&kernel)>::copy_all, \
   [](const void* arguments, unsigned x, unsigned y, unsigned z, unsigned threads) {                             \
     rocline_emulate(x, y, z, threads, #kernel, hipsim::call_kernel<&kernel>, arguments);                        \
   }}
