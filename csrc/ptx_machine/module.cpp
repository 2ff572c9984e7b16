// Modules: from PTX text to kernels and variables in device memory.
#include <map>

#include "machine.h"
#include "parser.h"
#include "program.h"

namespace effnet_fast::ptx {

struct Module::Parts {
  Memory* memory = nullptr;
  std::map<std::string, Kernel> kernels;
  std::map<std::string, Global> globals;
};

Module::Module() : parts_(std::make_unique<Parts>()) {}

Module::~Module() {
  for (const auto& [name, global] : parts_->globals) parts_->memory->free(global.address);
}

std::unique_ptr<Module> Module::parse(const std::string& text, Memory& memory, int capability) {
  const ModuleText parsed = ptx::parse(text);
  const Target& target = parsed.target;
  if (target.capability == 0) throw ParseError("PTX without a .target");
  if (!target.runs_on(capability)) {
    const char* which = target.suffix == 'a'   ? ", which is for that architecture alone,"
                        : target.suffix == 'f' ? ", which is for that generation alone,"
                                               : "";
    throw ParseError("PTX for " + describe(target) + which + " does not run on sm_" +
                     std::to_string(capability));
  }
  std::unique_ptr<Module> module(new Module());
  Parts& parts = *module->parts_;
  parts.memory = &memory;
  for (const auto* list : {&parsed.globals, &parsed.constants}) {
    for (const Variable& v : *list) {
      if (v.external) throw ParseError("external variable " + v.name + " is not defined here");
      if (v.bytes == 0) continue;
      const uint64_t address = memory.allocate(v.bytes);
      if (address == 0) throw ParseError("no memory for variable " + v.name);
      parts.globals[v.name] = {address, v.bytes};
      Allocation& a = *memory.find(address);
      a.variable = true;
      a.constant = list == &parsed.constants;
      // Variables start as zeros, as their memory does, but for what their initialiser says.
      a.mark_written(0, v.bytes);
      memory.write(address, v.value.data(), v.value.size());
    }
  }
  for (const Function& function : parsed.functions) {
    decode(parsed, function, parts.globals, parts.kernels[function.name]);
  }
  return module;
}

Kernel* Module::kernel(const std::string& name) {
  const auto found = parts_->kernels.find(name);
  return found == parts_->kernels.end() ? nullptr : &found->second;
}

const Global* Module::global(const std::string& name) {
  const auto found = parts_->globals.find(name);
  return found == parts_->globals.end() ? nullptr : &found->second;
}

std::vector<std::string> Module::kernel_names() const {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : parts_->kernels) names.push_back(name);
  return names;
}

}  // namespace effnet_fast::ptx
