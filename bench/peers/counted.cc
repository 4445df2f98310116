// What a contender asks of the kernel between its marks, as one line of JSON:
//
//   counted PROGRAM ARGUMENT...
//
// The program reads the requests of standard input; its answers are discarded.

#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "firsttouch/bench/fixture.h"
#include "firsttouch/examples/system_calls.h"

int main(int argc, char** argv) {
  using firsttouch::bench::Die;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) Die("counted: a program is expected");
  const auto calls = firsttouch::bench::OrDie(
      firsttouch::examples::CountSystemCalls(arguments));
  if (calls.parts == 0) Die("counted: the program has made no mark");
  std::cout << "{\"calls\":" << calls.total << ",\"signals\":" << calls.signals
            << ",\"by_name\":{";
  const char* between = "";
  for (const auto& [name, times] : calls.by_name) {
    std::cout << between << '"' << name << "\":" << times;
    between = ",";
  }
  std::cout << "}}\n";
  return 0;
}
