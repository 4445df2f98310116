// describe_module [--interruptible] <.wasm> <wasm2c's .h> <wasm2c's .c>
//     <how to include the .h> <description to write> <.h to write> <.c to
//     write>
// describe_module --check <.wasm>
//
// Writes the C++ header that makes a module known to guest.h, and wasm2c's
// header and C code with what is wrong in them mended (module_header.h).
// --check says which feature of the module wasm2c does not translate, if any.
// Run by the rule in wasm2c.bzl; README.md shows its use by hand.
#include <cctype>
#include <fstream>
#include <iostream>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/module_binary.h"
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
std::string Guard(std::string_view what, std::string_view include) {
  std::string guard = "FIRSTTOUCH_WASM2C_";
  guard += what;
  guard += '_';
  for (char c : include) {
    guard.push_back(std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_');
  }
  return guard;
}

// Prints "describe_module: <file>: <why>". Gives the exit code.
int Fail(const char* file, const absl::Status& status) {
  std::cerr << "describe_module: " << file << ": " << status.message() << "\n";
  return 1;
}

int Check(const char* wasm) {
  std::string bytes;
  if (!ReadFile(wasm, &bytes)) return 1;
  const absl::Status checked = firsttouch::wasm2c::CheckTranslatable(
      std::as_bytes(std::span(bytes.data(), bytes.size())));
  return checked.ok() ? 0 : Fail(wasm, checked);
}

}  // namespace

int main(int argc, char** argv) {
  using firsttouch::wasm2c::MendGeneratedCode;
  using firsttouch::wasm2c::MendGeneratedHeader;
  if (argc == 3 && std::string_view(argv[1]) == "--check") {
    return Check(argv[2]);
  }
  firsttouch::wasm2c::MendOptions options;
  if (argc > 1 && std::string_view(argv[1]) == "--interruptible") {
    options.interruptible = true;
    --argc;
    ++argv;
  }
  if (argc != 8) {
    std::cerr << "usage: describe_module [--interruptible] <.wasm> <wasm2c's "
                 ".h> <wasm2c's .c> <how to include the .h> <description to "
                 "write> <.h to write> <.c to write>\n"
                 "       describe_module --check <.wasm>\n";
    return 2;
  }
  const char* const include = argv[4];
  std::string wasm, header_text, code;
  if (!ReadFile(argv[1], &wasm) || !ReadFile(argv[2], &header_text) ||
      !ReadFile(argv[3], &code)) {
    return 1;
  }
  const absl::StatusOr<firsttouch::wasm2c::ModuleBinary> binary =
      firsttouch::wasm2c::ReadModuleBinary(
          std::as_bytes(std::span(wasm.data(), wasm.size())));
  if (!binary.ok()) return Fail(argv[1], binary.status());
  const absl::StatusOr<firsttouch::wasm2c::ModuleHeader> header =
      firsttouch::wasm2c::ParseModuleHeader(header_text);
  if (!header.ok()) return Fail(argv[2], header.status());
  const absl::StatusOr<std::string> description =
      firsttouch::wasm2c::WriteModuleDescription(
          *header, *binary, code, include, Guard("DESCRIBED", include));
  if (!description.ok()) return Fail(argv[2], description.status());
  const absl::StatusOr<std::string> mended_header =
      MendGeneratedHeader(header_text, Guard("GENERATED", include));
  if (!mended_header.ok()) return Fail(argv[2], mended_header.status());
  const absl::StatusOr<std::string> mended_code =
      MendGeneratedCode(std::move(code), header_text, options);
  if (!mended_code.ok()) return Fail(argv[3], mended_code.status());
  return WriteFile(argv[5], *description) &&
                 WriteFile(argv[6], *mended_header) &&
                 WriteFile(argv[7], *mended_code)
             ? 0
             : 1;
}
