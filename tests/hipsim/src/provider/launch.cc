#include "launch.h"

#include <algorithm>

namespace hipsim::provider {
namespace {

// The name of a kernel of ONNX Runtime's without return type, namespaces, template arguments and parameters; empty for
// one of another library's.
std::string_view short_name(std::string_view name) {
  const auto strip = [&name](std::string_view prefix) {
    const bool found = name.substr(0, prefix.size()) == prefix;
    if (found) name.remove_prefix(prefix.size());
    return found;
  };
  strip("void ");
  const bool own = strip("onnxruntime::");
  strip("contrib::");
  strip("rocm::");
  strip("detail::");
  if (!strip("(anonymous namespace)::") && !own) return "";
  return name.substr(0, name.find_first_of("<("));
}

// The template arguments, or the parameters, that start at `open` and go on to the bracket that closes it.
std::vector<std::string> split(std::string_view text, std::size_t open) {
  std::vector<std::string> parts;
  int depth = 0;
  std::size_t start = open + 1;
  for (std::size_t i = open; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '<' || c == '(') ++depth;
    const bool closes = (c == '>' || c == ')') && --depth == 0;
    if (closes || (c == ',' && depth == 1)) {
      std::string_view part = text.substr(start, i - start);
      while (!part.empty() && part.front() == ' ') part.remove_prefix(1);
      while (!part.empty() && part.back() == ' ') part.remove_suffix(1);
      parts.emplace_back(part);
      start = i + 1;
    }
    if (closes) break;
  }
  return parts;
}

}  // namespace

Launch::Launch(const std::string& name, Dim3 blocks, Dim3 threads, void** arguments)
    : grid(blocks), block(threads), arguments_(arguments) {
  const std::size_t bracket = name.find_first_of("<(");
  if (bracket != std::string::npos && name[bracket] == '<') parameters_ = split(name, bracket);
}

std::string Launch::functor(std::size_t index) const {
  const std::string_view text = parameter(index);
  const std::size_t bracket = std::min(text.find('<'), text.size());
  std::size_t start = text.rfind("::", bracket);
  start = start == std::string_view::npos ? 0 : start + 2;
  std::string_view name = text.substr(start, bracket - start);
  if (name.substr(0, 3) == "OP_") name.remove_prefix(3);
  return std::string(name);
}

Elements Launch::elements(std::size_t index, std::size_t type) const {
  const Element* element = find_element(parameter(type));
  if (!element) throw Unknown{};
  return {*element, address(index)};
}

std::int64_t Launch::count(std::size_t index, const std::string& type) const {
  return type == "unsigned long" ? static_cast<std::int64_t>(argument<std::uint64_t>(index))
                                 : argument<std::int32_t>(index);
}

}  // namespace hipsim::provider

bool hipsim::emulate(const std::string& name, Dim3 grid, Dim3 block, void** arguments, Task& task) {
  using namespace hipsim::provider;
  const std::string_view kernel = short_name(name);
  for (const auto* table : {&elementwise_kernels(), &movement_kernels(), &row_kernels(), &attention_kernels()})
    for (const Kernel& each : *table)
      if (each.name == kernel) try {
          task = each.make(Launch(name, grid, block, arguments));
          task.name = std::string(kernel);
          return true;
        } catch (const Unknown&) {
          return false;
        }
  return false;
}
