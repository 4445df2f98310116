// The counters that a pool keeps for each slot, in one list. The slot's record
// (service/slot_state.h), a service's statistics (service/stats.h), the fields
// published to other processes (control/block.h) and their reader
// (tools/pooldump/snapshot) are made from it.
//
// A new counter is a line here, a field of `Counters` in
// tools/pooldump/snapshot/snapshot.proto, and a row in docs/statistics.md; the
// build, or a test, fails where one of them is missing.
//
//   #define ADD(name) total.name += slot.name;
//   FIRSTTOUCH_SLOT_COUNTERS(ADD)
//   #undef ADD

#ifndef FIRSTTOUCH_CONTROL_COUNTERS_H_
#define FIRSTTOUCH_CONTROL_COUNTERS_H_

// Calls X(name) for each counter. All of them only grow. A steady release
// writes the first two, which the record keeps in one cache line.
#define FIRSTTOUCH_SLOT_COUNTERS(X)                                         \
  /* Releases after which the slot was clean. */                            \
  X(handovers)                                                              \
  /* Pages copied back, or zeroed, at release and reset. */                 \
  X(pages_restored)                                                         \
                                                                            \
  /* Faults: the first read of an image page that is shared; */             \
  X(minor_faults)                                                           \
  /* the first read of any other page; */                                   \
  X(missing_read_faults)                                                    \
  /* a first touch that was a write; */                                     \
  X(missing_write_faults)                                                   \
  /* the first write to a page that was clean. */                           \
  X(write_protect_faults)                                                   \
  /* Touches outside the bounds, and of pages that could not be had. */     \
  X(traps)                                                                  \
                                                                            \
  /* Pages that were mapped, shared with the image; */                      \
  X(pages_mapped)                                                           \
  /* that were private from their first touch; */                           \
  X(pages_copied)                                                           \
  /* that became the kernel's zero page; */                                 \
  X(pages_zeroed)                                                           \
  /* that were given back to the kernel. */                                 \
  X(pages_dropped)                                                          \
  /* Pages made private before a lease asked for them; */                   \
  X(pages_prefilled)                                                        \
  /* given back by slots without a lease; */                                \
  X(pages_trimmed)                                                          \
  /* kept private for some time, and dropped when they stopped changing; */ \
  X(pages_demoted)                                                          \
  /* found changed by a scan. */                                            \
  X(pages_found)                                                            \
                                                                            \
  /* Leases that ran without tracking, to teach what an image writes. */    \
  X(untracked_leases)                                                       \
  /* Changes between tracking by signal and asynchronous tracking. */       \
  X(tracking_changes)                                                       \
                                                                            \
  /* An image was put into the slot, or replaced there. */                  \
  X(binds)                                                                  \
  X(grows)                                                                  \
  /* System calls that were made for all of the above. */                   \
  X(kernel_calls)

#endif  // FIRSTTOUCH_CONTROL_COUNTERS_H_
