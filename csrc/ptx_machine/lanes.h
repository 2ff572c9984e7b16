// Handlers made of one function over values: the loops over lanes that the compiler vectorises.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "warp.h"

namespace effnet_fast::ptx {

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Op::f is a static function of values. All lanes are computed, `exec` chooses what is kept: an Op
// must not trap on anything.
template <class Op, class D, class A>
void map1(Warp& w, const Instr& in, uint32_t exec) {
  const A* a = w.row<A>(in.a);
  D result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = Op::f(a[l]);
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

template <class Op, class D, class A, class B = A>
void map2(Warp& w, const Instr& in, uint32_t exec) {
  const A* a = w.row<A>(in.a);
  const B* b = w.row<B>(in.b);
  D result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = Op::f(a[l], b[l]);
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b));
}

template <class Op, class D, class A, class B = A, class C = A>
void map3(Warp& w, const Instr& in, uint32_t exec) {
  const A* a = w.row<A>(in.a);
  const B* b = w.row<B>(in.b);
  const C* c = w.row<C>(in.c);
  D result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = Op::f(a[l], b[l], c[l]);
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b) & w.is_defined(in.c));
}

// A predicate of two values.
template <class Op, class A>
uint32_t compare_lanes(const A* a, const A* b) {
  uint8_t holds[kLanes];
  for (int l = 0; l < kLanes; ++l) holds[l] = Op::f(a[l], b[l]);
  uint32_t mask = 0;
  for (int l = 0; l < kLanes; ++l) mask |= uint32_t{holds[l]} << l;
  return mask;
}

// The unsigned type of a size: the register's view of any value.
template <size_t bytes>
using Bits =
    std::conditional_t<bytes == 2, uint16_t, std::conditional_t<bytes == 4, uint32_t, uint64_t>>;

// splitmix64: of addresses, values and seeds, where any good mixing will do.
inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

}  // namespace effnet_fast::ptx
