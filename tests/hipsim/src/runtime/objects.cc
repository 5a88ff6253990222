#include "objects.h"

#include <map>
#include <mutex>

#include "report.h"

namespace hipsim {
namespace {

struct Object {
  std::string kind, details, made, gone;
};

std::mutex& mutex = *new std::mutex;
std::map<const void*, Object>& objects = *new std::map<const void*, Object>;

}  // namespace

std::string made_by() {
  const CurrentCall& call = current_call();
  return format("%s (call %llu, by ", call.function, static_cast<unsigned long long>(call.number)) +
         place(call.caller) + ")";
}

void made(const char* kind, const void* object, const std::string& details) {
  std::lock_guard<std::mutex> guard(mutex);
  objects[object] = {kind, details, made_by(), ""};
}
void made(const char* kind, const void* object) { made(kind, object, format("%p", object)); }

void gone(const char* kind, const void* object) {
  std::lock_guard<std::mutex> guard(mutex);
  const auto found = objects.find(object);
  if (found != objects.end() && found->second.kind == kind) found->second.gone = made_by();
}

bool alive(const char* kind, const void* object) {
  std::string text;
  {
    std::lock_guard<std::mutex> guard(mutex);
    const auto known = objects.find(object);
    if (known == objects.end() || known->second.kind != kind) return false;
    if (known->second.gone.empty()) return true;
    text = std::string(kind) + " " + known->second.details + " is used by " + made_by() + "; it was destroyed by " +
           known->second.gone;
  }
  found("use after destroy", text);
  return false;
}

std::vector<std::string> objects_left() {
  std::lock_guard<std::mutex> guard(mutex);
  std::vector<std::string> lines;
  for (const auto& [object, known] : objects)
    if (known.gone.empty()) lines.push_back(known.kind + " " + known.details + ", made by " + known.made);
  return lines;
}

}  // namespace hipsim
