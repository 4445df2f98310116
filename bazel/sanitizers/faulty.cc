// Commits one fault of each kind on request, to see that the sanitizers which
// other tests rely on do find it. The first argument says which.

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>

namespace {

int heap_overflow(int index) {
  auto bytes = std::make_unique<char[]>(8);
  volatile char* data = bytes.get();
  return data[index];
}

int signed_overflow(int value) { return INT_MAX - 8 + value; }

int shared = 0;

int data_race() {
  std::thread other([] { ++shared; });
  ++shared;
  other.join();
  return shared;
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view fault = argc > 1 ? argv[1] : "";
  // Not a constant to the compiler, which would warn of what comes.
  int eight = 7 + argc / 2;
  int result = 0;
  if (fault == "overflow") {
    result = heap_overflow(eight);
  } else if (fault == "undefined") {
    result = signed_overflow(eight + 1);
  } else if (fault == "race") {
    result = data_race();
  }
  std::printf("survived '%s': %d\n", argc > 1 ? argv[1] : "", result);
  return EXIT_SUCCESS;
}
