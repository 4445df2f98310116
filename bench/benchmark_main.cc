// main() of the google-benchmark programs: their own defaults, which an
// argument overrides, and the kernel in the output's context.

#include <sys/utsname.h>

#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"

int main(int argc, char** argv) {
  // What is compared takes turns, so that a disturbance meets both.
  std::vector<std::string> arguments = {
      argv[0], "--benchmark_enable_random_interleaving=true",
      "--benchmark_repetitions=5", "--benchmark_report_aggregates_only=true",
      "--benchmark_min_time=0.02"};
  for (int i = 1; i < argc; ++i) arguments.emplace_back(argv[i]);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  pointers.push_back(nullptr);

  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return 1;
  utsname name;
  if (uname(&name) == 0) {
    benchmark::AddCustomContext("kernel", name.release);
  }
  firsttouch::bench::RegisterBenchmarks();
  if (benchmark::RunSpecifiedBenchmarks() == 0) return 1;
  benchmark::Shutdown();
  return 0;
}
