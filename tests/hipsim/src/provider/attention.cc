// What surrounds the matrix products of com.microsoft's Attention.
#include <cmath>
#include <limits>

#include "launch.h"

namespace hipsim::provider {
namespace {

// Elements, or short vectors of them, that are only moved.
std::size_t size_of_vector(const std::string& type) {
  if (const Element* element = find_element(type)) return element->size;
  if (type == "HIP_vector_type<float, 2u>" || type == "onnxruntime::rocm::Half4") return 8;
  if (type == "HIP_vector_type<float, 4u>") return 16;
  if (type == "__half2") return 4;
  throw Unknown{};
}

// Rows of a head: [.., heads, head] to [.., heads, tokens, head] and back, for `matrices` tensors side by side.
struct Heads {
  const char* in;
  char* out;
  std::size_t row;  // bytes of a row
  std::int64_t batch, tokens, heads, matrices, chunks;
  bool tokens_first;  // [tokens, batch, ..] rather than [batch, tokens, ..]

  // Where a row lies in the joined tensor, in rows.
  std::int64_t joined(std::int64_t m, std::int64_t b, std::int64_t n, std::int64_t s) const {
    return (tokens_first ? (s * batch + b) * matrices + m : (b * tokens + s) * matrices + m) * heads + n;
  }
  std::int64_t split(std::int64_t m, std::int64_t b, std::int64_t n, std::int64_t s) const {
    return ((m * batch + b) * heads + n) * tokens + s;
  }
};

Task heads_task(const Heads& heads, bool join) {
  const auto bytes = [&](std::int64_t rows) { return static_cast<std::size_t>(rows) * heads.row; };
  const std::int64_t one = heads.batch * heads.tokens * heads.heads;
  Task task;
  task.accesses = {{heads.in, bytes(one * (join ? heads.chunks : heads.matrices)), false},
                   {heads.out, bytes(one * heads.chunks), true}};
  task.body = [heads, join] {
    for (std::int64_t m = 0; m < heads.chunks; ++m)
      for (std::int64_t b = 0; b < heads.batch; ++b)
        for (std::int64_t n = 0; n < heads.heads; ++n)
          for (std::int64_t s = 0; s < heads.tokens; ++s) {
            const auto joined = static_cast<std::size_t>(heads.joined(m, b, n, s)) * heads.row;
            const auto split = static_cast<std::size_t>(heads.split(m, b, n, s)) * heads.row;
            std::memcpy(heads.out + (join ? joined : split), heads.in + (join ? split : joined), heads.row);
          }
  };
  return task;
}

Heads make_heads(const Launch& launch) {
  const std::size_t row = size_of_vector(launch.parameter(0)) * static_cast<std::size_t>(launch.argument<std::int32_t>(0));
  return {launch.address(2), const_cast<char*>(launch.address(3)), row, launch.grid.y, launch.grid.x, launch.block.y,
          1, 1, launch.argument<bool>(1)};
}

// <vector>(vectors of a head, tokens first, in, out, matrices); the grid is tokens by batch by those that are wanted, a
// block's second dimension the heads
Task split_heads(const Launch& launch) {
  Heads heads = make_heads(launch);
  heads.matrices = launch.argument<std::int32_t>(4);
  heads.chunks = launch.grid.z;
  return heads_task(heads, false);
}
// <vector>(vectors of a head, tokens first, in, out)
Task join_heads(const Launch& launch) { return heads_task(make_heads(launch), true); }

struct Strides3 {
  std::int32_t batch, query, key;
};

// <type, ...>(keys, queries, strides of the mask, mask, padding, bias, in, out, causal, scale, only the scores, what a
// masked key adds); the grid is heads * queries by batch
Task masked_softmax(const Launch& launch) {
  const std::int64_t keys = launch.argument<std::int32_t>(0), queries = launch.argument<std::int32_t>(1);
  const auto strides = launch.argument<Strides3>(2);
  const Elements mask(*find_element("int"), launch.address(3)), padding(*find_element("bool"), launch.address(4));
  const Elements bias = launch.elements(5, 0), in = launch.elements(6, 0), out = launch.elements(7, 0);
  const bool causal = launch.argument<bool>(8), only_scores = launch.argument<bool>(10);
  const float scale = launch.argument<float>(9), masked = launch.argument<float>(11);
  const std::int64_t rows = launch.grid.x, batch = launch.grid.y, all = rows * batch * keys;
  Task task;
  task.accesses = {range(in, all, false), range(out, all, true)};
  const std::int64_t seen = (batch - 1) * strides.batch + (queries - 1) * strides.query + (keys - 1) * strides.key + 1;
  task.accesses.push_back(range(padding ? padding : mask, seen, false));
  if (bias) task.accesses.push_back(range(bias, all, false));
  task.body = [=] {
    constexpr float lowest = std::numeric_limits<float>::lowest();
    std::vector<float> scores(static_cast<std::size_t>(keys));
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t start = (b * rows + row) * keys, query = row % queries;
        float most = lowest, sum = 0;
        for (std::int64_t k = 0; k < keys; ++k) {
          float score = static_cast<float>(in.get(start + k)) * scale;
          if (causal && k > keys - queries + query) score = lowest;
          const std::int64_t at = b * strides.batch + query * strides.query + k * strides.key;
          if (!padding && mask.get(at) == 0) score += masked;
          if (padding && padding.get(at) != 0) score = lowest;
          if (bias) score += static_cast<float>(bias.get(start + k));
          scores[static_cast<std::size_t>(k)] = score;
          most = std::fmax(most, score);
        }
        for (float score : scores) sum += std::exp(score - most);
        for (std::int64_t k = 0; k < keys; ++k) {
          const float score = scores[static_cast<std::size_t>(k)];
          out.set(start + k, only_scores ? score : std::exp(score - most) / sum);
        }
      }
  };
  return task;
}

}  // namespace

const std::vector<Kernel>& attention_kernels() {
  static const auto& table = *new std::vector<Kernel>{
      {"TransposeQKV", split_heads},
      {"TransposeQKVLarge", split_heads},
      {"TransposeCtx", join_heads},
      {"TransposeCtxLarge", join_heads},
      {"SoftmaxWithRawMaskSmallKernel", masked_softmax},
  };
  return table;
}

}  // namespace hipsim::provider
