// Walks a layout in blocks for confusion.cpp, and by cursor for pixels.cpp.  The loops of block.h
// get contiguous pointers: straight into the tensor where an operand is contiguous and of the type
// computed in, else into a small buffer that it is copied to.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>

#include "../layout.h"
#include "../torch.h"
#include "block.h"

namespace customloss::cpu {

// An operand's memory: where it starts and its dtype.  A null `data` is an absent weight.
struct Memory {
  char* data = nullptr;
  Dtype dtype = Dtype::kFloat32;

  char* at(int64_t offset) const { return data + offset * dtype_size(dtype); }
};

inline Memory memory(const Tensor& tensor) {
  return {static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())), dtype_of(tensor)};
}

struct Operands {
  Layout layout;
  Memory memory[kOperands];
  Activation activation;
  double scale, offset;

  // Whether the activation is `one`, with scale 1 and offset 0.
  bool plain(Activation one) const { return activation == one && scale == 1.0 && offset == 0.0; }
};

// One place of the layout: the offset of every operand.
struct Place {
  int64_t offset[kOperands] = {0, 0, 0, 0};

  void move(const Axis& axis, int64_t steps) {
    for (int k = 0; k < kOperands; ++k) offset[k] += axis.stride[k] * steps;
  }
};

// A position in the reduced index space, outermost axis first.
class Cursor {
 public:
  Cursor(const Layout& layout, Place origin, int64_t linear) : layout_(layout), place_(origin) {
    for (int axis = layout.reduced_axes - 1; axis >= 0; --axis) {
      index_[axis] = linear % layout.reduced[axis].size;
      linear /= layout.reduced[axis].size;
      place_.move(layout.reduced[axis], index_[axis]);
    }
  }

  const Place& place() const { return place_; }

  // Elements left on the innermost axis.
  int64_t run() const { return layout_.inner().size - index_[layout_.reduced_axes - 1]; }

  // Moves on by at most run() elements.
  void advance(int64_t steps) {
    int axis = layout_.reduced_axes - 1;
    index_[axis] += steps;
    place_.move(layout_.reduced[axis], steps);
    while (axis > 0 && index_[axis] == layout_.reduced[axis].size) {
      place_.move(layout_.reduced[axis], -index_[axis]);
      index_[axis] = 0;
      --axis;
      ++index_[axis];
      place_.move(layout_.reduced[axis], 1);
    }
  }

 private:
  const Layout& layout_;
  Place place_;
  int64_t index_[kMaxReduced];
};

// A rectangle of the layout: from `place` on, `rows` steps of `row` times `columns` of `column`.
struct Patch {
  Place place;
  Axis row, column;
  int64_t rows, columns;

  bool dense(int operand) const {
    return (columns == 1 || column.stride[operand] == 1) &&
           (rows == 1 || row.stride[operand] == (columns == 1 ? 1 : columns));
  }
};

template <class T>
constexpr Dtype kDtypeOf = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;

// The buffers of one thread, and the operands they are filled from.
template <class T>
class Stager {
 public:
  explicit Stager(const Operands& operands)
      : operands_(operands),
        kernels_(block_kernels<T>()),
        has_weight_(operands.memory[kWeightOperand].data != nullptr),
        hard_(operands.memory[kTargetOperand].dtype == Dtype::kBool),
        headline_(hard_ && !has_weight_ && operands.plain(Activation::kSigmoid)),
        halves_(kernels_.gradient_halves != nullptr && headline_ &&
                is_half(operands.memory[kInputOperand].dtype)) {}

  // Whether every block is a headline one (Block::headline()).
  bool headline() const { return headline_; }

  // The block that holds one patch.  Operands that lie ready are not copied, nor is half precision
  // that need not be (Block::halves).
  Block<T> block(const Patch& patch) {
    const Memory& input = operands_.memory[kInputOperand];
    const bool in_place = operands_.memory[kOutOperand].data == nullptr || patch.dense(kOutOperand);
    if (!halves_ || !patch.dense(kInputOperand) || !in_place) return staged(patch);
    Block<T> block = empty_block(patch.rows * patch.columns);
    block.hard = direct(patch, kTargetOperand, hard_target_);
    block.halves = reinterpret_cast<const uint16_t*>(input.at(patch.place.offset[kInputOperand]));
    block.float16 = input.dtype == Dtype::kFloat16;
    return block;
  }

  // The same with logits of type T.
  Block<T> staged(const Patch& patch) {
    Block<T> block = empty_block(patch.rows * patch.columns);
    if (hard_) {
      block.hard = direct(patch, kTargetOperand, hard_target_);
    } else {
      block.soft = direct(patch, kTargetOperand, target_);
    }
    if (has_weight_) block.weight = direct(patch, kWeightOperand, weight_);
    block.input = direct(patch, kInputOperand, input_);
    return block;
  }

  // The block that gathers the next runs of a cursor, for axes too short to fill a block.
  Block<T> gather(Cursor* cursor, int64_t limit) {
    const Axis& inner = operands_.layout.inner();
    int64_t size = 0;
    while (size < limit) {
      const int64_t run = std::min(cursor->run(), limit - size);
      const Place& place = cursor->place();
      fill(kInputOperand, place, inner, run, input_ + size);
      hard_ ? fill(kTargetOperand, place, inner, run, hard_target_ + size)
            : fill(kTargetOperand, place, inner, run, target_ + size);
      if (has_weight_) fill(kWeightOperand, place, inner, run, weight_ + size);
      cursor->advance(run);
      size += run;
    }
    Block<T> block = empty_block(size);
    block.input = input_;
    if (hard_) {
      block.hard = hard_target_;
    } else {
      block.soft = target_;
    }
    if (has_weight_) block.weight = weight_;
    return block;
  }

  // Where the gradient of a patch is computed: in place, or in a buffer that write() copies.
  T* out(const Patch& patch) {
    return lies_ready(patch, kOutOperand) ? ready(patch, kOutOperand) : out_;
  }
  T* out() { return out_; }
  // The same for Block::halves, always in place.
  uint16_t* halves_out(const Patch& patch) const { return ready<uint16_t>(patch, kOutOperand); }

  void write(const Patch& patch) {
    if (lies_ready(patch, kOutOperand)) return;
    if (patch.dense(kOutOperand)) {
      return spill(patch.place, unit_axis(), patch.rows * patch.columns, out_);
    }
    Place place = patch.place;
    const bool by_row = patch.columns > 1;
    for (int64_t r = 0; by_row && r < patch.rows; ++r, place.move(patch.row, 1)) {
      spill(place, patch.column, patch.columns, out_ + r * patch.columns);
    }
    if (!by_row) spill(place, patch.row, patch.rows, out_);
  }

  void scatter(Cursor cursor, int64_t size) {
    for (int64_t done = 0; done < size;) {
      const int64_t run = std::min(cursor.run(), size - done);
      spill(cursor.place(), operands_.layout.inner(), run, out_ + done);
      cursor.advance(run);
      done += run;
    }
  }

 private:
  Block<T> empty_block(int64_t size) const {
    return {nullptr,
            nullptr,
            nullptr,
            nullptr,
            size,
            operands_.activation,
            static_cast<T>(operands_.scale),
            static_cast<T>(operands_.offset),
            operands_.plain(Activation::kSigmoid)};
  }

  static const Axis& unit_axis() {
    static const Axis axis{1, {1, 1, 1, 1}};
    return axis;
  }

  bool lies_ready(const Patch& patch, int operand) const {
    return operands_.memory[operand].dtype == kDtypeOf<T> && patch.dense(operand);
  }
  template <class V = T>
  V* ready(const Patch& patch, int operand) const {
    return reinterpret_cast<V*>(operands_.memory[operand].at(patch.place.offset[operand]));
  }

  void fill(int operand, const Place& place, const Axis& axis, int64_t size, T* to) const {
    const Memory& from = operands_.memory[operand];
    kernels_.stage(from.dtype, from.at(place.offset[operand]), axis.stride[operand], size, to);
  }
  void fill(int operand, const Place& place, const Axis& axis, int64_t size, uint8_t* to) const {
    const char* from = operands_.memory[operand].at(place.offset[operand]);
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<uint8_t>(from[i * axis.stride[operand]]);
  }
  void spill(const Place& place, const Axis& axis, int64_t size, const T* from) const {
    const Memory& to = operands_.memory[kOutOperand];
    kernels_.unstage(to.dtype, from, size, to.at(place.offset[kOutOperand]),
                     axis.stride[kOutOperand]);
  }

  // The operand's own memory where it is dense and of type V, else `buffer`, filled.
  template <class V>
  const V* direct(const Patch& patch, int operand, V* buffer) {
    const bool same = sizeof(V) == 1 || operands_.memory[operand].dtype == kDtypeOf<T>;
    if (same && patch.dense(operand)) return ready<V>(patch, operand);
    if (patch.dense(operand)) {
      fill(operand, patch.place, unit_axis(), patch.rows * patch.columns, buffer);
    } else if (patch.columns == 1) {
      fill(operand, patch.place, patch.row, patch.rows, buffer);
    } else {
      Place place = patch.place;
      for (int64_t r = 0; r < patch.rows; ++r, place.move(patch.row, 1)) {
        fill(operand, place, patch.column, patch.columns, buffer + r * patch.columns);
      }
    }
    return buffer;
  }

  const Operands& operands_;
  const BlockKernels<T>& kernels_;
  const bool has_weight_, hard_, headline_, halves_;
  alignas(64) T input_[kBlock];
  alignas(64) T target_[kBlock];
  alignas(64) uint8_t hard_target_[kBlock];
  alignas(64) T weight_[kBlock];
  alignas(64) T out_[kBlock];
};

// Calls body(unit) for every unit, on torch's threads where there is work for them.
template <class Body>
void for_units(int64_t units, int64_t elements, const Body& body) {
  constexpr int64_t kWorthAThread = 32768;
  if (units <= 1 || elements < kWorthAThread) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
    return;
  }
  const int64_t grain =
      std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, elements / units));
  // torch's C functions, which a callback is called through, would lose the message of an
  // exception.
  std::exception_ptr thrown;
  std::mutex one_at_a_time;
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t unit = begin; unit < end; ++unit) body(unit);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(one_at_a_time);
      if (!thrown) thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace customloss::cpu
