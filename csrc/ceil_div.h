// How many pieces of one size cover another, on the host and on the device.
#pragma once

#include <cstdint>

#include "element.h"

namespace customloss {

CUSTOMLOSS_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace customloss
