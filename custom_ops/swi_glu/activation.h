// The gates of SwiGlu, as op.cc, cpu.cc and kernel.hip share them.
#pragma once

namespace rocline {

// silu: x sigmoid(x).  gelu: x (1 + erf(x / sqrt 2)) / 2.  gelu_tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
enum class Activation : int { silu, gelu, gelu_tanh };

constexpr float kInverseRoot2 = 0.70710678f;
constexpr float kRoot2OverPi = 0.79788456f;
constexpr float kCubic = 0.044715f;

}  // namespace rocline
