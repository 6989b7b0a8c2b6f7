// Loads elements from memory as numbers in registers, and stores gradients.  Two loaders:
//
//   Direct<In, Target>  both contiguous along the run: kWidth elements (16 bytes of input) at a
//                       time, with vector loads where the addresses allow it
//   Any<T>              any dtype, any stride, one element at a time; the loads of a packet are
//                       issued by size and converted later, so that none waits for another
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "launch.h"

namespace customloss::cuda {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// The operands of one pass, as a kernel receives them.
struct Pass {
  Layout layout;
  const char* data[kOutOperand];  // input, target, weight (null where there is none)
  char* out;
  Dtype dtype[kOperands];
  int bytes[kOperands];  // of one element
  Activation activation;
  double scale, offset;
  float scale32, offset32;  // the same in float32: arithmetic reads them without a register
};

template <class T>
__device__ __forceinline__ T scale_of(const Pass& pass) {
  if constexpr (sizeof(T) == 4) return pass.scale32;
  return static_cast<T>(pass.scale);
}

template <class T>
__device__ __forceinline__ T offset_of(const Pass& pass) {
  if constexpr (sizeof(T) == 4) return pass.offset32;
  return static_cast<T>(pass.offset);
}

// Where a thread reads and writes: an address per operand.
struct Spot {
  const char* in[kOutOperand];
  char* out;

  // `steps` times `step` bytes on, or back.
  template <class Steps>
  __device__ __forceinline__ void move(const int64_t (&step)[kOperands], Steps steps) {
#pragma unroll
    for (int k = 0; k < kOutOperand; ++k) in[k] += step[k] * steps;
    out += step[kOutOperand] * steps;
  }
};

namespace {

template <class In>
using Compute = std::conditional_t<std::is_same_v<In, double>, double, float>;

// Neighbouring elements, packed as they lie in memory and unpacked only where they are used.
template <class E, int kWidth>
struct alignas(sizeof(E) * kWidth < 16 ? sizeof(E) * kWidth : 16) Vec {
  static constexpr int kBytes = sizeof(E) * kWidth;
  using Word = std::conditional_t<kBytes % 4 == 0, uint32_t, uint16_t>;
  static constexpr int kWords = kBytes / sizeof(Word);
  using Bits = std::conditional_t<
      sizeof(E) == 1, uint8_t,
      std::conditional_t<sizeof(E) == 2, uint16_t,
                         std::conditional_t<sizeof(E) == 4, uint32_t, uint64_t>>>;
  static constexpr int kPerWord = sizeof(Word) / sizeof(E);  // 0: an element is two words

  Word word[kWords] = {};

  __device__ __forceinline__ Bits bits(int i) const {
    if constexpr (kPerWord == 0) {
      return static_cast<Bits>(word[2 * i]) | static_cast<Bits>(word[2 * i + 1]) << 32;
    } else {
      return static_cast<Bits>(word[i / kPerWord] >> (8 * sizeof(E) * (i % kPerWord)));
    }
  }
  __device__ __forceinline__ E at(int i) const { return customloss::bit_cast<E>(bits(i)); }

  // Sets an element that is zero so far.
  __device__ __forceinline__ void put(int i, E value) {
    const Bits own = customloss::bit_cast<Bits>(value);
    if constexpr (kPerWord == 0) {
      word[2 * i] = static_cast<Word>(own);
      word[2 * i + 1] = static_cast<Word>(own >> 32);
    } else {
      word[i / kPerWord] |=
          static_cast<Word>(static_cast<Word>(own) << (8 * sizeof(E) * (i % kPerWord)));
    }
  }
};

template <class T, class From>
__device__ __forceinline__ T widen(From value) {
  if constexpr (std::is_same_v<From, Half> || std::is_same_v<From, BFloat16>) {
    return static_cast<T>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<From, uint8_t> && std::is_same_v<T, float>) {
    // 2^23 + value, less 2^23: a conversion would compete with the exponentials for their pipe.
    return customloss::bit_cast<float>(0x4b000000u | value) - 8388608.0f;
  } else {
    return static_cast<T>(value);
  }
}

template <class E>
__device__ __forceinline__ const E* as(const char* address) {
  return reinterpret_cast<const E*>(address);
}

template <class E, int kWidth>
__device__ __forceinline__ bool aligned(const void* address) {
  return (reinterpret_cast<uintptr_t>(address) & (alignof(Vec<E, kWidth>) - 1)) == 0;
}

template <class E, int kWidth>
__device__ __forceinline__ Vec<E, kWidth> load_vec(const E* from) {
  if (aligned<E, kWidth>(from)) return *reinterpret_cast<const Vec<E, kWidth>*>(from);
  Vec<E, kWidth> vec;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) vec.put(i, from[i]);
  return vec;
}

template <class E, int kWidth>
__device__ __forceinline__ void store_vec(const Vec<E, kWidth>& vec, E* to) {
  if (aligned<E, kWidth>(to)) {
    *reinterpret_cast<Vec<E, kWidth>*>(to) = vec;
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = vec.at(i);
}

// ---- contiguous operands of known dtypes ------------------------------------------------

template <class In_, class Target>
struct Direct {
  using In = In_;
  using T = Compute<In>;
  using Stored = std::conditional_t<std::is_same_v<Target, bool>, uint8_t, Target>;
  static constexpr int kWidth = 16 / sizeof(In);
  static constexpr bool kContiguous = true;
  // Vectors in flight per thread: enough bytes to hide the latency of memory.
  template <bool kWeighted>
  static constexpr int kUnroll = kWeighted || sizeof(Stored) * kWidth > 16 ? 1 : 2;

  struct Packet {
    Vec<In, kWidth> x;
    Vec<Stored, kWidth> t;
    T w[kWidth];
  };
  struct One {
    T x;
    std::conditional_t<std::is_same_v<Target, bool>, Flag<T>, T> t;
    T w;
  };

  static __device__ __forceinline__ void load(const Pass&, const Spot& spot, Packet* packet) {
    packet->x = load_vec<In, kWidth>(as<In>(spot.in[kInputOperand]));
    packet->t = load_vec<Stored, kWidth>(as<Stored>(spot.in[kTargetOperand]));
  }

  // Weights are float32, bytes (masks) or of the input's dtype; the host sends others to Any.
  static __device__ __forceinline__ void load_weight(const Pass& pass, const Spot& spot,
                                                     bool broadcast, Packet* packet) {
    const char* from = spot.in[kWeightOperand];
    switch (pass.dtype[kWeightOperand]) {
      case Dtype::kBool:
      case Dtype::kUInt8: return weights(as<uint8_t>(from), broadcast, packet->w);
      case Dtype::kFloat32: return weights(as<float>(from), broadcast, packet->w);
      default: return weights(as<In>(from), broadcast, packet->w);
    }
  }

  template <bool kWeighted>
  static __device__ __forceinline__ One element(const Pass&, const Packet& packet, int i) {
    One one{widen<T>(packet.x.at(i)), as_target(packet.t.at(i)), T(1)};
    if constexpr (kWeighted) one.w = packet.w[i];
    return one;
  }

  static __device__ __forceinline__ void store(const Pass&, const Spot& spot,
                                               const T (&values)[kWidth]) {
    Vec<In, kWidth> vec;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) vec.put(i, static_cast<In>(values[i]));
    store_vec<In, kWidth>(vec, reinterpret_cast<In*>(spot.out));
  }

  // One element, where a whole vector would stick out.
  template <bool kWeighted>
  static __device__ __forceinline__ One load_one(const Pass& pass, const Spot& spot) {
    One one{widen<T>(*as<In>(spot.in[kInputOperand])),
            as_target(*as<Stored>(spot.in[kTargetOperand])), T(1)};
    if constexpr (kWeighted) {
      Packet packet;
      load_weight(pass, spot, true, &packet);
      one.w = packet.w[0];
    }
    return one;
  }
  static __device__ __forceinline__ void store_one(const Spot& spot, T value) {
    *reinterpret_cast<In*>(spot.out) = static_cast<In>(value);
  }

 private:
  static __device__ __forceinline__ auto as_target(Stored value) {
    if constexpr (std::is_same_v<Target, bool>) {
      return Flag<T>(value != 0);
    } else {
      return widen<T>(value);
    }
  }

  template <class W>
  static __device__ __forceinline__ void weights(const W* from, bool broadcast, T* w) {
    if (broadcast) {
      const T shared = widen<T>(*from);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) w[i] = shared;
    } else {
      const Vec<W, kWidth> vec = load_vec<W, kWidth>(from);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) w[i] = widen<T>(vec.at(i));
    }
  }
};

// ---- anything else ----------------------------------------------------------------------

__device__ __forceinline__ uint64_t load_bits(const char* from, int bytes) {
  switch (bytes) {
    case 1: return *as<uint8_t>(from);
    case 2: return *as<uint16_t>(from);
    case 4: return *as<uint32_t>(from);
    default: return *as<uint64_t>(from);
  }
}

template <class T>
__device__ __forceinline__ T number(Dtype dtype, uint64_t bits) {
  switch (dtype) {
    case Dtype::kBool: return bits != 0 ? T(1) : T(0);
    case Dtype::kInt8: return static_cast<T>(static_cast<int8_t>(bits));
    case Dtype::kInt16: return static_cast<T>(static_cast<int16_t>(bits));
    case Dtype::kInt32: return static_cast<T>(static_cast<int32_t>(bits));
    case Dtype::kInt64: return static_cast<T>(static_cast<int64_t>(bits));
    case Dtype::kFloat16: return widen<T>(Half(static_cast<uint16_t>(bits), Half::from_bits()));
    case Dtype::kBFloat16:
      return widen<T>(BFloat16(static_cast<uint16_t>(bits), BFloat16::from_bits()));
    case Dtype::kFloat32: return static_cast<T>(bit_cast<float>(static_cast<uint32_t>(bits)));
    case Dtype::kFloat64: return static_cast<T>(bit_cast<double>(bits));
    default: return static_cast<T>(bits);
  }
}

template <class T_>
struct Any {
  using T = T_;
  static constexpr int kWidth = 1;
  static constexpr bool kContiguous = false;
  template <bool kWeighted>
  static constexpr int kUnroll = kWeighted ? 2 : 4;

  struct Packet {
    uint64_t x, t, w;
  };
  struct One {
    T x, t, w;
  };

  static __device__ __forceinline__ void load(const Pass& pass, const Spot& spot, Packet* packet) {
    packet->x = load_bits(spot.in[kInputOperand], pass.bytes[kInputOperand]);
    packet->t = load_bits(spot.in[kTargetOperand], pass.bytes[kTargetOperand]);
  }
  static __device__ __forceinline__ void load_weight(const Pass& pass, const Spot& spot, bool,
                                                     Packet* packet) {
    packet->w = load_bits(spot.in[kWeightOperand], pass.bytes[kWeightOperand]);
  }
  template <bool kWeighted>
  static __device__ __forceinline__ One element(const Pass& pass, const Packet& packet, int) {
    One one{number<T>(pass.dtype[kInputOperand], packet.x),
            number<T>(pass.dtype[kTargetOperand], packet.t), T(1)};
    if constexpr (kWeighted) one.w = number<T>(pass.dtype[kWeightOperand], packet.w);
    return one;
  }
  static __device__ __forceinline__ void store(const Pass& pass, const Spot& spot,
                                               const T (&values)[1]) {
    const T value = values[0];
    switch (pass.dtype[kOutOperand]) {
      case Dtype::kFloat16: return put<Half>(spot, static_cast<float>(value));
      case Dtype::kBFloat16: return put<BFloat16>(spot, static_cast<float>(value));
      case Dtype::kFloat32: return put<float>(spot, value);
      default: return put<double>(spot, value);
    }
  }

 private:
  template <class Out, class Value>
  static __device__ __forceinline__ void put(const Spot& spot, Value value) {
    *reinterpret_cast<Out*>(spot.out) = static_cast<Out>(value);
  }
};

}  // namespace
}  // namespace customloss::cuda
