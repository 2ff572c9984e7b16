// Primary contexts, the thread's stack of contexts, modules and their functions.
#include <algorithm>
#include <cstring>

#include "driver_state.h"

namespace effnet_fast::ptx::driver {
namespace {

CUresult code_of(Trap trap) {
  switch (trap) {
    case Trap::kOutOfBounds:
    case Trap::kUndeclared:
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    case Trap::kMisaligned:
      return CUDA_ERROR_MISALIGNED_ADDRESS;
    case Trap::kUnknownOpcode:
      return CUDA_ERROR_ILLEGAL_INSTRUCTION;
    case Trap::kEndlessLoop:
      return CUDA_ERROR_LAUNCH_TIMEOUT;
    default:
      return CUDA_ERROR_LAUNCH_FAILED;
  }
}

Context& make_context(CUdevice ordinal) {
  Device& device = device_at(ordinal);
  auto* context = make_object<Context>();
  context->ordinal = ordinal;
  context->options = state().options;
  // Every context has addresses of its own, so that a pointer into another one is recognised.
  const uint64_t first = (uint64_t{0x10} + state().contexts++) << 44;
  const size_t capacity = state().capacity ? state().capacity : device.capacity;
  context->memory = std::make_unique<Memory>(capacity, first);
  context->legacy = make_object<Stream>(context);
  context->legacy->legacy = true;
  context->streams.insert(context->legacy);
  device.primary = context;
  return *context;
}

Context& find_context(CUcontext handle) {
  const auto found = state().objects.find(handle);
  if (!handle || found == state().objects.end() || found->second->kind != Kind::kContext) {
    refuse(CUDA_ERROR_INVALID_CONTEXT, text("%p is not a context", static_cast<void*>(handle)));
  }
  auto& context = static_cast<Context&>(*found->second);
  if (!context.alive) {
    refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED,
           text("context %p has been destroyed", static_cast<void*>(handle)));
  }
  return context;
}

ModuleObject& find_module(CUmodule handle) {
  Context& context = current();
  auto& module = static_cast<ModuleObject&>(find_object(handle, Kind::kModule, "module"));
  if (module.context != &context) {
    refuse(CUDA_ERROR_INVALID_HANDLE, "the module belongs to another context");
  }
  return module;
}

Function& function_of(ModuleObject& module, const std::string& name) {
  const auto known = module.functions.find(name);
  if (known != module.functions.end()) return *known->second;
  Kernel* kernel = module.module->kernel(name);
  if (!kernel) {
    std::string have;
    for (const std::string& each : module.module->kernel_names()) {
      have += (have.empty() ? "" : ", ") + each;
    }
    refuse(CUDA_ERROR_NOT_FOUND, "the module has no kernel '" + name + "'; it has: " + have);
  }
  auto* function = make_object<Function>(&module, kernel);
  module.functions[name] = function;
  return *function;
}

// Where a JIT option's value is, or null.
void** jit_option(CUjit_option wanted, unsigned count, const CUjit_option* names, void** values) {
  for (unsigned i = 0; i < count; ++i) {
    if (names[i] == wanted) return &values[i];
  }
  return nullptr;
}

void write_log(const std::string& message, unsigned count, const CUjit_option* names,
               void** values) {
  void** const buffer = jit_option(CU_JIT_ERROR_LOG_BUFFER, count, names, values);
  void** const size = jit_option(CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, count, names, values);
  if (!buffer || !*buffer || !size) return;
  const size_t room = reinterpret_cast<uintptr_t>(*size) & 0xFFFFFFFF;
  if (room == 0) return;
  const size_t used = std::min(room - 1, message.size());
  std::memcpy(*buffer, message.data(), used);
  static_cast<char*>(*buffer)[used] = 0;
  *size = reinterpret_cast<void*>(used);
}

void load(CUmodule* module, const void* image, unsigned count, const CUjit_option* names,
          void** values) {
  require_pointer(module, "module");
  require_pointer(image, "image");
  if (count) {
    require_pointer(names, "options");
    require_pointer(values, "optionValues");
  }
  Context& context = current();
  refuse_in_capture(context, "loading a module");
  const int capability = context.device().capability;
  try {
    const std::string ptx = module_text(image, capability);
    auto* object = make_object<ModuleObject>(&context);
    object->alive = false;  // until it has been parsed
    object->module = Module::parse(ptx, *context.memory, capability);
    object->alive = true;
    *module = handle_of<CUmodule>(object);
  } catch (const Refusal& refusal) {
    write_log(refusal.text, count, names, values);
    throw;
  } catch (const std::runtime_error& error) {  // ParseError, or Fault of an unknown opcode
    write_log(error.what(), count, names, values);
    refuse(CUDA_ERROR_INVALID_PTX, error.what());
  }
}

void drop_pending(Context& context) {
  for (auto& [sequence, op] : context.pending) {
    op->after.clear();
    op->work = nullptr;
    op->done = true;
  }
  context.pending.clear();
}

}  // namespace

Function& find_function(CUfunction handle) {
  Context& context = current();
  auto& function = static_cast<Function&>(find_object(handle, Kind::kFunction, "function"));
  if (function.context != &context) {
    refuse(CUDA_ERROR_INVALID_HANDLE,
           "function " + function.kernel->name + " belongs to another context");
  }
  return function;
}

void break_context(Context& context, const Fault& fault) {
  drop_pending(context);
  context.broken =
      std::make_unique<Refusal>(Refusal{code_of(fault.trap), fault.what(), trap_name(fault.trap)});
}

void destroy_context(Context& context) {
  drop_pending(context);
  for (auto& [handle, object] : state().objects) {
    if (object->context != &context) continue;
    object->alive = false;
    switch (object->kind) {
      case Kind::kModule:
        static_cast<ModuleObject&>(*object).module.reset();
        break;
      case Kind::kStream:
        static_cast<Stream&>(*object).last.reset();
        break;
      case Kind::kEvent:
        static_cast<Event&>(*object).last.reset();
        break;
      case Kind::kGraphExec:
        static_cast<GraphExec&>(*object).steps.clear();
        break;
      case Kind::kNode:
        static_cast<Node&>(*object).work.reset();
        break;
      default:
        break;
    }
  }
  context.captures.clear();
  context.allocations.clear();
  context.counts.clear();
  context.memory.reset();
  context.device().primary = nullptr;
}

}  // namespace effnet_fast::ptx::driver

using namespace effnet_fast::ptx;
using namespace effnet_fast::ptx::driver;

// ---- primary contexts ---------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return api("cuDevicePrimaryCtxRetain", [&] {
    require_pointer(context, "pctx");
    Device& d = device_at(device);
    Context& primary = d.primary ? *d.primary : make_context(device);
    ++primary.references;
    *context = handle_of<CUcontext>(&primary);
  });
}

EFFNET_PTX_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return api("cuDevicePrimaryCtxRelease", [&] {
    Device& d = device_at(device);
    if (!d.primary) {
      refuse(CUDA_ERROR_INVALID_CONTEXT,
             text("the primary context of device %d is not active", device));
    }
    if (--d.primary->references == 0) destroy_context(*d.primary);
  });
}

EFFNET_PTX_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
  return api("cuDevicePrimaryCtxReset", [&] {
    Device& d = device_at(device);
    if (d.primary) destroy_context(*d.primary);
  });
}

EFFNET_PTX_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags,
                                                      int* active) {
  return api("cuDevicePrimaryCtxGetState", [&] {
    require_pointer(flags, "flags");
    require_pointer(active, "active");
    Device& d = device_at(device);
    *flags = d.flags;
    *active = d.primary != nullptr;
  });
}

EFFNET_PTX_EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  return api("cuDevicePrimaryCtxSetFlags", [&] {
    // The scheduling field, and the two flags that change nothing here (map host, resize local).
    if (flags & ~0x1Fu || (flags & 7) > CU_CTX_SCHED_BLOCKING_SYNC || (flags & 7) == 3) {
      refuse(CUDA_ERROR_INVALID_VALUE, text("flags is %#x; not a combination of CU_CTX_*", flags));
    }
    device_at(device).flags = flags;
  });
}

// ---- the current context ------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
  return api("cuCtxPushCurrent", [&] { this_thread().contexts.push_back(&find_context(context)); });
}

EFFNET_PTX_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  return api("cuCtxPopCurrent", [&] {
    auto& stack = this_thread().contexts;
    if (stack.empty()) {
      refuse(CUDA_ERROR_INVALID_CONTEXT, "no context is current to this thread");
    }
    if (context) *context = handle_of<CUcontext>(stack.back());
    stack.pop_back();
  });
}

EFFNET_PTX_EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  return api("cuCtxGetCurrent", [&] {
    require_pointer(context, "pctx");
    const auto& stack = this_thread().contexts;
    *context = stack.empty() ? nullptr : handle_of<CUcontext>(stack.back());
  });
}

EFFNET_PTX_EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  return api("cuCtxSetCurrent", [&] {
    Context* const chosen = context ? &find_context(context) : nullptr;
    auto& stack = this_thread().contexts;
    if (!stack.empty()) stack.pop_back();
    if (chosen) stack.push_back(chosen);
  });
}

EFFNET_PTX_EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
  return api("cuCtxGetDevice", [&] {
    require_pointer(device, "device");
    *device = current().ordinal;
  });
}

EFFNET_PTX_EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return api("cuCtxGetStreamPriorityRange", [&] {
    current();
    if (least) *least = 0;
    if (greatest) *greatest = -5;
  });
}

EFFNET_PTX_EXPORT CUresult cuCtxSynchronize() {
  return api("cuCtxSynchronize", [&] {
    Context& context = current();
    refuse_in_capture(context, "synchronising the context");
    refuse_legacy(context, "synchronising the context");
    finish_all(context);
  });
}

// ---- modules ------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return api("cuModuleLoadData", [&] { load(module, image, 0, nullptr, nullptr); });
}

EFFNET_PTX_EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count,
                                              CUjit_option* options, void** values) {
  return api("cuModuleLoadDataEx", [&] { load(module, image, count, options, values); });
}

EFFNET_PTX_EXPORT CUresult cuModuleLoadFatBinary(CUmodule* module, const void* image) {
  return api("cuModuleLoadFatBinary", [&] { load(module, image, 0, nullptr, nullptr); });
}

EFFNET_PTX_EXPORT CUresult cuModuleUnload(CUmodule handle) {
  return api("cuModuleUnload", [&] {
    ModuleObject& module = find_module(handle);
    refuse_in_capture(*module.context, "unloading a module");
    finish_all(*module.context);
    for (auto& [name, function] : module.functions) function->alive = false;
    module.alive = false;
    module.module.reset();
  });
}

EFFNET_PTX_EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module,
                                               const char* name) {
  return api("cuModuleGetFunction", [&] {
    require_pointer(function, "hfunc");
    require_pointer(name, "name");
    *function = handle_of<CUfunction>(&function_of(find_module(module), name));
  });
}

EFFNET_PTX_EXPORT CUresult cuModuleGetFunctionCount(unsigned* count, CUmodule module) {
  return api("cuModuleGetFunctionCount", [&] {
    require_pointer(count, "count");
    *count = static_cast<unsigned>(find_module(module).module->kernel_names().size());
  });
}

EFFNET_PTX_EXPORT CUresult cuModuleEnumerateFunctions(CUfunction* functions, unsigned count,
                                                      CUmodule handle) {
  return api("cuModuleEnumerateFunctions", [&] {
    require_pointer(functions, "functions");
    ModuleObject& module = find_module(handle);
    unsigned i = 0;
    for (const std::string& name : module.module->kernel_names()) {
      if (i < count) functions[i++] = handle_of<CUfunction>(&function_of(module, name));
    }
  });
}

EFFNET_PTX_EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes,
                                                CUmodule module, const char* name) {
  return api("cuModuleGetGlobal", [&] {
    require_pointer(name, "name");
    const Global* global = find_module(module).module->global(name);
    if (!global) {
      refuse(CUDA_ERROR_NOT_FOUND, text("the module has no variable '%s'", name));
    }
    if (address) *address = global->address;
    if (bytes) *bytes = global->bytes;
  });
}

EFFNET_PTX_EXPORT CUresult cuFuncLoad(CUfunction function) {
  return api("cuFuncLoad", [&] { find_function(function); });
}

EFFNET_PTX_EXPORT CUresult cuFuncGetName(const char** name, CUfunction function) {
  return api("cuFuncGetName", [&] {
    require_pointer(name, "name");
    *name = find_function(function).kernel->name.c_str();
  });
}

EFFNET_PTX_EXPORT CUresult cuFuncGetModule(CUmodule* module, CUfunction function) {
  return api("cuFuncGetModule", [&] {
    require_pointer(module, "hmod");
    *module = handle_of<CUmodule>(find_function(function).module);
  });
}
