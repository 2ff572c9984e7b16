// Stream capture and graphs.
#include <algorithm>

#include "driver_state.h"

namespace effnet_fast::ptx::driver {
namespace {

// The first sentence stays: what came after it followed from it.
void invalidate(Capture& capture, const std::string& why) {
  if (capture.broken.empty()) capture.broken = why;
}

void require_valid(const Capture& capture) {
  if (capture.broken.empty()) return;
  refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture is invalid: " + capture.broken);
}

bool under_way(const Capture& capture) {
  const auto& captures = capture.origin->context->captures;
  return std::any_of(captures.begin(), captures.end(),
                     [&](const auto& each) { return each.get() == &capture; });
}

// Whether using the legacy stream would make it wait for the capture.
bool involves_legacy(const Capture& capture) {
  return capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
         std::any_of(capture.streams.begin(), capture.streams.end(),
                     [](const Stream* stream) { return stream->blocking(); });
}

Graph& find_graph(CUgraph handle) {
  Context& context = current();
  auto& graph = static_cast<Graph&>(find_object(handle, Kind::kGraph, "graph"));
  if (graph.context != &context) {
    refuse(CUDA_ERROR_INVALID_HANDLE, "the graph belongs to another context");
  }
  return graph;
}

GraphExec& find_exec(CUgraphExec handle) {
  Context& context = current();
  auto& exec = static_cast<GraphExec&>(find_object(handle, Kind::kGraphExec, "graphExec"));
  if (exec.context != &context) {
    refuse(CUDA_ERROR_INVALID_HANDLE, "the executable graph belongs to another context");
  }
  return exec;
}

void require_functions(const std::vector<GraphExec::Step>& steps) {
  for (const GraphExec::Step& step : steps) {
    if (step.function && !step.function->alive) {
      refuse(CUDA_ERROR_INVALID_HANDLE, "the module of a kernel in the graph has been unloaded");
    }
  }
}

bool all_joined(const Capture& capture) {
  std::set<const Node*> reached;
  std::vector<const Node*> open(capture.origin->leaves.begin(), capture.origin->leaves.end());
  while (!open.empty()) {
    const Node* const node = open.back();
    open.pop_back();
    if (!reached.insert(node).second) continue;
    open.insert(open.end(), node->after.begin(), node->after.end());
  }
  const auto& nodes = capture.graph->nodes;
  return std::all_of(nodes.begin(), nodes.end(),
                     [&](const Node* node) { return reached.count(node) != 0; });
}

void capture_info(CUstream handle, CUstreamCaptureStatus* status, uint64_t* id, CUgraph* graph,
                  const CUgraphNode** dependencies, size_t* count) {
  require_pointer(status, "captureStatus_out");
  static thread_local std::vector<CUgraphNode> nodes;  // the caller's until its next call
  const Stream& stream = find_stream(handle);
  nodes.clear();
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  if (!stream.capture) return;
  const Capture& capture = *stream.capture;
  *status = capture.broken.empty() ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                   : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  for (Node* node : stream.leaves) nodes.push_back(handle_of<CUgraphNode>(node));
  if (id) *id = capture.id;
  if (graph) *graph = handle_of<CUgraph>(capture.graph);
  if (dependencies) *dependencies = nodes.data();
  if (count) *count = nodes.size();
}

}  // namespace

void refuse_in_capture(Context& context, const char* call) {
  const CUstreamCaptureMode mode = this_thread().mode;
  if (mode == CU_STREAM_CAPTURE_MODE_RELAXED) return;
  bool unsafe = false;
  const std::string why = text("%s is not allowed while a stream is capturing", call);
  for (const auto& capture : context.captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool counts = own ? capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED
                            : mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                                  capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!counts) continue;
    unsafe = true;
    invalidate(*capture, why);
  }
  if (unsafe) refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, why);
}

void refuse_captured(Stream& stream, const char* call) {
  if (!stream.capture) return;
  const std::string why = text("%s is not allowed: it is capturing", call);
  invalidate(*stream.capture, why);
  refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, why);
}

void refuse_legacy(Context& context, const char* call) {
  bool involved = false;
  const std::string why = text("%s would wait for a stream that is capturing", call);
  for (const auto& capture : context.captures) {
    if (!involves_legacy(*capture)) continue;
    involved = true;
    invalidate(*capture, why);
  }
  if (involved) refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, why);
}

void add_node(Stream& stream, std::function<void()> work, Function* function) {
  Capture& capture = *stream.capture;
  require_valid(capture);
  auto* node = make_object<Node>(stream.context);
  node->after = stream.leaves;
  node->work = std::make_shared<const std::function<void()>>(std::move(work));
  node->function = function;
  capture.graph->nodes.push_back(node);
  stream.leaves = {node};
}

void record_in_capture(Stream& stream, Event& event) {
  require_valid(*stream.capture);
  event.capture = stream.capture;
  event.leaves = stream.leaves;
  event.last.reset();
}

void join_capture(Stream& stream, Event& event) {
  if (!event.capture) {  // so the stream is capturing
    require_valid(*stream.capture);
    const std::string why = "the capturing stream would wait for an event from outside";
    if (!event.last) return;  // never recorded: nothing to wait for
    invalidate(*stream.capture, why);
    refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, why);
  }
  Capture& capture = *event.capture;
  if (!under_way(capture)) {
    refuse(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture that has ended");
  }
  require_valid(capture);
  if (stream.legacy) {
    const std::string why = "the legacy stream cannot take part in a capture";
    invalidate(capture, why);
    refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, why);
  }
  if (!stream.capture) {
    stream.capture = event.capture;
    stream.leaves.clear();
    capture.streams.insert(&stream);
  } else if (stream.capture != event.capture) {
    const std::string why = "the wait would merge two captures";
    invalidate(capture, why);
    invalidate(*stream.capture, why);
    refuse(CUDA_ERROR_STREAM_CAPTURE_MERGE, why);
  }
  stream.leaves.insert(event.leaves.begin(), event.leaves.end());
}

}  // namespace effnet_fast::ptx::driver

using namespace effnet_fast::ptx;
using namespace effnet_fast::ptx::driver;

// ---- capture ------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  return api("cuStreamBeginCapture", [&] {
    Stream& stream = find_stream(handle);
    if (mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
      refuse(CUDA_ERROR_INVALID_VALUE, text("mode is %u; accepted: 0 to 2", unsigned{mode}));
    }
    if (stream.legacy) {
      refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
    }
    if (stream.capture) refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is capturing already");
    auto capture = std::make_shared<Capture>();
    capture->id = ++state().captures;
    capture->origin = &stream;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->graph = make_object<Graph>(stream.context);
    capture->streams.insert(&stream);
    stream.capture = capture;
    stream.leaves.clear();
    stream.context->captures.insert(capture);
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  return api("cuStreamEndCapture", [&] {
    require_pointer(graph, "phGraph");
    Stream& stream = find_stream(handle);
    *graph = nullptr;
    if (!stream.capture) refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is not capturing");
    const std::shared_ptr<Capture> capture = stream.capture;
    if (capture->origin != &stream) {
      refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture was begun on another stream");
    }
    const bool joined = all_joined(*capture);
    for (Stream* each : capture->streams) {
      each->capture.reset();
      each->leaves.clear();
    }
    stream.context->captures.erase(capture);
    // By then it has ended, as a driver's has: the thread that began it finds none.
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
        capture->thread != std::this_thread::get_id()) {
      refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture was begun by another thread");
    }
    require_valid(*capture);
    if (!joined) {
      refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
             "work of another stream in the capture was not joined to the stream that began it");
    }
    *graph = handle_of<CUgraph>(capture->graph);
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  return api("cuStreamIsCapturing", [&] {
    require_pointer(status, "captureStatus");
    const Stream& stream = find_stream(handle);
    if (stream.legacy) {
      for (const auto& capture : stream.context->captures) {
        if (involves_legacy(*capture)) {
          refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                 "a stream that blocks the legacy one captures");
        }
      }
    }
    *status = !stream.capture                  ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream.capture->broken.empty() ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                               : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  });
}

EFFNET_PTX_EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus* status,
                                                     uint64_t* id, CUgraph* graph,
                                                     const CUgraphNode** dependencies,
                                                     size_t* count) {
  return api("cuStreamGetCaptureInfo",
             [&] { capture_info(stream, status, id, graph, dependencies, count); });
}

EFFNET_PTX_EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream stream, CUstreamCaptureStatus* status,
                                                     uint64_t* id, CUgraph* graph,
                                                     const CUgraphNode** dependencies,
                                                     const void** edges, size_t* count) {
  return api("cuStreamGetCaptureInfo", [&] {
    if (edges) *edges = nullptr;  // no edge has data
    capture_info(stream, status, id, graph, dependencies, count);
  });
}

EFFNET_PTX_EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  return api("cuThreadExchangeStreamCaptureMode", [&] {
    require_pointer(mode, "mode");
    if (*mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
      refuse(CUDA_ERROR_INVALID_VALUE, text("mode is %u; accepted: 0 to 2", unsigned{*mode}));
    }
    std::swap(*mode, this_thread().mode);
  });
}

// ---- graphs -------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  return api("cuGraphGetNodes", [&] {
    require_pointer(count, "numNodes");
    const Graph& graph = find_graph(handle);
    const size_t room = nodes ? *count : 0;
    for (size_t i = 0; i < room; ++i) {
      nodes[i] = i < graph.nodes.size() ? handle_of<CUgraphNode>(graph.nodes[i]) : nullptr;
    }
    *count = nodes ? std::min(room, graph.nodes.size()) : graph.nodes.size();
  });
}

EFFNET_PTX_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle,
                                                       unsigned long long flags) {
  return api("cuGraphInstantiate", [&] {
    require_pointer(exec, "phGraphExec");
    const Graph& graph = find_graph(handle);
    if (flags & ~9ull) {  // auto-free of memory nodes, and node priorities: nothing to do here
      refuse(CUDA_ERROR_INVALID_VALUE, text("flags is %#llx; accepted: 0, 1, 8, 9", flags));
    }
    std::vector<GraphExec::Step> steps;
    std::map<const Node*, size_t> index;
    for (const Node* node : graph.nodes) {
      GraphExec::Step step{node->work, {}, node->function};
      for (const Node* before : node->after) step.after.push_back(index.at(before));
      index[node] = steps.size();
      steps.push_back(std::move(step));
    }
    require_functions(steps);
    auto* object = make_object<GraphExec>(graph.context);
    object->steps = std::move(steps);
    *exec = handle_of<CUgraphExec>(object);
  });
}

EFFNET_PTX_EXPORT CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
  return api("cuGraphUpload", [&] {
    find_exec(exec);
    refuse_captured(find_stream(stream), "uploading a graph to the stream");
  });
}

EFFNET_PTX_EXPORT CUresult cuGraphLaunch(CUgraphExec exec_handle, CUstream stream_handle) {
  return api("cuGraphLaunch", [&] {
    GraphExec& exec = find_exec(exec_handle);
    Stream& stream = find_stream(stream_handle);
    require_functions(exec.steps);
    std::vector<bool> is_leaf(exec.steps.size(), true);
    for (const GraphExec::Step& step : exec.steps) {
      for (const size_t before : step.after) is_leaf[before] = false;
    }
    if (stream.capture) {  // what a driver makes a child graph of
      const std::set<Node*> entry = stream.leaves;
      std::vector<Node*> nodes;
      std::set<Node*> leaves = exec.steps.empty() ? entry : std::set<Node*>{};
      for (size_t i = 0; i < exec.steps.size(); ++i) {
        const GraphExec::Step& step = exec.steps[i];
        stream.leaves = step.after.empty() ? entry : std::set<Node*>{};
        for (const size_t before : step.after) stream.leaves.insert(nodes[before]);
        add_node(stream, *step.work, step.function);
        nodes.push_back(*stream.leaves.begin());
        if (is_leaf[i]) leaves.insert(nodes.back());
      }
      stream.leaves = leaves;
      return;
    }
    // Launches of one executable graph follow each other, whatever streams they are in.
    const OpPtr first = enqueue(stream, nullptr);
    if (exec.last && !exec.last->done) first->after.push_back(exec.last);
    std::vector<OpPtr> ops, leaves;
    for (size_t i = 0; i < exec.steps.size(); ++i) {
      const GraphExec::Step& step = exec.steps[i];
      const OpPtr op = make_op(*exec.context, [work = step.work] {
        if (*work) (*work)();
      });
      if (step.after.empty()) op->after.push_back(first);
      for (const size_t before : step.after) op->after.push_back(ops[before]);
      if (is_leaf[i]) leaves.push_back(op);
      ops.push_back(op);
    }
    exec.last = enqueue(stream, nullptr);
    exec.last->after.insert(exec.last->after.end(), leaves.begin(), leaves.end());
  });
}

EFFNET_PTX_EXPORT CUresult cuGraphDestroy(CUgraph handle) {
  return api("cuGraphDestroy", [&] {
    Graph& graph = find_graph(handle);
    for (const auto& capture : graph.context->captures) {
      if (capture->graph == &graph) {
        refuse(CUDA_ERROR_ILLEGAL_STATE, "the graph is being captured");
      }
    }
    for (Node* node : graph.nodes) {
      node->alive = false;
      node->work.reset();
      node->after.clear();
    }
    graph.nodes.clear();
    graph.alive = false;
  });
}

EFFNET_PTX_EXPORT CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return api("cuGraphExecDestroy", [&] {
    GraphExec& exec = find_exec(handle);
    exec.steps.clear();  // launches under way have their own hold on the work
    exec.alive = false;
  });
}
