// Calls the CPU kernels of one instruction set without torch, and prints what they return as text,
// so that processors can be compared.  A line is a name, a type, and numbers in hexadecimal.  The
// type is f32 or f64, hand for the loops of float32 by hand, and bits for numbers that are only
// moved or converted.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/block.h"

namespace customloss::cpu {
namespace {

constexpr int64_t kClasses = 5, kPixels = 347;  // neither fills whole registers

InstructionSet chosen() {
#if defined(__AARCH64EL__)
  return instruction_set();
#else
  return {"baseline", &kBlocksBaseline, {&kTilesF32Baseline, &kTilesF64Baseline}};
#endif
}

// The same numbers on every processor: those of a linear congruence, from -1 to 1.
class Numbers {
 public:
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 40) - (1 << 23)) * 0x1p-23f;
  }
  template <class T>
  std::vector<T> list(int64_t size, T scale, T offset = T(0)) {
    std::vector<T> found(static_cast<size_t>(size));
    for (T& number : found) number = scale * static_cast<T>(next()) + offset;
    return found;
  }

 private:
  uint64_t state_ = 1;
};

template <class T>
void print(const std::string& name, const char* type, const T* numbers, size_t size) {
  std::printf("%s %s", name.c_str(), type);
  for (size_t i = 0; i < size; ++i) std::printf(" %a", static_cast<double>(numbers[i]));
  std::printf("\n");
}

template <class T>
constexpr const char* kType = sizeof(T) == 4 ? "f32" : "f64";

// ---- blocks -------------------------------------------------------------------------------

// Operands of a block, with logits from moderate to far.
template <class T>
struct Operands {
  std::vector<T> input, soft, weight, by;
  std::vector<uint8_t> hard;
  std::vector<uint16_t> halves;

  Operands() {
    Numbers numbers;
    input = numbers.list<T>(kBlock, T(9));
    for (size_t i = 0; i < input.size(); i += 37) input[i] *= T(16);
    soft = numbers.list<T>(kBlock, T(0.5), T(0.5));
    weight = numbers.list<T>(kBlock, T(0.5), T(0.5));
    for (int64_t i = 0; i < kBlock; ++i) {
      hard.push_back(numbers.next() < 0.0f ? 0 : 1);
      // bfloat16 of the logits
      const float logit = static_cast<float>(input[static_cast<size_t>(i)]);
      halves.push_back(static_cast<uint16_t>(bit_cast<uint32_t>(logit) >> 16));
    }
  }

  Block<T> block(bool is_hard, bool weighted) const {
    return {input.data(),
            is_hard ? nullptr : soft.data(),
            is_hard ? hard.data() : nullptr,
            weighted ? weight.data() : nullptr,
            kBlock - 3,
            Activation::kSigmoid,
            T(1),
            T(0),
            true};
  }
};

template <class T>
void print_block(const std::string& name, const char* type, const BlockKernels<T>& kernels,
                 const Block<T>& block) {
  double sums[4] = {};
  kernels.sum(block, sums);
  print(name + ".sums", type, sums, 4);
  const T a = T(0.75), b = T(-0.5), c = T(0.25), d = T(1.5);
  for (const Wrt wrt : {Wrt::kInput, Wrt::kTarget, Wrt::kWeight}) {
    std::vector<T> out(static_cast<size_t>(block.size));
    kernels.gradient(block, wrt, {&a, &b, &c, &d, false}, out.data());
    print(name + ".gradient" + std::to_string(static_cast<int>(wrt)), type, out.data(), out.size());
  }
  std::vector<T> columns(static_cast<size_t>(kColumnArrays * kBlock), T(0));
  std::vector<double> to(4 * kBlock);
  const int32_t adds = 3;
  for (int32_t row = 0; row < adds; ++row) kernels.sum_columns(block, columns.data(), kBlock);
  kernels.flush_columns({1, block.size, &adds, block.headline()}, columns.data(), kBlock, to.data(),
                        kBlock);
  print(name + ".columns", type, to.data(), to.size());
}

template <class T>
void print_blocks(const BlockKernels<T>& kernels) {
  const Operands<T> of;
  for (const bool is_hard : {false, true}) {
    for (const bool weighted : {false, true}) {
      const std::string name =
          std::string(is_hard ? "hard" : "soft") + (weighted ? "_weighted" : "");
      const bool by_hand = !weighted && kernels.gradient_halves != nullptr;  // of float32
      print_block(name, by_hand ? "hand" : kType<T>, kernels, of.block(is_hard, weighted));
    }
  }
}

// float16 and bfloat16 where they are read as they lie, which only loops by hand do.
void print_halves(const BlockKernels<float>& kernels) {
  const Operands<float> of;
  for (const bool float16 : {false, true}) {
    const std::string name = float16 ? "float16" : "bfloat16";
    const Dtype dtype = float16 ? Dtype::kFloat16 : Dtype::kBFloat16;
    std::vector<uint16_t> halves(kBlock), out(kBlock - 3);
    std::vector<float> wide(kBlock);
    kernels.unstage(dtype, of.input.data(), kBlock, halves.data(), 1);
    kernels.stage(dtype, halves.data(), 1, kBlock, wide.data());
    print(name + ".unstaged", "bits", halves.data(), halves.size());
    print(name + ".staged", "bits", wide.data(), wide.size());
    Block<float> block = of.block(true, false);
    block.input = wide.data();
    const bool by_hand = kernels.gradient_halves != nullptr;
    if (by_hand) {
      block.halves = halves.data();
      block.float16 = float16;
    }
    double sums[4] = {};
    kernels.sum(block, sums);
    print(name + ".sums", by_hand ? "hand" : "f32", sums, 4);
    const float a = 0.75f, b = -0.5f, none = 0.0f;
    const Coefficients<float> by{&a, &b, &none, &none, false};
    std::vector<float> gradient(out.size());
    if (by_hand) {
      kernels.gradient_halves(block, by, out.data());
    } else {
      kernels.gradient(block, Wrt::kInput, by, gradient.data());
      kernels.unstage(dtype, gradient.data(), block.size, out.data(), 1);
    }
    kernels.stage(dtype, out.data(), 1, block.size, gradient.data());
    print(name + ".gradient", by_hand ? "hand" : "f32", gradient.data(), gradient.size());
  }
}

// ---- tiles ----------------------------------------------------------------------------------

template <class T>
struct Rows {
  static constexpr int64_t kPitch = 512;
  std::vector<T> input, x, soft, rows, spare, other, out;
  std::vector<int32_t> labels;
  std::vector<uint8_t> hard;
  Tile<T> tile{};

  Rows(Activation activation, unsigned extra, T gamma, bool labelled, bool weighted) {
    Numbers numbers;
    input = numbers.list<T>(kClasses * kPitch, T(9));
    x = input;
    for (int64_t i = 0; i < kClasses * kPitch; ++i) hard.push_back(numbers.next() < 0.0f ? 0 : 1);
    soft.assign(hard.begin(), hard.end());
    for (int64_t i = 0; i < kPitch; ++i) {
      const int32_t label = static_cast<int32_t>((numbers.next() + 1.0f) * 3.2f) - 1;
      labels.push_back(label < kClasses ? label : -1);
    }
    rows = numbers.list<T>(kPixelRows * kPitch, T(0.5), T(0.5));  // kLive is a weight
    spare = other = out = std::vector<T>(x.size());
    tile.classes = kClasses;
    tile.pixels = kPixels;
    tile.pitch = tile.lies_pitch = tile.hard_pitch = kPitch;
    tile.activation = activation;
    tile.extra = extra;
    tile.scale = T(1);
    tile.focal = {gamma, false};
    tile.smoothing = {T(1), T(0), T(1), T(0)};
    tile.x = x.data();
    tile.labels = labelled ? labels.data() : nullptr;
    tile.soft = labelled && (extra & ~unsigned{kLogLoss}) == 0 ? nullptr : soft.data();
    tile.rows = rows.data();
    tile.spare = spare.data();
    tile.other = other.data();
    tile.hard = hard.data();
    tile.lies = input.data();
    weighted_ = weighted;
  }
  void settle(const PixelKernels<T>& kernels) {
    tile.lies = tile.x;
    kernels.settle(tile, weighted_);
  }

 private:
  bool weighted_;
};

// The gradient by the sums.  The first four rows are as combine_grads() leaves them where no
// distance is summed: the third is the first, and the fourth the second.
template <class T>
std::vector<T> gradient_by(unsigned extra) {
  std::vector<T> by;
  for (int row = 0; row < rows_of(extra); ++row) {
    for (int64_t c = 0; c < kClasses; ++c)
      by.push_back(T(0.5) + T(row < 4 ? row % 2 : row) / T(16) - T(c) / T(8));
  }
  return by;
}

template <class T>
void print_pixels(const PixelKernels<T>& kernels, const std::string& name, Rows<T> plain,
                  bool weighted) {
  const unsigned extra = plain.tile.extra;
  const bool labelled = plain.tile.labels != nullptr;
  const std::vector<T> by = gradient_by<T>(extra);
  const size_t size = static_cast<size_t>(rows_of(extra) * kClasses);
  const size_t numbers = static_cast<size_t>(kClasses) * Rows<T>::kPitch;
  // the loops overwrite their tile
  const auto afresh = [&] {
    return Rows<T>(plain.tile.activation, extra, plain.tile.focal.gamma, labelled, weighted);
  };
  std::vector<double> sums(size);
  Rows<T> forward = afresh();
  forward.settle(kernels);
  kernels.sums(forward.tile, sums.data(), kClasses);
  print(name + ".sums", kType<T>, sums.data(), size);
  for (const Wrt wrt : {Wrt::kInput, Wrt::kTarget, Wrt::kWeight}) {
    if (labelled && wrt != Wrt::kInput) continue;
    Rows<T> backward = afresh();
    backward.settle(kernels);
    kernels.gradient(backward.tile, wrt, by.data(), backward.out.data(), Rows<T>::kPitch);
    print(name + ".gradient" + std::to_string(static_cast<int>(wrt)), kType<T>, backward.out.data(),
          numbers);
  }
  const bool softmax = plain.tile.activation == Activation::kSoftmax;
  if (labelled ? kernels.headline_sums == nullptr : kernels.mask_sums == nullptr || softmax) return;
  Rows<T> by_hand = afresh();
  std::fill(sums.begin(), sums.end(), 0.0);
  labelled ? kernels.headline_sums(by_hand.tile, weighted, sums.data(), kClasses)
           : kernels.mask_sums(by_hand.tile, sums.data(), kClasses);
  print(name + ".sums", "hand", sums.data(), size);
  labelled ? kernels.headline_gradient(by_hand.tile, weighted, by.data(), by_hand.out.data(),
                                       Rows<T>::kPitch)
           : kernels.mask_gradient(by_hand.tile, by.data(), by_hand.out.data(), Rows<T>::kPitch);
  print(name + ".gradient0", "hand", by_hand.out.data(), numbers);
}

template <class T>
void print_tiles(const PixelKernels<T>& kernels) {
  for (const bool weighted : {false, true}) {
    for (const unsigned extra : {0u, unsigned{kLogLoss}, unsigned{kFocal}, kLogLoss | kFocal}) {
      const std::string name = "softmax" + std::to_string(extra) + (weighted ? "_weighted" : "");
      print_pixels(kernels, name, Rows<T>(Activation::kSoftmax, extra, T(1.5), true, weighted),
                   weighted);
    }
  }
  for (const unsigned extra : {unsigned{kLogLoss}, unsigned{kFocal}}) {
    print_pixels(kernels, "mask" + std::to_string(extra),
                 Rows<T>(Activation::kSigmoid, extra, T(2), false, false), false);
  }
  print_pixels(kernels, "dense", Rows<T>(Activation::kSoftmax, kSquares, T(2), false, false),
               false);
}

// Classes that lie next to each other, of every number of them up to two registers.
void print_transposed(const PixelKernels<float>& kernels) {
  constexpr int64_t kRow = 64;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16, Dtype::kBool}) {
    for (int64_t classes = 1; classes <= 9; ++classes) {
      Numbers numbers;
      std::vector<uint32_t> memory(static_cast<size_t>(kRow * classes));
      const std::vector<float> from = numbers.list<float>(kRow * classes, 9.0f);
      std::vector<float> staged(from.size());
      const int64_t pixels = 37;
      if (dtype == Dtype::kBool) {
        const auto bytes = reinterpret_cast<uint8_t*>(memory.data());
        for (size_t i = 0; i < from.size(); ++i) bytes[i] = from[i] > 0.0f ? 1 : 0;
        kernels.stage(dtype, memory.data(), kRow, 1, classes, pixels, staged.data(), kRow);
      } else {
        kernels.unstage(dtype, from.data(), kRow, classes, pixels, memory.data(), 1, classes);
        kernels.stage(dtype, memory.data(), 1, classes, classes, pixels, staged.data(), kRow);
      }
      const std::string name = "transposed" + std::to_string(static_cast<int>(dtype));
      print(name + "_" + std::to_string(classes), "bits", staged.data(), staged.size());
    }
  }
}

}  // namespace
}  // namespace customloss::cpu

int main() {
  using namespace customloss::cpu;
  const InstructionSet set = chosen();
  std::printf("set %s\n", set.name);
  print_blocks(set.blocks->f32);
  print_blocks(set.blocks->f64);
  print_halves(set.blocks->f32);
  print_tiles(*set.tiles.f32);
  print_tiles(*set.tiles.f64);
  print_transposed(*set.tiles.f32);
}
