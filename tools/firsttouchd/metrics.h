// What firsttouchd has done, as OpenMetrics text, at a Unix socket:
//
//   curl --unix-socket /run/vm/metrics.sock http://localhost/metrics
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_METRICS_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_METRICS_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::firsttouchd {

// Adds the counters of one guest to those of many.
void Add(const GuestStats& guest, GuestStats* sum);

// `sum`: of all guests, those that have ended included, whose number is
// `guests_ended`. `sum.bytes` is of those that are there.
std::string OpenMetricsText(const GuestStats& sum, size_t guests,
                            size_t guests_ended);

// Answers whoever connects, with a text each, one after the other.
class MetricsServer {
 public:
  // Errors: ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      UniqueFd listening, std::function<std::string()> text);
  ~MetricsServer();

 private:
  MetricsServer(UniqueFd listening, UniqueFd stop,
                std::function<std::string()> text)
      : listening_(std::move(listening)),
        stop_(std::move(stop)),
        text_(std::move(text)) {}
  void Run();

  const UniqueFd listening_;
  const UniqueFd stop_;
  const std::function<std::string()> text_;
  std::thread thread_;
};

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_METRICS_H_
