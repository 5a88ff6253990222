// Graphs and their executable form.
#pragma once
#include "capture.h"

struct Graph;
struct GraphExec;
using hipGraph_t = Graph*;
using hipGraphExec_t = GraphExec*;

namespace hipsim {

// With the lock held.
hipGraph_t make_graph(GraphState state);

}  // namespace hipsim
