// Which elements a thread reads, by the cuts of partition.h: long straight stretches, in which it
// only adds a step to its addresses.
#pragma once

#include "reduce.cuh"

namespace customloss::cuda {
namespace {

// Indices below 2^31 are divided as 32-bit numbers, which takes a quarter of the instructions.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b, bool wide) {
  return wide ? a / b : static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

__device__ __forceinline__ void move(const Pass& pass, const Axis& axis, int64_t steps,
                                     Spot* spot) {
#pragma unroll
  for (int k = 0; k < kOutOperand; ++k) spot->in[k] += axis.stride[k] * steps * pass.bytes[k];
  spot->out += axis.stride[kOutOperand] * steps * pass.bytes[kOutOperand];
}

__device__ __forceinline__ const Axis& inner(const Pass& pass) {
  return pass.layout.reduced[pass.layout.reduced_axes - 1];
}

__device__ __forceinline__ Spot group_spot(const Pass& pass, int64_t sample, int64_t cls) {
  Spot spot{{pass.data[kInputOperand], pass.data[kTargetOperand], pass.data[kWeightOperand]},
            pass.out};
  move(pass, pass.layout.sample, sample, &spot);
  move(pass, pass.layout.cls, cls, &spot);
  return spot;
}

// From the start of a group to its `index`-th run of the innermost axis.
__device__ __forceinline__ Spot run_spot(const Pass& pass, Spot spot, int64_t index, bool wide) {
  const Layout& layout = pass.layout;
  for (int axis = layout.reduced_axes - 2; axis > 0; --axis) {
    const int64_t outer = quotient(index, layout.reduced[axis].size, wide);
    move(pass, layout.reduced[axis], index - outer * layout.reduced[axis].size, &spot);
    index = outer;
  }
  if (layout.reduced_axes > 1) move(pass, layout.reduced[0], index, &spot);
  return spot;
}

// Returns `number`, but hides from the compiler where it came from.  What a loop computes from it
// is then computed inside the loop, not kept in registers that the loop needs.
__device__ __forceinline__ int opaque(int number) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// blockIdx.x, read anew and not kept in a register.
__device__ __forceinline__ int64_t block_index() {
  return static_cast<uint32_t>(opaque(static_cast<int>(blockIdx.x)));
}

// A team's chunk of a group: the thread's first vector and how many steps of `lanes` it takes.
struct Unit {
  int64_t group, unit, first;
  int sample, cls, steps;
  bool exists;

  __device__ __forceinline__ Unit(const Planar& cut, int64_t block) {
    const int lane = threadIdx.x & (cut.lanes - 1);
    const int64_t team = block * (kThreads >> cut.lane_bits) + (threadIdx.x >> cut.lane_bits);
    exists = team < cut.groups * cut.units;
    group = quotient(team, cut.units, cut.wide);
    unit = team - group * cut.units;
    const int64_t of = quotient(group, cut.classes, cut.wide);
    sample = static_cast<int>(of);
    cls = static_cast<int>(group - of * cut.classes);
    first = unit * cut.chunk + lane;
    const int64_t last = min(unit * cut.chunk + cut.chunk, cut.vectors);
    const int64_t left = exists ? last - first : int64_t{0};
    steps = left <= 0 ? 0 : static_cast<int>((left + cut.lanes - 1) >> cut.lane_bits);
  }
};

// The first and the last vector of a stretch may stick out of the run.  Calls body(spot) for each
// of their elements inside the run; `position` and `count` are then those of the whole vectors.
template <class Io, class Body>
__device__ __forceinline__ void cut_edges(const Pass& pass, const Planar& cut, const Spot& run,
                                          int64_t* position, int* count, const Body& body) {
  if constexpr (Io::kContiguous) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(run.in[kInputOperand]);
    *position -= static_cast<int64_t>(address / sizeof(typename Io::In) % Io::kWidth);
    const int64_t stride = int64_t{cut.lanes} * Io::kWidth;
    // Runs are counted as if each began in the middle of a vector, so the last may lie beyond.
    if (*count > 0 && *position + (*count - 1) * stride >= cut.run) --*count;
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      const int64_t at = *position + (side == 0 ? 0 : (*count - 1) * stride);
      if (*count == 0 || (at >= 0 && at + Io::kWidth <= cut.run)) continue;
      const int64_t last = min(at + Io::kWidth, cut.run);
#pragma unroll 1
      for (int64_t i = max(at, int64_t{0}); i < last; ++i) {
        Spot spot = run;
        move(pass, inner(pass), i, &spot);
        body(spot);
      }
      if (side == 0) *position += stride;
      --*count;
    }
  }
}

// Goes through the elements of a thread in its unit.  Calls edge(spot) for single elements at the
// ends of runs, and stretch(spot, count) for `count` vectors between them, cut.step apart.
template <class Io, class Edge, class Body>
__device__ __forceinline__ void for_stretches(const Pass& pass, const Planar& cut, const Unit& unit,
                                              const Edge& edge, const Body& stretch) {
  int64_t at = unit.first;
  int steps = unit.steps;
  while (steps > 0) {
    const int64_t run = quotient(at, cut.vectors_per_run, cut.wide);
    const int64_t vector = at - run * cut.vectors_per_run;
    Spot spot =
        run_spot(pass, group_spot(pass, opaque(unit.sample), opaque(unit.cls)), run, cut.wide);
    const int64_t left = (cut.vectors_per_run - vector + cut.lanes - 1) >> cut.lane_bits;
    int count = static_cast<int>(min(left, int64_t{steps}));
    steps -= count;
    at += int64_t{count} << cut.lane_bits;
    int64_t position = vector * Io::kWidth;
    if (!cut.whole) cut_edges<Io>(pass, cut, spot, &position, &count, edge);
    move(pass, inner(pass), position, &spot);
    stretch(spot, count);
  }
}

// A block's band of rows and tile of columns, and the thread's place in both.
struct Band {
  int64_t band, first_row;
  int sample, column, first_class, steps;
  int tail;  // elements this thread has in a last row too short for its whole vector

  __device__ __forceinline__ Band(const Columns& cut, int64_t block, int width) {
    const int64_t stripe = quotient(block, cut.tiles, cut.wide);
    const int tile = static_cast<int>(block - stripe * cut.tiles);
    const int64_t of = quotient(stripe, cut.bands, cut.wide);
    sample = static_cast<int>(of);
    band = stripe - of * cut.bands;
    const int slot = threadIdx.x / cut.tile;
    const int vector = threadIdx.x - slot * cut.tile;
    first_class = tile * cut.tile * width;
    column = first_class + vector * width;
    first_row = band * cut.band_rows + slot;
    int64_t left = min(band * cut.band_rows + cut.band_rows, cut.rows) - first_row;
    tail = 0;
    if (slot >= cut.slots || column >= cut.columns || left <= 0) {
      left = 0;
    } else if (first_row + left == cut.rows && column + width > cut.tail_columns) {
      --left;
      const int64_t mine = max(cut.tail_columns - column, int64_t{0});
      if (left % cut.slots == 0) tail = static_cast<int>(mine);
    }
    steps = static_cast<int>(ceil_div(left, cut.slots));
  }
};

// Calls body(spot, count) for stretches of a thread's rows: `count` rows of one run.
template <class Body>
__device__ __forceinline__ void for_rows(const Pass& pass, const Columns& cut, const Band& band,
                                         const Body& body) {
  int64_t at = band.first_row;
  int steps = band.steps;
  while (steps > 0) {
    const int64_t run = quotient(at, cut.run, cut.wide);
    const int64_t row = at - run * cut.run;
    const int64_t left = quotient(cut.run - row + cut.slots - 1, cut.slots, cut.wide);
    const int count = static_cast<int>(min(left, int64_t{steps}));
    steps -= count;
    at += int64_t{count} * cut.slots;
    Spot spot =
        run_spot(pass, group_spot(pass, opaque(band.sample), opaque(band.column)), run, cut.wide);
    move(pass, inner(pass), row, &spot);
    body(spot, count);
  }
}

// Calls body(i, spot) for the elements of a thread in a last row that is too short.
template <class Io, class Body>
__device__ __forceinline__ void for_tail(const Pass& pass, const Columns& cut, const Band& band,
                                         const Body& body) {
  if constexpr (Io::kContiguous) {
    if (band.tail == 0) return;
    Spot spot = group_spot(pass, opaque(band.sample), opaque(band.column));
    move(pass, inner(pass), cut.rows - 1, &spot);  // folded layouts have one axis
#pragma unroll
    for (int i = 0; i < Io::kWidth; ++i) {
      if (i < band.tail) body(i, spot);
      move(pass, pass.layout.cls, 1, &spot);
    }
  }
}

// Calls body(packet, spot) for `count` vectors, of which kUnroll are in flight at a time.
template <class Io, bool kWeighted, class Body>
__device__ __forceinline__ void for_packets(const Pass& pass, const int64_t (&step)[kOperands],
                                            Spot spot, int count, bool broadcast,
                                            const Body& body) {
  constexpr int kUnroll = Io::template kUnroll<kWeighted>;
  for (; count > 0; count -= kUnroll) {
    typename Io::Packet packets[kUnroll];
    Spot next = spot;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u < count) {
        Io::load(pass, next, &packets[u]);
        if constexpr (kWeighted) Io::load_weight(pass, next, broadcast, &packets[u]);
      }
      next.move(step, 1);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u < count) body(packets[u], spot);
      spot.move(step, 1);
    }
  }
}

}  // namespace
}  // namespace customloss::cuda
