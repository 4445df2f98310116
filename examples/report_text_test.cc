#include "firsttouch/examples/report_text.h"

#include "examples/report.pb.h"
#include "gtest/gtest.h"

namespace firsttouch::examples {
namespace {

TEST(ReportTextTest, IsATable) {
  sqlite_tenants::Report report;
  report.set_tenants(100);
  report.set_slots(4);
  report.set_threads(2);
  report.set_seed(5);
  report.set_image_bytes(65536);
  report.set_image_stored_bytes(8192);
  report.set_setup_ms(12.34);
  sqlite_tenants::Way* way = report.add_ways();
  way->set_name("shared/in-thread");
  way->set_tenants_per_second(12345.6);
  way->set_handover_median_us(3.456);
  way->set_handover_p99_us(34.56);
  way->set_minor_faults(17);
  way->set_traps(0.05);
  way->set_system_calls(0);
  way->set_private_bytes_per_slot(40960);
  way->set_eager_copy_bytes_per_slot(65536);
  way->set_answers(1400);
  way->set_wrong_answers(1);
  way->set_trapped(5);
  way = report.add_ways();
  way->set_name("kernel/private-mapping");
  way->set_kernel_page_faults(123.4);
  sqlite_tenants::Skipped* skipped = report.add_skipped();
  skipped->set_name("copied/handler-thread");
  skipped->set_reason("userfaultfd is refused");

  EXPECT_EQ(ReportAsText(report),
            "SQLite in 4 slots: 100 tenants, 2 threads, seed 5.\n"
            "Image of 64 KiB (8 KiB stored), made in 12.3 ms.\n"
            R"(
                            shared   kernel
                               in- private-
                            thread  mapping
tenants per second           12346        0
recycle, median            3.46 us     0 us
recycle, 99 %              34.6 us     0 us
per tenant: minor faults      17.0        0
  first reads                    0        0
  first writes                   0        0
  write-protect faults           0        0
  the kernel's own faults        0      123
  traps                       0.05        0
  system calls for memory        0        0
  system calls, all              0        ?
private memory per slot     40 KiB    0 KiB
  if copied eagerly         64 KiB    0 KiB
answers, all right            1399        0
  wrong                          1        0
  rows of others seen            0        0
tenants trapped                  5        0
bytes left by others             0        0

Not possible here: copied/handler-thread: userfaultfd is refused
)");
}

}  // namespace
}  // namespace firsttouch::examples
