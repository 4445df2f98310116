// Layouts between C and C++.
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_CAPI_LAYOUT_H_
#define FIRSTTOUCH_CAPI_LAYOUT_H_

#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/pool/layout.h"

namespace firsttouch::capi {

// Takes the defaults for what is zero.
ft_status FromC(const char* function, const ft_layout_options* options,
                LayoutOptions* into, ft_error* error);

ft_layout ToC(const PoolLayout& layout);

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_LAYOUT_H_
