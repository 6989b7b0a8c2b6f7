// The LibTorch stable ABI as the kernels use it: tensors, dtypes, allocation, and how a function
// becomes an operator. All that is known of torch is here, but for the half types and the streams
// of csrc/cuda (io.cuh, launch.h).
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>

#include "dtype.h"
#include "layout.h"

namespace customloss {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Bool: return Dtype::kBool;
    case ScalarType::Byte: return Dtype::kUInt8;
    case ScalarType::Char: return Dtype::kInt8;
    case ScalarType::UInt16: return Dtype::kUInt16;
    case ScalarType::Short: return Dtype::kInt16;
    case ScalarType::UInt32: return Dtype::kUInt32;
    case ScalarType::Int: return Dtype::kInt32;
    case ScalarType::UInt64: return Dtype::kUInt64;
    case ScalarType::Long: return Dtype::kInt64;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    default: STD_TORCH_CHECK(false, "customloss: dtype without a kernel");
  }
}

struct Device {
  int32_t type, index;

  explicit Device(const Tensor& tensor) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
  }

  bool operator==(const Device& other) const = default;
};

inline bool same_device(const Tensor& one, const Tensor& other) {
  return Device(one) == Device(other);
}

// An uninitialised contiguous float32 or float64 tensor on the device of `like`.
inline Tensor empty(std::initializer_list<int64_t> sizes, bool is_double, const Tensor& like) {
  std::array<int64_t, 4> strides;
  int64_t next = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = next;
    next *= std::max<int64_t>(1, sizes.begin()[i]);  // as torch has them
  }
  const Device device(like);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
                               is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
                               device.type, device.index, &handle));
  return Tensor(handle);
}

inline Strided strided(const Tensor& tensor) {
  return {tensor.sizes().data(), tensor.strides().data(), static_cast<int>(tensor.dim())};
}

// ---- boxing -----------------------------------------------------------------------------

// The arguments of one call, in the order of the schema. Each is taken once, and belongs to whoever
// took it.
class Stack {
 public:
  Stack(const StableIValue* arguments, uint64_t size) : next_(arguments), end_(arguments + size) {}

  template <class T>
  T take() {
    if (next_ == end_) too_short();
    const StableIValue argument = *next_++;
    if constexpr (std::is_enum_v<T> || std::is_same_v<T, unsigned>) {  // an int in the schema
      const auto number = torch::stable::detail::to<int64_t>(argument);
      int64_t most = UINT32_MAX;
      if constexpr (std::is_enum_v<T>) most = static_cast<int64_t>(T::kLast);
      STD_TORCH_CHECK(number >= 0 && number <= most, "customloss: unknown option ", number);
      return static_cast<T>(number);
    } else {
      return torch::stable::detail::to<T>(argument);
    }
  }

  bool empty() const { return next_ == end_; }

 private:
  [[noreturn]] static void too_short() {
    STD_TORCH_CHECK(false, "customloss: the schema has fewer arguments than the kernel");
  }

  const StableIValue* next_;
  const StableIValue* const end_;
};

// All arguments of a call. A group is a struct whose constructor takes its members from the stack.
// Bases are constructed in the order in which they are written: a group begins where the one
// before it ended.
template <class... Groups>
struct Arguments : Groups... {
  explicit Arguments([[maybe_unused]] Stack& in) : Groups(in)... {}
};

template <class Result>
constexpr uint64_t kResults = 1;
template <class... Results>
constexpr uint64_t kResults<std::tuple<Results...>> = sizeof...(Results);

template <class Result>
void put(const Result& result, StableIValue* to) {
  *to = torch::stable::detail::from(result);
}

template <class... Results>
void put(const std::tuple<Results...>& results, StableIValue* to) {
  std::apply([&](const Results&... result) { (put(result, to++), ...); }, results);
}

// A function of groups as the dispatcher calls it. What the function takes by && is given to it,
// everything else is lent.
template <auto function>
struct Boxed;

template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
    STD_TORCH_CHECK(outputs == kResults<Result>, "customloss: the schema has ", outputs,
                    " results, the kernel ", kResults<Result>);
    Stack in(stack, inputs);
    Arguments<std::remove_cvref_t<Parameters>...> arguments(in);
    STD_TORCH_CHECK(in.empty(), "customloss: the schema has more arguments than the kernel");
    put(function(static_cast<Parameters>(arguments)...), stack);
  }
};

}  // namespace customloss
