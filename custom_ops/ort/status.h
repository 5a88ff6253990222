// Status: how every fallible call of the library answers.  No exception is thrown anywhere.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ort/abi.h"

// Leaves the function with the status of `expression` unless it is good.
#define ROCLINE_TRY(expression)                                     \
  do {                                                              \
    if (::rocline::Status status_ = (expression); !status_.good()) \
      return status_;                                               \
  } while (false)

namespace rocline {

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Status&& other) noexcept : code_(other.code_), message_(other.message_) { other.message_ = nullptr; }
  Status& operator=(Status&& other) noexcept {
    std::free(message_);
    code_ = other.code_;
    message_ = other.message_;
    other.message_ = nullptr;
    return *this;
  }
  Status(const Status&) = delete;
  ~Status() { std::free(message_); }

  __attribute__((format(printf, 2, 3))) static Status error(ort::Error code, const char* format, ...) {
    std::va_list args;
    va_start(args, format);
    Status status = vformat(code, format, args);
    va_end(args);
    return status;
  }

  static Status vformat(ort::Error code, const char* format, std::va_list args) {
    constexpr std::size_t limit = 1024;
    Status status;
    status.code_ = code;
    status.message_ = static_cast<char*>(std::malloc(limit));
    if (status.message_) std::vsnprintf(status.message_, limit, format, args);
    return status;
  }

  // Takes over what ONNX Runtime returned; null is good.
  static Status from(const ort::Api* api, ort::Status* status) {
    if (!status) return {};
    Status taken = error(ort::Error::fail, "%s", ort::GetErrorMessage(api, status));
    ort::ReleaseStatus(api, status);
    return taken;
  }

  bool good() const { return code_ == ort::Error{}; }
  const char* message() const { return message_ ? message_ : "out of memory"; }
  ort::Status* release_to(const ort::Api* api) const {
    return good() ? nullptr : ort::CreateStatus(api, code_, message());
  }

 private:
  ort::Error code_{};
  char* message_ = nullptr;
};

// Text built in place, for error messages: Text<64>("%s_%s", "add_scale", "f16").
template <std::size_t Size>
struct Text {
  char text[Size]{};
  std::size_t length = 0;

  Text() = default;
  __attribute__((format(printf, 2, 3))) explicit Text(const char* format, ...) {
    std::va_list args;
    va_start(args, format);
    vappend(format, args);
    va_end(args);
  }
  __attribute__((format(printf, 2, 3))) void append(const char* format, ...) {
    std::va_list args;
    va_start(args, format);
    vappend(format, args);
    va_end(args);
  }
  const char* c_str() const { return text; }
  bool full() const { return length + 1 >= Size; }

 private:
  void vappend(const char* format, std::va_list args) {
    const int wanted = std::vsnprintf(text + length, Size - length, format, args);
    if (wanted > 0) length = length + wanted < Size ? length + wanted : Size - 1;
  }
};

}  // namespace rocline
