// Streams and events. Streams are lazy: work runs when something waits for it, then only what that
// comes after, and where order is free the newest first. So a wait that is missing shows.
#include <queue>

#include "driver_state.h"

namespace effnet_fast::ptx::driver {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void add_dependency(Op& op, const OpPtr& on) {
  if (on && !on->done) op.after.push_back(on);
}

void run_op(Op& op) {
  const OpPtr keep = op.context->pending[op.sequence];
  try {
    if (op.work) op.work();
  } catch (const Fault& fault) {
    break_context(*op.context, fault);
    throw *op.context->broken;
  }
  op.done = true;
  op.after.clear();
  op.work = nullptr;
  op.context->pending.erase(op.sequence);
}

// All that has to run before the targets are done, and they themselves.
struct Closure {
  std::unordered_map<Op*, size_t> waits_for;
  std::unordered_map<Op*, std::vector<Op*>> releases;
  std::priority_queue<std::pair<uint64_t, Op*>> ready;  // the newest on top

  explicit Closure(const std::vector<OpPtr>& targets) {
    std::vector<Op*> open;
    const auto visit = [&](Op* op) {
      if (!op->done && waits_for.emplace(op, 0).second) open.push_back(op);
    };
    for (const OpPtr& target : targets) {
      if (target) visit(target.get());
    }
    while (!open.empty()) {
      Op* const op = open.back();
      open.pop_back();
      size_t count = 0;
      for (const OpPtr& before : op->after) {
        if (before->done) continue;
        ++count;
        releases[before.get()].push_back(op);
        visit(before.get());
      }
      waits_for[op] = count;
      if (count == 0) ready.emplace(op->sequence, op);
    }
  }

  bool run_newest() {
    if (ready.empty()) return false;
    Op* const op = ready.top().second;
    ready.pop();
    run_op(*op);
    for (Op* next : releases[op]) {
      if (--waits_for[next] == 0) ready.emplace(next->sequence, next);
    }
    return true;
  }
};

void create_stream(CUstream* stream, unsigned flags, int priority) {
  require_pointer(stream, "phStream");
  Context& context = current();
  if (flags > CU_STREAM_NON_BLOCKING) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           text("Flags is %u; accepted: CU_STREAM_DEFAULT, CU_STREAM_NON_BLOCKING", flags));
  }
  auto* object = make_object<Stream>(&context);
  object->flags = flags;
  object->priority = std::min(0, std::max(-5, priority));
  context.streams.insert(object);
  *stream = handle_of<CUstream>(object);
}

void elapsed(float* milliseconds, CUevent start, CUevent end) {
  require_pointer(milliseconds, "pMilliseconds");
  const Event& from = find_event(start);
  const Event& to = find_event(end);
  for (const Event* event : {&from, &to}) {
    const char* const which = event == &from ? "hStart" : "hEnd";
    if (event->flags & CU_EVENT_DISABLE_TIMING) {
      refuse(CUDA_ERROR_INVALID_HANDLE, text("%s was created without timing", which));
    }
    if (event->capture) {
      refuse(CUDA_ERROR_INVALID_HANDLE, text("%s was last recorded in a capture", which));
    }
    if (!event->last) refuse(CUDA_ERROR_INVALID_HANDLE, text("%s was never recorded", which));
  }
  if (!from.last->done || !to.last->done) {
    refuse(CUDA_ERROR_NOT_READY, text("%s is still pending", from.last->done ? "hEnd" : "hStart"));
  }
  *milliseconds = static_cast<float>((*to.time - *from.time) * 1e3);
}

// An event recorded in a capture stands for no work that has run, or will.
void refuse_captured_event(Event& event, const char* call) {
  if (!event.capture) return;
  const std::string why = text("%s of an event that was recorded in a capture", call);
  if (event.capture->broken.empty()) event.capture->broken = why;
  refuse(CUDA_ERROR_CAPTURED_EVENT, why);
}

}  // namespace

Stream& find_stream(CUstream handle) {
  Context& context = current();
  const auto value = reinterpret_cast<uintptr_t>(handle);
  if (value == 0 || value == kStreamLegacy) return *context.legacy;
  if (value == kStreamPerThread) {
    refuse(CUDA_ERROR_INVALID_HANDLE, "the machine has no per-thread default stream");
  }
  auto& stream = static_cast<Stream&>(find_object(handle, Kind::kStream, "stream"));
  if (stream.context != &context) {
    refuse(CUDA_ERROR_INVALID_HANDLE, "the stream belongs to another context");
  }
  return stream;
}

Event& find_event(CUevent handle) {
  current();
  return static_cast<Event&>(find_object(handle, Kind::kEvent, "event"));
}

OpPtr make_op(Context& context, std::function<void()> work) {
  auto op = std::make_shared<Op>();
  op->sequence = state().sequence++;
  op->context = &context;
  op->work = std::move(work);
  context.pending.emplace(op->sequence, op);
  return op;
}

OpPtr enqueue(Stream& stream, std::function<void()> work) {
  Context& context = *stream.context;
  if (stream.legacy) refuse_legacy(context, "work in the legacy stream");
  const OpPtr op = make_op(context, std::move(work));
  add_dependency(*op, stream.last);
  if (stream.legacy) {
    for (auto it = context.streams.begin(); it != context.streams.end();) {
      Stream& other = **it;
      if (&other != &stream && other.blocking()) add_dependency(*op, other.last);
      const bool finished = !other.alive && (!other.last || other.last->done);
      it = finished ? context.streams.erase(it) : std::next(it);
    }
  } else if (stream.blocking()) {
    add_dependency(*op, context.legacy->last);
  }
  stream.last = op;
  return op;
}

void submit(Stream& stream, std::function<void()> work, Function* function) {
  if (stream.capture) {
    add_node(stream, std::move(work), function);
  } else {
    enqueue(stream, std::move(work));
  }
}

void submit_and_wait(Stream& stream, std::function<void()> work) {
  finish({enqueue(stream, std::move(work))});
}

void finish(const std::vector<OpPtr>& targets) {
  Closure closure(targets);
  while (closure.run_newest()) {
  }
}

void finish_all(Context& context) {
  std::vector<OpPtr> all;
  for (const auto& [sequence, op] : context.pending) all.push_back(op);
  finish(all);
}

bool finish_one(const OpPtr& target) { return Closure({target}).run_newest(); }

}  // namespace effnet_fast::ptx::driver

using namespace effnet_fast::ptx;
using namespace effnet_fast::ptx::driver;

// ---- streams ------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return api("cuStreamCreate", [&] { create_stream(stream, flags, 0); });
}

EFFNET_PTX_EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags,
                                                      int priority) {
  return api("cuStreamCreateWithPriority", [&] { create_stream(stream, flags, priority); });
}

EFFNET_PTX_EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
  return api("cuStreamDestroy", [&] {
    Stream& stream = find_stream(handle);
    if (stream.legacy) {
      refuse(CUDA_ERROR_INVALID_HANDLE, "the legacy stream cannot be destroyed");
    }
    refuse_captured(stream, "destroying the stream");
    stream.alive = false;
    // With work pending it stays, for the legacy stream to wait for.
    if (!stream.last || stream.last->done) stream.context->streams.erase(&stream);
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamSynchronize(CUstream handle) {
  return api("cuStreamSynchronize", [&] {
    Stream& stream = find_stream(handle);
    refuse_captured(stream, "synchronising the stream");
    if (stream.legacy) {
      submit_and_wait(stream, nullptr);
    } else {
      finish({stream.last});
    }
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamQuery(CUstream handle) {
  return api("cuStreamQuery", [&] {
    Stream& stream = find_stream(handle);
    refuse_captured(stream, "querying the stream");
    if (stream.legacy) enqueue(stream, nullptr);
    // One piece of work for each question, so that a host which polls gets to the end.
    if (stream.last && finish_one(stream.last) && !stream.last->done) {
      refuse(CUDA_ERROR_NOT_READY, "the stream has pending work");
    }
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent event_handle,
                                             unsigned flags) {
  return api("cuStreamWaitEvent", [&] {
    Stream& stream = find_stream(stream_handle);
    Event& event = find_event(event_handle);
    if (flags) refuse(CUDA_ERROR_INVALID_VALUE, text("Flags is %u; accepted: 0", flags));
    if (stream.capture || event.capture) return join_capture(stream, event);
    add_dependency(*enqueue(stream, nullptr), event.last);
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext* context) {
  return api("cuStreamGetCtx", [&] {
    require_pointer(context, "pctx");
    *context = handle_of<CUcontext>(find_stream(stream).context);
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamGetFlags(CUstream stream, unsigned* flags) {
  return api("cuStreamGetFlags", [&] {
    require_pointer(flags, "flags");
    *flags = find_stream(stream).flags;
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamGetPriority(CUstream stream, int* priority) {
  return api("cuStreamGetPriority", [&] {
    require_pointer(priority, "priority");
    *priority = find_stream(stream).priority;
  });
}

// ---- events -------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags) {
  return api("cuEventCreate", [&] {
    require_pointer(event, "phEvent");
    Context& context = current();
    if (flags & ~unsigned{CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING}) {
      refuse(
          CUDA_ERROR_INVALID_VALUE,
          text("Flags is %#x; accepted: CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING", flags));
    }
    auto* object = make_object<Event>(&context);
    object->flags = flags;
    *event = handle_of<CUevent>(object);
  });
}

EFFNET_PTX_EXPORT CUresult cuEventDestroy_v2(CUevent handle) {
  return api("cuEventDestroy", [&] { find_event(handle).alive = false; });
}

EFFNET_PTX_EXPORT CUresult cuEventRecord(CUevent event_handle, CUstream stream_handle) {
  return api("cuEventRecord", [&] {
    Stream& stream = find_stream(stream_handle);
    Event& event = find_event(event_handle);
    if (event.context != stream.context) {
      refuse(CUDA_ERROR_INVALID_HANDLE, "the event belongs to another context than the stream");
    }
    if (stream.capture) return record_in_capture(stream, event);
    const auto time = std::make_shared<double>(0.0);
    event.last = enqueue(stream, [time] { *time = now(); });
    event.time = time;
    event.capture.reset();
    event.leaves.clear();
  });
}

EFFNET_PTX_EXPORT CUresult cuEventQuery(CUevent handle) {
  return api("cuEventQuery", [&] {
    Event& event = find_event(handle);
    refuse_captured_event(event, "query");
    refuse_in_capture(*event.context, "querying an event");
    if (event.last && finish_one(event.last) && !event.last->done) {
      refuse(CUDA_ERROR_NOT_READY, "the event is pending");
    }
  });
}

EFFNET_PTX_EXPORT CUresult cuEventSynchronize(CUevent handle) {
  return api("cuEventSynchronize", [&] {
    Event& event = find_event(handle);
    refuse_captured_event(event, "synchronisation");
    finish({event.last});
  });
}

EFFNET_PTX_EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return api("cuEventElapsedTime", [&] { elapsed(milliseconds, start, end); });
}

EFFNET_PTX_EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return api("cuEventElapsedTime", [&] { elapsed(milliseconds, start, end); });
}
