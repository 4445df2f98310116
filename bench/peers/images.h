// The rows of bench/report.py that have image files: to start from one, by its
// size, to store many, to make one.

#ifndef FIRSTTOUCH_BENCH_PEERS_IMAGES_H_
#define FIRSTTOUCH_BENCH_PEERS_IMAGES_H_

#include <memory>
#include <string>

#include "firsttouch/bench/peers/guest.h"
#include "firsttouch/bench/peers/parts.h"

namespace firsttouch::bench {

// By the word `work`; null where it is none of these. Files are made in
// `directory` unless they are there.
//
//   start   SQLite from a file, to ask once in a process. Ways: "firsttouch",
//           with the working set that ten tenants have taught; "no-set",
//           without; "read-file", read into memory; "map-file", a plain private
//           mapping of the file
//   size    open, bind and touch of a file of `mib`, all of whose pages are
//           stored, to ask once in a process
//   store   bytes of `images` that share nine tenths of their pages
//   build   `what` with an image of `mib`: bytes, write, verify, copy
std::unique_ptr<Row> MakeImageRow(const std::string& way,
                                  const Request& request);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_IMAGES_H_
