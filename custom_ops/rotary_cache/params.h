// What op.cc tells RotaryCache's kernels, on the CPU and on the device.
#pragma once

namespace rocline {

struct RotaryParams {
  int batch, tokens, heads, kv_heads, head, capacity;
  int q_stride, kv_stride;  // elements from one token to the next in q, and in k and v
  int rotary;     // leading elements of a head that are rotated; 0: none
  int positions;  // rows of the tables
  int interleaved;
  float epsilon;
  int lanes;   // the device's lanes a head: a power of two, at most 32
  int vector;  // the device may take eight elements at a time: heads start on 16 bytes and divide evenly
};

struct RotaryBuffers {
  const void *q, *k, *v;
  const long long* positions;
  const float *cos, *sin;
  const void *q_norm, *k_norm;  // null: none
  void *y, *present_k, *present_v;
};

}  // namespace rocline
