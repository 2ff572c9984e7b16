// What the machine's CUDA driver keeps: devices, contexts, the objects behind handles, and work
// that waits to run. One mutex guards all of it; every entry point takes it (api()).
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "../gpu/cuda_api.h"
#include "machine.h"

#define EFFNET_PTX_EXPORT extern "C" __attribute__((visibility("default")))

namespace effnet_fast::ptx::driver {

using namespace ::effnet_fast::cuda;  // NOLINT: the driver's own vocabulary

// Why a call is refused; caught by api(), which returns the code and keeps the sentence.
struct Refusal {
  CUresult code;
  std::string text;
  std::string trap = {};  // the fault's name, when a kernel broke the context
};

[[noreturn]] void refuse(CUresult code, const std::string& text);
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- devices ------------------------------------------------------------------------------------

struct Device {
  const char* name;
  int capability;  // 10 * major + minor
  int multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
  size_t shared_per_multiprocessor, shared_optin, l2;
  size_t capacity;
  int memory_clock_khz, bus_bits, clock_khz;
  struct Context* primary;  // null while inactive
  unsigned flags;
};

inline constexpr int kDevices = 3;
inline constexpr size_t kSharedDefault = 48 << 10;
inline constexpr size_t kSharedReserved = 1 << 10;  // of each block, by the system
inline constexpr int kRegisters = 65536;            // of a multiprocessor, and of a block

Device& device_at(CUdevice ordinal);

// ---- objects behind handles ---------------------------------------------------------------------

enum class Kind { kContext, kModule, kFunction, kStream, kEvent, kGraph, kNode, kGraphExec };

// An object outlives its handle (emptied, but there), so that a stale handle is recognised.
struct Object {
  Object(Kind kind, Context* context) : kind(kind), context(context) {}
  virtual ~Object() = default;
  const Kind kind;
  Context* const context;
  bool alive = true;
};

// Work on its way: runs once everything in `after` has.
struct Op {
  uint64_t sequence = 0;
  Context* context = nullptr;
  std::vector<std::shared_ptr<Op>> after;
  std::function<void()> work;  // may be empty
  bool done = false;
};
using OpPtr = std::shared_ptr<Op>;

struct Function;
struct Event;
struct Node;
struct Graph;

struct ModuleObject : Object {
  explicit ModuleObject(Context* context) : Object(Kind::kModule, context) {}
  std::unique_ptr<Module> module;
  std::map<std::string, Function*> functions;
};

struct Function : Object {
  Function(ModuleObject* module, Kernel* kernel)
      : Object(Kind::kFunction, module->context), module(module), kernel(kernel) {}
  ModuleObject* module;
  Kernel* kernel;
  size_t max_dynamic_shared = 0;  // 0: never set, so what the default leaves
  int carveout = -1;
};

// A capture under way, shared by the streams and events that take part.
struct Capture {
  uint64_t id = 0;
  struct Stream* origin = nullptr;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id thread;
  Graph* graph = nullptr;
  std::set<Stream*> streams;
  std::string broken;  // why it is invalid; "" while it is not
};

struct Stream : Object {
  explicit Stream(Context* context) : Object(Kind::kStream, context) {}
  unsigned flags = CU_STREAM_DEFAULT;
  int priority = 0;
  OpPtr last;
  std::shared_ptr<Capture> capture;
  std::set<Node*> leaves;  // of the capture: what the next node comes after
  bool legacy = false;
  bool blocking() const { return !(flags & CU_STREAM_NON_BLOCKING); }
};

struct Event : Object {
  explicit Event(Context* context) : Object(Kind::kEvent, context) {}
  unsigned flags = CU_EVENT_DEFAULT;
  OpPtr last;                        // null: never recorded
  std::shared_ptr<double> time;      // seconds, written by the op
  std::shared_ptr<Capture> capture;  // set: last recorded in one
  std::set<Node*> leaves;
};

struct Node : Object {
  explicit Node(Context* context) : Object(Kind::kNode, context) {}
  std::set<Node*> after;
  std::shared_ptr<const std::function<void()>> work;
  Function* function = nullptr;  // of a kernel node
};

struct Graph : Object {
  explicit Graph(Context* context) : Object(Kind::kGraph, context) {}
  std::vector<Node*> nodes;  // each behind what it comes after
};

struct GraphExec : Object {
  explicit GraphExec(Context* context) : Object(Kind::kGraphExec, context) {}
  struct Step {
    std::shared_ptr<const std::function<void()>> work;
    std::vector<size_t> after;  // indices of steps
    Function* function;
  };
  std::vector<Step> steps;
  OpPtr last;  // of its latest launch
};

struct Context : Object {
  Context() : Object(Kind::kContext, this) {}
  CUdevice ordinal = 0;
  unsigned references = 0;
  std::unique_ptr<Memory> memory;
  struct Allocated {
    bool stream_ordered = false, free_queued = false;
  };
  std::map<uint64_t, Allocated> allocations;  // by cuMemAlloc and cuMemAllocAsync, live
  Options options;
  std::vector<std::string> counts;
  Stream* legacy = nullptr;
  std::set<Stream*> streams;  // whose work may be pending
  std::set<std::shared_ptr<Capture>> captures;
  std::map<uint64_t, OpPtr> pending;
  std::unique_ptr<Refusal> broken;  // sticky, after a fault
  Device& device() const { return device_at(ordinal); }
};

// ---- the one state ------------------------------------------------------------------------------

struct State {
  std::mutex mutex;
  bool initialised = false;
  uint64_t sequence = 0;  // of ops
  uint64_t captures = 0, contexts = 0;
  Options options;  // of contexts to come
  size_t capacity = 0;
  std::unordered_map<const void*, std::unique_ptr<Object>> objects;
  std::map<uintptr_t, size_t> pinned;  // host memory of cuMemHostAlloc
};
State& state();

struct Thread {
  std::vector<Context*> contexts;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::vector<Region> regions;  // of the next launch
  std::string error, trap;
};
Thread& this_thread();

template <class T, class... Arguments>
T* make_object(Arguments&&... arguments) {
  auto owned = std::make_unique<T>(std::forward<Arguments>(arguments)...);
  T* object = owned.get();
  state().objects.emplace(static_cast<Object*>(object), std::move(owned));
  return object;
}

template <class Handle>
Handle handle_of(Object* object) {
  return reinterpret_cast<Handle>(object);
}

// The context that calls of this thread act on; refuses when there is none, or a fault broke it.
Context& current(bool broken_too = false);
// The live object of a handle, of the current context. `what` is the argument's name.
Object& find_object(const void* handle, Kind kind, const char* what);
Stream& find_stream(CUstream handle);
Function& find_function(CUfunction handle);
Event& find_event(CUevent handle);

// Runs `body` under the mutex; a Refusal becomes its code and the thread's error text.
CUresult guarded(const char* call, bool needs_init, const std::function<CUresult()>& body);
template <class Body>
CUresult api(const char* call, Body&& body, bool needs_init = true) {
  return guarded(call, needs_init, [&]() -> CUresult {
    if constexpr (std::is_void_v<decltype(body())>) {
      body();
      return CUDA_SUCCESS;
    } else {
      return body();
    }
  });
}
template <class Body>
CUresult api_before_init(const char* call, Body&& body) {
  return api(call, body, false);
}

template <class T>
void require_pointer(const T* pointer, const char* name) {
  if (!pointer) refuse(CUDA_ERROR_INVALID_VALUE, text("%s is null", name));
}

// ---- work (driver_stream.cpp) -------------------------------------------------------------------

// Appends work to a stream, or to the graph that the stream is being captured into. `function`
// is that of a launch.
void submit(Stream& stream, std::function<void()> work, Function* function = nullptr);
void submit_and_wait(Stream& stream, std::function<void()> work);
// Work of no stream, after what the caller adds to it.
OpPtr make_op(Context& context, std::function<void()> work);
OpPtr enqueue(Stream& stream, std::function<void()> work);
// Runs the ops and all that they come after, the newest first where order is free.
void finish(const std::vector<OpPtr>& targets);
void finish_all(Context& context);
// Runs one op of those, if any is left; false when all were done.
bool finish_one(const OpPtr& target);

// ---- capture (driver_graph.cpp) -----------------------------------------------------------------

// Calls that may not be made while a capture is under way (allocation, module loading, ...).
void refuse_in_capture(Context& context, const char* call);
// Calls on a stream that is itself being captured.
void refuse_captured(Stream& stream, const char* call);
void refuse_legacy(Context& context, const char* call);
void add_node(Stream& stream, std::function<void()> work, Function* function);
void record_in_capture(Stream& stream, Event& event);
void join_capture(Stream& stream, Event& event);

// ---- contexts, memory, modules ------------------------------------------------------------------

void break_context(Context& context, const Fault& fault);
void destroy_context(Context& context);
// Refuses bytes that no live allocation of the context holds.
void check_range(Context& context, CUdeviceptr address, size_t bytes, const char* what);
// The live context whose memory holds the address, or null.
Context* owner_of(CUdeviceptr address);
std::string module_text(const void* image, int capability);
bool pinned(const void* address, size_t bytes);

}  // namespace effnet_fast::ptx::driver
