#include "firsttouch/tools/pooldump/location_text.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"

namespace firsttouch::pooldump {

using cli::HexText;
using cli::Printable;

namespace {

std::string Offset(int64_t offset) {
  const bool below = offset < 0;
  const uint64_t distance = below ? uint64_t{0} - static_cast<uint64_t>(offset)
                                  : static_cast<uint64_t>(offset);
  return absl::StrCat(below ? "-" : "", distance, " (", below ? "-" : "",
                      HexText(distance), ")");
}

// An address of a guest's process.
std::string GuestLocationText(const Location& location,
                              const std::string& name) {
  std::string text =
      absl::StrCat("guest ", name, ", region ", location.slot(), ", offset ",
                   Offset(location.offset_bytes()), ", page ", location.page());
  if (location.has_resident()) {
    absl::StrAppend(&text, " (", ResidencyText(location.resident()), ")");
  }
  absl::StrAppend(&text, ": ");
  if (location.has_image_page()) {
    absl::StrAppend(&text, "page ", location.image_page(), " of image ",
                    Printable(location.image_name()));
    if (location.given_back_pages() > 0) {
      absl::StrAppend(&text, ", or zeroes where it is among the ",
                      location.given_back_pages(), " pages given back");
    }
  } else {
    absl::StrAppend(&text, "zeroes at first");
  }
  return text;
}

}  // namespace

std::string PageStateText(PageState state) {
  switch (state) {
    case PAGE_MISSING:
      return "missing";
    case PAGE_CLEAN:
      return "clean";
    case PAGE_UNTRACKED:
      return "untracked";
    case PAGE_DIRTY:
      return "dirty";
    case PAGE_HOT:
      return "hot";
    default:
      return "unknown";
  }
}

std::string ResidencyText(int resident) {
  switch (resident) {
    case 0:
      return "not resident";
    case 1:
      return "resident, shared";
    case 2:
      return "resident, private";
    default:
      return "unknown";
  }
}

std::string PageSourceText(PageSource source) {
  switch (source) {
    case PAGE_OF_ZEROES:
      return "zeroes";
    case PAGE_OF_IMAGE:
      return "image";
    case PAGE_OUTSIDE:
      return "outside";
    default:
      return "unknown";
  }
}

std::string LocationText(const Location& location) {
  if (location.place() == Location::NO_POOL ||
      location.place() == Location::PLACE_UNSPECIFIED) {
    return location.mapping().empty()
               ? "in no pool"
               : absl::StrCat("in no pool: ", Printable(location.mapping()));
  }
  // A pool on paper may have no name.
  const std::string name = Printable(location.pool());
  if (location.has_guest_pid()) return GuestLocationText(location, name);
  std::string text =
      absl::StrCat(name == kUnnamed ? name : absl::StrCat("pool ", name),
                   ", slot ", location.slot());
  if (location.memory() != 0 || location.instance() != location.slot()) {
    absl::StrAppend(&text, " (instance ", location.instance(), ", memory ",
                    location.memory(), ")");
  }
  absl::StrAppend(&text, ", offset ", Offset(location.offset_bytes()));
  switch (location.place()) {
    case Location::GUARD_BEFORE:
      return text + ": guard, in front of the first memory";
    case Location::GUARD_AFTER:
      return text + ": guard, behind the memory";
    case Location::GUARD_UNOWNED:
      return absl::StrCat(text, ": guard, of nobody: slot ",
                          location.slot() + 1, " reaches there, too");
    default:
      break;
  }
  absl::StrAppend(&text, ", page ", location.page());
  if (!location.has_slot()) return text + ": inside the memory's maximum";
  if (location.page_state() != PAGE_STATE_UNSPECIFIED) {
    absl::StrAppend(&text, " (", PageStateText(location.page_state()), ")");
  } else if (location.has_resident()) {
    absl::StrAppend(&text, " (", ResidencyText(location.resident()), ")");
  }
  if (location.in_bounds()) {
    absl::StrAppend(&text, ": in bounds");
  } else if (location.page_in_bounds()) {
    absl::StrAppend(&text, ": above the size of ", location.size_bytes(),
                    " bytes, in its last page (not guarded)");
  } else if (location.size_bytes() == 0 &&
             location.slot_state() != Slot::HELD) {
    absl::StrAppend(&text, ": nobody holds the slot");
  } else {
    absl::StrAppend(&text, ": out of bounds, above the size of ",
                    location.size_bytes(), " bytes");
  }
  if (location.has_image_page()) {
    absl::StrAppend(&text, "; page ", location.image_page(), " of image ",
                    Printable(location.image_name()));
  } else if (location.page_source() == PAGE_OF_ZEROES) {
    absl::StrAppend(&text, "; zeroes at first");
  }
  return text;
}

std::string CrashText(const Crash& crash) {
  std::string text = crash.signal_name().empty()
                         ? absl::StrCat("signal ", crash.signal())
                         : crash.signal_name();
  if (crash.thread_id() != 0) {
    absl::StrAppend(&text, " in thread ", crash.thread_id());
  }
  if (!crash.has_address()) return text + ", without an address";
  absl::StrAppend(&text, " at ", HexText(crash.address()));
  if (crash.has_location()) {
    absl::StrAppend(&text, ": ", LocationText(crash.location()));
  }
  return text;
}

}  // namespace firsttouch::pooldump
