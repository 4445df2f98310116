// A guest in C++, with the standard library, beside a C file, and with a C file
// that it includes.
#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "integrations/wasm2c/testdata/cxx_guest_table.c"

extern "C" int ThreeFromC(void);

namespace {

// Constructed by _initialize.
std::map<std::string, int>& calls() {
  static auto& calls = *new std::map<std::string, int>;
  return calls;
}
const std::vector<int> constructed = [] {
  std::vector<int> numbers(10);
  std::iota(numbers.begin(), numbers.end(), ThreeFromC());
  return numbers;
}();

}  // namespace

// How often it was called with that number so far.
extern "C" __attribute__((export_name("count"))) int Count(int number) {
  return ++calls()[std::to_string(number)];
}

extern "C" __attribute__((export_name("sum"))) int Sum() {
  std::vector<int> numbers = constructed;
  std::sort(numbers.rbegin(), numbers.rend());
  return numbers.front() + kTable[1];
}
