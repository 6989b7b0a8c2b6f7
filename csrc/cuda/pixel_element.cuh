// Sigmoids and probabilities with dense targets, which may be smoothed or partly ignored, and with
// a log-loss or a focal term: elements that need no pixel, read in whole vectors.
//
//   planes    as planar_sums: a team of threads per unit of a class
//   columns   as column_sums: neighbouring classes to neighbouring threads
#pragma once

#include "hidden.cuh"
#include "pixel_io.cuh"

namespace customloss::cuda {
namespace {

// Blocks that a multiprocessor must be able to hold.
constexpr int kElementBlocks = 2;

// Contiguous operands; the dtypes of target and weight are known only at run time.  All of them are
// loaded by size before anything waits, and the dtypes are told apart later, once per vector.
template <class In_, int kWidth_>
struct Sized {
  using In = In_;
  using T = float;
  static constexpr int kWidth = kWidth_;
  static constexpr bool kContiguous = true;
  template <bool kWeighted>
  static constexpr int kUnroll = kWidth == 4 ? 2 : 1;

  struct Packet {
    Vec<In, kWidth> x;
    Vec<uint32_t, kWidth> t, w;  // elements fill the first bytes; int64 becomes float32
    bool broadcast;              // the first weight is that of all elements
  };

  static __device__ __forceinline__ void load(const Pass& pass, const Spot& spot, Packet* packet) {
    packet->x = load_vec<In, kWidth>(as<In>(spot.in[kInputOperand]));
    load_sized(spot.in[kTargetOperand], pass.bytes[kTargetOperand], &packet->t);
  }
  static __device__ __forceinline__ void load_weight(const Pass& pass, const Spot& spot,
                                                     bool broadcast, Packet* packet) {
    packet->broadcast = broadcast;
    if (pass.data[kWeightOperand] == nullptr) return;
    const char* from = spot.in[kWeightOperand];
    if (broadcast) {
      packet->w.word[0] = static_cast<uint32_t>(load_bits(from, pass.bytes[kWeightOperand]));
    } else {
      load_sized(from, pass.bytes[kWeightOperand], &packet->w);
    }
  }
  // One element, as the first of a packet.
  static __device__ __forceinline__ Packet load_one(const Pass& pass, const Spot& spot) {
    Packet packet;
    packet.x.put(0, *as<In>(spot.in[kInputOperand]));
    const uint64_t target = load_bits(spot.in[kTargetOperand], pass.bytes[kTargetOperand]);
    packet.t.put(0,
                 pass.bytes[kTargetOperand] == 8 ? narrow(target) : static_cast<uint32_t>(target));
    load_weight(pass, spot, true, &packet);
    return packet;
  }
  static __device__ __forceinline__ void store(const Pass&, const Spot& spot,
                                               const float (&values)[kWidth]) {
    Vec<In, kWidth> vec;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) vec.put(i, static_cast<In>(values[i]));
    store_vec<In, kWidth>(vec, reinterpret_cast<In*>(spot.out));
  }
  static __device__ __forceinline__ void store_one(const Spot& spot, float value) {
    *reinterpret_cast<In*>(spot.out) = static_cast<In>(value);
  }

  // The first kCount targets, and weights, as numbers.
  template <int kCount>
  static __device__ __forceinline__ void targets(const Pass& pass, const Packet& packet,
                                                 float (&to)[kCount]) {
    const auto put = [&](int i, auto value) { to[i] = widen<float>(value); };
    switch (pass.dtype[kTargetOperand]) {
      case Dtype::kBool:
        return each<uint8_t, kCount>(packet.t,
                                     [&](int i, uint8_t t) { to[i] = t != 0 ? 1.0f : 0.0f; });
      case Dtype::kUInt8: return each<uint8_t, kCount>(packet.t, put);
      case Dtype::kInt64:
      case Dtype::kFloat32: return each<float, kCount>(packet.t, put);
      default: return each<In, kCount>(packet.t, put);
    }
  }
  template <int kCount>
  static __device__ __forceinline__ void weights(const Pass& pass, const Packet& packet,
                                                 float (&to)[kCount]) {
    const auto put = [&](int i, auto value) { to[i] = widen<float>(value); };
    if (pass.data[kWeightOperand] == nullptr) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = 1.0f;
      return;
    }
    switch (pass.dtype[kWeightOperand]) {
      case Dtype::kBool:
      case Dtype::kUInt8: each<uint8_t, kCount>(packet.w, put); break;
      case Dtype::kFloat32: each<float, kCount>(packet.w, put); break;
      default: each<In, kCount>(packet.w, put); break;
    }
#pragma unroll
    for (int i = 1; i < kCount; ++i) to[i] = packet.broadcast ? to[0] : to[i];
  }

 private:
  using Words = Vec<uint32_t, kWidth>;

  // int64 is converted at once: the registers that it would take matter more than the wait.
  static __device__ __forceinline__ uint32_t narrow(uint64_t target) {
    return bit_cast<uint32_t>(static_cast<float>(static_cast<int64_t>(target)));
  }
  static __device__ __forceinline__ void load_sized(const char* from, int bytes, Words* to) {
    switch (bytes) {
      case 1: return load_as<uint8_t>(from, to);
      case 2: return load_as<uint16_t>(from, to);
      case 4: return load_as<uint32_t>(from, to);
      default: break;
    }
    const Vec<uint64_t, kWidth> own = load_vec<uint64_t, kWidth>(as<uint64_t>(from));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to->word[i] = narrow(own.at(i));
  }
  template <class E>
  static __device__ __forceinline__ void load_as(const char* from, Words* to) {
    const Vec<E, kWidth> own = load_vec<E, kWidth>(as<E>(from));
#pragma unroll
    for (int k = 0; k < Vec<E, kWidth>::kWords; ++k) to->word[k] = own.word[k];
  }

  // Calls put(i, number) for elements of a dtype, from the words of a wider vector.
  template <class E, int kCount, class Put>
  static __device__ __forceinline__ void each(const Words& from, const Put& put) {
    Vec<E, kWidth> own;
#pragma unroll
    for (int k = 0; k < Vec<E, kWidth>::kWords; ++k) own.word[k] = from.word[k];
#pragma unroll
    for (int i = 0; i < kCount; ++i) put(i, own.at(i));
  }
};

// Calls body(i, outcome, target, weight, activation) for the first kCount elements of a packet.
// Elements that do not count are passed as zeros with weight 0.
template <unsigned kExtra, int kCount, class Io, class Body>
__device__ __forceinline__ void for_sized(const PixelPass& px, const typename Io::Packet& packet,
                                          const Body& body) {
  const float scale = px.pass.scale32, offset = px.pass.offset32;
  float t[kCount];
  Io::targets(px.pass, packet, t);
  const auto all = [&](auto activated, const auto& ready) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float x = widen<float>(packet.x.at(i));
      const float w = ready(i, &x);
      const Target<float> target = soft_target(px.smoothing32, w == 0.0f ? 0.0f : t[i]);
      body(i, outcome<decltype(activated)::value, kExtra>(x, scale, offset), target, w, activated);
    }
  };
  constexpr std::integral_constant<Activation, Activation::kSigmoid> kSigmoid;
  constexpr std::integral_constant<Activation, Activation::kNone> kNone;
  const bool sigmoid = px.pass.activation == Activation::kSigmoid;
  if (sigmoid && px.pass.data[kWeightOperand] == nullptr && !px.leaves_out()) {
    return all(kSigmoid, [](int, float*) { return 1.0f; });
  }
  float w[kCount];
  Io::weights(px.pass, packet, w);
  const auto ready = [&](int i, float* x) {
    bool counts = t[i] != px.ignored32 && w[i] != 0.0f;  // NaN if none is ignored
    if (px.ignores_nan) counts = counts && t[i] == t[i];
    if (px.ignored.count > 1) counts = counts && !px.ignored.holds(t[i]);
    *x = counts ? *x : 0.0f;
    return counts ? w[i] : 0.0f;
  };
  sigmoid ? all(kSigmoid, ready) : all(kNone, ready);
}

// The sums of one thread and class.
template <unsigned kExtra>
struct ElementSums {
  static constexpr int kRows = rows_of(kExtra);
  float own[kRows] = {};

  template <class Activated>
  __device__ __forceinline__ void add(const PixelPass& px, const Outcome<float>& o,
                                      const Target<float>& target, float w, Activated) {
    float share[kRows];
    const float left = linear(kExtra) ? 1.0f : w;
    shares<Activated::value, kExtra>(o, linear(kExtra) ? target.times(w) : target, px.focal32,
                                     share);
#pragma unroll
    for (int row = 0; row < kRows; ++row) own[row] += left * share[row];
  }
  __device__ __forceinline__ void flush(double (&sums)[kRows]) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) sums[row] += static_cast<double>(own[row]);
    *this = ElementSums();
  }
};

// Partial sums of groups whose elements a team of threads shares.
//   maths   the sums of pixel.h
//   launch  as planar_sums
//   bytes   reads input, target and weight once; writes 8 per row and unit
template <class In, unsigned kExtra>
__global__ __launch_bounds__(kThreads,
                             kElementBlocks) void element_sums(const __grid_constant__ PixelPass px,
                                                               const __grid_constant__ Planar cut,
                                                               const Partials partials) {
  using Io = Sized<In, element_width(kExtra, sizeof(In))>;
  constexpr int kRows = rows_of(kExtra);
  clear_ticket(partials);
  const bool broadcast = inner(px.pass).stride[kWeightOperand] == 0;
  ElementSums<kExtra> own;
  double sums[kRows] = {};
  int adds = 0;
  const auto add = [&]<int kCount>(const typename Io::Packet& packet) {
    for_sized<kExtra, kCount, Io>(
        px, packet,
        [&](int, const Outcome<float>& o, const Target<float>& target, float w, auto activated) {
          own.add(px, o, target, w, activated);
        });
    adds += kCount;
    if (adds < kMostAdds) return;
    own.flush(sums);
    adds = 0;
  };
  for_stretches<Io>(
      px.pass, cut, Unit(cut, blockIdx.x),
      [&](const Spot& spot) { add.template operator()<1>(Io::load_one(px.pass, spot)); },
      [&](const Spot& first, int count) {
        for_packets<Io, true>(px.pass, cut.step, first, count, broadcast,
                              [&](const typename Io::Packet& packet, const Spot&) {
                                add.template operator()<Io::kWidth>(packet);
                              });
      });
  own.flush(sums);
  if (cut.lanes == kThreads) {
    const double sum = sum_by_warps(sums);
    const int row = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0 && row < kRows) {
      partials.sums[row * partials.sum_stride + block_index()] = sum;  // a block is a unit
    }
    return;
  }
  sum_lanes(sums, cut.lanes);
  const Unit unit(cut, block_index());
  if (unit.exists && (threadIdx.x & (cut.lanes - 1)) == 0) {
    double* to = partials.sums + unit.group * cut.units + unit.unit;
#pragma unroll
    for (int row = 0; row < kRows; ++row) to[row * partials.sum_stride] = sums[row];
  }
}

// The columns of one thread.
template <unsigned kExtra>
struct ElementColumns {
  ElementSums<kExtra> own[column_width(kExtra)];
  __device__ __forceinline__ float at(int row, int i) const { return own[i].own[row]; }
};

// Partial sums of classes that lie next to each other.
//   maths   as element_sums
//   launch  as column_sums
//   bytes   reads input, target and weight once; writes 8 per row, class and band
template <class In, unsigned kExtra>
__global__ __launch_bounds__(kThreads, kElementBlocks) void element_column_sums(
    const __grid_constant__ PixelPass px, const __grid_constant__ Columns cut,
    const Partials partials) {
  using Io = Sized<In, column_width(kExtra)>;
  clear_ticket(partials);
  const bool broadcast = px.pass.layout.cls.stride[kWeightOperand] == 0;
  ElementColumns<kExtra> columns;
  const Band band(cut, blockIdx.x, Io::kWidth);
  for_rows(px.pass, cut, band, [&](const Spot& first, int count) {
    for_packets<Io, true>(
        px.pass, cut.step, first, count, broadcast,
        [&](const typename Io::Packet& packet, const Spot&) {
          for_sized<kExtra, Io::kWidth, Io>(
              px, packet,
              [&](int i, const Outcome<float>& o, const Target<float>& target, float w,
                  auto activated) { columns.own[i].add(px, o, target, w, activated); });
        });
  });
  for_tail<Io>(px.pass, cut, Band(cut, block_index(), Io::kWidth), [&](int i, const Spot& spot) {
    for_sized<kExtra, 1, Io>(
        px, Io::load_one(px.pass, spot),
        [&](int, const Outcome<float>& o, const Target<float>& target, float w, auto activated) {
          columns.own[i].add(px, o, target, w, activated);
        });
  });
  const Band to(cut, block_index(), Io::kWidth);
  // The bands of a class lie together, as units do in every pass over pixels: pool_sums adds them.
  write_columns<Io, rows_of(kExtra)>(
      cut, to, columns, partials, (to.sample * cut.classes + to.first_class) * cut.bands + to.band,
      cut.bands);
}

// The gradient by the sums of a class, as slopes() takes it.
template <unsigned kExtra>
__device__ __forceinline__ void element_slopes(const PixelGrads& grads, int64_t sample, int cls,
                                               float (&to)[rows_of(kExtra)]) {
  double first[4];
  combine_grads(Wrt::kInput, kExtra, [&](int row) { return grads.at(row, sample, cls); }, first);
#pragma unroll
  for (int row = 0; row < 4; ++row) to[row] = static_cast<float>(first[row]);
#pragma unroll
  for (int row = 4; row < rows_of(kExtra); ++row) {
    to[row] = static_cast<float>(grads.at(row, sample, cls));
  }
}

// The gradient of an element by the logit.
template <unsigned kExtra, class Activated>
__device__ __forceinline__ float element_slope(const PixelPass& px, const Outcome<float>& o,
                                               const Target<float>& target, float w,
                                               const float (&g)[rows_of(kExtra)], Activated) {
  const Slopes<float> slope = slopes<Activated::value, kExtra>(o, target, px.focal32, g);
  return times(w, input_gradient<Activated::value, kExtra>(o, slope, px.pass.scale32));
}

// The gradient by the input of groups whose elements a team of threads shares.
//   maths   input_gradient of pixel.h, times the weight
//   launch  as element_sums, last block first
//   bytes   reads input, target and weight once; writes the gradient once
template <class In, unsigned kExtra>
__global__ __launch_bounds__(kThreads, kElementBlocks) void element_gradient(
    const __grid_constant__ PixelPass px, const __grid_constant__ Planar cut,
    const PixelGrads grads) {
  using Io = Sized<In, element_width(kExtra, sizeof(In))>;
  const bool broadcast = inner(px.pass).stride[kWeightOperand] == 0;
  const Unit unit(cut, gridDim.x - 1 - blockIdx.x);
  if (!unit.exists) return;
  float g[rows_of(kExtra)];
  element_slopes<kExtra>(grads, unit.sample, unit.cls, g);
  if (!has_influence(g)) return clear_unit<Io>(px.pass, cut, unit);
  for_stretches<Io>(
      px.pass, cut, unit,
      [&](const Spot& spot) {
        for_sized<kExtra, 1, Io>(px, Io::load_one(px.pass, spot),
                                 [&](int, const Outcome<float>& o, const Target<float>& target,
                                     float w, auto activated) {
                                   Io::store_one(
                                       spot, element_slope<kExtra>(px, o, target, w, g, activated));
                                 });
      },
      [&](const Spot& first, int count) {
        for_packets<Io, true>(px.pass, cut.step, first, count, broadcast,
                              [&](const typename Io::Packet& packet, const Spot& spot) {
                                float out[Io::kWidth];
                                for_sized<kExtra, Io::kWidth, Io>(
                                    px, packet,
                                    [&](int i, const Outcome<float>& o, const Target<float>& target,
                                        float w, auto activated) {
                                      out[i] =
                                          element_slope<kExtra>(px, o, target, w, g, activated);
                                    });
                                Io::store(px.pass, spot, out);
                              });
      });
}

// The gradient by the input of classes that lie next to each other.
//   maths   as element_gradient
//   launch  as element_column_sums, last block first
//   bytes   reads input, target and weight once; writes the gradient once
template <class In, unsigned kExtra>
__global__ __launch_bounds__(kThreads, kElementBlocks) void element_column_gradient(
    const __grid_constant__ PixelPass px, const __grid_constant__ Columns cut,
    const PixelGrads grads) {
  using Io = Sized<In, column_width(kExtra)>;
  const bool broadcast = px.pass.layout.cls.stride[kWeightOperand] == 0;
  const Band band(cut, gridDim.x - 1 - blockIdx.x, Io::kWidth);
  if (band.steps == 0 && band.tail == 0) return;
  float g[Io::kWidth][rows_of(kExtra)];
  unsigned hidden = 0;
  int cls = band.column % static_cast<int>(cut.classes);
#pragma unroll
  for (int i = 0; i < Io::kWidth; ++i) {
    element_slopes<kExtra>(grads, band.sample, cls, g[i]);
    hidden |= static_cast<unsigned>(!has_influence(g[i])) << i;
    cls = cls + 1 == cut.classes ? 0 : cls + 1;
  }
  for_rows(px.pass, cut, band, [&](const Spot& first, int count) {
    for_packets<Io, true>(px.pass, cut.step, first, count, broadcast,
                          [&](const typename Io::Packet& packet, const Spot& spot) {
                            float out[Io::kWidth];
                            for_sized<kExtra, Io::kWidth, Io>(
                                px, packet,
                                [&](int i, const Outcome<float>& o, const Target<float>& target,
                                    float w, auto activated) {
                                  out[i] = element_slope<kExtra>(px, o, target, w, g[i], activated);
                                });
                            hide(hidden, out);
                            Io::store(px.pass, spot, out);
                          });
  });
  for_tail<Io>(px.pass, cut, band, [&](int i, const Spot& spot) {
    for_sized<kExtra, 1, Io>(
        px, Io::load_one(px.pass, spot),
        [&](int, const Outcome<float>& o, const Target<float>& target, float w, auto activated) {
          float out[1] = {element_slope<kExtra>(px, o, target, w, g[i], activated)};
          hide(hidden >> i, out);
          Io::store_one(spot, out[0]);
        });
  });
}

}  // namespace
}  // namespace customloss::cuda
