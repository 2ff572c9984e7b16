// Counts as JSON.
#include <cstdio>

#include "machine.h"

namespace effnet_fast::ptx {
namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", c);
      result += escaped;
    } else {
      result += c;
    }
  }
  return result + '"';
}

// {"name": value, ...}
class Object {
 public:
  Object& add(const std::string& name, uint64_t value) { return raw(name, std::to_string(value)); }
  Object& add(const std::string& name, const std::string& text) { return raw(name, quoted(text)); }
  Object& add(const std::string& name, const Object& object) { return raw(name, object.text()); }
  Object& raw(const std::string& name, const std::string& json) {
    text_ += (text_.empty() ? "" : ", ") + quoted(name) + ": " + json;
    return *this;
  }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

template <class List, class F>
std::string array(const List& list, F f) {
  std::string text;
  for (const auto& item : list) text += (text.empty() ? "" : ", ") + f(item);
  return "[" + text + "]";
}

Object object(const Traffic& t) {
  return Object()
      .add("requests", t.requests)
      .add("bytes", t.bytes)
      .add("used_bytes", t.used_bytes)
      .add("sectors", t.sectors)
      .add("l2_sectors", t.l2_sectors)
      .add("dram_sectors", t.dram_sectors);
}

Object object(const Counts::Shared& s) {
  return Object()
      .add("requests", s.requests)
      .add("wavefronts", s.wavefronts)
      .add("ideal_wavefronts", s.ideal_wavefronts)
      .add("bytes", s.bytes);
}

std::string sizes(const Dim3& d) {
  return "[" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + "]";
}

}  // namespace

const char* class_name(Class c) {
  switch (c) {
    case Class::kInteger:
      return "integer";
    case Class::kFloat:
      return "float";
    case Class::kHalf:
      return "half";
    case Class::kDouble:
      return "double";
    case Class::kSpecial:
      return "special";
    case Class::kConvert:
      return "convert";
    case Class::kCompare:
      return "compare";
    case Class::kMove:
      return "move";
    case Class::kLogic:
      return "logic";
    case Class::kTensor:
      return "tensor";
    case Class::kGlobalLoad:
      return "global_load";
    case Class::kGlobalStore:
      return "global_store";
    case Class::kSharedLoad:
      return "shared_load";
    case Class::kSharedStore:
      return "shared_store";
    case Class::kLocal:
      return "local";
    case Class::kParam:
      return "param";
    case Class::kAtomic:
      return "atomic";
    case Class::kAsyncCopy:
      return "async_copy";
    case Class::kWarp:
      return "warp";
    case Class::kBarrier:
      return "barrier";
    case Class::kBranch:
      return "branch";
    case Class::kOther:
      return "other";
    case Class::kCount:
      break;
  }
  return "";
}

uint64_t Counts::warp_instructions() const {
  uint64_t sum = 0;
  for (const ClassCounts& c : classes) sum += c.warp;
  return sum;
}

uint64_t Counts::thread_instructions() const {
  uint64_t sum = 0;
  for (const ClassCounts& c : classes) sum += c.thread;
  return sum;
}

std::string Counts::json() const {
  Object by_class;
  for (size_t i = 0; i < classes.size(); ++i) {
    by_class.add(class_name(static_cast<Class>(i)),
                 Object().add("warp", classes[i].warp).add("thread", classes[i].thread));
  }
  char duration[32];
  std::snprintf(duration, sizeof(duration), "%.6f", seconds);
  return Object()
      .add("kernel", kernel)
      .raw("grid", sizes(grid))
      .raw("block", sizes(block))
      .add("shared_bytes", shared_bytes)
      .add("classes", by_class)
      .raw("opcodes", array(opcodes,
                            [](const auto& o) {
                              return Object()
                                  .add("name", o.first)
                                  .add("warp", o.second.warp)
                                  .add("thread", o.second.thread)
                                  .text();
                            }))
      .raw("lines", array(lines,
                          [](const auto& l) {
                            return "[" + std::to_string(l.first) + "," +
                                   std::to_string(l.second.warp) + "," +
                                   std::to_string(l.second.thread) + "]";
                          }))
      .add("branches", branches)
      .add("divergent_branches", divergent_branches)
      .add("shared_load", object(shared_load))
      .add("shared_store", object(shared_store))
      .raw("tensors", array(tensors,
                            [](const TensorCounts& t) {
                              return Object()
                                  .add("name", t.name)
                                  .add("base", t.base)
                                  .add("bytes", t.bytes)
                                  .add("read", object(t.read))
                                  .add("write", object(t.write))
                                  .add("atomic", object(t.atomic))
                                  .text();
                            }))
      .raw("seconds", duration)
      .text();
}

}  // namespace effnet_fast::ptx
