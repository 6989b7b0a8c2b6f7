// The block loops for whatever the compiler's default target is.
#include <type_traits>

#include "block.h"
#include "block_impl.h"

namespace customloss::cpu {
const InstructionSet kBaseline = {"baseline", kernels<float>(), kernels<double>()};
}
