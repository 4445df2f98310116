// describe_module <wasm2c's .h> <wasm2c's .c> <how to include the .h>
//                 <description to write> <mended .c to write>
//
// Writes the C++ header that makes a module known to guest.h, and the C code
// with an error of wasm2c mended (module_header.h). Run by the rule in
// wasm2c.bzl; README.md shows its use by hand.
#include <cctype>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/module_header.h"

namespace {

bool ReadFile(const char* path, std::string* text) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream stream;
  stream << in.rdbuf();
  *text = stream.str();
  if (!in) std::cerr << "describe_module: cannot read " << path << "\n";
  return static_cast<bool>(in);
}

bool WriteFile(const char* path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) std::cerr << "describe_module: cannot write " << path << "\n";
  return static_cast<bool>(out);
}

// A macro name made of how the header is included.
std::string Guard(std::string_view include) {
  std::string guard = "FIRSTTOUCH_WASM2C_";
  for (char c : include) {
    guard.push_back(std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_');
  }
  return guard;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: describe_module <wasm2c's .h> <wasm2c's .c> <how to "
                 "include the .h> <description to write> <mended .c to "
                 "write>\n";
    return 2;
  }
  std::string header_text, code;
  if (!ReadFile(argv[1], &header_text) || !ReadFile(argv[2], &code)) return 1;
  absl::StatusOr<firsttouch::wasm2c::ModuleHeader> header =
      firsttouch::wasm2c::ParseModuleHeader(header_text);
  if (!header.ok()) {
    std::cerr << "describe_module: " << argv[1] << ": "
              << header.status().message() << "\n";
    return 1;
  }
  absl::StatusOr<std::string> mended =
      firsttouch::wasm2c::MendGeneratedCode(std::move(code));
  if (!mended.ok()) {
    std::cerr << "describe_module: " << argv[2] << ": "
              << mended.status().message() << "\n";
    return 1;
  }
  return WriteFile(argv[4], firsttouch::wasm2c::WriteModuleDescription(
                                *header, argv[3], Guard(argv[3]))) &&
                 WriteFile(argv[5], *mended)
             ? 0
             : 1;
}
