// Graphs: a launch queues the captured work again, each captured stream but the first on one of the graph's own.
//
// Launches of one graph on two streams are not ordered with one another.  CUDA's are; ROCm promises nothing, and does
// not order them.
#include "graphs.h"

#include <map>

#include "errors.h"
#include "streams.h"

namespace hipsim {
namespace {

struct Executable {
  GraphState graph;
  std::vector<Queue*> branches;  // the first is the stream of the launch
};
constexpr const char *kGraph = "hipGraph", *kExecutable = "hipGraphExec";

std::map<hipGraph_t, GraphState>& graphs = *new std::map<hipGraph_t, GraphState>;
std::map<hipGraphExec_t, Executable>& executables = *new std::map<hipGraphExec_t, Executable>;

std::size_t graphs_made = 0, executables_made = 0;

void launch(Lock& held, Executable& executable, Queue& queue) {
  executable.branches[0] = &queue;
  const OperationPtr start = push(held, queue, {"graph launch", nullptr, {}});
  std::vector<OperationPtr> queued;
  for (const Node& node : executable.graph.nodes) {
    Queue& branch = *executable.branches[static_cast<std::size_t>(node.branch)];
    Push order;
    Clock seen = start->clock;
    order.after = {start};
    for (const int earlier : node.after) {
      order.after.push_back(queued[static_cast<std::size_t>(earlier)]);
      seen.join(queued[static_cast<std::size_t>(earlier)]->clock);
    }
    order.seen = &seen;
    order.copy = node.copy;
    order.calls_host = node.calls_host;
    queued.push_back(push(held, branch, node.task, order));
  }
  Push end;
  Clock seen;
  for (const OperationPtr& operation : queued) seen.join(operation->clock);
  end.after = queued;
  end.seen = &seen;
  push(held, queue, {"graph end", nullptr, {}}, end);
}

}  // namespace

hipGraph_t make_graph(GraphState state) {
  const auto graph = reinterpret_cast<hipGraph_t>(0x530000000000 + ++graphs_made * 0x100);
  note("graph %p has %zu nodes", static_cast<void*>(graph), state.nodes.size());
  graphs[graph] = std::move(state);
  made(kGraph, graph);
  return graph;
}

}  // namespace hipsim

using namespace hipsim;

static int instantiate(hipGraphExec_t* executable, hipGraph_t graph) {
  const Lock held = lock();
  if (!executable || !alive(kGraph, graph)) return fail(kErrorInvalidValue);
  *executable = reinterpret_cast<hipGraphExec_t>(0x540000000000 + ++executables_made * 0x100);
  Executable state;
  state.graph = graphs[graph];
  state.branches.push_back(nullptr);
  for (const Node& node : state.graph.nodes)
    while (state.branches.size() <= static_cast<std::size_t>(node.branch))
      state.branches.push_back(&make_queue(format("g%zu.%zu", executables_made, state.branches.size()), false));
  executables[*executable] = std::move(state);
  made(kExecutable, *executable);
  return kSuccess;
}
HIPSIM_API int hipGraphInstantiateWithFlags(hipGraphExec_t* executable, hipGraph_t graph, unsigned long long) {
  HIP_CALL("graph=%p", static_cast<void*>(graph));
  return instantiate(executable, graph);
}
HIPSIM_API int hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph, void*, char*, std::size_t) {
  HIP_CALL("graph=%p", static_cast<void*>(graph));
  return instantiate(executable, graph);
}
HIPSIM_API int hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream) {
  HIP_CALL("graph=%p, stream=%s", static_cast<void*>(executable), stream_name(stream).c_str());
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (!alive(kExecutable, executable)) return fail(kErrorInvalidValue);
  if (queue->capture) {
    invalidate(*queue->capture);
    return fail(kErrorStreamCaptureUnsupported);
  }
  launch(held, executables[executable], *queue);
  return kSuccess;
}
HIPSIM_API int hipGraphGetNodes(hipGraph_t graph, void** nodes, std::size_t* count) {
  HIP_CALL("graph=%p", static_cast<void*>(graph));
  const Lock held = lock();
  if (!count || !alive(kGraph, graph)) return fail(kErrorInvalidValue);
  if (nodes) return fail(kErrorNotSupported);
  *count = graphs[graph].nodes.size();
  return kSuccess;
}
HIPSIM_API int hipGraphDestroy(hipGraph_t graph) {
  HIP_CALL("graph=%p", static_cast<void*>(graph));
  const Lock held = lock();
  if (!alive(kGraph, graph)) return fail(kErrorInvalidValue);
  gone(kGraph, graph);
  graphs.erase(graph);
  return kSuccess;
}
HIPSIM_API int hipGraphExecDestroy(hipGraphExec_t executable) {
  HIP_CALL("graph=%p", static_cast<void*>(executable));
  const Lock held = lock();
  if (!alive(kExecutable, executable)) return fail(kErrorInvalidValue);
  gone(kExecutable, executable);
  executables.erase(executable);
  return kSuccess;
}
